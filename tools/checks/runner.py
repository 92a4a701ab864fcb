"""Runs jobs: the longest first, and one more whenever the machine has room for it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from checks import load, measure
from checks.jobs import BIN, LAB, Job
from checks.measure import Result

# Seconds by job of a measured run, which `test.py --record` writes; a job without is long.
RECORD = pathlib.Path(__file__).with_name("seconds.json")
UNKNOWN_SECONDS = 600.0
# How often a log is read and the load is looked at, in seconds.
TICK = 0.25


class InterruptedRunError(Exception):
    """The run was told to end by a signal; the text is its name."""


def expected(path: pathlib.Path = RECORD) -> dict[str, float]:
    """Return the seconds that jobs took when they were last recorded."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def in_order(jobs: list[Job], seconds: dict[str, float]) -> list[Job]:
    """Return the jobs, the longest first: begun last, one would run alone at the end."""
    return sorted(jobs, key=lambda job: -seconds.get(job.name, UNKNOWN_SECONDS))


def next_job(waiting: list[Job], running: list[Job], has_room: Callable[[int], bool]) -> Job | None:
    """Return the job to start now, if any.

    One without hosts always runs: it takes the CPU time for which scenarios wait. All others start
    in their order, when the machine has room.

    Args:
        waiting: jobs, in their order.
        running: jobs that run now.
        has_room: whether one more may start beside so many.
    """
    beside = next((job for job in running if not job.scenario), None)
    if beside is None:
        for job in waiting:
            if not job.scenario:
                return job
    count = len(running) - (beside is not None)
    if not waiting or not has_room(count):
        return None
    return next((job for job in waiting if job.scenario), waiting[0])


class Runner:
    """Runs jobs, each for so many minutes, and ends those it has started when told to stop."""

    def __init__(self, minutes: float) -> None:
        self.seconds = minutes * 60
        self.lock = threading.Lock()
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        self.started = time.monotonic()
        self.meter = load.Meter()

    def say(self, text: str) -> None:
        """Print a line of progress with the seconds since the start."""
        with self.lock:
            print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)

    def run_all(self, jobs: list[Job]) -> list[Result]:
        """Run the jobs, as many at a time as the machine has room for.

        Returns:
            Their results, in the jobs' order.

        Raises:
            InterruptedRunError: SIGINT or SIGTERM came; nothing that was started is left.
        """

        def interrupted(number: int, _frame: FrameType | None) -> NoReturn:
            raise InterruptedRunError(signal.Signals(number).name)

        handlers = {
            number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)
        }
        results: dict[str, Result] = {}
        threads: list[threading.Thread] = []
        try:
            self._admit(in_order(jobs, expected()), results, threads)
        except BaseException:
            # A second Ctrl-C must not keep the hosts from being taken down.
            for number in handlers:
                signal.signal(number, signal.SIG_IGN)
            self.say("stopping, and taking the hosts down")
            self.stop()
            for thread in threads:
                thread.join()
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return [results[job.name] for job in jobs]

    def _admit(
        self, waiting: list[Job], results: dict[str, Result], threads: list[threading.Thread]
    ) -> None:
        """Start each job as soon as there is room, and return when all have ended."""
        errors: list[Exception] = []
        running: list[Job] = []
        last = time.monotonic()

        def work(job: Job) -> None:
            try:
                results[job.name] = self.run(job)
            except (OSError, subprocess.SubprocessError) as error:
                errors.append(error)
            finally:
                running.remove(job)

        def has_room(count: int) -> bool:
            since = time.monotonic() - last
            return load.admits(count, self.meter.idle, since, load.available_memory())

        while not errors and (waiting or any(thread.is_alive() for thread in threads)):
            self.meter.look(time.monotonic())
            job = next_job(waiting, list(running), has_room)
            if job is None:
                time.sleep(TICK)
                continue
            last = time.monotonic()
            waiting.remove(job)
            running.append(job)
            threads.append(threading.Thread(target=work, args=(job,)))
            threads[-1].start()
        if errors:
            raise errors[0]

    def run(self, job: Job) -> Result:
        """Run a job to its end and return how it went."""
        started = time.monotonic()
        self.say(f"{job.name} ...")
        shutil.rmtree(job.kept, ignore_errors=True)
        phases = measure.Phases(job.log)
        with job.log.open("wb") as log:
            status, cpu = self.execute(job, log.fileno(), phases)
        if job.scenario:
            self.take_down(job)
            cpu += measure.hosts_cpu(job.kept)
        passed, failed = measure.count(job, status)
        seconds = time.monotonic() - started
        if failed and not self.stopped:
            self.show(job)
        self.say(f"{job.name}: {'FAILED' if failed else 'passed'} after {seconds:.0f} s")
        return Result(
            job,
            seconds,
            cpu,
            phases.seconds,
            passed,
            failed,
            tuple(measure.failures(job)) if failed else (),
            measure.read_tests(job.report),
        )

    def show(self, job: Job) -> None:
        """Print all that a failed job has printed, and the warnings in its hosts' journals."""
        with self.lock:
            for path in [job.log, *sorted(job.kept.glob("*.log"))]:
                text = path.read_text(errors="replace")
                print(f"\n===== {job.name}: {path.name} =====\n{text}", flush=True)

    def execute(self, job: Job, log: int, phases: measure.Phases) -> tuple[int, float]:
        """Run the job's command in a session of its own.

        Returns:
            Its exit status, and the CPU seconds of it and of all that it has waited for.
        """
        with self.lock:
            if self.stopped:
                return 1, 0.0
            process = subprocess.Popen(
                job.command,
                cwd=BIN.parents[1],
                env=job.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self.processes.add(process)
        try:
            if not self.follow(process.pid, phases):
                os.write(log, f"\nnot done after {self.seconds:.0f} s\n".encode())
                os.killpg(process.pid, signal.SIGKILL)
            with self.lock:
                # Reaped under the lock: stop() must not signal a number that is free again.
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                self.processes.discard(process)
        finally:
            phases.look(time.monotonic())
        return process.returncode, usage.ru_utime + usage.ru_stime

    def follow(self, pid: int, phases: measure.Phases) -> bool:
        """Read a job's log as it grows; whether the job ended within its time."""
        deadline = time.monotonic() + self.seconds
        ended = select.poll()
        handle = os.pidfd_open(pid)
        try:
            ended.register(handle, select.POLLIN)
            while time.monotonic() < deadline:
                if ended.poll(TICK * 1000):
                    return True
                phases.look(time.monotonic())
        finally:
            os.close(handle)
        return False

    def take_down(self, job: Job) -> None:
        """Remove the scenario's lab if Molecule has not; an error here is one of the run."""
        command = [str(BIN / "python"), str(LAB), "down", f"@{job.scenario}"]
        subprocess.run([*command, "--journals", str(job.kept)], check=True)

    def stop(self) -> None:
        """End all jobs that are running, and start no more."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                # Its own session: this reaches what the job has started, and nothing else.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
