"""Commands that a run starts: how they are shown, and those that run on the controller."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.utils.display import Display

#: Characters of a command in a line.
SHOWN = 200


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
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return failure(command, 124, f": it was killed after {seconds} s")
    except OSError as error:
        return failure(command, 127, f": {error.strerror}")
    text = done.stdout.decode(errors="replace").rstrip("\n")
    if text:
        Display().display("\n".join(map(visible, text.split("\n"))))
    return failure(command, done.returncode, "") if done.returncode else {}


def failure(command: Sequence[str], status: int, why: str) -> dict[str, Any]:
    """What a task returns for a command that failed on the controller."""
    said = f"controller: {words(command)} ended with status {status}{why}."
    return {"failed": True, "status": status, "msg": said}
