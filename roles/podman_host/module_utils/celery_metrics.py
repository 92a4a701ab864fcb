"""What workers count of their tasks, as they keep it in Redis, and how long tasks have waited.

All of it is input: a worker may be compromised, and each sender chooses what is in its messages.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ansible.module_utils.celery_redis import PRIORITIES

if TYPE_CHECKING:
    from ansible.module_utils.celery_redis import Client
    from celery_metal_types import Counted

METRICS = "celery-metal.metrics"
OUTCOMES = ("succeeded", "failed", "retried", "rejected", "ignored", "lost", "revoked")
# Bytes of what a worker writes; and how many queues and bounds are read.
LONGEST, MOST_QUEUES, MOST_BOUNDS = 1 << 20, 1000, 50
MOST, MOST_SECONDS = 1 << 53, 10**9
# Lists in one request, and bytes at the end of a message, where its headers are.
AT_ONCE, TAIL = 100, 8192
# When the message that is taken next was sent; nothing for one with an ETA, or that does not say.
SENT = """
local found = {}
for i, key in ipairs(KEYS) do
  local last = redis.pcall('LRANGE', key, -1, -1)
  local text = string.sub(not last.err and last[1] or '', -tonumber(ARGV[1]))
  local sent = string.match(text, '"celery_metal_sent": ?(%d+%.?%d*)')
  found[i] = not string.find(text, '"eta": ?"') and sent or ''
end
return found
"""
NUMBER = re.compile(r"\d{1,12}(\.\d{1,9})?", re.ASCII)


def counted(client: Client, prefixes: Sequence[str]) -> dict[str, Counted]:
    """What the workers of each queue have counted within the last minutes, all together.

    :param prefixes: what apps may set as ``global_keyprefix``, with the empty one.
    :raises RedisError: when Redis does not answer.
    """
    said = client.try_all(*(("HGETALL", prefix + METRICS) for prefix in prefixes))
    found: dict[str, Counted] = {}
    for answer in said:
        for text in answer[1::2] if isinstance(answer, list) else ():
            for queue, one in _of_worker(text):
                found[queue] = _sum(found[queue], one) if queue in found else one
    return found


def _of_worker(text: Any) -> Iterable[tuple[str, Counted]]:
    try:
        said = json.loads(text) if isinstance(text, str) and len(text) <= LONGEST else {}
        bounds = [round(1000 * _number(one, MOST_SECONDS)) for one in said["bounds"][:MOST_BOUNDS]]
        queues = list(said["queues"].items())[:MOST_QUEUES]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    if bounds != sorted(set(bounds)):
        return
    for queue, one in queues:
        try:
            recent = one["recent"]
            wait = [round(_number(each, MOST)) for each in recent["wait"]]
            ended = recent["outcomes"]
            outcomes = {name: round(_number(ended.get(name, 0), MOST)) for name in OUTCOMES}
            seconds = round(_number(recent["seconds"], MOST_SECONDS))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if len(wait) == len(bounds) + 1:
            yield (
                queue,
                {
                    "bounds_ms": bounds,
                    "wait": wait,
                    "outcomes": {name: number for name, number in outcomes.items() if number},
                    "seconds": seconds,
                },
            )


def _number(value: Any, most: float) -> float:
    """A count or a duration; ValueError for what is none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(str(value)[:40])
    return value


def _sum(one: Counted, other: Counted) -> Counted:
    # Of two versions of the runtime: those of the first one.
    if one["bounds_ms"] != other["bounds_ms"]:
        return one
    return {
        "bounds_ms": one["bounds_ms"],
        "wait": [a + b for a, b in zip(one["wait"], other["wait"], strict=True)],
        "outcomes": dict(Counter(one["outcomes"]) + Counter(other["outcomes"])),
        "seconds": max(one["seconds"], other["seconds"]),
    }


def oldest(client: Client, queues: Iterable[str], prefixes: Sequence[str]) -> dict[str, int]:
    """For how many seconds the next task of each queue has waited, where its sender says so.

    :param queues: without a prefix.
    :param prefixes: as for ``counted``.
    :raises RedisError: when the user may not look into these lists.
    """
    ((now, _),) = client.ask(("TIME",))
    ways = [
        (queue, f"{one}{queue}{step}")
        for queue in queues
        for one in prefixes
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
