"""celery_survey: what answers of a Redis mean; the real ones are for the scenario external."""

import re
import ssl
from pathlib import Path

import celery_survey
import pytest
from ansible.module_utils.celery_redis import RedisError

ROOT = Path(__file__).parents[3]
DENIED = RedisError("NOPERM this user has no permissions")
GOOD = {
    "HELLO": ["server", "redis", "version", "8.0.2", "mode", "standalone", "role", "master"],
    "SELECT": "OK",
    "INFO": "run_id:a1\r\nmaxmemory:1\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n",
    "CONFIG appendfsync": ["appendfsync", "everysec"],
    "CONFIG save": ["save", ""],
    "MULTI": "OK",
}
ASKED = {
    "host": "r",
    "port": 6379,
    "tls": False,
    "user": "worker",
    "password": "p",
    "database": 0,
    "ca": "",
    "certificate": "",
    "queues": ["mail", "reports"],
    "sentinels": [],
    "master_name": "",
    "sentinel_auth": True,
}


class Redis:
    """Answers by the command, or by the command and a word; what is not told is queued."""

    def __init__(self, **answers):
        self.answers = {**GOOD, **{name.replace("_", " "): one for name, one in answers.items()}}
        self.asked = []

    def answer(self, words):
        self.asked.append(words)
        return self.answers.get(f"{words[0]} {words[-1]}", self.answers.get(words[0], "QUEUED"))

    def try_all(self, *commands):
        return [self.answer(words) for words in commands]

    def ask(self, *commands):
        answers = self.try_all(*commands)
        for one in answers:
            if isinstance(one, Exception):
                raise one
        return answers

    def close(self):
        self.answers = {}


def survey(monkeypatch, redis, **changed):
    def client(*_):
        if isinstance(redis, Exception):
            raise redis
        return redis

    monkeypatch.setattr(celery_survey, "Client", client)
    return celery_survey.survey({**ASKED, **changed}, "/tmp")


def test_a_good_one_has_no_findings_and_nothing_is_executed(monkeypatch):
    redis = Redis()
    found = survey(monkeypatch, redis)
    assert (found["findings"], found["notes"], found["server"]) == ([], [], "redis 8.0.2")
    assert (found["run_id"], found["database"]) == ("a1", 0)
    begun = redis.asked.index(("MULTI",))
    assert ("EXEC",) not in redis.asked[begun:]
    assert ("LPUSH", "reports", "x") in redis.asked[begun:]
    # Nothing that changes data is asked before.
    before = {words[0] for words in redis.asked[:begun]}
    assert before == {"AUTH", "HELLO", "SELECT", "INFO", "CONFIG", "WATCH", "EXEC"}


@pytest.mark.parametrize(
    ("answers", "kinds"),
    [
        ({"AUTH": RedisError("WRONGPASS invalid")}, ["password"]),
        ({"AUTH": RedisError("ERR AUTH without any password configured for")}, ["password"]),
        ({"AUTH": RedisError("ERR wrong number of arguments for 'auth'")}, ["version"]),
        ({"AUTH": RedisError("the connection was closed")}, ["tls"]),
        ({"HELLO": ["server", "redis", "version", "6.0.16"]}, ["version"]),
        ({"HELLO": ["server", "redis", "version", "6.2.0"]}, []),
        ({"HELLO": ["server", "valkey", "version", "8.1.1"]}, []),
        ({"HELLO": ["version", "8.0.2", "mode", "cluster"]}, ["mode"]),
        ({"HELLO": ["version", "8.0.2", "role", "replica"]}, ["replica"]),
        ({"SELECT": RedisError("ERR DB index is out of range")}, ["database"]),
        ({"INFO": DENIED}, ["info"]),
        ({"INFO": "aof_enabled:0\r\nmaxmemory_policy:volatile-lru"}, ["eviction", "persistence"]),
        ({"CONFIG_appendfsync": ["appendfsync", "no"]}, ["appendfsync"]),
        ({"CONFIG_appendfsync": DENIED, "CONFIG_save": DENIED}, []),
        ({"BLMOVE": DENIED}, ["permissions"]),
        # What follows would be done.
        ({"MULTI": DENIED, "LPUSH": AssertionError()}, ["permissions"]),
        ({"LPUSH": RedisError("OOM command not allowed")}, ["full"]),
        # Of an older Redis, and no question of rights.
        ({"SCRIPT": RedisError("ERR unknown subcommand")}, []),
    ],
)
def test_findings(monkeypatch, answers, kinds):
    redis = Redis(**answers)
    assert [one["kind"] for one in survey(monkeypatch, redis)["findings"]] == kinds
    if answers.get("MULTI") is DENIED:
        assert "LPUSH" not in {words[0] for words in redis.asked}


@pytest.mark.parametrize(
    ("problem", "kind", "seen"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "unreachable", "Connection refused"),
        (TimeoutError("timed out"), "unreachable", "no answer"),
        (ssl.SSLError(1, "wrong version"), "tls", "TLS fails"),
    ],
)
def test_no_way_to_it(monkeypatch, problem, kind, seen):
    (found,) = survey(monkeypatch, problem)["findings"]
    assert found["kind"] == kind
    assert seen in found["seen"]


def test_without_a_password_it_is_open_to_all(monkeypatch):
    (found,) = survey(monkeypatch, Redis(), user="", password="")["findings"]
    assert found["kind"] == "authentication"
    (found,) = survey(
        monkeypatch, Redis(HELLO=RedisError("NOAUTH HELLO must be called")), user="", password=""
    )["findings"]
    assert found["seen"] == "it asks for a password of the user default"


def rights(text):
    return set(re.findall(r"\+([a-z|]+)", text))


def test_all_rights_of_workers_are_tried_and_documented():
    text = (ROOT / "roles/redis/files/users.acl").read_text()
    ours = rights(re.search(r"^user worker\n(.*?)^user ", text, re.M | re.S)[1])
    tried = {
        "|".join(words[:2]).lower() if words[0] == "SCRIPT" else words[0].lower()
        for words in (*celery_survey.PROBES, *celery_survey.OUTSIDE, ("MULTI",))
    }
    # Without the first two redis-py goes on; without INFO the survey has a finding of its own;
    # without WAITAOF, which a Redis before 7.2 lacks, a pause is reported as not saved.
    assert ours - tried == {"client|setname", "client|setinfo", "info", "waitaof"}
    assert tried <= ours
    line = re.search(r"^user worker on .*", (ROOT / "docs/external.md").read_text(), re.M)[0]
    assert rights(line) == ours - {"waitaof"} | {"config|get"}


BEHIND = {"sentinels": [["s", 26379]], "master_name": "mine"}


def test_behind_sentinels_the_primary_is_looked_at(monkeypatch):
    asked = []

    def primary_of(*words):
        asked.append(words)
        return ("primary", 6379), {"t:26379": "no answer"}

    monkeypatch.setattr(celery_survey, "primary_of", primary_of)
    found = survey(monkeypatch, Redis(), **BEHIND)
    assert found["findings"] == []
    assert found["notes"] == ["the Sentinel t:26379 gives no answer: no answer"]
    survey(monkeypatch, Redis(), sentinel_auth=False, **BEHIND)
    assert [words[2] for words in asked] == [("worker", "p"), ()]
    lonely = {"CONFIG min-replicas-to-write": ["min-replicas-to-write", "0"]}
    (finding,) = survey(monkeypatch, Redis(**lonely), **BEHIND)["findings"]
    assert finding["kind"] == "replicas"
    # Where nobody is elected it is no question.
    assert survey(monkeypatch, Redis(**lonely))["findings"] == []


@pytest.mark.parametrize(
    ("said", "kind", "remedy"),
    [
        ("WRONGPASS invalid", "sentinel", "&sentinel_auth=no"),
        ("ERR AUTH <password> called without any", "sentinel", "&sentinel_auth=no"),
        ("they watch no Redis of the name mine", "sentinel", "correct master_name"),
        ("the connection was closed", "tls", "sentinels://"),
    ],
)
def test_sentinels_that_name_none(monkeypatch, said, kind, remedy):
    def primary_of(*_):
        raise RedisError(said)

    monkeypatch.setattr(celery_survey, "primary_of", primary_of)
    (finding,) = survey(monkeypatch, Redis(), **BEHIND)["findings"]
    assert finding["kind"] == kind
    assert remedy in finding["remedy"]
