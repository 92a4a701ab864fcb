"""What /proc shows of processes, which may end at any moment while it is read."""

from __future__ import annotations

import contextlib
import pathlib


def children(pid: int) -> list[int]:
    """Return what a process has started and what still runs or was not waited for.

    A process or thread that ends meanwhile has none.
    """
    found: list[int] = []
    for thread in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, thread.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Return a process and all that it has started, whatever their groups and sessions."""
    return [pid, *(one for child in children(pid) for one in descendants(child))]


def has_ended(pid: int) -> bool:
    """Return whether a process does nothing any more: it is gone, or only to be waited for."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    return "\nState:\tZ" in status
