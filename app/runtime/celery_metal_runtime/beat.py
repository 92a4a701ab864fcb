"""Celery Beat as a service of the fleet: it schedules while it holds the lock, else stands by.

Celery's own `celery beat` runs it all; see `fence` for the lock. An app that names no scheduler
gets one that keeps its state in Redis, where PersistentScheduler has a file: when an entry last ran
and how often, as JSON in the hash `celery-metal.beat`. Any other scheduler runs as it is.
"""

import json
import signal
import traceback
from collections import Counter
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from celery import beat
from celery.apps import beat as apps_beat
from redis.exceptions import NoPermissionError

from celery_metal_runtime import fence as fences
from celery_metal_runtime import redbeat
from celery_metal_runtime.broker import REDIS
from celery_metal_runtime.fence import UNANSWERED, Fence
from celery_metal_runtime.messages import brief
from celery_metal_runtime.notify import Notifier, line, say
from celery_metal_runtime.settings import BrokenError, UsageError
from celery_metal_runtime.versions import is_set, put
from celery_metal_runtime.watch import Watch, Watched

if TYPE_CHECKING:
    from celery import Celery

CELERYS_SCHEDULER = "celery.beat:PersistentScheduler"
# How often who stands by asks for the lock, and who holds it looks whether it still does.
LOOK_SECONDS = 1.0
# Above the pause of 30 s that kombu makes between two attempts to connect.
STUCK_SECONDS = 60.0
# How long a stop waits for what is being sent or written down.
STOP_SECONDS = 5.0
# Packages of schedulers that read their entries without the lock, and write none of them.
ELSEWHERE = ("django_celery_beat.", "redbeat.")
# Who has sent nothing for so long shows that it still can.
PROOF_SECONDS = 60.0
MOST_TRIES = 3
# Of two hosts: what has run later than this was written by none of them.
FUTURE = timedelta(hours=1)


class UnsentError(Exception):
    """Redis did not take a task: the entry is due still."""


class Scheduler(beat.Scheduler):
    """Celery's scheduler, with its state in Redis."""

    fence: Fence
    #: How often in a row each entry was not sent.
    tries: ClassVar[Counter[str]] = Counter()
    #: Each entry whose last task could not be sent, and why.
    failing: ClassVar[dict[str, str]] = {}

    def setup_schedule(self) -> None:
        """Take up each entry where it was left, by whichever Beat; errors are those of Redis."""
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)
        known, fresh = self.fence.read(), {}
        for name, entry in self.schedule.items():
            if not (name in known and self._restore(entry, known[name])):
                fresh[name] = _record(entry)
        self.fence.save(fresh, known.keys() - self.schedule.keys())

    def apply_entry(self, entry: beat.ScheduleEntry, producer: Any = None) -> None:
        """Send a due task; UnsentError when Redis does not take it.

        What fails for another reason, such as an argument that is no JSON, has had its turn.
        """
        beat.info("Scheduler: Sending due task %s (%s)", entry.name, entry.task)
        record = _record(self.schedule[entry.name])
        self.fence.pending = (entry.name, record)
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except beat.SchedulingError as error:
            # It may also be the app's own Redis that has failed, for an argument, again and again.
            self.tries[entry.name] += 1
            is_unsent = isinstance(error.__context__, UNANSWERED)
            if is_unsent and self.tries[entry.name] < MOST_TRIES:
                raise UnsentError(line(error.__context__)) from error
            beat.error("Message Error: %s\n%s", error, traceback.format_stack(), exc_info=True)
            self.failing[entry.name] = brief(error)
        else:
            self.failing.pop(entry.name, None)
        finally:
            left, self.fence.pending = self.fence.pending, None
        if left:
            self.fence.save({entry.name: record})
        self.tries.pop(entry.name, None)

    def _ensure_connected(self) -> Any:
        # Celery's own would wait for Redis, and not notice that the lock is lost.
        return self.connection.ensure_connection(max_retries=1)

    def _restore(self, entry: beat.ScheduleEntry, record: bytes) -> bool:
        try:
            found = json.loads(record)
            last = datetime.fromisoformat(found["last_run_at"]).astimezone(self.app.timezone)
            if last > datetime.now(UTC) + FUTURE:
                raise ValueError(f"{last} is in the future")
            count = int(found["total_run_count"])
        except Exception as error:  # noqa: BLE001 - whoever may write to Redis may have written it
            say(
                f"schedule: {entry.name} begins anew: its record in {fences.STATE} cannot be read: "
                f"{brief(error)}"
            )
            return False
        entry.last_run_at, entry.total_run_count = last, count
        return True


def _record(entry: beat.ScheduleEntry) -> str:
    last = entry.last_run_at.astimezone(UTC).isoformat()
    return json.dumps({"last_run_at": last, "total_run_count": entry.total_run_count})


class Health(Watched):
    """What is known about this Beat."""

    def __init__(self, fence: Fence, watchdog: float) -> None:
        super().__init__(watchdog)
        self.limit = max(self.limit, STUCK_SECONDS)
        self.fence = fence
        #: What it does, for `systemctl status`; nothing before Redis has first answered.
        self.words = ""

    def is_starting(self) -> bool:
        return not self.words

    def status(self, now: float) -> str:
        down = self.fence.down_since
        if down is not None:
            return (
                f"schedule: waiting for the broker since {int(now - down)} s ({self.fence.error})"
            )
        return f"schedule: {self.words or 'starting'}"

    def verdict(self, now: float) -> str:
        # What waits for a Redis that does not answer is not stuck.
        turn = now - max(self.last_turn, self.fence.failed_at)
        return f"the schedule's loop has not turned for {turn:.0f} s" if turn > self.limit else ""


class ScheduleWatch(Watch):
    """Looks at the Health of a Beat, and extends the lock."""

    def __init__(self, fence: Fence, health: Health, notifier: Notifier) -> None:
        super().__init__(health, notifier)
        self.fence = fence

    def look(self, now: float) -> None:
        """Extend the lock in time, also while an entry is being sent."""
        self.fence.extend(now)


class Service(beat.Service):
    """Celery's service, begun anew each time that this Beat has got the lock."""

    fence: Fence
    health: Health
    watch: Watch
    #: Whether it is the app's own, with a state of its own.
    is_foreign = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_told = self._is_proven = self._is_idle = False

    def start(self, embedded_process: bool = False) -> None:
        """Stand by, schedule, and stand by again, until told to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        self.watch.start()
        try:
            self._check()
            while not self._is_told:
                if not self._stand_by():
                    break
                self._is_shutdown.clear()
                try:
                    super().start(embedded_process)
                except UNANSWERED as error:
                    self._refuse(error)
                    self.fence.fail(error)
                    self._pause(LOOK_SECONDS)
                self.__dict__.pop("scheduler", None)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.watch.finish()
            self.fence.release()

    def sync(self) -> None:
        """Close the scheduler, if there is one."""
        if "scheduler" in self.__dict__:
            super().sync()

    @cached_property
    def scheduler(self) -> beat.Scheduler:
        """The scheduler for as long as the lock is held."""
        scheduler = self.get_scheduler()
        tick = scheduler.tick
        scheduler.tick = lambda: self._turn(scheduler, tick)
        return scheduler

    def _stop(self, number: int, _: Any) -> None:
        """End a pause at once, and else what is being done once it is done.

        A scheduler that is cut off between sending and writing down sends twice, or not at all.
        """
        signal.signal(number, signal.SIG_IGN)  # once is enough
        # The loops look at this, too: Python ignores what is raised in a destructor.
        self._is_told = True
        self.watch.notifier.send("STOPPING=1")
        if self._is_idle:
            raise SystemExit
        # A Redis or a database that does not answer is not waited for, nor to be synced.
        signal.signal(signal.SIGALRM, self._give_up)
        signal.setitimer(signal.ITIMER_REAL, STOP_SECONDS, STOP_SECONDS)

    def _give_up(self, _number: int, _: Any) -> NoReturn:
        raise SystemExit

    def _pause(self, seconds: float) -> None:
        self._is_idle = True
        try:
            if not self._is_told:
                sleep(seconds)
        finally:
            self._is_idle = False

    def _check(self) -> None:
        """Find a mistake in the schedule now, and not only when this Beat has to take over."""
        scheduler = self.get_scheduler(lazy=True)
        if isinstance(scheduler, Scheduler):
            scheduler.merge_inplace(self.app.conf.beat_schedule)

    def _stand_by(self) -> bool:
        """Wait for the lock; False when this Beat is to stop."""
        while not self._is_told:
            self.health.last_turn = monotonic()
            try:
                is_held = self.fence.take()
                if is_held or not self._is_proven:
                    self._prove()
                if is_held:
                    return not self._is_told
                self.fence.answered()
                self._tell("stands by, another Beat holds the lock")
            except UNANSWERED as error:
                self.fence.fail(error)
            self._pause(LOOK_SECONDS)
        return False

    def _prove(self) -> None:
        try:
            self.fence.prove()
        except UNANSWERED:
            raise
        except Exception as error:
            say(
                f"schedule: this Beat cannot send tasks: {brief(error)}. Fix: check the versions "
                "of celery, kombu and redis in the app's requirements. Its traceback follows"
            )
            raise BrokenError("this Beat cannot send tasks") from error
        if not self._is_proven:
            self._read()
        self._is_proven = True

    def _read(self) -> None:
        """Find now, and not at a take-over, that a scheduler cannot read its entries elsewhere."""
        scheduler = self.get_scheduler(lazy=True)
        if not any(kind.__module__.startswith(ELSEWHERE) for kind in type(scheduler).__mro__):
            return
        try:
            len(scheduler.schedule)
        except UNANSWERED as error:
            self._refuse(error)
            raise
        except Exception as error:
            text = f"{self.app.conf.beat_scheduler} cannot read its entries: {brief(error)}"
            say(
                f"schedule: {text}. Fix: see that its database is reached and has its tables, as "
                "'migrate' makes them"
            )
            raise BrokenError(text) from error

    def _refuse(self, error: Exception) -> None:
        """End this process where the app's own scheduler may not do in Redis what it does."""
        if self.is_foreign and isinstance(error, NoPermissionError):
            text = f"{self.app.conf.beat_scheduler} may not use its keys in Redis: {line(error)}"
            say(
                f"schedule: {text}. Fix: give the user worker rights to them in redis_user_rules, "
                "see 'A scheduler of your app's own' in docs/beat.md"
            )
            raise BrokenError(text) from error

    def _look(self, scheduler: beat.Scheduler) -> None:
        """End this process, and so the lock, when it holds the lock and can send nothing."""
        if monotonic() - self.fence.sent_at < PROOF_SECONDS:
            return
        failing = {name: Scheduler.failing.get(name) for name in scheduler.schedule}
        if failing and all(failing.values()):
            name, why = next(iter(failing.items()))
            say(
                f"schedule: this Beat cannot send tasks: no entry can be sent ({name}: {why}). "
                "Fix: see the error of each in the lines above"
            )
            raise BrokenError("this Beat cannot send tasks")
        self._prove()

    def _turn(self, scheduler: beat.Scheduler, tick: Callable[[], float]) -> float | None:
        """One tick, and the pause that it asks for; ends Celery's loop when the lock is lost."""
        try:
            interval = tick()
            self._look(scheduler)
        except (UnsentError, *UNANSWERED) as error:
            say(f"schedule: a task was not sent, and is due still: {line(error)}")
            self._pause(LOOK_SECONDS)
            self._end()
            return None
        self._tell(_words(scheduler))
        until = monotonic() + (interval or 0)
        while True:
            self.health.last_turn = now = monotonic()
            if self._is_told or not self.fence.is_held():
                self._end()
                return None
            if now >= until:
                # Not nothing, for which Celery would not sync.
                return 1e-6 if interval else 0
            self._pause(min(until - now, LOOK_SECONDS, PROOF_SECONDS))
            if monotonic() - self.fence.sent_at >= PROOF_SECONDS:
                return 1e-6  # and the next turn looks

    def _end(self) -> None:
        self._is_shutdown.set()

    def _tell(self, words: str) -> None:
        is_first, before, self.health.words = not self.health.words, self.health.words, words
        if words.partition(",")[0] != before.partition(",")[0]:
            say(f"schedule: {words}")
        if is_first:
            self.watch.ready()


def _words(scheduler: beat.Scheduler) -> str:
    heap = getattr(scheduler, "_heap", None)
    if not isinstance(heap, list):  # a scheduler of another kind
        return f"holds the lock, {type(scheduler).__name__}"
    if not heap:
        return "holds the lock, no entries"
    name, moment = str(heap[0][2].name), datetime.fromtimestamp(heap[0][0], UTC)
    number = f"{len(heap)} {'entry' if len(heap) == 1 else 'entries'}"
    failing = {one: why for one, why in Scheduler.failing.items() if one in scheduler.schedule}
    if failing:
        first, why = next(iter(failing.items()))
        number += f", {len(failing)} cannot be sent ({' '.join(str(first).split())}: {why})"
    return f"holds the lock, {number}, next {' '.join(name.split())} at {moment:%F %T} UTC"


def install(app: "Celery", environ: MutableMapping[str, str], watchdog: float) -> None:
    """Have the Beat that is about to start schedule `app` under the lock, and be watched.

    `watchdog` is systemd's WatchdogSec in seconds; 0: off. Takes NOTIFY_SOCKET out of `environ`.
    UsageError when the broker is no Redis.
    """
    url = app.conf.broker_write_url or ""
    if url.partition("://")[0] not in (*REDIS, "sentinel"):
        raise UsageError(
            "the schedule's lock is kept in the broker, which is no Redis: set CELERY_METAL_BROKER"
        )
    fence = fences.install(app)
    health = Health(fence, watchdog)
    Scheduler.fence = Service.fence = fence
    Service.health = health
    Service.watch = ScheduleWatch(fence, health, Notifier(environ))
    apps_beat.Beat.Service = Service
    Service.is_foreign = app.conf.beat_scheduler != CELERYS_SCHEDULER
    if not Service.is_foreign:
        put(app, beat_scheduler=f"{__name__}:Scheduler")
        return
    redbeat.unlock(app)
    if not is_set(app, "beat_sync_every"):
        # Celery's own default keeps what was sent for three minutes: a killed Beat would send it
        # again.
        put(app, beat_sync_every=1)
