"""celery_metrics: what is read of the counts of workers, and of tasks that wait."""

import json
import time

import pytest
from ansible.module_utils import celery_metrics
from ansible.module_utils.celery_redis import RedisError
from hypothesis import given
from hypothesis import strategies as st

COUNTS = {
    "bounds": [0.5, 10],
    "queues": {
        "mail": {"recent": {"seconds": 59.6, "wait": [3, 1, 0], "outcomes": {"succeeded": 4}}},
        "odd": {"recent": {"seconds": 60, "wait": [1], "outcomes": {}}},
    },
}
READ = {"bounds_ms": [500, 10000], "wait": [3, 1, 0], "outcomes": {"succeeded": 4}, "seconds": 60}


class Redis:
    """One that has these values in its hash."""

    def __init__(self, *values):
        self.values = values

    def try_all(self, *commands):
        return [[part for one in self.values for part in ("a-1@b", one)] for _ in commands]


def test_the_counts_of_all_workers_of_a_queue_are_added():
    other = {**COUNTS, "queues": {"mail": {"recent": {**COUNTS["queues"]["mail"]["recent"]}}}}
    other["queues"]["mail"]["recent"]["outcomes"] = {"failed": 2, "succeeded": 1}
    redis = Redis(json.dumps(COUNTS), json.dumps(other))
    assert celery_metrics.counted(redis, [""]) == {
        "mail": {**READ, "wait": [6, 2, 0], "outcomes": {"succeeded": 5, "failed": 2}}
    }


@pytest.mark.parametrize(
    "value",
    [
        "",
        "null",
        "[" * 100_000,
        json.dumps({**COUNTS, "bounds": [10, 0.5]}),
        json.dumps({**COUNTS, "bounds": "ab"}),
        json.dumps({**COUNTS, "bounds": [True, 2]}),
        json.dumps({**COUNTS, "queues": 7}),
        json.dumps({**COUNTS, "queues": {"mail": {"recent": {"seconds": -1}}}}),
        json.dumps(COUNTS).replace("59.6", "NaN").replace("[1]", "[NaN]"),
        " " * (celery_metrics.LONGEST + 1),
    ],
)
def test_what_no_worker_writes_counts_for_nothing(value):
    assert celery_metrics.counted(Redis(value), [""]) == {}
    assert celery_metrics.counted(Redis(value, json.dumps(COUNTS)), [""]) == {"mail": READ}


@given(st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_nothing_that_is_written_ends_the_reader(value):
    assert celery_metrics.counted(Redis(value), ["", "shop:"]) == {}


def test_a_hash_that_the_user_may_not_read_counts_for_nothing():
    class Refusing:
        def try_all(self, *commands):
            return [RedisError("NOPERM") for _ in commands]

    assert celery_metrics.counted(Refusing(), [""]) == {}


def message(sent=None, eta="null"):
    stamped = f', "celery_metal_sent": {sent}' if sent is not None else ""
    headers = f'{{"task": "a.b", "id": "1", "eta": {eta}{stamped}}}'
    return f'{{"body": "{"W10=" * 9000}", "headers": {headers}, "properties": {{}}}}'


def test_the_age_of_a_queue_is_that_of_its_next_task(client):
    now = time.time()
    client.ask(
        ("LPUSH", "mail", message(round(now) - 90, '"2026-01-01T00:00:00"')),
        ("LPUSH", "mail", message(round(now) - 60), message(now - 5)),
        ("RPOP", "mail"),
        ("LPUSH", "mail\x06\x163", message(now - 30.5)),
        ("LPUSH", "shop:jobs", message(now + 3600)),
        ("LPUSH", "old", message()),
        ("LPUSH", "late", message(now - 10, '"2026-01-01T00:00:00"')),
        ("SET", "other", "x"),
    )
    queues = ["mail", "jobs", "old", "late", "other", "empty"]
    found = celery_metrics.oldest(client, queues, ["", "shop:"])
    assert found.keys() == {"mail", "jobs"}
    assert 60 <= found["mail"] <= 60 + time.time() - now + 2
    assert found["jobs"] == 0
