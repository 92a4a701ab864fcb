"""Hooks of a deploy: what is declared, whether this run deploys, and where they run."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Beside this file, and rules that are no plugins; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "declared"))
import commands
import declarations
from texts import shown

PHASES = ("before_workers", "after_workers", "on_failure")
KEYS = ("command", "memory_mb", "queue", "seconds", "where")
PLACES = ("host", "controller")
EXAMPLE = "write it as 'python manage.py migrate', or as {command: ..., queue: ..., seconds: ...}"
BEFORE = (
    "No worker was replaced. Mend it, and run the playbook again: it begins with the first hook."
)
#: As the module celery_run has it.
LEAST_MB = 64
COMMIT = re.compile(r"[0-9a-f]{40}(-dirty)?")


def problems(hooks: Any, queues: Any) -> list[str]:
    """What is wrong with ``deploy_hooks``, a line each.

    :param queues: ``celery_queues``; they may be wrong themselves.

    >>> problems({"before_workers": ["python manage.py migrate"]}, [])
    []
    """
    if not isinstance(hooks, Mapping):
        return []  # the argument specs know
    found = []
    for phase, entries in hooks.items():
        if phase not in PHASES:
            remedy = f"take one of {', '.join(PHASES)}"
            found.append(f"deploy_hooks has {shown(phase)}: {remedy}")
        elif not isinstance(entries, (list, type(None))):
            found.append(f"deploy_hooks.{phase} is {shown(entries)}, no list: {EXAMPLE}")
        else:
            names = {one.get("name") for one in queues if isinstance(one, Mapping)}
            for place, entry in enumerate(entries or []):
                said = _entry_problem(phase, entry, names)
                found += [f"deploy_hooks.{phase}[{place}] {said}"] if said else []
    return found


def _entry_problem(phase: str, entry: Any, queues: set[Any]) -> str:
    parts = entry if isinstance(entry, Mapping) else {"command": entry}
    if unknown := [key for key in parts if key not in KEYS]:
        return f"has {shown(unknown[0])}: take one of {', '.join(KEYS)}"
    try:
        commands.words(parts.get("command"))
    except ValueError as error:
        return f"has the command {shown(parts.get('command'))}: {error}: {EXAMPLE}"
    where = parts.get("where", "controller" if phase == "on_failure" else "host")
    if where not in PLACES:
        return f"has where: {shown(where)}: write host or controller"
    if phase == "on_failure" and where != "controller":
        return "has where: host: leave it out; after a failure commands run on the controller"
    if where == "controller":
        if not_there := [key for key in ("queue", "memory_mb") if key in parts]:
            return f"has {not_there[0]}, and runs on the controller: remove one of them"
    elif "queue" in parts and parts["queue"] not in queues:
        return f"has queue: {shown(parts['queue'])}: name one of celery_queues"
    for key, most in (("memory_mb", commands.MOST_MB), ("seconds", commands.MOST_SECONDS)):
        value = parts.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            return f"has {key}: {shown(value)}: write 1 to {most}"
    return ""


def fleet_problem(hosts: Mapping[str, Mapping[str, Any]], celery: Sequence[str]) -> str:
    """Why hooks cannot run once for all hosts; empty when they can.

    :param hosts: Ansible's hostvars; a value that waits for facts is passed over.
    :param celery: the hosts that are to run workers.
    """
    found: dict[str, list[str]] = {}
    for host in celery:
        unread: list[Any] = []
        hooks = declarations.read("deploy_hooks", hosts[host].get("deploy_hooks"), unread)
        if not unread:
            found.setdefault(json.dumps(hooks, sort_keys=True, default=str), []).append(host)
    if len(found) < 2:
        return ""
    (one, first), (other, second) = list(found.items())[:2]
    return (
        f"{second[0]}: deploy_hooks is {shown(json.loads(other))}, and {shown(json.loads(one))} on "
        f"{first[0]}: hooks run once for all hosts.\n"
        "  Fix: declare deploy_hooks for all hosts of the group celery, such as in "
        "group_vars/all.yml. Nothing was changed."
    )


def memory_problem(hosts: Mapping[str, Mapping[str, Any]], play: Sequence[str], image: str) -> str:
    """Which hook of this run does not fit into the free part of its host's plan; empty for none.

    :param hosts: as for ``deploys``.
    """
    host = hook_host(hosts, play)
    if not host:
        return ""
    free_mb = hosts[host]["capacity_plan"]["totals"]["free_mb"]
    for phase in PHASES[:2]:
        for place, one in enumerate(due(hosts, play, image, phase)):
            needed_mb = one.get("memory_mb", LEAST_MB)
            if one["where"] == "host" and needed_mb > free_mb:
                of_it = "" if "memory_mb" in one else ", the least for a hook without memory_mb"
                return (
                    f"{host}: deploy_hooks.{phase}[{place}] needs {needed_mb} MB{of_it}, and the "
                    f"plan of this host leaves {free_mb} MB free.\n"
                    "  Fix: give it less memory_mb, or give queues of this host less memory, such "
                    "as by a lower concurrency. Nothing was changed."
                )
    return ""


def entries(hooks: Mapping[str, Any], phase: str) -> list[dict[str, Any]]:
    """The hooks of a phase, as the action plugin ``celery_run`` takes them.

    >>> entries({"on_failure": ["notify 'it failed'"]}, "on_failure")
    [{'where': 'controller', 'command': ['notify', 'it failed']}]
    """
    place = "controller" if phase == "on_failure" else "host"
    found = [
        one if isinstance(one, Mapping) else {"command": one} for one in hooks.get(phase) or []
    ]
    return [{"where": place, **one, "command": commands.words(one["command"])} for one in found]


def deploys(hosts: Mapping[str, Mapping[str, Any]], play: Sequence[str], image: str) -> bool:
    """Whether workers of a host have another version of the app until now, or none.

    :param hosts: hostvars; each host was looked at and has a plan.
    :param play: hosts of the run.
    :param image: the app's image that this run brings.
    """
    return any(
        hosts[host]["podman_host_state"]["app_images"] != [image]
        for host in play
        if hosts[host]["capacity_plan"]["queues"]
    )


def hook_host(hosts: Mapping[str, Mapping[str, Any]], play: Sequence[str]) -> str:
    """The host that hooks run on: the first of the run with workers; empty without one."""
    found = (host for host in play if hosts[host]["capacity_plan"]["queues"])
    return next(found, "")


def due(
    hosts: Mapping[str, Mapping[str, Any]], play: Sequence[str], image: str, phase: str
) -> list[dict[str, Any]]:
    """The hooks of a phase that this run is to run.

    Those after the workers also where an earlier run, which brought this image, did not get there.

    :param hosts: as for ``deploys``.
    """
    host = hook_host(hosts, play)
    declared = entries(hosts[host].get("deploy_hooks") or {}, phase) if host else []
    if not declared or deploys(hosts, play, image):
        return declared
    is_left = hosts[host]["podman_host_state"]["hooks_left"] == image
    return declared if is_left and phase != "before_workers" else []


def _user() -> str:
    """Who runs the playbook, as the system or the environment names them."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user
        return str(os.getuid())


def environment(
    hosts: Mapping[str, Mapping[str, Any]], play: Sequence[str], image: str, result: str
) -> dict[str, str]:
    """What hooks on the controller find in their environment.

    :param result: how the deploy stands: ``running``, ``success`` or ``failure``.
    """
    commit = str((hosts[play[0]].get("image_app_found") or {}).get("revision", ""))
    return {
        "DEPLOY_VERSION": image.rpartition(":")[2],
        "DEPLOY_COMMIT": commit if COMMIT.fullmatch(commit) else "",
        "DEPLOY_BY": f"{_user()}@{socket.gethostname()}",
        "DEPLOY_HOSTS": ",".join(play),
        "DEPLOY_RESULT": result,
    }


def before(
    hosts: Mapping[str, Mapping[str, Any]], host: str, play: Sequence[str], image: str
) -> dict[str, Any]:
    """What the action plugin ``celery_run`` is to do on a host before its workers are replaced.

    :param hosts: as for ``deploys``.
    :returns: ``commands``, their ``environment``, and ``left``; empty where there is nothing to do.
    """
    if host != hook_host(hosts, play):
        return {}
    found = due(hosts, play, image, "before_workers")
    after = due(hosts, play, image, "after_workers")
    if not found and not after:
        return {}
    return {
        "host": host,
        "commands": found,
        "environment": environment(hosts, play, image, "running"),
        "left": image if after else "",
        "note": BEFORE,
    }


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "hooks_before": before,
            "hooks_due": due,
            "hooks_environment": environment,
            "hooks_fleet_problem": fleet_problem,
            "hooks_memory_problem": memory_problem,
            "hooks_host": hook_host,
        }
