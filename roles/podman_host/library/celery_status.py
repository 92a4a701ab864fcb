#!/usr/bin/python
"""What every worker of a host does, from one call of systemctl and one of Podman."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_status
short_description: Report the state of each worker of a host, changing nothing
description:
  - Reads systemd's word on all declared workers and those started by hand, the status line that
    each worker writes, and the images of the running containers.
author: celery-metal
"""

EXAMPLES = r"""
- name: Look at the workers
  celery_status:
  register: status_host
"""

RETURN = r"""
error:
  description: Why nothing is known, which is no failure; then nothing else is returned
  type: str
  returned: when systemd says nothing
destination: {description: What the host was deployed for, or empty, type: str, returned: success}
beat: {description: What Beat does, empty where it is not to run, type: str, returned: success}
workers:
  description: >-
    For each worker C(queue), C(queues) (those that it consumes), C(instance), C(state),
    C(restarts), C(concurrency), C(busy), C(done), C(version), and C(since) in seconds since 1970;
    null is what nobody knows
  type: list
  returned: always
"""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_destinations import recorded_destination

if TYPE_CHECKING:
    from celery_metal_types import HostStatus, PlannedQueue, Worker

BEAT = "celery-beat"
QUADLETS = Path("/etc/containers/systemd/celery-metal")
MARKER = Path("/etc/celery-metal/drained")
PLAN = Path("/etc/celery-metal/plan.json")
PROPERTIES = "Id,LoadState,ActiveState,SubState,StatusText,NRestarts,StateChangeTimestamp"
VERSION_LENGTH = 20
MOST_SAID = 200


def output(*argv: str) -> str:
    """What a command prints, or an empty string when it is missing."""
    if not shutil.which(argv[0]):
        return ""
    done = subprocess.run(argv, capture_output=True, check=False)
    return done.stdout.decode(errors="replace")


def blocks(shown: str) -> list[dict[str, str]]:
    """The properties of each unit that ``systemctl show`` prints, a unit once."""
    found = {}
    for block in shown.strip().split("\n\n"):
        # Not by splitlines(): a worker's status may hold what else ends a line, and forge an Id.
        one = dict(line.split("=", 1) for line in block.split("\n") if "=" in line)
        if "Id" in one:
            found[one["Id"]] = one
    return list(found.values())


def numbers(text: str) -> dict[str, int]:
    """What is in a worker's status line, such as ``emails: 4 processes, 2 busy, 1032 done``.

    >>> numbers("a: 1 busy: draining, 3 busy")
    {'busy': 3}
    >>> numbers("a: 1 thread, 0 busy, 7 done, 2 refused")
    {'concurrency': 1, 'busy': 0, 'done': 7}
    >>> numbers("a: 1 thread, 0 busy, 7 done, paused")
    {'concurrency': 1, 'busy': 0, 'done': 7}
    """
    count = r"([0-9]{1,12})"  # a task may send anything, and int() refuses 5000 digits
    words = r"(?:processe?s?|threads?|greenlets?)"
    more = r"(?:, \d+ refused)?(?:, paused(?:: \d+ of \d+ queues)?)?"
    if found := re.search(rf": {count} {words}, {count} busy, {count} done{more}$", text):
        return dict(zip(("concurrency", "busy", "done"), map(int, found.groups()), strict=True))
    found = re.search(rf": draining, {count} busy$", text)
    return {"busy": int(found.group(1))} if found else {}


def state(unit: dict[str, str], drained: bool) -> str:
    """One word or two for what a unit does."""
    active, sub = unit.get("ActiveState", ""), unit.get("SubState", "")
    if active == "active" and ": waiting for the broker" in unit.get("StatusText", ""):
        return "no broker"
    if active == "activating":
        return "restarting" if sub.startswith("auto-restart") else "starting"
    if active == "deactivating":
        return "draining"
    if active == "inactive" and unit.get("LoadState") == "not-found":
        return "not found"
    return "drained" if active == "inactive" and drained else active


def version(container: Mapping[str, Any]) -> str:
    """The tag of a container's image, or else the beginning of its digest or ID.

    >>> version({"Image": "registry.example:5000/app:1.2", "ImageID": "0123456789abcdef"})
    '1.2'
    """
    image: str = container.get("ImageID", "")
    name: str = container.get("Image", "").rpartition("/")[2]
    name, _, digest = name.partition("@sha256:")
    if digest:
        return digest[:12]
    tag = name.partition(":")[2]
    return tag[:VERSION_LENGTH] if tag else image[:12]


def since(unit: dict[str, str], drained_at: float | None) -> int | None:
    """When the unit came into its state; a drained one perhaps never left it since the boot."""
    if drained_at is not None and unit.get("ActiveState") == "inactive":
        return int(drained_at)
    stamp = unit.get("StateChangeTimestamp", "").removeprefix("@")
    return int(stamp) if stamp.isdigit() and stamp != "0" else None


def row(
    unit: dict[str, str],
    consumed: Mapping[str, PlannedQueue],
    versions: Mapping[str, str],
    drained_at: float | None,
) -> Worker:
    """One worker, as the table of the fleet needs it.

    :param consumed: the middle of a unit's name to its queue's row in the plan.
    :param versions: service to the version that its container runs.
    """
    slug, _, instance = unit["Id"].removesuffix(".service").removeprefix("celery-").rpartition("@")
    # systemd may keep the last words of a worker that is gone.
    running = unit.get("ActiveState") in ("active", "deactivating")
    said = numbers(unit.get("StatusText", "")) if running else {}
    queue = consumed.get(slug)
    name = queue["name"] if queue else slug
    return {
        "queue": name,
        "queues": queue.get("queues", [name]) if queue else [name],
        "instance": instance,
        "state": state(unit, drained_at is not None),
        "restarts": int(unit.get("NRestarts") or 0),
        "concurrency": said.get("concurrency"),
        "busy": said.get("busy"),
        "done": said.get("done"),
        "version": versions.get(unit["Id"]) if running else None,
        "since": since(unit, drained_at),
    }


def schedule(unit: dict[str, str], drained: bool) -> str:
    """What Beat says of itself, or else the state of its unit."""
    said, now = unit.get("StatusText", "")[:MOST_SAID], state(unit, drained)
    said = "".join(char if char.isprintable() else "?" for char in said)
    return said.removeprefix("schedule: ") if said and now in ("active", "no broker") else now


def units(quadlets: Path) -> list[str]:
    """What to ask systemd for: Beat, declared instances, and all that it has of the templates."""
    stems = sorted(path.stem for path in quadlets.glob("celery-*@*.container"))
    stems += [BEAT] if (quadlets / f"{BEAT}.container").exists() else []
    return [f"{stem}*.service" if stem.endswith("@") else f"{stem}.service" for stem in stems]


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    planned: list[PlannedQueue] = json.loads(PLAN.read_text())["queues"] if PLAN.exists() else []
    consumed = {queue["unit"]: queue for queue in planned}
    asked = units(QUADLETS)
    words = ("systemctl", "show", f"--property={PROPERTIES}", "--timestamp=unix", "--", *asked)
    found = blocks(output(*words)) if asked else []
    if asked and not found:
        error = f"systemctl says nothing of {', '.join(asked)}: is systemd running?"
        module.exit_json(changed=False, error=error)
    # All: Podman lists one that is being stopped only then.
    listed = output(
        "podman", "ps", "--all", "--filter", "label=celery-metal.generation", "--format", "json"
    )
    versions = {
        one["Labels"].get("PODMAN_SYSTEMD_UNIT", ""): version(one)
        for one in json.loads(listed or "[]")
    }
    drained_at = MARKER.stat().st_mtime if MARKER.exists() else None
    beats = [one for one in found if one["Id"] == f"{BEAT}.service"]
    result: HostStatus = {
        "workers": [row(one, consumed, versions, drained_at) for one in found if one not in beats],
        "beat": schedule(beats[0], drained_at is not None) if beats else "",
        "destination": recorded_destination(),
    }
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
