"""Tasks that wait in queues, and pauses: what an operator asks for, and what is shown of them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Beside this file, and rules that are no plugins; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "declared"))
import arguments
import pauses
import reported
from texts import FALSE, TRUE, cut, shown

if TYPE_CHECKING:
    from celery_metal_types import QueueTasks

# What each needs.
ACTIONS: Mapping[str, tuple[str, ...]] = {
    "list": (),
    "move": ("queues_from", "queues_to"),
    **dict.fromkeys(("purge", "pause", "resume"), ("queues_from",)),
}
OPTIONS = ("queues_from", "queues_to", "queues_reason")
KNOWN = arguments.OPTIONS["queues"]
CLOSE, LONGEST, MOST_ROWS, MOST_NAMES, WIDTH = 0.85, 1024, 100, 12, 60
LONGEST_REASON = 200
RUNTIME = "celery-metal."


def problems(
    variables: Mapping[str, Any], declared: Sequence[str], prefixes: Sequence[str], check: bool
) -> str:
    """What is wrong with the variables of ``playbooks/queues.yml``; empty when nothing is.

    :param variables: all of a host.
    :param declared: queues of the inventory, without the prefix of an app.
    :param prefixes: those of apps.
    :param check: whether nothing is changed anyway.
    """
    given = {name: variables[name] for name in variables if name.startswith("queues_")}
    found = cut(variables) or _slip(variables) or _problem(given, declared, prefixes, check)
    return f"{found[0]}.\n  Fix: {found[1]}. Nothing was changed." if found else ""


def _slip(variables: Mapping[str, Any]) -> tuple[str, str] | None:
    """A name that lacks an s, and so would do nothing."""
    for name in sorted(variables):
        if name.startswith("queue_") and name.replace("queue_", "queues_", 1) in KNOWN:
            return f"{name} is an unknown variable", f"write {name.replace('queue_', 'queues_', 1)}"
    return None


def _problem(
    given: Mapping[str, Any], declared: Sequence[str], prefixes: Sequence[str], check: bool
) -> tuple[str, str] | None:
    # An inventory may have others of its own.
    for name in sorted(given.keys() - {*KNOWN}):
        if near := difflib.get_close_matches(name, KNOWN, 1, CLOSE):
            return f"{name} is an unknown variable", f"write {near[0]}"
    action = given.get("queues_action", "list")
    if not isinstance(action, str) or action not in ACTIONS:
        return f"queues_action is {shown(action)}", f"write one of {', '.join(ACTIONS)}"
    wanted = ACTIONS[action]
    for name in OPTIONS[:2]:
        value = given.get(name, "a")
        if not (isinstance(value, str) and value.isprintable() and 0 < len(value) <= LONGEST):
            return f"{name} is {shown(value)}", "write the name of a queue"
        if value.startswith(tuple(f"{one}{RUNTIME}" for one in ("", *prefixes))):
            return f"{name} is {shown(value)}, which is none", "write the name of a queue"
        if name in wanted and name not in given:
            return f"queues_action is {action}, without {name}", f"write {name}=QUEUE"
        if name in given and name not in wanted:
            return f"{name} is set, and queues_action is {action}", f"remove {name}"
    reason = given.get("queues_reason", "a")
    if "queues_reason" in given and action != "pause":
        return f"queues_reason is set, and queues_action is {action}", "remove queues_reason"
    if not (isinstance(reason, str) and reason.isprintable() and len(reason) <= LONGEST_REASON):
        remedy = f"write text of one line, of at most {LONGEST_REASON} characters"
        return f"queues_reason is {shown(reason)}", remedy
    confirmed = str(given.get("queues_confirmed", False)).lower()
    if confirmed not in TRUE + FALSE:
        return f"queues_confirmed is {shown(given['queues_confirmed'])}", "write true or false"
    if action == "move" and given["queues_to"] == given["queues_from"]:
        return f"queues_to is {shown(given['queues_to'])}, as queues_from", "write another queue"
    if action in ("move", "pause"):
        name = "queues_to" if action == "move" else "queues_from"
        return _undeclared(name, given[name], declared, prefixes)
    if action == "purge" and not check and confirmed not in TRUE:
        look = "--check counts the tasks; then write queues_confirmed=true"
        return f"queues_action is purge, and queues_confirmed is {confirmed}", look
    return None


def _undeclared(
    name: str, queue: str, declared: Sequence[str], prefixes: Sequence[str]
) -> tuple[str, str] | None:
    """What is wrong with a queue that workers of the inventory must consume."""
    if queue in {prefix + one for one in declared for prefix in ("", *prefixes)}:
        return None
    more = [*declared[:MOST_NAMES], *(["..."] if len(declared) > MOST_NAMES else [])]
    said = f"{name} is {shown(queue)}, which no worker consumes"
    return said, f"write one of celery_queues: {', '.join(map(shown, more))}"


def text(found: QueueTasks, action: str, variables: Mapping[str, Any], check: bool) -> str:
    """What an operator sees, without control characters and of a bounded length.

    :param found: what the module ``celery_queue`` returned; its host may be compromised.
    :param variables: those of ``playbooks/queues.yml``.
    :param check: whether nothing was changed.
    """
    raw: Mapping[str, Any] = found
    if action == "list":
        return "\n".join(_table(raw))
    if action in ("pause", "resume"):
        return pauses.text(raw, action, variables["queues_from"], check)
    done, queue = _number(raw.get("done")), reported.shown(variables.get("queues_from", ""))
    would = "would be " if check else ""
    if action == "purge":
        return f"{_tasks(done)} of {queue} {would}deleted"
    lines = [
        f"{_tasks(done)} {would}moved from {queue} to {reported.shown(variables['queues_to'])}"
    ]
    if gone := _number(raw.get("gone")):
        lines.append(f"{gone} changed meanwhile and stayed: run this again")
    if refused := _number(raw.get("refused")):
        lines.append(f"{refused} stayed: larger than workers take")
    return "\n".join(lines)


def _table(raw: Mapping[str, Any]) -> list[str]:
    waiting = raw.get("waiting")
    rows = sorted(waiting.items()) if isinstance(waiting, Mapping) else []
    cells = [(reported.shown(name, WIDTH), str(_number(count))) for name, count in rows[:MOST_ROWS]]
    width = max([len("queue"), *(len(name) for name, _ in cells)])
    lines = [f"{'queue'.ljust(width)}  waiting"] if cells else ["no task waits"]
    lines += [f"{name.ljust(width)}  {count.rjust(7)}" for name, count in cells]
    if len(rows) > MOST_ROWS:
        lines.append(f"and {len(rows) - MOST_ROWS} more queues")
    paused = [f"{name} is paused {since}" for name, since in pauses.of_list(raw.get("paused"))]
    lines += paused[:MOST_ROWS]
    if raw.get("is_complete") is not True:
        lines.append(
            "There may be more: not all lists of Redis were looked at, but declared queues were"
        )
    return lines


def _number(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0


def _tasks(number: int) -> str:
    return f"{number} task{'' if number == 1 else 's'}"


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"moves_problems": problems, "moves_text": text}
