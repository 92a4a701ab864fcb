"""How many tasks a worker takes ahead of their ETA or countdown.

Celery takes such a task from the queue at once and keeps it in the main process until it is due,
without any bound before 5.6. From 5.6 `worker_eta_task_limit` bounds it, but what Celery counts is
wrong from then on: it raises the prefetch count for each task up to the limit, and lowers it for
each that becomes due, so a worker that has met its limit is left with a prefetch count of 1. And
kombu lifts every limit where the prefetch count exceeds 65535.

So the limit is one of the transport here, with every version: see `QoS.can_consume`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery_metal_runtime.settings import UsageError, positive
from celery_metal_runtime.versions import put

if TYPE_CHECKING:
    from celery import Celery

SETTING = "worker_eta_task_limit"
AHEAD = "CELERY_METAL_AHEAD_MB"
#: Memory of one waiting task in the main process, in bytes. Measured with 10,000 tasks of 884 bytes
#: each, RSS before and after: 9650 with prefork and threads, 11,530 with gevent, whose timers are
#: greenlets (Celery 5.7.0, Python 3.13). Issue 20 has 11 KB.
BYTES_PER_TASK = 12 * 1024
#: Below 65535, and so that it is never reached with the places of running tasks.
MOST = 50_000


def most_ahead(app: "Celery", environ: Mapping[str, str]) -> tuple[int | None, str]:
    """The limit, None where there is none, and its reason in one line.

    The app's own setting wins; it is taken out of the app, so that Celery does not count, too.
    UsageError for one that is not a number of 1 or more, and for a malformed variable.
    """
    megabytes, own = positive(environ, AHEAD), app.conf.get(SETTING)
    if own is not None:
        if not isinstance(own, int) or own < 1:
            raise UsageError(f"{SETTING}={own!r} of the app is no limit: set it to 1 or more")
        put(app, **{SETTING: None})
        return own, f"up to {own} tasks ahead of their ETA, as the app's {SETTING} says"
    if megabytes is None:
        return None, ""
    limit = max(1, min(MOST, megabytes * 1024 * 1024 // BYTES_PER_TASK))
    return limit, f"up to {limit} tasks ahead of their ETA: {megabytes} MB for them in the plan"


def claims(limit: int | None, consumer: Any) -> int | None:
    """The most tasks that a consumer may hold: `limit` and those that run or are prefetched.

    None: any number, also where the app sets worker_prefetch_multiplier to 0, that is without end.
    """
    if limit is None or not consumer.initial_prefetch_count:
        return None
    # Celery's autoscaler begins with the least.
    most = (getattr(consumer.controller, "max_concurrency", None) or 0) * (
        consumer.prefetch_multiplier
    )
    return limit + int(max(consumer.initial_prefetch_count, most))
