"""How long tasks wait and run, and how they end, as workers keep it in Redis."""

import datetime
import json
import time
from bisect import bisect_left
from collections import Counter

import pytest
from celery_metal_runtime import metrics
from celery_metal_runtime.ledger import NODES
from celery_metal_runtime.metrics import BOUNDS, METRICS
from celery_metal_runtime.sent import SENT, stamp, waited
from hypothesis import given
from hypothesis import strategies as st
from runtime_lab import Producer, constants, wait_until

POOLS = [pytest.param("prefork", marks=pytest.mark.versions), "threads", "gevent", "solo"]
SHORT = {"ledger.BEAT_SECONDS": 0.2, "metrics.PUBLISH_SECONDS": 0.2}
OFTEN = constants(SHORT)


@pytest.fixture
def counted(own_redis):
    """What a worker has in Redis of its only queue, once the number of outcomes is as expected."""

    class Counts:
        def __init__(self, worker):
            self.worker, self.found = worker, {}

        def look(self, ended):
            said = json.loads(own_redis.client.hget(METRICS, self.worker.node) or "{}")
            self.found = said.get("queues", {}).get(self.worker.queue, {})
            return sum(self.found.get("outcomes", {}).values()) >= ended and self.found

        def __str__(self):
            return f"all are counted: {self.found}"

    def look(worker, ended):
        counts = Counts(worker)
        return wait_until(lambda: counts.look(ended), counts)

    return look


@pytest.mark.parametrize("pool", POOLS)
def test_each_task_is_counted_by_how_it_ends(start, own_redis, counted, pool):
    producer = Producer(own_redis)
    worker = start(server=own_redis, CELERY_METAL_POOL=pool, **OFTEN).ready()
    assert counted(worker, 0)["outcomes"] == {}
    ways = ["succeed", "succeed", "fail", "retry", "ignore", "reject"]
    expected = {"succeeded": 4, "failed": 1, "retried": 1, "ignored": 1, "rejected": 1}
    expected["revoked"] = 1
    for way in ways:
        producer.app.send_task("lab_app.end_by", (way,), queue=worker.queue)
    producer.app.send_task("lab_app.end_by", ("succeed",), queue=worker.queue, countdown=1)
    producer.app.send_task("lab_app.end_by", ("succeed",), queue=worker.queue, expires=-1)
    # The retry ends by a success.
    found = counted(worker, 9)
    assert found["outcomes"] == expected
    # Each of those that have begun; the one with a countdown did not wait for that second.
    assert sum(found["wait"]) == 8
    if pool in ("prefork", "gevent"):
        sent = producer.app.send_task("lab_app.end_by", ("hang",), queue=worker.queue)
        wait_until(lambda: sum(counted(worker, 9)["wait"]) == 9, "it runs")
        producer.operator.control.revoke(sent.id, terminate=True)
        assert counted(worker, 10)["outcomes"] == expected | {"revoked": 2}
    assert worker.stop() == 0
    assert own_redis.client.hgetall(METRICS) == {}


def test_a_wait_is_that_in_the_queue(start, own_redis, counted):
    producer = Producer(own_redis)
    sent = time.time()
    results = [producer.app.send_task("lab_app.end_by", ("succeed",), queue="mail") for _ in "ab"]
    # As a program without the runtime sends it.
    raw = json.loads(own_redis.client.lindex("mail", 0))
    assert sent - 1 <= raw["headers"].pop(SENT) <= time.time()
    raw["headers"]["id"] = "other"
    own_redis.client.lpush("mail", json.dumps(raw))
    worker = start(server=own_redis, CELERY_METAL_QUEUE="mail", **OFTEN).ready()
    found = counted(worker, 3)
    # Of the other nothing is known but that it has run.
    assert sum(found["wait"]) == len(results)
    assert sum(found["wait"][: bisect_left(BOUNDS, time.time() - sent) + 1]) == len(results)


@pytest.mark.parametrize(
    ("pool", "limit", "end", "outcome"),
    [
        ("prefork", "60", "die", "lost"),
        ("prefork", "1", "hang", "failed"),
        ("gevent", "1", "hang", "failed"),
    ],
)
def test_a_process_that_is_killed_counts_as_lost_and_a_time_limit_as_failed(
    start, own_redis, counted, pool, limit, end, outcome
):
    producer = Producer(own_redis)
    once = {"CELERY_METAL_POOL": pool, "CELERY_METAL_ACKS_LATE": "false"}
    worker = start(server=own_redis, **once, **OFTEN).ready()
    limited = {"queue": worker.queue, "time_limit": int(limit)}
    producer.app.send_task("lab_app.end_by", (end,), **limited)
    assert counted(worker, 1)["outcomes"] == {outcome: 1}


def test_what_a_dead_worker_has_written_goes(start, own_redis, counted):
    often = constants({**SHORT, "ledger.LEASE_SECONDS": 2.0})
    dead = start(server=own_redis, CELERY_METAL_QUEUE="a", **often).ready()
    counted(dead, 0)
    dead.process.kill()
    start(server=own_redis, CELERY_METAL_QUEUE="b", **often).ready()
    wait_until(lambda: not own_redis.client.hexists(METRICS, dead.node), "its counts are removed")


def test_a_key_of_another_kind_costs_the_counts_alone(start, own_redis):
    own_redis.client.set(METRICS, "x")
    producer = Producer(own_redis)
    short = constants({**SHORT, "ledger.LEASE_SECONDS": 2.0})
    dead = [start(server=own_redis, CELERY_METAL_QUEUE=queue, **short).ready() for queue in "ab"]
    for worker in dead:
        producer.app.send_task(
            "lab_app.end_by", ("hang",), queue=worker.queue, task_id=worker.queue
        )
        wait_until(lambda one=worker: own_redis.client.llen(held(one)), "it is held")
    for worker in dead:
        worker.process.kill()
    left = start(server=own_redis, CELERY_METAL_QUEUE="c", **short).ready()
    left.says("what this worker counts of its tasks is not kept in Redis: WRONGTYPE")
    for worker in dead:
        wait_until(lambda one=worker: own_redis.client.llen(one.queue) == 1, "it is back")
        wait_until(lambda one=worker: not own_redis.client.hexists(NODES, one.node), "it is gone")
    assert producer.answers(left, "lab_app.work", 0)
    assert "Redis does not answer" not in left.log
    assert left.stop() == 0
    assert "did not take back" not in left.log


def held(worker):
    return f"celery-metal.held:{worker.node}:{worker.queue}"


@given(st.dictionaries(st.just(SENT), st.one_of(st.none(), st.text(), st.floats(), st.integers())))
def test_what_a_sender_writes_gives_a_wait_or_none(headers):
    found = waited(headers, 2e9)
    assert found is None or 0 <= found <= 2e9


@pytest.mark.parametrize("eta", [None, "", "x", 7])
def test_a_task_waits_from_its_sending(eta):
    headers, before = {"eta": eta}, time.time()
    stamp(headers=headers)
    assert before - 1 <= headers[SENT] <= time.time() + 1
    assert waited(headers, headers[SENT] + 100) == 100
    assert waited(headers, headers[SENT] - 3600) == 0


def test_a_task_with_an_eta_waits_from_then_on():
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    headers = {"eta": later.isoformat()}
    stamp(headers=headers)
    assert headers[SENT] == round(later.timestamp(), 3)


def test_what_is_recent_is_of_the_last_minutes():
    one = metrics.Queue(-15.0)
    one.add("", 0.5)
    # A backlog that is worked off at the start counts from the first look on.
    assert sum(one.recent(0.0)["wait"]) == 1
    for moment in range(15, 1000, 15):
        one.add("", 2.0 if moment < 600 else 20.0)
        one.add("failed", None)
        recent = one.recent(float(moment))
    assert 285 <= recent["seconds"] <= 315
    assert sum(recent["wait"]) == recent["outcomes"]["failed"] == round(recent["seconds"] / 15)
    assert recent["wait"][BOUNDS.index(20)] == sum(recent["wait"])


@pytest.mark.parametrize(
    ("seconds", "bound"), [(0.0, 0), (0.1, 0), (0.11, 1), (86400, 18), (1e9, 19)]
)
def test_a_duration_is_in_the_bucket_of_the_next_bound(seconds, bound):
    one = metrics.Queue(0.0)
    one.add("", seconds)
    assert Counter(one.wait) == {0: len(BOUNDS), 1: 1}
    assert one.wait[bound] == 1
