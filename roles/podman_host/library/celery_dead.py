#!/usr/bin/python
"""Dead letters: what there is, one of them whole, back to their queues, deleted, or all of it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_dead
short_description: List, show, send back, delete or read the dead letters of queues
description:
  - Asks the Redis of this host through its Unix socket as the user C(admin), and finds the dead
    letters of all queues. With I(external) it asks as the workers of this host do, and finds those
    of I(queues), of queues with a worker, and of the queue that I(queue) names.
  - Each letter is sent back or deleted in one step of Redis, the oldest of a queue first. Dead
    letters that come meanwhile are left alone. A run that was cut is completed by the next.
options:
  action:
    description: >-
      C(list) returns some, C(show) one whole, C(export) all as text; C(send) moves them to the list
      of their priority, behind the tasks that wait there, and resets their count of crashes
    type: str
    choices: [list, show, send, delete, export]
    default: list
  id:
    description: Only letters of this task ID.
    type: str
    default: ''
  queue:
    description: Only those of this queue, without or with the prefix of its app.
    type: str
    default: ''
  task:
    description: Only those of tasks of this name.
    type: str
    default: ''
  reason:
    description: Only those with this text in their reason.
    type: str
    default: ''
  queues:
    description: Names of queues. Those that workers report to Redis are added.
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
- name: Send back those of a task that is corrected
  celery_dead:
    action: send
    task: shop.tasks.bill
"""

RETURN = r"""
total: {description: How many letters there are that the filter takes, type: int, returned: always}
is_complete:
  description: Whether all keys and letters were looked at in time
  type: bool
  returned: always
all_queues:
  description: Whether it looked for queues that are not declared and have no worker, or for one
  type: bool
  returned: always
lists: {description: Queue to its letters in I(total); at most 100, type: dict, returned: always}
rows:
  description: >-
    The first 24 of them, each with C(task), C(id), C(queue), C(at), C(crashes), C(worker),
    C(reason), C(arguments) and C(size); with C(send) those that cannot be sent back
  type: list
  returned: always
whole: {description: With C(show) the first of them, type: dict, returned: always}
text: {description: With C(export) all of them as lines of JSON, type: str, returned: always}
done:
  description: How many were, or with C(--check) would be, sent back or deleted
  type: int
  returned: always
gone:
  description: How many another program has taken meanwhile
  type: int
  returned: always
refused: {description: How many cannot be sent back, type: int, returned: always}
"""

import base64
import contextlib
import json
import time
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_dead_letters import (
    Filter,
    clean,
    letters,
    places_of,
    take,
)
from ansible.module_utils.celery_metal import HostError
from ansible.module_utils.celery_redis import SOCKET, RedisError
from ansible.module_utils.celery_redis_login import client_at, client_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ansible.module_utils.celery_dead_letters import Letter, Place
    from ansible.module_utils.celery_redis import Client
    from celery_metal_types import DeadLetters, Endpoint

# Lines for a terminal, lists in a report, seconds for reading, characters of an export.
MOST_ROWS, MOST_LISTS, LOOK_SECONDS, MOST_TEXT = 24, 100, 60.0, 32 << 20
# What Redis says of a right that is missing, in a script, too.
REFUSALS = ("NOPERM", "can't run this command", "no permissions", "can't access")
RIGHTS = "+llen +lrange +lrem +lpush +rpush +eval, and +hgetall on celery-metal.nodes"


class TooMuchError(Exception):
    """There is more than one export takes."""


def line(place: Place, letter: Letter) -> str:
    """A letter in an export: the message as it is, in base64 where it is no text."""
    key, message = "message", letter.raw
    try:
        message.encode()
    except UnicodeEncodeError:
        data = message.encode(errors="surrogateescape")
        key, message = "message_base64", base64.b64encode(data).decode()
    return json.dumps({"queue": place.name, "list": place.key, key: message}) + "\n"


def look(
    client: Client, places: Mapping[Place, int], wanted: Filter, action: str, found: DeadLetters
) -> None:
    """Add to a report what an action that changes nothing wants to know.

    :raises TooMuchError: when an export would be too large.
    :raises RedisError: when Redis does not answer, or refuses.
    """
    until, size, lines = time.monotonic() + LOOK_SECONDS, 0, []
    is_counted = not wanted.is_of_letters
    for place, length in places.items():
        seen = matched = 0
        for _, letter in letters(client, place, length, until):
            seen += 1
            if not wanted.takes(letter):
                continue
            matched += 1
            if len(found["rows"]) < MOST_ROWS:
                found["rows"].append(letter.row(place))
            if action == "show" and not found["whole"]:
                found["whole"] = letter.whole(place)
            if action == "export":
                if letter.size and not letter.raw:
                    raise TooMuchError(f"a letter of {place.name} {letter.problem}")
                lines.append(line(place, letter))
                size += len(lines[-1])
                if size > MOST_TEXT:
                    raise TooMuchError(f"they are more than the limit of {MOST_TEXT >> 20} MiB")
            elif is_counted and len(found["rows"]) == MOST_ROWS:
                break
        is_whole = seen >= length or time.monotonic() < until
        found["is_complete"] = found["is_complete"] and is_whole
        counted = length if is_counted and action != "export" else matched
        if counted:
            found["total"] += counted
            if len(found["lists"]) < MOST_LISTS:
                found["lists"][place.name] = counted
    found["text"] = "".join(lines)


def run(
    client: Client, params: Mapping[str, Any], *, admin: bool, check: bool
) -> tuple[DeadLetters, bool]:
    """What an action has found or done, and whether it has changed anything.

    :raises TooMuchError: when an export would be too large.
    :raises RedisError: when Redis does not answer, or refuses.
    """
    wanted = Filter(params["id"], params["queue"], params["task"], params["reason"])
    queues, prefixes, action = params["queues"], params["prefixes"], params["action"]
    places, is_complete = places_of(client, queues, prefixes, wanted, admin=admin)
    found: DeadLetters = {
        "total": 0,
        "is_complete": is_complete,
        "all_queues": admin or bool(wanted.queue),
        "lists": {},
        "rows": [],
        "whole": {},
        "text": "",
        "done": 0,
        "gone": 0,
        "refused": 0,
    }
    if action not in ("send", "delete"):
        look(client, places, wanted, action, found)
        return found, False
    result = take(client, places, wanted, back=action == "send", check=check, rows=MOST_ROWS)
    found["rows"], found["refused"] = result.refused, result.refused_count
    found["done"], found["gone"] = result.done, result.gone
    found["total"] = result.done + result.gone + result.refused_count
    found["lists"] = dict(list(result.by_queue.items())[:MOST_LISTS])
    return found, result.done > 0


def main() -> None:
    text = {"type": "str", "default": ""}
    actions = ["list", "show", "send", "delete", "export"]
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": actions, "default": "list"},
            **dict.fromkeys(("id", "queue", "task", "reason"), text),
            "queues": {"type": "list", "elements": "str", "default": []},
            "prefixes": {"type": "list", "elements": "str", "default": []},
            "database": {"type": "int", "default": 0},
            "external": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    external: Endpoint | None = module.params["external"]
    database = external["database"] if external else module.params["database"]
    where = "Redis" if external else SOCKET
    try:
        client = client_at(external, module.tmpdir) if external else client_of("admin")
        with contextlib.closing(client):
            client.errors = "surrogateescape"
            client.ask(("SELECT", str(database)))
            admin, check = external is None, module.check_mode
            found, changed = run(client, module.params, admin=admin, check=check)
    except TooMuchError as problem:
        module.fail_json(
            f"dead_action export: {problem}; nothing is written.\n"
            "  Fix: choose some by dead_queue, dead_task, dead_reason or dead_id."
        )
    except (RedisError, HostError, OSError) as problem:
        why = getattr(problem, "strerror", None) or str(problem)
        fix = "playbooks/status.yml shows what is wrong with it. Then run this again."
        if any(one in why for one in REFUSALS):
            user = external["user"] if external else "admin"
            fix = f"give the user {user or 'default'} of that Redis {RIGHTS}."
        elif str(problem).startswith("WRONGTYPE"):
            fix = "delete the key that is in the place of the queue. Then run this again."
        module.fail_json(f"{where}: {why}\n  Letters are in one list at any time. Fix: {fix}")
    module.exit_json(changed=changed, **clean(found))


if __name__ == "__main__":
    main()
