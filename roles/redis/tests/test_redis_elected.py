"""What Redis and its Sentinel begin with: what was found out, and what is declared."""

import hashlib
import importlib.util
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from celery_redis import Client, ClosedError, RedisError, watched

PROGRAM = Path(__file__).parents[1] / "files/redis_elected.py"
PASSWORD = "of-admin"
OTHERS = ("producer", "monitor", "admin", "sentinel")
ACL = "user default off\nuser worker reset on #aa #bb ~* +get\n" + "".join(
    f"user {name} reset on #{hashlib.sha256(PASSWORD.encode()).hexdigest()} +ping\n"
    for name in OTHERS
)
ID = "0123456789" * 4
SETTINGS = {
    "own": "10.0.0.1",
    "first": "10.0.0.1",
    "members": ["10.0.0.1", "10.0.0.2", "10.0.0.3"],
    "port": 6379,
    "sentinel_port": 26379,
    "tls": True,
    "down_milliseconds": 3000,
    "failover_milliseconds": 5000,
    "parallel_syncs": 100,
}
FOUND = f"""sentinel monitor celery 10.0.0.2 6379 2
sentinel config-epoch celery 7
sentinel known-replica celery 10.0.0.1 6379
sentinel known-replica celery 10.0.0.9 6379
sentinel known-sentinel celery 10.0.0.3 26379 {ID}
sentinel myid {ID[::-1]}
user worker on #old
"""


@pytest.fixture(scope="module")
def elected():
    spec = importlib.util.spec_from_file_location("redis_elected", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_at_first_the_first_is_the_primary(elected):
    assert "sentinel monitor celery 10.0.0.1 6379 2\n" in elected.sentinel_text(
        SETTINGS, "", ACL, "p"
    )
    assert "replicaof" not in elected.redis_text(SETTINGS, "", "p")
    second = {**SETTINGS, "own": "10.0.0.2"}
    assert "replicaof 10.0.0.1 6379\n" in elected.redis_text(second, "", "p")


def test_what_was_elected_stays_and_what_is_declared_is_new(elected):
    text = elected.sentinel_text(SETTINGS, FOUND, ACL, "secret")
    assert "sentinel monitor celery 10.0.0.2 6379 2\n" in text
    assert "replicaof 10.0.0.2 6379\n" in elected.redis_text(SETTINGS, FOUND, "p")
    for line in ("config-epoch celery 7", "known-replica celery 10.0.0.1 6379", f"myid {ID[::-1]}"):
        assert f"sentinel {line}\n" in text
    assert "#old" not in text
    # A host that is none of ours any more.
    assert "10.0.0.9" not in text
    assert "user worker on #aa #bb +ping" in text
    more = {**SETTINGS, "members": [*SETTINGS["members"], "10.0.0.4", "10.0.0.5"]}
    assert "sentinel monitor celery 10.0.0.2 6379 3\n" in elected.sentinel_text(
        more, FOUND, ACL, "p"
    )


def test_a_primary_that_is_none_of_ours_is_forgotten(elected):
    lost = FOUND.replace("10.0.0.2 6379 2", "10.0.0.9 6379 2")
    assert "sentinel monitor celery 10.0.0.1 6379" in elected.sentinel_text(
        SETTINGS, lost, ACL, "p"
    )


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        ({}, False),
        ({"slave0": "ip=a,port=1,state=online,offset=7,lag=0"}, True),
        ({"slave0": "ip=a,offset=7", "slave1": "ip=b,offset=6"}, False),
        ({"slave0": "ip=a,offset=70"}, False),
    ],
)
def test_all_replicas_must_have_all(elected, replicas, expected):
    assert elected.has_followers({"master_repl_offset": "7", **replicas}) is expected


def flags(port):
    """What a Sentinel of this host thinks of its primary."""
    (known,) = watched(Client(("127.0.0.1", port), 5), "celery", ("admin", PASSWORD))
    return known["flags"]


def test_the_file_is_root_s_alone_and_a_sentinel_reads_it(elected, tmp_path, monkeypatch):
    program = shutil.which("redis-server")
    assert program, "these tests need redis-server: install the package of that name"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {**SETTINGS, "own": "127.0.0.1", "sentinel_port": port, "tls": False}
    settings["down_milliseconds"] = 300
    text = elected.sentinel_text(settings, FOUND, ACL.replace("#aa #bb", f"#{'a' * 64}"), "secret")
    text = text.replace("dir /data", f"dir {tmp_path}").replace("/run/sentinel/", f"{tmp_path}/")
    # What Redis before 7.2 does not know.
    text = text.replace(" +client|setinfo", "").replace("supervised systemd", "")
    path = tmp_path / "sentinel.conf"
    elected.write(path, text)
    assert path.stat().st_mode & 0o777 == 0o600
    process = subprocess.Popen(
        [program, str(path), "--sentinel"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "sentinel.sock").exists():
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # A host that comes learns who was elected; from one that does not answer it learns nothing.
        monkeypatch.setattr(elected, "secrets", lambda *_: [PASSWORD])
        nobody = {**settings, "members": ["127.0.0.1", "127.0.0.9", "10.0.0.2"]}
        monkeypatch.setattr(elected, "SECONDS", 0.2)
        assert elected.primary_elsewhere(nobody) == "10.0.0.2"
        assert elected.primary_elsewhere({**nobody, "members": ["127.0.0.1"]}) == ""
        # It is the newest that is known, also when nobody reaches it.
        deadline = time.monotonic() + 20
        while "down" not in flags(port):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert elected.primary_elsewhere(nobody) == "10.0.0.2"
        monkeypatch.setattr(elected, "secrets", lambda *_: ["wrong"])
        assert elected.primary_elsewhere(nobody) == ""
        # What it has written itself is understood the next time.
        assert elected.primary_in(path.read_text(), settings["members"]) == "10.0.0.2"
    finally:
        process.kill()
        process.wait()


def asked(answers):
    """What stands for Redis and its Sentinel; an error among the answers is raised.

    Of a tuple each is given once, and the last again and again.
    """
    given = {}

    def ask(path, password, *words):
        name = " ".join(words[:2])
        answer = answers.get(name, "OK")
        if isinstance(answer, tuple):
            given[name] = given.get(name, -1) + 1
            answer = answer[min(given[name], len(answer) - 1)]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


NAMED = "SENTINEL GET-MASTER-ADDR-BY-NAME"
OWN, OTHER = ["10.0.0.1", "6379"], ["10.0.0.2", "6379"]
FOLLOWED = {
    "ROLE": ["master"],
    NAMED: OWN,
    "INFO replication": "master_repl_offset:7\r\nslave0:ip=a,port=1,offset=7\r\n",
}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"ROLE": ["slave"]}, ""),
        ({NAMED: (OWN, OWN, OTHER)}, "10.0.0.2 is the primary now"),
        # Its Sentinel has not heard yet that it is the primary.
        ({NAMED: (OTHER, OTHER, OWN, OTHER)}, "10.0.0.2 is the primary now"),
        (
            {NAMED: OTHER},
            "no other Redis becomes the primary: the Sentinel here takes 10.0.0.2 for",
        ),
        (
            {"INFO replication": "master_repl_offset:7\r\n"},
            "no other Redis becomes the primary: no r",
        ),
        ({}, "no other Redis has become the primary within"),
        ({"SENTINEL FAILOVER": RedisError("NOGOODSLAVE")}, "no other Redis becomes the primary"),
    ],
)
def test_who_leaves_says_what_became_of_it(elected, monkeypatch, more, said):
    monkeypatch.setattr(elected, "secrets", lambda *_: [PASSWORD])
    monkeypatch.setattr(elected, "ask", asked({**FOLLOWED, **more}))
    looked = []

    def is_settled(_, primary):
        looked.append(primary)
        return len(looked) > 2

    monkeypatch.setattr(elected, "is_settled", is_settled)
    monkeypatch.setattr(elected, "LEAVE_SECONDS", 0.2)
    assert elected.leave(SETTINGS).startswith(said)
    # It is not left alone before the others know.
    assert looked == (["10.0.0.2"] * 3 if "is the primary" in said else [])


def test_a_sentinel_that_hangs_up_is_as_one_that_cannot_be_reached(elected, monkeypatch):
    monkeypatch.setattr(elected, "secrets", lambda *_: [PASSWORD])
    closed = ClosedError("the connection was closed")
    monkeypatch.setattr(elected, "ask", asked({**FOLLOWED, "SENTINEL FAILOVER": closed}))
    with pytest.raises(ClosedError):
        elected.leave(SETTINGS)


def test_a_sentinel_that_is_not_ready_is_asked_again(elected):
    answers = [RedisError("INPROG"), RedisError("NOGOODSLAVE"), "OK"]

    def sentinel(*words):
        assert words == ("FAILOVER",)
        if isinstance(answers[0], Exception):
            raise answers.pop(0)
        return answers.pop(0)

    elected.begin(sentinel, time.monotonic() + 60)
    assert answers == []


def test_what_a_container_leaves_in_their_place_is_neither_read_nor_written(
    elected, tmp_path, monkeypatch, capsys
):
    victim = tmp_path / "victim"
    victim.write_text(FOUND)
    place = tmp_path / "sentinel"
    place.mkdir()
    for name in ("sentinel.conf", "sentinel.new", "sentinel.conf.new"):
        (place / name).symlink_to(victim)
    monkeypatch.setattr(elected, "STATE", place / "sentinel.conf")
    assert elected.state() == ""
    assert "sentinel.conf is a symbolic link, so root leaves it alone. Fix: " in (
        capsys.readouterr().out
    )
    elected.write(elected.STATE, "mine")
    assert elected.state() == "mine"
    assert victim.read_text() == FOUND


def test_lines_that_a_sentinel_does_not_write_end_no_start(elected):
    text = "sentinel monitor celery\nsentinel known-replica celery\nsentinel\n"
    assert elected.primary_in(text, ["10.0.0.1"]) == ""
    assert elected.found_lines(text, ["10.0.0.1"]) == []
