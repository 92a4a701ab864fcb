"""How long tasks wait and run, and how they end, as workers keep it in Redis."""

import json
import time
from collections import Counter

import pytest
from celery_metal_runtime import metrics
from celery_metal_runtime.metrics import BOUNDS, METRICS, MOST_NAMES, OTHERS
from celery_metal_runtime.sent import SENT, waited
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
    for outcome in ("succeed", "succeed", "fail", "retry", "ignore", "reject"):
        producer.app.send_task("lab_app.end_by", (outcome,), queue=worker.queue)
    late = producer.app.send_task("lab_app.end_by", ("succeed",), queue=worker.queue, countdown=1)
    gone = producer.app.send_task("lab_app.end_by", ("succeed",), queue=worker.queue, expires=-1)
    del late, gone
    # The retry ends by a success.
    found = counted(worker, 9)
    expected = {"succeeded": 4, "failed": 1, "retried": 1, "ignored": 1, "rejected": 1}
    assert found["outcomes"] == expected | {"revoked": 1}
    assert found["tasks"].keys() == {"lab_app.end_by"}
    task = found["tasks"]["lab_app.end_by"]
    assert task["outcomes"] == found["outcomes"]
    assert sum(task["run"]["counts"]) == 8
    # Each of those that have begun: by nobody's clock for more than a moment.
    assert (sum(found["wait"]["counts"]), found["unknown"]) == (8, 0)
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
    assert found["unknown"] == 1
    assert sum(found["wait"]["counts"]) == len(results)
    assert 0 < found["wait"]["seconds"] <= 2 * (time.time() - sent)


@pytest.mark.parametrize(
    ("limit", "end", "outcome"), [("60", "die", "lost"), ("1", "hang", "failed")]
)
def test_a_process_that_is_killed_counts_as_lost_and_a_time_limit_as_failed(
    start, own_redis, counted, limit, end, outcome
):
    producer = Producer(own_redis)
    once = {"CELERY_METAL_TIME_LIMIT_SECONDS": limit, "CELERY_METAL_ACKS_LATE": "false"}
    worker = start(server=own_redis, **once, **OFTEN).ready()
    producer.app.send_task("lab_app.end_by", (end,), queue=worker.queue)
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
    worker = start(server=own_redis, **OFTEN).ready()
    worker.says("the counts of this worker's tasks are not kept in Redis: ")
    assert producer.answers(worker, "lab_app.end_by", "succeed")


@given(st.dictionaries(st.just(SENT), st.one_of(st.none(), st.text(), st.floats(), st.integers())))
def test_what_a_sender_writes_gives_a_wait_or_none(headers):
    found = waited(headers, None, 2e9)
    assert found is None or 0 <= found <= 2e9


@pytest.mark.parametrize(
    ("sent", "eta", "found"),
    [(90.0, None, 10.0), (90, 97.0, 3.0), (90, 50.0, 10.0), (101, None, 0)],
)
def test_a_task_waits_from_its_sending_or_its_eta(sent, eta, found):
    assert waited({SENT: sent}, eta, 100.0) == found


def test_names_without_end_are_counted_together():
    one = metrics.Queue()
    for number in range(2 * MOST_NAMES):
        one.add(f"task{number}", "failed", None)
    said = one.said(0.0)["tasks"]
    assert len(said) == MOST_NAMES + 1
    assert said[OTHERS]["outcomes"] == {"failed": MOST_NAMES}


def test_what_is_recent_is_of_the_last_minutes():
    one = metrics.Queue()
    for moment in range(0, 1000, 15):
        one.add("a", "", 2.0 if moment < 600 else 20.0)
        one.add("a", "failed", 1.0)
        recent = one.said(float(moment))["recent"]
    assert 285 <= recent["seconds"] <= 315
    assert sum(recent["wait"]) == recent["outcomes"]["failed"] == round(recent["seconds"] / 15)
    assert recent["wait"][BOUNDS.index(30)] == sum(recent["wait"])


@pytest.mark.parametrize(
    ("seconds", "bound"), [(0.0, 0), (0.1, 0), (0.11, 1), (3600, 13), (1e9, 14)]
)
def test_a_duration_is_in_the_bucket_of_the_next_bound(seconds, bound):
    histogram = metrics.Histogram()
    histogram.add(seconds)
    assert Counter(histogram.counts) == {0: len(BOUNDS), 1: 1}
    assert histogram.counts[bound] == 1
