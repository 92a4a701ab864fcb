"""Processes that begin with their libraries loaded.

Loading Celery takes most of a worker's start, and loading Ansible a part of each short run. Here
one server process loads modules once, and forks for each start. The fork runs a module as
`python -m` does, with its own environment, directory, arguments and output. It differs from a real
start in that /proc/PID/cmdline, /proc/PID/environ and the CPU affinity are the server's.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST = 1 << 20


class Server:
    """The process that forks. It ends with the process of the tests, and kills its forks then."""

    def __init__(self, environ: Mapping[str, str], loaded: Iterable[str]) -> None:
        """Start it in an environment, which decides what the modules are like that it loads."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *loaded],
                env=environ,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        # Waited for, its CPU time and that of its forks is counted with that of the tests.
        atexit.register(self.end)

    def end(self) -> None:
        """End it, and kill the forks that still run."""
        self._socket.close()
        self._process.wait()

    def fork(
        self,
        module: str,
        arguments: Iterable[str],
        environ: Mapping[str, str],
        cwd: pathlib.Path,
        out: int,
        err: int,
    ) -> Fork:
        """Run `module`; its output and its errors go to these open files."""
        order = {
            "module": module,
            "arguments": [*arguments],
            "environ": {**environ},
            "cwd": str(cwd),
        }
        return Fork(self, self.ask(order, out, err))

    def ask(self, order: Mapping[str, object], *files: int) -> int:
        """Send an order and open files with it; return the number that answers it."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(order).encode()], files)
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
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
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


def serve(orders: socket.socket) -> dict[str, Any]:
    """Fork for each order; return the order in the fork. Ends when nobody can order any more."""
    running: set[int] = set()
    while True:
        message, files, _, _ = socket.recv_fds(orders, LONGEST, 2)
        if not message:
            break
        order = json.loads(message)
        if "reap" in order:
            pid, status = os.waitpid(order["reap"], 0)
            running.remove(pid)
            orders.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if not pid:
            orders.close()
            for number, file in enumerate(files, start=1):
                os.dup2(file, number)
        for file in files:
            os.close(file)
        if not pid:
            return dict(order)
        running.add(pid)
        orders.send(str(pid).encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    sys.exit()


def become(order: Mapping[str, Any], loaded_from: str) -> None:
    """Run what an order names, as `python -m` does."""
    os.chdir(order["cwd"])
    ours = {str(pathlib.Path(__file__).parent), *loaded_from.split(":")}
    standard = [path for path in sys.path if path not in ours]
    os.environ.clear()
    os.environ.update(order["environ"])
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(":"))
    sys.path[:] = [order["cwd"], *paths, *standard]
    importlib.invalidate_caches()
    sys.argv[1:] = order["arguments"]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    """Load modules, and serve."""
    number, *loaded = sys.argv[1:]
    loaded_from = os.environ.get("PYTHONPATH", "")
    for name in loaded:
        importlib.import_module(name)
    # Their memory stays shared with the forks when these collect garbage.
    gc.collect()
    gc.freeze()
    become(serve(socket.socket(fileno=int(number))), loaded_from)


if __name__ == "__main__":
    main()
