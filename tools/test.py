#!/usr/bin/env python3
"""Run all checks of the project: linters, unit tests and Molecule's scenarios.

    test.py                       everything
    test.py lint | unit           only these
    test.py quick                 the linters and the unit tests that take seconds
    test.py molecule [NAME...]    all scenarios, or these

At most two scenarios run at a time, and one other check beside them. What a job says is in
.cache/test/JOB.log, and is printed if the job fails. The last line counts lint checks, tests (those
of the scenarios, too) and scenarios: "N passed, N failed". Just before it stands what failed, a
line each. The exit status is 0 if none failed, and 1 if any did.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from types import FrameType
from typing import NoReturn

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOGS = ROOT / ".cache" / "test"
BIN = ROOT / ".venv" / "bin"
LAB = ROOT / "molecule" / "_lab" / "lab.py"
# A scenario waits half of its time, for what its hosts do: two leave room for a check.
SCENARIOS_AT_ONCE, CHECKS_AT_ONCE = 2, 1
# Without scenarios.
QUICK_AT_ONCE = 2
# What only computes leaves the CPUs to who is waited for.
BESIDE = ("nice",)
# They take longest: begun last, one would run alone at the end.
FIRST = ("scale", "interrupt", "beat", "failover")
# A scenario that takes longer hangs: CI as a whole has 90 minutes.
JOB_MINUTES = 30
# The same for a single test, which then says where.
TEST_SECONDS = 900

# Of what a failed test says, so much: a line, and no more, is what it is shown in.
SAID = 200

LINTERS = {
    "ansible-lint": ["ansible-lint", "--offline", "--nocolor"],
    "yamllint": ["yamllint", "--strict", "."],
    "ruff-check": ["ruff", "check", "."],
    "ruff-format": ["ruff", "format", "--check", "."],
}
# Replace those of the same name in `quick`. The playbooks of scenarios take most of the time.
QUICK_LINTERS = {"ansible-lint": [*LINTERS["ansible-lint"], "roles", "playbooks", "site.yml"]}
# Unit tests that need nothing but Python and PROGRAMS: one run of pytest.
UNIT_TESTS = ("roles", "tests", "bench", "molecule/_lab")
# The programs that these start, and Debian's package of each.
PROGRAMS = {
    "dpkg-deb": "dpkg",
    "git": "git",
    "openssl": "openssl",
    "redis-server": "redis-server",
    "ssh-keygen": "openssh-client",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One command and its name, such as "molecule/default"; `scenario` if it uses a lab."""

    name: str
    command: tuple[str, ...]
    junit: bool = False
    scenario: str = ""

    @property
    def log(self) -> pathlib.Path:
        return LOGS / f"{self.name.replace('/', '-')}.log"

    @property
    def report(self) -> pathlib.Path:
        return self.log.with_suffix(".xml")

    @property
    def journals(self) -> pathlib.Path:
        """Where molecule/_lab/destroy.yml keeps the journals of the scenario's hosts."""
        return ROOT / ".cache" / "journals" / (self.scenario or "none")


@dataclasses.dataclass(frozen=True)
class Result:
    """How a job has ended, in how many seconds; its tests, and itself where it is a check."""

    job: Job
    seconds: float
    passed: int
    failed: int
    failures: tuple[str, ...] = ()


class Runner:
    """Runs jobs, each for so many minutes, and ends those it has started when told to stop."""

    def __init__(self, minutes: int) -> None:
        self.seconds = minutes * 60
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line of progress with the seconds since the start."""
        with self.lock:
            print(f"[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)

    def run(self, job: Job) -> Result:
        """Run a job to its end and tell how it went."""
        started = time.monotonic()
        self.say(f"{job.name} ...")
        shutil.rmtree(job.journals, ignore_errors=True)
        with job.log.open("wb") as log:
            status = self.execute(job, log.fileno())
        if job.scenario:
            self.take_down(job)
        passed, failed = count(job, status)
        seconds = time.monotonic() - started
        if failed and not self.stopped:
            self.show(job)
        self.say(f"{job.name}: {'FAILED' if failed else 'passed'} after {seconds:.0f} s")
        return Result(job, seconds, passed, failed, tuple(failures(job)) if failed else ())

    def show(self, job: Job) -> None:
        """Print all that a failed job has said, and what the journals of its hosts warn of."""
        with self.lock:
            for path in [job.log, *sorted(job.journals.glob("*.log"))]:
                text = path.read_text(errors="replace")
                print(f"\n===== {job.name}: {path.name} =====\n{text}", flush=True)

    def execute(self, job: Job, log: int) -> int:
        """Run the job's command in a session of its own and return its exit status."""
        with self.lock:
            if self.stopped:
                return 1
            process = subprocess.Popen(
                job.command,
                cwd=ROOT,
                env=environment(job),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self.running.add(process)
        try:
            return process.wait(self.seconds)
        except subprocess.TimeoutExpired:
            os.write(log, f"\nnot done after {self.seconds} s\n".encode())
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait()
        finally:
            with self.lock:
                self.running.discard(process)

    def take_down(self, job: Job) -> None:
        """Remove the scenario's lab if Molecule has not; an error here is one of the run."""
        command = [str(BIN / "python"), str(LAB), "down", f"@{job.scenario}"]
        subprocess.run([*command, "--journals", str(job.journals)], check=True)

    def stop(self) -> None:
        """End all jobs that are running, and start no more."""
        with self.lock:
            self.stopped = True
            running = list(self.running)
        for process in running:
            # Its own session: this reaches what the job has started, and nothing else.
            os.killpg(process.pid, signal.SIGTERM)


def environment(job: Job) -> dict[str, str]:
    """Return the environment of a job: this checkout's tools first, and plain output."""
    env = dict(os.environ, PATH=f"{BIN}:{os.environ['PATH']}", NO_COLOR="1", PY_COLORS="0")
    env |= {"ANSIBLE_NOCOLOR": "1", "MOLECULE_COMMAND_BORDERS": "false"}
    if job.junit:
        # Reaches pytest also through Molecule.
        hangs = f"-o faulthandler_timeout={TEST_SECONDS} -o faulthandler_exit_on_timeout=true"
        env["PYTEST_ADDOPTS"] = f"--junitxml={job.report} {hangs}"
    return env


def count(job: Job, status: int) -> tuple[int, int]:
    """Return how many checks of a job have passed and failed, given its exit status."""
    passed = failed = 0
    if job.junit and job.report.exists():
        for suite in ElementTree.parse(job.report).getroot().iter("testsuite"):
            number = {
                key: int(suite.get(key, 0)) for key in ("tests", "errors", "failures", "skipped")
            }
            # A test that was skipped has proven nothing.
            bad = number["errors"] + number["failures"] + number["skipped"]
            passed, failed = passed + number["tests"] - bad, failed + bad
    if job.scenario or not job.junit:
        passed, failed = passed + (status == 0), failed + (status != 0)
    elif not passed + failed or (status and not failed):
        failed += 1  # pytest itself has failed, or has found no tests
    return passed, failed


def failures(job: Job) -> Iterator[str]:
    """Yield a line for each test of a failed job that did not pass, or one for the job."""
    cases = ElementTree.parse(job.report).iter("testcase") if job.report.exists() else ()
    named = False
    for case in cases:
        for bad in ("error", "failure", "skipped"):
            if (found := case.find(bad)) is not None:
                said = " ".join(found.get("message", "").split())[:SAID]
                yield f"{job.name}: {case.get('name')}: {said}"
                named = True
    if not named:
        yield f"{job.name}: see its log above"


def lint_jobs(linters: dict[str, list[str]] = LINTERS) -> list[Job]:
    """Return one job for each linter."""
    return [Job(f"lint/{name}", (*BESIDE, *command)) for name, command in linters.items()]


def pytest_job(name: str, *words: str, prefix: tuple[str, ...] = BESIDE) -> Job:
    """Return one run of pytest; hypothesis's profile for CI has no limits of time."""
    options = ("--quiet", "-p", "no:cacheprovider", "--hypothesis-profile=ci")
    return Job(name, (*prefix, "pytest", *options, *words), junit=True)


def pure_job() -> Job:
    """Return the job of all unit tests that start neither Ansible nor a worker."""
    return pytest_job("unit/pure", "-m", "not playbook", *UNIT_TESTS)


def unit_jobs() -> list[Job]:
    """Return the jobs of the unit tests; app/ runs without nice, as its workers must beat."""
    return [
        pure_job(),
        pytest_job("unit/playbooks", "-m", "playbook", "tests"),
        pytest_job("unit/app/tests", "app/tests", prefix=()),
        Job("unit/app/tests-oldest", ("tools/oldest.sh",), junit=True),
    ]


def quick_jobs() -> list[Job]:
    """Return what answers within a minute; a program that a check needs ends the run."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        packages = sorted({PROGRAMS[name] for name in missing})
        sys.exit(
            f"test.py: the checks need programs that are not installed: {', '.join(missing)}\n"
            f"  Fix: apt-get install {' '.join(packages)}. No check was run."
        )
    return [pure_job(), *lint_jobs(LINTERS | QUICK_LINTERS)]


def scenario_jobs(wanted: list[str]) -> list[Job]:
    """Return one job for each scenario, or for those wanted; an unknown name ends the run."""
    known = sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        sys.exit(f"test.py: no scenario {unknown[0]!r}, only: {', '.join(known)}")
    return [
        Job(
            f"molecule/{name}",
            ("molecule", "test", "--scenario-name", name),
            junit=True,
            scenario=name,
        )
        for name in wanted or sorted(known, key=lambda name: name not in FIRST)
    ]


def run_all(jobs: list[Job], minutes: int) -> list[Result]:
    """Run the jobs, a few at a time, and return their results in the jobs' order."""
    runner = Runner(minutes)
    beside_scenarios = any(job.scenario for job in jobs)

    def interrupted(number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt(signal.Signals(number).name)

    signal.signal(signal.SIGTERM, interrupted)
    with (
        ThreadPoolExecutor(SCENARIOS_AT_ONCE) as scenarios,
        ThreadPoolExecutor(CHECKS_AT_ONCE if beside_scenarios else QUICK_AT_ONCE) as checks,
    ):
        futures: list[Future[Result]] = [
            (scenarios if job.scenario else checks).submit(runner.run, job) for job in jobs
        ]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            # A second Ctrl-C must not keep the hosts from being taken down.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            runner.say("stopping, and taking the hosts down")
            runner.stop()
            for pool in (scenarios, checks):
                pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def report(results: list[Result], seconds: float) -> int:
    """Print the times and the sums, and return the exit status."""
    print(f"\n{'':<40}{'time':>8}{'passed':>8}{'failed':>8}")
    for result in results:
        row = f"{result.job.name:<40}{result.seconds:>6.0f} s{result.passed:>8}"
        print(f"{row}{result.failed or '':>8}")
    print(f"{'all, three at a time':<40}{seconds:>6.0f} s\n")
    lines = [line for result in results for line in result.failures]
    if lines:
        print("Failed:", *lines, sep="\n  ", end="\n\n")
    passed = sum(result.passed for result in results)
    failed = sum(result.failed for result in results)
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def main() -> int:
    """Run what the command line asks for and return the exit status."""
    parser = argparse.ArgumentParser(description="Run the project's checks.")
    parser.add_argument(
        "kind", nargs="?", choices=["all", "lint", "unit", "quick", "molecule"], default="all"
    )
    parser.add_argument("scenarios", nargs="*", metavar="NAME")
    parser.add_argument(
        "--minutes",
        type=int,
        default=JOB_MINUTES,
        help="a job that takes longer hangs (%(default)s)",
    )
    options = parser.parse_args()
    jobs = {
        "lint": lint_jobs,
        "unit": unit_jobs,
        "quick": quick_jobs,
        "molecule": lambda: scenario_jobs(options.scenarios),
        "all": lambda: [*lint_jobs(), *unit_jobs(), *scenario_jobs([])],
    }[options.kind]()
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    started = time.monotonic()
    try:
        results = run_all(jobs, options.minutes)
        return report(results, time.monotonic() - started)
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted {interrupt}", flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main())
