"""Dead letters: which of them an operator means, and what is shown of them."""

from __future__ import annotations

import datetime
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Beside this file, and rules that are no plugins; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "declared"))
import reported
from arguments import OPTIONS
from texts import FALSE, TRUE, cut

if TYPE_CHECKING:
    from celery_metal_types import DeadLetters

ACTIONS = ("list", "show", "send", "delete", "export")
FILTERS = ("dead_id", "dead_queue", "dead_task", "dead_reason")
SWITCHES = ("dead_all", "dead_confirmed")
KNOWN = OPTIONS["dead"]
COLUMNS = {
    "task": "task",
    "id": "id",
    "queue": "queue",
    "at": "when (UTC)",
    "crashes": "crashes",
    "worker": "worker",
    "reason": "reason",
    "arguments": "arguments",
}
# Characters of a cell, of a whole letter; rows; queues in a line.
WIDTHS = {"id": 36, "reason": 60, "arguments": 40}
WIDTH, MOST_WHOLE, MOST_ROWS, MOST_QUEUES, LONGEST = 32, 1 << 16, 24, 12, 1024
MAX_SECONDS = 253402300799  # the last second of the year 9999


def _switch(value: Any) -> bool | None:
    """A variable as Ansible reads it; None for anything else."""
    text = str(value).lower()
    return True if text in TRUE else False if text in FALSE else None


def problems(variables: Mapping[str, Any], check: bool) -> str:
    """What is wrong with the variables of ``playbooks/dead.yml``; empty when nothing is.

    :param variables: all of a host.
    :param check: whether nothing is changed anyway.
    """
    # Others may be templates that need facts.
    given = {name: variables[name] for name in variables if name.startswith("dead_")}
    found = cut(variables) or _problem(given, check)
    return f"{found[0]}.\n  Fix: {found[1]}. Nothing was changed." if found else ""


def _problem(given: Mapping[str, Any], check: bool) -> tuple[str, str] | None:
    for name in sorted(given.keys() - {*KNOWN}):
        near = difflib.get_close_matches(name, KNOWN, 1)
        return f"{name} is an unknown variable", f"write {near[0]}" if near else "remove it"
    action = given.get("dead_action", "list")
    if action not in ACTIONS:
        return f'dead_action is "{_shown(action)}"', f"write one of {', '.join(ACTIONS)}"
    for name in FILTERS:
        value = given.get(name, "x")
        is_text = isinstance(value, str) and value.isprintable() and 0 < len(value) <= LONGEST
        if not is_text:
            return f'{name} is "{_shown(value)}"', f"write 1 to {LONGEST} printable characters"
    for name in SWITCHES:
        if _switch(given.get(name, False)) is None:
            return f'{name} is "{_shown(given[name])}"', "write true or false"
    return _contradiction(action, given, check)


def _contradiction(action: str, given: Mapping[str, Any], check: bool) -> tuple[str, str] | None:
    """Which variables do not go together."""
    filters = [name for name in FILTERS if name in given]
    is_all = _switch(given.get("dead_all", False))
    if action == "show" and not filters:
        return "dead_action is show, of no letter", "write dead_id=ID; dead_action=list has the IDs"
    if is_all and filters:
        return f"dead_all is true, and {filters[0]} is set", "write one of them"
    if action in ("send", "delete", "export") and not (is_all or filters):
        choose = f"choose letters by {', '.join(FILTERS)}, or write dead_all=true"
        return f"dead_action is {action}, of no letter", choose
    if (action == "export") != ("dead_file" in given):
        if action == "export":
            return "dead_action is export, without dead_file", "write dead_file=/PATH/FILE"
        return f"dead_file is set, and dead_action is {action}", "write dead_action=export"
    if action == "export" and (wrong := _file(given["dead_file"])):
        return wrong
    if action == "delete" and not check and not _switch(given.get("dead_confirmed", False)):
        value = _shown(given.get("dead_confirmed", False))
        look = "look at them first, by dead_action=show or --check; then write dead_confirmed=true"
        return f"dead_action is delete, and dead_confirmed is {value}", look
    return None


def _file(value: Any) -> tuple[str, str] | None:
    path = Path(value) if isinstance(value, str) and value.isprintable() else None
    said = f'dead_file is "{_shown(value)}"'
    if path is None or not path.is_absolute():
        return said, "write the absolute path of a new file on the controller"
    if path.exists():
        return f"{said}, which exists", "name a new file, or remove this one"
    if not path.parent.is_dir():
        return f"{said}, in a directory that does not exist", f"make {_shown(path.parent)}"
    return None


def _shown(value: Any) -> str:
    return reported.shown(value)


def text(found: DeadLetters, action: str, file: str, check: bool) -> str:
    """What an operator sees, without control characters and of a bounded length.

    :param found: what the module ``celery_dead`` returned; its host may be compromised.
    :param file: where an export was written to.
    """
    raw: Mapping[str, Any] = found
    rows = raw.get("rows")
    rows = rows[:MOST_ROWS] if isinstance(rows, list) else []
    rows = [row for row in rows if isinstance(row, Mapping)]
    total, done = _number(raw.get("total")), _number(raw.get("done"))
    if action == "show":
        lines = _whole(raw.get("whole") or {}, total)
    elif action == "export":
        lines = [f"{_count(total)} {'would be' if check else 'are'} in {_shown_path(file)}"]
    elif action == "list":
        lines = [*_table(rows), *([""] if rows else []), _count(total) + _queues(raw)]
        if total > len(rows) and rows:
            lines[-1] += f"; {total - len(rows)} of them are not shown"
    else:
        verb = "sent back" if action == "send" else "deleted"
        lines = [f"{_count(done)} {'would be ' if check else ''}{verb}{_queues(raw)}"]
        if gone := _number(raw.get("gone")):
            lines.append(f"{gone} changed meanwhile and {_are(gone)} left alone: run this again")
        if refused := _number(raw.get("refused")):
            why = "not a task, so a worker would put it aside again"
            lines += ["", *_table(rows), "", f"{_count(refused)} cannot be sent back: {why}"]
    if raw.get("is_complete") is not True:
        lines.append(
            "There may be more: not all of Redis was read in time. Name a queue: dead_queue"
        )
    if raw.get("all_queues") is not True:
        lines.append(
            "Queues that are neither declared nor consumed are not looked for: the user of the "
            "workers may not. Name one: dead_queue"
        )
    return "\n".join(lines)


def _are(count: int) -> str:
    return "was" if count == 1 else "were"


def _number(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


def _count(number: int) -> str:
    return "no dead letter" if not number else f"{number} dead letter{'s' if number > 1 else ''}"


def _shown_path(file: str) -> str:
    return reported.shown(file, LONGEST)


def _queues(found: Mapping[str, Any]) -> str:
    """How many of each queue."""
    lists = found.get("lists")
    known = sorted(lists.items()) if isinstance(lists, Mapping) else []
    parts = [f"{_shown(name)} {_number(count)}" for name, count in known[:MOST_QUEUES]]
    more = [f"{len(known) - MOST_QUEUES} more queues"] if len(known) > MOST_QUEUES else []
    return f": {', '.join([*parts, *more])}" if parts else ""


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    cells = [COLUMNS, *map(_cells, rows)]
    widths = {key: max(len(row[key]) for row in cells) for key in COLUMNS}
    return ["  ".join(row[key].ljust(widths[key]) for key in COLUMNS).rstrip() for row in cells]


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    cells = {key: reported.shown(row.get(key, ""), WIDTHS.get(key, WIDTH)) for key in COLUMNS}
    at, crashes = row.get("at"), row.get("crashes")
    cells["at"] = cells["crashes"] = ""
    if type(at) is int and 0 <= at <= MAX_SECONDS:
        cells["at"] = f"{datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M}"
    if type(crashes) is int:
        cells["crashes"] = reported.shown(crashes, WIDTH)
    return {key: cell.strip() or "-" for key, cell in cells.items()}


def _whole(letter: Any, total: int) -> list[str]:
    """A letter as JSON, with escapes for all that a terminal might take for more than text."""
    if not letter:
        return [_count(0)]
    said = json.dumps(letter, indent=2, ensure_ascii=False, default=str)
    cut = len(said) - MOST_WHOLE
    shown = "".join(
        one if one.isprintable() or one == "\n" else _escape(one) for one in said[:MOST_WHOLE]
    )
    lines = shown.split("\n")
    if cut > 0:
        lines.append(f"... and {cut} more characters: dead_action=export has all of it")
    if total > 1:
        lines.append(f"It is the oldest of {total}: dead_action=export has all of them")
    return lines


def _escape(one: str) -> str:
    """A character as in JSON.

    >>> _escape(chr(0x9B)), _escape(chr(0xE0001))
    ('\\\\u009b', '\\\\udb40\\\\udc01')
    """
    return json.dumps(one)[1:-1] if ord(one) > 126 and ord(one) != 127 else f"\\u{ord(one):04x}"


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"dead_problems": problems, "dead_text": text}
