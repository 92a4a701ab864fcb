"""Send tasks, wait for their results and check each: does the whole deployment work?

    python -m metal_sample.smoke --count 100 --queue add_queue --queue multiply_queue --json

Exit code 0 when every answer has come and is right, 1 otherwise.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from celery.exceptions import TimeoutError as ResultTimeout
from celery.result import AsyncResult, ResultSet

from metal_sample.celery import app
from metal_sample.tasks import add, multiply, whoami

QUEUES = ("add_queue", "multiply_queue")
PROBES = 32
PROBE_SECONDS = 0.05


class Sent(NamedTuple):
    """A task on its way, and the answer that must come back; None: a probe of the worker."""

    queue: str
    expected: float | None


@dataclass
class Report:
    """What one queue did; `seconds` from the first task sent to this queue's last answer."""

    sent: int = 0
    done: int = 0
    wrong: int = 0
    missing: int = 0
    seconds: float = 0.0
    workers: dict[str, int] = field(default_factory=dict)
    """The concurrency of each worker that answered, by its node name."""
    pids: list[int] = field(default_factory=list)


def send(queue: str, count: int) -> Iterator[tuple[AsyncResult, Sent]]:
    """Send `count` tasks with an answer to check, and a few probes that tell who answers."""
    task = multiply if queue == "multiply_queue" else add
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(count):
            x, y = number, number + 1
            # Half by the app's routes, where these lead to the queue, and half by its name.
            routed = number % 2 == 0 and queue in QUEUES
            where = {} if routed else {"queue": queue}
            result = task.apply_async((x, y), producer=producer, **where)
            yield result, Sent(queue, x * y if task is multiply else x + y)
        for _ in range(min(count, PROBES)):
            probe = whoami.apply_async((PROBE_SECONDS,), queue=queue, producer=producer)
            yield probe, Sent(queue, None)


def run(queues: list[str], count: int, timeout: float) -> dict[str, Report]:
    """Load all queues at once, and report on each; `timeout` in seconds for all answers."""
    reports: dict[str, Report] = defaultdict(Report)
    begun = time.monotonic()
    sent = {}
    for queue in queues:
        for result, what in send(queue, count):
            sent[result] = what
            reports[queue].sent += 1
    waiting = {result.id: what for result, what in sent.items()}

    def check(task_id: str, answer: Any) -> None:
        what = waiting.pop(task_id)
        report = reports[what.queue]
        report.done += 1
        report.seconds = round(time.monotonic() - begun, 3)
        if what.expected is None and isinstance(answer, dict):
            report.workers[answer["worker"]] = answer["concurrency"]
            report.pids = sorted({*report.pids, answer["pid"]})
        elif answer != what.expected:
            report.wrong += 1

    try:
        ResultSet(list(sent)).join_native(timeout=timeout, callback=check, propagate=False)
    except ResultTimeout:
        for what in waiting.values():
            reports[what.queue].missing += 1
    return dict(reports)


def table(reports: dict[str, Report]) -> str:
    """The reports for people."""
    row = "{:<20} {:>6} {:>6} {:>6} {:>8} {:>8} {:>5}  {}".format
    lines = [row("queue", "sent", "done", "wrong", "missing", "seconds", "pids", "workers")]
    for queue, report in reports.items():
        workers = ", ".join(f"{name} ({size})" for name, size in sorted(report.workers.items()))
        lines.append(
            row(
                queue,
                report.sent,
                report.done,
                report.wrong,
                report.missing,
                report.seconds,
                len(report.pids),
                workers or "-",
            )
        )
    return "\n".join(lines)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="tasks per queue (100)")
    parser.add_argument("--queue", action="append", help="a queue, repeatable (both samples')")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for all answers (60)")
    parser.add_argument("--json", action="store_true", help="for programs instead of people")
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error("--count must be 1 or more")
    _configure()
    reports = run(arguments.queue or list(QUEUES), arguments.count, arguments.timeout)
    plain = {queue: asdict(report) for queue, report in reports.items()}
    print(json.dumps(plain, indent=2) if arguments.json else table(reports))
    return int(any(report.wrong or report.missing for report in reports.values()))


def _configure() -> None:
    """Use the deployment's broker where this runs inside one."""
    try:
        from celery_metal_runtime import configure
    except ImportError:
        return
    configure(app)


if __name__ == "__main__":
    sys.exit(main())
