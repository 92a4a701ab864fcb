"""What the playbook doctor.yml has to know of a Redis, and of the workers that it reaches."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ansible.module_utils.celery_questions import ask
from ansible.module_utils.celery_redis import (
    PRIORITIES,
    RedisError,
    fields,
    lives_of,
)

if TYPE_CHECKING:
    from ansible.module_utils.celery_redis import Client

SECTIONS = ("server", "clients", "memory", "persistence", "stats", "replication")
INFO = frozenset(
    {
        *("redis_version", "uptime_in_seconds", "run_id", "role", "used_memory", "maxmemory"),
        *("maxmemory_policy", "connected_clients", "maxclients", "rejected_connections"),
        *("evicted_keys", "latest_fork_usec", "rdb_last_bgsave_status", "rdb_last_save_time"),
        *("aof_enabled", "aof_rewrites", "aof_last_bgrewrite_status", "aof_last_write_status"),
        *("aof_current_size", "aof_base_size", "aof_delayed_fsync", "loading"),
    }
)
CONFIG = ("disable-thp", "port", "tls-port", "bind", "auto-aof-rewrite-min-size")
#: Of keys that are looked at, seconds and keys for one request; of results whose end is asked for,
#: and whose size.
SCAN_SECONDS, AT_ONCE, MOST_ENDS, MOST_SIZES = 2.0, 2000, 500, 50
RESULT = re.compile(r"celery-task(set)?-meta-")
#: Queues and lists of claims that are looked into, messages of each end, bytes of a message.
MOST_LISTS, EACH_END, LONGEST = 200, 10, 1 << 16
#: Both ends of a list: elements that are not longer.
ENDS = """
local found, most, longest = {}, tonumber(ARGV[1]), tonumber(ARGV[2])
if redis.call('TYPE', KEYS[1]).ok ~= 'list' then return {0, {}} end
local length = redis.call('LLEN', KEYS[1])
local function take(index)
  local one = redis.call('LINDEX', KEYS[1], index)
  if one and #one <= longest then found[#found + 1] = one end
end
for index = 1, math.min(most, length) do take(-index) end
for index = 0, math.min(most, length - most) - 1 do take(index) end
return {length, found}
"""
#: Settings of the app that leave a host, and what of them.
SETTINGS = frozenset(
    {
        *("result_expires", "task_acks_late", "task_reject_on_worker_lost", "task_ignore_result"),
        *("worker_prefetch_multiplier", "worker_max_memory_per_child", "task_time_limit"),
        *("worker_disable_prefetch", "task_always_eager", "task_default_queue"),
    }
)
#: How Django's settings begin, and names from before Celery 4.
NAMESPACE = "celery_"
OLD = {
    "celery_acks_late": "task_acks_late",
    "celery_always_eager": "task_always_eager",
    "celery_default_queue": "task_default_queue",
    "celery_ignore_result": "task_ignore_result",
    "celery_task_result_expires": "result_expires",
    "celeryd_prefetch_multiplier": "worker_prefetch_multiplier",
    "celeryd_task_time_limit": "task_time_limit",
}


def redis_facts(
    client: Client, queues: Sequence[str], prefixes: Sequence[str], database: int
) -> dict[str, Any]:
    """All of it; what a user may not ask is not there.

    :raises RedisError: when Redis does not answer.
    """
    found: dict[str, Any] = {"info": info_of(client), "config": config_of(client)}
    if found["info"].get("role", "master") != "master" or str(found["info"].get("loading")) == "1":
        return found
    client.ask(("SELECT", str(database)))
    under = list(dict.fromkeys(["", *prefixes]))
    found["results"] = results_of(client)
    found["queues"] = queues_of(client, queues, under)
    found["workers"], found["asked"] = workers_of(client, database, under)
    return found


def info_of(client: Client) -> dict[str, str]:
    """What INFO says, as far as a rule needs it."""
    answers = client.try_all(*(("INFO", section) for section in SECTIONS))
    texts = [one for one in answers if isinstance(one, str)]
    return {key: value for key, value in fields("\n".join(texts)).items() if key in INFO}


def config_of(client: Client) -> dict[str, str]:
    """Some of what CONFIG GET says."""
    answers = client.try_all(*(("CONFIG", "GET", name) for name in CONFIG))
    pairs = [one for one in answers if isinstance(one, list) and len(one) == 2]
    return {str(name): str(value) for name, value in pairs}


def results_of(client: Client, seconds: float = SCAN_SECONDS) -> dict[str, Any] | None:
    """How many results there are, and how many of them never end; None where no key may be sought.

    The order of SCAN is that of a hash, so the first ones that it finds are as good as any.

    :param seconds: how long to look at most.
    """
    until, cursor, seen, count = time.monotonic() + seconds, "0", 0, 0
    ends: list[Any] = []
    sizes: list[int] = []
    while True:
        (answer,) = client.try_all(("SCAN", cursor, "COUNT", str(AT_ONCE)))
        if isinstance(answer, RedisError):
            return None
        cursor, keys = answer
        seen += len(keys)
        results = [key for key in keys if RESULT.search(key)]
        count += len(results)
        if some := results[: MOST_ENDS - len(ends)]:
            ends += client.try_all(*(("PTTL", key) for key in some))
        if some := results[: MOST_SIZES - len(sizes)]:
            asked = client.try_all(*(("MEMORY", "USAGE", key) for key in some))
            sizes += [one if type(one) is int else 0 for one in asked]
        if cursor == "0" or time.monotonic() > until:
            break
    (keys,) = client.ask(("DBSIZE",))
    return {
        "keys": keys,
        "seen": seen,
        "is_complete": cursor == "0",
        "count": count,
        "sampled": len(ends),
        "endless": sum(one == -1 for one in ends),
        "mean_bytes": sum(sizes) // len(sizes) if sizes else 0,
    }


def queues_of(
    client: Client, queues: Sequence[str], prefixes: Sequence[str]
) -> list[dict[str, Any]]:
    """A sample of what waits in each queue, and of what workers have taken of it."""
    lists = [(prefix + queue, "") for queue in queues for prefix in prefixes]
    keys = [(name, node, name + suffix) for name, node in lists for suffix in PRIORITIES[:1]]
    for (prefix, node), own in lives_of(client, prefixes).items():
        keys += [
            (prefix + queue, node, f"{prefix}celery-metal.held:{node}:{queue}") for queue in own
        ]
    keys = keys[:MOST_LISTS]
    commands = (("EVAL", ENDS, "1", key, str(EACH_END), str(LONGEST)) for *_, key in keys)
    found = []
    for (name, node, _), answer in zip(keys, client.try_all(*commands), strict=True):
        if isinstance(answer, list) and len(answer) == 2 and answer[0]:
            length, messages = answer
            found.append({"queue": name, "node": node, "length": length, **sample(messages)})
    return found


def sample(messages: Iterable[str], now: float | None = None) -> dict[str, Any]:
    """How many messages of tasks there are, how many without an expiry, and how far their ETAs are.

    :param now: seconds since 1970.

    >>> sample(['{"headers": {"task": "a", "expires": null, "eta": null}}', "x"])
    {'sampled': 1, 'endless': 1, 'etas': []}
    """
    now = time.time() if now is None else now
    heads = [one for one in map(_headers, messages) if "task" in one]
    etas = [seconds for one in heads if (seconds := _until(one.get("eta"), now)) > 0]
    endless = sum(one.get("expires") is None for one in heads)
    return {"sampled": len(heads), "endless": endless, "etas": sorted(etas)}


def _headers(message: str) -> Mapping[str, Any]:
    try:
        headers = json.loads(message)["headers"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return headers if isinstance(headers, dict) else {}


def _until(text: Any, now: float) -> int:
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return int(moment.timestamp() - now)
    except (TypeError, ValueError, OverflowError, OSError):
        return 0


def workers_of(
    client: Client, database: int, prefixes: Sequence[str]
) -> tuple[dict[str, Any], int]:
    """Node name to the settings and the running tasks of each worker that answers."""
    found: dict[str, Any] = {}
    asked = 0
    for prefix in prefixes:
        try:
            settings, number = ask(client, database, prefix, "conf", {"with_defaults": False})
            running, _ = ask(client, database, prefix, "active", {})
        except RedisError:  # what the user may not do
            continue
        asked += number
        for node, said in settings.items():
            found[node] = {"settings": settings_of(said), **running_of(running.get(node))}
    return found, asked


def settings_of(said: Any) -> dict[str, Any]:
    """The settings that rules need: numbers, switches, and the name of a queue.

    >>> settings_of({"CELERY_TASK_ACKS_LATE": False, "SECRET_KEY": "x"})["task_acks_late"]
    False
    """
    if not isinstance(said, dict):
        return {}
    # What has the namespace overrides what has not, as it does in Celery.
    whole = {_plain(str(name)): said[name] for name in sorted(said, key=_is_prefixed)}
    found = {
        name: value
        for name, value in whole.items()
        if name in SETTINGS and (value is None or isinstance(value, (bool, int, float, str)))
    }
    options = whole.get("broker_transport_options")
    window = options.get("visibility_timeout") if isinstance(options, dict) else None
    found["visibility_timeout"] = window if isinstance(window, (int, float)) else None
    backend = whole.get("result_backend")
    found["result_backend"] = re.split(r"[:+]", backend)[0] if isinstance(backend, str) else ""
    return found


def _is_prefixed(name: Any) -> bool:
    return str(name).lower().startswith(NAMESPACE)


def _plain(name: str) -> str:
    """Celery's name of a setting.

    >>> _plain("CELERY_ACKS_LATE"), _plain("CELERY_TASK_TIME_LIMIT"), _plain("worker_pool")
    ('task_acks_late', 'task_time_limit', 'worker_pool')
    """
    own = name.lower()
    return OLD.get(own, own.removeprefix(NAMESPACE))


def running_of(said: Any, now: float | None = None) -> dict[str, int]:
    """How many tasks a worker runs, and for how many seconds the longest.

    >>> running_of([{"time_start": 10.0}, {"time_start": None}], 12.5)
    {'running': 2, 'longest': 2}
    """
    now = time.time() if now is None else now
    tasks = [one for one in said if isinstance(one, dict)] if isinstance(said, list) else []
    begun = [one.get("time_start") for one in tasks]
    ages = [now - one for one in begun if isinstance(one, (int, float)) and 0 < one <= now]
    return {"running": len(tasks), "longest": int(max(ages, default=0))}
