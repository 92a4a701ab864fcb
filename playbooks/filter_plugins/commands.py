"""One-off commands: what an operator asks for, and on which hosts it runs."""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Beside this file, and rules that are no plugins; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "declared"))
import queue_entries
import reported
from arguments import OPTIONS
from texts import FALSE, REST, TRUE

KNOWN = OPTIONS["run"]
# Bytes of a command; the kernel takes 128 kB for one word. MB; seconds in ten years.
CLOSE = 0.85
MOST_BYTES, MOST_MB, MOST_SECONDS, LONGEST = 65536, 1 << 30, 315360000, 255
MOST_NAMES = 12
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
EXAMPLE = "write -e \"run_command='python manage.py migrate'\""


def words(command: Any) -> list[str]:
    """A command as a program and its arguments; no shell reads it.

    :raises ValueError: when it is neither a list of texts nor a text whose quotes match.

    >>> words("python -c 'print(1)'")
    ['python', '-c', 'print(1)']
    """
    if isinstance(command, str):
        found = shlex.split(command)
    elif isinstance(command, Sequence) and all(isinstance(one, str) for one in command):
        found = list(command)
    else:
        raise ValueError("it is neither a text nor a list of texts")
    if not found or not found[0]:
        raise ValueError("it is empty")
    if any("\0" in one for one in found):
        raise ValueError("it holds a character that ends a text (NUL)")
    if sum(len(one.encode(errors="surrogatepass")) + 1 for one in found) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    return found


def queues_of(hosts: Mapping[str, Mapping[str, Any]], celery: Sequence[str]) -> list[str]:
    """The names in the celery_queues of these hosts, each once.

    :param hosts: Ansible's hostvars.
    :param celery: the hosts that are to run workers.
    """
    return list(dict.fromkeys(str(one["name"]) for one in queue_entries.entries(hosts, celery)))


def problems(variables: Mapping[str, Any], hosts: Sequence[str], declared: Sequence[str]) -> str:
    """What is wrong with the variables of ``playbooks/run.yml``; empty when nothing is.

    :param variables: all of a host.
    :param hosts: those of the play.
    :param declared: names in celery_queues.
    """
    # Others may be templates that need facts.
    given = {name: variables[name] for name in variables if name.startswith("run_")}
    found = _cut(variables) or _problem(given, hosts) or _queue_problem(given, declared)
    return f"{found[0]}.\n  Fix: {found[1]}. Nothing was run." if found else ""


def _cut(variables: Mapping[str, Any]) -> tuple[str, str] | None:
    """Whether Ansible has taken words of the command for something else."""
    rest = [name for name in variables if name == REST or name.startswith("-")]
    if not rest:
        return None
    first = reported.shown(variables.get(REST, rest[0]))
    return f'the command ends before "{first}": its words need quotes of their own', EXAMPLE


def _problem(given: Mapping[str, Any], hosts: Sequence[str]) -> tuple[str, str] | None:
    # An inventory may have others of its own.
    for name in sorted(given.keys() - {*KNOWN}):
        if near := difflib.get_close_matches(name, KNOWN, 1, CLOSE):
            return f"{name} is an unknown variable", f"write {near[0]}"
    if "run_command" not in given:
        return "run_command is not set", EXAMPLE
    try:
        words(given["run_command"])
    except ValueError as error:
        return f'run_command is "{reported.shown(given["run_command"])}": {error}', EXAMPLE
    queue = given.get("run_queue", "a")
    if not (isinstance(queue, str) and queue.isprintable() and 0 < len(queue) <= LONGEST):
        return f'run_queue is "{reported.shown(queue)}"', "write the name of a queue"
    where = given.get("run_on", "first")
    if where not in ("first", "all", *hosts):
        names = f"first, all, or one of {', '.join(hosts[:12])}"
        return f'run_on is "{reported.shown(where)}"', f"write {names}"
    version = given.get("run_version", "a")
    if not (isinstance(version, str) and TAG.fullmatch(version)):
        tags = "write the tag of a version; playbooks/rollback.yml lists them"
        return f'run_version is "{reported.shown(version)}"', tags
    for name, most in (("run_memory_mb", MOST_MB), ("run_seconds", MOST_SECONDS)):
        if not 1 <= _number(given.get(name, 1)) <= most:
            return f'{name} is "{reported.shown(given[name])}"', f"write 1 to {most}"
    terminal = str(given.get("run_terminal", "true")).lower()
    if terminal not in TRUE + FALSE:
        return f'run_terminal is "{reported.shown(given["run_terminal"])}"', "write true or false"
    if where == "all" and "run_terminal" in given and terminal in TRUE and len(hosts) > 1:
        return "run_terminal is true, and run_on is all", "name one host: there is one terminal"
    return None


def _queue_problem(given: Mapping[str, Any], declared: Sequence[str]) -> tuple[str, str] | None:
    queue = given.get("run_queue")
    if queue is None or queue in declared:
        return None
    names = [*declared[:MOST_NAMES], *(["..."] if len(declared) > MOST_NAMES else [])]
    named = f"write one of {', '.join(map(reported.shown, names))}; " if names else ""
    said = f'run_queue is "{reported.shown(queue)}", which is not in celery_queues'
    return said, f"{named}pass the same -e variables as to site.yml"


def _number(value: Any) -> int:
    """A whole number, as -e NAME=value gives it; 0 for anything else."""
    is_number = re.fullmatch(r"[0-9]{1,12}", str(value), re.ASCII)
    return int(str(value)) if is_number and not isinstance(value, bool) else 0


def targets(hosts: Mapping[str, Mapping[str, Any]], play: Sequence[str]) -> list[str]:
    """The hosts that a command is to run on.

    :param hosts: hostvars; each host of the play has ``run_found``, or did not answer.
    :param play: hosts of the play, in order.
    """
    given = hosts[play[0]]
    where, queue = given.get("run_on", "first"), given.get("run_queue", "")
    if where not in ("first", "all"):
        return [where]
    said = {host: hosts[host].get("run_found", {}).get("queues") for host in play}
    here = {host: one if isinstance(one, list) else [] for host, one in said.items()}
    found = [host for host in play if (queue in here[host] if queue else here[host])]
    if where == "first":
        return found[:1] or list(play[:1])
    return found or list(play[:1])


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "command_words": words,
            "run_problems": problems,
            "run_queues": queues_of,
            "run_targets": targets,
        }
