"""A worker is replaced when files of tasks that ended or were killed fill its /tmp.

/tmp, /var/tmp and /dev/shm of a container are memory of its worker, and last as long as the
container: what a task leaves there outlives its process. Each has a size, beyond which a task gets
"No space left on device". So leftovers cost no task its memory, but its room. A new container has
empty ones.

A leftover was made after the worker was ready, and last changed before the oldest running task
began: no running task has made it, and none has written to it. An app that keeps files on purpose
looks the same. So without a task that was killed a worker is replaced after REST_SECONDS at the
earliest; and what the app itself has made before the worker was ready is none.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, NamedTuple

from celery.worker import state as worker_state

from celery_metal_runtime.notify import say

if TYPE_CHECKING:
    from celery_metal_runtime.ledger import Ledger

LOOK_SECONDS = 10.0
#: What has changed within this time is no leftover yet.
QUIET_SECONDS = 10.0
REST_SECONDS = 600.0
#: A request for a task that is on its way when no more are to be taken is answered by then.
CLAIM_SECONDS = 2.0
#: Leftovers fill so much of what was free when the worker was ready.
SHARE = 0.5
LEAST_BYTES = 1 << 20
#: Tasks that end within this time do not keep a worker from its end, however short its drain is.
LEAST_WAIT_SECONDS = 10.0
#: Memory of an inode beside the blocks, which the size of a tmpfs does not count.
INODE_BYTES = 1024
#: Files that are looked at in one directory of memory: what is beyond is not counted.
MOST_FILES = 20_000
MB = 1 << 20


class Found(NamedTuple):
    """A directory of memory with too much in it: all sizes in bytes."""

    path: str
    left: int
    size: int


class Memory:
    """A directory that is memory, as it was when the worker was ready at `born` (seconds, UTC)."""

    def __init__(self, path: str, born: float) -> None:
        self.path, self.born = path, born
        self.used, self.size = usage(path)

    @property
    def limit(self) -> float:
        """How much may be left."""
        return max(LEAST_BYTES, SHARE * (self.size - self.used))

    def look(self, before: float) -> Found | None:
        """What was made since it was ready and last changed before that time, if too much."""
        used, size = usage(self.path)
        # Cheap, and mostly all.
        if not size or used - self.used <= self.limit:
            return None
        left = sum(
            one.st_blocks * 512 + INODE_BYTES
            for one in files(self.path)
            if self.born < one.st_ctime < before
        )
        return Found(self.path, left, size) if left > self.limit else None


def usage(path: str) -> tuple[int, int]:
    """Bytes that are in use, with those of inodes, and the size; zeros where there is no answer."""
    try:
        found = os.statvfs(path)
    except OSError:
        return 0, 0
    blocks = (found.f_blocks - found.f_bfree) * found.f_frsize
    return blocks + (found.f_files - found.f_ffree) * INODE_BYTES, found.f_blocks * found.f_frsize


def files(path: str) -> Iterator[os.stat_result]:
    """What is below a directory on its own file system, each once, links not followed.

    Tasks write there: no more than MOST_FILES, and what cannot be read is left out.
    """
    waiting, seen = [path], set[int]()
    with suppress(OSError):
        device = os.lstat(path).st_dev
        while waiting:
            with suppress(OSError), os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if len(seen) >= MOST_FILES:
                        return
                    with suppress(OSError):
                        one = entry.stat(follow_symlinks=False)
                        if one.st_dev != device or one.st_ino in seen:
                            continue
                        seen.add(one.st_ino)
                        yield one
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)


class Leftovers:
    """Decides, in the watching thread, when a worker is to be replaced.

    `paths`: its directories of memory. `drain`: how long its tasks may take, in seconds; 0: any
    time. `now` is the monotonic clock's.
    """

    def __init__(self, paths: Sequence[str], ledger: "Ledger", drain: float) -> None:
        self.paths, self.ledger, self.drain = paths, ledger, drain
        self.memories: list[Memory] = []
        self._ready = self._due = 0.0
        self._paused_since: float | None = None

    def begin(self, now: float) -> None:
        """The worker is ready, and has taken no task yet."""
        self._ready, self._due = now, now + LOOK_SECONDS
        self.memories = [Memory(path, time()) for path in self.paths]
        for one in self.memories:
            if one.size and one.used > SHARE * one.size:
                say(
                    f"the app has {one.used // MB} MB in {one.path} when it starts, of "
                    f"{one.size // MB} MB: little is left for tasks. Fix: raise tmp_mb of this "
                    "queue; see 'tmp_mb' in docs/queues.md"
                )

    def look(self, now: float) -> bool:
        """Whether the worker is to end now; before, it takes no more tasks for a while."""
        if not self.memories:
            return False
        if self._paused_since is not None:
            return self._wait(now, self._paused_since)
        if now < self._due:
            return False
        self._due = now + LOOK_SECONDS
        if not self.ledger.losses and now - self._ready < REST_SECONDS:
            return False
        starts = [*running(), time() - QUIET_SECONDS]
        for memory in self.memories:
            if found := memory.look(min(starts)):
                self._pause(now, found, len(starts) - 1)
                break
        return False

    def _pause(self, now: float, found: Found, busy: int) -> None:
        self._paused_since, self.ledger.paused = now, True
        lost = self.ledger.losses
        say(
            f"{found.left // MB} of {found.size // MB} MB of {found.path} are files that no "
            f"running task has made (tasks killed here: {lost}): this worker takes no more tasks, "
            f"finishes those that run ({busy}) and ends, and systemd starts another with an "
            f"empty {found.path}. Fix, if the app keeps these files on purpose: raise tmp_mb of "
            "this queue; see 'tmp_mb' in docs/queues.md"
        )

    def _wait(self, now: float, since: float) -> bool:
        if self.drain and now - since > max(self.drain, LEAST_WAIT_SECONDS):
            # Interrupted, they would run twice.
            self._paused_since, self.ledger.paused = None, False
            self._due = now + REST_SECONDS
            say(
                "its tasks run for longer than drain_seconds, so this worker goes on, and tries to "
                f"end again in {REST_SECONDS:.0f} s. Raise drain_seconds of this queue"
            )
            return False
        # What is done and not acknowledged yet would run twice.
        if now - since < CLAIM_SECONDS or running() or not self.ledger.is_settled:
            return False
        self.memories = []  # once
        return True


def running(clock: Callable[[], float] = time) -> list[float]:
    """When each running task began, in seconds, UTC."""
    for _ in range(10):
        try:
            return [one.time_start or clock() for one in worker_state.active_requests]
        except RuntimeError:  # the set has changed under the iteration
            continue
    return [clock()]


def of(text: str) -> list[str]:
    """The directories in a variable, those that are there."""
    return [path for path in text.split(",") if path and Path(path).is_dir()]
