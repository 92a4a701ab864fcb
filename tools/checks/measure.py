"""What a job has cost: the seconds of each phase, CPU seconds, and its slowest tests."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from checks.jobs import Job

PHASES = ("create", "prepare", "converge", "idempotence", "verify", "destroy")
# Molecule's own lines, such as "INFO     [default > converge] Executing".
BEGUN = re.compile(r"^INFO +\[\S+ > (\w+)\] Executing$")
ENDED = re.compile(r"^INFO +\[\S+ > (\w+)\] Executed\b")
# Of what a failed test says, so much: a line, and no more, is what it is shown in.
SAID = 200


@dataclasses.dataclass(frozen=True)
class Test:
    """One test case of a report: its name and its seconds, fixtures included."""

    name: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Result:
    """How a job ended.

    Attributes:
        seconds: from its start to its end, by the clock.
        cpu_seconds: CPU time of its processes and of its hosts.
        phases: seconds of each phase of a scenario, the two of "destroy" added up.
        passed: tests that passed, and the job itself where it is a check.
        failed: tests that failed or were skipped, and the job itself where it is a check.
        failures: a line for each of those that failed.
        tests: all test cases of its report.
    """

    job: Job
    seconds: float
    cpu_seconds: float
    phases: dict[str, float]
    passed: int
    failed: int
    failures: tuple[str, ...] = ()
    tests: tuple[Test, ...] = ()


class Phases:
    """Follows the log of a scenario while it grows, and adds up the seconds of each phase."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.offset = 0
        self.seconds: dict[str, float] = {}
        self.begun: dict[str, float] = {}

    def look(self, moment: float) -> None:
        """Read what the log has got since the last look, at a moment in seconds."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self.offset += whole
        for line in text[:whole].decode(errors="replace").splitlines():
            self.line(line, moment)

    def line(self, line: str, moment: float) -> None:
        """Take one line of Molecule's, read at a moment in seconds."""
        if begun := BEGUN.match(line):
            self.begun[begun[1]] = moment
        elif (ended := ENDED.match(line)) and ended[1] in self.begun:
            name = ended[1]
            spent = moment - self.begun.pop(name)
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


def cases(report: pathlib.Path) -> list[ElementTree.Element]:
    """Return the test cases of a JUnit report; none if there is no report."""
    return list(ElementTree.parse(report).iter("testcase")) if report.exists() else []


def read_tests(report: pathlib.Path) -> tuple[Test, ...]:
    """Return the test cases of a JUnit report with their seconds."""
    return tuple(Test(case.get("name", ""), float(case.get("time", 0))) for case in cases(report))


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
    named = False
    for case in cases(job.report):
        for bad in ("error", "failure", "skipped"):
            if (found := case.find(bad)) is not None:
                said = " ".join(found.get("message", "").split())[:SAID]
                yield f"{job.name}: {case.get('name')}: {said}"
                named = True
    if not named:
        yield f"{job.name}: see its log above"


def budget(results: list[Result], minutes: float, slowness: float) -> Result:
    """Return a check of its own: all checks together used no more than so many CPU minutes.

    How long they take depends on what else the machine does, also outside of it, and so does their
    CPU time.

    Args:
        minutes: of a machine on which the work takes load.YARDSTICK_SECONDS.
        slowness: how many times as long the same work took on this one, in this run.
    """
    used = sum(result.cpu_seconds for result in results) / 60 / slowness
    kept = used <= minutes
    failure = (
        f"checks/budget: {used:.1f} CPU minutes, more than the {minutes:.0f} they may use "
        f"(here {used * slowness:.1f}, on a machine that takes {slowness:.2f} times as long)"
    )
    return Result(
        job=Job("checks/budget", ()),
        seconds=0.0,
        cpu_seconds=0.0,
        phases={},
        passed=int(kept),
        failed=int(not kept),
        failures=() if kept else (failure,),
    )


def hosts_cpu(kept: pathlib.Path) -> float:
    """Return the CPU seconds that the lab has noted for a scenario's hosts (lab.py down)."""
    path = kept / "cpu.json"
    return float(sum(json.loads(path.read_text()).values())) if path.exists() else 0.0


def slowest(results: list[Result], most: int) -> list[tuple[str, Test]]:
    """Return the slowest tests of all jobs, each with the name of its job."""
    every = [(result.job.name, test) for result in results for test in result.tests]
    return sorted(every, key=lambda one: one[1].seconds, reverse=True)[:most]


def as_json(results: list[Result], seconds: float) -> str:
    """Return all that was measured as JSON, jobs by name."""
    jobs = {
        result.job.name: {
            "seconds": round(result.seconds, 1),
            "cpu_seconds": round(result.cpu_seconds, 1),
            "phases": {name: round(spent, 1) for name, spent in result.phases.items()},
            "passed": result.passed,
            "failed": result.failed,
            "slowest": {
                test.name: round(test.seconds, 1) for _, test in slowest([result], most=10)
            },
        }
        for result in sorted(results, key=lambda result: result.job.name)
    }
    cpu = round(sum(result.cpu_seconds for result in results), 1)
    return json.dumps({"seconds": round(seconds, 1), "cpu_seconds": cpu, "jobs": jobs}, indent=2)


def table(results: list[Result], seconds: float, most: int = 10) -> str:
    """Return the times of all jobs, by phase, and the slowest tests, as text."""
    head = f"{'':<26}{'time':>7}{'CPU':>7}" + "".join(f"{name[:9]:>10}" for name in PHASES)
    lines = [f"{head}{'passed':>8}{'failed':>8}"]
    for result in results:
        row = f"{result.job.name:<26}{result.seconds:>7.0f}{result.cpu_seconds:>7.0f}"
        for name in PHASES:
            spent = result.phases.get(name)
            row += f"{'' if spent is None else format(spent, '.0f'):>10}"
        lines.append(f"{row}{result.passed:>8}{result.failed or '':>8}")
    cpu = sum(result.cpu_seconds for result in results)
    lines += [f"{'all, in seconds':<26}{seconds:>7.0f}{cpu:>7.0f}", "", "The slowest tests:"]
    lines += [f"{test.seconds:>7.0f} s  {job}: {test.name}" for job, test in slowest(results, most)]
    return "\n".join(lines)
