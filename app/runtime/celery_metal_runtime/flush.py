"""A task that a process of the prefork pool has is not forgotten when the worker stops.

When a consumer closes, at a stop and after a lost connection, Celery's `AsynPool.flush` forgets all
jobs that no process has accepted, as they will be redelivered. A job that was written to a process
is run by it all the same, a moment later: it would run twice. And a process whose last result is
not read waits for that at its end, for half a minute.

Here only those are forgotten of which nothing was written. The stop waits for the others, as for
all that run.
"""

from typing import Any


def install() -> None:
    """Have a flush keep the jobs that processes have."""
    from celery.concurrency.asynpool import AsynPool  # of this pool only

    flush = AsynPool.flush

    def flush_unwritten(self: Any) -> None:
        given = [
            job
            for job in tuple(self._cache.values())
            if job._write_to is not None and not job._accepted
        ]
        for job in given:
            job._accepted = True
        try:
            flush(self)
        finally:
            for job in given:
                # It is known only when its process has said so.
                job._accepted = job._worker_pid is not None

    AsynPool.flush = flush_unwritten
