"""Images that go though an interrupted build has left its containers on them.

A build that is killed, such as by a power cut, leaves a container for each of its stages. Podman
lists them with --external only, and removes no image that one of them uses.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from ansible.module_utils.celery_metal import run

PROC = Path("/proc")
# What such containers run, to Podman.
COMMAND = ["buildah"]
# Layers of ours that no image needs, and containers of builds on them.
PRUNE = (
    *("podman", "image", "prune", "--force", "--external"),
    *("--filter", "label=celery-metal.image=1"),
)
# Of a message of Podman's.
LONGEST = 300


def removal(image: str) -> str:
    """Remove an image, with what an interrupted build has left on it; why it stays, or nothing."""
    failed = run("podman", "rmi", image)
    if not failed.returncode:
        return ""
    left = left_on(run("podman", "image", "inspect", "--format", "{{.Id}}", image).stdout.strip())
    if left and (builds := running_builds()):
        return f"a build uses it ({', '.join(builds)}). The next change of a worker removes it"
    names = " ".join(left)
    remedy = f"Fix: 'podman rm --force {names}' there, then 'podman rmi {image}'"
    if left and shutil.which("buildah"):
        # Whether somebody still works in them is not to be seen.
        return f"these containers of Buildah use it: {', '.join(left)}. {remedy}"
    if left:
        run("podman", "rm", "--force", *left)
        failed = run("podman", "rmi", image)
        if not failed.returncode:
            run(*PRUNE)
            return ""
    why = next(iter(reversed(failed.stderr.strip().splitlines())), "Podman gives no reason")
    return why[:LONGEST]


def left_on(image: str) -> list[str]:
    """Names of the containers of builds that use an image, by its ID."""
    listed = json.loads(
        run("podman", "ps", "--all", "--external", "--format", "json").stdout or "[]"
    )
    return sorted(
        one["Names"][0]
        for one in listed
        if image and one["ImageID"] == image and one["Command"] == COMMAND and one.get("Names")
    )


def running_builds() -> list[str]:
    """Each process that builds an image, such as ``podman build, process 4711``."""
    found = []
    for path in PROC.glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()[:4096].decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        program = words[0].rpartition("/")[2]
        if re.match(r"buildah\b", program) or (
            program in ("podman", "podman-remote") and {"build", "bud"} & {*words[1:]}
        ):
            verb = " build" if program.startswith("podman") else ""
            found.append(f"{program}{verb}, process {path.parent.name}")
    return sorted(found)
