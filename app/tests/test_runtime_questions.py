"""Who may ask workers and who may control them, tried by stock programs as users of Redis."""

import json
import os
import re
import uuid
from urllib.parse import quote

import pytest
from attacks import task
from celery import Celery
from celery_metal_runtime import configure
from kombu.exceptions import OperationalError
from redis.exceptions import NoPermissionError
from runtime_lab import PASSWORD, PATIENCE, Producer, acl, constants, run, wait_until

QUESTIONS, CONTROL = "celery-inspect", "celery"


def url_of(server, user):
    return f"redis+socket://{user}:{quote(PASSWORD, safe='')}@{server.path}?virtual_host=0"


def stock(server, user, exchange=CONTROL):
    """An app that has a URL, and nothing of the runtime."""
    app = Celery(user, broker=url_of(server, user), set_as_current=False)
    app.conf.control_exchange = exchange
    return app


def celery(server, user, exchange, words):
    """Celery's own command line, likewise."""
    environ = {"LAB_URL": url_of(server, user), "LAB_EXCHANGE": exchange}
    return run(environ, "-A", "stock_app", *words.split(), module="celery")


def grant(server, *users, replies=False):
    """Have these users control workers, and no others; no connection ends."""
    for line in acl(users, replies=replies).splitlines():
        name, *rights = re.findall(r"\([^)]*\)|[^\s()]+", line)[1:]
        server.client.execute_command("ACL", "SETUSER", name, "reset", *rights)


@pytest.fixture
def worker(start, own_redis):
    worker = start("worker", "-E", server=own_redis).ready()
    heard(own_redis, worker)
    return worker


def heard(server, worker):
    ping = Producer(server).monitor.control.ping
    wait_until(lambda: ping([worker.node], timeout=0.5), "ping is answered")


def state_of(server, worker):
    """The revoked tasks of a worker, and its pool."""
    inspect = Producer(server).operator.control.inspect([worker.node], timeout=PATIENCE, limit=1)
    return inspect.revoked()[worker.node], inspect.stats()[worker.node]["pool"]


@pytest.mark.versions
def test_stock_programs_ask_workers_and_see_events_as_monitor(worker, own_redis):
    for words in ("ping", "--json stats", "active"):
        done = celery(own_redis, "monitor", QUESTIONS, f"inspect -d {worker.node} {words}")
        assert done.returncode == 0, done.stderr
        assert worker.node in done.stdout
    seen, app = set(), stock(own_redis, "monitor", QUESTIONS)
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, {"*": lambda one: seen.add(one["type"])})
        for turn, _ in enumerate(receiver.itercapture(limit=None, timeout=PATIENCE, wakeup=False)):
            if not turn:
                Producer(own_redis).post(worker, "lab_app.inside")
            if "task-succeeded" in seen:
                break
    assert own_redis.refused() == []


@pytest.mark.versions
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_nothing_that_a_monitor_sends_changes_a_worker(start, own_redis, pool):
    worker = start(server=own_redis, CELERY_METAL_POOL=pool).ready()
    heard(own_redis, worker)
    before = state_of(own_redis, worker)
    monitor = stock(own_redis, "monitor", QUESTIONS).control
    monitor.revoke("one")
    monitor.broadcast("hello", arguments={"from_node": "x", "revoked": ["two"]})
    monitor.pool_grow(3)
    monitor.add_consumer("other")
    monitor.shutdown()
    for name in ("objgraph", "memsample", "memdump", "enable_events"):
        monitor.broadcast(name)
    monitor.broadcast("registered", arguments={"taskinfoitems": ["__dict__"]})
    # Celery would pass each of these to a method.
    body = {"method": "ping", "arguments": {}, "destination": None, "self": 1}
    message = task(1, body=body) | {"headers": {"clock": 1}}
    own_redis.client.publish("/0.celery-inspect.pidbox", json.dumps(message))
    assert monitor.inspect([worker.node], timeout=PATIENCE).ping()
    with pytest.raises(OperationalError, match=r"(?i)permission"):
        stock(own_redis, "monitor").control.revoke("three")
    assert state_of(own_redis, worker) == before
    assert worker.process.poll() is None
    assert worker.log.count("celery-metal: dropped a question: ") == 11


@pytest.mark.versions
def test_a_monitor_loads_no_script_and_workers_load_them_after_a_restart(worker, own_redis):
    app = stock(own_redis, "monitor", QUESTIONS)
    with pytest.raises(NoPermissionError):
        app.connection().channel().client.script_load("return 1")
    own_redis.stop()
    own_redis.start()
    ask = ("monitor", QUESTIONS, f"inspect -d {worker.node} ping")
    wait_until(lambda: celery(own_redis, *ask).returncode == 0, "ping is answered again")


@pytest.mark.versions
def test_a_reply_goes_to_who_asked_whatever_is_bound_and_does_not_stay(worker, own_redis):
    client, who = own_redis.client, str(uuid.uuid4())
    for exchange in ("reply.celery-inspect.pidbox", "reply.celery.pidbox"):
        client.sadd(f"_kombu.binding.{exchange}", f"{who}\x06\x16\x06\x16mail")
        to = {"exchange": exchange, "routing_key": who}
        body = {"method": "ping", "arguments": {}, "reply_to": to, "ticket": "t"}
        message = task(1, body=body) | {"headers": {"clock": 1}}
        client.publish(f"/0.{exchange.removeprefix('reply.')}", json.dumps(message))
        key = f"{who}.{exchange}"
        wait_until(lambda key=key: client.pttl(key) > 0, "the reply is there, for a time")
    assert not client.exists("mail")


# kombu sweeps from 5.7 on.
def test_no_deadline_that_a_monitor_writes_deletes_a_binding_of_tasks(start, own_redis):
    often = constants({"kombu.transport.redis.BINDING_SWEEP_INTERVAL": 0.2})
    worker, client = start(server=own_redis, **often).ready(), own_redis.client
    heard(own_redis, worker)
    client.sadd("_kombu.binding.mail", "mail\x06\x16\x06\x16mail")
    client.sadd("_kombu.binding.gone.pidbox", "x\x06\x16\x06\x16gone")
    client.zadd("_kombu.binding_deadlines", {"mail": 1, "gone.pidbox": 1})
    wait_until(
        lambda: not client.zmscore("_kombu.binding_deadlines", ["mail"])[0], "the worker sweeps"
    )
    assert client.exists("_kombu.binding.mail") == 1
    assert client.exists("_kombu.binding.gone.pidbox") == 0


@pytest.mark.versions
def test_a_producer_controls_workers_unless_that_is_withheld(worker, own_redis):
    producer = stock(own_redis, "producer").control
    producer.revoke("one")
    wait_until(lambda: state_of(own_redis, worker)[0] == ["one"], "it is revoked")
    grant(own_redis)
    for exchange in (CONTROL, QUESTIONS, "app"):
        with pytest.raises(OperationalError, match=r"(?i)permission"):
            stock(own_redis, "producer", exchange).control.revoke("two")
    own_redis.client.acl_log_reset()
    app = stock(own_redis, "producer")
    with app.events.default_dispatcher() as events:
        events.send("lab-event")
    for channel in ("/0.box", "/0.news", "/15.news/x.pid", "shop:/0.pidbox2", "/0.celeryev/x"):
        dry = own_redis.client.execute_command("ACL", "DRYRUN", "producer", "publish", channel, "x")
        assert dry == "OK", channel
    assert own_redis.refused() == []
    assert state_of(own_redis, worker)[0] == ["one"]


@pytest.mark.versions
def test_a_monitor_controls_workers_where_that_is_granted(worker, own_redis):
    grant(own_redis, "monitor")
    done = celery(own_redis, "monitor", CONTROL, f"control -d {worker.node} revoke one")
    assert done.returncode == 0, done.stderr
    assert "revoked" in done.stdout
    assert state_of(own_redis, worker)[0] == ["one"]
    assert own_redis.refused() == []


@pytest.mark.versions
@pytest.mark.parametrize(
    ("user", "own", "expected"),
    [
        ("monitor", None, QUESTIONS),
        ("shop-monitor", None, QUESTIONS),
        ("monitor", "celery", CONTROL),
        ("monitor", "mine", "mine"),
        ("producer", None, CONTROL),
        # What such a program has set in the app that workers share with it.
        ("worker", QUESTIONS, CONTROL),
        ("producer", QUESTIONS, CONTROL),
        ("worker", "mine", "mine"),
    ],
)
def test_an_app_asks_by_the_exchange_of_its_user(user, own, expected):
    app = Celery("shop", broker="redis://here", set_as_current=False)
    if own:
        app.conf.control_exchange = own
    configure(app, {**os.environ, "CELERY_METAL_BROKER": f"redis://{user}@127.0.0.1:6379/0"})
    assert app.control.mailbox.namespace == expected


@pytest.mark.versions
def test_no_client_keeps_workers_from_giving_back_what_others_have_left(start, own_redis):
    client, clients, queue = own_redis.client, Producer(own_redis), "mail"
    result = clients.app.send_task("metal_sample.tasks.add", (3, 4), queue=queue)
    # As a worker without the runtime leaves it that was killed.
    left = json.dumps([json.loads(client.rpop(queue)), "", queue])
    client.hset("unacked", "tag", left)
    client.zadd("unacked_index", {"tag": 1})
    app = stock(own_redis, "monitor")
    app.connection().channel().client.set("unacked_mutex", "held for ever")
    start(server=own_redis, CELERY_METAL_QUEUE=queue)
    assert result.get(timeout=PATIENCE) == 7
    assert not client.exists("unacked", "unacked_index")
    assert own_redis.refused() == []
