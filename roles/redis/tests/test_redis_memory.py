"""The alarm is raised above its share, says what to do, and ends by itself."""

import importlib.util
import json
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from ansible.module_utils.celery_redis import Client

PROGRAM = Path(__file__).parents[1] / "files/redis_memory.py"
ACL = (
    "user default off\n"
    "user admin on >admin ~* &* +@all\n"
    "user monitor on >monitor +select +info %R~* +llen (%R~*celery-metal.nodes +hgetall)\n"
)


def secret(value):
    return json.dumps([{"Spec": {"Name": "celery-redis-monitor"}, "SecretData": f"{value}\n"}])


@pytest.fixture
def memory(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("redis_memory", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SOCKET, module.RAISED = str(tmp_path / "redis.sock"), str(tmp_path / "raised")
    # What stands for Podman, which knows one secret.
    podman = tmp_path / "bin/podman"
    podman.parent.mkdir()
    podman.write_text(
        '#!/bin/sh\n[ "$*" = "secret inspect --showsecret celery-redis-monitor" ] && '
        'cat "$(dirname "$0")/secret"\n'
    )
    podman.chmod(0o755)
    (tmp_path / "bin/secret").write_text(secret("monitor"))
    monkeypatch.setenv("PATH", str(podman.parent), prepend=":")
    return module


@pytest.fixture
def redis(tmp_path):
    (tmp_path / "acl").write_text(ACL)
    program = shutil.which("redis-server")
    assert program, "these tests need redis-server: install the package of that name"
    path = tmp_path / "redis.sock"
    options = ["--port", "0", "--save", "", "--unixsocket", path, "--aclfile", tmp_path / "acl"]
    with subprocess.Popen(
        [program, *map(str, options)], stdout=subprocess.DEVNULL, cwd=tmp_path
    ) as process:
        deadline = time.monotonic() + 20
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        client = Client(str(path), 5)
        client.ask(("AUTH", "admin", "admin"))
        yield client
        process.terminate()


def limit(redis, memory):
    redis.ask(("CONFIG", "SET", "maxmemory", str(memory)))


def test_it_is_raised_each_time_and_its_end_is_said_once(memory, redis, capsys):
    redis.ask(
        ("SELECT", "3"),
        ("HSET", "celery-metal.nodes", "a", json.dumps([1, 1, ["mail", "celery-metal.canary:a"]])),
        ("HSET", "celery-metal.nodes", "b", json.dumps([1, 1, ["mail", "idle", "jobs"]])),
        ("HSET", "celery-metal.nodes", "c", "?"),
        ("LPUSH", "mail", "1", "2"),
        ("LPUSH", "mail\x06\x163", "3"),
        ("LPUSH", "jobs", "1"),
    )
    limit(redis, "1gb")
    assert memory.main(80) == 0
    assert capsys.readouterr().out == ""
    limit(redis, 1)
    for _ in range(2):
        assert memory.main(80) == 1
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("<4>Redis on ")
        assert " of 0 MB, more than 80 %; " in line
        assert "Longest queues: mail 3, jobs 1. " in line
    limit(redis, "1gb")
    assert memory.main(80) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("<5>")
    assert "is below 80 % of its memory again" in line
    assert memory.main(80) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("used", "raised"), [(799, False), (800, False), (801, True)])
def test_it_is_raised_above_the_share_and_not_at_it(memory, tmp_path, used, raised):
    class Asked:
        def ask(self, *commands):
            text = f"used_memory:{used}\r\nmaxmemory:1000\r\n"
            return [text if words[1] == "memory" else "" for words in commands]

    assert memory.look(Asked(), 80, tmp_path / "raised")[0] == raised


def test_without_a_limit_there_is_nothing_to_raise(memory, redis):
    assert memory.main(1) == 0


def test_a_redis_that_does_not_run_is_another_units_business(memory, capsys):
    assert memory.main(80) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("said", [b"", b"-LOADING Redis is loading the dataset in memory\r\n"])
def test_nor_is_one_that_goes_or_comes(memory, capsys, said):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(memory.SOCKET)
        server.listen()

        def serve():
            client, _ = server.accept()
            with client:
                client.recv(1024)
                client.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        assert memory.main(80) == 0
        thread.join()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("password", ["wrong", None])
def test_who_cannot_look_says_so(memory, redis, tmp_path, capsys, password):
    path = tmp_path / "bin/secret"
    path.write_text(secret(password)) if password else path.unlink()
    assert memory.main(80) == 1
    line = capsys.readouterr().out
    assert "the memory of Redis is not watched: " in line
    assert "monitor\n" not in line
