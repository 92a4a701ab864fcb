"""The files with which a program sends tasks: what is in them, and how they are written."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from ansible.module_utils.celery_metal import HostError, write_durably

STATE = Path("/var/lib/celery-metal/producer.json")
PASSWORD, CA, CERTIFICATE, ENVIRONMENT = "password", "ca.pem", "certificate.pem", "environment"
#: File to the secret that it holds.
FILES = {
    PASSWORD: "celery-redis-producer",
    CA: "celery-redis-ca",
    CERTIFICATE: "celery-redis-certificate-producer",
}
VARIABLES = {
    PASSWORD: "CELERY_METAL_PASSWORD_FILE",
    CA: "CELERY_METAL_TLS_CA_FILE",
    CERTIFICATE: "CELERY_METAL_TLS_CERTIFICATE_FILE",
}
# These name an address for Celery, others one for redis-py; over TCP both are the same.
CELERYS = re.compile(r"CELERY|BROKER|RESULT")
MODE = re.compile(r"[0-7]{3,4}", re.ASCII)
# What a shell, systemd and Podman read alike without quotes.
PLAIN = re.compile(r"[A-Za-z0-9_./:@,=+%-]*")


class State(NamedTuple):
    """What was written: where, of which versions, and what has yet to be run for it."""

    directory: str = ""
    versions: Mapping[str, str] = {}
    #: Name to the SHA-256 of what it holds.
    files: Mapping[str, str] = {}
    #: ``reload``, ``restart``, or nothing.
    pending: str = ""
    #: Paths that were written before; a program may use them until the commands have succeeded.
    earlier: Sequence[str] = ()
    #: Not all of the first files are there yet, so no program uses them.
    is_first: bool = False
    #: Destination that they are of; empty for none.
    destination: str = ""

    @classmethod
    def read(cls, record: Path) -> State:
        """The record; an empty one where there is none, or where it is damaged."""
        try:
            found = cls(**json.loads(record.read_text()))
        except (OSError, ValueError, TypeError):
            return cls()
        names = {*FILES, ENVIRONMENT}
        is_right = (
            isinstance(found.directory, str)
            and isinstance(found.destination, str)
            and isinstance(found.versions, dict)
            and isinstance(found.files, dict)
            and isinstance(found.earlier, list | tuple)
            and {*found.files} <= names
            and all(isinstance(one, str) and Path(one).name in names for one in found.earlier)
        )
        return found._replace(earlier=tuple(found.earlier)) if is_right else cls()

    def write(self, record: Path, is_kept: bool) -> None:
        if is_kept:
            write_durably(record, json.dumps(self._asdict(), indent=2, sort_keys=True) + "\n")

    def paths(self) -> set[str]:
        return {*self.earlier, *(str(Path(self.directory) / name) for name in self.files)}


def whole(known: State, directory: Path) -> dict[str, str]:
    """Each secret to its version, of those whose files are as they were written."""
    return {
        secret: known.versions[secret]
        for name, secret in FILES.items()
        if secret in known.versions
        and known.directory == str(directory)
        and sum_of(directory / name) == known.files.get(name)
    }


def sum_of(content: Path | str) -> str:
    """The SHA-256 of a text, or of a file; empty where there is no file."""
    try:
        raw = content.encode() if isinstance(content, str) else content.read_bytes()
    except OSError:
        return ""
    return hashlib.sha256(raw).hexdigest()


def contents(
    versions: Mapping[str, str],
    inspected: str,
    certificate: str,
    *,
    known: Mapping[str, str],
    directory: Path,
) -> dict[str, str]:
    """File to its content: from what Podman printed, else as it is in the directory.

    :param versions: each wanted secret to its version.
    :param known: those of which the file is whole.
    :raises HostError: when a secret is missing, is another, or has another version.
    """
    printed: dict[str, Any] = {}
    for one in json.loads(inspected) if inspected else []:
        name = one["Spec"]["Name"]
        if name not in versions:
            # That host may be compromised, and must not choose what this one keeps.
            raise HostError(
                f"the host of Redis gives the secret {name[:60]!a}, and was asked for "
                f"{', '.join(versions)}. Nothing was changed. Find out what runs there."
            )
        if one["Spec"]["Labels"].get("version") == versions[name]:
            printed[name] = one["SecretData"]
    found = {CERTIFICATE: certificate} if certificate else {}
    for name, secret in FILES.items():
        if secret in printed:
            found[name] = printed[secret]
        elif secret in versions and known.get(secret) == versions[secret]:
            found[name] = (directory / name).read_text()
        elif secret in versions:
            raise HostError(
                f"the host of Redis does not give {secret} as this run knows it: another run may "
                "have renewed it. Nothing was changed here. Run the same playbook again."
            )
    return found


def environment_text(
    url: str, files: Mapping[str, str], place: Path, variables: Iterable[str], results: str = ""
) -> str:
    """The environment file, as systemd, a shell and Podman read it.

    :param url: the address of Redis, without a password.
    :param place: the directory of the files, where the program runs.
    :param variables: names that get the address with the password.
    :param results: where results are kept, as the runtime takes it; empty for where the app keeps
        them.
    """
    values = {"CELERY_METAL_BROKER": url}
    values |= {"CELERY_METAL_RESULT_BACKEND": results} if results else {}
    values |= {VARIABLES[name]: str(place / name) for name in VARIABLES if name in files}
    for name in variables:
        values[name] = address(url, files, place, is_celerys=bool(CELERYS.search(name)))
    lines = [f"{name}={_quoted(value)}" for name, value in values.items()]
    return "\n".join(["# Made by celery-metal: overwritten by its next run.", *lines, ""])


def address(url: str, files: Mapping[str, str], place: Path, *, is_celerys: bool) -> str:
    """The address with the password, and the paths of certificates as redis-py and kombu take them.

    >>> address("redis://p@h:6379/0", {"password": "x"}, Path("/etc/p"), is_celerys=True)
    'redis://p:x@h:6379/0'
    """
    scheme, _, rest = url.partition("://")
    user, _, where = rest.partition("@")
    login = f"{user}:{quote(files[PASSWORD].strip(), safe='')}@"
    if scheme == "redis+socket" and not is_celerys:
        path, _, query = where.partition("?")
        return f"unix://{login}{path}?db={query.partition('=')[2] or 0}"
    options = {}
    if scheme == "rediss":
        options = {"ssl_cert_reqs": "required", "ssl_ca_certs": str(place / CA)}
    if CERTIFICATE in files:
        options |= dict.fromkeys(("ssl_certfile", "ssl_keyfile"), str(place / CERTIFICATE))
    return f"{scheme}://{login}{where}" + (f"?{urlencode(options, safe='/')}" if options else "")


def _quoted(value: str) -> str:
    return value if PLAIN.fullmatch(value) else f'"{value}"'


def trusted(directory: Path) -> None:
    """Refuse a directory in which another user could put something else in the place of a file.

    :raises HostError: when it, or one above it, is a link or belongs to, or is writable by, others.
    """
    for path in (directory, *directory.parents):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        is_shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
        if not stat.S_ISDIR(found.st_mode):
            why = "is a link or no directory"
        elif found.st_uid not in (0, os.geteuid()):
            why = f"belongs to the user {found.st_uid}"
        elif is_shared or (path == directory and found.st_mode & 0o022):
            why = "can be written by others"
        else:
            continue
        raise HostError(
            f"{path} {why}, so files with passwords in {directory} would not be safe\n"
            "  Fix: take a directory that only root can change, such as /etc/celery-producer. "
            "Nothing was changed here."
        )


def account(owner: str | None, group: str | None) -> tuple[int, int]:
    """The numbers of a user and a group; those of this process without a name.

    :raises HostError: when the host has none of that name.
    """
    try:
        user = pwd.getpwnam(owner).pw_uid if owner else os.geteuid()
    except KeyError:
        raise _unknown("user", "celery_producer_owner", str(owner)) from None
    try:
        return user, grp.getgrnam(group).gr_gid if group else os.getegid()
    except KeyError:
        raise _unknown("group", "celery_producer_group", str(group)) from None


def _unknown(kind: str, variable: str, name: str) -> HostError:
    return HostError(
        f'{variable} is "{name}", and this host has no such {kind}\n'
        f"  Fix: create the {kind} there first, or write another one. Nothing was changed here."
    )


def owned_by(path: Path, own: tuple[int, int], mode: int) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    is_file = stat.S_ISREG(found.st_mode)
    return is_file and ((found.st_uid, found.st_gid), stat.S_IMODE(found.st_mode)) == (own, mode)


def write(
    path: Path, text: str, own: tuple[int, int], mode: int, *, is_private: bool = False
) -> None:
    """Put a file in the place of an earlier one; a reader sees one of them whole.

    :param is_private: a directory that is made for it is for its owner alone.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
        path.parent.chmod(0o700 if is_private else 0o755)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fchown(file.fileno(), *own)
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    temporary.replace(path)


def remove(known: State, record: Path) -> None:
    """Remove what was written, and the directory where nothing else is in it."""
    unlink(known.paths())
    record.unlink(missing_ok=True)


def unlink(paths: Iterable[str]) -> None:
    """Remove files, and directories that have become empty."""
    files = [Path(path) for path in paths]
    for file in files:
        file.unlink(missing_ok=True)
    for directory in {file.parent for file in files}:
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def mode_of(digits: str) -> int:
    """A mode of files with passwords.

    :raises HostError: when it is none, or gives others a right.
    """
    mode = int(digits, 8) if MODE.fullmatch(digits) else None
    if mode is None or mode & 0o007:
        raise HostError(
            f'celery_producer_mode is "{digits[:20]}", and others must not read passwords\n'
            '  Fix: write "0640", "0600", "0440" or "0400". Nothing was changed here.'
        )
    return mode


def moves_safely(known: State, directory: Path, restart: Iterable[Any]) -> None:
    """Refuse another directory where a program would not begin to use it.

    :raises HostError: when files are elsewhere until now, and nothing restarts their program.
    """
    former = {str(Path(path).parent) for path in known.paths()} - {str(directory)}
    if former and not known.is_first and not list(restart):
        raise HostError(
            f"celery_producer_directory is {directory}, the files are in "
            f"{', '.join(sorted(former))}, and celery_producer_restart is empty\n"
            "  A running program uses the earlier files until it restarts.\n"
            "  Fix: write celery_producer_restart, such as [systemctl restart shop], or keep the "
            "directory. Nothing was changed here."
        )
