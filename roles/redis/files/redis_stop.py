"""Have Redis write nothing more, before celery-redis.service stops.

    redis_stop.py

A Redis that is asked to end may do so between a command and its answer. Who sent a task and got no
answer sends it again, as kombu does, and it runs twice. So writing ends first: all that was written
is answered, and who wants to write waits, is cut off, and sends again what was never written.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

# Under -I Python looks for nothing here; and it shall leave nothing here either.
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

from celery_redis import SECONDS, SOCKET, Client, RedisError, secrets  # noqa: E402

# Longer than the stop of the unit may take.
PAUSE_SECONDS = 90
# systemd takes the number for the line's priority.
WARNING = "<4>"


def stop_writing(path: str, password: str) -> None:
    """Have the Redis at the socket `path` write nothing for 90 s; it goes on answering.

    :raises RedisError: when it refuses.
    :raises OSError: when it is not there.
    """
    with closing(Client(path, SECONDS)) as client:
        pause = ("CLIENT", "PAUSE", str(PAUSE_SECONDS * 1000), "WRITE")
        client.ask(("AUTH", "admin", password), pause)


if __name__ == "__main__":
    try:
        stop_writing(SOCKET, *secrets("admin"))
    except (OSError, RedisError) as problem:
        print(
            f"{WARNING}Redis stops while programs write: {problem}. A task that is sent at "
            "this moment may run twice; none is lost. See 'A task may run twice' in docs/safety.md",
            flush=True,
        )
