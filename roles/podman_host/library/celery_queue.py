#!/usr/bin/python
"""Tasks that wait in queues: how many, to another queue, deleted; queues paused and resumed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_queue
short_description: Count, move or delete the tasks that wait in queues; pause and resume queues
description:
  - Asks the Redis of this host through its Unix socket as the user C(admin), and finds all lists
    that hold tasks. With I(external) it asks as the workers of this host do, and looks at
    I(queues).
  - Tasks that a worker has taken are none of these.
  - A queue that is paused stays so until it is resumed. The module waits until no worker begins one
    of its tasks.
options:
  action:
    description: What to do.
    type: str
    choices: [list, move, purge, pause, resume]
    default: list
  by:
    description: With C(pause), who asks for it.
    type: str
    default: ''
  reason:
    description: With C(pause), why.
    type: str
    default: ''
  seconds:
    description: With C(pause), how long to wait for workers at most.
    type: int
    default: 30
  queue:
    description: Name of the queue in Redis, with the prefix of its app.
    type: str
    default: ''
  to:
    description: With C(move), the queue whose workers shall run them, likewise.
    type: str
    default: ''
  queues:
    description: Names of declared queues, to count where Redis cannot be searched.
    type: list
    elements: str
    default: []
  prefixes:
    description: What apps may set as Celery's C(global_keyprefix), besides none.
    type: list
    elements: str
    default: []
  database:
    description: Number of the Redis database.
    type: int
    default: 0
  external:
    description: As for C(celery_backlog).
    type: dict
author: celery-metal
"""

EXAMPLES = r"""
- name: Move the tasks of a queue whose name was misspelled
  celery_queue:
    action: move
    queue: emials
    to: emails
"""

RETURN = r"""
waiting:
  description: Queue to the tasks that wait in it; of one queue with C(pause) and C(resume)
  type: dict
  returned: always
paused:
  description: >-
    With C(list) each paused queue: C(queue), C(name) (with the prefix of its app), C(by), C(at) in
    seconds since 1970, and C(reason). With C(pause) that one.
  type: list
  returned: always
workers: {description: How many workers consume the queue, type: int, returned: always}
claimed: {description: How many of its tasks these have taken, type: int, returned: always}
unconfirmed:
  description: >-
    Each C(node) that may begin a task of the paused queue, C(ahead), how many its pool has yet to
    begin, and C(silent_seconds) since its last sign of life; null is what is not known
  type: list
  returned: always
is_kept: {description: Whether no other program has resumed it, type: bool, returned: always}
unsaved:
  description: >-
    Why a power cut of Redis may undo the pause or the resume; empty where it is on the disk
  type: str
  returned: always
is_complete:
  description: Whether all lists of Redis were looked at
  type: bool
  returned: with list
done:
  description: How many tasks were moved or deleted; 1 for a queue that was paused or resumed
  type: int
  returned: always
gone: {description: How many a worker has taken meanwhile, type: int, returned: always}
refused: {description: How many stay, for no worker takes them, type: int, returned: always}
"""

import contextlib
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_dead_letters import clean
from ansible.module_utils.celery_metal import HostError
from ansible.module_utils.celery_moves import counts, length, move, purge
from ansible.module_utils.celery_pauses import (
    confirmed,
    pause,
    pauses_of,
    place_of,
    resume,
    unsaved,
    value_of,
)
from ansible.module_utils.celery_redis import SOCKET, RedisError
from ansible.module_utils.celery_redis_login import client_at, client_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ansible.module_utils.celery_redis import Client
    from celery_metal_types import Endpoint, QueueTasks

ACTIONS = ["list", "move", "purge", "pause", "resume"]
# Queues in a report.
MOST_QUEUES = 1000


def run(client: Client, params: Mapping[str, Any], *, admin: bool, check: bool) -> QueueTasks:
    """What an action has found or done.

    :raises RedisError: when Redis does not answer, or refuses.
    """
    found: QueueTasks = {
        "waiting": {},
        "is_complete": False,
        "done": 0,
        "gone": 0,
        "refused": 0,
        "paused": [],
        "workers": 0,
        "claimed": 0,
        "unconfirmed": [],
        "is_kept": True,
        "unsaved": "",
    }
    queue, to, prefixes = params["queue"], params["to"], params["prefixes"]
    if params["action"] == "list":
        waiting, found["is_complete"] = counts(client, params["queues"], prefixes, admin=admin)
        found["waiting"] = dict(sorted(waiting.items())[:MOST_QUEUES])
        found["paused"] = pauses_of(client, params["queues"], prefixes)
    elif params["action"] in ("pause", "resume"):
        _hold(client, params, found, check=check)
    elif check:
        found["done"] = length(client, queue)
    elif params["action"] == "purge":
        found["done"] = purge(client, queue)
    else:
        prefix = next((one for one in prefixes if one and to.startswith(one)), "")
        result = move(client, queue, to, to.removeprefix(prefix))
        found["done"], found["gone"], found["refused"] = result
    return found


def _hold(client: Client, params: Mapping[str, Any], found: QueueTasks, *, check: bool) -> None:
    """Pause or resume a queue."""
    place = place_of(params["queue"], params["queues"], params["prefixes"])
    value, is_new = value_of(client, place), False
    if params["action"] == "resume":
        found["done"] = int(value is not None if check else resume(client, place))
        value = None
    elif not check:
        value, is_new = pause(client, place, params["by"], params["reason"])
        found["done"] = int(is_new)
    else:
        found["done"] = int(value is None)
    if not check and (found["done"] or value is not None):
        found["unsaved"] = unsaved(client)
    # Without a pause to confirm one look, for how many workers there are.
    seconds = 0 if check or value is None else params["seconds"]
    looked = confirmed(client, place, value or "", seconds)
    found["workers"], found["claimed"] = looked.workers, looked.claimed
    if value is not None and not check:
        found["unconfirmed"], found["is_kept"] = looked.unconfirmed, looked.is_kept
        of_all = pauses_of(client, [place.queue], [place.prefix])
        found["paused"] = [one for one in of_all if one["name"] == params["queue"]]
    found["waiting"] = {params["queue"]: length(client, params["queue"])}


def main() -> None:
    text = {"type": "str", "default": ""}
    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": ACTIONS, "default": "list"},
            **dict.fromkeys(("queue", "to", "by", "reason"), text),
            "seconds": {"type": "int", "default": 30},
            **dict.fromkeys(("queues", "prefixes"), names),
            "database": {"type": "int", "default": 0},
            "external": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    external: Endpoint | None = module.params["external"]
    database = external["database"] if external else module.params["database"]
    try:
        client = client_at(external, module.tmpdir) if external else client_of("admin")
        with contextlib.closing(client):
            client.errors = "surrogateescape"
            client.ask(("SELECT", str(database)))
            admin = external is None
            found = run(client, module.params, admin=admin, check=module.check_mode)
    except (RedisError, HostError, OSError) as problem:
        why = getattr(problem, "strerror", None) or str(problem)
        module.fail_json(
            f"{'Redis' if external else SOCKET}: {why}\n  Each task is in one list. Fix: "
            "playbooks/status.yml shows what is wrong with it. Then run this again."
        )
    changed = module.params["action"] != "list" and found["done"] > 0
    module.exit_json(changed=changed, **clean(found))


if __name__ == "__main__":
    main()
