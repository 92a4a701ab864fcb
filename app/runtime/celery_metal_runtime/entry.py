"""The entry point: turns the environment into a Celery command line and runs it in this process.

Celery stays PID 1 and gets the signals itself: there is no shell, no wrapper and no init between.
"""

import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from celery_metal_runtime import flush
from celery_metal_runtime.ahead import Limit, most_ahead
from celery_metal_runtime.broker import configure, export_address
from celery_metal_runtime.command import run
from celery_metal_runtime.names import node_name
from celery_metal_runtime.notify import line
from celery_metal_runtime.safety import close_memory, make_safe, prepare_children
from celery_metal_runtime.settings import (
    EX_USAGE,
    BrokenError,
    UsageError,
    choice,
    export_secrets,
    required,
    seconds,
    text,
)
from celery_metal_runtime.sizing import POOLS, Sizing, size
from celery_metal_runtime.versions import check, is_set, put, show

if TYPE_CHECKING:
    from celery import Celery

LOGLEVEL = "CELERY_METAL_LOGLEVEL"
WATCHDOG = "CELERY_METAL_WATCHDOG_SECONDS"
LOGLEVELS = ("debug", "info", "warning", "error", "critical", "fatal")
# Given as arguments these would pass by the checks on the variables.
RESERVED = {
    ("-P", "--pool"): "CELERY_METAL_POOL",
    ("-c", "--concurrency", "--autoscale"): "CONCURRENCY",
    ("-Q", "--queues"): "CELERY_METAL_QUEUES",
}


class Order(NamedTuple):
    """What the environment orders a worker to be."""

    name: str
    queues: list[str]
    pool: str
    node: str
    loglevel: str
    watchdog: float
    drain: float


def main(argv: list[str] | None = None) -> NoReturn:
    """Run a Celery command, `worker` by default, and exit with its code, or 64 (EX_USAGE)."""
    argv = sys.argv[1:] if argv is None else argv
    # SIGHUP makes Celery execute sys.executable with these in its own place.
    sys.argv = ["-m", "celery_metal_runtime", *argv]
    try:
        if argv == ["versions"]:
            show()
            sys.exit()
        if argv[:1] == ["run"]:
            run(argv[1:])
        check()
        _run(argv or ["worker"], required(os.environ, "CELERY_APP", "name it as for celery -A"))
    except UsageError as error:
        _say(str(error))
        sys.exit(EX_USAGE)


def _run(command: list[str], app_name: str) -> NoReturn:
    export_secrets(os.environ)
    export_address(os.environ)
    if command[0] not in ("worker", "beat"):
        _start(app_name, _load_after_patching(app_name, "prefork"), command)
    close_memory()
    # The kernel ignores SIGTERM for a PID 1 without a handler; Celery sets its own when it starts.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if command[0] == "beat":
        _run_beat(app_name, command[1:])
    _check_arguments(command[1:])
    order = _order(os.environ)
    app = _load_after_patching(app_name, order.pool)
    sizing = size(os.environ, order.pool, lambda: _count_cpus(order.pool))
    safe = make_safe(app, os.environ, order.pool, order.queues)
    ahead = most_ahead(app, os.environ, order.pool)
    for reason in [*sizing.lines, *_look_at_queues(app, order.queues)]:
        _say(f"{order.name}: {reason}")
    # By this word a run of site.yml finds them in the journal, and tells them.
    for reason in safe:
        _say(f"{order.name}: setting: {reason}")
    if order.pool == "prefork":
        # Celery lets an app's worker_pool win over --pool=prefork, but not over any other.
        put(app, worker_pool="prefork")
        prepare_children()
        flush.install()
    _install_health(app, order, ahead)
    with _blaming(app_name):  # it loads the modules of its tasks only now
        _start(app_name, app, ["worker", *_worker_options(order, sizing), *command[1:]])


def _run_beat(app_name: str, arguments: list[str]) -> NoReturn:
    level = f"--loglevel={choice(os.environ, LOGLEVEL, LOGLEVELS, 'info')}"
    watchdog = seconds(os.environ, WATCHDOG)
    app = _load_after_patching(app_name, "prefork")
    from celery_metal_runtime import beat

    beat.install(app, os.environ, watchdog)
    with _blaming(app_name):
        _start(app_name, app, ["beat", level, *arguments])


def _start(app_name: str, app: "Celery", command: list[str]) -> NoReturn:
    from celery.bin.celery import celery

    sys.exit(celery(["-A", app_name, *command], prog_name="celery", auto_envvar_prefix="CELERY"))


def _order(environ: Mapping[str, str]) -> Order:
    queue = required(environ, "CELERY_METAL_QUEUE", "name the queue that this worker consumes")
    if "," in queue:
        raise UsageError(
            f"CELERY_METAL_QUEUE={queue!r} contains a comma: it is the worker's name; put its "
            "queues into CELERY_METAL_QUEUES"
        )
    given = text(environ, "CELERY_METAL_QUEUES", queue)
    queues = [one.strip() for one in given.split(",")]
    if "" in queues or len(set(queues)) < len(queues):
        raise UsageError(
            f"CELERY_METAL_QUEUES={given!r} names a queue twice, or none between two commas: name "
            "each once, as in a,b"
        )
    instance = text(environ, "CELERY_METAL_INSTANCE", "1")
    host = text(environ, "CELERY_METAL_HOST")
    return Order(
        name=queue,
        queues=queues,
        pool=choice(environ, "CELERY_METAL_POOL", POOLS, "prefork"),
        node=node_name(queue, instance, host or socket.gethostname()),
        loglevel=choice(environ, LOGLEVEL, LOGLEVELS, "info"),
        watchdog=seconds(environ, WATCHDOG),
        drain=seconds(environ, "CELERY_METAL_DRAIN_SECONDS"),
    )


def _look_at_queues(app: "Celery", queues: list[str]) -> list[str]:
    """What an operator must know of the app's queues; UsageError where it knows none of these."""
    if not app.conf.task_create_missing_queues:
        # Not app.amqp.queues, which would be kept.
        own = app.amqp.Queues(app.conf.task_queues)
        unknown = [name for name in queues if name not in own and name not in own.aliases]
        if unknown:
            raise UsageError(
                f"the app's task_queues has no {', '.join(unknown)}, only {', '.join(own)}: name "
                "these in celery_queues"
            )
    default = app.conf.task_default_queue
    if default in queues or not is_set(app, "task_default_queue"):
        return []
    return [f"tasks without a route go to {default} (task_default_queue), not to this worker"]


def _worker_options(order: Order, sizing: Sizing) -> list[str]:
    return [
        f"--queues={','.join(order.queues)}",
        f"--pool={order.pool}",
        *sizing.options,
        f"--hostname={order.node}",
        f"--loglevel={order.loglevel}",
        # They cost a second at the start, and chatter between all workers from then on.
        "--without-gossip",
        "--without-mingle",
    ]


def _check_arguments(arguments: list[str]) -> None:
    for options, variable in RESERVED.items():
        for argument in arguments:
            long = argument.partition("=")[0]
            if long in options or (argument[:2] in options and not argument.startswith("--")):
                raise UsageError(f"the argument {argument!r} is not taken: set {variable} instead")


def _load_after_patching(app_name: str, pool: str) -> "Celery":
    """The app, configured; under gevent all that is imported finds a patched standard library."""
    if pool == "gevent":
        _patch_by_gevent()
    with _blaming(app_name):
        app = _find_app(app_name)
        configure(app, os.environ)
    return app


def _patch_by_gevent() -> None:
    """What Celery does for --pool=gevent, but before Celery itself is imported.

    gevent looks at every object for locks to patch, meets Celery's lazy proxies, and thereby loads
    kombu while time.sleep is still the old one: each pause between two attempts to reconnect
    would then stop all greenlets.
    """
    try:
        from gevent import monkey
    except ImportError:
        raise UsageError(
            "CELERY_METAL_POOL='gevent' cannot be loaded: add gevent to the image"
        ) from None
    monkey.patch_all()


def _find_app(app_name: str) -> "Celery":
    from celery.app.utils import find_app
    from celery.utils.imports import import_from_cwd

    own: list[Exception] = []

    def load(name: str, **options: Any) -> Any:
        try:
            return import_from_cwd(name, **options)
        except Exception as error:
            # A module that is not there is a guess of Celery's; all else is the app's own error,
            # which Celery takes for a guess, too.
            absent = error.name if isinstance(error, ModuleNotFoundError) else None
            if not absent or not f"{name}.".startswith(f"{absent}."):
                own.append(error)
            raise

    try:
        return find_app(app_name, imp=load)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told below
        failure = error
    if own:
        raise own[0]
    module = app_name.partition(":")[0]
    reason = str(failure)
    if isinstance(failure, ModuleNotFoundError):
        is_guess = failure.name == app_name != module  # made when the module was loaded
        what = f"module {module!r} has no such attribute"
        reason = what if is_guess else f"no module {failure.name!r}"
    raise UsageError(
        f"CELERY_APP={app_name!r} cannot be loaded: {reason}; check celery_app, and that "
        "the image holds it"
    )


@contextmanager
def _blaming(app_name: str) -> Iterator[None]:
    """Say that what fails in here is the app's own error, which goes its way."""
    try:
        yield
    except (UsageError, BrokenError):
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {line(error)}".rstrip(": ")
        _say(
            f"CELERY_APP={app_name!r} cannot be loaded: {what}. The app or its requirements lack "
            "something: mend it and deploy again, or roll back. Its traceback follows."
        )
        raise


def _install_health(app: "Celery", order: Order, ahead: Limit) -> None:
    # Import Celery's worker: not before gevent has patched.
    from celery_metal_runtime import health, leftovers, revokes, transport

    tmpfs = leftovers.of(text(os.environ, "CELERY_METAL_TMPFS"))
    ledger = transport.install(order.node)
    revokes.install(app, transport.Claiming.revokes)
    times = (order.watchdog, order.drain)
    health.install(app, os.environ, order.name, order.pool, ledger, *times, ahead, tmpfs)


def _count_cpus(pool: str) -> int:
    try:
        from celery.utils.sysinfo import cpu_budget
    except ImportError:  # before Celery 5.7, which has no --concurrency auto either
        return len(os.sched_getaffinity(0))
    # As Celery's own --concurrency auto: a quota binds what computes, not what waits.
    count: int = cpu_budget(use_cgroup_quota=pool == "prefork").count
    return count


def _say(what: str) -> None:
    print(f"celery-metal: {what}", file=sys.stderr, flush=True)
