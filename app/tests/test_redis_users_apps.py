"""Two apps on one Redis, each with users of its own, and neither in the other's keys."""

import re

import pytest
from celery import Celery, chord, signature
from celery_metal_runtime import configure
from redis_rules import user_rules
from runtime_lab import PASSWORD, PATIENCE, USERS, wait_until
from test_redis_users_rights import OWN, QUEUES, RESULTS, allowed

pytestmark = pytest.mark.versions

APPS = {"shop": "shop:", "mail": "mail:"}


@pytest.fixture
def site(own_redis):
    rules = user_rules(USERS.read_text().rstrip(), [], ["producer"], APPS)  # as the role reads it
    for block in re.split(r"^user ", rules, flags=re.M)[1:]:
        text = re.sub(r"^\s*#.*$|\+client\|setinfo|\+waitaof", "", block, flags=re.M)
        name, *rights = re.findall(r"\([^)]*\)|[^\s()]+", " ".join(text.split()))
        own_redis.client.execute_command(
            "ACL", "SETUSER", name, "reset", "on", f">{PASSWORD}", *rights
        )
    return own_redis


def app_of(site, name, user):
    app = Celery(name, backend="redis://here", set_as_current=False)
    prefix = {"global_keyprefix": APPS[name]}
    app.conf.update(broker_transport_options=prefix, result_backend_transport_options=prefix)
    configure(app, site.environ(site.socket_url.replace("worker@", f"{name}-{user}@")))
    return app


def start_worker(start, site, name):
    url = site.socket_url.replace("worker@", f"{name}-worker@")
    queue = f"{name}_queue"
    return start(
        server=site, CELERY_METAL_QUEUE=queue, LAB_PREFIX=APPS[name], CELERY_METAL_BROKER=url
    ).ready()


def test_each_app_runs_and_asks_under_its_own_prefix(start, site):
    for name in APPS:
        worker, app = start_worker(start, site, name), app_of(site, name, "producer")
        adds = [signature("metal_sample.tasks.add", (n, n), queue=worker.queue) for n in range(3)]
        assert (
            app.send_task("metal_sample.tasks.add", (1, 1), queue=worker.queue).get(PATIENCE) == 2
        )
        body = signature("lab_app.total", queue=worker.queue)
        assert chord(adds, body, app=app).apply_async().get(timeout=PATIENCE) == 6
        ask = app_of(site, name, "monitor").control
        replies = wait_until(lambda ask=ask: ask.ping(timeout=1.0), "ping is answered")
        assert [[*one] for one in replies] == [[worker.node]]
        app.control.revoke("one")
    keys = site.client.keys("*")
    assert [one for one in keys if not one.startswith(tuple(APPS.values()))] == []
    assert site.refused() == []


@pytest.mark.parametrize("user", ["worker", "producer", "monitor"])
def test_no_user_of_an_app_reaches_a_key_or_a_channel_of_another(site, user):
    for name in (*OWN, *RESULTS, *QUEUES, "_kombu.binding.celery"):
        for prefix in ("", "mail:"):
            assert allowed(site, f"shop-{user}", prefix + name) == set()
    dryrun = ("ACL", "DRYRUN", f"shop-{user}")
    for channel in ("/0.celery.pidbox", "/0.celery-inspect.pidbox", "/0.celeryev/x", "/0.news"):
        for prefix in ("", "mail:"):
            for command in (("publish", prefix + channel, "x"), ("psubscribe", prefix + channel)):
                assert site.client.execute_command(*dryrun, *command) != "OK", command


@pytest.mark.parametrize("prefix", ["", *APPS.values(), *(f"{one}_" for one in APPS.values())])
def test_a_producer_of_all_sends_to_no_reserved_key_of_an_app(site, prefix):
    dryrun = ("ACL", "DRYRUN", "producer", "lpush")
    for name in ("celery-metal.x", "unacked", "_kombu.binding.x", "celery-task-meta-x"):
        assert site.client.execute_command(*dryrun, prefix + name, "x") != "OK", name
    assert site.client.execute_command(*dryrun, f"{prefix}a_queue", "x") == "OK"


def test_each_app_has_a_schedule_of_its_own(start, site):
    for name in APPS:
        url = site.socket_url.replace("worker@", f"{name}-worker@")
        beat = start("beat", server=site, LAB_PREFIX=APPS[name], CELERY_METAL_BROKER=url).ready()
        beat.systemd.wait_for("schedule: holds the lock")
    locks = {f"{prefix}celery-metal.beat.lock" for prefix in APPS.values()}
    assert set(site.client.keys("*.lock")) == locks
    assert site.refused() == []
