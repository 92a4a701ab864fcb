"""When a message was sent, in the message: for how long its task waits.

`configure` has each program of the app do so, as Celery does not. The clocks of two hosts are
compared then; nothing but figures for people depends on it.
"""

from collections.abc import Mapping
from time import time
from typing import Any

from celery import signals

SENT = "celery_metal_sent"
#: Seconds since 1970 at the end of the year 9999; the sender chooses what is in its message.
LATEST = 253_402_300_799


def stamp(headers: Any = None, **_: Any) -> None:
    """Note in a message when it is sent; a receiver of `before_task_publish`."""
    if isinstance(headers, dict):
        headers[SENT] = round(time(), 3)


def install() -> None:
    """Have each message of this process say when it was sent."""
    signals.before_task_publish.connect(stamp, weak=False)


def waited(headers: Mapping[str, Any], eta: float | None, now: float) -> float | None:
    """How long a task has waited until `now`, in seconds; None where its sender does not say.

    Args:
        headers: of its message, by anybody.
        eta: when it was to begin, in seconds since 1970; None for at once.
        now: in seconds since 1970.
    """
    sent = headers.get(SENT)
    if not isinstance(sent, (int, float)) or isinstance(sent, bool) or not 0 < sent < LATEST:
        return None
    return max(now - max(float(sent), eta or 0.0), 0.0)
