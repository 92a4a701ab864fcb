"""The decision to give up, as a table; test_runtime_worker has real workers meet it."""

import threading
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.worker import state
from celery_metal_runtime.health import Health
from celery_metal_runtime.ledger import Ledger
from celery_metal_runtime.notify import Notifier
from runtime_lab import PATIENCE, Systemd

NOW = 10_000.0
WATCHDOG = 60.0  # the limit is 40 s; that for answers 3 + 3 x 25 = 78 s


class Request:
    """What Celery keeps of a running task; its sets hold weak references."""


@pytest.fixture
def busy():
    request = Request()
    state.active_requests.add(request)
    yield request
    state.active_requests.discard(request)


def health_with(pool="prefork", **facts):
    health = Health(Celery(set_as_current=False), "q", pool, Ledger("q-1@here"), WATCHDOG)
    health.pool = SimpleNamespace(num_processes=facts.pop("size", 4))
    health.canary.proven = True
    health.waiting, health.last_turn, health.last_served = False, NOW, NOW
    health.ledger.failed_at = facts.pop("failed_at", 0.0)
    vars(health).update(facts)
    return health


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({}, ""),
        ({"last_turn": NOW - 39}, ""),
        ({"last_turn": NOW - 41}, "has not turned for 41 s"),
        ({"last_turn": NOW - 41, "pool": "solo"}, "has not turned for 41 s"),
        ({"last_turn": NOW - 41, "draining": True}, ""),
        ({"last_turn": NOW - 999, "failed_at": NOW - 39}, ""),
        ({"last_turn": NOW - 999, "failed_at": NOW - 41}, "has not turned for 41 s"),
        ({"untaken": ("id", NOW - 39)}, ""),
        ({"untaken": ("id", NOW - 41)}, "takes the task id for 41 s"),
        ({"untaken": ("id", NOW - 41), "draining": True}, ""),
        ({"last_served": NOW - 77}, ""),
        ({"last_served": NOW - 79}, "no answer from the broker for 79 s"),
        ({"waiting": True, "last_turn": NOW - 9999, "waiting_since": NOW - 9999}, ""),
        ({"waiting": True, "answered_since": NOW - 119}, ""),
        ({"waiting": True, "answered_since": NOW - 121}, "the broker answers, but not for"),
        ({"waiting": True, "answered_since": NOW - 121, "draining": True}, ""),
    ],
)
def test_verdict(facts, verdict):
    found = health_with(**facts).verdict(NOW)
    assert verdict in found
    assert bool(verdict) == bool(found)


def test_only_the_solo_pool_may_stop_its_loop_for_a_task(busy):
    assert health_with("solo", last_turn=NOW - 9999).verdict(NOW) == ""
    assert health_with("prefork", last_turn=NOW - 9999).verdict(NOW) != ""


@pytest.mark.parametrize(
    ("pool", "size", "text"),
    [
        ("prefork", 4, "q: 4 processes, 1 busy, 6 done"),
        ("prefork", 1, "q: 1 process, 1 busy, 6 done"),
        ("threads", 2, "q: 2 threads, 1 busy, 6 done"),
        ("gevent", 100, "q: 100 greenlets, 1 busy, 6 done"),
        ("solo", 1, "q: 1 process, 1 busy, 6 done"),
    ],
)
def test_status_names_what_runs(pool, size, text, busy, monkeypatch):
    monkeypatch.setattr(state, "all_total_count", [7])
    assert health_with(pool, size=size).status(NOW) == text


def test_status_says_why_nothing_runs(busy):
    waiting = health_with(waiting=True, waiting_since=NOW - 12.4, broker_error="refused")
    assert waiting.status(NOW) == "q: waiting for the broker since 12 s (refused)"
    assert health_with(draining=True).status(NOW) == "q: draining, 1 busy"


def test_what_redis_does_not_take_back_is_said(monkeypatch, capfd):
    health = health_with()

    def fail():
        raise ConnectionError("Error 111. Connection refused.\nmore")

    monkeypatch.setattr(health.ledger, "close", fail)
    health.give_back()
    said = capfd.readouterr().err
    assert "held: Error 111. Connection refused. Its next start gives it back, or another" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_notifications_arrive_and_the_variable_is_taken_and_given_back(kind, tmp_path):
    address = f"@{tmp_path}" if kind == "abstract" else str(tmp_path / "notify")
    systemd = Systemd(address)
    environ = {"NOTIFY_SOCKET": address}
    notifier = Notifier(environ)
    assert environ == {}
    notifier.send("READY=1", "STATUS=fine")
    systemd.wait_for("READY=1")
    systemd.wait_for("STATUS=fine")
    notifier.give_back(environ)
    assert environ == {"NOTIFY_SOCKET": address}


def test_without_a_listener_nothing_is_said_and_nothing_fails(tmp_path):
    Notifier({}).send("READY=1")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).send("READY=1")


def test_a_listener_that_does_not_read_cannot_stop_the_worker(tmp_path):
    from socket import AF_UNIX, SOCK_DGRAM, socket

    with socket(AF_UNIX, SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "deaf")})
        notifier._socket.settimeout(0.001)
        sender = threading.Thread(target=lambda: [notifier.send("X=1") for _ in range(2000)])
        sender.start()
        sender.join(PATIENCE)
        assert not sender.is_alive()
