"""How busy this machine is, from the kernel's counters; and whether one job more has room."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import statistics
import time

# So many seconds are looked at together: a scenario pauses and computes in turn.
WINDOW = 10.0
# A job that has just begun shows its load only later.
SETTLE = 8.0
# The share of all CPUs that must have been idle for one job more.
IDLE_SHARE = 0.2
# Less than this many MB of available memory, and no more is started.
MEMORY_MB = 3000
# So many run whatever the load: each of them waits for half of its time.
AT_LEAST = 2
# Hosts cost CPU time as long as they run, and the load that a test sends lasts as long as what it
# is for: with more at once each takes longer, and all of them cost more.
AT_MOST = 3
# CPU seconds differ from machine to machine, and from hour to hour: a CPU shares its caches and its
# clock with others. So a fixed piece of work is timed every so many seconds,
YARDSTICK_EVERY = 10.0
YARDSTICK_TEXT = json.dumps([{"number": n, "text": str(n), "list": [n] * 4} for n in range(800)])
# and this is about what it took on a test machine at its fastest, which the budget is counted in.
YARDSTICK_SECONDS = 0.0055


@dataclasses.dataclass(frozen=True)
class Sample:
    """CPU time since boot in clock ticks, at a moment in seconds.

    Attributes:
        moment: by a monotonic clock.
        total: all of it.
        idle: what no program used, the time that waits for the disk included.
        waiting: of that, what waits for the disk.
        stolen: what other virtual machines got.
    """

    moment: float
    total: int
    idle: int
    waiting: int = 0
    stolen: int = 0


def parse_stat(text: str, moment: float) -> Sample:
    """Return a sample from the text of /proc/stat (proc_stat(5)).

    Time stolen by other virtual machines is not idle; time that waits for the disk is.

    >>> parse_stat("cpu  10 0 5 80 5 0 0 0 0 0\\n", 1.0)
    Sample(moment=1.0, total=100, idle=85, waiting=5, stolen=0)
    """
    numbers = [int(word) for word in text.splitlines()[0].split()[1:9]]
    waiting, stolen = numbers[4], numbers[7]
    return Sample(moment, sum(numbers), numbers[3] + waiting, waiting, stolen)


def parse_available(text: str) -> int:
    """Return the available memory in MiB from the text of /proc/meminfo.

    >>> parse_available("MemTotal: 4096 kB\\nMemAvailable: 2048 kB\\n")
    2
    """
    line = next(line for line in text.splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) // 1024


def yardstick() -> float:
    """Return the CPU seconds that a fixed piece of work takes here and now."""
    begun = time.thread_time()
    for _ in range(6):
        rows = json.loads(YARDSTICK_TEXT)
        for _ in range(5):
            sum(hash((row["text"], row["number"])) for row in rows)
    return time.thread_time() - begun


def admits(running: int, idle: float, since_start: float, available_mb: int) -> bool:
    """Return whether one more job may start.

    Args:
        running: jobs that run now.
        idle: the share of CPU time that was idle lately, 0 to 1.
        since_start: seconds since the last job has started.
        available_mb: memory in MiB that programs can still get.
    """
    if running < AT_LEAST:
        return True
    if running >= AT_MOST or available_mb < MEMORY_MB:
        return False
    return since_start >= SETTLE and idle >= IDLE_SHARE


class Meter:
    """Keeps the samples of the last WINDOW seconds, and the worst of all."""

    def __init__(self) -> None:
        self.samples: collections.deque[Sample] = collections.deque()
        self.first: Sample | None = None
        # The longest time between two samples in seconds, and when it ended.
        self.pause = 0.0
        self.paused_until = 0.0
        self.yardsticks: list[float] = []
        self.measured = -YARDSTICK_EVERY

    def add(self, sample: Sample) -> None:
        """Take one more sample, and drop those that are too old."""
        self.first = self.first or sample
        if self.samples and (pause := sample.moment - self.samples[-1].moment) > self.pause:
            self.pause, self.paused_until = pause, sample.moment
        self.samples.append(sample)
        while len(self.samples) > 2 and sample.moment - self.samples[0].moment > WINDOW:
            self.samples.popleft()

    def look(self, moment: float) -> None:
        """Take a sample of this machine now."""
        self.add(parse_stat(pathlib.Path("/proc/stat").read_text(), moment))
        if moment - self.measured >= YARDSTICK_EVERY:
            self.measured = moment
            self.yardsticks.append(yardstick())

    @property
    def idle(self) -> float:
        """The share of CPU time that was idle in the window, 0 to 1; 0 before two samples."""
        if len(self.samples) < 2:
            return 0.0
        first, last = self.samples[0], self.samples[-1]
        return (last.idle - first.idle) / max(1, last.total - first.total)

    @property
    def slowness(self) -> float:
        """How many times YARDSTICK_SECONDS this machine takes for the same work; 1 if unknown."""
        if not self.yardsticks:
            return 1.0
        return statistics.median(self.yardsticks) / YARDSTICK_SECONDS

    def summary(self) -> str:
        """What the machine did since the first sample: a stall explains a test that waited."""
        if self.first is None:
            return ""
        first, last = self.first, self.samples[-1]
        total = max(1, last.total - first.total) / 100
        idle, waiting, stolen = (
            (getattr(last, name) - getattr(first, name)) / total
            for name in ("idle", "waiting", "stolen")
        )
        return (
            f"CPUs: {idle:.0f} % idle ({waiting:.0f} % waited for the disk), {stolen:.0f} % "
            f"stolen; the longest pause between two looks at them: {self.pause:.1f} s, "
            f"at {self.paused_until - first.moment:.0f} s; "
            f"the same work takes {self.slowness:.2f} times as long as the budget is counted in"
        )


def available_memory() -> int:
    """Return the memory in MiB that programs of this machine can still get."""
    return parse_available(pathlib.Path("/proc/meminfo").read_text())
