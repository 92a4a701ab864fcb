"""A stop of a prefork worker waits for tasks that a process has received and not yet accepted.

When its consumer closes, at a stop and after a lost connection, Celery's `AsynPool.flush` discards
all jobs that no process has accepted, because the broker redelivers them. A process that has
received such a job runs it all the same: the task runs twice. The process then waits up to 30 s for
its result to be read.

This flush discards only jobs that were not written to a process.
"""

from typing import Any


def install() -> None:
    """Replace AsynPool.flush."""
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
                # False again, unless its process has accepted it during the flush.
                job._accepted = job._worker_pid is not None

    AsynPool.flush = flush_unwritten
