"""How many tasks a worker takes ahead of their ETA or countdown.

Celery takes such a task from the queue at once and keeps it in the main process until it is due,
without any bound before 5.6. From 5.6 `worker_eta_task_limit` bounds it, but what Celery counts is
wrong from then on: it raises the prefetch count for each task up to the limit, and lowers it for
each that becomes due, so a worker that has met its limit is left with a prefetch count of 1.

So the limit is one of the transport here, with every version: see `QoS.can_consume`. And kombu
lifts every limit where the prefetch count exceeds 65535: see MOST_PREFETCH.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_metal_runtime.notify import say
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
#: Tasks that a prefork worker takes ahead, if its main process alone has reached its memory.
LEAST = 1000
MOST = 50_000
#: What kombu takes for the highest prefetch count there is, above which it counts no more. That is
#: so for AMQP, in whose frames it has 16 bits.
MOST_PREFETCH = 1 << 31


class Limit:
    """How many tasks may wait: `most`, which is reported when it is first read.

    `planned_mb`: the memory in MB of the whole main process, which has loaded all by then; the
    tasks get the rest of it.
    """

    def __init__(self, most: int | None, reason: str, planned_mb: int | None = None) -> None:
        self._most, self._reason, self._planned_mb = most, reason, planned_mb

    @cached_property
    def most(self) -> int | None:
        """The limit; None where there is none."""
        most, reason = self._most, self._reason
        if self._planned_mb and most:
            own = own_mb()
            most = min(most, max(LEAST, _fit_into(self._planned_mb - own)))
            reason = f"the plan has {self._planned_mb} MB for the main process, which itself uses"
            reason += f" {own:.0f} MB"
            if most <= LEAST:
                reason += "; for more raise capacity_main_process_mb"
        if most:
            say(f"up to {most} tasks ahead of their ETA: {reason}")
        return most


NONE = Limit(None, "")


def most_ahead(app: "Celery", environ: Mapping[str, str], pool: str) -> Limit:
    """The limit of a worker with this pool.

    The app's own setting wins; it is taken out of the app, so that Celery does not count, too.
    UsageError for one that is not a number of 1 or more, and for a malformed variable.
    """
    megabytes, own = positive(environ, AHEAD), app.conf.get(SETTING)
    if own is not None:
        if not isinstance(own, int) or own < 1:
            raise UsageError(f"{SETTING}={own!r} of the app is no limit: set it to 1 or more")
        put(app, **{SETTING: None})
        return Limit(own, f"as the app's {SETTING} says")
    if megabytes is None:
        return NONE
    most = max(1, _fit_into(megabytes))
    if pool == "prefork":
        return Limit(most, "", megabytes)
    return Limit(most, f"the plan has {megabytes} MB for them")


def own_mb() -> float:
    """Memory of this process in MB that the kernel cannot take back: without files, as libraries.

    See RssAnon in proc_pid_status(5).
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def _fit_into(megabytes: float) -> int:
    return min(MOST, int(megabytes * 1024 * 1024 // BYTES_PER_TASK))


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
