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
  external:
    description:
      - C(host), C(port), C(tls), C(user) and C(database) of a Redis of the user's own, or what
        names the Sentinels that elect one. It is asked over the network, with the secrets of the
        workers here.
    type: dict
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
memory:
  description: C(used) and C(limit) in bytes; a limit of 0 is none. Empty without an answer.
  type: dict
  returned: always
run_id:
  description: What this one run of Redis is known by; empty where the user may not ask
  type: str
  returned: always
replication:
  description:
    - Of a Redis that Sentinels have elected the address of the C(primary); its C(replicas), each
      with C(address), C(state), C(behind_bytes) and C(lag_seconds) since it was last heard of; and
      how many of them C(count) for C(min-replicas-to-write), null where that is 0.
    - Null for any other, and where the user may not ask.
  type: dict
  returned: always
dead: {description: Queue to tasks that were put aside, where any, type: dict, returned: always}
holders:
  description: What C(celery_host) returns as this; null where the Redis is no one of this host
  type: dict
  returned: always
secrets: {description: Secret of Redis to its labels, of this host, type: dict, returned: always}
held:
  description: For each list of a worker that is not empty its C(node), C(queue) and C(tasks)
  type: list
  returned: always
"""

import contextlib
import re
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_holders import recorded
from ansible.module_utils.celery_metal import HostError
from ansible.module_utils.celery_redis import (
    PRIORITIES,
    SOCKET,
    Client,
    RedisError,
    fields,
    queues_of,
)
from ansible.module_utils.celery_redis_login import client_at, client_of
from ansible.module_utils.podman_store import labels

if TYPE_CHECKING:
    from celery_metal_types import Backlog, Endpoint, Held, Lengths, RedisUse, Replication


def backlog(client: Client, queues: list[str]) -> Lengths:
    """The lengths of all lists of the queues, and of those queues that workers tell of."""
    (beats,) = client.ask(("HGETALL", "celery-metal.nodes"))
    nodes = {node: queues_of(life) for node, life in zip(beats[::2], beats[1::2], strict=True)}
    known = list(dict.fromkeys([*queues, *(queue for held in nodes.values() for queue in held)]))
    pairs = [(node, queue) for node, held in sorted(nodes.items()) for queue in held]
    keys = [queue + suffix for queue in known for suffix in PRIORITIES]
    keys += [f"celery-metal.dead:{queue}" for queue in known]
    keys += [f"celery-metal.held:{node}:{queue}" for node, queue in pairs]
    lengths = iter(client.ask(*(("LLEN", key) for key in keys)))
    waiting = {queue: sum(next(lengths) for _ in PRIORITIES) for queue in known}
    dead = {queue: next(lengths) for queue in known}
    lists: list[Held] = [
        {"node": node, "queue": queue, "tasks": next(lengths)} for node, queue in pairs
    ]
    return {
        "waiting": waiting,
        "dead": {queue: tasks for queue, tasks in dead.items() if tasks},
        "held": [one for one in lists if one["tasks"]],
    }


def memory_of(client: Client) -> RedisUse:
    """What Redis uses, and what it may use."""
    (text,) = client.ask(("INFO", "memory"))
    said = fields(text)
    return {"used": int(said["used_memory"]), "limit": int(said["maxmemory"])}


def run_id_of(client: Client) -> str:
    """What this run of Redis is known by, whatever the address is."""
    (text,) = client.ask(("INFO", "server"))
    return fields(text).get("run_id", "")


def replication_of(client: Client) -> Replication | None:
    """Who follows the primary, and how far behind; None where it is the primary no more."""
    (text,) = client.ask(("INFO", "replication"))
    said = fields(text)
    if said["role"] != "master":
        return None
    replicas = [
        dict(part.split("=", 1) for part in value.split(","))
        for name, value in said.items()
        if re.fullmatch(r"slave\d+", name)
    ]
    good = said.get("min_slaves_good_slaves")
    return {
        "primary": "{}:{}".format(*client.where),
        "replicas": [
            {
                "address": f"{one['ip']}:{one['port']}",
                "state": one["state"],
                "behind_bytes": int(said["master_repl_offset"]) - int(one["offset"]),
                "lag_seconds": int(one["lag"]),
            }
            for one in sorted(replicas, key=lambda one: (one["ip"], one["port"]))
        ],
        "count": None if good is None else int(good),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "queues": {"type": "list", "elements": "str", "default": []},
            "database": {"type": "int", "default": 0},
            "external": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    found: Backlog = {
        "error": "",
        "waiting": {},
        "dead": {},
        "held": [],
        "memory": {},
        "run_id": "",
        "replication": None,
        "holders": None,
        "secrets": {},
    }
    external: Endpoint | None = module.params["external"]
    database = external["database"] if external else module.params["database"]
    try:
        if not external:
            found["holders"], found["secrets"] = recorded(), labels("celery-redis-")
        client = client_at(external, module.tmpdir) if external else client_of("monitor")
        client.ask(("SELECT", str(database)))
        found = {**found, **backlog(client, module.params["queues"])}
        # Somebody else's may not tell.
        with contextlib.suppress(*([RedisError] if external else [])):
            found["memory"] = memory_of(client)
            found["run_id"] = run_id_of(client)
            if external and external.get("sentinels"):
                found["replication"] = replication_of(client)
    except OSError as problem:
        found["error"] = f"{SOCKET + ': ' if not external else ''}{problem.strerror or problem}"
    except (RedisError, HostError) as problem:
        found["error"] = str(problem)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
