"""What Celery 5.7 does for the tasks of a worker, and older versions do not."""

import sys
from functools import cache, partial
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import VERSION
from celery.app import backends
from celery.backends.redis import RedisBackend
from celery.concurrency.asynpool import AsynPool
from celery.exceptions import TimeLimitExceeded, WorkerLostError
from celery.utils.functional import maybe_list
from celery.worker import request as worker_request
from celery.worker import state as worker_state
from celery.worker.request import Request, create_request_cls, logger
from redis import utils

from celery_metal_runtime import chords


def install() -> None:
    """Bring the worker of an older Celery up to it; with 5.7 only redis-py is changed."""
    if VERSION < (5, 5):
        _note_successes()
        # What result_backend_always_retry of safety.py needs.
        RedisBackend.exception_safe_to_retry = _is_connection_error
    if VERSION < (5, 7):
        _see_losses()
        _keep_what_runs()
        _look_at_all_stamps()
        chords.install()
        if "gevent" in sys.modules:
            _tell_how_many_greenlets()
        # Each greenlet and each thread makes a backend, and looks at all that is installed for it.
        find_classes = backends.load_extension_class_names
        backends.load_extension_class_names = cache(lambda name: tuple(find_classes(name)))
    if hasattr(utils, "get_lib_version"):
        # redis-py's own version, which each backend reads from the disk.
        utils.get_lib_version = cache(utils.get_lib_version)


def _note_successes() -> None:
    """Enter tasks that have succeeded in Celery's own list of them, which the canary looks at."""
    done = worker_state.task_ready
    create_request_cls.__defaults__ = tuple(
        partial(done, successful=True) if value is done else value
        for value in create_request_cls.__defaults__
    )


def _is_connection_error(self: RedisBackend, error: Exception) -> bool:
    return isinstance(error, self.connection_errors)


def _see_losses() -> None:
    """Have a task whose process has ended go back to its queue, and not fail."""
    on_failure = Request.on_failure

    def failed(self: Request, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        error = getattr(exc_info.exception, "exc", exc_info.exception)  # as Celery unwraps it
        if _is_overlooked(self, error):
            try:
                raise WorkerLostError(f"the process has ended: {error!r}")
            except WorkerLostError:
                exc_info = ExceptionInfo()
        return on_failure(self, exc_info, *args, **kwargs)

    Request.on_failure = failed


def _is_overlooked(request: Request, error: BaseException) -> bool:
    if isinstance(error, SystemExit):  # as billiard reports it from 4.3
        return not (request._already_cancelled or request._already_revoked)
    # From 5.5 such a task goes back by itself.
    is_late = isinstance(error, TimeLimitExceeded) and VERSION < (5, 5)
    return is_late and not request.task.acks_on_failure_or_timeout


def _keep_what_runs() -> None:
    """Have the pool know, over a lost connection, what its processes run.

    It would not hear of the ends of these tasks (5.4), and give their processes other tasks, which
    nobody would take until then.
    """
    flush = AsynPool.flush

    def flush_others(self: AsynPool) -> None:
        running = {number: job for number, job in self._cache.items() if job._accepted}
        processes = [job._write_to or job._scheduled_for for job in running.values()]
        busy = {process.inqW_fd for process in processes if process and process._is_alive()}
        busy &= self._busy_workers
        flush(self)
        self._cache.update({number: job for number, job in running.items() if not job.ready()})
        self._busy_workers.update(busy)

    AsynPool.flush = flush_others


def _look_at_all_stamps() -> None:
    """Have a task be revoked by any of its stamps: Celery looks only at the first known name.

    And it raises for a name that has no stamp in the message, in the middle of its own account of
    free places.
    """
    revoked = Request.revoked
    # What Celery's own look goes by.
    worker_request.revoked_stamps = {}

    def revoked_by_any(self: Request) -> bool:
        stamp = None if self.id in worker_state.revoked else _revoked_stamp(self)
        if self._already_revoked or revoked(self):
            return True
        if stamp is not None:
            logger.info("Discarding revoked task: %s[%s] (by stamp: %s)", self.name, self.id, stamp)
            self._announce_revoked("revoked", False, None, False)
        return stamp is not None

    Request.revoked = revoked_by_any


def _revoked_stamp(request: Request) -> dict[str, Any] | None:
    """The first of the stamps by which a task is revoked, None without one."""
    for name in request.stamped_headers if worker_state.revoked_stamps else ():
        stamps = maybe_list(worker_state.revoked_stamps.get(name)) or ()
        for stamp in maybe_list(request.stamps.get(name)) or ():
            if stamp in stamps:
                return {name: stamp}
    return None


def _tell_how_many_greenlets() -> None:
    """Have the pool tell how many tasks it can run, and not how many it runs now."""
    from celery.concurrency.gevent import TaskPool  # loads gevent

    TaskPool.num_processes = property(lambda self: self._pool.size)
