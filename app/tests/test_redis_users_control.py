"""Remote control and questions to workers, as each user to whom they are granted."""

import json
import uuid

import pytest
from runtime_lab import Producer, run, wait_until
from test_runtime_questions import grant

pytestmark = pytest.mark.versions

#: Celery's control commands by which a worker goes on, as they are given on the command line.
CONTROL = (
    ("revoke", "{id}"),
    ("terminate", "SIGTERM", "{id}"),
    ("revoke_by_stamped_headers", "team=sales"),
    ("rate_limit", "lab_app.work", "10/m"),
    ("time_limit", "lab_app.work", "60", "90"),
    ("pool_grow", "1"),
    ("pool_shrink", "1"),
    ("add_consumer", "another"),
    ("cancel_consumer", "another"),
    ("enable_events",),
    ("disable_events",),
    ("heartbeat",),
)
QUESTIONS = (
    *("active", "active_queues", "conf", "ping", "registered", "report", "reserved"),
    *("revoked", "scheduled", "stats"),
)


@pytest.fixture
def lab(start, own_redis):
    """A worker, and the users that may control it."""

    def begin(*users, replies=False):
        grant(own_redis, *users, replies=replies)
        worker = start(server=own_redis).ready()
        ping = Producer(own_redis).operator.control.ping
        wait_until(lambda: ping([worker.node], timeout=0.5), "ping is answered")
        return worker

    return begin


def command(server, user, *words):
    """What is wrong with what Celery's command line does as this user; nothing if it is done."""
    # monitor's own is for questions only.
    exchange = "celery-inspect" if user == "monitor" and words[0] == "inspect" else "celery"
    environ = server.environ(server.socket_url.replace("worker@", f"{user}@"))
    conf = {"LAB_CONF": json.dumps({"control_exchange": exchange})}
    done = run(environ | conf, *words)
    is_done = done.returncode == 0 and ": OK" in done.stdout
    return "" if is_done else f"{words}: {done.stdout[-500:]} {done.stderr[-500:]}"


@pytest.mark.parametrize("user", ["worker", "monitor", "producer"])
def test_a_user_who_may_control_and_wait_for_replies_can_use_each_command(lab, own_redis, user):
    # With a destination the command waits for no more replies than that one.
    to = (f"--destination={lab('producer', 'monitor', replies=True).node}", "--timeout=30")
    words = [("control", "--timeout=2", "revoke", str(uuid.uuid4())), ("inspect", "ping")]
    for name, *arguments in CONTROL:
        words.append(("control", *to, name, *(one.format(id=uuid.uuid4()) for one in arguments)))
    words += [("inspect", *to, name) for name in QUESTIONS]
    failed = [command(own_redis, user, *one) for one in words]
    assert own_redis.refused() == []
    assert [one for one in failed if one] == []


def test_a_producer_can_use_each_command_without_a_reply(lab, own_redis):
    worker = lab("producer")
    clients, number = Producer(own_redis), str(uuid.uuid4())
    control, inspect = clients.app.control, clients.operator.control.inspect([worker.node])
    control.broadcast("ping")
    control.rate_limit("lab_app.work", "10/m")
    control.time_limit("lab_app.work", soft=60, hard=90)
    control.pool_grow(2)
    control.pool_shrink(1)
    control.add_consumer("another")
    control.enable_events()
    control.disable_events()
    control.terminate(str(uuid.uuid4()))
    control.revoke(number)
    wait_until(lambda: number in inspect.revoked()[worker.node], "the last one is obeyed")
    assert "another" in [one["name"] for one in inspect.active_queues()[worker.node]]
    control.cancel_consumer("another")
    wait_until(
        lambda: len(inspect.active_queues()[worker.node]) == 1, "it consumes its queue alone"
    )
    assert own_redis.refused() == []
