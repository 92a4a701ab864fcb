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
  prefixes:
    description: What apps may set as Celery's C(global_keyprefix), besides none.
    type: list
    elements: str
    default: []
  apps:
    description: The C(global_keyprefix) of each app with users of its own; see I(all_lists).
    type: list
    elements: str
    default: []
  all_lists:
    description:
      - Whether to look at all lists of Redis, for 10 seconds at most. Only the user C(admin) may;
        so not with I(external).
    type: bool
    default: false
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
consumers:
  description: For each queue of I(waiting) that is not in I(queues), the workers that consume it
  type: dict
  returned: always
unconsumed:
  description: >-
    With I(all_lists), queue to tasks that wait in it, for each that is neither in I(queues) nor
    consumed by any worker; with the prefix of its app
  type: dict
  returned: always
paused:
  description: >-
    With I(all_lists) or I(external), each paused queue: C(queue), C(name) (with the prefix of its
    app), C(by), C(at) in seconds since 1970, and C(reason)
  type: list
  returned: always
is_complete:
  description: Whether all lists were looked at; null where they were not to be
  type: bool
  returned: always
dead: {description: Queue to tasks that were put aside, where any, type: dict, returned: always}
counted:
  description: >-
    For each queue what its workers have counted within the last C(seconds): how many tasks ended
    C(per_hour) by each outcome, and the histogram C(wait) of how long those that have begun had
    waited, with its C(bounds_ms)
  type: dict
  returned: always
oldest:
  description: >-
    With I(all_lists) or I(external), queue to the seconds for which its next task has waited, where
    its sender says when it was sent
  type: dict
  returned: always
holders:
  description: What C(celery_host) returns as this; null where the Redis is no one of this host
  type: dict
  returned: always
secrets: {description: Secret of Redis to its labels, of this host, type: dict, returned: always}
held:
  description: >-
    For each list of a worker that is not empty its C(node), C(queue) and C(tasks), and whether it
    C(beats); a worker without a heartbeat gives its claims back only when it starts
  type: list
  returned: always
"""

import contextlib
import re
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_holders import recorded
from ansible.module_utils.celery_lists import Stray, stray
from ansible.module_utils.celery_metal import HostError
from ansible.module_utils.celery_metrics import counted, oldest
from ansible.module_utils.celery_pauses import pauses_of
from ansible.module_utils.celery_redis import (
    PRIORITIES,
    SOCKET,
    Client,
    RedisError,
    fields,
    lives_of,
)
from ansible.module_utils.celery_redis_login import client_at, client_of
from ansible.module_utils.podman_store import labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from celery_metal_types import Backlog, Endpoint, Held, Lengths, RedisUse, Replication


def under(prefixes: Sequence[str]) -> list[str]:
    """No prefix, and these."""
    return list(dict.fromkeys(["", *prefixes]))


def backlog(client: Client, queues: list[str], prefixes: Sequence[str] = ()) -> Lengths:
    """The lengths of all lists of the queues, and of those queues that workers tell of.

    :param prefixes: what apps may set as ``global_keyprefix``; a queue counts under each.
    :raises RedisError: when Redis does not answer.
    """
    ways_in = under(prefixes)
    lives = lives_of(client, ways_in)
    known = list(dict.fromkeys([*queues, *(queue for held in lives.values() for queue in held)]))
    pairs = [(*life, queue) for life, held in sorted(lives.items()) for queue in held]
    ways = [(prefix, queue) for queue in known for prefix in ways_in]
    keys = [prefix + queue + suffix for prefix, queue in ways for suffix in PRIORITIES]
    keys += [f"{prefix}celery-metal.dead:{queue}" for prefix, queue in ways]
    keys += [f"{prefix}celery-metal.held:{node}:{queue}" for prefix, node, queue in pairs]
    lengths = map(_number, client.try_all(*(("LLEN", key) for key in keys)))
    waiting, dead = dict.fromkeys(known, 0), dict.fromkeys(known, 0)
    for _, queue in ways:
        waiting[queue] += sum(next(lengths) for _ in PRIORITIES)
    for _, queue in ways:
        dead[queue] += next(lengths)
    held: list[Held] = [
        {"node": node, "queue": queue, "tasks": next(lengths), "beats": True}
        for _, node, queue in pairs
    ]
    consumers: dict[str, list[str]] = {}
    for _, node, queue in pairs:
        if queue not in queues and node not in consumers.setdefault(queue, []):
            consumers[queue].append(node)
    return {
        "waiting": waiting,
        "consumers": consumers,
        "dead": {queue: tasks for queue, tasks in dead.items() if tasks},
        "held": [one for one in held if one["tasks"]],
    }


def _number(length: Any) -> int:
    """The answer to LLEN; of a key of another kind none."""
    if isinstance(length, RedisError) and not str(length).startswith(("WRONGTYPE", "NOPERM")):
        raise length
    return length if type(length) is int else 0


def strays(
    admin: Client, queues: Iterable[str], prefixes: Sequence[str], apps: Sequence[str]
) -> Stray:
    """Find tasks outside of the lists of these queues and of other apps' workers with a heartbeat.

    :param queues: those that were counted, without a prefix.
    :param prefixes: each ``global_keyprefix`` under which they were.
    :param apps: prefixes of other apps. Their workers look after their own claims.
    :raises RedisError: when the user may not look for keys.
    """
    lives = lives_of(admin, apps)
    of_apps = {prefix + queue for (prefix, _), all_ in lives.items() for queue in all_}
    known = {prefix + queue for queue in queues for prefix in ["", *prefixes]}
    found = stray(admin, known | of_apps, [*prefixes, *apps])
    for (prefix, node), all_ in lives.items():
        for queue in all_:
            found.held.pop((node, prefix + queue), None)
    return found


def with_strays(lengths: Lengths, found: Stray, prefixes: Sequence[str]) -> Lengths:
    """Add the tasks that were found in other lists.

    Dead letters and claims under a prefix were counted for their queue.
    """
    seen = {
        (one["node"], prefix + one["queue"])
        for one in lengths["held"]
        for prefix in under(prefixes)
    }
    known = {prefix + queue for queue in lengths["waiting"] for prefix in under(prefixes)}
    held: list[Held] = [
        {"node": node, "queue": queue, "tasks": tasks, "beats": False}
        for (node, queue), tasks in sorted(found.held.items())
        if (node, queue) not in seen
    ]
    dead = {queue: tasks for queue, tasks in found.dead.items() if queue not in known}
    return {
        **lengths,
        "dead": {**lengths["dead"], **dead},
        "held": [*lengths["held"], *held],
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
            "prefixes": {"type": "list", "elements": "str", "default": []},
            "apps": {"type": "list", "elements": "str", "default": []},
            "all_lists": {"type": "bool", "default": False},
            "database": {"type": "int", "default": 0},
            "external": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    found: Backlog = {
        "error": "",
        "waiting": {},
        "consumers": {},
        "dead": {},
        "held": [],
        "counted": {},
        "oldest": {},
        "unconsumed": {},
        "paused": [],
        "is_complete": None,
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
        prefixes = module.params["prefixes"]
        lengths = backlog(client, module.params["queues"], prefixes)
        figures = counted(client, lengths["waiting"], under(prefixes))
        found = {**found, **lengths, "counted": figures}
        if module.params["all_lists"] and not external:
            with contextlib.closing(client_of("admin")) as admin:
                admin.ask(("SELECT", str(database)))
                others = strays(admin, lengths["waiting"], prefixes, module.params["apps"])
                found["paused"] = pauses_of(admin, [*lengths["waiting"]], prefixes)
                found["oldest"] = oldest(admin, lengths["waiting"], under(prefixes))
            found = {**found, **with_strays(lengths, others, prefixes)}
            found["unconsumed"], found["is_complete"] = others.waiting, others.is_complete
        # Somebody else's may not tell.
        with contextlib.suppress(*([RedisError] if external else [])):
            if external:
                found["paused"] = pauses_of(client, [*lengths["waiting"]], prefixes)
            found["memory"] = memory_of(client)
            found["run_id"] = run_id_of(client)
            if external and external.get("sentinels"):
                found["replication"] = replication_of(client)
        with contextlib.suppress(*([RedisError] if external else [])):
            if external:
                found["oldest"] = oldest(client, lengths["waiting"], under(prefixes))
    except OSError as problem:
        found["error"] = f"{SOCKET + ': ' if not external else ''}{problem.strerror or problem}"
    except (RedisError, HostError) as problem:
        found["error"] = str(problem)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
