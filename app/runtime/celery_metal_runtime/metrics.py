"""How long tasks wait, and how they end: counted in the worker, kept in Redis.

What Celery's main process learns of each task anyway becomes an entry in memory; the thread of the
worker's heartbeat counts them. Each worker writes what it has counted lately to the hash
`celery-metal.metrics` every PUBLISH_SECONDS, under its node name, and removes it at its end. There
are no events, no port, and nothing of a task but how it ended.

How long a task has waited is the time from its sending, or from its ETA, to its start; see `sent`.
Of a message that does not tell when it was sent only the outcome is known.
"""

import json
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated
from celery.exceptions import Ignore, Reject, Retry, WorkerLostError
from celery.worker import strategy
from celery.worker.request import Request
from kombu.utils.compat import detect_environment
from redis.exceptions import ResponseError

from celery_metal_runtime.channels import CANARY
from celery_metal_runtime.notify import line, say
from celery_metal_runtime.sent import waited

if TYPE_CHECKING:
    from redis import Redis

    from celery_metal_runtime.ledger import Ledger

METRICS = "celery-metal.metrics"
#: Of a request: its queue, once it has begun.
BEGUN = "celery_metal_queue"
#: Upper bounds of the histogram in seconds; its last count is of what took longer.
BOUNDS = (
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600),
    *(7200, 21600, 43200, 86400),
)
PUBLISH_SECONDS = 15.0
#: What is recent, in seconds.
RECENT_SECONDS = 300.0
#: Entries that wait to be counted; beyond, while the heartbeat stands still, the oldest is dropped.
MOST_ENTRIES = 50_000
#: How a task ends, and by which of Celery's exceptions.
SUCCEEDED, FAILED, REVOKED = "succeeded", "failed", "revoked"
ENDS = {
    Retry: "retried",
    Reject: "rejected",
    Ignore: "ignored",
    WorkerLostError: "lost",
    SystemExit: "lost",
}


class Queue:
    """The tasks of one queue since `begun`, in seconds of the monotonic clock."""

    def __init__(self, begun: float) -> None:
        self.wait, self.outcomes = [0] * (len(BOUNDS) + 1), Counter[str]()
        #: Of what was a while ago: when, the counts of waits, and outcomes.
        self.earlier = deque([(begun, list(self.wait), Counter[str]())])

    def add(self, outcome: str, seconds: float | None) -> None:
        """Count a task that has ended, or, without an outcome, one that has begun."""
        if outcome:
            self.outcomes[outcome] += 1
        elif seconds is not None:
            self.wait[bisect_left(BOUNDS, seconds)] += 1

    def recent(self, now: float) -> dict[str, Any]:
        """What has changed within RECENT_SECONDS; to be called from time to time."""
        while len(self.earlier) > 1 and self.earlier[1][0] <= now - RECENT_SECONDS:
            self.earlier.popleft()
        since, wait, outcomes = self.earlier[0]
        self.earlier.append((now, list(self.wait), Counter(self.outcomes)))
        return {
            "seconds": round(now - since, 1),
            "wait": [new - old for new, old in zip(self.wait, wait, strict=True)],
            "outcomes": dict(self.outcomes - outcomes),
        }


class Metrics:
    """What one worker process has counted.

    `note` is called by the consumer's loop or by the threads of the pool, `publish` by one other
    thread; no lock is taken.
    """

    def __init__(self) -> None:
        #: A queue, the outcome of a task, or nothing for one that has begun, and its wait.
        self._entries: deque[tuple[str, str, float | None]] = deque(maxlen=MOST_ENTRIES)
        self._queues: dict[str, Queue] = {}
        self._begun, self._due = monotonic(), 0.0
        self._failure = ""

    def note(self, queue: str, outcome: str, seconds: float | None = None) -> None:
        """Enter a task that has begun after a wait of so many seconds, or ended by an outcome."""
        if queue and not queue.startswith(CANARY):
            self._entries.append((queue, outcome, seconds))

    def publish(self, client: "Redis", key: str, node: str, queues: Iterable[str]) -> None:
        """Count what has come, and write it to the field `node` of the hash `key` when it is due.

        Errors are those of Redis, but for its refusals, which are logged once.
        """
        now = monotonic()
        self._count()
        if now < self._due:
            return
        self._due = now + PUBLISH_SECONDS
        for queue in queues:
            if not queue.startswith(CANARY):
                self._queue(queue)
        recent = {name: queue.recent(now) for name, queue in self._queues.items()}
        try:
            at = client.time()[0]
        except ResponseError:  # an external Redis whose user lacks +time
            at = None
        whole = {"at": at, "bounds": BOUNDS, "queues": recent}
        try:
            client.hset(key, node, json.dumps(whole, separators=(",", ":")))
            self._failure = ""
        except ResponseError as error:
            if line(error) != self._failure:
                self._failure = line(error)
                say(
                    f"what this worker counts of its tasks is not kept in Redis: {self._failure}. "
                    "Tasks run as ever; playbooks/status.yml lacks these counts. Fix: delete the "
                    f"key {key} if it is no hash, or give the user of workers the rights in "
                    "docs/external.md"
                )

    @staticmethod
    def forget(client: "Redis", key: str, node: str | bytes) -> None:
        """Remove what `node` has written; errors are those of Redis, but for its refusals."""
        with suppress(ResponseError):
            client.hdel(key, node)

    def _count(self) -> None:
        # Not for ever: others add to it meanwhile.
        for _ in range(len(self._entries)):
            queue, outcome, seconds = self._entries.popleft()
            self._queue(queue).add(outcome, seconds)

    def _queue(self, name: str) -> Queue:
        return self._queues.get(name) or self._queues.setdefault(name, Queue(self._begun))


def count(ledger: "Ledger") -> None:
    """Have Celery's requests enter what becomes of them into the metrics of a ledger."""
    metrics, create = ledger.metrics, strategy.create_request_cls
    on_accepted, on_timeout = Request.on_accepted, Request.on_timeout
    on_failure, announce_revoked = Request.on_failure, Request._announce_revoked
    is_green = detect_environment() != "default"

    def accepted(self: Request, *args: Any, **kwargs: Any) -> Any:
        # Written down, for an early acknowledgement settles it before its end.
        queue = self.__dict__[BEGUN] = ledger.queue_of(self._message.delivery_tag)
        metrics.note(queue, "", waited(self._request_dict, time()))
        return on_accepted(self, *args, **kwargs)

    def ended(request: Request, outcome: str) -> None:
        queue = request.__dict__.get(BEGUN) or ledger.queue_of(request._message.delivery_tag)
        metrics.note(queue, outcome)

    def created(*args: Any, **kwargs: Any) -> Any:
        # Each task has a class of its own, with an end of a run of its own.
        found = create(*args, **kwargs)
        on_success = found.on_success

        def returned(self: Request, result: Any, **kwargs: Any) -> Any:
            is_failed, value, seconds = result
            if is_failed:
                ended(self, outcome_of(value.exception))
            elif seconds is not None:  # a greenlet that was killed has none
                ended(self, SUCCEEDED)
            return on_success(self, result, **kwargs)

        found.on_success = returned
        return found

    def failed(self: Request, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        # From the end of a run, which is counted above; or of a process, or a time limit.
        is_ours = self._already_revoked or getattr(self, "_already_cancelled", False)
        is_killed = isinstance(unwrapped(exc_info.exception), Terminated)
        if not (kwargs.get("return_ok") or is_ours or is_killed):
            ended(self, outcome_of(exc_info.exception))
        return on_failure(self, exc_info, *args, **kwargs)

    def timed_out(self: Request, soft: bool, timeout: float) -> Any:
        if is_green and not soft:  # with processes the end of one follows
            ended(self, FAILED)
        return on_timeout(self, soft, timeout)

    def revoked(self: Request, *args: Any, **kwargs: Any) -> Any:
        ended(self, REVOKED)
        return announce_revoked(self, *args, **kwargs)

    strategy.create_request_cls, Request.on_accepted = created, accepted
    Request.on_failure, Request.on_timeout = failed, timed_out
    Request._announce_revoked = revoked


def unwrapped(error: BaseException) -> BaseException:
    """What a process of the pool has raised, without what carries its traceback."""
    found: BaseException = error.exc if isinstance(error, ExceptionWithTraceback) else error
    return found


def outcome_of(error: BaseException) -> str:
    """What a task has ended by whose run raised `error`."""
    error = unwrapped(error)
    return next((word for kind, word in ENDS.items() if isinstance(error, kind)), FAILED)
