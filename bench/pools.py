#!/usr/bin/env python3
"""Measure how many tasks a second each pool runs of what its concurrency allows.

    pools.py                            print the table; exit 1 when a target is missed
    pools.py --markdown docs/bench.md   and write it there, between its two marks
    pools.py --pool gevent --seconds 2  one pool only, for a shorter time

Each task waits for TASK_SECONDS and computes nothing, so the concurrency allows as many tasks a
second as it is times 1 / TASK_SECONDS. What the main process and the machine can do is taken from
the CPU time of a task in the same run: a worker that stalls uses little, and misses its target.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
import os
import pathlib
import platform
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence

import celery
import overhead
import redis

TASK = "metal_sample.tasks.wait"
TASK_SECONDS = 0.05
# Least tasks a second : what concurrency and main process allow.
RATIO = 0.8
CONCURRENCIES = (1, 4, 20, 100)
POOLS = {
    "prefork": CONCURRENCIES,
    "threads": CONCURRENCIES,
    "gevent": CONCURRENCIES,
    "solo": (1,),
}
# More than any main process takes in a second.
MOST_TASKS = 3000
WARM_UP_SECONDS = 1.0
CPUS = os.cpu_count() or 1
BEGIN, END = "<!-- pools: begin -->", "<!-- pools: end -->"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one worker did: tasks in so many seconds, and CPU seconds for them.

    `cpu` is that of its main process, with its waits for a CPU; `total` that of its main process,
    its pool and Redis.
    """

    pool: str
    concurrency: int
    tasks: int
    seconds: float
    cpu: float
    total: float

    @property
    def rate(self) -> float:
        """Tasks a second."""
        return self.tasks / self.seconds

    @property
    def allowed(self) -> float:
        """Tasks a second that the concurrency allows."""
        return self.concurrency / TASK_SECONDS

    @property
    def possible(self) -> float:
        """Tasks a second for which the main process, and the machine, have the CPU time."""
        # Several of its threads may wait for a CPU at once.
        busiest = max(min(self.cpu, self.seconds), self.total / CPUS)
        return self.tasks / busiest if busiest else float("inf")

    @property
    def ratio(self) -> float:
        """The rate in units of the smaller of both."""
        return self.rate / min(self.allowed, self.possible)


# --- pure parts -----------------------------------------------------------------------------------


def table(measured: Sequence[Measured]) -> str:
    """Return a line for each worker."""
    head = ("pool", "concurrency", "tasks/s", "allowed", "CPU time for", "ratio")
    rows = [f"{head[0]:8} {head[1]:>11} {head[2]:>8} {head[3]:>8} {head[4]:>13} {head[5]:>6}"]
    rows += [
        f"{one.pool:8} {one.concurrency:>11} {one.rate:>8.1f} {one.allowed:>8.0f} "
        f"{min(one.possible, 99999):>13.0f} {rounded_down(one.ratio):>6.2f}"
        for one in measured
    ]
    return "\n".join(rows)


def rounded_down(ratio: float) -> float:
    """Return a ratio with two digits: one that misses its target does not look as if it met it.

    >>> rounded_down(0.799)
    0.79
    """
    return math.floor(ratio * 100) / 100


def missed(measured: Sequence[Measured]) -> list[str]:
    """Return the workers whose ratio is below the target."""
    return [f"{one.pool} {one.concurrency}" for one in measured if one.ratio < RATIO]


def section(text: str, command: str, date: str, made_with: str) -> str:
    """Return the part of the page that this program writes, with its marks."""
    return (
        f"{BEGIN}\n"
        "## What a pool reaches\n\n"
        f"Written by `{command}` on {date}; `make pools` measures again on this machine.\n\n"
        f"```text\n{text}\n```\n\n"
        f"Each task waits {TASK_SECONDS * 1000:.0f} ms. *allowed* is the concurrency divided by "
        "that time. *CPU time for*\nis how many tasks a second the main process has the time for, "
        "or, where that is less,\nall CPUs for main process, pool and Redis; both as a task costs "
        "in the same run. *ratio* is tasks/s divided by the smaller of "
        f"both; the command fails below {RATIO}.\n\nMeasured with {made_with}.\n"
        f"{END}\n"
    )


def merged(page: str, new: str) -> str:
    """Return the page with the new section in the place of its old one, or at its end."""
    before, begin, rest = page.partition(BEGIN)
    if not begin:
        return f"{page.rstrip()}\n\n{new}"
    return f"{before}{new}{rest.partition(END)[2].lstrip()}"


def kept(path: pathlib.Path) -> str:
    """Return the section of a page that `run.py` writes anew, or nothing where it has none."""
    page = path.read_text() if path.exists() else ""
    _, begin, rest = page.partition(BEGIN)
    return f"\n{begin}{rest.partition(END)[0]}{END}\n" if begin else ""


# --- the machine ----------------------------------------------------------------------------------


def cpu_seconds(client: redis.Redis, pid: int) -> tuple[float, float]:
    """Return the CPU seconds of a worker's main process, and of all that work for its tasks.

    The first also counts the seconds in which it waits for a CPU, as the kernel counts them (see
    sched-stats in the kernel's documentation): others may use this machine.
    """
    # Its threads only, and not its children.
    stats = pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat")
    main = sum(sum(map(int, stat.read_text().split()[:2])) for stat in stats) / 1e9
    server: dict[str, float] = client.info("cpu")
    return main, overhead.cpu_seconds(pid) + server["used_cpu_sys"] + server["used_cpu_user"]


def measure(
    client: redis.Redis, pool: str, concurrency: int, seconds: float, folder: pathlib.Path
) -> Measured:
    """Return what a worker does while more tasks wait than it can run."""
    runtime = overhead.ROOT / "app" / "runtime"
    rate = min(concurrency / TASK_SECONDS, MOST_TASKS)
    count = int(rate * (WARM_UP_SECONDS + seconds) * 1.2) + 3 * concurrency
    client.flushall()
    with overhead.worker(runtime, pool, folder, concurrency) as pid:
        ids = (str(uuid.uuid4()) for _ in range(count))
        client.lpush(overhead.QUEUE, *(overhead.message(one, TASK, [TASK_SECONDS]) for one in ids))
        time.sleep(WARM_UP_SECONDS)
        begun, before = time.monotonic(), cpu_seconds(client, pid)
        left = client.llen(overhead.QUEUE)
        time.sleep(seconds)
        took, after = time.monotonic() - begun, cpu_seconds(client, pid)
        done = left - client.llen(overhead.QUEUE)
        if left == done:
            raise overhead.OverheadError(f"{pool}: its tasks ran out: raise MOST_TASKS")
        client.delete(overhead.QUEUE)
    cpu, total = (now - then for now, then in zip(after, before, strict=True))
    return Measured(pool, concurrency, done, took, cpu, total)


def bench(
    pools: Sequence[str], concurrencies: Sequence[int], seconds: float, page: pathlib.Path | None
) -> int:
    """Measure and report; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="celery-metal-") as name:
        folder = pathlib.Path(name)
        with overhead.broker(folder) as client:
            measured = list(measure_all(client, pools, concurrencies, seconds, folder))
    text = table(measured)
    print(f"\n{text}\n")
    if page:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        made_with = (
            f"python {platform.python_version()}, celery {celery.__version__}, on a machine with "
            f"{CPUS} CPUs"
        )
        new = section(text, f"bench/pools.py --seconds {seconds:g}", today, made_with)
        page.write_text(merged(page.read_text(), new))
        print(f"written: {page}")
    below = missed(measured)
    print(f"below {RATIO}: {', '.join(below)}" if below else "all targets met", flush=True)
    return 1 if below else 0


def measure_all(
    client: redis.Redis,
    pools: Sequence[str],
    concurrencies: Sequence[int],
    seconds: float,
    folder: pathlib.Path,
) -> Iterator[Measured]:
    """Yield what each worker does; each has the machine for itself."""
    for pool in pools:
        for concurrency in POOLS[pool]:
            if concurrency in concurrencies:
                one = measure(client, pool, concurrency, seconds, folder)
                print(
                    f"{pool} {concurrency}: {one.rate:.1f} tasks/s, {rounded_down(one.ratio):.2f}",
                    flush=True,
                )
                yield one


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and return the exit status."""
    parser = argparse.ArgumentParser(description="Measure the tasks per second of each pool.")
    parser.add_argument("--pool", choices=list(POOLS), action="append", help="all by default")
    parser.add_argument("--concurrency", type=int, action="append", metavar="N", help="likewise")
    parser.add_argument("--seconds", type=float, default=5, help="for each (%(default)s)")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write it, too")
    options = parser.parse_args(arguments)
    if options.seconds <= 0:
        parser.error("--seconds must be more than 0")
    try:
        return bench(
            options.pool or list(POOLS),
            options.concurrency or CONCURRENCIES,
            options.seconds,
            options.markdown,
        )
    except overhead.OverheadError as problem:
        sys.exit(f"pools: {problem}")


if __name__ == "__main__":
    sys.exit(main())
