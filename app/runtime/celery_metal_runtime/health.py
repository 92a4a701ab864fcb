"""Whether this worker works: told to systemd, and acted upon before systemd has to.

Who does what:

- The consumer's own loop stamps `last_turn` each time its timer fires, and `last_served` when
  Redis has lately answered the consumer's own request for tasks, or none is due (see `_is_served`).
- Celery's bootsteps tell when the consumer has a connection, and when it waits for one.
- While it waits, a probe connects beside it: is it the broker that is away, or the consumer?
- A thread of the operating system, under gevent too, compares the stamps with the clock, and sends
  WATCHDOG and STATUS. When the worker is stuck it writes all stacks to the log and ends the
  process with EX_SOFTWARE: systemd's own watchdog would kill conmon, but not what it watches over.
"""

import faulthandler
import os
import signal
import threading
from collections.abc import MutableMapping, Sequence
from contextlib import suppress
from functools import partialmethod
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, NoReturn

from celery import bootsteps, signals
from celery.worker import state as worker_state
from celery.worker.heartbeat import Heart

from celery_metal_runtime import ahead
from celery_metal_runtime.canary import CHECK_SECONDS, Canary
from celery_metal_runtime.ledger import LEASE_SECONDS
from celery_metal_runtime.leftovers import Leftovers
from celery_metal_runtime.notify import Notifier, line, say, unpatched
from celery_metal_runtime.verdict import Verdicts
from celery_metal_runtime.watch import EX_SOFTWARE, Watch, Watched

if TYPE_CHECKING:
    from celery import Celery
    from celery.worker.consumer import Consumer

    from celery_metal_runtime.ledger import Ledger

PROBE_SECONDS = 2.0
# Redis answers a request for tasks within a second, with or without a task.
ANSWER_SECONDS = 3.0
# kombu pauses up to 30 s between two attempts to connect.
RECONNECT_SECONDS = 120.0
# What an interrupted task has for its `finally`; StopTimeout leaves 10 s above the drain.
INTERRUPT_SECONDS = 3.0
SETTLE_SECONDS = 0.3
WORDS = {
    "prefork": ("process", "processes"),
    "threads": ("thread", "threads"),
    "gevent": ("greenlet", "greenlets"),
    "solo": ("process", "processes"),
}


class Health(Watched):
    """What is known about one worker."""

    CONSEQUENCE = (
        "this worker ends, systemd starts another, and what it has not acknowledged runs again"
    )

    def __init__(
        self, app: "Celery", queue: str, pool: str, ledger: "Ledger", watchdog: float
    ) -> None:
        super().__init__(watchdog)
        self.app, self.queue, self.pool_name, self.ledger = app, queue, pool, ledger
        check = (app.conf.broker_transport_options or {}).get("health_check_interval") or 25
        # Later than kombu's own repair of a silent connection, which keeps the running tasks.
        self.serve_limit = max(self.limit, ANSWER_SECONDS + 3 * check)
        self.pool: Any = None
        self.last_served = self.waiting_since = self.last_turn
        self.waiting = True
        self.answered_since: float | None = None
        self.broker_error = ""
        # A task that no process of the pool takes, though some are free, and since when.
        self.untaken: tuple[str, float] | None = None
        self.canary = Canary(app, ledger)
        self.draining = False

    # In the consumer's loop

    def connected(self) -> None:
        """The consumer has a connection and has set up its tasks."""
        self.last_turn = self.last_served = monotonic()
        self.waiting = False

    def disconnected(self) -> None:
        """The consumer is about to connect, or to connect again."""
        self.waiting_since = monotonic()
        self.waiting, self.answered_since, self.broker_error = True, None, ""
        # A greenlet under gevent, where connecting in another thread would need a hub of its own.
        threading.Thread(target=self._probe, args=(self.waiting_since,), daemon=True).start()

    def turn(self, consumer: "Consumer") -> None:
        """One turn of the consumer's loop."""
        self.last_turn = monotonic()
        if _is_served(consumer, self.last_turn):
            self.last_served = self.last_turn
        self.untaken = self._untaken(self.last_turn)

    def _untaken(self, now: float) -> tuple[str, float] | None:
        active = worker_state.active_requests
        if len(active) >= self.pool.num_processes:
            return None
        found = {request.id for request in worker_state.reserved_requests if request not in active}
        if self.untaken and self.untaken[0] in found:
            return self.untaken
        return (found.pop(), now) if found else None

    def _probe(self, outage: float) -> None:
        """Connect beside the consumer until its outage, known by its beginning, is over."""
        while True:
            sleep(PROBE_SECONDS)
            if not self.waiting or self.waiting_since != outage or self.draining:
                return
            try:
                with self.app.connection_for_read() as connection:
                    connection.connect()
            except Exception as error:  # noqa: BLE001 - whatever it is, the broker does not answer
                self.answered_since, self.broker_error = None, str(error).partition("\n")[0][:120]
            else:
                self.answered_since, self.broker_error = self.answered_since or monotonic(), ""

    # In the watching thread

    def is_starting(self) -> bool:
        return self.waiting and not self.canary.proven

    def thawed(self, now: float) -> None:
        self.last_turn = self.last_served = now
        self.untaken = None

    def status(self, now: float) -> str:
        busy = len(worker_state.active_requests)
        if self.draining:
            return f"{self.queue}: draining, {busy} busy"
        away_since = self.waiting_since if self.waiting else self.ledger.down_since
        if away_since is not None:
            reason = f" ({self.broker_error})" if self.waiting and self.broker_error else ""
            seconds = int(now - away_since)
            return f"{self.queue}: waiting for the broker since {seconds} s{reason}"
        if not self.canary.proven:
            return f"{self.queue}: running its first task"
        done = worker_state.all_total_count[0] - busy
        size = self.pool.num_processes
        word = WORDS[self.pool_name][size != 1]
        refused = f", {self.ledger.refused} refused" if self.ledger.refused else ""
        paused = self.ledger.pauses.status
        return f"{self.queue}: {size} {word}, {busy} busy, {done} done{refused}{paused}"

    def verdict(self, now: float) -> str:
        if self.draining:
            return ""
        if self.waiting:
            return self._verdict_waiting(now)
        # What waits for a Redis that answers nobody is not stuck.
        turn = now - max(self.last_turn, self.ledger.failed_at)
        served = now - max(self.last_served, self.ledger.failed_at)
        if turn > self.limit:
            # The solo pool runs its task in the loop: it is merely busy.
            if self.pool_name == "solo" and worker_state.active_requests:
                return ""
            return f"the consumer's loop has not turned for {turn:.0f} s"
        if served > self.serve_limit:
            return f"the consumer has got no answer from the broker for {served:.0f} s"
        if self.untaken and now - self.untaken[1] > self.limit:
            task, since = self.untaken
            return f"no process of the pool takes the task {task} for {now - since:.0f} s"
        return ""

    def _verdict_waiting(self, now: float) -> str:
        """A broker that is away is not this worker's fault; one that answers others is."""
        if self.answered_since is None or now - self.answered_since <= RECONNECT_SECONDS:
            return ""
        return f"the broker answers, but not for this consumer, for {RECONNECT_SECONDS:.0f} s"

    def interrupt(self) -> None:
        """End the pool's processes, with SIGTERM first; return when none runs any more."""
        pause, until = unpatched("time", "sleep"), monotonic() + INTERRUPT_SECONDS
        self._signal(signal.SIGTERM)
        while any(map(_is_running, self._children())) and monotonic() < until:
            pause(0.05)
        self._signal(signal.SIGKILL)

    def give_back(self) -> None:
        """Return to the queue all that was taken from it and not acknowledged."""
        try:
            self.ledger.close()
        except Exception as error:  # noqa: BLE001 - the successor will find it
            say(
                f"Redis did not take back what this worker held: {line(error)}. Its next start "
                f"gives it back, or another worker after {LEASE_SECONDS:.0f} s"
            )

    def end(self, status: int = 0) -> NoReturn:
        """End the pool's processes and this one at once."""
        self._signal(signal.SIGKILL)
        os._exit(status)

    def _children(self) -> list[int]:
        # Python's processes only: gevent's and the thread pool's are this very process.
        processes = getattr(getattr(self.pool, "_pool", None), "_pool", ())
        return [process.pid for process in list(processes)]

    def _signal(self, number: int) -> None:
        for pid in self._children():
            with suppress(OSError):
                os.kill(pid, number)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class WorkerWatch(Watch):
    """Looks at a Health; ends a drain that has lasted too long."""

    def __init__(
        self, health: Health, notifier: Notifier, drain: float, tmpfs: Sequence[str] = ()
    ) -> None:
        super().__init__(health, notifier)
        self.health, self.drain_seconds = health, drain
        self.leftovers = Leftovers(tmpfs, health.ledger, drain)
        self.drained_by: float | None = None

    def ready(self) -> None:
        """Its first task has run, and none of its queue."""
        self.leftovers.begin(monotonic())
        super().ready()

    def drain(self) -> None:
        """The worker takes no more tasks and finishes those that it has."""
        if not self.health.draining:
            if self.drain_seconds:
                self.drained_by = monotonic() + self.drain_seconds
            self.health.draining = True
            self.notifier.send("STOPPING=1", f"STATUS={self.health.status(monotonic())}")

    def look(self, now: float) -> None:
        """End a worker whose name another one has, one whose /tmp is full of leftovers by a drain,
        and a drain whose time is over.
        """
        if self.health.ledger.twins.reason:
            self._yield()
        if self.drained_by is not None and now >= self.drained_by:
            self._end_drain()
        if not self.health.draining and self.leftovers.look(now):
            # As systemd does: Celery's own stop, which ends with 0, and Restart=always.
            os.kill(os.getpid(), signal.SIGTERM)

    def _yield(self) -> NoReturn:
        """End this process at once; what it has claimed, the other one gives back."""
        twin = self.health.ledger.twins.reason
        self.notifier.send(f"STATUS={self.health.queue}: {twin}")
        say(
            f"{twin}. It is started again, with growing pauses. Fix: give one of the two hosts "
            "another name in the inventory, or its app a Redis or a prefix of its own; see 'Two "
            "workers with one name' in docs/safety.md"
        )
        self.health.end(EX_SOFTWARE)

    def _end_drain(self) -> NoReturn:
        """Interrupt what still runs, give it back to its queue, and end this process.

        Not by Celery's cold shutdown (SIGQUIT), which does this for prefork only: threads keep the
        process from ending, and with gevent and solo the task is not in its queue afterwards.
        """
        busy = len(worker_state.active_requests)
        say(
            f"drain_seconds are over and {busy} tasks still run: they are interrupted, and what is "
            "not acknowledged goes back to the queue. Raise drain_seconds of this queue if they "
            "need longer"
        )
        self.health.interrupt()
        # What has ended at the last moment is acknowledged by the loop, which still turns.
        unpatched("time", "sleep")(SETTLE_SECONDS)
        self.health.give_back()
        self.health.end()


def end(timer: Any) -> None:
    """Stop what a consumer's timer calls repeatedly.

    With gevent the timer gives its first call alone, and the call after that has another greenlet.
    """
    getattr(timer, "entry", timer).cancel()


def install(
    app: "Celery",
    environ: MutableMapping[str, str],
    queue: str,
    pool: str,
    ledger: "Ledger",
    watchdog: float,
    drain: float = 0,
    limit: ahead.Limit = ahead.NONE,
    tmpfs: Sequence[str] = (),
) -> None:
    """Have the worker that `app` is about to start watched; see Health for the arguments.

    `drain` is how long tasks may go on after the worker was told to stop, in seconds; 0: for ever.
    `limit`: see ahead.most_ahead. `tmpfs`: see leftovers.
    Takes NOTIFY_SOCKET out of `environ`.
    """
    health, notifier = Health(app, queue, pool, ledger, watchdog), Notifier(environ)
    watch, verdicts = WorkerWatch(health, notifier, drain, tmpfs), Verdicts(app, ledger)

    class WatchStep(bootsteps.StartStopStep):
        """Starts the thread, after the pool has forked and before the consumer connects."""

        requires = ("celery.worker.components:Pool",)

        def start(self, worker: Any) -> None:
            health.pool = worker.pool
            health.canary.hold_back()
            health.disconnected()
            watch.start()

    class ConsumeStep(bootsteps.StartStopStep):
        """Runs while the consumer has a connection: from its tasks' start to its next restart."""

        requires = ("celery.worker.consumer.tasks:Tasks",)

        def start(self, consumer: "Consumer") -> None:
            health.connected()
            ledger.most_claims = ahead.claims(limit.most, consumer)
            self.timers = [consumer.timer.call_repeatedly(health.tick, health.turn, (consumer,))]
            if not health.canary.proven:
                health.canary.send(consumer)
                self.proof = consumer.timer.call_repeatedly(CHECK_SECONDS, self.prove, (consumer,))
                self.timers.append(self.proof)

        def prove(self, consumer: "Consumer") -> None:
            if reason := health.canary.check(consumer, watch.ready):
                health.give_up(reason)
            if health.canary.proven:
                end(self.proof)
                verdicts.start()

        def stop(self, consumer: "Consumer") -> None:
            # Celery also stops what an attempt to connect has not reached: the outage goes on.
            if not health.waiting:
                for timer in self.timers:
                    end(timer)
                if not health.draining:
                    health.disconnected()

        def close(self, consumer: "Consumer") -> None:
            watch.drain()

    # Celery's own would retry for ever, in the consumer's loop.
    Heart._send = partialmethod(Heart._send, retry=False)
    app.steps["worker"].add(WatchStep)
    app.steps["consumer"].add(ConsumeStep)

    def on_shutting_down(**_: Any) -> None:
        watch.drain()
        if ledger.waker:
            ledger.waker.wake()

    def on_shutdown(sender: Any, **_: Any) -> None:
        watch.finish()
        # By an exception that Celery has not foreseen: what ran may be its cause.
        ledger.failed = bool(sender.exitcode)
        # What was taken but not begun.
        health.give_back()
        notifier.give_back(environ)

    signals.worker_shutting_down.connect(on_shutting_down, weak=False)
    signals.worker_shutdown.connect(on_shutdown, weak=False)
    # A child would inherit the alarm's lock without its thread, and wait for it at its end.
    os.register_at_fork(before=faulthandler.cancel_dump_traceback_later)


def _is_served(consumer: "Consumer", now: float) -> bool:
    """Whether Redis answers the consumer's own request for tasks, or none is due.

    kombu asks anew each time an answer, or the notice that there is no task, has come.
    """
    channel = consumer.task_consumer.channel
    if not hasattr(channel, "_brpop_sent_at"):  # another kind of broker
        return True
    full = len(worker_state.active_requests) >= consumer.pool.num_processes
    if full or not channel.active_queues or not channel.qos.can_consume():
        return True
    return channel._brpop_sent_at is not None and now - channel._brpop_sent_at < ANSWER_SECONDS
