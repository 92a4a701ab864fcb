"""Fail while Redis uses more than a share of its memory: an alarm before producers get errors.

    redis_memory.py PERCENT         as celery-redis-memory.service, each minute

What fails is the unit, so that whatever watches units sees it. A Redis that does not run is not
this unit's business.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Under -I Python looks for nothing here; and it shall leave nothing here either.
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

from celery_redis import (  # noqa: E402
    PRIORITIES,
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
LONGEST = 3
# systemd takes the number for the line's priority.
WARNING, NOTICE = "<4>", "<5>"


def longest(client: Client) -> list[tuple[int, str]]:
    """Of the queues that workers tell of, in all databases, those in which most tasks wait."""
    (keyspace,) = client.ask(("INFO", "keyspace"))
    found = []
    for database in fields(keyspace):
        number = database.removeprefix("db")
        _, beats = client.ask(("SELECT", number), ("HGETALL", "celery-metal.nodes"))
        queues = sorted({queue for life in beats[1::2] for queue in queues_of(life)})
        for queue in queues:
            tasks = sum(client.ask(*(("LLEN", queue + suffix) for suffix in PRIORITIES)))
            found.append((tasks, queue))
    return sorted((one for one in found if one[0]), key=lambda one: (-one[0], one[1]))[:LONGEST]


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
    queues = ", ".join(f"{queue} {tasks}" for tasks, queue in longest(client))
    return True, (
        f"{WARNING}Redis on {os.uname().nodename} uses {used // MB} of {limit // MB} MB, more than "
        f"{percent} %; when it is full, producers get an error. "
        + (f"Longest queues: {queues}. " if queues else "No queue of a worker has tasks. ")
        + "Run more workers, keep results for less time (result_expires of the app), or give Redis "
        "more memory (capacity_redis_memory_mb); see 'When Redis fills up' in docs/operating.md"
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
