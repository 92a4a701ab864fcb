"""When a message was sent, in the message: for how long its task waits.

`configure` has each program of the app do so, as Celery does not. The clocks of two hosts are
compared then; nothing but figures for people depends on it.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from time import time
from typing import Any

from celery import signals

SENT = "celery_metal_sent"
#: Seconds since 1970 at the end of the year 9999; the sender chooses what is in its message.
LATEST = 253_402_300_799


def stamp(headers: Any = None, **_: Any) -> None:
    """Note in a message from when on its task waits; a receiver of `before_task_publish`."""
    if isinstance(headers, dict):
        headers[SENT] = round(max(time(), _begin(headers.get("eta"))), 3)


def _begin(eta: object) -> float:
    """The seconds since 1970 of an ETA, in Celery's form; 0 without one."""
    if isinstance(eta, str):
        with suppress(ValueError, OverflowError, OSError):
            return datetime.fromisoformat(eta).timestamp()
    return 0.0


def install() -> None:
    """Have each message of this process tell when it was sent."""
    signals.before_task_publish.connect(stamp, weak=False)


def waited(headers: Mapping[str, Any], now: float) -> float | None:
    """How long a task has waited until `now`, in seconds; None where its message does not tell.

    Args:
        headers: of its message, whatever sent it.
        now: in seconds since 1970.
    """
    sent = headers.get(SENT)
    if not isinstance(sent, (int, float)) or isinstance(sent, bool) or not 0 < sent < LATEST:
        return None
    return max(now - sent, 0.0)
