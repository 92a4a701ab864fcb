"""Lines of the journals of all hosts: what an operator asks for, and what is shown."""

from __future__ import annotations

import datetime
import difflib
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Beside this file, and rules that are no plugins; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "declared"))
import reported
from arguments import OPTIONS
from texts import cut, shown

KNOWN = OPTIONS["logs"]
CLOSE, LONGEST, MOST_LINES, MOST_NAMES, MOST_NOTES = 0.85, 1024, 5000, 12, 20
WIDTH, NAME_WIDTH, LINES = 4000, 40, 200
UNIT = re.compile(r"[A-Za-z0-9_.@:-]{1,200}")
SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
RELATIVE = re.compile(r"(\d{1,6}) ?(s|min|h|d)( ago)?", re.ASCII)
MICROSECONDS = 1_000_000
LAST = 253402300799 * MICROSECONDS  # of the year 9999
#: What Celery writes before each message; the journal has the time already.
CELERYS = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}: ([A-Z]+/[^\]\s]{1,60})\] ", re.ASCII)
#: Instead of lines, where no host has answered; ``logs.yml`` then fails.
UNREAD = "no journal was read"
ANY_TIME = "write how long ago, such as 90s, 10min, 2h or 7d, or a time in UTC, 2026-11-29 14:00"


def seconds_of(value: Any, now: float | None = None) -> float:
    """A time in seconds since 1970.

    :param value: how long ago, as ``10min``, or a date with or without a time and a zone; UTC
        without.
    :raises ValueError: when it is neither, or before 1970.

    >>> seconds_of("10min", 1000.0), seconds_of("1970-01-01 00:01"), seconds_of("1970-01-02")
    (400.0, 60.0, 86400.0)
    """
    text = str(value).strip()
    if found := RELATIVE.fullmatch(text):
        before = int(found[1]) * SECONDS[found[2]]
        return max((time.time() if now is None else now) - before, 0.0)
    if not text.isascii() or not re.match(r"\d{4}-", text):
        raise ValueError(text)
    at = datetime.datetime.fromisoformat(text)
    at = at if at.tzinfo else at.replace(tzinfo=datetime.UTC)
    if (seconds := at.timestamp()) < 0:
        raise ValueError(text)
    return seconds


def moment(value: Any) -> float | None:
    """A time as ``seconds_of`` has it; None where none is given."""
    return seconds_of(value) if value != "" else None


def problems(variables: Mapping[str, Any], declared: Sequence[str]) -> str:
    """What is wrong with the variables of ``playbooks/logs.yml``; empty when nothing is.

    :param variables: all of a host.
    :param declared: queues of the inventory.
    """
    given = {name: variables[name] for name in variables if name.startswith("logs_")}
    found = cut(variables) or _problem(given, declared)
    return f"{found[0]}.\n  Fix: {found[1]}." if found else ""


def _problem(given: Mapping[str, Any], declared: Sequence[str]) -> tuple[str, str] | None:
    # An inventory may have others of its own.
    for name in sorted(given.keys() - {*KNOWN}):
        if near := difflib.get_close_matches(name, KNOWN, 1, CLOSE):
            return f"{name} is an unknown variable", f"write {near[0]}"
    for name in KNOWN[:4]:
        value = given.get(name, "a")
        if not (isinstance(value, (str, int)) and _is_text(str(value))):
            return f"{name} is {shown(value)}", f"write 1 to {LONGEST} printable characters"
    for one, other in (("logs_queue", "logs_unit"), ("logs_task", "logs_text")):
        if one in given and other in given:
            return f"{one} and {other} are set", "remove one of them"
    if "logs_unit" in given and not UNIT.fullmatch(str(given["logs_unit"])):
        said = f"logs_unit is {shown(given['logs_unit'])}"
        return said, "write what stands between celery- and .service, such as redis or emails@1"
    if "logs_queue" in given and str(given["logs_queue"]) not in declared:
        more = [*declared[:MOST_NAMES], *(["..."] if len(declared) > MOST_NAMES else [])]
        said = f"logs_queue is {shown(given['logs_queue'])}, which is not in celery_queues"
        named = ", ".join(map(shown, more))
        return said, f"write one of {named}; logs_unit also finds workers of queues that are gone"
    return _numbers(given)


def _is_text(value: str) -> bool:
    return value.isprintable() and 0 < len(value) <= LONGEST


def _numbers(given: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with times and the number of lines."""
    times = {}
    for name in ("logs_since", "logs_until"):
        try:
            times[name] = seconds_of(given.get(name, "1h" if name == "logs_since" else "0s"))
        except (ValueError, OverflowError):
            return f"{name} is {shown(given[name])}", ANY_TIME
    if times["logs_since"] >= times["logs_until"]:
        since, until = shown(given.get("logs_since", "1h")), shown(given.get("logs_until", "now"))
        return f"logs_since is {since}, not before logs_until, {until}", "write an earlier one"
    lines = str(given.get("logs_lines", LINES))
    if not (re.fullmatch(r"\d{1,9}", lines, re.ASCII) and 1 <= int(lines) <= MOST_LINES):
        return f"logs_lines is {shown(given['logs_lines'])}", f"write a number, 1 to {MOST_LINES}"
    return None


def text(hosts: Mapping[str, Any], variables: Mapping[str, Any]) -> str:
    """The lines of all hosts in order of time, and below them what is missing and why.

    :param hosts: name to what the module ``celery_logs`` returned, or Ansible instead of it; each
        may be compromised.
    :param variables: those of ``playbooks/logs.yml``.
    """
    answers = {name: said for name, said in hosts.items() if _answers(said)}
    most = int(variables.get("logs_lines", LINES))
    # Of one time those of one host stay in their order.
    rows = sorted(
        (row for name, said in answers.items() for row in _rows(name, said)),
        key=lambda row: row[0],
    )
    # Tracebacks come on top of what was asked for.
    is_searched = "logs_task" in variables or "logs_text" in variables
    is_cut = any(said.get("is_cut") is True for said in answers.values())
    if not is_searched and len(rows) > most:
        rows, is_cut = rows[-most:], True
    names = max((len(name) for _, name, _, _ in rows), default=0)
    sources = max((len(source) for _, _, source, _ in rows), default=0)
    lines = [
        f"{_stamp(at)}  {name.ljust(names)}  {source.ljust(sources)}  {line}".rstrip()
        for at, name, source, line in rows
    ]
    nothing = f"no line since {_stamp(_since(variables))} UTC" if answers else UNREAD
    lines = lines or [nothing]
    return "\n".join([*lines, *_notes(hosts, answers, variables, is_cut)])


def unread(hosts: Mapping[str, Any]) -> bool:
    """Whether no host has answered."""
    return not any(map(_answers, hosts.values()))


def _answers(said: Any) -> bool:
    return isinstance(said, Mapping) and isinstance(said.get("entries"), list)


def _since(variables: Mapping[str, Any]) -> int:
    return int(seconds_of(variables.get("logs_since", "1h")) * MICROSECONDS)


def _rows(name: str, said: Mapping[str, Any]) -> Iterable[tuple[int, str, str, str]]:
    host = reported.shown(name, NAME_WIDTH)
    for one in said["entries"]:
        if isinstance(one, list) and len(one) == 3 and type(one[0]) is int and 0 <= one[0] <= LAST:
            line = CELERYS.sub(r"\1 ", str(one[2]), count=1)
            yield one[0], host, reported.shown(one[1], NAME_WIDTH), reported.shown(line, WIDTH)


def _stamp(microseconds: int) -> str:
    """A time in UTC, to the millisecond.

    >>> _stamp(1795980962671774)
    '2026-11-29 19:36:02.671'
    """
    at = datetime.datetime.fromtimestamp(microseconds // MICROSECONDS, datetime.UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}.{microseconds % MICROSECONDS // 1000:03}"


def _notes(
    hosts: Mapping[str, Any],
    answers: Mapping[str, Mapping[str, Any]],
    variables: Mapping[str, Any],
    is_cut: bool,
) -> list[str]:
    """What is not shown, and why."""
    notes = []
    if is_cut:
        notes.append("there are older lines: write logs_lines or logs_until to see them")
    for name, said in answers.items():
        for one in _list(said.get("dropped")):
            note = f"lines are missing: systemd-journald: {reported.shown(one, 200)}"
            notes.append(f"{reported.shown(name, NAME_WIDTH)}: {note}")
    if "logs_queue" in variables and not any(said.get("has_queue") for said in answers.values()):
        notes.append(f"no host here has workers of {reported.shown(variables['logs_queue'])}")
    for name in hosts.keys() - answers.keys():
        said = hosts[name] if isinstance(hosts[name], Mapping) else {}
        # Of a module that did not end well, Ansible has the last lines.
        errors = str(said.get("module_stderr") or said.get("exception") or "").strip()
        why = reported.shown(said.get("msg") or errors[-300:] or "no answer", 300)
        notes.append(f"{reported.shown(name, NAME_WIDTH)}: not read: {why}")
    if len(notes) > MOST_NOTES:
        notes[MOST_NOTES:] = [f"and {len(notes) - MOST_NOTES} more"]
    return ["", *notes] if notes else []


def _list(value: Any) -> list[Any]:
    return value[:MOST_NOTES] if isinstance(value, list) else []


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "logs_problems": problems,
            "logs_text": text,
            "logs_time": moment,
            "logs_unread": unread,
        }
