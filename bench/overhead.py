#!/usr/bin/env python3
"""Measure the CPU time that a worker takes for a task that does nothing, against another commit.

    overhead.py COMMIT                          print the table; exit 1 when a target is missed
    overhead.py COMMIT --markdown FILE          and write it there, with versions and the date
    overhead.py COMMIT --repeat 3 --tasks 500   fewer turns, fewer tasks

Both runtimes work off the same messages from the same Redis, on a Unix socket of this machine. They
take turns, and the target is the median of the ratios within a turn.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import celery
import kombu
import redis

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "molecule" / "_lab"))

from processes import descendants  # noqa: E402

TASK = "metal_sample.tasks.add"
QUEUE = "overhead"
# Most of this runtime's CPU time : the other one's.
RATIO = 1.03
CONCURRENCY = {"prefork": 2, "threads": 2, "gevent": 100, "solo": 1}
# Until the first task is done, imports and connections are paid for.
WARM_UP = 100
PATIENCE = 120.0
TICKS = os.sysconf("SC_CLK_TCK")


class OverheadError(Exception):
    """The measurement could not be made; its text is all that is printed."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """CPU milliseconds of one task with each runtime, measured one after the other."""

    other: float
    this: float

    @property
    def ratio(self) -> float:
        """This runtime's CPU time in units of the other one's."""
        return self.this / self.other


# --- pure parts -----------------------------------------------------------------------------------


def message(number: str, task: str = TASK, arguments: Sequence[float] = (1, 2)) -> str:
    """Return a task as Celery sends it, without a result; by default for the sample's `add`."""
    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": number,
        "root_id": number,
        "parent_id": None,
    }
    headers |= {"group": None, "eta": None, "expires": None, "retries": 0, "shadow": None}
    headers |= {"timelimit": [None, None], "argsrepr": repr(tuple(arguments)), "kwargsrepr": "{}"}
    headers |= {"origin": "bench@here", "ignore_result": True}
    properties: dict[str, Any] = {"correlation_id": number, "reply_to": number, "delivery_mode": 2}
    properties |= {"delivery_info": {"exchange": "", "routing_key": QUEUE}, "priority": 0}
    properties |= {"body_encoding": "base64", "delivery_tag": number}
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps([arguments, {}, embedded]).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": properties,
        }
    )


def cpu_ticks(stat: str) -> int:
    """Return the clock ticks of a process and of its children that ended, from its /proc/PID/stat.

    The fields 14 to 17 of proc_pid_stat(5): utime, stime, cutime, cstime. The name before them may
    hold spaces and brackets.
    """
    return sum(map(int, stat.rpartition(")")[2].split()[11:15]))


def table(turns: dict[str, list[Turn]], commit: str) -> str:
    """Return a line for each pool: medians of the CPU milliseconds, and of the ratio."""
    rows = [f"{'pool':8}  {commit:>10}  {'now':>8}  {'ratio':>5}  {'min .. max':>12}"]
    for pool, those in turns.items():
        ratios = [one.ratio for one in those]
        other = statistics.median(one.other for one in those)
        this = statistics.median(one.this for one in those)
        around = f"{min(ratios):.2f} .. {max(ratios):.2f}"
        rows.append(
            f"{pool:8}  {other:7.3f} ms  {this:5.3f} ms  {statistics.median(ratios):5.2f}  {around}"
        )
    return "\n".join(rows)


def missed(turns: dict[str, list[Turn]]) -> list[str]:
    """Return the pools whose median ratio is above the target."""
    return [
        pool
        for pool, those in turns.items()
        if statistics.median(one.ratio for one in those) > RATIO
    ]


def markdown(text: str, commit: str, command: str, date: str, made_with: str) -> str:
    """Return the page for the documentation."""
    return (
        "# What a task costs\n\n"
        "CPU time of a worker, its main process and its pool, for a task that does nothing.\n"
        f"Written by `{command}` on {date}; `make overhead AGAINST={commit}` measures again.\n\n"
        f"```text\n{text}\n```\n\n"
        f"Measured with {made_with}. The two runtimes take turns; the ratio is the median of\n"
        f"those within a turn, and the command fails above {RATIO}.\n"
    )


# --- the machine ----------------------------------------------------------------------------------


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; OverheadError when it does not come true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise OverheadError(f"after {PATIENCE:.0f} s still not: {what}")
        time.sleep(0.01)


@contextlib.contextmanager
def broker(folder: pathlib.Path) -> Iterator[redis.Redis]:
    """A Redis of its own on a Unix socket."""
    program = shutil.which("redis-server")
    if not program:
        raise OverheadError("redis-server is not installed: install the package of that name")
    path = folder / "redis.sock"
    words = ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(unix_socket_path=str(path))
        wait_until(path.exists, "redis-server listens")
        yield client
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and of all that descend from it."""
    stats = (pathlib.Path(f"/proc/{one}/stat").read_text() for one in descendants(pid))
    return sum(map(cpu_ticks, stats)) / TICKS


@contextlib.contextmanager
def worker(
    runtime: pathlib.Path, pool: str, folder: pathlib.Path, concurrency: int = 0
) -> Iterator[int]:
    """A worker of this runtime, once it consumes; its process ID.

    `concurrency`: 0 is that of CONCURRENCY.
    """
    address = folder / "notify"
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        ready = threading.Event()
        threading.Thread(target=listen, args=(systemd, ready), daemon=True).start()
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{runtime}:{ROOT / 'app' / 'sample'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NOTIFY_SOCKET": str(address),
            "CELERY_APP": "metal_sample.celery:app",
            "CELERY_METAL_BROKER": f"redis+socket://{folder}/redis.sock?virtual_host=0",
            "CELERY_METAL_QUEUE": QUEUE,
            "CELERY_METAL_POOL": pool,
            "CELERY_METAL_LOGLEVEL": "warning",
            "CONCURRENCY": str(concurrency or CONCURRENCY[pool]),
            # Else the runtime clamps processes to a multiple of the CPUs.
            "CELERY_METAL_PROCESS_FACTOR": "100",
        }
        log = folder / "log"
        with log.open("wb") as out:
            command = [sys.executable, "-m", "celery_metal_runtime"]
            process = subprocess.Popen(command, env=environ, stdout=out, stderr=out, cwd=folder)
        try:
            wait_until(lambda: ready.is_set() or process.poll() is not None, "the worker is ready")
            if process.poll() is not None:
                raise OverheadError(f"the worker has ended:\n{log.read_text()[-3000:]}")
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def listen(systemd: socket.socket, ready: threading.Event) -> None:
    """Take what the worker sends to systemd until it is closed."""
    with contextlib.suppress(OSError):
        while True:
            if b"READY=1" in systemd.recv(4096):
                ready.set()


def milliseconds(
    client: redis.Redis, runtime: pathlib.Path, pool: str, tasks: int, folder: pathlib.Path
) -> float:
    """Return the CPU milliseconds that one task takes."""
    client.flushall()
    with worker(runtime, pool, folder) as pid:
        before = 0.0
        for count in (WARM_UP, tasks):
            before = cpu_seconds(pid)
            client.lpush(QUEUE, *(message(str(uuid.uuid4())) for _ in range(count)))
            wait_until(
                lambda: not client.exists(QUEUE) and not list(client.scan_iter("*held*")),
                "all tasks are done",
            )
        return 1000 * (cpu_seconds(pid) - before) / tasks


def checked_out(commit: str, folder: pathlib.Path) -> pathlib.Path:
    """Return the directory of the runtime of another commit."""
    archive = ["git", "-C", str(ROOT), "archive", "--format=tar", commit, "app/runtime"]
    packed = subprocess.run(archive, capture_output=True, check=False)
    if packed.returncode:
        raise OverheadError(packed.stderr.decode().strip())
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
    return folder / "app" / "runtime"


def bench(commit: str, repeat: int, tasks: int, page: pathlib.Path | None) -> int:
    """Measure and report; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="celery-metal-") as name:
        folder = pathlib.Path(name)
        other, this = checked_out(commit, folder / "other"), ROOT / "app" / "runtime"
        turns: dict[str, list[Turn]] = {pool: [] for pool in CONCURRENCY}
        with broker(folder) as client:
            for number in range(repeat):
                for pool, those in turns.items():
                    # Whoever is first has the colder caches: they change places.
                    order = (other, this) if number % 2 else (this, other)
                    took = {one: milliseconds(client, one, pool, tasks, folder) for one in order}
                    those.append(Turn(took[other], took[this]))
                    print(
                        f"turn {number + 1} of {repeat}, {pool}: {those[-1].ratio:.3f}", flush=True
                    )
    text = table(turns, commit)
    print(f"\n{text}\n")
    if page:
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        command = f"bench/overhead.py {commit} --repeat {repeat} --tasks {tasks}"
        used = (f"python {platform.python_version()}", f"celery {celery.__version__}")
        made_with = ", ".join(
            [*used, f"kombu {kombu.__version__}", f"redis-py {redis.__version__}"]
        )
        page.write_text(markdown(text, commit, command, today, made_with))
        print(f"written: {page}")
    above = missed(turns)
    print(f"above {RATIO}: {', '.join(above)}" if above else "all targets met", flush=True)
    return 1 if above else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and return the exit status."""
    parser = argparse.ArgumentParser(
        description="Measure the CPU time of a task that does nothing."
    )
    parser.add_argument("commit", help="whose runtime this one is compared with")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="turns (%(default)s)")
    parser.add_argument("--tasks", type=int, default=3000, metavar="N", help="(%(default)s)")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write a page, too")
    options = parser.parse_args(arguments)
    if options.repeat < 1 or options.tasks < 1:
        parser.error("--repeat and --tasks must be 1 or more")
    try:
        return bench(options.commit, options.repeat, options.tasks, options.markdown)
    except OverheadError as problem:
        sys.exit(f"overhead: {problem}")


if __name__ == "__main__":
    sys.exit(main())
