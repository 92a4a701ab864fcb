"""How long tasks wait and run, and how they end: counted in the worker, kept in Redis.

What Celery's main process learns of each task anyway becomes one entry of a queue in memory; the
thread of the worker's heartbeat counts them. Each worker writes its counts to the hash
`celery-metal.metrics` every PUBLISH_SECONDS, under its node name, and removes them at its end.
There are no events, no port, and nothing of a task's arguments.

How long a task has waited is the time from its sending, or from its ETA, to its start; see `sent`.
Of a message that does not say when it was sent it is only known that it has begun.
"""

import json
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping
from datetime import datetime
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated
from celery.exceptions import Ignore, Reject, Retry, WorkerLostError
from celery.worker import strategy
from celery.worker.request import Request
from redis.exceptions import ResponseError

from celery_metal_runtime.channels import CANARY
from celery_metal_runtime.notify import line, say
from celery_metal_runtime.sent import waited

if TYPE_CHECKING:
    from redis import Redis

    from celery_metal_runtime.ledger import Ledger

METRICS = "celery-metal.metrics"
#: Of a request: its queue, and when it has begun.
BEGUN = "celery_metal_begun"
#: Upper bounds of a histogram in seconds; its last count is of what took longer.
BOUNDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
PUBLISH_SECONDS = 15.0
#: What is recent, in seconds.
RECENT_SECONDS = 300.0
#: Task names that are counted each by itself, and entries that wait to be counted.
MOST_NAMES, MOST_ENTRIES = 50, 50_000
#: Of all tasks beyond MOST_NAMES.
OTHERS = "(others)"
OUTCOMES = ("succeeded", "failed", "retried", "rejected", "ignored", "lost", "revoked")
ENDS = {
    Retry: "retried",
    Reject: "rejected",
    Ignore: "ignored",
    WorkerLostError: "lost",
    SystemExit: "lost",
}


#: One task that has begun, without an outcome, or has ended by it: queue, name, outcome, and the
#: seconds of its wait, or of its run; None where they are not known.
Entry = tuple[str, str, str, float | None]


class Histogram:
    """Counts of durations, as Prometheus has them but for the sums that are not cumulative."""

    def __init__(self) -> None:
        self.counts, self.seconds = [0] * (len(BOUNDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def said(self) -> dict[str, Any]:
        return {"counts": list(self.counts), "seconds": round(self.seconds, 3)}


class Task:
    """What is known of the tasks of one name."""

    def __init__(self) -> None:
        self.outcomes, self.run = dict.fromkeys(OUTCOMES, 0), Histogram()

    def said(self) -> dict[str, Any]:
        return {"outcomes": _known(self.outcomes), "run": self.run.said()}


class Queue:
    """What is known of the tasks of one queue."""

    def __init__(self) -> None:
        self.wait, self.unknown = Histogram(), 0
        self.tasks: dict[str, Task] = {}
        #: Of what was a while ago: when, the counts of waits, and outcomes.
        self.earlier: deque[tuple[float, list[int], Counter[str]]] = deque()

    def add(self, name: str, outcome: str, seconds: float | None) -> None:
        """Count one entry."""
        if outcome:
            task = self.tasks.get(name) or self._task(name)
            task.outcomes[outcome] += 1
            if seconds is not None:
                task.run.add(seconds)
        elif seconds is None:
            self.unknown += 1
        else:
            self.wait.add(seconds)

    def _task(self, name: str) -> Task:
        # No worker runs a task whose name it does not know.
        found = name if len(self.tasks) < MOST_NAMES else OTHERS
        return self.tasks.setdefault(found, Task())

    @property
    def outcomes(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for task in self.tasks.values():
            found.update(task.outcomes)
        return found

    def said(self, now: float) -> dict[str, Any]:
        """All of it, and what has changed within RECENT_SECONDS; `now`: of the monotonic clock."""
        while len(self.earlier) > 1 and self.earlier[1][0] <= now - RECENT_SECONDS:
            self.earlier.popleft()
        zero = (now, [0] * len(self.wait.counts), Counter[str]())
        since, counts, before = self.earlier[0] if self.earlier else zero
        outcomes = self.outcomes
        self.earlier.append((now, list(self.wait.counts), outcomes))
        return {
            "wait": self.wait.said(),
            "unknown": self.unknown,
            "outcomes": _known(outcomes),
            "tasks": {name: task.said() for name, task in self.tasks.items()},
            "recent": {
                "seconds": round(now - since, 1),
                "wait": [new - old for new, old in zip(self.wait.counts, counts, strict=True)],
                "outcomes": dict(outcomes - before),
            },
        }


class Metrics:
    """The counts of one worker process.

    `note` is called by the consumer's loop or by the threads of the pool, `publish` by one other
    thread; no lock is taken.
    """

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._queues: dict[str, Queue] = {}
        self._due = 0.0
        self._failure = ""
        #: Entries that were not counted, as the thread that counts did not run.
        self.missed = 0

    def note(self, queue: str, name: str, outcome: str, seconds: float | None) -> None:
        """Enter one task: what Entry has."""
        if not queue or queue.startswith(CANARY):
            return
        if len(self._entries) < MOST_ENTRIES:
            self._entries.append((queue, name, outcome, seconds))
        else:
            self.missed += 1

    def publish(self, client: "Redis", key: str, node: str, queues: set[str]) -> None:
        """Count what has come, and write all to the field `node` of the hash `key` when it is due.

        Errors are those of Redis, but for its refusals, which are said once.
        """
        now = monotonic()
        self._count()
        if now < self._due:
            return
        self._due = now + PUBLISH_SECONDS
        for queue in queues:
            if not queue.startswith(CANARY):
                self._queues.setdefault(queue, Queue())
        said = {name: queue.said(now) for name, queue in self._queues.items()}
        whole = {"bounds": BOUNDS, "queues": said, "missed": self.missed}
        text = json.dumps(whole, separators=(",", ":"))
        try:
            client.hset(key, node, text)
        except ResponseError as error:
            if line(error) != self._failure:
                self._failure = line(error)
                say(f"the counts of this worker's tasks are not kept in Redis: {self._failure}")

    def _count(self) -> None:
        # Not for ever: others add to it meanwhile.
        for _ in range(len(self._entries)):
            queue, name, outcome, seconds = self._entries.popleft()
            found = self._queues.get(queue) or self._queues.setdefault(queue, Queue())
            found.add(name, outcome, seconds)


def _known(outcomes: Mapping[str, int]) -> dict[str, int]:
    return {outcome: number for outcome, number in outcomes.items() if number}


def count(ledger: "Ledger") -> None:
    """Have Celery's requests enter what becomes of them into the metrics of a ledger."""
    metrics, create = ledger.metrics, strategy.create_request_cls
    on_accepted = Request.on_accepted
    on_failure, announce_revoked = Request.on_failure, Request._announce_revoked

    def begun(request: Request) -> tuple[str, float | None]:
        """Its queue, and when it has begun, if it has."""
        tag = request._message.delivery_tag
        return request.__dict__.get(BEGUN) or (ledger.queue_of(tag), None)

    def accepted(self: Request, *args: Any, **kwargs: Any) -> Any:
        # Written down, for an early acknowledgement settles it before its end.
        queue, _ = self.__dict__[BEGUN] = ledger.queue_of(self._message.delivery_tag), monotonic()
        eta = self._eta and seconds_of(self._eta)
        metrics.note(queue, self.name, "", waited(self._request_dict, eta, time()))
        return on_accepted(self, *args, **kwargs)

    def ended(request: Request, outcome: str) -> None:
        queue, since = begun(request)
        seconds = None if since is None else monotonic() - since
        metrics.note(queue, request.name, outcome, seconds)

    def created(*args: Any, **kwargs: Any) -> Any:
        # Each task has a class of its own, with an end of a run of its own.
        found = create(*args, **kwargs)
        on_success = found.on_success

        def returned(self: Request, result: Any, **kwargs: Any) -> Any:
            is_failed, value, _ = result
            ended(self, outcome_of(value.exception) if is_failed else "succeeded")
            return on_success(self, result, **kwargs)

        found.on_success = returned
        return found

    def failed(self: Request, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        # From the end of a run, which is counted above; or of a process, or a time limit.
        if not (kwargs.get("return_ok") or isinstance(exc_info.exception, Terminated)):
            ended(self, outcome_of(exc_info.exception))
        return on_failure(self, exc_info, *args, **kwargs)

    def revoked(self: Request, *args: Any, **kwargs: Any) -> Any:
        ended(self, "revoked")
        return announce_revoked(self, *args, **kwargs)

    strategy.create_request_cls, Request.on_accepted = created, accepted
    Request.on_failure, Request._announce_revoked = failed, revoked


def seconds_of(moment: datetime) -> float | None:
    """The same in seconds since 1970; None where that cannot be said."""
    try:
        return moment.timestamp()
    except (OverflowError, ValueError, OSError):
        return None


def outcome_of(error: BaseException) -> str:
    """What a task has ended by, of OUTCOMES, whose run raised `error`."""
    error = getattr(error, "exc", error) if isinstance(error, ExceptionWithTraceback) else error
    kinds = {
        Retry: "retried",
        Reject: "rejected",
        Ignore: "ignored",
        WorkerLostError: "lost",
        SystemExit: "lost",
    }
    return next((word for kind, word in kinds.items() if isinstance(error, kind)), "failed")
