"""The unit files of the version that last worked on a host, and the images of the last ones."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.celery_metal import run, write_durably

KEPT_VERSIONS = 5
# Of an app's image: the reference of the one that it was built on.
BASE_LABEL = "celery-metal.base"


def snapshot(patterns: Iterable[str]) -> dict[str, dict[str, str]]:
    """Content of all files, and target of all links, that match the patterns."""
    paths = sorted({path for pattern in patterns for path in glob.glob(pattern)})
    links = {path: os.readlink(path) for path in paths if os.path.islink(path)}
    return {"links": links, "files": {p: Path(p).read_text() for p in paths if p not in links}}


def digests(patterns: Iterable[str]) -> dict[str, str]:
    """The SHA-1 of all files, and ``-> target`` of all links, that match the patterns."""
    paths = {path for pattern in patterns for path in glob.glob(pattern)}
    found = {path: f"-> {os.readlink(path)}" for path in paths if os.path.islink(path)}
    for path in paths - found.keys():
        if os.path.isfile(path):
            content = Path(path).read_bytes()
            found[path] = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return found


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


def unit_of(path: str) -> str:
    """The unit that a file makes: ``a@1.container`` gives ``a@1.service``; others their name."""
    return re.sub(r"\.container$", ".service", Path(path).name)


def units_of(version: dict[str, dict[str, str]]) -> set[str]:
    """The units that a version's files make, templates too."""
    units = {unit_of(path) for kind in version.values() for path in kind}
    return {unit for unit in units if unit.endswith((".service", ".target"))}


def only(version: dict[str, dict[str, str]] | None, unit: str) -> dict[str, dict[str, str]]:
    """What a version has of one unit.

    >>> only({"links": {}, "files": {"/q/a.container": "x", "/q/b.container": "y"}}, "b.service")
    {'links': {}, 'files': {'/q/b.container': 'y'}}
    """
    kinds = version or {"links": {}, "files": {}}
    return {
        kind: {path: text for path, text in found.items() if unit_of(path) == unit}
        for kind, found in kinds.items()
    }


def with_earlier(
    version: dict[str, dict[str, str]], earlier: dict[str, dict[str, str]] | None, unit: str
) -> dict[str, dict[str, str]]:
    """A version, with what an earlier one has of one unit; without it where that has nothing."""
    own, before = only(version, unit), only(earlier, unit)
    return {
        kind: {path: text for path, text in found.items() if path not in own[kind]} | before[kind]
        for kind, found in version.items()
    }


def values(version: dict[str, dict[str, str]], pattern: str) -> list[str]:
    """What a pattern finds in the lines of a version's files, sorted, each once."""
    texts = version["files"].values()
    return sorted({one for text in texts for one in re.findall(pattern, text, re.M)})


def read_state(path: str) -> dict[str, Any]:
    """What was kept of the versions that worked; nothing before the first."""
    try:
        state: dict[str, Any] = json.loads(Path(path).read_text())
    except (FileNotFoundError, ValueError):  # or damaged: as good as nothing
        return {"version": None, "images": []}
    return state


def write_state(path: str, state: dict[str, Any]) -> None:
    """Keep it, over a power cut, too: without it the images of earlier versions would be pruned."""
    write_durably(Path(path), json.dumps(state, indent=1))


def brings_back(path: str, removed: Collection[str]) -> bool:
    """Whether the version that last worked has one of these files."""
    version = read_state(path)["version"] or {}
    return any(one in kind for kind in version.values() for one in removed)


def forget(path: str, removed: Collection[str]) -> None:
    """Have the version that last worked not bring back these files."""
    if brings_back(path, removed):
        state = read_state(path)
        state["version"] = {
            name: {one: text for one, text in kind.items() if one not in removed}
            for name, kind in state["version"].items()
        }
        write_state(path, state)


def exists(image: str) -> bool:
    """Whether Podman has an image; also where it does not report it."""
    return run("podman", "image", "exists", image).returncode != 1


def kept(versions: list[str], image: str, exists: Callable[[str], bool] = exists) -> list[str]:
    """The versions to keep, the newest last, after one more that worked.

    :param exists: asked where one is too many: an image that an administrator has removed takes the
        place of none that can come back.
    """
    others = [one for one in versions if one != image]
    if len(others) >= KEPT_VERSIONS:
        others = [one for one in others if exists(one)]
    return [*others, image][-KEPT_VERSIONS:]


def held_images(units: Collection[str]) -> set[str]:
    """IDs of the images of all containers but those of these units."""
    listed = json.loads(run("podman", "ps", "--all", "--format", "json").stdout or "[]")
    unit = "PODMAN_SYSTEMD_UNIT"
    return {one["ImageID"] for one in listed if (one["Labels"] or {}).get(unit) not in units}


def unneeded(
    listed: list[dict[str, Any]], image: str, base: str, images: list[str], held: set[str]
) -> list[str]:
    """The images of the same name that are not kept, and what no app is built on any more.

    :param listed: what ``podman images`` says.
    :param image: the app's; it need not be there yet, and is built on ``base``.
    :param images: the references that are kept.
    :param held: IDs of images that stay, for containers of others use them.
    """
    name, bases = image.rpartition(":")[0], f"{image.rpartition(':')[0]}_base:"
    ids = {reference: one["Id"] for one in listed for reference in one.get("Names") or []}
    # App to what it is built on; what came from a registry is known by this alone.
    built_on = {
        reference: (one.get("Labels") or {}).get(BASE_LABEL, "")
        for one in listed
        for reference in one.get("Names") or []
        if reference.rpartition(":")[0] == name
    }
    gone = [one for one in built_on if one not in images and ids[one] not in held]
    needed = {of for one, of in built_on.items() if one not in gone} | {base}
    known = {one for one in ids if one.startswith(bases)} | {built_on[app] for app in gone}
    return gone + sorted(one for one in known - needed if one in ids and ids[one] not in held)
