"""Fail while Redis uses more than a share of its memory: an alarm before producers get errors.

    redis_memory.py PERCENT         as celery-redis-memory.service, each minute

What fails is the unit, so that whatever watches units sees it. A Redis that does not run is not
this unit's business.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

# Under -I Python looks for nothing here; and it shall leave nothing here either.
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

from celery_lists import PRIORITY, RUNTIME, held_by, lists_of  # noqa: E402
from celery_redis import (  # noqa: E402
    SECONDS,
    SOCKET,
    Client,
    ClosedError,
    RedisError,
    fields,
    queues_of,
    secrets,
)

# There while the alarm is raised, so that its end is said once.
RAISED = "/run/celery-metal/redis-memory-alarm"
USER = "monitor"
MB = 1024 * 1024
LARGEST = 3
# How long to look for lists, each minute while the alarm is raised: 3 % of Redis's time.
LOOK_SECONDS = 2.0
# Lists for one request, and how many characters of a name are shown.
SOME, SHOWN = 500, 80
# systemd takes the number for the line's priority.
WARNING, NOTICE = "<4>", "<5>"
REMEDY = (
    "run more workers, keep results for less time (result_expires of the app), or give Redis more "
    "memory (capacity_redis_memory_mb); see 'When Redis fills up' in docs/operating.md"
)
UNDECLARED = (
    "declare the queue that no worker consumes, or move its tasks (see 'Undeclared queues' in "
    "docs/operating.md); else "
)


class Size(NamedTuple):
    """How much one queue, or what the runtime keeps beside it, holds."""

    messages: int
    bytes: int


class Lists(NamedTuple):
    """All lists of all databases: how many bytes they hold, and the largest, in words."""

    bytes: int
    largest: list[str]
    is_without_consumer: bool
    is_complete: bool


def shown(name: str) -> str:
    """A name that producers choose: on one line, and not longer than a line.

    >>> shown("mail"), shown("a\\n<0>b")
    ('mail', 'a\\\\n<0>b')
    """
    return (name if name.isprintable() else ascii(name)[1:-1])[:SHOWN]


def label(queue: str) -> str:
    """What a list is: a queue, or what the runtime keeps for one, of whatever prefix.

    >>> label("mail"), label("shop:celery-metal.dead:mail"), label("celery-metal.held:a@b:mail")
    ('mail', 'dead letters of shop:mail', 'claims of a@b')
    """
    prefix, runtime, rest = queue.partition(RUNTIME)
    if runtime and rest.startswith("dead:"):
        return f"dead letters of {shown(prefix + rest.removeprefix('dead:'))}"
    if runtime and rest.startswith("held:"):
        return f"claims of {shown(held_by(rest.removeprefix('held:'))[0])}"
    return shown(queue)


def sizes(client: Client, keys: Sequence[str]) -> dict[str, Size]:
    """Queue to what its lists of all priorities hold; Redis estimates bytes from five parts."""
    found: dict[str, Size] = {}
    for start in range(0, len(keys), SOME):
        some = keys[start : start + SOME]
        lengths = client.try_all(*(("LLEN", key) for key in some))
        weights = client.try_all(*(("MEMORY", "USAGE", key) for key in some))
        for key, length, weight in zip(some, lengths, weights, strict=True):
            # A key may have gone meanwhile, or have become another type.
            if isinstance(length, int) and isinstance(weight, int) and length:
                queue = PRIORITY.sub("", key)
                before = found.get(queue, Size(0, 0))
                found[queue] = Size(before.messages + length, before.bytes + weight)
    return found


def is_consumed(client: Client, queue: str) -> bool:
    """Whether a worker consumes it; under an app's prefix so are the heartbeats of its workers."""
    prefixes = [queue[:end] for end in range(min(len(queue), SHOWN))]
    beats = client.try_all(*(("HGETALL", f"{prefix}celery-metal.nodes") for prefix in prefixes))
    return any(
        queue == prefix + name
        for prefix, lives in zip(prefixes, beats, strict=True)
        if isinstance(lives, list)
        for life in lives[1::2]
        for name in queues_of(life)
    )


def lists(client: Client) -> Lists:
    """What all lists hold.

    :raises RedisError: when the user may not look.
    """
    until = time.monotonic() + LOOK_SECONDS
    (keyspace,) = client.ask(("INFO", "keyspace"))
    found: list[tuple[int, str, int, str]] = []
    is_complete = True
    for database in fields(keyspace):
        number = database.removeprefix("db")
        client.ask(("SELECT", number))
        keys, is_whole = lists_of(client, max(0.0, until - time.monotonic()))
        is_complete = is_complete and is_whole
        for queue, size in sizes(client, keys).items():
            found.append((size.bytes, queue, size.messages, number))
    found.sort(key=lambda one: (-one[0], one[1]))
    largest, is_without_consumer = [], False
    for weight, queue, messages, number in found[:LARGEST]:
        client.ask(("SELECT", number))
        words = f"{label(queue)} ({messages} messages, {weight // MB} MB"
        if RUNTIME not in queue and not is_consumed(client, queue):
            words += ", no worker consumes it"
            is_without_consumer = True
        largest.append(f"{words})")
    return Lists(sum(one[0] for one in found), largest, is_without_consumer, is_complete)


def culprits(path: str) -> str:
    """What the lists of the Redis at a socket hold, and the remedy, as admin sees them."""
    try:
        with closing(Client(path, SECONDS)) as client:
            client.ask(("AUTH", "admin", *secrets("admin")))
            found = lists(client)
    except (OSError, RedisError) as problem:
        return f"Its lists are not known: {problem}. Fix: {REMEDY}"
    if not found.largest:
        return f"No list has tasks. Fix: {REMEDY}"
    most = "the largest" if found.is_complete else "the largest of those found in time"
    said = f"Lists hold {found.bytes // MB} MB, {most}: {', '.join(found.largest)}. Fix: "
    return said + (UNDECLARED if found.is_without_consumer else "") + REMEDY


def look(client: Client, percent: int, raised: Path) -> tuple[bool, str]:
    """Whether the alarm is raised, and what the journal is to have of it."""
    (memory,) = client.ask(("INFO", "memory"))
    used, limit = (int(fields(memory)[name]) for name in ("used_memory", "maxmemory"))
    if not limit or used * 100 <= limit * percent:
        if not raised.exists():
            return False, ""
        raised.unlink()
        return False, (
            f"{NOTICE}Redis on {os.uname().nodename} is below {percent} % of its memory again: it "
            f"uses {used // MB} of {limit // MB} MB"
        )
    raised.touch()
    return True, (
        f"{WARNING}Redis on {os.uname().nodename} uses {used // MB} of {limit // MB} MB, more than "
        f"{percent} %; when it is full, producers get an error. "
        f"{culprits(SOCKET)}"
    )


def main(percent: int) -> int:
    """The exit status."""
    try:
        client = Client(SOCKET, SECONDS)
        client.ask(("AUTH", USER, *secrets(USER)))
        raised, said = look(client, percent, Path(RAISED))
    except (OSError, ClosedError):
        return 0
    except RedisError as problem:
        if str(problem).startswith("LOADING"):
            return 0
        raised, said = True, f"{WARNING}the memory of Redis is not watched: {problem}"
    if said:
        print(said, flush=True)
    return int(raised)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
