"""Names of images by their content, build contexts and image archives, on the controller."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    from ansible.errors import AnsibleFilterError as ImageError
except ImportError:  # the pure functions work, and are tested, without Ansible

    class ImageError(Exception):  # type: ignore[no-redef]
        """What is wrong with an image variable, and what to do."""


# Never part of an image: histories, environments, caches, and files that hold secrets by custom.
EXCLUDED = frozenset(
    (".git", ".hg", ".svn", ".venv", "venv", "__pycache__", "node_modules", ".env", ".ssh")
)
EXCLUDED_ENDINGS = (".pyc", ".pyo", ".swp", ".pem", ".key")
TAG_LENGTH = 16
REQUIREMENTS = "requirements.txt"
SOURCES = ("build", "registry", "archive")


def context_files(sources: dict[str, str]) -> dict[str, Path]:
    """All files of a build context, by their path in it.

    :param sources: directory in the context to directory on the controller.
    :returns: sorted by path; what EXCLUDED names is left out.
    :raises ImageError: when a source is no directory, or holds what cannot be copied.
    """
    found = {}
    for prefix, source in sources.items():
        top = Path(source).expanduser()
        if not top.is_dir():
            raise ImageError(
                f"{source} is not a directory on the controller: write the path of one there."
            )
        for folder, folders, names in os.walk(top):
            folders[:] = [name for name in folders if name not in EXCLUDED]
            for name in names:
                if name not in EXCLUDED and not name.endswith(EXCLUDED_ENDINGS):
                    path = Path(folder, name)
                    if not path.is_file():
                        raise ImageError(
                            f"{path} is no file, or a link to none: remove it, or mend the link."
                        )
                    found[str(Path(prefix, path.relative_to(top)))] = path
    return dict(sorted(found.items()))


def context_tar(sources: dict[str, str], recipe: Any) -> bytes:
    """A build context as a tar archive that depends on nothing but names, modes and content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        text = json.dumps(recipe, sort_keys=True).encode()
        for name, path in {".recipe": None, **context_files(sources)}.items():
            entry = tarfile.TarInfo(name)
            content = _content(path) if path else text
            entry.mode = 0o755 if path and os.access(path, os.X_OK) else 0o644
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise ImageError(f"{path} cannot be read: {problem.strerror}. Mend its rights.") from None


def image_tag(sources: dict[str, str], recipe: Any) -> str:
    """The tag of an image: 16 hex digits of the SHA-256 of all that it is built from.

    :param sources: as for :func:`context_files`.
    :param recipe: whatever else decides the content, such as the list of packages.
    """
    return hashlib.sha256(context_tar(sources, recipe)).hexdigest()[:TAG_LENGTH]


def image_context(sources: dict[str, str], recipe: Any, directory: str) -> str:
    """Write the build context into a directory of the controller, once; returns the file's path."""
    folder = Path(directory).expanduser()
    path = folder / f"context-{image_tag(sources, recipe)}.tar.gz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(gzip.compress(context_tar(sources, recipe), mtime=0))
        unfinished.replace(path)
    return str(path)


def archive_image_id(path: str) -> str:
    """The ID of the one image in an OCI or Docker archive: 64 hex digits, without ``sha256:``.

    :raises ImageError: when there is no such file, or not exactly one image in it.
    """
    file = Path(path).expanduser()
    try:
        with tarfile.open(file) as tar:
            names = set(tar.getnames())

            def read(name: str) -> Any:
                member = tar.extractfile(name)
                return json.load(member) if member else None

            if "index.json" in names:
                manifests = read("index.json")["manifests"]
                if len(manifests) == 1:
                    digest = manifests[0]["digest"].replace(":", "/")
                    return read(f"blobs/{digest}")["config"]["digest"].removeprefix("sha256:")
            elif "manifest.json" in names:
                manifests = read("manifest.json")
                if len(manifests) == 1:
                    found = re.search(r"[0-9a-f]{64}", manifests[0]["Config"])
                    if not found:
                        raise ValueError("its manifest.json names no image")
                    return found.group()
            else:
                manifests = []
    except (OSError, tarfile.TarError, KeyError, TypeError, ValueError) as problem:
        raise ImageError(
            f"{path} cannot be read as an image archive: {problem}. Make one with "
            f"'podman save --format oci-archive -o FILE IMAGE' and name it here."
        ) from None  # Ansible would print the cause once more
    raise ImageError(f"{path} holds {len(manifests)} images; an archive of exactly one is needed.")


def registry_problem(name: str, reference: str) -> str:
    """Why a reference may not be deployed from a registry; empty when it may."""
    if not reference:
        return f"{name} is empty: name the image, such as registry.example/team/app:1.2.3."
    if re.search(r"\s", reference) or "/" not in reference:
        return f"{name} ({reference!r}) must name its registry: registry.example/team/app:1.2.3."
    if "@sha256:" in reference:
        return ""
    tag = reference.rsplit("/", 1)[-1].partition(":")[2]
    if tag in ("", "latest"):
        return (
            f"{name} ({reference!r}) names no version: 'latest' is another image tomorrow, and "
            f"hosts would differ. Write a version's tag or @sha256:digest."
        )
    return ""


def with_version(reference: str, version: str) -> str:
    """A reference with another tag, or another digest where that is 64 hex digits.

    >>> with_version("registry.example:5000/shop:2", "1")
    'registry.example:5000/shop:1'
    """
    path, _, last = reference.partition("@")[0].rpartition("/")
    name = f"{path}/{last.partition(':')[0]}"
    return f"{name}@sha256:{version}" if len(version) == 64 else f"{name}:{version}"


def image_references(
    images: dict[str, str],
    source: str,
    recipe: dict[str, Any],
    version: str = "",
    build_host: str = "",
    hosts: Sequence[str] = (),
) -> dict[str, str]:
    """The reference under which each image is known on every host.

    :param images: ``app`` and ``redis`` to what the user wrote: a reference for ``registry``, a
        path for ``archive``, nothing for ``build``.
    :param source: one of SOURCES.
    :param recipe: for ``build``: image to its ``sources`` and ``layers``.
    :param version: tag or digest of the app's image that a host has kept, in place of what is
        declared.
    :param build_host: for ``build``: the host that builds, one of ``hosts``; not checked if empty.
    :raises ImageError: naming the variable, its value and the remedy; nothing was changed then.
    """
    try:
        if source == "build" and build_host and build_host not in hosts:
            raise ImageError(
                f"image_build_host is {build_host!r}, which is no host of the groups celery and "
                "redis: write the name of one of them, or leave it out for the host of Redis."
            )
        return _references(images, source, recipe, version)
    except ImageError as problem:
        raise ImageError(f"{problem}\nNothing was changed on any host.") from None


def image_references_or_problem(*args: Any) -> dict[str, str]:
    """What image_references gives, or ``problem`` with the reason why not.

    Text instead of an exception: Ansible buries a filter's exception under three layers of its own.
    """
    try:
        return image_references(*args)
    except ImageError as problem:
        return {"problem": str(problem)}


def image_failure(
    result: Mapping[str, Any], host: str, references: Sequence[str], source: str
) -> str:
    """Why a host has not got its images, and what to do.

    :param result: the failed task's, of one try or of a loop.
    :param references: the images that it lacked.
    """
    tries = [one for one in result.get("results", []) if one.get("failed")] or [result]
    reason = "; ".join(str(one.get("msg", "no reason was given")).strip() for one in tries)
    remedy = (
        "Check image_app, image_redis, image_registry_auth_file and the way to the registry, or "
        if source == "registry"
        else "Look at "
    )
    return (
        f"{host} did not get {' and '.join(references)}: {reason.rstrip('.')}. Its workers run on "
        f"with the image they have. {remedy}the free space of /var/lib there, then run again."
    )


def _references(
    images: dict[str, str], source: str, recipe: dict[str, Any], version: str
) -> dict[str, str]:
    if source not in SOURCES:
        raise ImageError(f"image_source is {source!r}; it must be one of {', '.join(SOURCES)}.")
    if source == "registry":
        problems = [registry_problem(f"image_{name}", one) for name, one in images.items()]
        if any(problems):
            raise ImageError("\n".join(filter(None, problems)))
        app = {"app": with_version(images["app"], version)} if version else {}
        return {**images, **app}
    references = {}
    for name, one in images.items():
        if source == "archive":
            if not one:
                raise ImageError(
                    f"image_{name} is empty: with image_source 'archive' it is the path of an "
                    f"image archive on the controller."
                )
            try:
                tag = archive_image_id(one)[:TAG_LENGTH]
            except ImageError as problem:
                raise ImageError(f"image_{name}: {problem}") from None
        else:
            try:
                _check_app(recipe[name]["sources"])
                tag = image_tag(recipe[name]["sources"], recipe[name]["layers"])
            except ImageError as problem:
                raise ImageError(f"image_app_source: {problem}") from None
        references[name] = f"localhost/celery-metal/{name}:{tag}"
    if version:
        references["app"] = with_version(references["app"], version)
    return references


def _check_app(sources: dict[str, str]) -> None:
    app = sources.get("app")
    if (
        app
        and Path(app).expanduser().is_dir()
        and not Path(app, REQUIREMENTS).expanduser().is_file()
    ):
        raise ImageError(
            f"{app} has no {REQUIREMENTS}: write one with hashes there, such as 'uv pip compile "
            "--generate-hashes' makes; celery and redis must be among them."
        )


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "image_context": image_context,
            "image_failure": image_failure,
            "image_references_or_problem": image_references_or_problem,
        }
