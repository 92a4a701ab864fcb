"""The alarm is raised above its share, says what to do, and ends by itself."""

import importlib.util
import json
import re
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


def secret(value, user="monitor"):
    return json.dumps([{"Spec": {"Name": f"celery-redis-{user}"}, "SecretData": f"{value}\n"}])


@pytest.fixture
def memory(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("redis_memory", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SOCKET, module.RAISED = str(tmp_path / "redis.sock"), str(tmp_path / "raised")
    # What stands for Podman, which knows two secrets.
    podman = tmp_path / "bin/podman"
    podman.parent.mkdir()
    podman.write_text(
        '#!/bin/sh\n[ "$1 $2 $3" = "secret inspect --showsecret" ] && cat "$(dirname "$0")/$4"\n'
    )
    podman.chmod(0o755)
    for user in ("admin", "monitor"):
        (tmp_path / f"bin/celery-redis-{user}").write_text(secret(user, user))
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
        try:
            yield answering(path)
        finally:
            process.terminate()


def answering(path, seconds=180):
    """A client of a Redis that is about to start."""
    deadline = time.monotonic() + seconds
    while True:
        # Its socket is there a moment before it listens.
        try:
            client = Client(str(path), 30)
            client.ask(("AUTH", "admin", "admin"))
            return client
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


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
        assert (
            "Lists hold 0 MB, the largest: mail (3 messages, 0 MB), jobs (1 messages, 0 MB). Fix: "
            "run more workers, "
        ) in line
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


def raised_line(memory, redis, capsys):
    limit(redis, 1)
    assert memory.main(80) == 1
    (line,) = capsys.readouterr().out.splitlines()
    return line


def test_the_largest_lists_are_those_of_most_bytes_also_without_a_consumer(memory, redis, capsys):
    redis.ask(
        ("HSET", "shop:celery-metal.nodes", "a", json.dumps([1, 1, ["mail"]])),
        ("LPUSH", "emials", *["x" * 100_000] * 35),
        ("LPUSH", "shop:mail", *["x" * 100_000] * 22),
        ("LPUSH", "shop:celery-metal.dead:mail", "x" * 1_400_000),
        ("LPUSH", "small", *["x"] * 100),
        # A result is in no list.
        ("SET", "celery-task-meta-1", "x" * 5_000_000),
    )
    line = raised_line(memory, redis, capsys)
    (shown,) = re.findall(r"Lists hold [67] MB, the largest: (.*)\. Fix: (?=declare)", line)
    assert shown == (
        "emials (35 messages, 3 MB, no worker consumes it), shop:mail (22 messages, 2 MB), "
        "dead letters of shop:mail (1 messages, 1 MB)"
    )


def test_a_name_that_a_producer_chose_writes_no_line_of_its_own(memory, redis, capsys):
    redis.ask(("LPUSH", f"a\n<0>b{'x' * 500}", "1"))
    line = raised_line(memory, redis, capsys)
    assert f"the largest: a\\n<0>b{'x' * 73} (1 messages" in line


def test_a_search_that_takes_too_long_ends_and_the_line_reports_it(memory, redis, capsys):
    memory.LOOK_SECONDS = 0.0
    redis.ask(*(("SET", f"key-{number}", "1") for number in range(20_000)), ("LPUSH", "q", "1"))
    line = raised_line(memory, redis, capsys)
    assert re.search(r"of those found in time: q|No list has tasks", line)
    assert "Fix: " in line


def test_without_the_password_of_admin_the_alarm_is_raised_all_the_same(
    memory, redis, tmp_path, capsys
):
    (tmp_path / "bin/celery-redis-admin").unlink()
    assert "Its lists are not known: " in raised_line(memory, redis, capsys)


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
    path = tmp_path / "bin/celery-redis-monitor"
    path.write_text(secret(password)) if password else path.unlink()
    assert memory.main(80) == 1
    line = capsys.readouterr().out
    assert "the memory of Redis is not watched: " in line
    assert "monitor\n" not in line
