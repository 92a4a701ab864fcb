"""Which images in Podman's store are whole: compared with what Podman recorded of them.

Podman lists an image as soon as its records are on the disk; the files of its layers may not be. A
power cut within the next half minute leaves them empty, and Podman does not look. For each layer it
has a list of the files with their sizes (tar-split): what differs from it is damaged.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ansible.module_utils.celery_metal import HostError, output

# Which images are on the disk, and where the store is, so that Podman need not be asked.
RECORD = Path("/var/lib/celery-metal/images.json")
OURS = "localhost/celery-metal/"
# Of each image that is built here, and of all steps on the way to it.
LABEL = "celery-metal.image"
# How Podman names the files in which it keeps an image's manifest and configuration.
PLAIN = re.compile(r"[a-z0-9.]+")
FILE = b'{"type":1,'
# Of a file's name in a message.
LONGEST = 200


class Store(NamedTuple):
    """What Podman's store has, as its own records say; with none of the files behind them."""

    root: Path
    driver: str
    images: dict[str, dict[str, Any]]
    layers: dict[str, dict[str, Any]]

    def chain(self, image: str) -> Iterator[str]:
        """The layers of an image, from the top; also those that are missing."""
        layer = self.images[image].get("layer", "")
        seen: set[str] = set()
        while layer and layer not in seen:
            seen.add(layer)
            yield layer
            layer = self.layers.get(layer, {}).get("parent", "")

    def id_of(self, reference: str) -> str:
        """The ID of the image with this name (with a tag or a digest); empty without one."""
        repository, _, digest = reference.partition("@")
        for image, known in self.images.items():
            names = known.get("names") or []
            digests = {known.get("digest"), *(known.get("big-data-digests") or {}).values()}
            beginnings = (f"{repository}:", f"{repository}@")
            if reference in names or (
                digest in digests and any(one.startswith(beginnings) for one in names)
            ):
                return image
        return ""

    def is_ours(self, image: str) -> bool:
        """Whether an image was built here, or is a step on the way to one."""
        if any(one.startswith(OURS) for one in self.images[image].get("names") or []):
            return True
        path = _data(self, image, f"sha256:{image}")
        try:
            return LABEL in json.loads(path.read_text())["config"]["Labels"]
        except (OSError, ValueError, KeyError, TypeError):
            return False


def recorded() -> dict[str, Any]:
    """The place of the store and the IDs of the images that are on the disk; or nothing."""
    try:
        kept = json.loads(RECORD.read_text())
        return {
            "store": str(kept["store"]),
            "driver": str(kept["driver"]),
            "images": [str(one) for one in kept["images"]],
        }
    except (OSError, ValueError, KeyError, TypeError):  # or damaged: as good as nothing
        return {}


def place() -> tuple[Path, str]:
    """The directory of Podman's store, and its driver.

    :raises HostError: when Podman does not report it.
    """
    words = output("podman", "info", "--format", "{{.Store.GraphRoot}} {{.Store.GraphDriverName}}")
    root, _, driver = words.strip().rpartition(" ")
    return Path(root), driver


def read(root: Path, driver: str) -> Store:
    """What the store has.

    :raises HostError: when its records cannot be read, naming the file.
    """
    # In this order: an image is added after its layers.
    images = _records(root / f"{driver}-images" / "images.json")
    layers = _records(root / f"{driver}-layers" / "layers.json")
    return Store(root, driver, images, layers)


def _records(path: Path) -> dict[str, dict[str, Any]]:
    try:
        text = path.read_text()
        return {one["id"]: one for one in json.loads(text or "[]") or []}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as problem:
        raise HostError(
            f"Podman's store is damaged: {path} cannot be read ({problem})\n"
            "  Podman lists no image and starts no container; secrets and volumes are elsewhere\n"
            f"  Fix: mv {path} {path}.damaged there, then run ansible-playbook site.yml, which "
            "brings its images again; other images there are to be pulled again, too. Nothing was "
            "changed."
        ) from None


def current(known: Collection[str] = ()) -> Store:
    """The store of this host, where the last run found it, or else where Podman says it is.

    :param known: IDs of images that Podman has listed.
    :raises HostError: when it cannot be read.
    """
    kept = recorded()
    if kept and Path(kept["store"]).is_dir():
        store = read(Path(kept["store"]), kept["driver"])
        # Unless it was moved since.
        if store.images.keys() >= set(known):
            return store
    return read(*place())


class Found(NamedTuple):
    """The images of a host."""

    whole: dict[str, str]  # reference to ID; those that nobody asked about, too
    damaged: dict[str, str]  # reference to what is wrong
    unproven: list[str]  # whole, and perhaps not on the disk: there is no record of them


def look(references: Sequence[str]) -> Found:
    """What images there are, and how those with these names are.

    :raises HostError: when Podman lists none, and the remedy is not to bring ours again.
    """
    if not references:
        return Found(listed(), {}, [])
    try:
        known = listed()
    except HostError as failed:
        known = _listed_without_podman(references, failed)
    store = current(known.values())
    # Podman does not list an image whose layers it does not know.
    every = {one: known.get(one) or store.id_of(one) for one in references}
    ids = {one: image for one, image in every.items() if image}
    reasons = damage(store, [one for one in dict.fromkeys(ids.values()) if one in store.images])
    damaged = {one: reasons[image] for one, image in ids.items() if image in reasons}
    proven = recorded().get("images", [])
    return Found(
        {one: image for one, image in known.items() if image not in reasons},
        damaged,
        [one for one, image in ids.items() if one not in damaged and image not in proven],
    )


def listed() -> dict[str, str]:
    """Each reference by which Podman knows an image (tag and digest), with the image's ID.

    :raises HostError: when Podman lists none.
    """
    known = {}
    for image in json.loads(output("podman", "images", "--format", "json") or "[]"):
        for reference in [*(image.get("Names") or []), *(image.get("RepoDigests") or [])]:
            known[reference] = image["Id"]
    return known


def _listed_without_podman(references: Sequence[str], failed: HostError) -> dict[str, str]:
    """The same from the store itself: one image without its manifest, and Podman lists none."""
    store = current()
    damaged = damage(store, store.images)
    wanted = {store.id_of(one) for one in references}
    for image, reason in damaged.items():
        if image not in wanted and not store.is_ours(image):
            name = next(iter(store.images[image].get("names") or []), "an image without a name")
            raise HostError(
                f"{name} is damaged, and Podman lists no image: {reason}\n"
                f"  Fix: podman rmi --force {image[:12]} there, then run again. Nothing was "
                "changed."
            ) from None
    if not damaged:
        raise failed
    known = {name: one for one, has in store.images.items() for name in has.get("names") or []}
    return known | {one: store.id_of(one) for one in references if store.id_of(one)}


def damage(
    store: Store, images: Iterable[str], layers: dict[str, str] | None = None
) -> dict[str, str]:
    """Those of these images (IDs) that are not whole, each with what is wrong with it.

    :param layers: what was found of layers before, by ID; what is found now is added.
    """
    layers = {} if layers is None else layers
    found = {}
    for image in images:
        reason = _of_data(store, image)
        # From below: all that is on top of a damaged layer has the same cause.
        for layer in reversed(list(store.chain(image))):
            if layer not in layers:
                layers[layer] = _of_layer(store, layer)
            reason = reason or layers[layer]
        if reason:
            found[image] = reason
    return found


def by_cause(damaged: Mapping[str, str]) -> dict[str, list[str]]:
    """What is wrong, with the names of all that have it, sorted."""
    found: dict[str, list[str]] = {}
    for name, reason in sorted(damaged.items()):
        found.setdefault(reason, []).append(name)
    return found


def orphans(store: Store) -> list[str]:
    """Layers without an image, as a load that was cut off leaves them: the next one uses them."""
    used = {layer for image in store.images for layer in store.chain(image)}
    # A container's own layer has no digest; an incomplete one Podman removes by itself.
    return [
        layer
        for layer, one in store.layers.items()
        if layer not in used
        and one.get("diff-digest")
        and not (one.get("flags") or {}).get("incomplete")
    ]


def _data(store: Store, image: str, name: str) -> Path:
    if not PLAIN.fullmatch(name):
        name = f"={base64.b64encode(name.encode()).decode()}"
    return store.root / f"{store.driver}-images" / image / name


def _of_data(store: Store, image: str) -> str:
    for name, size in (store.images[image].get("big-data-sizes") or {}).items():
        try:
            has = _data(store, image, name).stat().st_size
        except FileNotFoundError:
            return f"its {_kind(name)} is missing"
        if has != size:
            return f"its {_kind(name)} has {has} of {size} bytes"
    return ""


def _kind(name: str) -> str:
    return "manifest" if name.startswith("manifest") else "configuration"


def _of_layer(store: Store, layer: str) -> str:
    if layer not in store.layers:
        return f"layer {layer[:12]} is missing"
    if store.driver != "overlay":
        return ""
    top = store.root / "overlay" / layer
    if not (top / "diff").is_dir():
        return f"layer {layer[:12]} has no files"
    for name in ("link", *(["lower"] if store.layers[layer].get("parent") else [])):
        # The next container that is made on it reads this: "readlink ...: invalid argument".
        if not (top / name).is_file() or not (top / name).stat().st_size:
            return f"{top}/{name} is empty"
    record = store.root / "overlay-layers" / f"{layer}.tar-split.gz"
    try:
        if not record.stat().st_size:
            return f"{record} is empty"
        differ = _differing(str(top / "diff"), _sizes(record))
    except FileNotFoundError:
        return ""  # a layer that came in another way: nothing to compare with
    except (OSError, EOFError, ValueError, zlib.error) as problem:
        return f"{record} cannot be read ({problem})"
    if not differ:
        return ""
    more = f", and so on, {len(differ)} files" if len(differ) > 1 else ""
    return f"layer {layer[:12]}: {differ[0]}{more}"


def _sizes(record: Path) -> dict[bytes, int]:
    """The files of a layer with their sizes, as Podman wrote them down; the last entry counts."""
    found = {}
    with gzip.open(record) as lines:
        for line in lines:
            if line.startswith(FILE):
                entry = json.loads(line)
                raw = entry.get("name_raw")
                name = base64.b64decode(raw) if raw else os.fsencode(entry.get("name", ""))
                found[name.lstrip(b"/")] = int(entry.get("size") or 0)
    return found


def _differing(top: str, sizes: Mapping[bytes, int]) -> list[str]:
    """What of these files differs, a line each."""
    start = os.fsencode(f"{top}/")
    found = []
    for name, size in sizes.items():
        if not size:
            continue
        try:
            has = os.lstat(start + name).st_size
        except (FileNotFoundError, NotADirectoryError):
            has = -1
        if has != size and not _is_reached_by_link(top, os.fsdecode(name)):
            path = f"/{_shown(name)}"
            found.append(f"{path} is missing" if has < 0 else f"{path} has {has} of {size} bytes")
    return found


def _shown(name: bytes) -> str:
    """A name as it may be printed, whatever is in it."""
    text = name.decode(errors="backslashreplace")
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)[-LONGEST:]


def _is_reached_by_link(top: str, name: str) -> bool:
    """Whether a file lies behind a link, which leads elsewhere here than in the container."""
    folders = PurePosixPath(name).parents
    return ".." in PurePosixPath(name).parts or any(Path(top, one).is_symlink() for one in folders)


def removable(store: Store, wanted: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """What must go before images are built or loaded, for these would be made of it.

    :param wanted: IDs of images that are ours, whatever they are called.
    :returns: images with what is wrong with each; and damaged layers of no image. Images of others
        are among them where they have a damaged layer of ours, and no others.
    """
    layers: dict[str, str] = {}
    damaged = damage(store, store.images, layers)
    found = {one: why for one, why in damaged.items() if one in wanted or store.is_ours(one)}
    bad = {layer for image in found for layer in store.chain(image) if layers[layer]}
    found |= {one: why for one, why in damaged.items() if bad.intersection(store.chain(one))}
    return found, [layer for layer in orphans(store) if _of_layer(store, layer)]
