"""Paused queues, as an operator sees them: since when, by whom, and which workers go on."""

from __future__ import annotations

import datetime
import getpass
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Beside this file, and rules that are no plugins; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "declared"))
import reported
from texts import option

WIDTH, MOST_WORKERS, MOST_QUEUES = 60, 20, 20
MAX_AT = 253402300799  # the last second of the year 9999


def by() -> str:
    """Who runs Ansible, and where."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user without an entry, as in a container
        user = f"user {os.getuid()}"
    return reported.shown(f"{user}@{socket.gethostname()}", WIDTH)


def described(pause: Any) -> str:
    """Since when a queue is paused, by whom and why.

    :param pause: as a host reports it, which may be compromised.

    >>> described({"at": 1700000000, "by": "ops@ctl", "reason": "migration"})
    'since 2023-11-14 22:13 UTC by ops@ctl: migration'
    >>> described({"at": None, "by": "", "reason": ""})
    'since an unknown time'
    """
    said = pause if isinstance(pause, Mapping) else {}
    at, who, why = said.get("at"), said.get("by"), said.get("reason")
    text = "since an unknown time"
    if type(at) is int and 0 <= at <= MAX_AT:
        text = f"since {datetime.datetime.fromtimestamp(at, datetime.UTC):%Y-%m-%d %H:%M} UTC"
    text += f" by {reported.shown(who, WIDTH)}" if isinstance(who, str) and who else ""
    return text + (f": {reported.shown(why, 200)}" if isinstance(why, str) and why else "")


def of_list(found: Any) -> Iterator[tuple[str, str]]:
    """The name of each paused queue, and its description."""
    for one in found if isinstance(found, list) else ():
        if isinstance(one, Mapping):
            yield reported.shown(one.get("name", "?"), WIDTH), described(one)


def reminders(lives: Mapping[str, Any]) -> list[str]:
    """A line for each paused queue, for the end of a run of site.yml.

    :param lives: what the module ``celery_lives`` returned, of a host that may be compromised.

    >>> print(*reminders({"paused": [{"name": "a", "at": 1700000000, "by": "ops@ctl"}]}))
    queue a is paused since 2023-11-14 22:13 UTC by ops@ctl: its tasks wait. To resume it: \
ansible-playbook playbooks/queues.yml -e queues_action=resume -e queues_from=a
    """
    if isinstance(error := lives.get("paused_error"), str) and error:
        return [f"the paused queues cannot be read: {reported.shown(error, 200)}"]
    found = lives.get("paused")
    rows = [one for one in (found if isinstance(found, list) else ()) if isinstance(one, Mapping)]
    lines = []
    for one in rows[:MOST_QUEUES]:
        by_name = option("queues_from", one.get("name"))
        resuming = f" -e queues_action=resume{by_name}" if by_name else " lists it"
        lines.append(
            f"queue {reported.shown(one.get('name', '?'), WIDTH)} is paused "
            f"{described({**one, 'reason': ''})}: its tasks wait. To resume it: "
            f"ansible-playbook playbooks/queues.yml{resuming}"
        )
    if len(rows) > MOST_QUEUES:
        more = len(rows) - MOST_QUEUES
        lines.append(
            f"and {more} more are paused: ansible-playbook playbooks/queues.yml lists them"
        )
    return lines


def text(raw: Mapping[str, Any], action: str, queue: str, check: bool) -> str:
    """What was paused or resumed.

    :param raw: what the module ``celery_queue`` returned.
    """
    name, is_new = reported.shown(queue), number(raw.get("done")) > 0
    waiting = raw.get("waiting")
    waits = number(waiting.get(queue)) if isinstance(waiting, Mapping) else 0
    waits_text = f"{_count(waits, 'task')} {'waits' if waits == 1 else 'wait'}"
    workers, left = number(raw.get("workers")), raw.get("unconfirmed")
    counts = f"{waits_text}, {_count(workers, 'worker')}"
    if action == "resume":
        if not is_new:
            return f"{name} is not paused"
        done = f"{name} {'would be' if check else 'is'} resumed: {counts}"
        return "\n".join([done, *_unsaved(raw, "the resume")])
    if check:
        what = "would be paused" if is_new else "is paused already"
        return f"{name} {what}: {counts}"
    pause = next((one for _, one in of_list(raw.get("paused"))), "")
    confirmed = max(0, workers - (len(left) if isinstance(left, list) else 0))
    lines = [f"{name} is paused {pause}"]
    lines.append(f"{waits_text}; workers that have confirmed: {confirmed} of {workers}")
    if not workers:
        lines.append(
            "no worker with a sign of life consumes it; write a queue of an app with a key prefix "
            "as playbooks/queues.yml lists it"
        )
    if claimed := number(raw.get("claimed")):
        lines.append(
            f"{_count(claimed, 'task')} claimed before: running tasks finish, tasks with an ETA go "
            "back when they are due"
        )
    return "\n".join([*lines, *_unsaved(raw, "the pause")])


def _unsaved(raw: Mapping[str, Any], what: str) -> list[str]:
    """The line for what a power cut may undo."""
    why = raw.get("unsaved")
    if not (isinstance(why, str) and why):
        return []
    return [f"a power cut of Redis may undo {what}: {reported.shown(why, 200)}"]


def problem(
    raw: Mapping[str, Any],
    queue: str,
    action: str = "pause",
    declared: Sequence[str] = (),
    prefixes: Sequence[str] = (),
) -> str:
    """Which workers may still start tasks of a paused queue; empty where none may.

    :param declared: queues of the inventory, without the prefix of an app.
    :param prefixes: those of apps.
    """
    name, left = reported.shown(queue), raw.get("unconfirmed")
    known = {prefix + one for one in declared for prefix in ("", *prefixes)}
    if action == "resume" and not number(raw.get("done")) and queue not in known:
        return (
            f"{name} is not paused, and celery_queues has no queue of this name\n"
            "  Fix: write queues_from as playbooks/queues.yml lists it. Nothing was changed."
        )
    if raw.get("is_kept") is False:
        return (
            f"{name} was resumed before all workers had confirmed the pause\n"
            "  Another run of playbooks/queues.yml resumed it, or Redis lost its last second.\n"
            "  Fix: run this again."
        )
    some = [one for one in left if isinstance(one, Mapping)] if isinstance(left, list) else []
    if not some:
        return ""
    lines = [f"{name} is paused, but {_count(len(some), 'worker')} may still start its tasks:"]
    lines += [f"  {_of_worker(one)}" for one in some[:MOST_WORKERS]]
    if len(some) > MOST_WORKERS:
        lines.append(f"  and {len(some) - MOST_WORKERS} more")
    fix = "look at these workers, then run this again. The queue stays paused"
    return "\n".join([*lines, f"  Fix: {fix}."])


def _of_worker(one: Mapping[str, Any]) -> str:
    node, ahead, silent = (one.get(key) for key in ("node", "ahead", "silent_seconds"))
    if number(silent):
        why = f"no sign of life for {number(silent)} s"
    elif number(ahead):
        why = f"its pool has {_count(number(ahead), 'task')} not started yet"
    else:
        why = "it has not confirmed"
    return f"{reported.shown(node, WIDTH)}: {why}"


def number(value: Any) -> int:
    """A count that a host reports; 0 for anything else."""
    return min(value, 1 << 53) if type(value) is int and value >= 0 else 0


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"pauses_by": lambda _: by(), "pauses_problem": problem}
