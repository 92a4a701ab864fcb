"""How many processes, threads or greenlets: the order of precedence, the cap, and the reason.

Pure: nothing is detected here; the number of CPUs is Celery's own (affinity and cgroup quota).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from celery_metal_runtime.settings import UsageError, positive, text, to_positive

POOLS = ("prefork", "threads", "gevent", "solo")
DEFAULT_FACTOR = 4
PLAN = "CELERY_METAL_PLAN_CONCURRENCY"
PLAN_AUTOSCALE = "CELERY_METAL_PLAN_AUTOSCALE"


class Wish(NamedTuple):
    """What was asked for: `high` (None: let Celery decide), `low` if autoscaled, and by whom."""

    high: int | None
    low: int | None
    source: str


class Sizing(NamedTuple):
    """Options for the Celery worker, and the lines that tell the operator why."""

    options: tuple[str, ...]
    lines: tuple[str, ...]


def size(environ: Mapping[str, str], pool: str, count_cpus: Callable[[], int]) -> Sizing:
    """Choose the worker's size.

    `pool` is one of POOLS; `count_cpus` is called only where CPU_COUNT does not say.
    Raises UsageError for every malformed variable, also one that another overrules.
    """
    cpu_count = positive(environ, "CPU_COUNT")
    factor = positive(environ, "CELERY_METAL_PROCESS_FACTOR") or DEFAULT_FACTOR
    wish = _wish(environ, cpu_count)
    if pool == "solo":
        return _solo(wish)
    if wish.high is None:
        # A number, as --concurrency=auto needs Celery 5.7.
        count = count_cpus()
        line = f"concurrency {count}: the CPUs that this container may use, as Celery counts"
        return Sizing((f"--concurrency={count}",), (line,))
    if pool == "prefork":
        return _options(*_clamp(wish, wish.high, cpu_count or count_cpus(), factor))
    if pool == "threads" and wish.low is not None:
        # Celery's thread pool has no grow(): its autoscaler would fail at the first burst.
        line = f"threads cannot be autoscaled: starting with the highest number, {wish.high}"
        return _options(wish._replace(low=None), line)
    return _options(wish)


def _wish(environ: Mapping[str, str], cpu_count: int | None) -> Wish:
    concurrency, plan = positive(environ, "CONCURRENCY"), positive(environ, PLAN)
    autoscale = _autoscale(environ)
    if plan and autoscale:
        raise UsageError(f"{PLAN} and {PLAN_AUTOSCALE} are both set: leave one of them unset")
    if concurrency:
        return Wish(concurrency, None, "CONCURRENCY")
    if cpu_count:
        return Wish(cpu_count, None, "CPU_COUNT")
    if plan:
        return Wish(plan, None, "the plan")
    if autoscale:
        return Wish(*autoscale, "the plan")
    return Wish(None, None, "")


def _autoscale(environ: Mapping[str, str]) -> tuple[int, int] | None:
    value = text(environ, PLAN_AUTOSCALE)
    if not value:
        return None
    parts = [part.strip() for part in value.split(",")]
    if len(parts) != 2:
        raise UsageError(f"{PLAN_AUTOSCALE}={value!r} is not max,min: set it as in 8,2")
    high, low = (to_positive(PLAN_AUTOSCALE, value, part) for part in parts)
    if low > high:
        raise UsageError(f"{PLAN_AUTOSCALE}={value!r} has max below min: set it as in 8,2")
    return high, low


def _clamp(wish: Wish, high: int, cpus: int, factor: int) -> tuple[Wish, *tuple[str, ...]]:
    cap = cpus * factor
    if high <= cap:
        return (wish,)
    line = (
        f"{wish.source} asks for {high} processes, clamped to {cap} = {cpus} CPUs x {factor}: "
        "more only cost memory and switching; raise CELERY_METAL_PROCESS_FACTOR to have them all "
        "the same, or set CELERY_METAL_POOL to threads or gevent for tasks that mostly wait"
    )
    low = None if wish.low is None else min(wish.low, cap)
    return wish._replace(high=cap, low=low), line


def _solo(wish: Wish) -> Sizing:
    lines = ["concurrency 1: the solo pool runs each task in the main process"]
    if (wish.high or 1) > 1:
        lines.append(
            f"warning: {wish.source} asks for {wish.high}, which the solo pool cannot give: "
            "it runs in the main process; set CELERY_METAL_POOL=prefork to have more"
        )
    return Sizing(("--concurrency=1",), tuple(lines))


def _options(wish: Wish, *lines: str) -> Sizing:
    if wish.low is None:
        option, what = f"--concurrency={wish.high}", str(wish.high)
    else:
        option, what = f"--autoscale={wish.high},{wish.low}", f"{wish.low} to {wish.high}"
    return Sizing((option,), (f"concurrency {what}: from {wish.source}", *lines))
