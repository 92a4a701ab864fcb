"""A Redis whose power was cut starts again by itself."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ansible.module_utils.celery_redis import Client
from ansible.module_utils.podman_store import Kept
from test_redis_users import Host

PROGRAM = Path(__file__).parents[1] / "files/redis_mend.py"
SHARED = Path(__file__).parents[2] / "podman_host/module_utils/container_files.py"
# A value that has what is cut off elsewhere.
VALUE = "a\0\0b\0"


@pytest.fixture(scope="module")
def redis_mend():
    spec = importlib.util.spec_from_file_location("redis_mend", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def host(tmp_path):
    one = Host(tmp_path)
    one.store["celery-redis-acl"] = Kept("user default on nopass ~* &* +@all\n", {})
    one.start()
    Client(str(one.socket), 5).ask(("LPUSH", "queue", VALUE), ("LPUSH", "queue", VALUE))
    one.stop()
    yield one
    one.stop()


def files(host):
    found = sorted((host.folder / "appendonlydir").iterdir())
    return {path: path.read_bytes() for path in found}


def mend(folder):
    """What the program prints, as it lies on a host: beside what it imports."""
    with tempfile.TemporaryDirectory() as top:
        for path in (PROGRAM, SHARED):
            shutil.copy(path, top)
        command = [sys.executable, "-I", f"{top}/{PROGRAM.name}", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("zeros", [1, 158, 65536, 200000])
@pytest.mark.parametrize("lost", [0, 1, 20])
def test_zeros_at_the_end_are_cut_off_and_redis_starts(host, zeros, lost):
    before = files(host)
    (path,) = [path for path in before if path.name.endswith(".incr.aof")]
    whole = before[path]
    path.write_bytes(whole[: len(whole) - lost] + bytes(zeros))
    assert f"{path} ended in {zeros} zeros" in mend(host.folder)
    assert path.read_bytes() == whole[: len(whole) - lost].rstrip(b"\0")
    host.start()
    found = Client(str(host.socket), 5).ask(("LRANGE", "queue", "0", "-1"))[0]
    assert found == [VALUE] * (1 if lost else 2)


def test_redis_itself_would_not_start(host):
    (path,) = [path for path in files(host) if path.name.endswith(".incr.aof")]
    path.write_bytes(path.read_bytes() + bytes(158))
    with pytest.raises(AssertionError):
        host.start()
    assert host.process.wait(20) != 0


def test_what_is_whole_is_not_touched(host):
    before = files(host)
    stamps = [path.stat().st_mtime_ns for path in before]
    assert mend(host.folder) == ""
    assert files(host) == before
    assert [path.stat().st_mtime_ns for path in before] == stamps


def test_a_directory_without_an_append_only_file(tmp_path, redis_mend, capsys):
    redis_mend.main(str(tmp_path))
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("")
    redis_mend.main(str(tmp_path))
    assert capsys.readouterr().out == ""


def test_a_file_of_nothing_but_zeros_is_empty_then(tmp_path, redis_mend):
    path = tmp_path / "x"
    path.write_bytes(bytes(70000))
    with path.open("r+b") as file:
        assert redis_mend.mend(file.fileno()) == 70000
        assert path.read_bytes() == b""
        assert redis_mend.mend(file.fileno()) == 0


# What follows is written by code in Redis's container; root of the host must not follow it.


@pytest.fixture
def victim(tmp_path):
    """A file of root's that ends in zeros, and so would be cut."""
    path = tmp_path / "victim"
    content = b"keep" + bytes(4096)
    path.write_bytes(content)
    yield path
    assert path.read_bytes() == content


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data"
    (path / "appendonlydir").mkdir(parents=True)
    return path


def manifest(data, name, folder="appendonlydir"):
    text = f"file {shlex.quote(name)} seq 1 type i\n"
    (data / folder / "a.manifest").write_text(text)


def refused(data, *texts):
    """It is one line in the journal; and Redis starts, for the program ends well."""
    said = mend(data)
    assert said.count("\n") == 1, said
    for text in (*texts, "so root leaves it alone. Fix: ", "docs/durability.md"):
        assert text in said


def honest(data):
    """A file of Redis's that ends in zeros, beside what is hostile, and sorted behind it."""
    (data / "own").mkdir()
    manifest(data, "b.aof", "own")
    path = data / "own/b.aof"
    path.write_bytes(b"*1" + bytes(9))
    return path


def test_what_a_link_leads_to_is_not_cut(data, victim):
    mine = honest(data)
    manifest(data, "a.aof")
    (data / "appendonlydir/a.aof").symlink_to(victim)
    said = mend(data)
    assert f"{data}/appendonlydir/a.aof is a symbolic link" in said
    # One that is as it should be is mended all the same.
    assert f"{mine} ended in 9 zeros" in said
    assert mine.read_bytes() == b"*1"


def test_what_another_name_of_a_file_of_root_is_stays(data, victim):
    manifest(data, "a.aof")
    (data / "appendonlydir/a.aof").hardlink_to(victim)
    refused(data, "has 2 names (hard links)")


@pytest.mark.parametrize("place", ["../../victim", "absolute"])
def test_what_a_manifest_names_elsewhere_is_not_cut(data, victim, place):
    manifest(data, str(victim) if place == "absolute" else place)
    refused(data, f"{data}/appendonlydir/", "has a name that Redis gives no file")


def test_a_directory_that_is_a_link_is_not_entered(data, victim, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    victim.rename(elsewhere / "a.aof")
    victim.symlink_to(elsewhere / "a.aof")
    (elsewhere / "a.manifest").write_text("file a.aof seq 1 type i\n")
    (data / "link").symlink_to(elsewhere)
    assert mend(data) == ""
    data.rename(tmp_path / "away")
    data.symlink_to(tmp_path / "away")
    refused(data, f"{data} is no directory")


@pytest.mark.parametrize("what", ["a.aof", "a.manifest"])
def test_a_pipe_and_a_directory_hold_up_no_start(data, what):
    manifest(data, "a.aof")
    path = data / "appendonlydir" / what
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    refused(data, f"{path} is a named pipe")
    path.unlink()
    path.mkdir()
    refused(data, f"{path} is a directory")


def test_a_manifest_has_a_limit(data):
    with (data / "appendonlydir/a.manifest").open("wb") as file:
        file.truncate(1 << 40)
    refused(data, "has more than 1048576 bytes")


@pytest.mark.parametrize("content", [b"file \xff seq 1 type i\n", b'file "a seq 1 type i\n'])
def test_a_manifest_that_cannot_be_read(data, content):
    (data / "appendonlydir/a.manifest").write_bytes(content)
    refused(data, f"{data}/appendonlydir/a.manifest")


def test_many_manifests_hold_up_no_start(data):
    for number in range(100):
        (data / f"appendonlydir/{number}.manifest").write_text("")
    refused(data, "has more than 16 manifests")


def test_zeros_without_end_hold_up_no_start(data, redis_mend):
    path = data / "a.aof"
    with path.open("w+b") as file:
        file.truncate(1 << 40)
        assert redis_mend.mend(file.fileno(), 1 << 20) > 1 << 20
        assert path.stat().st_size == 1 << 40
