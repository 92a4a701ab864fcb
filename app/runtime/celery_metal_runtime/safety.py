"""What keeps tasks from being lost: a worker's defaults, which an app's own settings replace."""

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery_metal_runtime.settings import UsageError, choice, natural, positive
from celery_metal_runtime.versions import is_set, put

if TYPE_CHECKING:
    from celery import Celery

ACKS_LATE = "CELERY_METAL_ACKS_LATE"
PREFETCH = "CELERY_METAL_PREFETCH"
CHILD_MB = "CELERY_METAL_MAX_MEMORY_PER_CHILD_MB"
CHILD_TASKS = "CELERY_METAL_MAX_TASKS_PER_CHILD"
TIME_LIMIT = "CELERY_METAL_TIME_LIMIT_SECONDS"
VISIBILITY = "CELERY_METAL_VISIBILITY_SECONDS"
QUEUE_ORDER = "CELERY_METAL_QUEUE_ORDER"
# Of 1000: enough to be chosen before the main process, whatever the two have used.
SCORE = "500"
PICKLE = frozenset({"pickle", "application/x-python-serialize"})
PR_SET_DUMPABLE = 4


def make_safe(
    app: "Celery", environ: Mapping[str, str], pool: str, queues: Sequence[str] = ()
) -> list[str]:
    """Give `app` a worker's defaults; returns a line for each value that was not taken as it is.

    What the app sets itself stays, but for a visibility timeout below that of the environment.
    Raises UsageError for an app that accepts or sends pickle, and for a malformed variable.
    """
    _refuse_pickle(app)
    acks_late = choice(environ, ACKS_LATE, ("true", "false"), "true") == "true"
    defaults = {
        # Acknowledged at its end, a task that a crash or a stop interrupts is still in Redis.
        "task_acks_late": acks_late,
        # A result that cannot be kept at once is kept later, and is no failure of its task.
        "result_backend_always_retry": True,
        # A child that is killed takes no task along.
        "task_reject_on_worker_lost": acks_late,
        "worker_prefetch_multiplier": positive(environ, PREFETCH) or 1,
    }
    child_mb = positive(environ, CHILD_MB)
    if child_mb and pool == "prefork":
        defaults["worker_max_memory_per_child"] = child_mb * 1024  # Celery counts in KiB
    child_tasks = natural(environ, CHILD_TASKS)
    if child_tasks and pool == "prefork":
        defaults["worker_max_tasks_per_child"] = child_tasks
    limit = positive(environ, TIME_LIMIT)
    if limit and pool == "prefork":
        defaults["task_time_limit"] = limit
        # A process that hung says nothing about the task: it goes back to its queue.
        own = "task_acks_on_timeout" in app.conf
        # Before Celery 5.7 one setting for both; what fails does not come back with either value.
        name = "task_acks_on_timeout" if own else "task_acks_on_failure_or_timeout"
        defaults[name] = not acks_late
    lines = []
    for name, value in defaults.items():
        if not is_set(app, name):
            app.conf[name] = value
        elif app.conf[name] != value:
            lines.append(f"{name} stays {app.conf[name]}, as the app sets it; the queue's: {value}")
    if len(queues) > 1:
        order = choice(environ, QUEUE_ORDER, ("round_robin", "priority"), "round_robin")
        lines += _order_queues(app, order)
    return lines + _keep_visible(app, positive(environ, VISIBILITY))


def close_memory() -> None:
    """Keep other processes of this user from tracing this one, and from its memory in /proc.

    What it forks inherits that, what it executes does not. Root of the host may go on tracing.
    """
    _set_dumpable(0)


def prepare_children() -> None:
    """Set up each process of the prefork pool before its first task.

    The kernel shall choose it, and not the main process, when memory runs out: it ends the largest
    process, and what the two share counts for both. With the main process the whole worker would
    end, and not one task.
    """
    from celery import signals  # not before gevent has patched

    def prepare(**_: Any) -> None:
        # First: what close_memory has closed in /proc is root's, and here it would be the task's.
        _set_dumpable(1)
        with suppress(OSError):  # no /proc, or a score that is higher already
            Path("/proc/self/oom_score_adj").write_text(SCORE)

    signals.worker_process_init.connect(prepare, weak=False)


def _set_dumpable(value: int) -> None:
    """See PR_SET_DUMPABLE in prctl(2), which does not fail with 0 and 1."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, value, 0, 0, 0)


def _refuse_pickle(app: "Celery") -> None:
    for name in ("accept_content", "task_serializer", "result_serializer", "result_accept_content"):
        value = app.conf[name]
        given = {value} if isinstance(value, str) else set(value or ())
        if given & PICKLE:
            raise UsageError(
                f"{name}={value!r} of the app is refused: whoever can write to Redis could run any "
                "code in a worker that loads pickle; set it to json"
            )


def _order_queues(app: "Celery", order: str) -> list[str]:
    """Have the transport take from several queues in turn, or from the first that has tasks."""
    options = dict(app.conf.broker_transport_options or {})
    own = options.setdefault("queue_order_strategy", order)
    put(app, broker_transport_options=options)
    if own == order:
        return []
    return [f"queue_order_strategy stays {own}, as the app sets it; the queue's: {order}"]


def _keep_visible(app: "Celery", seconds: int | None) -> list[str]:
    """Raise the visibility timeout: a shorter one runs other workers' long tasks twice."""
    if not seconds or not (app.conf.broker_read_url or "").startswith("redis"):
        return []
    options = dict(app.conf.broker_transport_options or {})
    own = options.get("visibility_timeout")
    if own and own >= seconds:
        return []
    put(app, broker_transport_options=options | {"visibility_timeout": seconds})
    if not own:
        return []
    return [
        f"visibility_timeout {own} of the app is raised to {seconds} s: "
        "a task that runs longer would be run twice"
    ]
