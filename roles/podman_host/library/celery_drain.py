#!/usr/bin/python
"""Take the workers and Beat of a host out, and keep them out, whatever is started or booted."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_drain
short_description: Take all workers and Beat of a host out, or say which to start again
description:
  - A marker file makes each start of a worker, or of Beat, a success that does nothing, by the
    C(ConditionPathExists) in its unit; so boots, targets and operators start none.
  - Then all are stopped by one call, at the same time; each worker finishes its tasks first.
  - What ran is not remembered. Afterwards those are to be started that are declared.
options:
  drained:
    description:
      - Whether they shall be out. When not, only the marker is removed. That is refused while a
        declared worker's image is not on the host.
    type: bool
    required: true
  playbook:
    description:
      - What takes them out, or brings them back. With another name than the default, it brings back
        only what it has taken out itself.
    type: str
    default: playbooks/drain.yml
author: celery-metal
"""

EXAMPLES = r"""
- name: Take the workers out
  celery_drain:
    drained: true
"""

RETURN = r"""
stopped: {description: Services that ran and were stopped, type: list, returned: always}
start: {description: Declared services that may run and do not, type: list, returned: always}
"""

import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError, conclude, run
from ansible.module_utils.podman_store import images_gone

QUADLETS = Path("/etc/containers/systemd/celery-metal")
BEAT = "celery-beat.container"
MARKER = Path("/etc/celery-metal/drained")
CONDITION = f"ConditionPathExists=!{MARKER}"
DRAIN = "playbooks/drain.yml"
TEXT = "Written by celery-metal, {playbook}: no worker starts on this host.\n"
DOWN = ("inactive", "failed")


def templates(quadlets: Path) -> list[Path]:
    """The container files of the queues, sorted, and Beat's."""
    return sorted([*quadlets.glob("celery-*@.container"), *quadlets.glob(BEAT)])


def without_condition(files: list[Path]) -> list[str]:
    """Names of the files that the marker would not keep from starting."""
    return [path.name for path in files if CONDITION not in path.read_text().splitlines()]


def declared(quadlets: Path) -> set[str]:
    """The services that are declared: each has a link to its queue's template; and Beat."""
    links = {path.stem for name in ("celery-*@*.container", BEAT) for path in quadlets.glob(name)}
    return {f"{stem}.service" for stem in links if not stem.endswith("@")}


def images(files: Iterable[Path]) -> set[str]:
    """The images that containers of these files run."""
    return {one for file in files for one in re.findall(r"^Image=(.+)$", file.read_text(), re.M)}


def refuse_without_images(files: Iterable[Path]) -> None:
    """Nothing, where all images of these files are on the host.

    :raises HostError: when one was removed or is damaged: no unit pulls it, so none would start.
    """
    if gone := images_gone(sorted(images(files))):
        damaged = [f"  {one} is damaged: {why}\n" for one, why in gone.items() if why]
        pruned = (
            "  'podman system prune -a' removes images that no container uses, as on a drained "
            "host\n"
        )
        raise HostError(
            f"the workers need {', '.join(gone)}, which this host does not have any more\n"
            f"{''.join(damaged) or pruned}"
            "  Fix: run ansible-playbook site.yml, which brings the image and starts no worker "
            "here, then playbooks/undrain.yml. The host is still drained."
        )


def states(files: list[Path]) -> dict[str, str]:
    """ActiveState of each instance of the templates that systemd knows, by hand or declared."""
    patterns = [f"{path.stem}{'*' if path.stem.endswith('@') else ''}.service" for path in files]
    if not patterns:
        return {}
    words = ("list-units", "--all", "--plain", "--no-legend", "--no-pager", "--", *patterns)
    rows = [line.split(None, 3) for line in run("systemctl", *words).stdout.splitlines()]
    return {row[0]: row[2] for row in rows if len(row) > 2}


def up(found: dict[str, str]) -> list[str]:
    """The units that run, come up, wait for their next try, or go down, sorted."""
    return sorted(unit for unit, state in found.items() if state not in DOWN)


def stop(files: list[Path], units: list[str]) -> list[str]:
    """Stop the units; those that had to be killed.

    :raises HostError: when one still runs afterwards.
    """
    stopped = run("systemctl", "stop", "--", *units)
    after = states(files)
    if left := up(after):
        raise HostError(
            f"still running: {', '.join(left)}. {stopped.stderr.strip()} The host is being "
            f"drained: no worker starts there any more, for {MARKER} is written. See "
            f"'journalctl -u {left[0]}' there, then run the same playbook again; or bring all "
            "back with playbooks/undrain.yml."
        )
    return [unit for unit in units if after.get(unit) == "failed"]


def others(playbook: str) -> bool:
    """Whether another playbook, or an operator, keeps the workers out, which this must leave."""
    return playbook != DRAIN and MARKER.exists() and playbook not in MARKER.read_text()


def work(module: AnsibleModule) -> dict[str, Any]:
    """Drain the host, or let its workers start again; what was stopped, and what may start."""
    drained, was = module.params["drained"], MARKER.exists()
    playbook = module.params["playbook"]
    if not drained and others(playbook):
        return {"changed": False, "stopped": [], "start": []}
    files = templates(QUADLETS)
    if drained and (old := without_condition(files)):
        raise HostError(
            f"nothing was changed: {', '.join(old)} in {QUADLETS} lacks {CONDITION}, for an older "
            "celery-metal wrote it; its workers would start again. Run site.yml on this host first."
        )
    if was and not drained:
        refuse_without_images(files)
    if was != drained and not module.check_mode:
        if drained:
            # Before the stop: what is about to start already finds it.
            MARKER.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            MARKER.write_text(TEXT.format(playbook=playbook))
        else:
            MARKER.unlink()
    before = states(files)
    running = up(before) if drained else []
    if running and not module.check_mode:
        for unit in stop(files, running):
            module.warn(
                f"{socket.gethostname()}: {unit} did not end within its time and was killed. What "
                "it ran goes back to its queue when other workers have heard nothing of it for "
                f"90 s, or when it starts again. See 'journalctl -u {unit}' there; raise "
                "drain_seconds of its queue if its tasks take longer."
            )
    wanted = set() if drained else declared(QUADLETS)
    return {
        "changed": was != drained or bool(running),
        "stopped": running,
        "start": sorted(unit for unit in wanted if before.get(unit) != "active"),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "drained": {"type": "bool", "required": True},
            "playbook": {"type": "str", "default": DRAIN},
        },
        supports_check_mode=True,
    )
    conclude(module, lambda: work(module), changes=True)


if __name__ == "__main__":
    main()
