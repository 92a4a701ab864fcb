"""Two workers with one node name: the one that started later ends.

They would share a list of claims, and each would give back, and run again, what the other runs.
Names are unique within an inventory; two inventories on one Redis, or a machine that was cloned
with its containers, can have the same ones.

Each start has a token, which is part of each beat in `celery-metal.nodes`. A start that finds the
record of another start waits whether that one beats on before it touches its claims, unless both
are of one boot of one machine: there a unit has one process, and the record is its predecessor's.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import ResponseError

from celery_metal_runtime.notify import unpatched

if TYPE_CHECKING:
    from celery_metal_runtime.ledger import Ledger

BOOT = "CELERY_METAL_BOOT"
#: How many beats of the other one a start waits for, and how often it looks in each.
WAIT_BEATS, LOOKS = 2, 5
#: So many sightings within so many beats of its own: a Redis that was restored shows an old record
#: once.
SIGHTINGS, WITHIN = 2, 4
LONGEST = 256
EX_SOFTWARE, YIELD_SECONDS = 70, 5.0


class Token(NamedTuple):
    """One start of a worker: when, in microseconds of Redis's clock; which; and on which boot."""

    started: int
    number: str
    boot: str


def new_token(client: Any) -> Token:
    """The token of this start; errors are those of Redis."""
    try:
        seconds, microseconds = client.time()
    except ResponseError:  # an external Redis whose user lacks +time
        seconds, microseconds = divmod(time_ns() // 1000, 1_000_000)
    return Token(seconds * 1_000_000 + microseconds, token_hex(8), _boot())


def token_of(life: bytes | None) -> Token | None:
    """The token in a beat; None for one without, as of earlier versions, and an invalid one."""
    if life is None or len(life) > 65536:
        return None
    with suppress(ValueError, TypeError, RecursionError):
        _, start, _ = json.loads(life)
        started, number, boot, _ = start
        if type(started) is int and type(number) is str and type(boot) is str:
            return Token(started, number, boot) if len(number + boot) <= LONGEST else None
    return None


class Twins:
    """What a worker knows of another one with its node name."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.token: Token | None = None
        #: Why this worker must end; empty while it need not.
        self.reason = ""
        self._seen: list[int] = []
        self._predecessor: bytes | None = None
        #: Whether the last beat has found another one's record.
        self.is_doubtful = False

    def enter(self, ledger: "Ledger", client: Any, read: Callable[[], Any], beat: float) -> None:
        """Begin as the one worker of this name, or raise SystemExit.

        `read` returns the record under this name, and `beat` is the time between two beats in
        seconds. Errors are those of Redis. Waits for WAIT_BEATS
        if the record is from another boot; the consumer's loop stands still then.
        """
        token, wait = new_token(client), unpatched("time", "sleep")
        first = self._predecessor = _life(read)
        other = token_of(first)
        if other is not None and other.boot != token.boot:
            for _ in range(WAIT_BEATS * LOOKS):
                ledger.failed_at = monotonic()  # by which `health` knows that the loop is not stuck
                wait(beat / LOOKS)
                life = _life(read)
                if life != first and token_of(life) is not None:
                    self._end()
                    ledger.closed = True
                    wait(YIELD_SECONDS)  # `health` ends this process, and what it started, sooner
                    raise SystemExit(EX_SOFTWARE)
        self.token = token

    def look(self, life: bytes | None, beat: int) -> bool:
        """Whether this worker must end, for one that started earlier beats under its name.

        `life` is the record as it was before the beat of that number.
        """
        other = token_of(life)
        self.is_doubtful = False
        if other is None or self.token is None or other >= self.token:
            return False
        # The record that was there at the start is overwritten by the first beat; a Redis that
        # loses its last second shows it again.
        if not beat or life == self._predecessor:
            return False
        self.is_doubtful = True
        self._seen = [*(one for one in self._seen if beat - one < WITHIN), beat]
        if len(self._seen) >= SIGHTINGS:
            self._end()
        return bool(self.reason)

    def _end(self) -> None:
        self.reason = (
            f"another worker has the node name {self.node} on this Redis: this one, which started "
            "later, takes no tasks and ends"
        )


def _life(read: Callable[[], Any]) -> bytes | None:
    with suppress(ResponseError):  # of a key of another type; the first beat replaces it
        life: bytes | None = read()
        return life
    return None


def _boot() -> str:
    """What the unit says of the machine and its boot; elsewhere what the kernel says."""
    if given := os.environ.get(BOOT, "").strip():
        return given[: LONGEST - 16]
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
