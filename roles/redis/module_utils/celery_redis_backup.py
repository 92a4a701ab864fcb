"""Back up the Redis of celery-metal, prove each backup by loading it, and bring one back.

The role redis puts this file on the host of Redis, where celery-redis-backup.service runs it:

    redis_backup.py backup          makes a backup, removes old ones, and ships what is not shipped
    redis_backup.py list            the backups there, as JSON
    redis_backup.py check NAME      loads one, and compares it with what is written beside it

On the host that backups are shipped to, sshd runs `redis_backup.py receive` for the one key that
may do so. playbooks/restore.yml sends this file along with the module celery_restore. It needs
nothing but Python, container_files.py beside it, and a client of SSH for shipping.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, BinaryIO

try:
    from ansible.module_utils.container_files import Folder, RefusedError
except ImportError:  # as a program of the host; under -I Python looks for nothing here
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.dont_write_bytecode = True
    from container_files import Folder, RefusedError

STAMP = "%Y%m%dT%H%M%SZ"
NAME = re.compile(r"redis-(\d{8}T\d{6}Z)\.rdb")
PODMAN_NAME = "celery-redis-check"
# Loading, and a fork of Redis that saves, may be slow on a slow disk; the unit has its own limit.
PATIENCE_SECONDS = 7200.0
LOCK_SECONDS = 900.0
# A host whose disk is full has other troubles than a missing backup.
SPARE_BYTES = 64 << 20
LOG_LINES = 15
NOTE_BYTES = 64 << 20
# The largest value of Redis.
ANSWER_BYTES = 512 << 20
LIST_BYTES = 4 << 20


class BackupError(Exception):
    """What happened, what that means for the data, and the remedy."""


# ------------------------------------------------------------------------------------------
# Redis


class RedisError(Exception):
    """Redis answered with an error; the text is its."""


class Client:
    """A connection to Redis by a Unix socket."""

    def __init__(self, path: Path, seconds: float = 60.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.settimeout(seconds)
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.stream = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.socket.close()

    def ask(self, *words: str | bytes) -> Any:
        """The answer to one command: bytes, a number, a list of answers, or None.

        :raises RedisError: when it is an error.
        """
        return self.pipeline([words])[0]

    def pipeline(self, commands: list[tuple[str | bytes, ...]]) -> list[Any]:
        """The answers to commands that are sent together; the first error is raised."""
        sent = bytearray()
        for words in commands:
            parts = [word.encode() if isinstance(word, str) else word for word in words]
            sent += b"*%d\r\n" % len(parts)
            for part in parts:
                sent += b"$%d\r\n%b\r\n" % (len(part), part)
        self.socket.sendall(sent)
        return [_answer(self.stream) for _ in commands]

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO."""
        lines = self.ask("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def setting(self, name: str) -> str:
        """A directive of the running server."""
        value: bytes = self.ask("CONFIG", "GET", name)[1]
        return value.decode()


def _answer(stream: BinaryIO, depth: int = 0) -> Any:
    line = stream.readline(ANSWER_BYTES)
    if not line.endswith(b"\r\n"):
        raise RedisError("the connection was closed")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise RedisError(rest.decode(errors="replace"))
    if kind not in b":*$":
        return rest
    number = int(rest) if re.fullmatch(rb"-?[0-9]{1,19}", rest) else None
    if number is None:
        raise RedisError("it does not speak Redis's protocol")
    if kind == b":":
        return number
    if number == -1:
        return None
    if not 0 <= number <= ANSWER_BYTES or depth > 8:
        raise RedisError(f"an answer of {number} parts is none of Redis's")
    if kind == b"*":
        return [_answer(stream, depth + 1) for _ in range(number)]
    return stream.read(number + 2)[:-2]


def contents(client: Client) -> dict[str, dict[str, Any]]:
    """What a server has, database by database.

    :returns: number of the database to its ``keys``, those of them that do not ``expire``, the
        length of each of its ``lists`` that does not expire, and the number of ``unacked`` tasks
        that consumers outside of the kit hold.
    """
    found = {}
    for name, text in client.info("keyspace").items():
        numbers = dict(one.split("=") for one in text.split(","))
        client.ask("SELECT", name.removeprefix("db"))
        lists: dict[str, int] = {}
        cursor: bytes = b"0"
        while True:
            cursor, keys = client.ask("SCAN", cursor, "COUNT", "2000", "TYPE", "list")
            lives = client.pipeline([("PTTL", key) for key in keys])
            lengths = client.pipeline([("LLEN", key) for key in keys])
            for key, life, length in zip(keys, lives, lengths, strict=True):
                if life == -1:
                    lists[key.decode(errors="backslashreplace")] = length
            if cursor == b"0":
                break
        unacked = client.ask("TYPE", "unacked") == b"hash" and client.ask("HLEN", "unacked")
        keys_there = int(numbers["keys"])
        found[name.removeprefix("db")] = {
            "keys": keys_there,
            "lasting": keys_there - int(numbers["expires"]),
            "lists": dict(sorted(lists.items())),
            "unacked": int(unacked),
        }
    return found


def missing(
    wanted: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]], *, more: bool = False
) -> list[str]:
    """How what was found differs from what is wanted, a line each; what expires does not count.

    :param more: there may be more than wanted: producers may have sent tasks in the meantime.

    >>> one = {"0": {"keys": 3, "lasting": 2, "lists": {"mail": 7}, "unacked": 0}}
    >>> missing(one, one), missing(one, {})[0]
    ([], 'database 0: 0 lasting keys, not 2')
    """
    lines = []
    nothing = {"lasting": 0, "unacked": 0, "lists": {}}
    for number in sorted({*wanted, *found}):
        one, other = wanted.get(number, nothing), found.get(number, nothing)
        pairs = [
            ("lasting keys", one["lasting"], other["lasting"]),
            ("unacked tasks", one["unacked"], other["unacked"]),
        ]
        pairs += [
            (f"tasks in {name}", one["lists"].get(name, 0), other["lists"].get(name, 0))
            for name in sorted({*one["lists"], *other["lists"]})
        ]
        lines += [
            f"database {number}: {has} {what}, not {wants}"
            for what, wants, has in pairs
            if has < wants or (has > wants and not more)
        ]
    return lines


# ------------------------------------------------------------------------------------------
# The host


@dataclasses.dataclass(frozen=True)
class Site:
    """Where things are, and how servers are reached and started."""

    data: Path = Path("/var/lib/celery-metal/redis")
    backups: Path = Path("/var/lib/celery-metal/backups")
    settings: Path = Path("/etc/celery-metal/redis-backup.json")
    configuration: Path = Path("/etc/celery-metal/redis.conf")
    socket: Path = Path("/run/celery-metal/redis/redis.sock")
    # The key for shipping, and whom it is for.
    keys: Path = Path("/etc/celery-metal/ship")
    unit: str = "celery-redis.service"
    # Of container and program: what Redis has its data in.
    inside: str = "/data"

    def setting(self, name: str) -> Any:
        """One of the settings of backups; errors name the remedy."""
        try:
            return json.loads(self.settings.read_text())[name]
        except (OSError, ValueError, LookupError) as problem:
            raise BackupError(
                f"{self.settings} cannot be used ({problem!r}): run site.yml, which writes it."
            ) from None

    def credentials(self) -> tuple[str, ...]:
        """The command by which the running Redis is told who asks; the one place that knows."""
        show = ("podman", "secret", "inspect", "--showsecret", "--format", "{{.SecretData}}")
        done = subprocess.run(
            (*show, "celery-redis-admin"), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BackupError(
                "Podman has no secret celery-redis-admin, so Redis cannot be asked: run "
                f"site.yml. It said: {done.stderr.strip()}"
            )
        return ("AUTH", "admin", done.stdout.strip())

    def server(self, directory: Path, run: Path, arguments: list[str]) -> list[str]:
        """The command of a throwaway server that has `directory` as its data.

        It has a network for nobody, a user namespace of its own, and no rights. Its socket
        ``redis.sock`` is in `run`.
        """
        return [
            *(
                "podman",
                "--events-backend=none",
                "run",
                "--rm",
                "--replace",
                f"--name={PODMAN_NAME}",
                "--pull=never",
            ),
            *("--network=none", "--read-only", "--userns=auto", "--user=999:999"),
            *("--cap-drop=all", "--security-opt=no-new-privileges", "--log-driver=none"),
            # Within the limits of the unit, or of whoever calls; the first to go when memory ends.
            *("--cgroups=split", "--oom-score-adj=1000", "--sdnotify=ignore"),
            *(f"--volume={directory}:/data:U", f"--volume={run}:/run/redis:U"),
            *(self.setting("image"), "/usr/bin/redis-server", *arguments),
            *("--dir", "/data", "--unixsocket", "/run/redis/redis.sock"),
        ]

    def discard(self) -> None:
        """End a throwaway server that was left, if there is one."""
        subprocess.run(
            ("podman", "rm", "--force", "--time=0", "--ignore", PODMAN_NAME),
            capture_output=True,
            check=False,
        )

    def systemctl(self, verb: str) -> subprocess.CompletedProcess[str]:
        """Start or stop Redis, and wait for it; or ask whether it ``is-active``."""
        return subprocess.run(
            ("systemctl", verb, self.unit), capture_output=True, text=True, check=False
        )

    def runs(self) -> bool:
        """Whether Redis is up."""
        return self.systemctl("is-active").returncode == 0

    def directives(self) -> dict[str, str]:
        """The directives of redis.conf, the last of each name."""
        found = {}
        for line in self.configuration.read_text().splitlines():
            name, _, value = line.strip().partition(" ")
            if name and not name.startswith("#"):
                found[name.lower()] = " ".join(shlex.split(value))
        return found

    def remote(self, command: str) -> list[str]:
        """The command that has the other host do something for this one."""
        target, keys = self.setting("ship"), self.keys
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "20",
            "GlobalKnownHostsFile": "/dev/null",
            "IdentitiesOnly": "yes",
            "ServerAliveInterval": "15",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(keys / "known_hosts"),
        }
        return [
            *("ssh", "-F", "none", "-T", "-i", str(keys / "key"), "-p", str(target["port"])),
            *(word for one, value in options.items() for word in ("-o", f"{one}={value}")),
            *(f"{target['user']}@{target['address']}", command),
        ]

    def live(self) -> Client:
        """The running Redis."""
        try:
            client = Client(self.socket)
            client.ask(*self.credentials())
        except (OSError, RedisError) as problem:
            raise BackupError(
                f"Redis does not answer at {self.socket}: {problem}. See 'journalctl -u "
                f"{self.unit}'."
            ) from None
        return client


@contextlib.contextmanager
def locked(site: Site) -> Iterator[None]:
    """Let no other backup, check or restore run meanwhile.

    :raises BackupError: when another one has not ended in LOCK_SECONDS.
    """
    site.backups.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (site.backups / ".lock").open("a") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BackupError(
                        f"another backup or restore has held {site.backups}/.lock for "
                        f"{LOCK_SECONDS:.0f} s: see 'systemctl status celery-redis-backup'. "
                        "Nothing was changed."
                    ) from None
            time.sleep(0.2)
        yield


@contextlib.contextmanager
def loaded(site: Site, directory: Path, arguments: list[str]) -> Iterator[Client]:
    """A throwaway server that has loaded what is in a directory.

    :raises BackupError: with its last words, when it cannot.
    """
    site.discard()
    owner = directory.stat()
    with tempfile.TemporaryDirectory(prefix="celery-metal-check-") as top:
        run, log = Path(top, "run"), Path(top, "log")
        run.mkdir()
        with log.open("wb") as out:
            process = subprocess.Popen(
                site.server(directory, run, arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            with _answering(process, run / "redis.sock", log) as client:
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            site.discard()
            # The server's user namespace is gone, and its numbers may be another's soon.
            for path in (directory, *directory.rglob("*")):
                found = path.lstat()
                if stat.S_ISDIR(found.st_mode) or found.st_nlink == 1:
                    os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _answering(process: subprocess.Popen[bytes], path: Path, log: Path) -> Client:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        ended = process.poll()
        if ended is not None:
            words = log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
            killed = (
                " (killed: most often there was not enough memory)" if ended in (137, -9) else ""
            )
            raise BackupError(
                f"a throwaway Redis could not load it and ended with {ended}{killed}:\n"
                + "\n".join(words)
            )
        with contextlib.suppress(OSError, RedisError):
            client = Client(path)
            try:
                client.ask("PING")  # an error while it loads
            except (OSError, RedisError):
                client.__exit__()
                raise
            return client
        time.sleep(0.05)
    raise BackupError(f"a throwaway Redis has not loaded it in {PATIENCE_SECONDS:.0f} s")


def plain_arguments(file: str) -> list[str]:
    """Of a server that loads a dump and writes nothing."""
    return ["--port", "0", "--save", "", "--appendonly", "no", "--dbfilename", file]


def require_space(place: Path, size: int, what: str) -> None:
    """Have so many bytes free on the disk of a directory, and some to spare.

    :raises BackupError: when there are fewer.
    """
    free = shutil.disk_usage(place).free
    if free < size + SPARE_BYTES:
        raise BackupError(
            f"{what} needs {size >> 20} MB on the disk of {place}, and {SPARE_BYTES >> 20} MB to "
            f"spare; {free >> 20} MB are free. Nothing was changed. Make room, or keep fewer "
            "backups (redis_backup_keep_days)."
        )


def copied(source: Path | int, target: Path, limit: int | None = None) -> str:
    """Copy a file, have it on the disk, and tell the SHA-256 of what was copied.

    :param source: its path, or a descriptor, which is closed then.
    :param limit: the most bytes that it may have.
    :raises BackupError: when it has more.
    """
    digest, size = hashlib.sha256(), 0
    with open(source, "rb") as file, target.open("xb") as out:
        os.fchmod(out.fileno(), 0o600)
        while part := file.read(1 << 20):
            size += len(part)
            if limit is not None and size > limit:
                raise BackupError(
                    "the dump grows while it is copied, so it is none of Redis's. Find out what "
                    "in its container writes it."
                )
            digest.update(part)
            out.write(part)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, content: str) -> None:
    """Put a file in place at once, on the disk; mode 0600."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    settle(path.parent)


def settle(directory: Path) -> None:
    """Have the names in a directory on the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------------
# Backups


def taken(name: str) -> datetime:
    """The moment in a backup's name.

    >>> taken("redis-20261125T020000Z.rdb").isoformat()
    '2026-11-25T02:00:00+00:00'
    """
    found = NAME.fullmatch(name)
    if not found:
        raise BackupError(f"{name!r} is no name of a backup, such as redis-20261125T020000Z.rdb")
    return datetime.strptime(found[1], STAMP).replace(tzinfo=UTC)


def note_of(path: Path) -> Path:
    """The file beside a backup that says what is in it; without it, a backup is not one."""
    return path.with_name(f"{path.name}.json")


def good(site: Site) -> dict[str, dict[str, Any]]:
    """The backups that were proven when they were made: name to what is in them; newest last."""
    found = {}
    for path in sorted(site.backups.glob("redis-*.rdb")):
        with contextlib.suppress(OSError, ValueError):
            if NAME.fullmatch(path.name):
                found[path.name] = json.loads(note_of(path).read_text())
    return found


def expired(names: list[str], now: datetime, keep_days: int, keep_at_least: int) -> list[str]:
    """Those of the backups that are too old, but never one of the newest.

    >>> now = datetime(2026, 11, 25, tzinfo=UTC)
    >>> names = [f"redis-202611{day}T000000Z.rdb" for day in ("01", "02", "24")]
    >>> expired(names, now, 7, 2), expired(names, now, 7, 9)
    (['redis-20261101T000000Z.rdb'], [])
    """
    ordered = sorted(names)
    older = ordered[: max(len(ordered) - keep_at_least, 0)]
    return [name for name in older if taken(name) < now - timedelta(days=keep_days)]


def tidy(site: Site) -> None:
    """Remove what runs that were cut off have left; the caller has the lock."""
    for path in site.backups.glob(".new-*"):
        shutil.rmtree(path)
    for path in site.backups.glob("redis-*.rdb"):
        if not note_of(path).exists():
            path.unlink()


def save(client: Client) -> None:
    """Have Redis write its data to a file, as they are at one moment, while it goes on working.

    :raises BackupError: when it could not.
    """
    before = int(client.info("persistence")["rdb_saves"])
    asked = False
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if not asked:
            # With an append-only file that is being rewritten, right after that.
            with contextlib.suppress(RedisError):
                client.ask("BGSAVE", "SCHEDULE")
                asked = True
        state = client.info("persistence")
        if not asked:
            # One that somebody else has begun may be older than this backup.
            before = int(state["rdb_saves"])
        elif int(state["rdb_saves"]) > before and state["rdb_bgsave_in_progress"] == "0":
            if state["rdb_last_bgsave_status"] != "ok":
                raise BackupError(
                    "Redis could not save its data (rdb_last_bgsave_status is "
                    f"{state['rdb_last_bgsave_status']}). Its journal says why, most often a full "
                    "disk or too little memory. The backups from before stay."
                )
            return
        time.sleep(0.1)
    raise BackupError(f"Redis has not saved its data in {PATIENCE_SECONDS:.0f} s.")


def backup(site: Site, now: datetime | None = None) -> str:
    """Make a backup, prove it by loading it, and remove old ones; its name.

    :raises BackupError: when one of it fails; the backups from before stay then.
    """
    now = now or datetime.now(UTC)
    name = now.strftime(f"redis-{STAMP}.rdb")
    kept = {one: site.setting(one) for one in ("keep_days", "keep_at_least")}
    with locked(site):
        tidy(site)
        staged = site.backups / f".new-{name}"
        staged.mkdir(mode=0o700)
        try:
            note = _made(site, staged / "dump.rdb", now)
        except RefusedError as problem:
            raise BackupError(f"{problem} The backups from before stay.") from None
        except RedisError as problem:
            raise BackupError(
                f"Redis ended the backup: {problem}. See 'journalctl -u {site.unit}'. The backups "
                "from before stay."
            ) from None
        else:
            keep(site, name, staged / "dump.rdb", note)
        finally:
            shutil.rmtree(staged)
        print(f"{name}: {described(note)}")
        for old in prune(site, now, **kept):
            print(f"{old} is older than {kept['keep_days']} days: removed")
        ship(site)
    return name


def prune(site: Site, now: datetime, keep_days: int, keep_at_least: int) -> list[str]:
    """Remove the backups that are too old; their names."""
    old = expired(list(good(site)), now, keep_days, keep_at_least)
    for name in old:
        note_of(site.backups / name).unlink()
        (site.backups / name).unlink()
    return old


def _made(site: Site, target: Path, now: datetime) -> dict[str, Any]:
    """Write a proven dump of the running Redis to a file; what is in it."""
    with site.live() as client:
        directory, file = client.setting("dir"), client.setting("dbfilename")
        if directory != site.inside:
            raise BackupError(
                f"Redis has its data in {directory}, not in {site.inside}: take 'dir' out of "
                "redis_extra_config, or make backups of your own (redis_backup: false)."
            )
        # A dump is no larger than what it holds takes in memory. It is there twice for a moment.
        size = int(client.info("memory")["used_memory"])
        twice = site.data.stat().st_dev == target.parent.stat().st_dev
        require_space(site.data, size, "A dump of Redis")
        require_space(target.parent, size * (2 if twice else 1), "A backup")
        save(client)
        # The name comes from the container, too.
        with Folder(site.data) as data:
            handle = data.open(file)
            size = os.fstat(handle).st_size
            require_space(target.parent, size, "A backup")
            digest = copied(handle, target, size)
            if client.setting("appendonly") == "yes" and not client.setting("save"):
                # Redis itself never reads it.
                data.remove(file)
        version = client.info("server")["redis_version"]
    try:
        with loaded(site, target.parent, plain_arguments(target.name)) as client:
            databases = contents(client)
        # What loaded it could write it, and might be no Redis any more.
        with Folder(target.parent) as staged, open(staged.open(target.name), "rb") as source:
            if hashlib.file_digest(source, "sha256").hexdigest() != digest:
                raise BackupError("what loaded it has changed it.")
    except BackupError as problem:
        raise BackupError(f"This backup is not kept: {problem}\nThose from before stay.") from None
    return {
        "taken": now.isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "redis_version": version,
        "bytes": target.stat().st_size,
        "sha256": digest,
        "databases": databases,
    }


# ------------------------------------------------------------------------------------------
# Another host


def ship(site: Site) -> None:
    """Send the backups that the other host does not have, if there is one; oldest first.

    :raises BackupError: when it does not take them; they stay here, and the next run tries again.
    """
    target = site.setting("ship")
    if not target:
        return
    try:
        there = shipped(site)
        for name, note in good(site).items():
            if name not in there:
                _asked(site, f"put {name}", note, site.backups / name)
                print(f"{name} is shipped to {target['host']}")
    except BackupError as problem:
        raise BackupError(
            f"The backup is made, proven and kept here, but not shipped: {problem} The next backup "
            "is shipped with those that were not."
        ) from None


def shipped(site: Site) -> list[str]:
    """Names of the backups that the other host has; none where there is none.

    :raises BackupError: when it does not answer.
    """
    if not site.setting("ship"):
        return []
    # Another host may answer anything, and an operator is shown the names.
    return [name for name in _asked(site, "list").split() if NAME.fullmatch(name)]


def bring_back(site: Site, name: str) -> None:
    """Have a backup here that only the other host has; the caller has no lock.

    :raises BackupError: when it has none, or does not answer.
    """
    if name in good(site) or name not in shipped(site):
        return
    with locked(site), tempfile.TemporaryDirectory(prefix=".new-", dir=site.backups) as top:
        with subprocess.Popen(
            site.remote(f"get {name}"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            note = take(process.stdout, Path(top, name))
        keep(site, name, Path(top, name), note)


def _asked(
    site: Site, command: str, note: dict[str, Any] | None = None, file: Path | None = None
) -> str:
    """The other host's answer to a command, with a backup sent along.

    :raises BackupError: when it fails, or the answer is longer than LIST_BYTES.
    """
    target = site.setting("ship")
    where = f"{target['host']} ({target['address']})"
    with subprocess.Popen(
        site.remote(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        answers = [_limited(one, process) for one in (process.stdout, process.stderr)]
        # It says why when it ends early.
        with contextlib.suppress(BrokenPipeError), process.stdin as out:
            if note and file:
                give(out, file, note)
        answer, said = (one.result() for one in answers)
        if max(len(answer), len(said)) > LIST_BYTES:
            raise BackupError(f"{where} answers with more than {LIST_BYTES >> 20} MB.")
    if process.returncode:
        text = _visible(said[-1000:].decode(errors="replace").strip())
        raise BackupError(f"{where} said: {text or process.returncode}.")
    return answer.decode(errors="replace")


def _limited(stream: IO[bytes], process: subprocess.Popen[bytes]) -> Future[bytes]:
    """What comes from a stream while others are read; a byte more than LIST_BYTES ends it."""
    found: Future[bytes] = Future()

    def read() -> None:
        content = stream.read(LIST_BYTES + 1)
        if len(content) > LIST_BYTES:
            process.kill()
            stream.close()
        found.set_result(content)

    threading.Thread(target=read, daemon=True).start()
    return found


def give(out: IO[bytes], file: Path, note: dict[str, Any]) -> None:
    """Write a backup into a stream: what is in it on one line, then itself."""
    out.write(json.dumps(note).encode() + b"\n")
    with file.open("rb") as source:
        shutil.copyfileobj(source, out, 1 << 20)


def noted(note: Any) -> dict[str, Any]:
    """What is written beside a backup, as another host sends it, once it is of that shape.

    :raises ValueError: when it is not.

    >>> noted({"bytes": -1, "sha256": "0" * 64})
    Traceback (most recent call last):
    ValueError: bytes
    """

    def is_count(one: Any) -> bool:
        return type(one) is int and 0 <= one < 1 << 63

    def is_database(name: Any, one: Any) -> bool:
        return (
            re.fullmatch("[0-9]{1,9}", name) is not None
            and isinstance(one, dict)
            and all(is_count(one.get(key)) for key in ("keys", "lasting", "unacked"))
            and isinstance(one.get("lists"), dict)
            and all(map(is_count, one["lists"].values()))
        )

    def is_word(one: Any) -> bool:
        return isinstance(one, str) and re.fullmatch("[A-Za-z0-9.:+_-]{1,255}", one) is not None

    rules: dict[str, Callable[[Any], bool]] = {
        "bytes": is_count,
        "sha256": lambda one: is_word(one) and re.fullmatch("[0-9a-f]{64}", one) is not None,
        "taken": is_word,
        "host": is_word,
        "redis_version": is_word,
        "databases": lambda one: (
            isinstance(one, dict) and all(is_database(*i) for i in one.items())
        ),
    }
    for name, rule in rules.items():
        if not isinstance(note, dict) or not rule(note.get(name)):
            raise ValueError(name)
    return {name: note[name] for name in rules}


def take(stream: IO[bytes], target: Path) -> dict[str, Any]:
    """Read a backup from a stream into a file; what is in it.

    :raises BackupError: when it is not all there, or not what it says that it is.
    """
    try:
        note = noted(json.loads(stream.readline(NOTE_BYTES)))
    except (ValueError, RecursionError):
        raise BackupError("what came is no backup.") from None
    size, digest = note["bytes"], hashlib.sha256()
    require_space(target.parent, size, "This backup")
    left = size
    with target.open("wb") as out:
        os.fchmod(out.fileno(), 0o600)
        while part := stream.read(min(left, 1 << 20)):
            left -= len(part)
            digest.update(part)
            out.write(part)
        out.flush()
        os.fsync(out.fileno())
    if left or digest.hexdigest() != note["sha256"]:
        raise BackupError("it did not come whole: look at the network and at both disks.")
    return note


def keep(site: Site, name: str, file: Path, note: dict[str, Any]) -> None:
    """Put a backup in its place, what is in it last: only that makes it one."""
    os.replace(file, site.backups / name)
    write(note_of(site.backups / name), json.dumps(note, indent=1) + "\n")


def receive(site: Site, command: str, keep_days: int, keep_at_least: int) -> None:
    """Do what the other side may ask for: ``list``, ``put NAME`` and ``get NAME``.

    No backup is replaced, and none is removed before its time, whoever has the key.
    """
    verb, _, name = command.partition(" ")
    if verb not in ("list", "put", "get") or (verb == "list") == bool(name):
        raise BackupError(f"{command[:60]!r} is not done for this key: only list, put and get.")
    if name:
        taken(name)
    out = sys.stdout.buffer
    with locked(site):
        there = good(site)
        if verb == "list":
            out.write("".join(f"{one}\n" for one in there).encode())
        elif verb == "get" and name in there:
            give(out, site.backups / name, there[name])
        elif verb == "get" or name in there:
            raise BackupError(f"{name} is {'there already' if verb == 'put' else 'not there'}.")
        else:
            tidy(site)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=site.backups) as top:
                note = take(sys.stdin.buffer, Path(top, name))
                keep(site, name, Path(top, name), note)
            prune(site, datetime.now(UTC), keep_days, keep_at_least)
    out.flush()


def described(note: dict[str, Any]) -> str:
    """What is in a backup, in a few words."""
    words = [f"{note['bytes']} bytes of Redis {note['redis_version']}"]
    for number, one in note["databases"].items():
        words.append(f"database {number}: {one['keys']} keys")
        words += [f"{_visible(name)} {length}" for name, length in one["lists"].items()]
        words += [f"unacked {one['unacked']}"] if one["unacked"] else []
    return ", ".join(words)


def _visible(name: str) -> str:
    return name if name.isprintable() else ascii(name)[1:-1]


def listed(site: Site) -> list[str]:
    """The good backups, a line each, newest last."""
    return [f"{name}  {note['taken']}  {described(note)}" for name, note in good(site).items()]


def proven(site: Site, name: str) -> dict[str, Any]:
    """What is written beside a backup, once the file is what was written then.

    :raises BackupError: when there is no such backup, or the file is another one now.
    """
    taken(name)
    note = good(site).get(name)
    if note is None:
        there = ", ".join(good(site)) or "none"
        raise BackupError(
            f"there is no backup {name} in {site.backups}. There are: {there}. Nothing was changed."
        )
    path = site.backups / name
    if path.stat().st_size != note["bytes"] or digest_of(path) != note["sha256"]:
        raise BackupError(
            f"{name} is damaged: it is not the file that was written and loaded on "
            f"{note['taken']} ({path.stat().st_size} bytes, {note['bytes']} then; its SHA-256 "
            "differs). Nothing was changed. Take another backup."
        )
    return note


def check(site: Site, name: str) -> dict[str, Any]:
    """Load a backup, and compare it with what is written beside it; that.

    :raises BackupError: when it is damaged.
    """
    with locked(site):
        note = proven(site, name)
        staged = site.backups / f".new-check-{name}"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(mode=0o700)
        try:
            require_space(staged, note["bytes"], "A check")
            copied(site.backups / name, staged / "dump.rdb")
            with loaded(site, staged, plain_arguments("dump.rdb")) as client:
                _compare(name, note, contents(client))
        finally:
            shutil.rmtree(staged)
    return note


def _compare(name: str, note: dict[str, Any], found: dict[str, Any]) -> None:
    if differences := missing(note["databases"], found):
        raise BackupError(
            f"{name} was loaded, but not with what was in it: {'; '.join(differences)}. Nothing "
            "was changed. Take another backup."
        )


# ------------------------------------------------------------------------------------------
# Restore


def stage(site: Site, name: str) -> dict[str, Any]:
    """Make the data directory of a backup beside the present one, and prove it by loading it.

    :returns: what is in the backup.
    :raises BackupError: when it cannot be used; nothing that Redis uses was changed.
    """
    with locked(site):
        note = proven(site, name)
        place = staging(site)
        shutil.rmtree(place, ignore_errors=True)
        for disk in {one.stat().st_dev: one for one in (site.data, place.parent)}.values():
            require_space(disk, note["bytes"], "The data of this backup")
        place.mkdir(mode=0o700)
        try:
            arguments = _laid_out(site, site.backups / name, place, note["sha256"])
            with loaded(site, place, arguments) as client:
                _compare(name, note, contents(client))
            require_plain(place)
        except BackupError as problem:
            shutil.rmtree(place)
            raise BackupError(f"{name} cannot be used: {problem}") from None
        (place / MARK).write_text(note["sha256"])
    return note


MARK = "celery-metal-restore"


def require_plain(place: Path) -> None:
    """Have nothing but files and directories in what a throwaway server has loaded.

    :raises BackupError: when it has left something else, which root would follow.
    """
    for path in place.rglob("*"):
        found = path.lstat()
        plain = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
        if path.name == MARK or not (plain or stat.S_ISDIR(found.st_mode)):
            raise BackupError(
                f"what loaded it has left {str(path.relative_to(place))[:100]!a}, which is nothing "
                "of Redis's. Nothing was changed. Take another backup."
            )


def staging(site: Site) -> Path:
    """Where the data to come are made ready: where no container writes.

    Most often on the same disk, so that a rename brings them.
    """
    site.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    return site.data.parent / "redis-restore"


def _laid_out(site: Site, source: Path, place: Path, digest: str) -> list[str]:
    """Lay a dump out as the configured Redis reads it; arguments of a server that loads it so."""
    directives = site.directives()
    if directives.get("appendonly") != "yes":
        file = directives.get("dbfilename", "dump.rdb")
        same = copied(source, place / file)
        arguments = plain_arguments(file)
    else:
        # With an append-only file, Redis loads that and nothing else: so the dump becomes its base.
        folder = directives.get("appenddirname", "appendonlydir")
        stem = directives.get("appendfilename", "appendonly.aof")
        (place / folder).mkdir(mode=0o700)
        same = copied(source, place / folder / f"{stem}.1.base.rdb")
        write(place / folder / f"{stem}.1.incr.aof", "")
        # Redis takes quotes there, for names with blanks.
        base, rest = (json.dumps(f"{stem}.1.{end}") for end in ("base.rdb", "incr.aof"))
        write(
            place / folder / f"{stem}.manifest",
            f"file {base} seq 1 type b\nfile {rest} seq 1 type i\n",
        )
        arguments = ["--port", "0", "--save", "", "--appendonly", "yes"]
        arguments += ["--appenddirname", folder, "--appendfilename", stem]
    if same != digest:
        raise BackupError("it changed while it was copied: look at the disk.")
    return arguments


def switch(site: Site, name: str, now: datetime | None = None) -> dict[str, Any]:
    """Put what was staged in the place of Redis's data, and start Redis.

    What was there is kept beside it. A run that was cut off after the exchange only starts Redis.

    :returns: ``aside``, where the data from before are, and ``note``, what is in the backup.
    :raises BackupError: says whether the exchange was made, and the way back.
    """
    with locked(site):
        note = proven(site, name)
        aside = pending(site, name) or _exchange(site, name, note, now or datetime.now(UTC))
        started = site.systemctl("start")
        if started.returncode:
            raise BackupError(
                f"{site.unit} did not start with the data of {name}: {started.stderr.strip()} See "
                f"'journalctl -u {site.unit}'. {way_back(site, aside)}"
            )
        # From here on another run would be another restore.
        intent(site).unlink()
        with site.live() as client:
            differences = missing(note["databases"], contents(client), more=True)
        if differences:
            raise BackupError(
                f"{site.unit} runs with the data of {name}, but not all of them are there: "
                f"{'; '.join(differences)}. Was it a consumer outside of the inventory, then start "
                f"the workers (playbooks/undrain.yml). {way_back(site, aside)}"
            )
    return {"aside": aside, "note": note}


def intent(site: Site) -> Path:
    """What a restore has begun and not ended."""
    return site.backups / "restore.json"


def pending(site: Site, name: str) -> str:
    """Where the data from before are, if a restore of this backup has put it in place already.

    Empty when it has not, or when Redis has run since: then this is another restore.
    """
    try:
        found = json.loads(intent(site).read_text())
    except (OSError, ValueError):
        return ""
    if found["file"] != name or not found["switched"] or site.runs():
        return ""
    aside: str = found["aside"]
    return aside


def _exchange(site: Site, name: str, note: dict[str, Any], now: datetime) -> str:
    place = staging(site)
    if not (place / MARK).exists() or (place / MARK).read_text() != note["sha256"]:
        raise BackupError(f"the data of {name} are not staged. Run playbooks/restore.yml again.")
    stopped = site.systemctl("stop")
    if stopped.returncode:
        raise BackupError(
            f"{site.unit} did not stop: {stopped.stderr.strip()} Its data are as they were. See "
            f"'journalctl -u {site.unit}', then run again."
        )
    owner = site.data.stat()
    # On the disk of the data, so that a rename moves them.
    beside = site.data if site.data.is_mount() else site.data.parent
    aside = beside / now.strftime(f"redis-before-{STAMP}")
    aside.mkdir(mode=0o700)
    # First it is written down, for whoever finds the directory without its files.
    state = {"file": name, "aside": str(aside), "switched": False}
    write(intent(site), json.dumps(state))
    for path in site.data.iterdir():
        if not path.name.startswith("redis-before-"):
            path.rename(aside / path.name)
    # A run that is cut off from here on leaves nothing that looks whole.
    (place / MARK).unlink()
    for path in place.iterdir():
        target = site.data / path.name
        moved(path, target)
        for one in (target, *target.rglob("*")):
            os.chown(one, owner.st_uid, owner.st_gid, follow_symlinks=False)
    settle(site.data)
    settle(aside)
    write(intent(site), json.dumps({**state, "switched": True}))
    shutil.rmtree(place)
    return str(aside)


def moved(source: Path, target: Path) -> None:
    """Move a file or a directory, to another disk, too."""
    try:
        source.rename(target)
    except OSError as problem:
        if problem.errno != errno.EXDEV:
            raise
        if source.is_dir():
            target.mkdir(mode=0o700)
            for path in source.iterdir():
                moved(path, target / path.name)
            settle(target)
        else:
            copied(source, target)


def way_back(site: Site, aside: str) -> str:
    """How an operator brings the data from before back by hand."""
    return (
        f"The data from before are in {aside}. To go back to them, on this host: "
        f"'systemctl stop {site.unit} && mkdir {aside}.failed && find {site.data} -mindepth 1 "
        f'-maxdepth 1 ! -name "redis-before-*" -exec mv -t {aside}.failed {{}} + && find {aside} '
        f"-mindepth 1 -maxdepth 1 -exec mv -t {site.data} {{}} + && rm -f {intent(site)} && "
        f"systemctl start {site.unit}'. To go on instead, mend what is named and run "
        "playbooks/restore.yml again; workers stay out until then, or until playbooks/undrain.yml."
    )


def main(words: list[str]) -> int:
    """Run a command of the command line; its exit status."""
    site = Site()
    os.umask(0o077)
    # systemd's way to end the unit: the throwaway server goes, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        match words:
            case ["backup"]:
                backup(site)
            case ["list"]:
                print(json.dumps(good(site), indent=1))
            case ["check", name]:
                print(f"{name} can be used: {described(check(site, name))}")
            case ["receive", place, days, number]:
                command = os.environ.get("SSH_ORIGINAL_COMMAND", "")
                receive(
                    dataclasses.replace(site, backups=Path(place)), command, int(days), int(number)
                )
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except BackupError as problem:
        print(f"{socket.gethostname()}: {problem}", file=sys.stderr)
        return 1
    except OSError as problem:
        print(f"{socket.gethostname()}: {problem}. The backups from before stay.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
