"""Queues that are paused: written into Redis, confirmed by each worker, and resumed.

The hash ``celery-metal.paused`` has a field for each; see pauses.py of the runtime. Users that may
not write there are those of producers and of monitoring. What is read is checked and bounded.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ansible.module_utils.celery_moves import Waiting
from ansible.module_utils.celery_redis import RedisError, lives_of
from ansible.module_utils.celery_signs import FRESH_SECONDS, parsed

if TYPE_CHECKING:
    from ansible.module_utils.celery_redis import Client
    from celery_metal_types import Pause, Unconfirmed

PAUSED, PAUSING = "celery-metal.paused", "celery-metal.pausing"
#: How often confirmations are looked for.
LOOK_SECONDS = 0.3
#: Pauses in a report, bytes of a value, and characters of a text in it.
MOST, LONGEST, LONGEST_TEXT = 200, 4096, 200
#: As the runtime abbreviates what it confirms.
LONGEST_ID = 16
#: How long Redis may take to have a write on its disk; less than the patience of a Client.
DISK_SECONDS = 4
MAX_AT = 253402300799  # the last second of the year 9999
# Those of declared queues first: other fields cannot keep them out.
READ = """
local found, most = {}, 2 * tonumber(ARGV[1])
local function add(queue, value)
  if type(value) == 'string' and #found < most and #queue <= 1024 then
    found[#found + 1] = queue
    found[#found + 1] = #value <= tonumber(ARGV[2]) and value or ''
  end
end
local seen = {}
for i = 3, #ARGV do
  seen[ARGV[i]] = true
  add(ARGV[i], redis.pcall('HGET', KEYS[1], ARGV[i]))
end
local all = redis.pcall('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if not seen[all[i]] then add(all[i], all[i + 1]) end
end
return found
"""
# A key of another type was not written by celery-metal.
WRITE = """
local before = redis.pcall('HGET', KEYS[1], ARGV[1])
if type(before) == 'table' and before.err then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""
# Confirmations are of no use without a pause.
RESUME = """
local count = redis.call('HDEL', KEYS[1], ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('DEL', KEYS[2]) end
return count
"""


class Confirmed(NamedTuple):
    """Workers that consume a queue: how many, those that have not confirmed, and their claims.

    ``is_kept``: whether the queue is still paused.
    """

    workers: int
    unconfirmed: list[Unconfirmed]
    claimed: int
    is_kept: bool


def place_of(name: str, declared: Sequence[str], prefixes: Sequence[str]) -> Waiting:
    """The prefix of an app and the queue in a queue's name in Redis.

    >>> place_of("shop:mail", ["mail"], ["shop:"]), place_of("a:b", ["a:b"], ["a:"])
    (Waiting(prefix='shop:', queue='mail'), Waiting(prefix='', queue='a:b'))
    """
    under = [one for one in prefixes if one and name.startswith(one)]
    likely = [one for one in under if name.removeprefix(one) in declared]
    prefix = "" if name in declared else (likely or under or [""])[0]
    return Waiting(prefix, name.removeprefix(prefix))


def pauses_of(client: Client, queues: Sequence[str], prefixes: Sequence[str]) -> list[Pause]:
    """All queues that are paused, those of ``queues`` first, up to a limit.

    :raises RedisError: when Redis does not answer.
    """
    found: list[Pause] = []
    for prefix in dict.fromkeys(["", *prefixes]):
        words = ("1", prefix + PAUSED, str(MOST), str(LONGEST), *queues)
        (said,) = client.try_all(("EVAL", READ, *words))
        if isinstance(said, RedisError) and not str(said).startswith("NOPERM"):
            raise said
        if isinstance(said, list):  # the user of one app may not look at those of others
            pairs = zip(said[::2], said[1::2], strict=True)
            found += [_pause(prefix, queue, value) for queue, value in pairs]
    return found[:MOST]


def _pause(prefix: str, queue: str, value: str) -> Pause:
    """One pause; what is not valid in it is empty."""
    try:
        said = json.loads(value)
    except (ValueError, RecursionError):
        said = None
    said = said if isinstance(said, dict) else {}
    by, at, reason = (said.get(key) for key in ("by", "at", "reason"))
    return {
        "queue": queue,
        "name": prefix + queue,
        "by": by[:LONGEST_TEXT] if isinstance(by, str) else "",
        "at": at if type(at) is int and 0 <= at <= MAX_AT else None,
        "reason": reason[:LONGEST_TEXT] if isinstance(reason, str) else "",
    }


def value_of(client: Client, place: Waiting) -> str | None:
    """What is written of a pause; None where there is none."""
    words = ("1", place.prefix + PAUSED, "1", str(LONGEST), place.queue)
    (said,) = client.ask(("EVAL", READ, *words))
    return said[1] if said and said[0] == place.queue else None


def pause(client: Client, place: Waiting, by: str, reason: str) -> tuple[str, bool]:
    """Pause a queue: what is written of it, and whether that is new.

    One that is paused stays as it is, unless it does not say since when.

    :raises RedisError: when Redis does not answer, or refuses.
    """
    before = value_of(client, place)
    if before is not None and _pause("", "", before)["at"] is not None:
        return before, False
    (clock,) = client.try_all(("TIME",))
    # The user of an external Redis may lack TIME.
    at = int(time.time() if isinstance(clock, RedisError) else clock[0])
    said = {"by": by[:LONGEST_TEXT], "at": at, "reason": reason[:LONGEST_TEXT]}
    # Shorter than what workers read of it, whatever the letters.
    value = json.dumps({**said, "id": secrets.token_hex(8)}, ensure_ascii=False)
    client.ask(("EVAL", WRITE, "1", place.prefix + PAUSED, place.queue, value))
    return value, True


def resume(client: Client, place: Waiting) -> bool:
    """Resume a queue; whether it was paused.

    :raises RedisError: when Redis does not answer, or refuses.
    """
    if value_of(client, place) is None:
        return False
    keys = (place.prefix + PAUSED, place.prefix + PAUSING)
    (count,) = client.ask(("EVAL", RESUME, "2", *keys, place.queue))
    return bool(count)


def unsaved(client: Client) -> str:
    """Why a power cut may undo what this connection wrote last; empty where it is on the disk.

    With ``appendfsync everysec`` Redis answers before it is there, by a second and more.
    """
    (said,) = client.try_all(("WAITAOF", "1", "0", str(DISK_SECONDS * 1000)))
    if isinstance(said, list) and said[:1] == [1]:
        return ""
    text = str(said) if isinstance(said, RedisError) else ""
    if "appendonly is disabled" in text:
        return "Redis keeps no append-only file (appendonly no)"
    if "unknown command" in text:
        return "this Redis cannot confirm what is on its disk (no WAITAOF: older than 7.2)"
    if text.startswith("NOPERM"):
        return "the user in Redis has no right to WAITAOF, which confirms what is on the disk"
    late = f"Redis has not confirmed within {DISK_SECONDS} s that it is on the disk"
    return text[:LONGEST_TEXT] or f"{late} (a slow disk, or appendfsync no)"


def confirmed(client: Client, place: Waiting, value: str, seconds: float) -> Confirmed:
    """Wait until no worker of a queue begins one of its tasks.

    :param value: what is written of the pause.
    :param seconds: how long to wait at most; 0 for one look.
    :raises RedisError: when Redis does not answer, or refuses.
    """
    until = time.monotonic() + seconds
    known = hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()[:LONGEST_ID]
    while True:
        is_kept = not seconds or value_of(client, place) == value
        lives = lives_of(client, [place.prefix])
        nodes = sorted(node for (_, node), queues in lives.items() if place.queue in queues)
        keys = [("HGET", place.prefix + PAUSING, node) for node in nodes]
        said = client.try_all(*keys)
        left = [
            (node, ahead)
            for node, one in zip(nodes, said, strict=True)
            if (ahead := _ahead(one, place.queue, known)) != 0
        ]
        if not left or not is_kept or time.monotonic() >= until:
            held = [
                ("LLEN", f"{place.prefix}celery-metal.held:{node}:{place.queue}") for node in nodes
            ]
            lengths = client.try_all(*held)
            claimed = sum(one for one in lengths if type(one) is int)
            return Confirmed(len(nodes), _unconfirmed(client, place, left), claimed, is_kept)
        time.sleep(LOOK_SECONDS)


def _ahead(said: Any, queue: str, known: str) -> int | None:
    """How many tasks the pool of a worker has yet to begin; None before it knows of the pause.

    >>> _ahead('{"mail": ["ab", 0]}', "mail", "ab"), _ahead('{"mail": ["cd", 0]}', "mail", "ab")
    (0, None)
    """
    try:
        found = json.loads(said) if isinstance(said, str) and len(said) <= 1 << 20 else None
    except (ValueError, RecursionError):
        return None
    one = found.get(queue) if isinstance(found, dict) else None
    if isinstance(one, list) and len(one) == 2 and one[0] == known and type(one[1]) is int:
        return max(0, one[1])
    return None


def _unconfirmed(
    client: Client, place: Waiting, left: Sequence[tuple[str, int | None]]
) -> list[Unconfirmed]:
    """Why each of these workers has not confirmed, as far as Redis shows it."""
    if not left:
        return []
    key = f"{place.prefix}celery-metal.nodes"
    clock, *lives = client.try_all(("TIME",), *(("HGET", key, node) for node, _ in left))
    found: list[Unconfirmed] = []
    for (node, ahead), text in zip(left, lives, strict=True):
        life = parsed(text) if isinstance(text, str) else None
        moment = life.moment if life else None
        silent = None
        if moment is not None and not isinstance(clock, RedisError):
            age = int(clock[0]) - moment
            silent = age if FRESH_SECONDS < age < MAX_AT else None
        found.append({"node": node, "ahead": ahead, "silent_seconds": silent})
    return found[:MOST]
