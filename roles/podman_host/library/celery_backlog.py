#!/usr/bin/python
"""How many tasks wait, are held by workers, and were put aside, asked in one go of Redis."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_backlog
short_description: Report the lengths of the lists that Celery's tasks are in, changing nothing
description:
  - Asks the Redis of this host through its Unix socket, whatever the number of queues.
  - A Redis that does not answer is no failure; I(error) says so.
options:
  queues:
    description: Names of queues. Those that workers report to Redis are added.
    type: list
    elements: str
    default: []
  database:
    description: Number of the Redis database.
    type: int
    default: 0
author: celery-metal
"""

EXAMPLES = r"""
- name: Ask Redis
  celery_backlog:
    queues: [emails, reports]
  register: status_backlog
"""

RETURN = r"""
error: {description: Why Redis gave no answer; empty when it did, type: str, returned: always}
waiting: {description: Queue to tasks that wait in it, type: dict, returned: always}
dead: {description: Queue to tasks that were put aside, where any, type: dict, returned: always}
held:
  description: For each list of a worker that is not empty its C(node), C(queue) and C(tasks)
  type: list
  returned: always
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError
from ansible.module_utils.celery_redis import SOCKET, Client, RedisError, client_of

# kombu gives each priority but 0 a list of its own, with this before its number.
PRIORITIES = ["", *(f"\x06\x16{number}" for number in range(1, 10))]


def queues_of(life: str) -> list[str]:
    """The queues that a worker tells of; none where it is not understood.

    >>> queues_of('[7, 1, ["mail"]]'), queues_of("[]"), queues_of("?")
    (['mail'], [], [])
    """
    try:
        return [str(queue) for queue in json.loads(life)[2]]
    except (ValueError, TypeError, LookupError):
        return []


def backlog(client: Client, queues: list[str]) -> dict[str, Any]:
    """The lengths of all lists of the queues, and of those queues that workers tell of."""
    (beats,) = client.ask(("HGETALL", "celery-metal.nodes"))
    lives = dict(zip(beats[::2], beats[1::2], strict=True))
    # Without those of the runtime itself, such as the one for a worker's first task.
    nodes = {
        node: [queue for queue in queues_of(life) if not queue.startswith("celery-metal.")]
        for node, life in lives.items()
    }
    known = list(dict.fromkeys([*queues, *(queue for held in nodes.values() for queue in held)]))
    pairs = [(node, queue) for node, held in sorted(nodes.items()) for queue in held]
    keys = [queue + suffix for queue in known for suffix in PRIORITIES]
    keys += [f"celery-metal.dead:{queue}" for queue in known]
    keys += [f"celery-metal.held:{node}:{queue}" for node, queue in pairs]
    lengths = iter(client.ask(*(("LLEN", key) for key in keys)))
    waiting = {queue: sum(next(lengths) for _ in PRIORITIES) for queue in known}
    dead = {queue: next(lengths) for queue in known}
    held = [{"node": node, "queue": queue, "tasks": next(lengths)} for node, queue in pairs]
    return {
        "waiting": waiting,
        "dead": {queue: tasks for queue, tasks in dead.items() if tasks},
        "held": [one for one in held if one["tasks"]],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "queues": {"type": "list", "elements": "str", "default": []},
            "database": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    found: dict[str, Any] = {"waiting": {}, "dead": {}, "held": []}
    error = ""
    try:
        client = client_of("monitor")
        client.ask(("SELECT", str(module.params["database"])))
        found = backlog(client, module.params["queues"])
    except OSError as problem:
        error = f"{SOCKET}: {problem.strerror or problem}"
    except (RedisError, HostError) as problem:
        error = str(problem)
    module.exit_json(changed=False, error=error, **found)


if __name__ == "__main__":
    main()
