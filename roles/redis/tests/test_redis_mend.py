"""A Redis whose power was cut starts again by itself."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.module_utils.celery_redis import Client
from ansible.module_utils.podman_store import Kept
from test_redis_users import Host

PROGRAM = Path(__file__).parents[1] / "files/redis_mend.py"
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


def mend(host):
    command = [sys.executable, str(PROGRAM), str(host.folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("zeros", [1, 158, 65536, 200000])
@pytest.mark.parametrize("lost", [0, 1, 20])
def test_zeros_at_the_end_are_cut_off_and_redis_starts(host, zeros, lost):
    before = files(host)
    (path,) = [path for path in before if path.name.endswith(".incr.aof")]
    whole = before[path]
    path.write_bytes(whole[: len(whole) - lost] + bytes(zeros))
    assert f"{path} ended in {zeros} zeros" in mend(host)
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
    assert mend(host) == ""
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
    assert redis_mend.mend(path) == 70000
    assert path.read_bytes() == b""
    assert redis_mend.mend(path) == 0
