"""Names of images by their content, build contexts and image archives, on the controller."""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import json
import os
import re
import shlex
import tarfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    from ansible.errors import AnsibleFilterError as ImageError
except ImportError:  # the pure functions work, and are tested, without Ansible

    class ImageError(Exception):  # type: ignore[no-redef]
        """What is wrong with an image variable, and what to do."""


# Never part of an image: histories, environments, caches, and files that hold secrets by custom.
EXCLUDED = (
    *(".git", ".hg", ".svn", ".venv", "venv", ".tox", ".nox", "__pycache__", "node_modules"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", "*.pyc", "*.pyo", "*.swp"),
    *(".env", ".env.*", ".envrc", ".ssh", ".aws", ".netrc", ".pypirc", "*.pem", "*.key", "*.p12"),
    *("*.pfx", "*.kdbx", "id_rsa", "id_ecdsa", "id_ed25519", ".vault_pass*"),
)
TAG_LENGTH = 16
SOURCES = ("build", "registry", "archive")
# What the distribution's packages and the app's requirements make, and all images that are built.
BASE = "app_base"
BUILT = (BASE, "redis")
# What says where an image comes from.
VARIABLES = {"app": "image_source", "redis": "image_redis_source"}
OURS = "localhost/celery-metal"
RELEASE = re.compile(r"[a-z][a-z0-9]*")
REFERENCE = re.compile(r"[A-Za-z0-9._:/@\[\]-]+")
# What a failed build calls an error; pip, a compiler and a setup.py mark theirs in these ways.
MARKED = r"^ *((?:ERROR|error|celery-metal): .*\S|\S+: fatal error: .*\S)"
# pip's name for the step that failed, without the reason.
EMPTY = re.compile(r"error: (?:metadata-generation-failed|subprocess-exited-with-error)")
# The last archive before the first step of pip that failed: the package that it was building.
FROM_SOURCE = re.compile(
    r"^ *(?:Downloading|Using cached) (\S+?)\.(?:tar\.gz|tgz|zip) "
    r"(?:(?!^ *(?:Downloading|Using cached) ).)*?^ *error: subprocess-exited-with-error",
    re.MULTILINE | re.DOTALL,
)
OTHER_PYTHON = "set image_app_debian_release for the Python of another release"
# Of a value in a message.
LONGEST = 80


def context_files(sources: Mapping[str, str], exclude: Sequence[str] = ()) -> dict[str, Path]:
    """All files and links of a build context, by their path in it.

    :param sources: path in the context to a directory or a file on the controller; empty for none.
    :param exclude: patterns of names in the app, and of paths there, left out besides EXCLUDED.
    :returns: sorted by path.
    :raises ImageError: when a source is neither, or holds what cannot be copied.
    """
    found = {}
    for prefix, source in sources.items():
        patterns = (*EXCLUDED, *(exclude if prefix == "app" else ()))
        left_out = re.compile("|".join(map(fnmatch.translate, patterns)))
        top = Path(source).expanduser()
        if source and top.is_file():
            found[prefix] = top
        elif source and not top.is_dir():
            raise ImageError(
                f"{source} is not a directory on the controller: write the path of one there."
            )
        for folder, folders, names in os.walk(top) if source else ():
            place = Path(folder).relative_to(top)

            def stays(name: str, place: Path = place, left_out: re.Pattern[str] = left_out) -> bool:
                return not (left_out.fullmatch(name) or left_out.fullmatch(str(place / name)))

            folders[:] = filter(stays, folders)
            links = [name for name in folders if Path(folder, name).is_symlink()]
            for name in [*filter(stays, names), *links]:
                path = Path(folder, name)
                _check_entry(path, top.resolve())
                found[str(Path(prefix, place, name))] = path
    return dict(sorted(found.items()))


def _check_entry(path: Path, top: Path) -> None:
    """See that a file is one, and a link leads to something in the same source."""
    if path.is_symlink() and path.exists() and not path.resolve().is_relative_to(top):
        raise ImageError(
            f"{path} is a link to {path.resolve()}, which is outside of {top}: put it inside."
        )
    if not path.exists() or not (path.is_file() or path.is_dir()):
        raise ImageError(f"{path} is no file, or a link to none: remove it, or mend the link.")


def context_tar(recipe: Mapping[str, Any]) -> bytes:
    """A build context as a tar archive that depends on nothing but names, modes and content.

    :param recipe: ``sources`` and ``exclude`` as for :func:`context_files`, and whatever else
        decides the content, such as the list of packages.
    """
    sources = recipe["sources"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add(tar, ".recipe", json.dumps(_without_places(recipe), sort_keys=True).encode())
        # Also one without files, for a Containerfile names it.
        for prefix in sorted(
            one for one, source in sources.items() if one and not _is_file(source)
        ):
            entry = tarfile.TarInfo(prefix)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, path in context_files(sources, recipe.get("exclude", ())).items():
            if path.is_symlink():
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.SYMTYPE, 0o777
                # Relative, whatever it was: the image has the source in another place.
                entry.linkname = os.path.relpath(path.resolve(), path.parent.resolve())
                tar.addfile(entry)
            else:
                _add(tar, name, _content(path), 0o755 if os.access(path, os.X_OK) else 0o644)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe that is the same wherever the sources are on the controller."""
    return {key: value for key, value in recipe.items() if key not in ("sources", "exclude")}


def _is_file(source: str) -> bool:
    return bool(source) and Path(source).expanduser().is_file()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise ImageError(f"{path} cannot be read: {problem.strerror}. Mend its rights.") from None


def image_tag(recipe: Mapping[str, Any]) -> str:
    """The tag of an image: 16 hex digits of the SHA-256 of all that it is built from."""
    return hashlib.sha256(context_tar(recipe)).hexdigest()[:TAG_LENGTH]


def image_context(recipe: Mapping[str, Any], directory: str) -> str:
    """Write the build context into a directory of the controller, once; returns the file's path."""
    content, folder = context_tar(recipe), Path(directory).expanduser()
    path = folder / f"context-{hashlib.sha256(content).hexdigest()[:TAG_LENGTH]}.tar.gz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(gzip.compress(content, mtime=0))
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
                    image: str = read(f"blobs/{digest}")["config"]["digest"]
                    return image.removeprefix("sha256:")
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
    if not REFERENCE.fullmatch(reference) or "/" not in reference:
        return (
            f"{name} ({repr(reference)[:LONGEST]}) is no image with its registry: write one such "
            "as registry.example/team/app:1.2.3."
        )
    if "@sha256:" in reference:
        return ""
    tag = reference.rsplit("/", 1)[-1].partition(":")[2]
    if tag in ("", "latest"):
        return (
            f"{name} ({reference!r}) names no version: 'latest' is another image tomorrow, and "
            f"hosts would differ. Write a version's tag or @sha256:digest."
        )
    return ""


def image_references(
    images: Mapping[str, str],
    sources: Mapping[str, str],
    recipes: Mapping[str, Mapping[str, Any]],
    version: str = "",
    build_host: str = "",
    hosts: Sequence[str] = (),
) -> dict[str, str]:
    """The reference under which each image is known on every host.

    :param images: ``app`` and, where one is deployed, ``redis`` to what the user wrote: a reference
        for ``registry``, a path for ``archive``, nothing for ``build``.
    :param sources: of ``app`` and ``redis``: one of SOURCES each.
    :param recipes: of ``app``, which goes on top of its base on each host; for ``build`` also of
        ``app_base`` and ``redis``.
    :param version: tag of an app's image that a host has kept, in place of what is declared.
    :param build_host: for ``build``: the host that builds, one of ``hosts``; not checked if empty.
    :returns: ``redis``, ``app_base``, and ``app``, which is built on it.
    :raises ImageError: naming the variable, its value and the remedy; nothing was changed then.
    """
    try:
        _check_sources(images, sources)
        if "build" in sources.values() and build_host and build_host not in hosts:
            raise ImageError(
                f"image_build_host is {build_host!r}, which is no host of the groups celery and "
                "redis: write the name of one of them, or leave it out for the host of Redis."
            )
        is_built = sources["app"] == "build"
        release = str(recipes[BASE].get("release", "")) if is_built else ""
        if release and not RELEASE.fullmatch(release):
            raise ImageError(
                f"image_app_debian_release is {repr(release)[:LONGEST]}: write a codename such as "
                "bookworm, or leave it out for the release of the build host."
            )
        pulled = {name: one for name, one in images.items() if sources[name] == "registry"}
        found = _of_registry(pulled)
        for name, built in zip(("app", "redis"), BUILT, strict=True):
            if sources[name] == "archive" and name in images:
                found[name] = f"{OURS}/{built}:{_of_archive(name, images[name])}"
            elif sources[name] == "build":
                found[name] = f"{OURS}/{built}:{_of_recipe(recipes[built])}"
        base = found.pop("app")
        tag = version or _of_recipe({**recipes["app"], "base": base})
        return {**found, BASE: base, "app": f"{OURS}/app:{tag}"}
    except ImageError as problem:
        raise ImageError(f"{problem}\nNothing was changed on any host.") from None


def _check_sources(images: Mapping[str, str], sources: Mapping[str, str]) -> None:
    """See that each source is one, and that no image is declared that would not be used."""
    for name, source in sources.items():
        variable = VARIABLES[name]
        if source not in SOURCES:
            raise ImageError(f"{variable} is {source!r}; it must be one of {', '.join(SOURCES)}.")
        if source == "build" and images.get(name):
            raise ImageError(
                f"image_{name} is {repr(images[name])[:LONGEST]}, and {variable} is 'build', which "
                f"uses no such image: write {variable}: registry or {variable}: archive, or remove "
                f"image_{name}."
            )


def image_lacked(
    references: Mapping[str, str], wanted: Sequence[str], present: Collection[str], version: str
) -> list[str]:
    """Return the images that a host needs and lacks.

    >>> image_lacked({"app": "a:2", "app_base": "b:1"}, ["app"], ["a:1"], "")
    ['app', 'app_base']

    :param references: image to reference.
    :param wanted: the images that the host needs.
    :param present: the references of those that it has.
    :param version: of the app, one that hosts have kept; empty for the new one.
    """
    lacked = [name for name in wanted if references.get(name) not in present]
    # Its base comes along.
    if "app" in lacked and not version and references.get(BASE) not in present:
        lacked.append(BASE)
    return lacked


def image_references_or_problem(*args: Any) -> dict[str, str]:
    """What image_references gives, or ``problem`` with the reason why not.

    Text instead of an exception: Ansible buries a filter's exception under three layers of its own.
    """
    try:
        return image_references(*args)
    except ImageError as problem:
        return {"problem": str(problem)}


def image_failure(
    result: Mapping[str, Any],
    host: str,
    references: Sequence[str],
    source: str,
    damaged: Collection[str] = (),
) -> str:
    """Why a host has not got its images, and what to do.

    :param result: the failed task's, of one try or of a loop.
    :param references: the images that it lacked.
    :param damaged: those that it had, and that were removed with the workers on them stopped.
    """
    said = _said(result)
    refused = image_build_errors(result)
    built = re.findall(r"^Failed to build image (\S+): ", "\n".join(said), re.M)
    if refused:
        remedy = "Mend that"
    elif source == "registry":
        remedy = (
            "Check image_app, image_redis, image_registry_auth_file and the way to the registry, "
            "or the free space of /var/lib there"
        )
    else:
        remedy = "Look at the free space of /var/lib there"
    reason = (refused or "; ".join(said)).rstrip(".")
    meanwhile = "Its workers run on with the image they have"
    if damaged:
        meanwhile = "What ran on a damaged image is stopped, and tasks wait in Redis"
    return (
        f"{host} did not get {' and '.join(built or references)}: {reason}. {meanwhile}. "
        f"{remedy}, then run again."
    )


def image_build_errors(result: Mapping[str, Any]) -> str:
    """What pip, a compiler or the runtime called an error, out of all output of a failed build.

    :param result: as for image_failure.
    :returns: its lines; empty where none is marked as one.
    """
    found = re.findall(MARKED, "\n".join(_said(result)), re.M)
    return "\n".join(dict.fromkeys(line for line in found if not EMPTY.search(line)))


def image_build_failure(
    result: Mapping[str, Any], host: str, build_packages: Sequence[str], *, damaged: bool = False
) -> str:
    """Why the images could not be built, and what to do.

    :param result: as for image_failure.
    :param build_packages: those of image_app_build_packages.
    :param damaged: whether workers on a damaged image are stopped.
    """
    reason = image_build_errors(result)
    wheel = re.search(r"^ERROR: No matching distribution found for (\S+)", reason, re.M)
    if wheel and not build_packages:
        remedy = (
            f"if {wheel[1]} is in the package index, it has no wheel for the image's Python: write "
            "what building it needs into image_app_build_packages, such as [gcc, libc6-dev, "
            f"python3-dev], require a version that has one, or {OTHER_PYTHON}"
        )
    elif "ERROR: the app requires Python" in reason:
        remedy = (
            "set image_app_python, or image_app_debian_release for the Python of another release; "
            "if the app works with this Python, widen requires-python in its pyproject.toml, and "
            "run 'uv lock' if it has a uv.lock"
        )
    elif re.search(r"fatal error: |No such file or directory: '", reason):
        remedy = "add the Debian package that has the missing file to image_app_build_packages"
    elif not reason and (source := FROM_SOURCE.search("\n".join(_said(result)))):
        reason = f"pip could not build {source[1]} from its source: the reason is above"
        remedy = (
            "require a version that has a wheel for the image's Python, add what building it needs "
            f"to image_app_build_packages, or {OTHER_PYTHON}"
        )
    else:
        remedy = (
            "if a package could not be fetched, check the mirror or the package index; otherwise "
            "correct what the app requires (its own files, and image_app_* of the inventory)"
        )
    stopped = ", but those on a damaged image are stopped" if damaged else ""
    return (
        f"{host} could not build the images: {reason or 'the reason is above'}\n"
        f"  Workers run on with the image they have, on all hosts{stopped}.\n"
        f"  Fix: {remedy}. Then run again."
    )


def _said(result: Mapping[str, Any]) -> list[str]:
    tries = [one for one in result.get("results", []) if one.get("failed")] or [result]
    return [str(one.get("msg", "no reason was given")).strip() for one in tries]


def _of_registry(images: Mapping[str, str]) -> dict[str, str]:
    problems = [registry_problem(f"image_{name}", one) for name, one in images.items()]
    if any(problems):
        raise ImageError("\n".join(filter(None, problems)))
    return dict(images)


def _of_archive(name: str, path: str) -> str:
    if not path:
        raise ImageError(
            f"image_{name} is empty: with {VARIABLES[name]} 'archive' it is the path of an image "
            "archive on the controller."
        )
    try:
        return archive_image_id(path)[:TAG_LENGTH]
    except ImageError as problem:
        raise ImageError(f"image_{name}: {problem}") from None


def _of_recipe(recipe: Mapping[str, Any]) -> str:
    try:
        return image_tag(recipe)
    except ImageError as problem:
        raise ImageError(f"image_app_source: {problem}") from None


def shell_environment(variables: Mapping[str, str]) -> str:
    """Variables as lines that a shell reads."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "image_context": image_context,
            "image_failure": image_failure,
            "image_lacked": image_lacked,
            "image_build_failure": image_build_failure,
            "image_references_or_problem": image_references_or_problem,
            "image_shell_environment": shell_environment,
        }
