#!/usr/bin/env python3
"""Measure what a run of site.yml costs, on two throwaway hosts: one with 4 queues, one with many.

    run.py                              print the table; exit 1 when a target is missed
    run.py --markdown docs/bench.md     and write it there, with versions and the date
    run.py --queues 50 --repeat 3       fewer queues, fewer runs

No single number is worth much on a busy machine, so runs take turns and targets are ratios within
a turn. While one host is measured the other stands still (its cgroup is frozen).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

ROOT = pathlib.Path(__file__).resolve().parents[1]
BIN = pathlib.Path(sys.executable).parent
sys.path.insert(0, str(ROOT / "molecule" / "_lab"))

import lab  # noqa: E402
import pools  # noqa: E402

FEW = 4
# What the plan grants a worker; its main process takes some 45 MB really.
WORKER_MB = 100
# The plan's for /tmp, by default.
TMP_MB = 64
REAL_MB = 60
# Most of no-change site.yml : floor, and of many queues : few queues.
FLOOR_RATIO = 3.0
QUEUES_RATIO = 1.3
# From git commit until all workers run the code, on a machine with 2 CPUs.
COMMIT_SECONDS = 60
# A host that was frozen has some work to catch up on.
SETTLE_SECONDS = 2
IDLE_SECONDS = 10
# The rate is taken between these two, so that what every run of the sample costs cancels out.
TASK_COUNTS = (500, 4500)
SLOWEST = 8
STARTING = "(ansible-playbook starts)"
STARTED = time.monotonic()


class BenchError(Exception):
    """The measurement could not be made; its text is all that is printed."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A task as the run has named it, and the seconds until the next one."""

    name: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a playbook; the first of its tasks is its start."""

    seconds: float
    tasks: tuple[Task, ...]
    changed: int

    @property
    def names(self) -> list[str]:
        """What was executed or skipped, in order."""
        return [task.name for task in self.tasks[1:]]


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table; `passed` is None where there is no target."""

    what: str
    value: str
    spread: str = ""
    target: str = ""
    passed: bool | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """All that was measured; a rate's key names what was loaded."""

    queues: int
    floor: list[Run]
    few: list[Run]
    many: list[Run]
    deployments: dict[int, Run]
    commits: list[Run]
    restarted: list[str]
    idle_cpus: dict[int, float]
    rates: dict[str, float]


# --- pure parts -----------------------------------------------------------------------------------


def queues(number: int) -> list[dict[str, str | int]]:
    """Declare this many queues, the sample's own first; solo: one process each."""
    names = ["add_queue", "multiply_queue", *(f"bench_{i:03}" for i in range(3, number + 1))]
    return [
        {"name": name, "pool": "solo", "memory_per_process_mb": WORKER_MB}
        for name in names[:number]
    ]


def host_memory_mb(number: int) -> int:
    """Memory a host must show for a plan of this many queues: 72% is left for workers."""
    return max(8192, number * (WORKER_MB + TMP_MB) * 100 // 70)


def inventory(hosts: str, name: str, declared: list[dict[str, str | int]]) -> str:
    """Return the lab's inventory (text) reduced to one host, which also gets the queues."""
    variables = json.loads(hosts)["all"]["hosts"][name]
    group: dict[str, Any] = {"hosts": {name: {}}}
    return json.dumps(
        {
            "all": {
                "hosts": {name: variables | {"celery_queues": declared}},
                "children": {"celery": group, "redis": group},
            }
        }
    )


def task_name(line: str) -> str | None:
    """Return the name in a heading of ansible-playbook's output such as `TASK [Look] ***`."""
    found = re.match(r"(?:TASK|RUNNING HANDLER) \[(.*)\] \*+$", line)
    return found[1] if found else None


def changed(output: str) -> int:
    """Return how many changes the recap counts, over all hosts; BenchError without a recap."""
    recap = output.partition("PLAY RECAP")[2]
    found = re.findall(r"^\S+ +: ok=\d+ +changed=(\d+)", recap, re.M)
    if not found:
        raise BenchError(f"ansible-playbook has printed no recap:\n{output[-2000:]}")
    return sum(map(int, found))


def ratios(above: Sequence[Run], below: Sequence[Run]) -> list[float]:
    """Return the ratio of each turn: what slows a turn down slows both of its runs."""
    return [one.seconds / other.seconds for one, other in zip(above, below, strict=True)]


def differences(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Return where two lists of tasks differ, one line each; an empty list when they are equal."""
    length = max(len(one), len(other))
    padded = ([*names, *["-"] * (length - len(names))] for names in (one, other))
    return [
        f"task {number}: {a!r} / {b!r}"
        for number, (a, b) in enumerate(zip(*padded, strict=True), 1)
        if a != b
    ]


def spread(values: Sequence[float], form: str) -> tuple[str, str]:
    """Return the median and `min .. max` as text."""
    low, high = format(min(values), form), format(max(values), form)
    return format(statistics.median(values), form), f"{low} .. {high}"


def seconds_row(what: str, runs: Sequence[Run]) -> Row:
    """Return the line for the durations of some runs."""
    median, around = spread([run.seconds for run in runs], ".2f")
    return Row(what, f"{median} s", around)


def ratio_row(what: str, values: Sequence[float], most: float) -> Row:
    """Return the line for a ratio that has a target."""
    median, around = spread(values, ".2f")
    return Row(what, median, around, f"<= {most}", statistics.median(values) <= most)


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return cells as plain text in columns; those not in `left` end at the same place."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def table(rows: Sequence[Row]) -> str:
    """Return the lines of the table, under a heading."""
    verdict = {None: "", True: "pass", False: "MISSED"}
    cells = [(it.what, it.value, it.spread, it.target, verdict[it.passed]) for it in rows]
    return aligned([("", "median", "min .. max", "target", ""), *cells], left=(0, 4))


def task_seconds(runs: Sequence[Run]) -> dict[str, float]:
    """Return the median seconds that tasks of one name take together in a run."""
    sums: dict[str, list[float]] = {}
    for run in runs:
        one: dict[str, float] = {}
        for task in run.tasks:
            one[task.name] = one.get(task.name, 0) + task.seconds
        for name, seconds in one.items():
            sums.setdefault(name, []).append(seconds)
    return {name: statistics.median(values) for name, values in sums.items()}


def slowest_table(few: Sequence[Run], many: Sequence[Run], number: int) -> str:
    """Return where the time of a run without changes goes: the slowest tasks, and all others."""
    short, long = task_seconds(few), task_seconds(many)
    names = sorted(long, key=lambda name: long[name], reverse=True)
    shown, rest = names[:SLOWEST], names[SLOWEST:]
    rows = [(name, f"{short.get(name, 0):.2f} s", f"{long[name]:.2f} s") for name in shown]
    sums = (f"{sum(side.get(name, 0) for name in rest):.2f} s" for side in (short, long))
    head = ("where the time goes (medians)", f"{FEW} queues", f"{number} queues")
    return aligned([head, *rows, (f"{len(rest)} others", *sums)])


def result_rows(results: Results) -> list[Row]:
    """Return the table's lines."""
    number = results.queues
    counts = [len(runs[0].names) for runs in (results.few, results.many)]
    runs = [*results.few, *results.many]
    different = {tuple(run.names) for run in runs}
    changes = sum(run.changed for run in runs)
    rows = [
        seconds_row("floor: facts and one module", results.floor),
        seconds_row(f"no change, {FEW} queues", results.few),
        seconds_row(f"no change, {number} queues", results.many),
        ratio_row(f"{FEW} queues : floor", ratios(results.few, results.floor), FLOOR_RATIO),
        ratio_row(
            f"{number} queues : {FEW} queues", ratios(results.many, results.few), QUEUES_RATIO
        ),
        Row(f"tasks of {FEW} queues", str(counts[0])),
        Row(f"tasks of {number} queues", str(counts[1]), "", "the same", len(different) == 1),
        Row("changes in all these runs", str(changes), "", "0", changes == 0),
        Row("units restarted by them", str(len(results.restarted)), "", "0", not results.restarted),
    ]
    for count, run in results.deployments.items():
        images = sum(task.seconds for task in run.tasks if task.name.startswith("image : "))
        rows.append(Row(f"first deployment, {count} queues", f"{run.seconds:.0f} s"))
        rows.append(Row("  of these for building images", f"{images:.0f} s"))
    median, around = spread([run.seconds for run in results.commits], ".1f")
    passed = float(median) < COMMIT_SECONDS
    rows.append(
        Row(
            "a commit of the code, on all workers",
            f"{median} s",
            around,
            f"< {COMMIT_SECONDS} s",
            passed,
        )
    )
    for count, cpus in results.idle_cpus.items():
        rows.append(Row(f"CPU of an idle host, {count} queues", f"{100 * cpus:.1f} %"))
    for what, rate in results.rates.items():
        rows.append(Row(f"tasks/s, {what}", f"{rate:.0f}"))
    return rows


def markdown(date: str, made_with: str, tables: Sequence[str], command: str) -> str:
    """Return the page for the documentation."""
    fenced = "\n".join(f"```text\n{text}\n```\n" for text in tables)
    return (
        "# What a run costs\n\n"
        f"Written by `{command}` on {date}; `make bench` measures again on this machine.\n\n"
        f"{fenced}\n"
        f"Measured with {made_with}.\n\n"
        "Controller and hosts share this machine. Runs take turns, each ratio is between two runs\n"
        "of the same turn, and the other host stands still meanwhile. *floor* is\n"
        "`bench/floor.yml`: it gathers facts and looks at one service. *no change* is `site.yml`\n"
        "on a host that already is as declared. The first deployment starts from a host with\n"
        "podman and without images, and ends when every worker consumes. *a commit* begins with\n"
        f"`git commit` of an app in a repository, and ends when all {FEW} workers run it.\n"
        "100 % of CPU is one CPU.\n"
    )


# --- the machine ----------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def environment() -> dict[str, str]:
    """Return the environment of ansible-playbook: this project's settings and no others."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    env |= {"PATH": f"{BIN}:{os.environ['PATH']}", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    # A task's heading must come when the task begins, and not only when there is a result to show.
    shown = {"ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true", "ANSIBLE_DISPLAY_OK_HOSTS": "true"}
    return env | shown | {"ANSIBLE_NOCOLOR": "1"}


def play(playbook: pathlib.Path, hosts: pathlib.Path, *words: str) -> Run:
    """Run a playbook; BenchError with the end of its output if it fails."""
    started = time.monotonic()
    process = subprocess.Popen(
        [str(BIN / "ansible-playbook"), "-i", str(hosts), str(playbook), *words],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines, begun = [], [(STARTING, started)]
    try:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            name = task_name(line.rstrip("\n"))
            if name is not None:
                begun.append((name, time.monotonic()))
        status = process.wait()
    except BaseException:
        # Its own session: this reaches what it has started, and nothing else.
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    ended = time.monotonic()
    output = "".join(lines)
    if status:
        raise BenchError(f"{playbook.name}: status {status}\n{output[-6000:]}")
    ends = [*(begin for _, begin in begun[1:]), ended]
    tasks = (Task(name, end - begin) for (name, begin), end in zip(begun, ends, strict=True))
    return Run(ended - started, tuple(tasks), changed(output))


def on_host(site: lab.Lab, host: lab.Host, command: str) -> str:
    """Run a command on a host and return its output."""
    return lab.run(*lab.ssh(site, host), command)


@contextlib.contextmanager
def frozen(host: lab.Host) -> Iterator[None]:
    """Let no process of the host run meanwhile: for seconds, or its workers' watchdogs end them."""
    switch = lab.host_cgroup(host) / "cgroup.freeze"
    switch.write_text("1")
    try:
        yield
    finally:
        switch.write_text("0")


def invocations(site: lab.Lab, host: lab.Host) -> dict[str, str]:
    """Return {unit: InvocationID} of all our units: one that has restarted has another."""
    text = on_host(site, host, "systemctl show --property=Id,InvocationID 'celery*'")
    blocks = (block.splitlines() for block in text.strip().split("\n\n"))
    units = (dict(line.split("=", 1) for line in block) for block in blocks)
    return {unit["Id"]: unit["InvocationID"] for unit in units}


def cpu_seconds(host: lab.Host) -> float:
    """Return the CPU time that the host's processes have taken so far."""
    text = (lab.host_cgroup(host) / "cpu.stat").read_text()
    return int(dict(line.split() for line in text.splitlines())["usage_usec"]) / 1e6


def in_worker(site: lab.Lab, host: lab.Host, *command: str) -> str:
    """Run a command in the container of the first queue's worker."""
    return on_host(site, host, shlex.join(["podman", "exec", "celery-add_queue-1", *command]))


def task_rate(site: lab.Lab, host: lab.Host, names: Sequence[str]) -> float:
    """Return how many tasks a second these queues do together, all loaded at once."""
    chosen = [word for name in names for word in ("--queue", name)]
    points: list[tuple[int, float]] = []
    for count in TASK_COUNTS:
        words = ["--count", str(count), "--timeout", "300", "--json", *chosen]
        reports = json.loads(in_worker(site, host, "python", "-m", "metal_sample.smoke", *words))
        done = sum(report["done"] for report in reports.values())
        points.append((done, max(report["seconds"] for report in reports.values())))
    (done, seconds), (more, longer) = points
    return (more - done) / (longer - seconds)


def versions(site: lab.Lab, host: lab.Host) -> str:
    """Return what the figures depend on."""
    celery = "import celery; print(celery.__version__)"
    used = {
        "python": platform.python_version(),
        "ansible-core": importlib.metadata.version("ansible-core"),
        "podman": on_host(site, host, "podman --version").split()[-1],
        "celery": in_worker(site, host, "python", "-c", celery).strip(),
    }
    text = ", ".join(f"{name} {version}" for name, version in used.items())
    return f"{text}, on a machine with {len(os.sched_getaffinity(0))} CPUs"


def turns(
    site: lab.Lab, few: lab.Host, many: lab.Host, work: pathlib.Path, repeat: int
) -> tuple[list[Run], list[Run], list[Run]]:
    """Return the runs of the floor, and of site.yml without changes on both hosts."""
    kinds = (
        ("floor", few, many, ROOT / "bench" / "floor.yml"),
        (few.name, few, many, ROOT / "site.yml"),
        (many.name, many, few, ROOT / "site.yml"),
    )
    runs: dict[str, list[Run]] = {name: [] for name, *_ in kinds}
    # The turn 0 warms up connections and caches, and does not count.
    for turn in range(repeat + 1):
        took = []
        for name, host, other, playbook in kinds:
            with frozen(other):
                time.sleep(SETTLE_SECONDS)
                run = play(playbook, work / f"{host.name}.json")
            took.append(f"{name} {run.seconds:.2f} s")
            if turn:
                runs[name].append(run)
        say(f"turn {turn} of {repeat}: {', '.join(took)}")
    return runs["floor"], runs[few.name], runs[many.name]


def git(repository: pathlib.Path, *words: str) -> None:
    """Run git on a repository, as nobody in particular."""
    names = {
        f"GIT_{who}_{what}": "bench"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    subprocess.run(["git", "-C", repository, *words], env=os.environ | names, check=True)


def commits(site: lab.Lab, host: lab.Host, hosts: pathlib.Path, work: pathlib.Path) -> list[Run]:
    """Return the runs that bring commits of the app's code, the last of them the deployed one."""
    repository = work / "app"
    shutil.copytree(
        ROOT / "app" / "sample", repository, ignore=shutil.ignore_patterns("__pycache__")
    )
    git(repository, "init", "--quiet")
    tasks = repository / "metal_sample" / "tasks.py"
    code, runs = tasks.read_text(), []
    for text in (f"{code}# one\n", f"{code}# two\n", code):
        tasks.write_text(text)
        git(repository, "add", "--all", "--force")
        git(repository, "commit", "--quiet", "--message=code")
        before = images(site, host)
        run = play(ROOT / "site.yml", hosts, "-e", f"image_app_source=file://{repository}")
        if len(images(site, host)) != 1 or images(site, host) & before:
            raise BenchError(f"not all workers run the commit: {images(site, host)}")
        say(f"a commit of the code: {run.seconds:.1f} s")
        runs.append(run)
    return runs


def images(site: lab.Lab, host: lab.Host) -> set[str]:
    """Return the images that workers run."""
    shown = "podman ps --filter label=celery-metal.base --format '{{.Image}}'"
    return set(on_host(site, host, shown).split())


def measure(site: lab.Lab, work: pathlib.Path, number: int, repeat: int) -> Results:
    """Deploy both hosts and measure everything."""
    few, many = site.hosts
    text = lab.render_inventory(site)
    counts = {few: FEW, many: number}
    deployments, idle, rates, changes = {}, {}, {}, []
    names = [str(queue["name"]) for queue in queues(FEW)]
    for host, count in counts.items():
        path = work / f"{host.name}.json"
        path.write_text(inventory(text, host.name, queues(count)))
        say(f"first deployment, {count} queues ...")
        deployments[count] = play(ROOT / "site.yml", path)
        say(f"first deployment, {count} queues: {deployments[count].seconds:.0f} s")
        if host is few:
            # Now, while the other host has no workers that take CPU.
            for what, chosen in ((f"1 of {FEW} queues", names[:1]), (f"{FEW} queues", names)):
                rates[what] = task_rate(site, few, chosen)
                say(f"tasks, {what}: {rates[what]:.0f} a second")
            changes = commits(site, few, path, work)
    say(f"idle hosts, {IDLE_SECONDS} s ...")
    time.sleep(SETTLE_SECONDS)
    before = {host: cpu_seconds(host) for host in counts}
    time.sleep(IDLE_SECONDS)
    for host, count in counts.items():
        idle[count] = (cpu_seconds(host) - before[host]) / IDLE_SECONDS
    ids = {host: invocations(site, host) for host in counts}
    floor, short, long = turns(site, few, many, work, repeat)
    restarted = [
        f"{host.name}: {unit}"
        for host in counts
        for unit, invocation in invocations(site, host).items()
        if ids[host].get(unit) != invocation
    ]
    return Results(number, floor, short, long, deployments, changes, restarted, idle, rates)


def bench(number: int, repeat: int, page: pathlib.Path | None) -> int:
    """Boot, measure and report; return the exit status."""
    name = lab.full_name("@bench")
    platforms = tuple(
        lab.Platform(host, ("celery", "redis"), memory_mb=host_memory_mb(number))
        for host in ("few", "many")
    )
    try:
        # What a killed run has left.
        lab.down(name)
        say("booting two hosts ...")
        lab.up(name, platforms)
        site = lab.load_or_fail(name)
        with tempfile.TemporaryDirectory(prefix="celery-metal-bench-") as work:
            results = measure(site, pathlib.Path(work), number, repeat)
        made_with = versions(site, site.hosts[0])
    finally:
        # A second Ctrl-C must not keep the hosts from being taken down.
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, signal.SIG_IGN)
        say("taking the hosts down")
        lab.down(name)
    rows = result_rows(results)
    tables = [table(rows), slowest_table(results.few, results.many, number)]
    print("\n" + "\n\n".join([*tables, made_with]) + "\n")
    for line in differences(results.few[0].names, results.many[0].names):
        print(f"{FEW} / {number} queues: {line}")
    for line in results.restarted:
        print(f"restarted: {line}")
    if page:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        command = f"bench/run.py --queues {number} --repeat {repeat}"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(markdown(today, made_with, tables, command) + pools.kept(page))
        print(f"written: {page}")
    missed = [row for row in rows if row.passed is False]
    print(f"{len(missed)} targets missed" if missed else "all targets met", flush=True)
    return 1 if missed else 0


def check_machine(number: int) -> None:
    """BenchError when this machine cannot hold so many workers."""
    if os.geteuid() != 0:
        raise BenchError("test hosts need root")
    text = pathlib.Path("/proc/meminfo").read_text()
    available = int(re.findall(r"^MemAvailable: +(\d+)", text, re.M)[0]) // 1024
    needed = (number + FEW) * REAL_MB
    if needed > available:
        raise BenchError(
            f"{number} queues take some {needed} MB, and {available} MB are free: fewer --queues"
        )


def interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    """End as with Ctrl-C, so that the hosts are taken down."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    """Run what the command line asks for and return the exit status."""
    parser = argparse.ArgumentParser(description="Measure what a run of site.yml costs.")
    parser.add_argument("--queues", type=int, default=100, metavar="N", help="many (%(default)s)")
    parser.add_argument("--repeat", type=int, default=7, metavar="N", help="turns (%(default)s)")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write a page, too")
    options = parser.parse_args()
    if options.queues <= FEW or options.repeat < 1:
        parser.error(f"--queues must be more than {FEW}, and --repeat 1 or more")
    signal.signal(signal.SIGTERM, interrupted)
    with pathlib.Path(__file__).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("bench: already running in this checkout")
        try:
            check_machine(options.queues)
            return bench(options.queues, options.repeat, options.markdown)
        except (BenchError, lab.LabError) as problem:
            sys.exit(f"bench: {problem}")
        except KeyboardInterrupt as interrupt:
            print(f"bench: interrupted {interrupt}", file=sys.stderr)
            return 130


if __name__ == "__main__":
    sys.exit(main())
