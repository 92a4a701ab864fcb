#!/usr/bin/env python3
"""Run all checks of the project: linters, unit tests and Molecule's scenarios.

    test.py                       everything
    test.py lint | unit           only these
    test.py quick                 the linters and the unit tests that take seconds
    test.py molecule [NAME...]    all scenarios, or these
    test.py keep NAME             this one, on hosts that stay for the next call

The longest start first, and one more whenever the CPUs have room for it. What a job prints is in
.cache/test/JOB.log, and is shown if the job fails. At the end stand the seconds of each job by
phase, its CPU seconds, and the slowest tests; .cache/test/times.json has the same. The last line
counts lint checks, tests (those of the scenarios, too) and scenarios: "N passed, N failed". Just
before it stands what failed, a line each. The exit status is 0 if none failed, and 1 if any did.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import time

from checks import jobs, keep, measure, runner

# A job that takes longer hangs: CI as a whole has 90 minutes.
JOB_MINUTES = 40
# All checks together, in CI: a new one pays for its minutes. Of two CPUs: 45 minutes.
BUDGET_CPU_MINUTES = 90
# How the rows begin in docs/testing.md.
ROWS = {"quick": "`make quick`", "keep": "`make molecule S=", "all": "`make test`"}


def wanted(kind: str, scenarios: list[str]) -> list[jobs.Job]:
    """Return the jobs of one kind of checks."""
    if kind == "lint":
        return jobs.lint_jobs()
    if kind == "unit":
        return jobs.unit_jobs()
    if kind == "quick":
        return jobs.quick_jobs()
    if kind in ("molecule", "keep"):
        return jobs.scenario_jobs(scenarios)
    return [*jobs.lint_jobs(), *jobs.unit_jobs(), *jobs.scenario_jobs([])]


def report(results: list[measure.Result], seconds: float, machine: str) -> int:
    """Print the times, what the machine did, and the sums; return the exit status."""
    print(f"\n{measure.table(results, seconds)}\n\n{machine}\n")
    (jobs.LOGS / "times.json").write_text(measure.as_json(results, seconds) + "\n")
    lines = [line for result in results for line in result.failures]
    if lines:
        print("Failed:", *lines, sep="\n  ", end="\n\n")
    passed = sum(result.passed for result in results)
    failed = sum(result.failed for result in results)
    print(f"{passed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def stock() -> None:
    """Have the images ready that the hosts of scenarios start with."""
    subprocess.run([jobs.BIN / "python", jobs.LAB, "stock"], check=True, stdout=sys.stderr)


def record(results: list[measure.Result]) -> None:
    """Keep the seconds of each job: the order of the next runs."""
    seconds = runner.expected() | {one.job.name: round(one.seconds) for one in results}
    runner.RECORD.write_text(json.dumps(seconds, indent=2, sort_keys=True) + "\n")


def write_times(path: pathlib.Path, kind: str, seconds: float, cpu: float) -> None:
    """Write what a kind of checks took into its row of the table in a page."""
    row = rf"^(\| {re.escape(ROWS[kind])}.*?) \| [-0-9]+ \| [-0-9]+ \|$"
    text, found = re.subn(
        row, rf"\g<1> | {seconds:.0f} | {cpu:.0f} |", path.read_text(), count=1, flags=re.M
    )
    if not found:
        sys.exit(f"test.py: {path} has no row {ROWS[kind]!r}")
    path.write_text(text)


def main() -> int:
    """Run what the command line asks for and return the exit status."""
    parser = argparse.ArgumentParser(description="Run the project's checks.")
    parser.add_argument(
        "kind",
        nargs="?",
        choices=["all", "lint", "unit", "quick", "molecule", "keep"],
        default="all",
    )
    parser.add_argument("scenarios", nargs="*", metavar="NAME")
    parser.add_argument(
        "--minutes",
        type=float,
        default=JOB_MINUTES,
        help="a job that takes longer hangs (%(default)s)",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="EXPRESSION",
        help="of a kept scenario, these tests: pytest's -k",
    )
    parser.add_argument(
        "--markdown", type=pathlib.Path, metavar="FILE", help="write the times into its table"
    )
    parser.add_argument(
        "--record", action="store_true", help="keep the seconds of each job, for the order"
    )
    options = parser.parse_args()
    if options.kind == "keep" and len(options.scenarios) != 1:
        parser.error("keep takes the name of one scenario")
    try:
        every = wanted(options.kind, options.scenarios)
    except (jobs.MissingProgramError, jobs.UnknownScenarioError) as error:
        sys.exit(f"test.py: {error}")
    started = time.monotonic()
    if options.kind == "keep":
        (scenario,) = options.scenarios
        stock()
        status = keep.run(scenario, options.only)
        cpu = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        if options.markdown and not status:
            write_times(options.markdown, options.kind, time.monotonic() - started, cpu)
        return status
    shutil.rmtree(jobs.LOGS, ignore_errors=True)
    jobs.LOGS.mkdir(parents=True)
    if any(job.scenario for job in every):
        stock()
    try:
        run = runner.Runner(options.minutes)
        results = run.run_all(every)
    except runner.InterruptedRunError as interrupt:
        print(f"\ninterrupted by {interrupt}", flush=True)
        return 130
    seconds = time.monotonic() - started
    if options.kind == "all" and os.environ.get("CI"):
        results.append(measure.budget(results, BUDGET_CPU_MINUTES, run.meter.slowness))
    status = report(results, seconds, run.meter.summary())
    if options.record:
        record(results)
    if options.markdown and not status:
        cpu = sum(result.cpu_seconds for result in results)
        write_times(options.markdown, options.kind, seconds, cpu)
    return status


if __name__ == "__main__":
    sys.exit(main())
