"""What workers count of their tasks, as they keep it in Redis, and how long tasks have waited.

All of it is input: a worker may be compromised, and each sender chooses what is in its messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ansible.module_utils.celery_redis import PRIORITIES

if TYPE_CHECKING:
    from ansible.module_utils.celery_redis import Client
    from celery_metal_types import Counted

METRICS = "celery-metal.metrics"
OUTCOMES = ("succeeded", "failed", "retried", "rejected", "ignored", "lost", "revoked")
# Workers write each 15 s. What is older in seconds is of one that is gone, or cannot write.
FRESH = 60
# Bytes of what a worker writes; and how many bounds and workers are read.
LONGEST, MOST_BOUNDS, MOST_NODES = 1 << 20, 50, 10_000
MOST, MOST_SECONDS = 1 << 53, 10**9
# Lists in one request, and bytes at the end of a message, where its headers are.
AT_ONCE, TAIL = 100, 8192
# When the message that is taken next was sent, or its ETA; nothing for one that does not tell.
SENT = """
local found = {}
for i, key in ipairs(KEYS) do
  local last = redis.pcall('LRANGE', key, -1, -1)
  local text = string.sub(not last.err and last[1] or '', -tonumber(ARGV[1]))
  found[i] = string.match(text, '"celery_metal_sent": ?(%d+%.?%d*)') or ''
end
return found
"""
NUMBER = re.compile(r"\d{1,12}(\.\d{1,9})?", re.ASCII)


def counted(client: Client, queues: Collection[str], prefixes: Sequence[str]) -> dict[str, Counted]:
    """What the workers of each of these queues have counted lately, all together.

    :param queues: without a prefix.
    :param prefixes: what apps may set as ``global_keyprefix``, with the empty one.
    :raises RedisError: when Redis does not answer.
    """
    keys = [prefix + METRICS for prefix in prefixes]
    time, *said = client.try_all(("TIME",), *(("HGETALL", key) for key in keys))
    now = int(time[0]) if isinstance(time, list) else None
    # Of different versions of the runtime bounds may differ: those of most tasks are shown.
    found: dict[str, dict[tuple[int, ...], Counted]] = {}
    for answer in said:
        for text in answer[1 : 2 * MOST_NODES : 2] if isinstance(answer, list) else ():
            for queue, one in _of_worker(text, now):
                if queue in queues:
                    alike, bounds = found.setdefault(queue, {}), tuple(one["bounds_ms"])
                    alike[bounds] = _sum(alike[bounds], one) if bounds in alike else one
    return {
        queue: max(alike.values(), key=lambda one: (sum(one["wait"]), len(one["bounds_ms"])))
        for queue, alike in found.items()
    }


def _of_worker(text: Any, now: int | None) -> Iterator[tuple[str, Counted]]:
    try:
        said = json.loads(text) if isinstance(text, str) and len(text) <= LONGEST else {}
        if now is not None and said["at"] is not None and not now - FRESH <= said["at"]:
            return
        bounds = [round(1000 * _number(one, MOST_SECONDS)) for one in said["bounds"][:MOST_BOUNDS]]
        queues = list(said["queues"].items())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    if bounds != sorted(set(bounds)):
        return
    for queue, one in queues:
        try:
            wait = [round(_number(each, MOST)) for each in one["wait"]]
            ended = {name: _number(one["outcomes"].get(name, 0), MOST) for name in OUTCOMES}
            seconds = _number(one["seconds"], MOST_SECONDS)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if len(wait) == len(bounds) + 1 and seconds:
            yield (
                queue,
                {
                    "bounds_ms": bounds,
                    "wait": wait,
                    "per_hour": {
                        name: round(3600 * number / seconds)
                        for name, number in ended.items()
                        if number
                    },
                    "seconds": max(round(seconds), 1),
                },
            )


def _number(value: Any, most: float) -> float:
    """A count or a duration; ValueError for what is none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(str(value)[:40])
    return value


def _sum(one: Counted, other: Counted) -> Counted:
    rates = (one["per_hour"], other["per_hour"])
    return {
        "bounds_ms": one["bounds_ms"],
        "wait": [a + b for a, b in zip(one["wait"], other["wait"], strict=True)],
        "per_hour": {
            name: sum(each.get(name, 0) for each in rates)
            for name in dict.fromkeys(name for each in rates for name in each)
        },
        "seconds": max(one["seconds"], other["seconds"]),
    }


def oldest(client: Client, queues: Collection[str], prefixes: Sequence[str]) -> dict[str, int]:
    """For how many seconds the next task of each queue has waited, where its message tells.

    Of several priorities or prefixes, that which has waited longest.

    :param queues: without a prefix.
    :param prefixes: as for ``counted``.
    :raises RedisError: when the user may not look into these lists.
    """
    ((now, _),) = client.ask(("TIME",))
    ways = [
        (queue, f"{prefix}{queue}{step}")
        for queue in queues
        for prefix in prefixes
        for step in PRIORITIES
    ]
    found: dict[str, int] = {}
    for begin in range(0, len(ways), AT_ONCE):
        some = ways[begin : begin + AT_ONCE]
        keys = [key for _, key in some]
        (answer,) = client.ask(("EVAL", SENT, str(len(keys)), *keys, str(TAIL)))
        for (queue, _), sent in zip(some, answer, strict=True):
            if isinstance(sent, str) and NUMBER.fullmatch(sent):
                age = max(int(now) - int(float(sent)), 0)
                found[queue] = max(age, found.get(queue, 0))
    return found
