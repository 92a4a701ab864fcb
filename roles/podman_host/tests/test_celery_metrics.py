"""celery_metrics: what is read of the counts of workers, and of tasks that wait."""

import json
import time

import pytest
from ansible.module_utils import celery_metrics
from ansible.module_utils.celery_redis import RedisError
from hypothesis import given
from hypothesis import strategies as st

QUEUES = ["mail", "odd"]
MAIL = {"seconds": 59.6, "wait": [3, 1, 0], "outcomes": {"succeeded": 4}}
COUNTS = {
    "at": 1000,
    "bounds": [0.5, 10],
    "queues": {
        "mail": MAIL,
        "odd": {"seconds": 60, "wait": [1], "outcomes": {}},
        "undeclared": MAIL,
    },
}
READ = {"bounds_ms": [500, 10000], "wait": [3, 1, 0], "per_hour": {"succeeded": 242}, "seconds": 60}


class Redis:
    """One that has these values in its hash, at a time in seconds since 1970."""

    def __init__(self, *values, now=1000):
        self.values, self.now = values, now

    def try_all(self, *commands):
        found = [part for one in self.values for part in ("a-1@b", one)]
        return [[str(self.now), "0"] if words == ("TIME",) else found for words in commands]


def counted(redis, prefixes=("",)):
    return celery_metrics.counted(redis, QUEUES, prefixes)


def test_the_rates_of_all_workers_of_a_queue_are_added():
    young = {"seconds": 6, "wait": [0, 1, 0], "outcomes": {"failed": 2, "succeeded": 1}}
    redis = Redis(json.dumps(COUNTS), json.dumps({**COUNTS, "queues": {"mail": young}}))
    assert counted(redis) == {
        "mail": {**READ, "wait": [3, 2, 0], "per_hour": {"succeeded": 842, "failed": 1200}}
    }


def test_other_bounds_hide_no_counts():
    other = {**COUNTS, "bounds": [], "queues": {"mail": {**MAIL, "wait": [0]}}}
    for values in ((other, COUNTS), (COUNTS, other)):
        assert counted(Redis(*map(json.dumps, values))) == {"mail": READ}


def test_what_is_not_fresh_counts_for_nothing():
    text = json.dumps(COUNTS)
    assert counted(Redis(text, now=1000 + celery_metrics.FRESH)) == {"mail": READ}
    assert counted(Redis(text, now=1001 + celery_metrics.FRESH)) == {}
    # Of a worker, or for a reader, that may not ask Redis for its time.
    assert counted(Redis(json.dumps({**COUNTS, "at": None}), now=1 << 40)) == {"mail": READ}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "null",
        "[" * 100_000,
        json.dumps({**COUNTS, "at": "x"}),
        json.dumps({**COUNTS, "bounds": [10, 0.5]}),
        json.dumps({**COUNTS, "bounds": "ab"}),
        json.dumps({**COUNTS, "bounds": [True, 2]}),
        json.dumps({**COUNTS, "queues": 7}),
        json.dumps({**COUNTS, "queues": {"mail": {**MAIL, "seconds": -1}}}),
        json.dumps({**COUNTS, "queues": {"mail": {**MAIL, "seconds": 0}}}),
        json.dumps({**COUNTS, "queues": {"mail": {**MAIL, "outcomes": {"failed": []}}}}),
        json.dumps(COUNTS).replace("59.6", "NaN"),
        " " * (celery_metrics.LONGEST + 1),
    ],
)
def test_what_no_worker_writes_counts_for_nothing(value):
    assert counted(Redis(value)) == {}
    assert counted(Redis(value, json.dumps(COUNTS))) == {"mail": READ}


@given(st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_nothing_that_is_written_ends_the_reader(value):
    assert counted(Redis(value), ["", "shop:"]) == {}


def test_a_hash_that_the_user_may_not_read_counts_for_nothing():
    class Refusing:
        def try_all(self, *commands):
            return [RedisError("NOPERM") for _ in commands]

    assert counted(Refusing()) == {}


def message(sent=None):
    stamped = f', "celery_metal_sent": {sent}' if sent is not None else ""
    headers = f'{{"task": "a.b", "id": "1"{stamped}}}'
    return f'{{"body": "{"W10=" * 9000}", "headers": {headers}, "properties": {{}}}}'


def test_the_age_of_a_queue_is_that_of_its_next_task(client):
    now = time.time()
    client.ask(
        ("LPUSH", "mail", message(int(now) - 90)),
        ("LPUSH", "mail", message(int(now) - 60), message(now - 5)),
        ("RPOP", "mail"),
        ("LPUSH", "mail\x06\x163", message(now - 30.5)),
        ("LPUSH", "shop:jobs", message(now + 3600)),
        ("LPUSH", "old", message()),
        ("SET", "other", "x"),
    )
    queues = ["mail", "jobs", "old", "other", "empty"]
    found = celery_metrics.oldest(client, queues, ["", "shop:"])
    assert found.keys() == {"mail", "jobs"}
    assert 60 <= found["mail"] <= 60 + time.time() - now + 2
    assert found["jobs"] == 0
