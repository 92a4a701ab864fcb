#!/usr/bin/python
"""Remove images that are damaged, and see that those that came are on the disk."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_images
short_description: Remove damaged images before others come, or write those that came to the disk
description:
  - Podman lists an image before the files of its layers are on the disk. A power cut then leaves
    files that are empty, and what is built or loaded next is made of the same layers.
  - C(clean) removes images of celery-metal that are damaged, and all that share a damaged layer.
    Units whose containers run on one are stopped first, and so drained.
  - C(record) writes the file system of the store to the disk, compares the images with what Podman
    recorded of them, and keeps their IDs in C(/var/lib/celery-metal/images.json).
options:
  images:
    description: References of the images that the site needs.
    type: list
    elements: str
    required: true
  step:
    description: What to do.
    type: str
    choices: [clean, record]
    required: true
author: celery-metal
"""

EXAMPLES = r"""
- name: Remove images that are damaged
  celery_images:
    images: ["localhost/celery-metal/app:4d2af1cb9d7c3dfa"]
    step: clean
"""

RETURN = r"""
removed: {description: Names or IDs of the images that were removed, type: list, returned: always}
stopped: {description: Units that were stopped for that, type: list, returned: always}
told: {description: What was done, a line each, type: list, returned: when something was}
"""

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ansible.module_utils import podman_images
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError, conclude, output, run, write_durably
from ansible.module_utils.podman_images import RECORD, Store

UNIT = "PODMAN_SYSTEMD_UNIT"
# Podman removes a layer without an image only when it is older than this, or damaged in its eyes.
REPAIR = ("podman", "system", "check", "--quick", "--repair", "--max", "1ns")


def users(listed: Sequence[Mapping[str, Any]], images: Collection[str]) -> dict[str, str]:
    """Container to the unit that runs it, of those on these images.

    :param listed: what ``podman ps`` reports.
    :raises HostError: when one is none of ours: it is not ours to stop.
    """
    found = {}
    for one in listed:
        if one["ImageID"] not in images:
            continue
        name, unit = one["Names"][0], (one.get("Labels") or {}).get(UNIT, "")
        if not unit.startswith("celery-"):
            raise HostError(
                f"the container {name} uses {one.get('Image') or one['ImageID'][:12]}, which is "
                "damaged and must be removed\n"
                f"  Fix: podman rm --force {name} there, then run again. Nothing was changed."
            )
        found[name] = unit
    return found


def name_of(store: Store, image: str) -> str:
    """What to call an image in a message."""
    names: list[str] = store.images[image].get("names") or [image[:12]]
    return names[0]


def clean(references: Sequence[str], *, check_mode: bool) -> dict[str, Any]:
    """Remove what is damaged, and what uses it.

    :raises HostError: when it cannot be removed.
    """
    if not shutil.which("podman"):  # a clean host, under --check
        return {"changed": False, "removed": [], "stopped": []}
    store = podman_images.current()
    wanted = {store.id_of(one) for one in references}
    found, layers = podman_images.removable(store, wanted)
    units: list[str] = []
    if found:
        listed = json.loads(output("podman", "ps", "--all", "--format", "json") or "[]")
        containers = users(listed, found)
        units = sorted({*containers.values()})
        if not check_mode:
            if units:
                run("systemctl", "stop", "--", *units)
            # Also those that a power cut has left.
            run("podman", "rm", "--force", "--ignore", *containers) if containers else None
            run("podman", "rmi", "--force", *found)
    if (found or layers) and not check_mode:
        left = podman_images.removable(podman_images.current(), wanted)
        if any(left) or leftover(podman_images.current()):
            repaired = run(*REPAIR)
            left = podman_images.removable(podman_images.current(), wanted)
        if any(left):
            reason = next(iter([*left[0].values(), *left[1]]))
            raise HostError(
                f"Podman does not remove what is damaged: {reason}: {repaired.stderr.strip()}\n"
                f"  Fix: stop the workers there ('systemctl stop celery.target'), run 'podman "
                "system check --repair --force', then site.yml. Tasks stay in Redis. Do not "
                "remove the directory of the store: it has Podman's secrets, too."
            )
    named = {name_of(store, image): why for image, why in found.items()}
    names = sorted(named)
    lines = [f"stop {unit}" for unit in units] + [f"remove image {one}" for one in names]
    told = [
        f"removed {', '.join(some)}: damaged: {why}"
        for why, some in podman_images.by_cause(named).items()
    ]
    if units:
        told.append(f"stopped {', '.join(units)}, which ran on a damaged image")
    if layers:
        told.append(f"removed {len(layers)} damaged layers without an image")
    return {
        "changed": bool(found or layers),
        "told": [] if check_mode else told,
        "removed": names,
        "stopped": units,
        "diff": {"prepared": "".join(f"{line}\n" for line in lines)},
    }


def leftover(store: Store) -> list[str]:
    """Directories of layers that Podman does not know, as after the loss of layers.json."""
    top = store.root / store.driver
    known = set(store.layers) | {one["id"] for one in volatile(store)}
    return sorted(
        one.name for one in top.iterdir() if len(one.name) == 64 and one.name not in known
    )


def volatile(store: Store) -> list[dict[str, Any]]:
    """The layers of containers that do not outlive a boot."""
    path = store.root / f"{store.driver}-layers" / "volatile-layers.json"
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text() or "[]") or []
        return found
    except (FileNotFoundError, ValueError):
        return []


def record(references: Sequence[str], *, check_mode: bool) -> dict[str, Any]:
    """Write the store to the disk, and keep which images are whole there.

    :raises HostError: when the disk does not take it, or an image is damaged.
    """
    diff = {"prepared": f"write {RECORD}\n"}
    if check_mode:
        return {"changed": True, "removed": [], "stopped": [], "diff": diff}
    root, driver = podman_images.place()
    written = run("sync", "--file-system", str(root))
    if written.returncode:
        raise HostError(
            f"the images are not on the disk: {written.stderr.strip()}\n"
            "  Fix: look at the disk there ('dmesg', 'df -h'), then run again. No unit was changed."
        )
    found = podman_images.look(references)
    if found.damaged:
        lines = "\n".join(f"  {one}: {why}" for one, why in found.damaged.items())
        raise HostError(
            f"these images are damaged though they have just come:\n{lines}\n"
            "  Fix: look at the disk and its free space there ('dmesg', 'df -h'), then run again. "
            "No unit was changed."
        )
    before = podman_images.recorded()
    ids = {found.whole[one] for one in references if one in found.whole}
    kept = sorted(ids | {*before.get("images", [])} & {*found.whole.values()})
    now = {"store": str(root), "driver": driver, "images": kept}
    if before != now:
        write_durably(RECORD, json.dumps(now, indent=1))
    changed = before != now
    return {"changed": changed, "removed": [], "stopped": [], "diff": diff if changed else {}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "images": {"type": "list", "elements": "str", "required": True},
            "step": {"type": "str", "choices": ["clean", "record"], "required": True},
        },
        supports_check_mode=True,
    )
    step = {"clean": clean, "record": record}[module.params["step"]]
    references = module.params["images"]
    conclude(
        module,
        lambda: step(references, check_mode=module.check_mode),
        changes=True,
        warned="told",
    )


if __name__ == "__main__":
    main()
