#!/usr/bin/python
"""Check that a host can go back to a version of the app, before anything changes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_versions
short_description: Refuse a version of the app that did not work here, or has no whole image
description:
  - The last five versions that worked stay as images, until an administrator removes one, as
    C(podman system prune --all) does with those that no container uses.
  - Changes nothing. The refusal lists the versions whose images are there.
options:
  version:
    description: Tag of the version's image; empty for a list of the versions.
    type: str
    default: ""
  variable:
    description: The variable that names it, for messages.
    type: str
    default: rollback_version
  host:
    description: Name of this host in the inventory.
    type: str
    required: true
  state_file:
    description: Where I(celery_services) keeps which versions worked.
    type: path
    default: /var/lib/celery-metal/workers.json
author: celery-metal
"""

EXAMPLES = r"""
- name: Check that the version is one that this host has kept
  celery_versions:
    version: 4d2af1cb9d7c3dfa
    host: "{{ inventory_hostname }}"
"""

RETURN = r"""
image: {description: The version's image, type: str, returned: with a version}
listed: {description: The versions whose images are there, type: str, returned: without a version}
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError, run
from ansible.module_utils.podman_store import images_gone

# Of an app's image: the commit of its code.
REVISION = "org.opencontainers.image.revision"


def worked(state_file: Path, host: str) -> list[str]:
    """The images of the versions that worked here, the newest last.

    :param host: its name in the inventory.
    :raises HostError: when there is none.
    """
    try:
        images: list[str] = json.loads(state_file.read_text())["images"]
    except (OSError, ValueError, KeyError, TypeError):
        images = []
    if not images:
        raise HostError(
            f"no version has worked there yet ({state_file} is missing or names none)\n"
            f"  Fix: leave the host out: --limit 'all:!{host}'. Nothing was changed."
        )
    return images


def tag(image: str) -> str:
    """What an operator names a version by.

    >>> tag("localhost:5000/a:1"), tag("a@sha256:2")
    ('1', '2')
    """
    return image.rpartition(":")[2]


def described(images: Sequence[str]) -> dict[str, str]:
    """When each of these images was built, in UTC, and of which commit, where Podman reports it."""
    shown = run("podman", "image", "inspect", *images).stdout if images else "[]"
    every = json.loads(shown or "[]")
    found = dict(zip(images, every, strict=False)) if len(every) == len(images) else {}
    return {image: text for image, one in found.items() if (text := _description(one))}


def _description(inspected: Mapping[str, Any]) -> str:
    date = str(inspected.get("Created", ""))
    commit = str((inspected.get("Labels") or {}).get(REVISION, ""))
    parts = []
    if re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", date):
        parts.append(f"built {date[:10]} {date[11:16]} UTC")
    if re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit):
        changes = " and uncommitted changes" if commit.endswith("-dirty") else ""
        parts.append(f"commit {commit[:12]}{changes}")
    return ", ".join(parts)


def chosen(
    version: str,
    images: Sequence[str],
    gone: Mapping[str, str],
    describe: Callable[[Sequence[str]], Mapping[str, str]] = described,
    variable: str = "rollback_version",
) -> str:
    """The image of a version.

    :param images: of the versions that worked, the newest last.
    :param gone: those that are not on this host any more, or what is wrong with them.
    :param describe: as ``described``.
    :param variable: which names the version.
    :raises HostError: when it is gone, or none of them.

    >>> chosen("1", ["a:1", "a:2"], {})
    'a:1'
    """
    kept = [image for image in images if image not in gone]
    for image in kept:
        if tag(image) == version:
            return image
    lines = [f"{variable} is {version}"]
    if any(tag(image) == version and not why for image, why in gone.items()):
        lines[0] += ", and its image was removed from this host, as 'podman system prune -a' does"
    remedy = f"give one of them with -e {variable}=TAG, or deploy the sources of another"
    if not kept:
        remedy = "deploy the sources of the version that you want"
    lines += [
        *listed(images, gone, describe),
        f"  Fix: {remedy} with site.yml. Nothing was changed.",
    ]
    raise HostError("\n".join(lines))


def listed(
    images: Sequence[str],
    gone: Mapping[str, str],
    describe: Callable[[Sequence[str]], Mapping[str, str]] = described,
) -> list[str]:
    """Lines about the versions of this host; the parameters are those of ``chosen``."""
    kept = [image for image in images if image not in gone]
    removed = [tag(image) for image in images if image in gone and not gone[image]]
    lines = [f"  images of {', '.join(removed)} were removed from this host"] if removed else []
    lines += [f"  the image of {tag(one)} is damaged: {why}" for one, why in gone.items() if why]
    if not kept:
        return [*lines, "  this host has kept the image of no version"]
    known = describe(kept)
    shown = [f"  - {tag(one)}" + (f" ({known[one]})" if one in known else "") for one in kept]
    return [*lines, "  this host has kept, the newest last:", *shown]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "default": ""},
            "variable": {"type": "str", "default": "rollback_version"},
            "host": {"type": "str", "required": True},
            "state_file": {"type": "path", "default": "/var/lib/celery-metal/workers.json"},
        },
        supports_check_mode=True,
    )
    host, version = module.params["host"], module.params["version"]
    try:
        images = worked(Path(module.params["state_file"]), host)
        gone = images_gone(images)
        if version:
            found = {"image": chosen(version, images, gone, variable=module.params["variable"])}
        else:
            found = {"listed": "\n".join([f"{host}:", *listed(images, gone)])}
    except HostError as problem:
        module.fail_json(msg=f"{host}: {problem}")
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
