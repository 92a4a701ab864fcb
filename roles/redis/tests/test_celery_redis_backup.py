"""Backups and restores against a real redis-server, with an append-only file as in the kit."""

import dataclasses
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ansible.module_utils import celery_redis_backup as backups
from ansible.module_utils import container_files
from hypothesis import given
from hypothesis import strategies as st

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
NAME = "redis-20261125T120000Z.rdb"
NOTE = {
    "taken": "2026-11-25T12:00:00+00:00",
    "host": "host-a",
    "redis_version": "8.0.2",
    "bytes": 1,
    "sha256": "0" * 64,
    "databases": {"0": {"keys": 1, "lasting": 1, "lists": {"mail": 1}, "unacked": 0}},
}
SHARED = Path(container_files.__file__).parent
PROGRAM = shutil.which("redis-server")
PASSWORD = "hush"


@dataclasses.dataclass(frozen=True)
class LocalSite(backups.Site):
    """A site whose servers are processes of this machine, without containers.

    With `hz 500` Redis sees sooner that it shall stop, and that its child is done.
    """

    processes: list = dataclasses.field(default_factory=list)
    # A program of one's own in place of redis-server.
    program: str = PROGRAM or "redis-server"

    def credentials(self):
        return ("AUTH", PASSWORD)

    def server(self, directory, run, arguments):
        words = ["--dir", str(directory), "--unixsocket", str(run / "redis.sock"), "--hz", "500"]
        return [self.program, *arguments, *words]

    def remote(self, command):
        # As it lies on a host: beside what it imports.
        program = self.settings.with_name("redis_backup.py")
        for source, name in ((backups.__file__, program.name), (SHARED / "container_files.py", "")):
            shutil.copy(source, program.parent / name)
        words = [sys.executable, "-I", str(program), "receive", self.setting("ship")["place"]]
        return ["env", f"SSH_ORIGINAL_COMMAND={command}", *words, "30", "2"]

    def discard(self):
        pass

    def systemctl(self, verb):
        done = subprocess.CompletedProcess([verb], 0, "", "")
        if verb == "stop":
            for process in self.processes:
                process.terminate()
                process.wait()
            self.processes.clear()
        elif verb == "start":
            if not self.processes:
                self.processes.append(subprocess.Popen([self.program, str(self.configuration)]))
            deadline = time.monotonic() + 20
            while not self.answers() and self.processes[0].poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            if self.processes[0].poll() is not None:
                self.processes.clear()
                done = subprocess.CompletedProcess([verb], 1, "", "it ended")
        elif not self.processes:
            done = subprocess.CompletedProcess([verb], 3, "", "")
        return done

    def answers(self):
        try:
            with self.live() as client:
                return client.ask("PING") == b"PONG"
        except (backups.BackupError, backups.RedisError):  # it loads
            return False


@pytest.fixture
def site(tmp_path):
    assert PROGRAM, "these tests need redis-server: install the package of that name"
    data = tmp_path / "redis"
    data.mkdir()
    found = LocalSite(
        data=data,
        inside=str(data),
        backups=tmp_path / "backups",
        settings=tmp_path / "settings.json",
        configuration=tmp_path / "redis.conf",
        socket=tmp_path / "redis.sock",
    )
    settings(found)
    found.configuration.write_text(
        f'# a comment\nport 0\nunixsocket {found.socket}\ndir {data}\nrequirepass "{PASSWORD}"\n'
        f'appendonly yes\nappendfsync everysec\nhz 500\nsave ""\nlogfile {tmp_path / "log"}\n'
    )
    found.systemctl("start")
    yield found
    found.systemctl("stop")


def settings(site, keep_days=14, keep_at_least=1, ship=None):
    found = {"image": "none", "keep_days": keep_days, "keep_at_least": keep_at_least}
    site.settings.write_text(json.dumps({**found, "ship": ship or {}}))


def ask(site, *words):
    with site.live() as client:
        return client.ask(*words)


def fill(site):
    with site.live() as client:
        client.pipeline([("RPUSH", "mail", f"task {number}") for number in range(50)])
        client.ask("RPUSH", "mail\x06\x163", "urgent")
        client.ask("RPUSH", "celery-metal.held:mail-1@host-a:mail", "running")
        client.ask("HSET", "unacked", "tag", "theirs")
        client.ask("SET", "result", "1", "EX", "1000")
        client.ask("RPUSH", "reply", "1")
        client.ask("EXPIRE", "reply", "1000")
        client.ask("SELECT", "3")
        client.ask("SET", "other", "\x00")


FILLED = {
    "0": {
        "keys": 6,
        "lasting": 4,
        "lists": {"celery-metal.held:mail-1@host-a:mail": 1, "mail": 50, "mail\x06\x163": 1},
        "unacked": 1,
    },
    "3": {"keys": 1, "lasting": 1, "lists": {}, "unacked": 0},
}


def refused(site, *texts):
    """What a stage says that it refuses; nothing of Redis was touched, and it goes on."""
    before = {path: path.stat().st_ino for path in site.data.rglob("*")}
    processes = list(site.processes)
    with pytest.raises(backups.BackupError) as error:
        backups.stage(site, NAME)
    for text in texts:
        assert text in str(error.value)
    assert {path: path.stat().st_ino for path in site.data.rglob("*")} == before
    assert site.processes == processes
    assert not backups.staging(site).exists()


def test_a_backup_says_what_is_in_it_and_leaves_nothing_else(site, capsys):
    fill(site)
    assert backups.backup(site, NOON) == NAME
    note = backups.good(site)[NAME]
    assert note["databases"] == FILLED
    assert (
        note["redis_version"]
        == ask(site, "INFO", "server").decode().split("redis_version:")[1].split("\r")[0]
    )
    assert sorted(path.name for path in site.backups.iterdir()) == [".lock", NAME, f"{NAME}.json"]
    assert oct(site.backups.stat().st_mode)[-3:] == "700"
    assert oct((site.backups / NAME).stat().st_mode)[-3:] == "600"
    assert [path.name for path in site.data.iterdir()] == ["appendonlydir"]
    assert "mail 50" in capsys.readouterr().out


def test_a_backup_is_of_one_moment_while_redis_is_written_to(site):
    fill(site)
    writer = subprocess.Popen(
        ["redis-benchmark", "-s", str(site.socket), "-a", PASSWORD, "-q", "-l", "-t", "lpush"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        backups.backup(site, NOON)
    finally:
        writer.kill()
        writer.wait()
    assert backups.check(site, NAME)["databases"]["0"]["lists"]["mail"] == 50


def test_a_backup_comes_after_a_rewrite_of_the_append_only_file(site):
    fill(site)
    ask(site, "BGREWRITEAOF")
    backups.backup(site, NOON)
    assert backups.good(site)[NAME]["databases"] == FILLED


def test_a_dump_stays_where_redis_itself_reads_it(site):
    with site.live() as client:
        client.ask("CONFIG", "SET", "save", "3600 1")
    backups.backup(site, NOON)
    assert (site.data / "dump.rdb").exists()


def test_a_redis_that_cannot_save_fails_the_backup(site):
    backups.backup(site, NOON - timedelta(days=400))
    # A directory in its place: the dump cannot be renamed to it.
    (site.data / "dump.rdb").mkdir()
    with pytest.raises(backups.BackupError, match="could not save its data"):
        backups.backup(site, NOON)
    assert len(backups.good(site)) == 1
    assert sorted(path.suffix for path in site.backups.glob("redis-*")) == [".json", ".rdb"]


def test_without_redis_there_is_no_backup(site):
    site.systemctl("stop")
    with pytest.raises(backups.BackupError, match="does not answer"):
        backups.backup(site, NOON)
    assert [path.name for path in site.backups.iterdir()] == [".lock"]


def test_a_backup_that_does_not_load_is_not_kept_and_removes_no_other(site, tmp_path):
    settings(site, keep_at_least=2)
    old = [backups.backup(site, NOON - timedelta(days=days)) for days in (300, 200)]
    settings(site, keep_days=1)
    program = tmp_path / "killed"
    program.write_text("#!/bin/sh\necho out of memory\nexit 137\n")
    program.chmod(0o755)
    with pytest.raises(backups.BackupError, match=r"(?s)not kept.*killed.*out of memory"):
        backups.backup(dataclasses.replace(site, program=str(program)), NOON)
    assert sorted(backups.good(site)) == old
    assert len(list(site.backups.glob("*.rdb"))) == 2
    assert not list(site.backups.glob(".new*"))


def test_a_full_disk_is_seen_before_redis_writes(site, monkeypatch):
    usage = shutil.disk_usage(site.data)._replace(free=backups.SPARE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    saves = ask(site, "INFO", "persistence").split(b"rdb_saves:")[1].split(b"\r")[0]
    with pytest.raises(backups.BackupError, match="Make room"):
        backups.backup(site, NOON)
    assert ask(site, "INFO", "persistence").split(b"rdb_saves:")[1].split(b"\r")[0] == saves


def test_what_a_run_has_left_that_was_cut_off_is_removed(site):
    site.backups.mkdir()
    (site.backups / ".new-redis-20260101T000000Z.rdb").mkdir()
    (site.backups / "redis-20260101T000000Z.rdb").write_text("half")
    backups.backup(site, NOON)
    assert sorted(path.name for path in site.backups.iterdir()) == [".lock", NAME, f"{NAME}.json"]


def test_old_backups_go_when_a_new_one_is_proven(site):
    settings(site, keep_days=10, keep_at_least=2)
    names = [backups.backup(site, NOON - timedelta(days=days)) for days in (40, 30, 9, 0)]
    assert list(backups.good(site)) == names[2:]
    settings(site, keep_days=0, keep_at_least=3)
    names = [*names[2:], backups.backup(site, NOON + timedelta(days=50))]
    assert list(backups.good(site)) == names
    assert len(list(site.backups.glob("*.rdb"))) == 3


@given(
    st.lists(st.integers(0, 500), unique=True, max_size=12), st.integers(0, 400), st.integers(1, 9)
)
def test_retention(ages, keep_days, keep_at_least):
    names = [(NOON - timedelta(days=age)).strftime("redis-%Y%m%dT%H%M%SZ.rdb") for age in ages]
    gone = backups.expired(names, NOON, keep_days, keep_at_least)
    kept = sorted(set(names) - set(gone))
    assert len(kept) >= min(keep_at_least, len(names))
    assert all(NOON - backups.taken(name) > timedelta(days=keep_days) for name in gone)
    assert not gone or max(gone) < min(kept)
    # Whatever is too old stays only as one of the newest.
    old = [name for name in kept if NOON - backups.taken(name) > timedelta(days=keep_days)]
    assert not old or len(kept) == min(keep_at_least, len(names))


@pytest.mark.parametrize("name", ["../../etc/passwd", "redis-1.rdb", "redis-20261125T120000Z", ""])
def test_a_name_of_something_else_is_refused(name):
    with pytest.raises(backups.BackupError, match="is no name of a backup"):
        backups.taken(name)


def test_a_backup_that_is_not_there_is_refused_with_those_that_are(site):
    backups.backup(site, NOON - timedelta(days=1))
    refused(site, f"there is no backup {NAME}", "redis-20261124T120000Z.rdb", "Nothing was changed")


@pytest.mark.parametrize("damage", ["flipped", "truncated", "grown"])
def test_a_damaged_backup_is_refused(site, damage):
    fill(site)
    backups.backup(site, NOON)
    path = site.backups / NAME
    raw = bytearray(path.read_bytes())
    if damage == "flipped":
        raw[len(raw) // 2] ^= 1
    path.write_bytes({"flipped": raw, "truncated": raw[:-20], "grown": raw + b"x"}[damage])
    refused(site, "is damaged", "Nothing was changed")


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_damage_that_its_note_agrees_with_is_found_by_loading(site, damage):
    fill(site)
    backups.backup(site, NOON)
    path = site.backups / NAME
    raw = bytearray(path.read_bytes())
    if damage == "flipped":
        raw[len(raw) // 2] ^= 1
    path.write_bytes({"flipped": raw, "truncated": raw[:-20]}[damage])
    note = backups.good(site)[NAME]
    note |= {"sha256": backups.digest_of(path), "bytes": path.stat().st_size}
    backups.note_of(path).write_text(json.dumps(note))
    refused(site, f"{NAME} cannot be used", "could not load it")


def test_a_backup_with_other_counts_is_refused(site):
    fill(site)
    backups.backup(site, NOON)
    note = backups.good(site)[NAME]
    note["databases"]["0"]["lists"]["mail"] = 51
    backups.note_of(site.backups / NAME).write_text(json.dumps(note))
    refused(site, "database 0: 50 tasks in mail, not 51")


@pytest.mark.parametrize(
    "directives",
    ["", "appenddirname other\nappendfilename 'a name'\n", "appendonly no\ndbfilename my.rdb\n"],
)
def test_a_restore_brings_all_back_and_keeps_what_it_replaces(site, directives):
    site.systemctl("stop")
    with site.configuration.open("a") as file:
        file.write(directives)
    shutil.rmtree(site.data)
    site.data.mkdir()
    site.systemctl("start")
    fill(site)
    backups.backup(site, NOON)
    ask(site, "FLUSHALL")
    ask(site, "SET", "since", "then")
    if "appendonly no" in directives:
        ask(site, "SAVE")
    backups.stage(site, NAME)
    assert ask(site, "GET", "since") == b"then"
    found = backups.switch(site, NAME, NOON)
    assert found["aside"] == str(site.data.parent / "redis-before-20261125T120000Z")
    with site.live() as client:
        assert backups.contents(client) == FILLED
    ask(site, "SET", "after", "it")
    # Also after the next start.
    site.systemctl("stop")
    if "appendonly no" not in directives:
        site.systemctl("start")
        assert ask(site, "GET", "after") == b"it"
        assert ask(site, "GET", "since") is None
        site.systemctl("stop")
    # What was replaced is whole.
    for path in list(site.data.iterdir()):
        path.rename(site.data.parent / path.name)
    for path in Path(found["aside"]).iterdir():
        path.rename(site.data / path.name)
    site.systemctl("start")
    assert ask(site, "GET", "since") == b"then"
    assert not backups.intent(site).exists()
    assert not backups.staging(site).exists()


def test_a_restore_into_a_directory_that_is_gone(site):
    fill(site)
    backups.backup(site, NOON)
    shutil.rmtree(site.data)
    backups.stage(site, NAME)
    backups.switch(site, NAME, NOON)
    with site.live() as client:
        assert backups.contents(client) == FILLED


def test_a_dump_alone_would_not_be_read(site):
    """Why the dump becomes the base of an append-only file."""
    fill(site)
    backups.backup(site, NOON)
    site.systemctl("stop")
    shutil.rmtree(site.data)
    site.data.mkdir()
    shutil.copy(site.backups / NAME, site.data / "dump.rdb")
    site.systemctl("start")
    assert ask(site, "DBSIZE") == 0


def test_a_restore_that_is_not_staged_changes_nothing(site):
    fill(site)
    backups.backup(site, NOON)
    with pytest.raises(backups.BackupError, match="are not staged"):
        backups.switch(site, NAME, NOON)
    assert ask(site, "LLEN", "mail") == 50


def test_a_redis_that_does_not_start_names_the_way_back_and_the_next_run_completes(site):
    fill(site)
    backups.backup(site, NOON)
    ask(site, "FLUSHALL")
    ask(site, "SET", "since", "then")
    backups.stage(site, NAME)
    good = site.configuration.read_text()
    site.configuration.write_text(good + "no-such-directive 1\n")
    with pytest.raises(backups.BackupError) as error:
        backups.switch(site, NAME, NOON)
    aside = site.data.parent / "redis-before-20261125T120000Z"
    assert f"The data from before are in {aside}" in str(error.value)
    site.configuration.write_text(good)
    assert backups.pending(site, NAME) == str(aside)
    found = backups.switch(site, NAME, NOON + timedelta(hours=1))
    assert found["aside"] == str(aside)
    with site.live() as client:
        assert backups.contents(client) == FILLED
    # Once Redis runs, it would be another restore.
    assert not backups.pending(site, NAME)


def test_the_way_back_that_is_named_is_one(site):
    fill(site)
    backups.backup(site, NOON)
    ask(site, "FLUSHALL")
    ask(site, "SET", "since", "then")
    backups.stage(site, NAME)
    aside = backups.switch(site, NAME, NOON)["aside"]
    line = backups.way_back(site, aside).partition("on this host: '")[2].partition("'. To go")[0]
    site.systemctl("stop")
    words = line.replace(f"systemctl stop {site.unit}", "true")
    words = words.replace(f"systemctl start {site.unit}", "true")
    subprocess.run(["sh", "-ec", words], check=True)
    site.systemctl("start")
    assert ask(site, "GET", "since") == b"then"
    assert ask(site, "DBSIZE") == 1


def test_a_disk_of_its_own_keeps_all_on_it(site, monkeypatch):
    fill(site)
    backups.backup(site, NOON)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == site.data)
    for moment in (NOON, NOON + timedelta(hours=1)):
        ask(site, "SET", "since", "then")
        backups.stage(site, NAME)
        found = backups.switch(site, NAME, moment)
        assert Path(found["aside"]).parent == site.data
        assert [path.name for path in Path(found["aside"]).iterdir()] == ["appendonlydir"]
        assert ask(site, "GET", "since") is None
        # A container writes on that disk, so what root lays out and loads is elsewhere.
        assert backups.staging(site).parent == site.data.parent


def test_another_disk_gets_copies(site, monkeypatch):
    fill(site)
    backups.backup(site, NOON)
    ask(site, "FLUSHALL")
    real = Path.rename

    def rename(path, target):
        if path.is_relative_to(backups.staging(site)):
            raise OSError(errno.EXDEV, "another disk")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    backups.stage(site, NAME)
    backups.switch(site, NAME, NOON)
    with site.live() as client:
        assert backups.contents(client) == FILLED
    assert not backups.staging(site).exists()


def test_two_do_not_run_at_once(site, monkeypatch):
    monkeypatch.setattr(backups, "LOCK_SECONDS", 0.3)
    with backups.locked(site), pytest.raises(backups.BackupError, match="another backup"):
        backups.backup(site, NOON)


def test_the_command_line(site, monkeypatch, capsys):
    fill(site)
    monkeypatch.setattr(backups, "Site", lambda: site)
    umask = os.umask(0o022)
    try:
        assert backups.main(["backup"]) == 0
        assert backups.main(["list"]) == 0
        name = backups.good(site).popitem()[0]
        assert backups.main(["check", name]) == 0
        assert f"{name} can be used" in capsys.readouterr().out
        (site.backups / name).write_text("")
        assert backups.main(["check", name]) == 1
        assert "is damaged" in capsys.readouterr().err
        assert backups.main(["restore"]) == 2
    finally:
        os.umask(umask)


@pytest.fixture
def target(site, tmp_path):
    """Where another host keeps what is shipped to it, for 30 days and two at least."""
    place = tmp_path / "shipped"
    settings(site, ship={"host": "other", "address": "10.0.0.9", "place": str(place)})
    return dataclasses.replace(site, backups=place)


def receive(site, command, sent=b""):
    return subprocess.run(site.remote(command), input=sent, capture_output=True, check=False)


def test_backups_are_shipped_and_come_back(site, target):
    fill(site)
    settings_of_ship = site.settings.read_text()
    settings(site)
    first = backups.backup(site, datetime.now(UTC) - timedelta(days=2))
    site.settings.write_text(settings_of_ship)
    # Also what was not shipped before.
    second = backups.backup(site, datetime.now(UTC))
    assert list(backups.good(target)) == backups.shipped(site) == [first, second]
    assert backups.good(target) == backups.good(site)
    for path in site.backups.glob("redis-*"):
        path.unlink()
    backups.bring_back(site, second)
    assert list(backups.good(site)) == [second]
    assert backups.check(site, second)["databases"] == FILLED
    assert not [path for path in target.backups.iterdir() if path.name.startswith(".new")]


def test_a_failing_target_is_loud_and_what_is_here_stays(site, target):
    target.backups.write_text("no directory")
    with pytest.raises(backups.BackupError, match=r"(?s)kept here, but not shipped: other .*said"):
        backups.backup(site, NOON)
    assert list(backups.good(site)) == [NAME]
    target.backups.unlink()
    later = backups.backup(site, NOON + timedelta(hours=1))
    assert backups.shipped(site) == [NAME, later]


@pytest.mark.parametrize(
    "command",
    [
        *("", "sh", "list x", "put", "get", "put ../x", "put redis-1.rdb", "rm " + NAME),
        *(f"put {NAME};id", f"get {NAME}.json", f"put  {NAME}", "scp -t /etc"),
    ],
)
def test_the_key_may_do_nothing_else(site, target, command):
    done = receive(site, command, b"{}")
    assert done.returncode == 1
    assert done.stdout == b""
    assert [path for path in target.backups.glob("*") if path.name != ".lock"] == []


def test_what_comes_is_not_taken_unless_it_is_whole(site, target):
    backups.backup(site, NOON)
    other = "redis-20261125T130000Z.rdb"
    note, raw = backups.good(site)[NAME], (site.backups / NAME).read_bytes()
    line = json.dumps(note).encode() + b"\n"
    for sent in (b"", b"[]\n", line, line + raw[:-1], line + b"x" + raw[1:]):
        done = receive(site, f"put {other}", sent)
        assert done.returncode == 1, sent
    assert list(backups.good(target)) == [NAME]
    assert b"there already" in receive(site, f"put {NAME}", line + raw).stderr
    assert receive(site, f"put {other}", line + raw).returncode == 0
    assert list(backups.good(target)) == [NAME, other]


def test_the_target_removes_by_its_own_clock(site, target):
    now = datetime.now(UTC)
    note = {**NOTE, "bytes": 1, "sha256": backups.hashlib.sha256(b"x").hexdigest()}
    sent = json.dumps(note).encode() + b"\nx"
    names = [
        (now - timedelta(days=days)).strftime("redis-%Y%m%dT%H%M%SZ.rdb") for days in (50, 40, 20)
    ]
    names.append((now + timedelta(days=900)).strftime("redis-%Y%m%dT%H%M%SZ.rdb"))
    for name in names:
        assert receive(site, f"put {name}", sent).returncode == 0
    assert list(backups.good(target)) == names[2:]


# What follows is done by code in a container of Redis, or by another host.


@pytest.fixture
def victim(tmp_path):
    """A file of root's."""
    path = tmp_path / "victim"
    path.write_text("root's")
    if not os.getuid():
        os.chown(path, 12345, 12345)
    before = path.stat()
    yield path
    assert path.read_text() == "root's"
    assert path.stat().st_uid == before.st_uid


def fails(site, match):
    """A backup is refused on one line, and nothing of it is left."""
    with pytest.raises(backups.BackupError, match=match) as error:
        backups.backup(site, NOON)
    assert str(error.value).count("\n") < 2
    assert [path.name for path in site.backups.iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["../victim", "absolute", "..", "appendonlydir/../../victim"])
def test_the_name_of_a_dump_is_no_path(site, victim, monkeypatch, name):
    real = backups.Client.setting

    def setting(client, one):
        found = real(client, one)
        return (str(victim) if name == "absolute" else name) if one == "dbfilename" else found

    monkeypatch.setattr(backups.Client, "setting", setting)
    fails(site, "has a name that Redis gives no file")


@pytest.mark.parametrize("kind", ["link", "other name", "pipe", "directory", "sparse"])
def test_what_takes_the_place_of_a_dump_is_neither_copied_nor_followed(
    site, victim, monkeypatch, kind
):
    real, dump = backups.save, site.data / "dump.rdb"

    def save(client):
        real(client)
        dump.unlink()
        match kind:
            case "link":
                dump.symlink_to(victim)
            case "other name":
                dump.hardlink_to(victim)
            case "pipe":
                os.mkfifo(dump)
            case "directory":
                dump.mkdir()
            case "sparse":
                with dump.open("wb") as file:
                    file.truncate(1 << 43)

    monkeypatch.setattr(backups, "save", save)
    fails(site, "Make room" if kind == "sparse" else "so root leaves it alone. Fix: ")


def leaving(site, tmp_path, command):
    """A site whose throwaway server runs a command in its data as it ends."""
    program = tmp_path / "leaving"
    program.write_text(
        '#!/bin/sh\nlast=; for one; do [ "$last" = --dir ] && cd "$one"; last=$one; done\n'
        f'{PROGRAM} "$@" & child=$!\n'
        f"trap 'kill $child; wait $child; {command}; exit 0' TERM\nwait $child\n"
    )
    program.chmod(0o755)
    return dataclasses.replace(site, program=str(program))


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("rm dump.rdb; ln -s VICTIM dump.rdb", "is a symbolic link"),
        ("rm dump.rdb; ln VICTIM dump.rdb", "has 2 names"),
        ("echo more >> dump.rdb", "has changed it"),
    ],
)
def test_what_the_throwaway_server_leaves_is_not_taken_for_the_backup(
    site, victim, tmp_path, command, match
):
    fill(site)
    fails(leaving(site, tmp_path, command.replace("VICTIM", str(victim))), match)


@pytest.mark.parametrize("name", ["celery-metal-restore", "appendonlydir/x"])
def test_what_the_throwaway_server_leaves_is_not_followed_by_a_restore(
    site, victim, tmp_path, name
):
    fill(site)
    backups.backup(site, NOON)
    refused(leaving(site, tmp_path, f"ln -s {victim} {name}"), "cannot be used", name)


@pytest.mark.parametrize(
    "change",
    [
        *({"bytes": one} for one in (-1, 1.5, True, "1", None, 1 << 70)),
        *({"sha256": one} for one in ("", "x" * 64, None, 7)),
        *({"host": one} for one in ("a\nb", "\x1b[2J", "x" * 999, [])),
        *({"databases": one} for one in ([], {"0": 1}, {"x": {}}, {"0": {"lists": {"a": -1}}})),
    ],
)
def test_what_another_host_says_of_a_backup_has_a_shape(change, tmp_path):
    class Endless(io.RawIOBase):
        """What comes after the line; whoever reads it to its end never ends."""

        def __init__(self):
            self.line = io.BytesIO(json.dumps({**NOTE, **change}).encode() + b"\n")

        def readline(self, size=-1):
            return self.line.readline(size)

        def read(self, size=-1):
            assert size >= 0, "read into memory without a limit"
            return b"x" * size

    with pytest.raises(backups.BackupError, match="what came is no backup"):
        backups.take(Endless(), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_note_that_is_nested_without_end(tmp_path):
    with pytest.raises(backups.BackupError, match="what came is no backup"):
        backups.take(io.BytesIO(b"[" * 100000 + b"\n"), tmp_path / "x")


def test_a_name_that_another_host_gives_is_one_of_a_backup(site, target, tmp_path, monkeypatch):
    names = [NAME, "redis-;reboot", "../x", "\x1b[2J", "redis-x.rdb"]
    monkeypatch.setattr(type(site), "remote", lambda *_: ["printf", "%s\n", *names])
    assert backups.shipped(site) == [NAME]
    monkeypatch.setattr(type(site), "remote", lambda *_: ["yes"])
    with pytest.raises(backups.BackupError, match="answers with more than 4 MB"):
        backups.shipped(site)


@pytest.mark.parametrize("sent", [b"$-7\r\n", b"*99999999999\r\n", b"*1\r\n" * 5000, b"$x\r\n"])
def test_an_answer_that_redis_does_not_give(sent):
    with pytest.raises(backups.RedisError):
        backups._answer(io.BytesIO(sent))
