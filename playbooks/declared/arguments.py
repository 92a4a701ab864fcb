"""The options of playbooks: names that are slips, and values that cannot be read."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from texts import FALSE, TRUE, shown, word

#: Playbook to the variables that it takes on the command line, besides the inventory's.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "bundle": ("bundle_path", "bundle_host", "bundle_signing_key"),
    "dead": (
        *("dead_action", "dead_id", "dead_queue", "dead_task", "dead_reason"),
        *("dead_all", "dead_confirmed", "dead_file"),
    ),
    "doctor": ("doctor_accept", "doctor_format", "doctor_strict"),
    "drain": ("drain_all",),
    "logs": (
        *("logs_queue", "logs_unit", "logs_task", "logs_text"),
        *("logs_since", "logs_until", "logs_lines"),
    ),
    "producer": (
        *("producer_to", "producer_place", "producer_broker_variables", "producer_certificate"),
    ),
    "queues": (
        *("queues_action", "queues_from", "queues_to", "queues_reason", "queues_confirmed"),
        "queues_left",  # of site.yml
    ),
    "remove": ("remove_confirmed",),
    "restore": ("restore_file", "restore_confirmed"),
    "rollback": ("rollback_version",),
    "rotate-secrets": ("rotate_finish", "rotate_certificates"),
    "run": (
        *("run_command", "run_memory_mb", "run_on", "run_queue", "run_seconds"),
        *("run_terminal", "run_version"),
    ),
    "status": ("status_format",),
    "upgrade": ("upgrade_serial",),
}
#: Values that no other check judges. A switch with another word would count as false.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "status_format": ("table", "json"),
    **dict.fromkeys(("drain_all", "remove_confirmed", "rotate_certificates"), TRUE + FALSE),
    "rotate_finish": TRUE + FALSE,
}
CLOSE = 0.85
# Beginnings of the variables of roles, which a file of variables may hold.
OURS = ("capacity_", "celery_", "deploy_", "image_", "podman_host_", "redis_")


def problem(
    playbook: str,
    given: Mapping[str, Any],
    variables: Mapping[str, Any],
    read: Callable[[Any], Any],
) -> str:
    """What is wrong with the options of a playbook; empty when nothing is.

    :param playbook: its name without .yml; one that is not known has no options.
    :param given: the variables of the command line.
    :param variables: all of a host.
    :param read: fills in the templates of a value, and raises ValueError when it cannot.
    """
    known = OPTIONS.get(playbook, ())
    found = _slip(known, given) if known else None
    for name in known:
        found = found or _unreadable(name, variables, read)
    return f"{found[0]}.\n  Fix: {found[1]}. Nothing was changed." if found else ""


def _slip(known: tuple[str, ...], given: Mapping[str, Any]) -> tuple[str, str] | None:
    """A name of the command line that is meant as an option, and would do nothing.

    >>> _slip(OPTIONS["queues"], {"queue_action": "pause"})
    ('queue_action is an unknown variable', 'write queues_action')
    """
    prefix = known[0].partition("_")[0]
    heads = {prefix, prefix.removesuffix("s"), f"{prefix}s"}
    has_option = any(name in given for name in known)
    others = [name for name in given if isinstance(name, str) and name not in known]
    for name in sorted(name for name in others if not name.startswith(OURS)):
        head, _, rest = name.partition("_")
        is_ours = head in heads and rest
        likely = f"{prefix}_{rest if head in heads else name}"
        if not is_ours and has_option:
            # Beside an option it is a word of the inventory's templates, such as "version".
            near = difflib.get_close_matches(name, known, 1, CLOSE)
        elif name in heads:
            near = [f"one of {', '.join(known)}" if len(known) > 1 else known[0]]
        elif likely in known:
            near = [likely]
        else:
            near = difflib.get_close_matches(likely if is_ours else name, known, 1, CLOSE)
        if near:
            return f"{word(name)} is an unknown variable", f"write {near[0]}"
    return None


def _unreadable(
    name: str, variables: Mapping[str, Any], read: Callable[[Any], Any]
) -> tuple[str, str] | None:
    """What is wrong with the value of an option, before any check of its own."""
    if name not in variables:
        return None
    try:
        value = read(variables[name])
    except ValueError as error:
        why = " ".join(str(error).split())
        return f"{name} cannot be read: {shown(why)[1:-1]}", f"correct the template in {name}"
    choices = CHOICES.get(name)
    is_switch = choices == TRUE + FALSE
    text = str(value).lower() if is_switch and isinstance(value, bool | int | str) else value
    if choices and text not in choices:
        words = ("true", "false") if is_switch else choices
        return f"{name} is {shown(value)}", f"write {' or '.join(words)}"
    return None
