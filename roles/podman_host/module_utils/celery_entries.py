"""Lines of the journal by unit, text and time: what journalctl finds, bounded in size and time."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

FIELDS = "MESSAGE,_SYSTEMD_UNIT,UNIT"
COMMAND = ("journalctl", "--quiet", "--no-pager", "--all", "--output=json")
#: systemd-journald's own message that it dropped lines: systemd/sd-messages.h.
DROPPED = "MESSAGE_ID=a596d6fe7bfa4994828e72309e95d61e"
UNIT = re.compile(r"celery-([^/]+)\.service")
#: Characters of a line; seconds and bytes of an answer.
LONGEST, SECONDS, BYTES = 4000, 30.0, 32 << 20
#: Failures that are followed, lines of a traceback, and reports of dropped lines.
MOST_FAILURES, MOST_FOLLOWING, MOST_DROPPED = 50, 100, 10
FAILURE = re.compile(r"\b(ERROR|CRITICAL|WARNING|raised|Traceback)\b")
BEGINS = "Traceback (most recent call last):"
BETWEEN = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)

TOO_MUCH = (
    "the journal has more than can be searched ({}).\n  Fix: write a later logs_since, or fewer "
    "logs_lines. Nothing was changed."
)


class ReadError(Exception):
    """The journal cannot be read: why, and the remedy."""


@dataclass(frozen=True)
class Entry:
    """A line: microseconds since 1970, who wrote it, the text, and its place in the journal."""

    at: int
    source: str
    line: str
    unit: str
    cursor: str


def entry(line: str) -> Entry | None:
    """What journalctl prints as one line of JSON; None if it is no line of a unit.

    >>> entry('{"__REALTIME_TIMESTAMP": "7", "MESSAGE": "a\\\\n", "UNIT": "celery-q@1.service"}')
    Entry(at=7, source='q@1', line='a', unit='celery-q@1.service', cursor='')
    """
    found = _parsed(line)
    at = str(found.get("__REALTIME_TIMESTAMP", ""))
    # systemd writes of a unit, which is then UNIT.
    names = (_text(found.get(name)) for name in ("UNIT", "_SYSTEMD_UNIT"))
    unit = next((name for name in names if UNIT.fullmatch(name)), "")
    if not at.isdecimal() or not unit:
        return None
    text = _text(found.get("MESSAGE")).rstrip()[:LONGEST]
    return Entry(int(at), UNIT.sub(r"\1", unit), text, unit, _text(found.get("__CURSOR")))


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ReadError(
            f"journalctl prints no JSON: {line[:100].strip()}\n  Fix: run 'journalctl -o json "
            "-n 1' there, and mend what it reports. Nothing was changed."
        )
    return found


def _text(value: Any) -> str:
    """A field: text, bytes as a list of numbers where it is not UTF-8, or the first of several."""
    if isinstance(value, list) and all(type(one) is int and 0 <= one < 256 for one in value):
        return bytes(value).decode(errors="replace")
    if isinstance(value, list):
        return _text(value[0])
    return value if isinstance(value, str) else ""


def entries(
    units: Sequence[str], between: tuple[float, float | None], text: str, most: int
) -> tuple[list[Entry], bool]:
    """The newest lines in order of time, and whether there are older ones.

    :param units: journalctl's patterns; none asks for nothing.
    :param between: not before and not after, in seconds since 1970.
    :param text: what a line contains; of a failure, the traceback below it comes along.
    :param most: how many lines at most, without those of tracebacks.
    :raises ReadError: when journalctl fails.
    """
    if not units:
        return [], False
    words = [*(f"--unit={unit}" for unit in units), *_times(between), "--reverse"]
    if text:
        # PCRE2 takes what is between these two as it is; \E in it would end that.
        quoted = text.replace("\\E", "\\E\\\\E\\Q")
        words += [f"--grep=\\Q{quoted}\\E", "--case-sensitive=true"]
    found: list[Entry] = []
    is_cut = False
    for one in _read([*words, f"--lines={most + 1}"]):
        if is_cut := len(found) == most:
            break
        found.append(one)
    found.reverse()
    if text:
        found = with_tracebacks(found)
    return found, is_cut


def with_tracebacks(found: Sequence[Entry]) -> list[Entry]:
    """Lines with the tracebacks that follow them: each line of one is an entry of its own."""
    failed = [one for one in found if FAILURE.search(one.line)][-MOST_FAILURES:]
    deadline = time.monotonic() + SECONDS
    more = {one.cursor: one for one in found}
    # The newest first; on a slow disk those before have no traceback.
    for one in reversed(failed):
        if time.monotonic() > deadline:
            break
        words = [f"--unit={one.unit}", f"--after-cursor={one.cursor}"]
        # By systemd, which writes of the unit as well, there is none.
        after = (line for line in _read(words) if line.source == one.source)
        more |= {line.cursor: line for line in traceback(after)}
    # One that was found by its own text, too, counts once; those of one microsecond stay in order.
    return sorted(more.values(), key=lambda one: one.at)


def traceback(lines: Iterator[Entry]) -> Iterator[Entry]:
    """The first lines as long as they are those of a traceback."""
    is_inside = False
    for number, one in enumerate(lines):
        begins = one.line.strip() == BEGINS
        belongs = begins or one.line.strip() in (*BETWEEN, "") or one.line.startswith("  ")
        # The last line of each part is the exception itself.
        if number == MOST_FOLLOWING or not (belongs or is_inside):
            return
        is_inside = belongs and (is_inside or begins)
        yield one


def dropped(between: tuple[float, float | None]) -> list[str]:
    """What systemd-journald reports of lines that it dropped, the newest last."""
    reports = []
    for line in _lines([*_times(between), "--reverse", f"--lines={10 * MOST_DROPPED}", DROPPED]):
        text = _text(_parsed(line).get("MESSAGE"))[:LONGEST]
        if "celery-" in text:
            reports.append(text)
    return reports[:MOST_DROPPED][::-1]


def _times(between: tuple[float, float | None]) -> list[str]:
    since, until = between
    words = [f"--since=@{since:.6f}"]
    return words if until is None else [*words, f"--until=@{until:.6f}"]


def _read(words: Sequence[str]) -> Iterator[Entry]:
    return (one for line in _lines(words) if (one := entry(line)))


def _lines(words: Sequence[str]) -> Iterator[str]:
    """What journalctl prints, until enough was read.

    :raises ReadError: when it fails, prints too much, or takes too long.
    """
    command, size = [*COMMAND, f"--output-fields={FIELDS}", *words], 0
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        # A search that finds nothing prints nothing.
        clock = threading.Timer(SECONDS, process.kill)
        clock.start()
        try:
            for line in process.stdout:
                size += len(line)
                if size > BYTES:
                    raise ReadError(TOO_MUCH.format(f"{BYTES >> 20} MB"))
                yield line.decode(errors="replace")
            # The status is 1 if nothing is found.
            said = process.stderr.read().decode(errors="replace").strip()
            if process.wait() < 0:
                raise ReadError(TOO_MUCH.format(f"{SECONDS:.0f} s"))
        finally:
            clock.cancel()
            process.kill()
    if said and "No data available" not in said:
        raise ReadError(
            f"journalctl failed: {said[-LONGEST:]}.\n  Fix: run 'journalctl -u celery.target' "
            "there, and mend what it reports. Nothing was changed."
        )
