"""The thread that watches what runs here, tells systemd, and ends what is stuck before that must.

It neither logs nor takes a lock: what it watches may hold them.
"""

import faulthandler
import os
from time import monotonic
from typing import NoReturn

from celery_metal_runtime.notify import STDERR, Notifier, say, unpatched

EX_SOFTWARE = 70
LONGEST_TICK = 1.0
STATUS_SECONDS = 2.0
EXTEND_SECONDS = 60
# Of the watchdog's time: then a process ends in which not even the watching thread runs.
LAST_RESORT = 0.9


class Watched:
    """What is known about the one thing that this process does.

    `watchdog` is systemd's WatchdogSec in seconds; 0 switches the watching off, not the telling.
    All times are in seconds of the monotonic clock.
    """

    #: What follows when it gives up.
    CONSEQUENCE = "this process ends, and systemd starts another"

    def __init__(self, watchdog: float) -> None:
        self.watchdog = watchdog
        self.tick = min(LONGEST_TICK, watchdog / 6) if watchdog else LONGEST_TICK
        self.limit = watchdog * 2 / 3
        self.last_turn = monotonic()
        self.finished = False

    def is_starting(self) -> bool:
        """Whether it waits for Redis and has never been ready: then its start is given time."""
        return False

    def status(self, now: float) -> str:
        """One line for `systemctl status`."""
        raise NotImplementedError

    def verdict(self, now: float) -> str:
        """Why it should be replaced by a new one, or nothing while it should not."""
        raise NotImplementedError

    def thawed(self, now: float) -> None:
        """The process was frozen as a whole (podman pause): it is late, not stuck."""
        self.last_turn = now

    def give_up(self, reason: str) -> NoReturn:
        """Write why and where, and end this process, and what it started, at once."""
        # Nobody may be reading: a full pipe must not keep the process alive.
        os.set_blocking(STDERR, False)
        say(
            f"{reason}: {self.CONSEQUENCE}. If that happens again, see where it hung in the stacks "
            "of all threads:"
        )
        faulthandler.dump_traceback(STDERR)
        self.end(EX_SOFTWARE)

    def end(self, status: int = 0) -> NoReturn:
        """End this process at once."""
        os._exit(status)


class Watch:
    """The thread."""

    def __init__(self, watched: Watched, notifier: Notifier) -> None:
        self.watched, self.notifier = watched, notifier
        self.beat_due, self.status_due = 0.0, monotonic() + STATUS_SECONDS
        self.extend_due = 0.0
        self.status = ""

    def start(self) -> None:
        """Start a daemon thread of the operating system; a forked child does not have it."""
        unpatched("_thread", "start_new_thread")(self._run, ())

    def ready(self) -> None:
        """What is watched has shown that it works."""
        self.status = self.watched.status(monotonic())
        self.notifier.send("READY=1", f"STATUS={self.status}")

    def finish(self) -> None:
        """It is done; nothing may be ended or started any more."""
        self.watched.finished = True
        faulthandler.cancel_dump_traceback_later()

    def look(self, now: float) -> None:
        """What else is to be done at each look."""

    def _run(self) -> None:
        watched, pause, looked = self.watched, unpatched("time", "sleep"), monotonic()
        while not watched.finished:
            now = monotonic()
            if now - looked > watched.limit / 2 + LONGEST_TICK:
                watched.thawed(now)
            looked = now
            if watched.watchdog and (reason := watched.verdict(now)):
                watched.give_up(reason)
            self._tell(now)
            self.look(now)
            pause(watched.tick)

    def _tell(self, now: float) -> None:
        watchdog = self.watched.watchdog
        if watchdog and now >= self.beat_due:
            self.beat_due = now + watchdog / 3 - self.watched.tick / 2
            self.notifier.send("WATCHDOG=1")
            # Where even this thread cannot run, as C code keeps the interpreter's lock.
            faulthandler.dump_traceback_later(watchdog * LAST_RESORT, exit=True, file=STDERR)
        if now >= self.extend_due and self.watched.is_starting():
            # A start that waits for Redis is none that hangs.
            self.extend_due = now + EXTEND_SECONDS / 3
            self.notifier.send(f"EXTEND_TIMEOUT_USEC={EXTEND_SECONDS * 1_000_000}")
        if now >= self.status_due and (status := self.watched.status(now)) != self.status:
            self.status, self.status_due = status, now + STATUS_SECONDS
            self.notifier.send(f"STATUS={status}")
