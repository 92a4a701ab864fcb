"""What units that failed, and workers, have written into the journal."""

from __future__ import annotations

import re
from itertools import chain

from ansible.module_utils.celery_metal import run

# A line of the journal begins with time, host and process.
LOGGED = re.compile(r"\S+ \S+ ([^:\[]+)(?:\[[0-9]+\])?: (.*)")
MANAGERS = ("conmon", "podman", "systemd")
EXCEPTION = re.compile(r"([A-Za-z_][\w.]*\.)?[A-Z]\w*(Error|Exception|Exit|Interrupt)\b")


def cause(log: str) -> str:
    """Return the last exception in a journal, or the last line of the program itself.

    >>> cause("12:00 web1 a[7]: KeyError: 'x'\\n12:00 web1 systemd[1]: a.service: Failed")
    "KeyError: 'x'"
    """
    logged = [one for line in log.splitlines() if (one := LOGGED.fullmatch(line))]
    lines = [one[2] for one in reversed(logged) if one[1] not in MANAGERS and one[2].strip()]
    return next(chain(filter(EXCEPTION.match, lines), lines), "it has no journal")


def described(logs: dict[str, str], states: dict[str, dict[str, str]]) -> tuple[str, str]:
    """Return why units failed, in one line, and the journal of one unit for each cause.

    :param logs: unit to its last journal lines.
    :param states: of ``shown``.
    """
    causes: dict[str, list[str]] = {}
    for unit, log in logs.items():
        causes.setdefault(cause(log), []).append(unit)
    text = ""
    for units in causes.values():
        one = states.get(units[0], {})
        words = ", ".join(f"{key}={one.get(key)}" for key in ("Result", "ExecMainStatus"))
        text += f"== {', '.join(units)}: {words}\n{logs[units[0]]}\n"
    return "; ".join(causes), text


def journal(unit: str, lines: int) -> str:
    """Return the last journal lines of a unit."""
    return run("journalctl", "--no-pager", "-o", "short-iso", "-n", str(lines), "-u", unit).stdout


def settings_told(log: str) -> list[str]:
    """What workers have said of the app's settings, once for all queues.

    >>> settings_told("celery-metal: a: setting: x is 1\\ncelery-metal: b: setting: x is 1")
    ['x is 1 (workers of a, b)']
    """
    told: dict[str, set[str]] = {}
    for queue, text in re.findall(r"^celery-metal: (\S+): setting: (.+)$", log, re.M):
        told.setdefault(text, set()).add(queue)
    return [f"{text} (workers of {', '.join(sorted(queues))})" for text, queues in told.items()]
