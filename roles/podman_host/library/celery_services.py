#!/usr/bin/python
"""Restart and start any number of units with few systemctl calls; workers without a pause."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_services
short_description: Bring systemd units to their new version, and back when it does not work
description:
  - C(ansible.builtin.systemd_service) takes one unit a task, so its cost grows with the queues.
  - Waits until every unit is up; a worker is when a task of its own has run.
  - Units of I(surge) are replaced without a pause. Beside each an instance of the new version is
    started, C(a@surge1.service) beside C(a@1.service). When all of these are up, the old ones are
    restarted, which drains them; then the instances beside them are drained and stopped. As many
    units at a time as fit into I(free_mb); one that does not fit is restarted by itself.
  - What failed is shown with its last journal lines. With I(owned), all unit files are brought back
    to what they were when this module last succeeded, and all units to that version.
options:
  restart:
    description: Units to restart, last. Workers drain before they stop.
    type: list
    elements: str
    default: []
  start:
    description: Units to start, first.
    type: list
    elements: str
    default: []
  leftover:
    description: Instances beside others that an interrupted run left; drained and stopped.
    type: list
    elements: str
    default: []
  surge:
    description: Template, such as C(a@.service), to the memory in MB that one instance may use.
    type: dict
    default: {}
  free_mb:
    description: Memory in MB for instances beside the old ones.
    type: int
    default: 0
  owned:
    description: Glob patterns of the unit files that make up a version.
    type: list
    elements: str
    default: []
  image:
    description:
      - The image of this version. The last five that worked stay on the host, others of its name
        are removed.
    type: str
    default: ""
  state_file:
    description: Where the unit files and the images of versions that worked are kept.
    type: path
    default: /var/lib/celery-metal/workers.json
  journal_lines:
    description: Journal lines to show of each unit that failed.
    type: int
    default: 30
author: celery-metal
"""

EXAMPLES = r"""
- name: Bring the workers to what is declared
  celery_services:
    restart: [celery-add_queue@1.service]
    start: [celery-multiply_queue@1.service, celery-multiply_queue@2.service]
    surge: {celery-add_queue@.service: 400}
    free_mb: 1000
"""

RETURN = r"""
turns:
  description: The units that were restarted together, and the instances that ran beside them.
  type: list
  returned: success
removed_images: {description: Images that were removed, type: list, returned: success}
"""

import glob
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

KEPT_VERSIONS = 5


class ServicesError(Exception):
    """Units did not come up; the text names them and holds their journal."""


class Turn(NamedTuple):
    """Units that are restarted together, and what runs beside them meanwhile."""

    units: list[str]
    beside: list[str]


def template_of(unit: str) -> str:
    """The template of an instance: ``a@1.service`` gives ``a@.service``; others are their own."""
    return re.sub(r"@.+\.service$", "@.service", unit)


def beside(unit: str) -> str:
    """The instance that runs beside another: ``a@1.service`` gives ``a@surge1.service``."""
    return re.sub(r"@(.+)\.service$", r"@surge\1.service", unit)


def turns(units: list[str], surge: dict[str, int], free_mb: int) -> list[Turn]:
    """Divide units into turns whose instances beside them fit into the free memory.

    :param units: to restart, in this order.
    :param surge: template to memory in MB; others are restarted without one beside them.
    :param free_mb: memory in MB.
    :returns: turns with each unit once; those that nothing can run beside come last, one by one.
    """
    sizes = {unit: surge.get(template_of(unit)) for unit in units}
    found, room = [], 0
    for unit in units:
        size = sizes[unit]
        if size is None or size > free_mb:
            continue
        if not found or size > room:
            found.append(Turn([], []))
            room = free_mb
        found[-1].units.append(unit)
        found[-1].beside.append(beside(unit))
        room -= size
    plain = [unit for unit in units if sizes[unit] is None]
    if plain:
        found.append(Turn(plain, []))
    alone = [unit for unit in units if (sizes[unit] or 0) > free_mb]
    return [*found, *(Turn([unit], []) for unit in alone)]


def kept(versions: list[str], image: str) -> list[str]:
    """The versions to keep, the newest last, after one more that worked."""
    return [*(one for one in versions if one != image), image][-KEPT_VERSIONS:]


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def active(unit: str) -> bool:
    """Whether a unit is up; one that waits for its next try ("activating") has failed."""
    return run("systemctl", "is-active", unit).stdout.strip() == "active"


def journal(unit: str, lines: int) -> str:
    """State and last journal lines of a unit, for an error message."""
    state = run("systemctl", "show", "-p", "Result,ExecMainStatus,StatusText", unit).stdout
    log = run("journalctl", "--no-pager", "-o", "short-iso", "-n", str(lines), "-u", unit).stdout
    return f"== {unit}: {', '.join(state.split(chr(10))).strip(', ')}\n{log}"


def bring(verb: str, units: list[str], lines: int) -> None:
    """Run one systemctl call.

    :raises ServicesError: when not all units are up afterwards.
    """
    if not units:
        return
    done = run("systemctl", verb, "--", *units)
    failed = [unit for unit in units if not active(unit)]
    if done.returncode or failed:
        logs = "\n".join(journal(unit, lines) for unit in failed)
        names = ", ".join(failed or units)
        raise ServicesError(f"systemctl {verb} failed for {names}: {done.stderr.strip()}\n{logs}")


def take(turn: Turn, touched: list[str], lines: int) -> None:
    """Replace the units of one turn, and add them to those that were touched when they are.

    :raises ServicesError: when not all come up; what runs beside them is gone then, too.
    """
    try:
        bring("start", turn.beside, lines)
        touched += turn.units
        bring("restart", turn.units, lines)
    finally:
        stop(turn.beside)


def stop(units: list[str]) -> None:
    """Drain and stop units; one that failed is forgotten, and not tried again."""
    if units:
        run("systemctl", "stop", "--", *units)
        run("systemctl", "reset-failed", "--", *units)


# ------------------------------------------------------------------------------------------
# Versions


def snapshot(patterns: Iterable[str]) -> dict[str, dict[str, str]]:
    """Content of all files, and target of all links, that match the patterns."""
    paths = sorted({path for pattern in patterns for path in glob.glob(pattern)})
    links = {path: os.readlink(path) for path in paths if os.path.islink(path)}
    return {"links": links, "files": {p: Path(p).read_text() for p in paths if p not in links}}


def restore(wanted: dict[str, dict[str, str]], patterns: Iterable[str]) -> None:
    """Make what matches the patterns what it was at a snapshot."""
    now = snapshot(patterns)
    for kind, found in now.items():
        for path in found:
            if wanted[kind].get(path) != found[path]:
                os.unlink(path)
    for path, target in wanted["links"].items():
        if now["links"].get(path) != target:
            os.symlink(target, path)
    for path, content in wanted["files"].items():
        if now["files"].get(path) != content:
            Path(path).write_text(content)
            os.chmod(path, 0o644)


def units_of(version: dict[str, dict[str, str]]) -> set[str]:
    """The instances and targets that a version's files make."""
    names = {Path(path).name for kind in version.values() for path in kind}
    units = {name.replace(".container", ".service") for name in names}
    return {unit for unit in units if "@." not in unit}


def go_back(
    version: dict[str, dict[str, str]], touched: list[str], params: dict[str, Any]
) -> list[str]:
    """Bring unit files and the units that were touched back to a version; those that are not up."""
    known = units_of(version)
    # Before their files go: after a reload systemd would no longer know how to stop them.
    stop([unit for unit in touched if unit not in known])
    restore(version, params["owned"])
    run("systemctl", "daemon-reload")
    back = [unit for unit in touched if unit in known]
    working = [unit for unit in back if active(unit)]
    broken = [unit for unit in back if unit not in working]
    if broken:
        run("systemctl", "restart", "--", *broken)
    for turn in turns(working, params["surge"], params["free_mb"]):
        try:
            take(turn, [], 0)
        except ServicesError:
            continue  # named by its state, below
    run("systemctl", "start", "--", *sorted(known))
    return sorted(unit for unit in known if not active(unit))


def read_state(path: str) -> dict[str, Any]:
    """What was kept of the versions that worked; nothing before the first."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        return {"version": None, "images": []}


def write_state(path: str, state: dict[str, Any]) -> None:
    """Keep it; a reader never sees a half of it."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = Path(f"{path}.new")
    temporary.write_text(json.dumps(state, indent=1))
    temporary.chmod(0o600)
    os.replace(temporary, path)


def prune(image: str, before: list[str], images: list[str]) -> list[str]:
    """Remove the images of the same name that are not kept; those in use stay."""
    name = image.rpartition(":")[0]
    listed = run("podman", "images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    # Of a registry's only what was deployed from here.
    mine = {one for one in listed if one.startswith("localhost/")} | set(before)
    old = [one for one in listed if one.rpartition(":")[0] == name and one in mine]
    gone = [one for one in old if one not in images]
    return [one for one in gone if not run("podman", "rmi", one).returncode]


def roll(params: dict[str, Any]) -> list[Turn]:
    """Start and restart everything; the turns that were taken.

    :raises ServicesError: with what failed, and what was done about it.
    """
    lines, touched = params["journal_lines"], list(params["start"])
    planned = turns(params["restart"], params["surge"], params["free_mb"])
    try:
        stop(params["leftover"])
        bring("start", params["start"], lines)
        for turn in planned:
            take(turn, touched, lines)
    except ServicesError as problem:
        version = read_state(params["state_file"])["version"] if params["owned"] else None
        if version is None:
            raise
        down = go_back(version, touched, params)
        text = "The previous version is back, its unit files too"
        text += (
            f", but these are not up: {', '.join(down)}. " if down else ", and all units are up. "
        )
        raise ServicesError(f"{problem}{text}") from None
    return planned


def main() -> None:
    lists = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "restart": lists,
            "start": lists,
            "leftover": lists,
            "surge": {"type": "dict", "default": {}},
            "free_mb": {"type": "int", "default": 0},
            "owned": lists,
            "image": {"type": "str", "default": ""},
            "state_file": {"type": "path", "default": "/var/lib/celery-metal/workers.json"},
            "journal_lines": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    params = module.params
    wanted = params["restart"] + params["start"] + params["leftover"]
    if not wanted or module.check_mode:
        planned = turns(params["restart"], params["surge"], params["free_mb"])
        module.exit_json(changed=bool(wanted), turns=[turn._asdict() for turn in planned])
    # An earlier run may have been cut off after it wrote and before systemd read.
    run("systemctl", "daemon-reload")
    try:
        planned = roll(params)
    except ServicesError as problem:
        module.fail_json(
            msg=f"{socket.gethostname()}: {problem}Mend what the journal names, then run the same "
            f"playbook again: it goes on where this run ended."
        )
    removed = []
    if params["owned"]:
        before = read_state(params["state_file"])["images"]
        images = kept(before, params["image"]) if params["image"] else before
        write_state(params["state_file"], {"version": snapshot(params["owned"]), "images": images})
        removed = prune(params["image"], before, images) if params["image"] else []
    module.exit_json(
        changed=True, turns=[turn._asdict() for turn in planned], removed_images=removed
    )


if __name__ == "__main__":
    main()
