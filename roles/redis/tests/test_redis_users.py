"""What becomes of Redis's users: a real Redis, and a dictionary for Podman's store."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis_users
import yaml
from ansible.module_utils.celery_metal import HostError
from ansible.module_utils.celery_redis import Client, RedisError
from ansible.module_utils.podman_store import Kept

ROLE = Path(__file__).parents[1]
RULES = (
    "user default\n  off ~* &* +@all\nuser worker\n  ~* +lpush +ping\nuser admin\n  ~* &* +@all\n"
)
SECRETS = {"celery-redis-acl", "celery-redis-admin", "celery-redis-worker"}


class Store(dict):
    """Podman's, in memory; `fails` is the secret that it does not keep."""

    fails = ""

    def kept(self, prefix):
        return {name: one for name, one in self.items() if name.startswith(prefix)}

    def keep(self, name, value, consequence, **labels):
        if name == self.fails:
            raise HostError(f"Podman did not keep the secret {name}. {consequence}")
        self[name] = Kept(value, labels)

    def output(self, *argv):
        assert argv[:3] == ("podman", "secret", "rm")
        for name in argv[3:]:
            del self[name]


class Host:
    """A host with its store, and a Redis when it is started."""

    def __init__(self, folder):
        self.folder, self.store, self.process = folder, Store(), None
        self.sentinel = None
        self.socket = folder / "redis.sock"

    def start(self):
        program = shutil.which("redis-server")
        assert program, "these tests need redis-server: install the package of that name"
        (self.folder / "acl").write_text(self.store["celery-redis-acl"].value)
        options = ["--port", "0", "--save", "", "--dir", self.folder]
        options += ["--unixsocket", self.socket, "--aclfile", self.folder / "acl"]
        options += ["--appendonly", "yes", "--appendfsync", "always"]
        self.process = subprocess.Popen(
            [program, *map(str, options)], stdout=subprocess.DEVNULL, text=True
        )
        deadline = time.monotonic() + 20
        while not self.answers():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def answers(self):
        """Whether its data are loaded."""
        try:
            return bool(Client(str(self.socket), 5).ask(("PING",)))
        except RedisError as problem:
            return str(problem).startswith("NOAUTH")
        except OSError:
            return False

    def start_sentinel(self, port):
        """With the users of the ACL file, each with rights of its own, as redis_elected.py does."""
        users = redis_users.hashes_of(self.store["celery-redis-acl"].value)
        rights = {"admin": "~* &* +@all", "sentinel": "~* &* +@all", "worker": "+ping"}
        lines = [f"user {name} on #{users[name][0]} {rights[name]}" for name in rights]
        (self.folder / "sentinel.conf").write_text(
            f"port {port}\nunixsocket {self.folder}/sentinel.sock\nuser default off\n"
            "sentinel monitor celery 127.0.0.1 1 1\nsentinel auth-user celery sentinel\n"
            f"sentinel sentinel-user sentinel\n{chr(10).join(lines)}\n"
        )
        program = str(shutil.which("redis-server"))
        self.sentinel = subprocess.Popen(
            [program, str(self.folder / "sentinel.conf"), "--sentinel"],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while not (self.folder / "sentinel.sock").exists():
            assert self.sentinel.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self):
        for process in filter(None, (self.process, self.sentinel)):
            process.terminate()
            process.wait()
        self.process = self.sentinel = None

    def bring(self, *, rules=RULES, check_mode=False, **options):
        mark = hashlib.sha1(repr((rules, options.get("more"))).encode()).hexdigest()
        params = {"rules": rules, "more": {}, "mark": mark, "renew": [], "retire": [], **options}
        return redis_users.bring(SimpleNamespace(params=params, check_mode=check_mode))

    def password(self, user):
        return self.store[f"celery-redis-{user}"].value

    def logged_in(self, user, password):
        client = Client(str(self.socket), 5)
        client.ask(("AUTH", user, password))
        while self.loads(client):
            time.sleep(0.02)
        return client

    def loads(self, client):
        """Whether it has not got all its data yet; only who has logged in is told."""
        try:
            client.ask(("PING",))
        except RedisError as problem:
            return str(problem).startswith("LOADING")
        return False

    def takes(self, user, password):
        try:
            return bool(self.logged_in(user, password))
        except RedisError as problem:
            return not str(problem).startswith("WRONGPASS")


@pytest.fixture
def unused_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def host(tmp_path, monkeypatch):
    one = Host(tmp_path)
    monkeypatch.setattr(redis_users, "SOCKET", str(one.socket))
    monkeypatch.setattr(redis_users, "SENTINEL_SOCKET", str(tmp_path / "sentinel.sock"))
    monkeypatch.setattr(redis_users, "kept", one.store.kept)
    monkeypatch.setattr(redis_users, "keep", one.store.keep)
    monkeypatch.setattr(redis_users, "output", one.store.output)
    yield one
    one.stop()


def test_the_kits_users_are_those_whose_secrets_are_looked_for():
    secrets = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__redis_secrets"]
    users = redis_users.users_of((ROLE / "files/users.acl").read_text())
    assert sorted(secrets) == sorted(
        ["celery-redis-acl", *(f"celery-redis-{name}" for name in users if name != "default")]
    )


def test_passwords_are_made_once_and_redis_loads_what_was_made(host):
    first = host.bring()
    assert first["diff"]["prepared"].splitlines() == [
        f"keep secret celery-redis-{name}" for name in ("acl", "admin", "worker")
    ]
    assert host.store.keys() == SECRETS
    before = dict(host.store)
    host.start()
    assert host.takes("worker", host.password("worker"))
    assert not host.takes("worker", host.password("admin"))
    assert not host.takes("default", "")
    with pytest.raises(RedisError, match="NOPERM"):
        host.logged_in("worker", host.password("worker")).ask(("FLUSHALL",))
    again = host.bring()
    assert (again["changed"], again["versions"]) == (False, first["versions"])
    assert again["generation"] == first["generation"]
    assert host.store == before
    # Neither Redis's file nor a label tells a password.
    told = host.store["celery-redis-acl"].value + str([one.labels for one in host.store.values()])
    assert not any(host.password(name) in told for name in ("worker", "admin"))


def test_a_renewed_password_is_valid_beside_the_earlier_one_until_that_is_retired(host):
    generation = host.bring()["generation"]
    host.start()
    old, keeper = host.password("worker"), host.password("admin")
    connection = host.logged_in("worker", old)
    renewed = host.bring(renew=["worker", "admin"])
    assert renewed["generation"] == generation  # nothing restarts
    new = host.password("worker")
    assert new != old
    assert host.takes("worker", old)
    assert host.takes("worker", new)
    # What was cut after this goes on with both, and with a third.
    host.bring(renew=["worker"])
    assert all(host.takes("worker", one) for one in (old, new, host.password("worker")))
    assert connection.ask(("PING",)) == ["PONG"]

    host.bring(retire=["worker", "admin"])
    assert not host.takes("worker", old)
    assert not host.takes("worker", new)
    assert not host.takes("admin", keeper)
    assert host.takes("worker", host.password("worker"))
    with pytest.raises((RedisError, OSError)):
        connection.ask(("PING",))
    assert not host.bring(retire=["worker", "admin"])["changed"]
    host.stop()
    host.start()  # with what is kept
    assert host.takes("worker", host.password("worker"))
    assert not host.takes("worker", new)


def test_connections_from_before_the_newest_password_are_reported(host):
    host.bring()
    host.start()
    old = host.password("worker")
    earlier = [host.logged_in("worker", old) for _ in range(2)]
    keeper = host.logged_in("admin", host.password("admin"))
    deadline = time.monotonic() + 20
    while not re.search(" age=[2-9] .* user=worker", keeper.ask(("CLIENT", "LIST"))[0]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    look = SimpleNamespace(params={"earlier": ["worker", "nobody"]}, check_mode=False)
    assert redis_users.earlier(look)["connections"] == []
    host.bring(renew=["worker"])
    later = host.logged_in("worker", host.password("worker"))
    found = redis_users.earlier(look)
    (row,) = found["connections"]
    assert row.pop("seconds") >= 2
    assert row == {"user": "worker", "address": str(host.socket), "count": 2}
    assert not found["changed"]
    assert later.ask(("PING",)) == earlier[0].ask(("PING",)) == ["PONG"]
    # Of a password that was made before this was recorded nothing is known.
    kept = host.store["celery-redis-worker"]
    host.store["celery-redis-worker"] = kept._replace(labels={"version": kept.version})
    assert redis_users.earlier(look)["connections"] == []


def test_another_right_is_there_at_once(host):
    generation = host.bring()["generation"]
    host.start()
    worker = host.logged_in("worker", host.password("worker"))
    with pytest.raises(RedisError, match="NOPERM"):
        worker.ask(("GET", "cache:a"))
    changed = host.bring(more={"worker": "(~cache:* +get +set)"})
    assert changed["diff"]["prepared"] == "keep secret celery-redis-acl\n"
    assert changed["generation"] == generation
    assert worker.ask(("GET", "cache:a")) == [None]
    # And gone again.
    host.bring()
    with pytest.raises(RedisError, match="NOPERM"):
        worker.ask(("GET", "cache:a"))


def test_what_redis_refuses_changes_nothing(host):
    host.bring()
    host.start()
    before = dict(host.store)
    admin = host.logged_in("admin", host.password("admin"))
    users = admin.ask(("ACL", "LIST"))
    with pytest.raises(HostError, match=r"redis_user_rules\[worker\]"):
        host.bring(rules=RULES + "user late\n +ping\n", more={"worker": "+nonesuch"})
    assert host.store == before
    assert admin.ask(("ACL", "LIST")) == users


@pytest.mark.parametrize("fails", sorted(SECRETS))
def test_a_step_that_fails_leaves_all_that_is_kept_valid_and_the_next_run_completes(host, fails):
    host.bring()
    host.start()
    host.store.fails = fails
    with pytest.raises(HostError, match=fails):
        host.bring(renew=["worker", "admin"])
    host.store.fails = ""
    for restarted in (False, True):
        for name in ("worker", "admin"):
            assert host.takes(name, host.password(name)), (name, restarted)
        host.stop()
        host.start()
    host.bring(renew=["worker", "admin"])
    host.bring(retire=["worker", "admin"])
    acl = host.store["celery-redis-acl"].value
    assert acl.count("#") == 2
    assert all(host.takes(name, host.password(name)) for name in ("worker", "admin"))


def test_a_redis_with_another_keeper_is_to_be_restarted(host):
    first = host.bring()["generation"]
    host.start()
    for name in SECRETS:
        del host.store[name]
    second = host.bring()["generation"]
    assert second != first
    host.stop()
    host.start()
    assert host.takes("worker", host.password("worker"))
    assert host.bring()["generation"] == second


def test_what_scripts_wrote_is_there_after_a_restart(host):
    # https://github.com/redis/redis/issues/14541: dropped, where the default user may do nothing.
    rules = RULES.replace("+lpush", "+lpush +llen +rpop +eval")
    host.bring(rules=rules)
    host.start()
    worker = host.logged_in("worker", host.password("worker"))
    worker.ask(("LPUSH", "queue", "task"), ("LPUSH", "queue", "other"))
    script = "redis.call('LPUSH', KEYS[2], redis.call('RPOP', KEYS[1]))"
    worker.ask(("EVAL", script, "2", "queue", "held"))
    host.stop()
    host.start()
    worker = host.logged_in("worker", host.password("worker"))
    assert worker.ask(("LLEN", "queue"), ("LLEN", "held")) == [1, 1]
    assert not host.takes("default", "")
    with pytest.raises(RedisError, match="NOAUTH"):
        Client(str(host.socket), 5).ask(("PING",))


def test_a_sentinel_is_told_too_and_both_log_in_to_others_with_what_is_kept(host, unused_port):
    rules = RULES + "user replica\n +ping\nuser sentinel\n +ping\n"
    generation = host.bring(rules=rules)["generation"]
    host.start()
    host.start_sentinel(unused_port)
    path = str(host.folder / "sentinel.sock")

    def sentinel(user, password):
        client = Client(path, 5)
        client.ask(("AUTH", user, password))
        return client

    old = {name: host.password(name) for name in ("admin", "worker", "replica", "sentinel")}
    connection = sentinel("worker", old["worker"])
    renewed = host.bring(rules=rules, renew=list(old))
    assert renewed["generation"] == generation
    for name in ("admin", "worker", "sentinel"):
        assert sentinel(name, old[name])
        assert sentinel(name, host.password(name))
    redis = host.logged_in("admin", host.password("admin"))
    assert redis.ask(("CONFIG", "GET", "masterauth"))[0][1] == ""
    assert redis_users.adopt(SimpleNamespace(check_mode=False))["changed"]
    assert redis.ask(("CONFIG", "GET", "masterauth"))[0][1] == host.password("replica")
    written = (host.folder / "sentinel.conf").read_text()
    for option in ("auth-pass celery", "sentinel-pass"):
        assert re.search(f'^sentinel {option} "?{host.password("sentinel")}"?$', written, re.M)
    # Rights are the Sentinel's own.
    with pytest.raises(RedisError, match="NOPERM"):
        connection.ask(("SENTINEL", "MASTERS"))
    host.bring(rules=rules, retire=list(old))
    for name in ("admin", "worker", "sentinel"):
        with pytest.raises(RedisError, match="WRONGPASS"):
            sentinel(name, old[name])
        assert sentinel(name, host.password(name))
    with pytest.raises((RedisError, OSError)):
        connection.ask(("PING",))


def test_a_sentinel_with_another_keeper_is_to_be_restarted(host, unused_port):
    rules = RULES + "user sentinel\n +ping\n"
    first = host.bring(rules=rules)["generation"]
    host.start_sentinel(unused_port)
    host.store.clear()
    second = host.bring(rules=rules)["generation"]
    assert second not in ("", first)


def test_a_user_that_is_no_more_cannot_log_in(host):
    host.bring(rules=RULES + "user old\n +ping\n")
    host.start()
    old = host.password("old")
    assert host.takes("old", old)
    host.bring()
    assert not host.takes("old", old)


def test_the_password_of_an_app_s_user_goes_with_it_and_no_other_secret(host):
    """Certificates have names like those; what is no secret of a user is not ours to judge."""
    host.bring(rules=RULES + "user shop-worker\n +ping\nuser mail-monitor\n +ping\n")
    others = ["certificate-worker", "certificate-producer", "certificate-server", "ca", "shop"]
    for name in others:
        host.store.keep(f"celery-redis-{name}", "x", "")
    rules = RULES + "user mail-monitor\n +ping\n"
    foretold = host.bring(rules=rules, check_mode=True)
    assert "celery-redis-shop-worker" in host.store
    done = host.bring(rules=rules)
    assert done["diff"] == foretold["diff"]
    assert done["diff"]["prepared"].endswith("remove secret celery-redis-shop-worker\n")
    kept = {*SECRETS, "celery-redis-mail-monitor", *(f"celery-redis-{one}" for one in others)}
    assert set(host.store) == kept
    assert not host.bring(rules=rules)["changed"]


def test_check_says_the_same_and_does_nothing(host):
    foretold = host.bring(check_mode=True)
    assert not host.store
    assert foretold["diff"] == host.bring()["diff"]
    host.start()
    before = dict(host.store)
    foretold = host.bring(check_mode=True, renew=["worker"])
    assert host.store == before
    assert foretold["diff"] == host.bring(renew=["worker"])["diff"]


def test_a_redis_that_does_not_answer_is_said(host, monkeypatch):
    host.bring()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(host.socket))
        silent.listen()
        monkeypatch.setattr(redis_users, "SECONDS", 0.1)
        before = dict(host.store)
        with pytest.raises(HostError, match="does not take its users"):
            host.bring(renew=["worker"])
    assert host.store == before


def test_another_host_takes_them_and_tells_its_redis(host, tmp_path, monkeypatch):
    (tmp_path / "keeper").mkdir()
    keeper = Host(tmp_path / "keeper")
    monkeypatch.setattr(redis_users, "kept", keeper.store.kept)
    monkeypatch.setattr(redis_users, "keep", keeper.store.keep)
    made = keeper.bring()
    assert made["labels"] == {name: one.labels for name, one in keeper.store.items()}

    def take(*names, retire=()):
        given = [
            {
                "Spec": {"Name": name, "Labels": keeper.store[name].labels},
                "SecretData": keeper.store[name].value,
            }
            for name in names
        ]
        monkeypatch.setattr(redis_users, "kept", host.store.kept)
        monkeypatch.setattr(redis_users, "keep", host.store.keep)
        params = {"taken": json.dumps(given), "names": list(names), "retire": list(retire)}
        redis_users.take(SimpleNamespace(params=params, check_mode=False))
        monkeypatch.setattr(redis_users, "kept", keeper.store.kept)
        monkeypatch.setattr(redis_users, "keep", keeper.store.keep)

    take(*keeper.store)
    assert host.store == keeper.store
    host.start()
    old = keeper.password("worker")
    keeper.bring(renew=["worker"])
    take("celery-redis-acl", "celery-redis-worker")
    new = host.password("worker")
    assert new != old
    assert host.takes("worker", new)
    assert host.takes("worker", old)
    keeper.bring(retire=["worker"])
    take("celery-redis-acl", retire=["worker"])
    assert host.takes("worker", new)
    assert not host.takes("worker", old)
