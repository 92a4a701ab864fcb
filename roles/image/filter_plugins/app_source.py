"""Where an app comes from and what it requires: what is read and fetched on the controller."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

try:
    from ansible.errors import AnsibleFilterError as SourceError
except ImportError:  # the pure functions work, and are tested, without Ansible

    class SourceError(Exception):  # type: ignore[no-redef]
        """What is wrong with an app's source, and what to do."""


LOCK, PROJECT, REQUIREMENTS = "uv.lock", "pyproject.toml", "requirements.txt"
# In this order: what pins most goes first.
KNOWN = (LOCK, REQUIREMENTS, PROJECT)
WHEEL, ARCHIVES = ".whl", (".tar.gz", ".zip")
GIT_SCHEMES = (
    "https",
    "http",
    "ssh",
    "git",
    "file",
    "git+https",
    "git+http",
    "git+ssh",
    "git+file",
)
# As scp writes it: user@host:path.
SCP = re.compile(r"[\w.-]+@[\w.-]+:[^\s]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"[A-Za-z0-9_][^\s~^:?*\[\\\x00-\x1f\x7f]*")
INCLUDE = re.compile(r"\s*(?:-r|-c|--requirement|--constraint)(?:\s+|=|(?=\S))(\S+)")
LOCAL = re.compile(r"\s*(?:-e\b|--editable\b|\.{1,2}(?:/|\[|\s|$)|/|file:)")
# Beside the requirements in the build context; of what EXACT names no dependencies are resolved.
TREE, EXTRA, ALL, EXACT = "tree", "extra.txt", "all.txt", "exact.txt"
# Beside them, the versions of Python that the project declares.
PYTHON = "python.txt"
GIT_SECONDS = 600
# Git's shell runs it; printf is a part of that, and so no process with arguments.
HELPER = """!f() { test "$1" != get || printf 'password=%s\\n' "$CELERY_METAL_GIT_PASSWORD"; }; f"""
KEPT_SECONDS = 86400


def find_app(
    source: str,
    cache: str,
    revision: str = "",
    directory: str = "",
    requirements: str = "",
    extras: Iterable[str] = (),
    extra_requirements: Iterable[str] = (),
) -> dict[str, str]:
    """Bring an app's code and its requirements to the controller's disk.

    :param source: a directory, a Git URL, a wheel or a source archive.
    :param cache: directory for what is fetched and made.
    :param revision: branch, tag or commit of a Git repository; empty for its default branch.
    :param directory: where in the source the app is.
    :param requirements: the file of its requirements: in the source, or for a package on the
        controller; empty for the first of KNOWN.
    :param extras: extras of the project or package.
    :param extra_requirements: lines as in a requirements file, installed after the others.
    :returns: paths: ``code`` (a directory; empty for a package), ``requirements`` (a directory with
        ALL or EXACT, and EXTRA), ``package`` (a file; empty for code); and ``revision``, the commit
        of the code, where it has one.
    :raises SourceError: naming the variable, its value and the remedy.
    """
    extras, store = list(extras), Path(cache).expanduser()
    for variable, values in (("extras", extras), ("extra_requirements", extra_requirements)):
        for value in values:
            if not value.strip() or re.search(r"[\x00-\x1f\x7f]", value) or value.startswith("-"):
                raise SourceError(
                    f"image_app_{variable} has {value!r}: write one to an entry, and no options"
                )
    if revision and not is_git(source):
        raise SourceError(
            f"image_app_revision is {revision!r}, but image_app_source ({source}) is no Git "
            "repository: leave it out, or write the repository's URL"
        )
    if is_package(source):
        return _package(
            Path(source).expanduser(), store, directory, requirements, extras, extra_requirements
        )
    if is_git(source):
        top, shown = (
            checkout(source, revision, store),
            f"{without_password(source)} {revision}".strip(),
        )
    else:
        top = Path(source).expanduser()
        shown = source
        if not top.is_dir():
            raise SourceError(
                f"{source} is not a directory on the controller, nor a wheel, a source archive or "
                "a Git URL: write the path of one there, or the URL"
            )
    code = (top / directory).resolve()
    if not code.is_relative_to(top.resolve()) or not code.is_dir():
        raise SourceError(
            f"image_app_directory is {directory!r}, which is no directory in {shown}: write one, "
            "relative to its top"
        )
    named = bool(requirements) or any((code / one).is_file() for one in KNOWN)
    # An app that says nothing of it may be told from outside, and then by that alone.
    tree = required(code, requirements, shown, extras) if named or not extra_requirements else {}
    return {
        "code": str(code),
        "requirements": _keep(tree, list(extra_requirements), store, requires_python(code)),
        "package": "",
        "revision": top.name if is_git(source) else commit_of(code),
    }


def is_git(source: str) -> bool:
    """Whether a source is the URL of a Git repository, and no path.

    >>> [is_git(one) for one in ("https://host/shop.git", "git@host:team/shop", "~/src/shop")]
    [True, True, False]
    """
    return urlsplit(source).scheme in GIT_SCHEMES or bool(SCP.fullmatch(source))


def is_package(source: str) -> bool:
    """Whether a source is the path of a wheel or of a source archive.

    >>> [is_package(one) for one in ("dist/shop-1.0-py3-none-any.whl", "shop-1.0.tar.gz", "shop")]
    [True, True, False]
    """
    return not is_git(source) and source.endswith((WHEEL, *ARCHIVES))


def without_password(url: str) -> str:
    """A URL as it may be shown.

    >>> without_password("https://bot:hush@host/shop.git")
    'https://host/shop.git'
    """
    return re.sub(r"(?<=://)[^/@]*@", "", url)


# Git


def checkout(url: str, revision: str, cache: Path) -> Path:
    """The files of one commit of a repository, without its history.

    Only what is missing is fetched: a full commit that is there already asks nobody.
    """
    revision = revision or "HEAD"
    if not REVISION.fullmatch(revision):
        raise SourceError(
            f"image_app_revision is {revision!r}: write the name of a branch or a tag, or a commit"
        )
    address = url.removeprefix("git+")
    place = cache / "git" / _digest(address.encode())
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        commit = revision
        if not (COMMIT.fullmatch(revision) and (place / revision).is_dir()):
            commit = _fetch(address, revision, place / "repository")
        folder = place / commit
        if not folder.is_dir():
            _unpack(place / "repository", commit, folder, url)
        os.utime(folder)
        for other in place.iterdir():
            if COMMIT.fullmatch(other.name) and time.time() - other.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(other)
    return folder


def commit_of(directory: Path) -> str:
    """The commit that is checked out in a directory; empty where Git knows none.

    With "-dirty" behind it where files of the repository differ from that commit.
    """
    command = ("git", "-c", "core.fsmonitor=false", "-C", str(directory), "describe", "--always")
    options = ("--dirty", "--abbrev=40", "--exclude=*")
    try:
        done = subprocess.run(
            [*command, *options],
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):  # no Git, or none that answers
        return ""
    found = done.stdout.strip()
    return found if COMMIT.fullmatch(found.removesuffix("-dirty")) else ""


def _fetch(address: str, revision: str, repository: Path) -> str:
    """Fetch a revision, as little as the server allows; its commit."""
    if not repository.is_dir():
        _git(repository.parent, address, "init", "--quiet", "--bare", str(repository))
    fetch = ["fetch", "--quiet", "--no-tags", "--depth=1", "--", address]
    try:
        _git(repository, address, *fetch, revision)
    except SourceError:
        if not re.fullmatch(r"[0-9a-f]{4,40}", revision):
            raise
        # An abbreviated commit, or one that no branch ends with, comes with its history only.
        whole = [
            "fetch",
            "--quiet",
            "--force",
            "--tags",
            "--",
            address,
            "+refs/heads/*:refs/heads/*",
        ]
        unshallow = ["--unshallow"] if (repository / "shallow").exists() else []
        _git(repository, address, whole[0], *unshallow, *whole[1:])
        return (
            _git(repository, address, "rev-parse", "--verify", f"{revision}^{{commit}}")
            .decode()
            .strip()
        )
    return (
        _git(repository, address, "rev-parse", "--verify", "FETCH_HEAD^{commit}").decode().strip()
    )


def _unpack(repository: Path, commit: str, folder: Path, url: str) -> None:
    listed = _git(repository, url, "ls-tree", "-r", "-z", commit).decode().split("\0")
    modules = [line.partition("\t")[2] for line in listed if line.startswith("160000 ")]
    if modules:
        raise SourceError(
            f"{without_password(url)} has submodules ({', '.join(modules)}), which are not "
            "fetched: make image_app_source a directory in which they are checked out"
        )
    unfinished = folder.with_name(f"{commit}.{os.getpid()}")
    with tarfile.open(fileobj=io.BytesIO(_git(repository, url, "archive", commit))) as tar:
        tar.extractall(unfinished, filter="tar")
    unfinished.rename(folder)


def login(address: str, environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The address without a password, and the environment by which Git has it.

    Any user of the controller reads the command lines of all processes, and the environment of
    their own alone.

    >>> login("https://bot:hush@host/shop.git", {})[0]
    'https://host/shop.git'

    :raises SourceError: when user or password has a control character.
    """
    parts = urlsplit(address) if "://" in address else None
    if not parts or parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return address, {}
    name, _, secret = parts.netloc.rpartition("@")[0].partition(":")
    user, password = unquote(name), unquote(secret)
    if not (user + password).isprintable():
        raise SourceError(
            f"image_app_source is {without_password(address)}, and its user or password has a "
            "control character: write it without"
        )
    where = f"credential.{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    settings = [(f"{where}.username", user)]
    if password:
        # The first removes helpers, which would keep it.
        settings += [(f"{where}.helper", ""), (f"{where}.helper", HELPER)]
    count = int(environment.get("GIT_CONFIG_COUNT", "0") or 0)
    found = {"GIT_CONFIG_COUNT": str(count + len(settings)), "CELERY_METAL_GIT_PASSWORD": password}
    for number, (key, value) in enumerate(settings, count):
        found |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return without_password(address), found


def _git(repository: Path, address: str, *words: str) -> bytes:
    # Nobody is there to be asked for a password.
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -o BatchMode=yes"}
    shown, secret = login(address, os.environ)
    words = tuple(shown if word == address else word for word in words)
    try:
        done = subprocess.run(
            ["git", *([] if words[0] == "init" else ["--git-dir", str(repository)]), *words],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**quiet, **os.environ, **secret},
            timeout=GIT_SECONDS,
        )
    except FileNotFoundError:
        raise SourceError("there is no git on the controller: install it") from None
    except subprocess.TimeoutExpired:
        raise SourceError(
            f"{without_password(address)} did not answer in {GIT_SECONDS} s"
        ) from None
    if done.returncode:
        said = without_password(_in_a_line(done.stderr.decode(errors="replace")))
        raise SourceError(
            f"{without_password(address)}: git {words[0]} failed: {said}. Check "
            "image_app_source, image_app_revision, and that the controller may read the repository"
        )
    return done.stdout


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# Requirements


def required(code: Path, name: str, shown: str, extras: list[str]) -> dict[str, bytes]:
    """The requirements of a project as files for pip, the first of them the one to begin with.

    :param code: the project's directory.
    :param name: the file that holds them; empty for the first of KNOWN that is there.
    :param shown: how the source is called in an error.
    """
    names = [name] if name else KNOWN
    there = [one for one in names if (code / one).is_file()]
    if not there:
        what = (
            f"image_app_requirements is {name!r}, and {shown} has no such file"
            if name
            else (f"{shown} has none of {', '.join(KNOWN)}")
        )
        raise SourceError(
            f"{what}: name the file that holds the app's requirements in image_app_requirements, "
            "or make one there, such as with 'uv lock' or 'uv pip compile --generate-hashes', or "
            "write them into image_app_extra_requirements; celery[redis] must be among them"
        )
    kind = Path(there[0]).name
    if kind == LOCK:
        return {LOCK: locked((code / there[0]).parent, extras)}
    if kind == PROJECT:
        return {REQUIREMENTS: declared(code / there[0], extras)}
    if extras:
        raise SourceError(
            f"image_app_extras are for {LOCK}, {PROJECT} and packages, and {there[0]} holds the "
            "requirements: leave them out"
        )
    return included(code, there[0])


def included(code: Path, name: str) -> dict[str, bytes]:
    """A requirements file and those that it includes, each by its path in the project."""
    found: dict[str, bytes] = {}
    waiting = [os.path.normpath(name)]
    while waiting:
        one = waiting.pop(0)
        if one in found:
            continue
        path = code / one
        if one.startswith("..") or os.path.isabs(one) or not path.is_file():
            raise SourceError(
                f"{name} includes {one}, which is no file in {code}: put it there, or leave it out"
            )
        found[one] = path.read_bytes()
        for number, line in enumerate(found[one].decode(errors="replace").splitlines(), 1):
            if LOCAL.match(line):
                raise SourceError(
                    f"{one}, line {number}, is {line.strip()!r}: only packages of an index are "
                    "installed there. The app's own code needs no line, for it is on Python's "
                    "path; else make a wheel of it"
                )
            more = INCLUDE.match(line)
            if more and "://" not in more[1]:
                waiting.append(os.path.normpath(os.path.join(os.path.dirname(one), more[1])))
    return found


def declared(path: Path, extras: list[str]) -> bytes:
    """The dependencies that a pyproject.toml names, without versions that nothing pins."""
    try:
        project = tomllib.loads(path.read_text()).get("project", {})
    except (ValueError, OSError) as problem:
        raise SourceError(f"{path} cannot be read: {_in_a_line(str(problem))}. Mend it") from None
    if "dependencies" not in project:
        raise SourceError(
            f"{path} has no [project] dependencies of its own: name a file with all requirements "
            "in image_app_requirements, such as 'uv export' or 'poetry export' makes"
        )
    optional = project.get("optional-dependencies", {})
    for extra in extras:
        if extra not in optional:
            raise SourceError(
                f"image_app_extras has {extra!r}, which is none of {path}: it has "
                f"{', '.join(optional) or 'no extra'}"
            )
    lines = [*project["dependencies"], *(line for one in extras for line in optional[one])]
    return "".join(f"{line}\n" for line in lines).encode()


def locked(project: Path, extras: list[str]) -> bytes:
    """What a uv.lock pins, with hashes, for all platforms; nothing is resolved or fetched."""
    command = [
        sys.executable,
        "-m",
        "uv",
        "export",
        "--quiet",
        "--frozen",
        "--no-dev",
        "--no-header",
    ]
    command += ["--no-emit-project", "--no-annotate", "--format=requirements.txt", "--offline"]
    # Nobody looks for a Python of the project's, nor makes an environment for it.
    command += ["--no-python-downloads", "--directory", str(project)]
    command += [word for one in extras for word in ("--extra", one)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SourceError(
            f"{project / LOCK} cannot be read: {_in_a_line(done.stderr)}. Run 'uv lock' "
            "there, or name another file in image_app_requirements"
        )
    for line in done.stdout.splitlines():
        if LOCAL.match(line):
            raise SourceError(
                f"{project / LOCK} has {line.strip()!r}, which is no package of an index: make a "
                "wheel of it and publish it, or name another file in image_app_requirements"
            )
    return done.stdout.encode()


def requires_python(code: Path) -> str:
    """The versions of Python that a project's pyproject.toml admits; empty where it names none."""
    try:
        found = tomllib.loads((code / PROJECT).read_text())["project"]["requires-python"]
    except (OSError, ValueError, KeyError, TypeError):  # what needs that file refuses it
        return ""
    return found if isinstance(found, str) else ""


def _keep(tree: Mapping[str, bytes], extra: list[str], cache: Path, python: str = "") -> str:
    """Write requirements into a directory of their own, once; its path."""
    first = next(iter(tree), "")
    # A lock may have versions that another of its packages does not admit: its project's overrides.
    files = {
        EXACT if first == LOCK else ALL: f"-r {TREE}/{first}\n".encode() if first else b"",
        EXTRA: "".join(f"{line}\n" for line in extra).encode(),
        **({PYTHON: python.encode()} if python else {}),
        **{f"{TREE}/{name}": content for name, content in tree.items()},
    }
    place = cache / f"requirements-{_digest(repr(sorted(files.items())).encode())}"
    if not place.is_dir():
        unfinished = place.with_name(f"{place.name}.{os.getpid()}")
        for name, content in files.items():
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            (unfinished / name).write_bytes(content)
        unfinished.rename(place)
    return str(place)


# Packages


def _package(
    path: Path,
    cache: Path,
    directory: str,
    requirements: str,
    extras: list[str],
    extra_requirements: Iterable[str],
) -> dict[str, str]:
    if directory:
        raise SourceError(
            f"image_app_directory is {directory!r}, and image_app_source ({path}) is a package, "
            "which has none: leave it out"
        )
    if not path.is_file():
        raise SourceError(f"{path} is no file on the controller: write the path of one there")
    _check_package(path)
    tree = {}
    if requirements:
        file = Path(requirements).expanduser()
        if not file.is_file():
            raise SourceError(
                f"image_app_requirements is {requirements!r}, which is no file on the controller: "
                "write the path of one there"
            )
        tree = included(file.parent, file.name)
    # Where the build context has it; a path needs the extras' brackets without a blank.
    line = f"/package/{path.name}{'[' + ','.join(extras) + ']' if extras else ''}"
    return {
        "code": "",
        "requirements": _keep(tree, [line, *extra_requirements], cache),
        "package": str(path),
        "revision": "",
    }


def _check_package(path: Path) -> None:
    """See that a file has the metadata of a Python package in it."""
    try:
        if path.name.endswith(WHEEL):
            with zipfile.ZipFile(path) as wheel:
                found = [
                    one
                    for one in wheel.namelist()
                    if re.fullmatch(r"[^/]+\.dist-info/METADATA", one)
                ]
                text = wheel.read(found[0]).decode()
        elif path.name.endswith(".zip"):
            with zipfile.ZipFile(path) as sdist:
                found = [one for one in sdist.namelist() if re.fullmatch(r"[^/]+/PKG-INFO", one)]
                text = sdist.read(found[0]).decode()
        else:
            with tarfile.open(path) as tar:
                found = [
                    one for one in tar.getnames() if re.fullmatch(r"(\./)?[^/]+/PKG-INFO", one)
                ]
                member = tar.extractfile(found[0])
                text = member.read().decode() if member else ""
        name = HeaderParser().parsestr(text)["Name"]
    except (OSError, ValueError, IndexError, KeyError, zipfile.BadZipFile, tarfile.TarError):
        name = None
    if not name:
        raise SourceError(
            f"{path} is no Python package: make one with 'uv build' or 'python -m build', and name "
            "the file in dist/"
        )


def _in_a_line(said: str) -> str:
    return " ".join(said.split()).rstrip(".")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def find_app_or_problem(source: str, *args: Any, **options: Any) -> dict[str, str]:
    """What find_app gives, or ``problem`` with the reason: see image_references_or_problem."""
    try:
        return find_app(source, *args, **options)
    except SourceError as problem:
        return {"problem": f"image_app_source: {problem}.\nNothing was changed on any host."}


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"image_find_app": find_app_or_problem}
