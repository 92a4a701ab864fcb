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
    description: Tag of the version's image.
    type: str
    default: ""
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
image: {description: The version's image, type: str, returned: success}
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError, run
from ansible.module_utils.podman_store import images_gone


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


def built(images: Sequence[str]) -> dict[str, str]:
    """When each of these images was built, where Podman reports it: date and time in UTC."""
    shown = run("podman", "image", "inspect", *images).stdout if images else "[]"
    dates = [str(one.get("Created", "")) for one in json.loads(shown or "[]")]
    found = dict(zip(images, dates, strict=False)) if len(dates) == len(images) else {}
    return {
        image: f"{date[:10]} {date[11:16]} UTC"
        for image, date in found.items()
        if re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", date)
    }


def chosen(
    version: str,
    images: Sequence[str],
    gone: Mapping[str, str],
    dates: Callable[[Sequence[str]], Mapping[str, str]] = built,
) -> str:
    """The image of a version.

    :param images: of the versions that worked, the newest last.
    :param gone: those that are not on this host any more, or what is wrong with them.
    :param dates: as ``built``.
    :raises HostError: when it is gone, or none of them.

    >>> chosen("1", ["a:1", "a:2"], {})
    'a:1'
    """
    kept = [image for image in images if image not in gone]
    for image in kept:
        if tag(image) == version:
            return image
    removed = [image for image in images if image in gone and not gone[image]]
    damaged = {image: gone[image] for image in images if gone.get(image)}
    lines = [f"rollback_version is {version or 'not given'}"]
    if version in map(tag, removed):
        lines[0] += ", and its image was removed from this host, as 'podman system prune -a' does"
    elif removed:
        lines.append(f"  images of {', '.join(map(tag, removed))} were removed from this host")
    lines += [f"  the image of {tag(one)} is damaged: {why}" for one, why in damaged.items()]
    if kept:
        when = dates(kept)
        shown = [tag(one) + (f" (built {when[one]})" if one in when else "") for one in kept]
        lines.append(f"  this host has kept, the newest last: {', '.join(shown)}")
        remedy = "give one of them with -e rollback_version=TAG, or deploy the sources of another"
    else:
        lines.append("  this host has kept the image of no version")
        remedy = "deploy the sources of the version that you want"
    lines.append(f"  Fix: {remedy} with site.yml. Nothing was changed.")
    raise HostError("\n".join(lines))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "default": ""},
            "host": {"type": "str", "required": True},
            "state_file": {"type": "path", "default": "/var/lib/celery-metal/workers.json"},
        },
        supports_check_mode=True,
    )
    host = module.params["host"]
    try:
        images = worked(Path(module.params["state_file"]), host)
        image = chosen(module.params["version"], images, images_gone(images))
    except HostError as problem:
        module.fail_json(msg=f"{host}: {problem}")
    module.exit_json(changed=False, image=image)


if __name__ == "__main__":
    main()
