"""Processes that begin with Celery loaded.

Loading Celery takes most of a worker's start. Here one server process loads it once, and forks for
each start. The fork runs a module as `python -m` does, with its own environment, directory,
arguments and output. It differs from a real start in this:

- /proc/PID/cmdline, /proc/PID/environ and the CPU affinity are the server's.
- gevent finds loaded what it has to patch first.

Tests of these start a Python of their own.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

LOADED = (
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.worker.autoscale",
    "celery_metal_runtime.beat",
    "celery_metal_runtime.entry",
    "celery_metal_runtime.health",
    "celery_metal_runtime.sentinels",
    "celery_metal_runtime.transport",
)
LONGEST = 1 << 20


class Server:
    """The process that forks. It ends with the process of the tests, and kills its forks then."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=environ,
                pass_fds=[theirs.fileno()],
            )

    def fork(
        self,
        module: str,
        arguments: tuple[str, ...],
        environ: dict[str, str],
        cwd: Path,
        *files: Path,
    ) -> "Fork":
        """Run `module`; `files`: where its output and its errors go, one file for both or two."""
        order = {"module": module, "arguments": arguments, "environ": environ, "cwd": str(cwd)}
        return Fork(self, self.ask(order | {"files": [str(files[0]), str(files[-1])]}))

    def ask(self, order: dict) -> int:
        """Send an order; return the number that answers it."""
        with self._lock:
            self._socket.send(json.dumps(order).encode())
            answer = self._socket.recv(LONGEST)
        assert answer, "the server of forks has ended: see its error above"
        return int(answer)


class Fork:
    """A forked process, with those methods of subprocess.Popen that the tests use."""

    def __init__(self, server: Server, pid: int) -> None:
        self._server, self.pid = server, pid
        self.returncode: int | None = None
        # The server reaps it only when asked to: until then the number is not another's.
        self._fd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended; subprocess.TimeoutExpired after `timeout` s."""
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._fd, select.POLLIN)
            if not ended.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = self._server.ask({"reap": self.pid})
            os.close(self._fd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._fd, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def serve(orders: socket.socket) -> dict:
    """Fork for each order; return the order in the fork."""
    running = set()
    while message := orders.recv(LONGEST):
        order = json.loads(message)
        if "reap" in order:
            pid, status = os.waitpid(order["reap"], 0)
            running.remove(pid)
            orders.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if not pid:
            orders.close()
            return order
        running.add(pid)
        orders.send(str(pid).encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def become(order: dict) -> None:
    """Run what an order names, as `python -m` does."""
    os.chdir(order["cwd"])
    paths = os.environ["PYTHONPATH"].split(":")
    standard = [path for path in sys.path[1:] if path not in paths]
    os.environ.clear()
    os.environ.update(order["environ"])
    sys.path[:] = [order["cwd"], *os.environ["PYTHONPATH"].split(":"), *standard]
    importlib.invalidate_caches()
    for number, file in enumerate(order["files"], start=1):
        # Appending: one file may be both.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        os.dup2(os.open(file, flags, 0o644), number)
    sys.argv[1:] = order["arguments"]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    """Load Celery, and serve."""
    for name in LOADED:
        importlib.import_module(name)
    # Their memory stays shared with the forks when these collect garbage.
    gc.collect()
    gc.freeze()
    become(serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
