"""Who gets through to Redis with which certificates: real ones, in a dictionary for a store."""

import json
import ssl
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace

import pytest
import redis_certificates
from ansible.module_utils import celery_redis_certificates as certificates
from ansible.module_utils.celery_metal import HostError
from ansible.module_utils.podman_store import Kept

AUTHORITY, CA, SERVER = certificates.AUTHORITY, certificates.CA, certificates.SERVER
WORKER, PRODUCER = (certificates.CERTIFICATE + user for user in ("worker", "producer"))
NAMES = ["10.0.0.5", "fd00::5", "redis.example"]


class Store(dict):
    """Podman's, in memory; it keeps nothing after so many `writes`, and what it was before each."""

    def __init__(self):
        self.writes, self.past = 1000, []

    def kept(self, prefix=certificates.PREFIX):
        return {name: one for name, one in self.items() if name.startswith(prefix)}

    def keep(self, name, value, consequence="", **labels):
        if len(self.past) >= self.writes:
            raise HostError(f"Podman did not keep the secret {name}. {consequence}")
        self.past.append(dict(self))
        self[name] = Kept(value, labels)

    def output(self, *words):
        assert words[:3] == ("podman", "secret", "rm")
        for name in words[3:]:
            del self[name]

    def allow(self, writes):
        self.writes, self.past = writes, []


@pytest.fixture
def store(monkeypatch):
    one = Store()
    monkeypatch.setattr(redis_certificates, "kept", one.kept)
    monkeypatch.setattr(redis_certificates, "keep", one.keep)
    monkeypatch.setattr(redis_certificates, "output", one.output)
    monkeypatch.setattr(
        certificates,
        "kept",
        lambda: {name: certificates.Kept(*secret) for name, secret in one.items()},
    )
    monkeypatch.setattr(
        certificates, "keep", lambda name, secret: one.keep(name, secret.value, **secret.labels)
    )
    return one


@pytest.fixture
def other(tmp_path):
    """Certificates of somebody else."""
    now = datetime.now(UTC)
    authority = certificates.new_authority(now)
    server = certificates.server_certificate(["10.0.0.5"], authority, now)
    worker = certificates.client_certificate("worker", authority)
    texts = {"server": server.value, "worker": worker.value}
    return {"ca": certificates.public(authority.value), **texts}


def bring(*, check_mode=False, **options):
    params = {"names": NAMES, "users": ["worker", "producer"], "given": {}, "rotate": "", **options}
    params["mark"] = json.dumps([params["names"], params["given"]])
    return redis_certificates.work(SimpleNamespace(params=params, check_mode=check_mode))


def written(result):
    return [line.split()[-1] for line in result["diff"]["prepared"].splitlines()]


def context(purpose, folder, ca, certificate):
    made = ssl.SSLContext(purpose)
    # As strict as Python can be; a server asks for a certificate, too.
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=ca.value)
    (folder / "pem").write_text(certificate.value)
    made.load_cert_chain(folder / "pem")
    return made


@pytest.fixture
def connect(tmp_path):
    """Whether a client with some secrets gets through to a server with some secrets."""

    def connect(server, client, name="10.0.0.5", user=WORKER):
        ends = [[ssl.MemoryBIO(), ssl.MemoryBIO()]]
        ends.append(ends[0][::-1])
        there = context(ssl.PROTOCOL_TLS_SERVER, tmp_path, server[CA], server[SERVER])
        here = context(ssl.PROTOCOL_TLS_CLIENT, tmp_path, client[CA], client[user])
        parties = [
            there.wrap_bio(*ends[0], server_side=True),
            here.wrap_bio(*ends[1], server_hostname=name),
        ]
        for _ in range(5):
            for party in parties:
                try:
                    party.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                except ssl.SSLError:
                    return False
        parties[1].write(b"PING")
        try:
            return parties[0].read(4) == b"PING"
        except ssl.SSLError:
            return False

    return connect


def test_all_get_certificates_once(store, connect):
    made = bring()
    assert made["changed"]
    assert sorted(written(made)) == sorted([AUTHORITY, CA, SERVER, WORKER, PRODUCER])
    assert made["labels"] == {name: one.labels for name, one in store.items()}
    for user in (WORKER, PRODUCER):
        assert all(connect(store, store, name, user) for name in NAMES)
    assert not connect(store, store, "10.0.0.6")
    before = dict(store)
    again = bring()
    assert (again["changed"], again["renewed"], dict(store)) == (False, False, before)
    assert again["labels"] == made["labels"]


def test_only_the_authority_itself_has_its_key(store):
    bring()
    assert "PRIVATE KEY" in store[AUTHORITY].value
    assert "PRIVATE KEY" not in store[CA].value


def test_nobody_else_gets_through(store, connect, other):
    bring()
    stranger = {CA: store[CA], WORKER: Kept(other["worker"], {})}
    assert not connect(store, stranger)
    # A user's certificate is none of a server.
    assert not connect({CA: store[CA], SERVER: store[WORKER]}, store)


def test_other_names_give_redis_another_certificate_and_leave_those_of_users(store, connect):
    bring()
    before = dict(store)
    made = bring(names=["10.0.0.9"])
    assert written(made) == [SERVER]
    assert not made["renewed"], "its unit changes"
    assert made["labels"][SERVER]["generation"] != before[SERVER].labels["generation"]
    assert connect(store, before, "10.0.0.9")
    assert not connect(store, before, "10.0.0.5")


def test_a_check_writes_nothing_and_says_what_would_be(store):
    checked = bring(check_mode=True)
    assert store == {}
    assert written(checked) == written(bring())
    before = dict(store)
    checked = bring(check_mode=True, rotate="begin")
    assert store == before
    assert written(checked) == written(bring(rotate="begin")) != []


@pytest.mark.parametrize("writes", range(5))
def test_a_first_run_that_is_cut_is_completed(store, connect, writes):
    store.allow(writes)
    with pytest.raises(HostError, match="run on with the certificates"):
        bring()
    store.allow(1000)
    bring()
    assert connect(store, store)
    assert not bring()["changed"]


def test_an_authority_is_replaced_while_all_stay_connected(store, connect):
    bring()
    first = dict(store)
    store.allow(1000)
    begun = bring(rotate="begin")
    second = dict(store)
    assert sorted(written(begun)) == sorted([AUTHORITY, CA, WORKER, PRODUCER])
    # Redis starts again at any moment, and workers have what there was or is.
    assert all(connect(now, first) for now in [*store.past, second] if SERVER in now)
    assert connect(first, first)
    assert connect(second, second)
    assert first[AUTHORITY].value != second[AUTHORITY].value
    assert not bring(rotate="begin")["changed"]
    assert not bring()["changed"]

    store.allow(1000)
    finished = bring(rotate="finish")
    assert sorted(written(finished)) == sorted([AUTHORITY, CA, SERVER])
    assert not finished["renewed"], "its unit changes"
    assert all(connect(now, second) for now in [*store.past, store])
    assert connect(store, store)
    assert not connect(store, first)
    assert not bring(rotate="finish")["changed"]
    assert not bring()["changed"]


def test_an_authority_is_replaced_while_several_redis_trust_each_other(store, connect):
    bring()
    states = [dict(store)]
    for step in ("begin", "serve", "finish"):
        store.allow(1000)
        made = bring(rotate=step)
        assert made["changed"]
        assert not made["renewed"], "its unit changes"
        states.append(dict(store))
    begun, served, finished = states[1:]
    assert {name for name in served if served[name] != begun[name]} == {SERVER}
    assert {name for name in finished if finished[name] != served[name]} == {AUTHORITY, CA}
    # One host after the other: each shows the others its own certificate.
    for one, another in pairwise(states):
        assert connect(one, another, user=SERVER)
        assert connect(another, one, user=SERVER)
    assert not connect(states[0], served, user=SERVER)
    assert not connect(begun, finished, user=SERVER)
    # Workers have theirs from before or after each.
    assert connect(served, begun)
    assert connect(finished, served)
    assert not connect(finished, states[0])


@pytest.mark.parametrize("step", ["begin", "serve", "finish"])
@pytest.mark.parametrize("writes", range(4))
def test_a_replacement_that_is_cut_is_completed(store, connect, step, writes):
    bring()
    if step != "begin":
        bring(rotate="begin")
    before = dict(store)
    store.allow(writes)
    try:
        bring(rotate=step)
    except HostError:
        assert connect(store, before)
    store.allow(1000)
    bring(rotate=step)
    assert connect(store, before)
    assert connect(store, store)
    assert not bring(rotate=step)["changed"]


def test_one_that_ends_soon_is_issued_anew_and_all_others_stay(store, connect):
    bring()
    before = dict(store)
    soon = datetime.now(UTC) + certificates.RENEW - timedelta(hours=1)
    store[SERVER].labels["until"] = str(int(soon.timestamp()))
    made = bring()
    assert (written(made), made["renewed"]) == ([SERVER], True)
    assert connect(store, before)
    assert connect(before, store)
    assert store[SERVER].value != before[SERVER].value
    lasts = certificates.Kept(*store[SERVER]).until - datetime.now(UTC)
    assert timedelta(days=396) < lasts <= timedelta(days=397)
    assert certificates.end_of(store[SERVER].value) == certificates.Kept(*store[SERVER]).until
    assert not bring()["changed"]


def test_no_certificate_outlasts_its_authority_or_is_issued_in_vain(store):
    now = datetime.now(UTC)
    late = now + timedelta(days=certificates.AUTHORITY_DAYS - 100)
    bring()
    authority = certificates.Kept(*store[AUTHORITY])
    server = certificates.server_certificate(NAMES, authority, late)
    assert server.until == certificates.Kept(*store[WORKER]).until == authority.until
    assert not certificates.is_due(server.until, authority.until, late)
    assert certificates.is_due(now, authority.until, now)


@pytest.mark.parametrize("running", [("celery-redis",), ("celery-redis", "celery-sentinel"), ()])
def test_the_timer_renews_and_restarts_what_uses_another_one(store, connect, monkeypatch, running):
    bring()
    before, restarted = dict(store), []
    monkeypatch.setattr(
        certificates,
        "used",
        lambda container: before[SERVER].value if container in running else "",
    )
    command = certificates.command

    def other_command(*words, **options):
        if words[0] != "systemctl":
            return command(*words, **options)
        restarted.append(words)
        return ""

    monkeypatch.setattr(certificates, "command", other_command)
    now = datetime.now(UTC)
    certificates.renew(now)
    assert (restarted, dict(store)) == ([], before)
    certificates.renew(now + timedelta(days=300))
    units = [f"{name}.service" for name in running]
    assert restarted == ([("systemctl", "restart", *units)] if units else [])
    assert {name for name in store if store[name] != before[name]} == {SERVER}
    assert connect(store, before)
    assert not bring()["changed"]
    with pytest.raises(certificates.CertificateError, match="rotate_certificates=true"):
        certificates.renew(now + timedelta(days=certificates.AUTHORITY_DAYS - 300))


def test_certificates_of_the_user(store, connect, other, monkeypatch):
    monkeypatch.setattr(certificates, "used", lambda _: "")
    bring()
    made = bring(given=other)
    assert sorted(written(made)) == sorted([CA, SERVER, WORKER, AUTHORITY, PRODUCER])
    assert sorted(store) == sorted([CA, SERVER, WORKER])
    assert connect(store, store)
    assert not bring(given=other)["changed"]
    for day, fails in ((-31, False), (-29, True)):
        moment = certificates.end_of(other["server"]) + timedelta(days=day)
        if fails:
            with pytest.raises(certificates.CertificateError, match="redis_tls_files ends at"):
                certificates.renew(moment)
        else:
            certificates.renew(moment)
    # And back.
    bring()
    assert connect(store, store)
    assert sorted(store) == sorted([AUTHORITY, CA, SERVER, WORKER, PRODUCER])


def test_versions_tell_what_is_another_one(store, other):
    states = []
    for options in ({}, {"rotate": "begin"}, {"rotate": "finish"}, {"given": other}, {}):
        bring(**options)
        states.append(dict(store))
    for one, another in pairwise(states):
        for name in one.keys() & another.keys() - {AUTHORITY}:
            is_same = one[name].value == another[name].value
            assert is_same == (one[name].labels["version"] == another[name].labels["version"])
