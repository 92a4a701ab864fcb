"""When a job starts, and what is read of its log, its report and this machine."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checks import load, measure, runner
from checks.jobs import Job

LOG = """INFO     [default > discovery] scenario test matrix: destroy, create
INFO     [default > destroy] Executing
INFO     [default > destroy] Executed: Successful
INFO     [default > create] Executing
TASK [Boot the hosts]
INFO     [default > create] Executed: Successful
"""
REPORT = """<testsuites><testsuite tests="3" errors="0" failures="1" skipped="1">
<testcase name="slow" time="12.5"/>
<testcase name="bad" time="1.0"><failure message="no\nanswer"/></testcase>
<testcase name="left out" time="0"><skipped message="why"/></testcase>
</testsuite></testsuites>
"""


def program(name: str) -> types.ModuleType:
    """A program of tools/; Python has a module `test`, too."""
    path = pathlib.Path(__file__).parents[1] / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tool_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool, versions = program("test"), program("versions")


@pytest.fixture
def job(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr("checks.jobs.LOGS", tmp_path)
    return Job("unit/some", ("true",), junit=True)


def test_a_log_that_grows_gives_the_seconds_of_each_phase(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "log"
    path.write_text("")
    phases = measure.Phases(path)
    lines = LOG.splitlines(keepends=True)
    for moment, line in enumerate([*lines, *lines[1:3]]):
        with path.open("a") as file:
            file.write(line[:-1])
            file.flush()
            phases.look(100.0)  # half a line says nothing yet
            file.write("\n")
        phases.look(float(moment))
    assert phases.seconds == {"destroy": 2.0, "create": 2.0}


def test_what_failed_or_was_skipped_is_counted_and_named(job: Job) -> None:
    job.report.write_text(REPORT)
    assert measure.count(job, status=1) == (1, 2)
    assert list(measure.failures(job)) == ["unit/some: bad: no answer", "unit/some: left out: why"]
    assert measure.read_tests(job.report)[0] == measure.Test("slow", 12.5)


def test_a_run_of_pytest_without_tests_has_failed(job: Job) -> None:
    assert measure.count(job, status=0) == (0, 1)
    job.report.write_text('<testsuite tests="0" errors="0" failures="0" skipped="0"/>')
    assert measure.count(job, status=0) == (0, 1)


def test_checks_that_use_more_cpu_time_than_their_budget_fail(job: Job) -> None:
    half = measure.Result(job, seconds=9999.0, cpu_seconds=1350.0, phases={}, passed=1, failed=0)
    assert measure.budget([half, half], 45, slowness=1.0).failed == 0
    over = [half, half, dataclasses.replace(half, cpu_seconds=60.0)]
    late = measure.budget(over, 45, slowness=1.0)
    assert (late.passed, late.failed) == (0, 1)
    assert "46.0 CPU minutes, more than the 45 they may use" in late.failures[0]
    # The same work on a machine that takes longer for all of it.
    assert measure.budget(over, 45, slowness=1.1).failed == 0
    assert measure.budget([half, half], 45, slowness=0.9).failed == 1


def test_how_slow_a_machine_is_shows_in_a_piece_of_work_that_is_always_the_same() -> None:
    meter = load.Meter()
    assert meter.slowness == 1.0
    for moment in (0.0, 5.0, load.YARDSTICK_EVERY, load.YARDSTICK_EVERY + 1):
        meter.look(moment)
    assert len(meter.yardsticks) == 2
    assert all(seconds > 0 for seconds in meter.yardsticks)
    # One that met a stall says nothing of the others.
    meter.yardsticks = [2 * load.YARDSTICK_SECONDS, 2 * load.YARDSTICK_SECONDS, 99.0]
    assert meter.slowness == pytest.approx(2.0)


def test_the_longest_starts_first_and_one_that_is_unknown_counts_as_long() -> None:
    jobs = [Job(name, ("true",)) for name in ("short", "new", "long")]
    found = runner.in_order(jobs, {"short": 1, "long": runner.UNKNOWN_SECONDS + 1})
    assert [job.name for job in found] == ["long", "new", "short"]


@given(
    running=st.integers(0, 20),
    idle=st.floats(0, 1),
    since=st.floats(0, 100),
    memory=st.integers(0, 100_000),
)
def test_load_and_memory_decide_between_the_bounds(
    running: int, idle: float, since: float, memory: int
) -> None:
    admitted = load.admits(running, idle, since, memory)
    if running < load.AT_LEAST:
        assert admitted
    elif admitted:
        assert running < load.AT_MOST
        assert idle >= load.IDLE_SHARE
        assert since >= load.SETTLE
        assert memory >= load.MEMORY_MB


def test_one_job_without_hosts_runs_beside_the_scenarios() -> None:
    first, second, unit, lint = (
        Job(name, (), scenario=scenario)
        for name, scenario in (("a", "a"), ("b", "b"), ("unit", ""), ("lint", ""))
    )
    asked: list[int] = []

    def full(count: int) -> bool:
        asked.append(count)
        return False

    assert runner.next_job([first, second, unit], [first], full) == unit
    assert runner.next_job([second, lint], [first, unit], full) is None
    assert asked == [1]
    assert runner.next_job([lint, second], [first, unit], lambda count: True) == second
    assert runner.next_job([lint], [unit], lambda count: count == 0) == lint
    assert runner.next_job([], [], lambda count: True) is None


def test_the_share_of_idle_time_is_that_of_the_last_seconds() -> None:
    meter = load.Meter()
    assert meter.idle == 0
    # Idle until 60, then busy: the window forgets what is older.
    for moment in range(100):
        meter.add(load.Sample(float(moment), 200 * moment, 200 * min(moment, 60)))
    assert meter.idle == 0
    meter.add(load.Sample(100.0, 20_000, 12_200))
    assert meter.idle == pytest.approx(0.1, abs=0.01)


def test_a_machine_that_stood_still_is_seen() -> None:
    meter = load.Meter()
    assert meter.summary() == ""
    for moment, part in ((10.0, 0), (11.0, 1), (31.5, 2), (33.0, 4)):
        meter.add(load.Sample(moment, 100 * part, 40 * part, 10 * part, 30 * part))
    assert meter.summary() == (
        "CPUs: 40 % idle (10 % waited for the disk), 30 % stolen; "
        "the longest pause between two looks at them: 20.5 s, at 22 s; "
        "the same work takes 1.00 times as long as the budget is counted in"
    )


def test_the_times_are_written_into_their_row(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "| What | s | CPU |\n|---|---|---|\n| `make quick` | - | 7 |\n| `make test` | 9 | - |\n"
    )
    tool.write_times(page, "quick", 41.4, 60.6)
    assert page.read_text().splitlines()[2:] == [
        "| `make quick` | 41 | 61 |",
        "| `make test` | 9 | - |",
    ]
    page.write_text("nothing\n")
    with pytest.raises(SystemExit, match="has no row"):
        tool.write_times(page, "quick", 1, 1)


def test_each_pair_of_versions_has_its_commits(tmp_path: pathlib.Path) -> None:
    known = versions.pairs()
    assert "5.4-oldest" in known
    taken = {versions.of_commit(f"{number:08x}" * 5, known) for number in range(len(known))}
    assert taken == set(known)
    assert len(versions.head()) == 40
    page = tmp_path / "page.md"
    page.write_text(f"before\n{versions.BEGIN}\nold\n{versions.END}\nafter\n")
    versions.write(page, ["| new |"])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"| new |\n{versions.END}\nafter\n")
    assert "old" not in text
    page.write_text("nothing\n")
    with pytest.raises(SystemExit, match="has no"):
        versions.write(page, [])


def test_a_job_that_hangs_is_ended_and_says_so(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hanging = Job("unit/hanging", ("sleep", "1000"))
    result = runner.Runner(minutes=0.01).run_all([hanging])[0]
    assert (result.passed, result.failed) == (0, 1)
    assert "not done after 1 s" in capsys.readouterr().out


def test_cpu_seconds_are_those_of_all_that_a_job_has_started(job: Job) -> None:
    burn = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
    busy = Job("unit/busy", ("sh", "-c", f"sh -c '{burn}'; true"))
    result = runner.Runner(minutes=2).run_all([busy])[0]
    assert result.passed == 1
    assert 0 < result.cpu_seconds < result.seconds + 1
