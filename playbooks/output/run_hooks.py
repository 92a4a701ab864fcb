"""Commands that a run starts: how they are shown, and those that run on the controller."""

from __future__ import annotations

import contextlib
import math
import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.utils.display import Display

#: Characters of a command in a line.
SHOWN = 200
#: How long a process that writes nothing is waited for at a time.
PAUSE_SECONDS = 0.1


def visible(text: str) -> str:
    """A line of a command's output without what a terminal obeys; a program may be hostile.

    >>> visible("a\\tb\\x1b[2J")
    'a\\tb?[2J'
    """
    return "".join(one if one.isprintable() or one == "\t" else "?" for one in text)


def words(command: Sequence[str]) -> str:
    """A command in a line, for a terminal.

    >>> words(["echo", "a b"])
    "echo 'a b'"
    """
    line = visible(shlex.join(command))
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def run_here(
    command: Sequence[str], environment: Mapping[str, str], seconds: float | None = None
) -> dict[str, Any]:
    """Run a command on the controller, and show what it writes; empty when it ends with status 0.

    :param environment: variables besides those of the run.
    :param seconds: after which it is killed; None for never.
    :returns: else ``failed``, ``msg`` and ``status``.
    """
    try:
        # A group of its own: what it has started is killed with it.
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    except OSError as error:
        return failure(command, 127, f": {error.strerror}")
    is_late = _show(started, seconds)
    if is_late:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    status = started.wait()
    if is_late:
        return failure(command, 124, f": it was killed after {seconds} s")
    return failure(command, status, "") if status else {}


def _show(started: subprocess.Popen[bytes], seconds: float | None) -> bool:
    """Show lines as they come, until a process ends; whether it takes longer than that."""
    deadline = time.monotonic() + (seconds or math.inf)
    assert started.stdout is not None
    file, rest, ended, is_late = started.stdout.fileno(), b"", False, False
    os.set_blocking(file, False)
    while not (ended or is_late):
        # What it leaves in the background may keep the pipe open.
        ended = started.poll() is not None
        is_late = time.monotonic() > deadline
        select.select([file], [], [], 0 if ended else PAUSE_SECONDS)
        while data := _available(file):
            *lines, rest = (rest + data).split(b"\n")
            _display(lines)
            is_late = time.monotonic() > deadline
            if is_late:
                break
        else:
            # At the end of a pipe that the process has closed select() does not wait.
            if not ended:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    started.wait(PAUSE_SECONDS)
    _display([rest] if rest else [])
    return is_late


def _available(file: int) -> bytes:
    try:
        return os.read(file, 1 << 16)
    except BlockingIOError:
        return b""


def _display(lines: Sequence[bytes]) -> None:
    if lines:
        Display().display("\n".join(visible(one.decode(errors="replace")) for one in lines))


def failure(command: Sequence[str], status: int, why: str) -> dict[str, Any]:
    """What a task returns for a command that failed on the controller."""
    said = f"controller: {words(command)} ended with status {status}{why}."
    return {"failed": True, "status": status, "msg": said}
