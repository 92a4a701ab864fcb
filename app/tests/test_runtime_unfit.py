"""A result that can never fit into Redis fails its task at once, and the worker goes on."""

import re

import pytest
from celery import chord
from celery.exceptions import BackendStoreError, ChordError
from runtime_lab import PATIENCE, Producer, wait_until
from test_runtime_transport import held

pytestmark = pytest.mark.versions

MB = 1024 * 1024
LIMIT = 12


@pytest.mark.parametrize(
    ("pool", "result_mb", "clients_mb"),
    [("prefork", 16, 0), ("threads", 3, LIMIT // 4), ("gevent", 3, LIMIT // 4), ("solo", 16, 0)],
)
def test_a_result_that_never_fits_fails_with_both_sizes(
    start, own_redis, pool, result_mb, clients_mb
):
    producer = Producer(own_redis)
    own_redis.client.config_set("maxmemory", f"{LIMIT}mb")
    own_redis.client.config_set("maxmemory-clients", f"{clients_mb}mb")
    worker = start(server=own_redis, CELERY_METAL_POOL=pool, CONCURRENCY="1").ready()

    def ask(size):
        return producer.app.send_task("lab_app.repeat", ("x", size), queue=worker.queue)

    never, later = ask(result_mb * MB), ask(3)
    with pytest.raises(BackendStoreError, match=rf"{result_mb}\.0 MB.*{LIMIT}\.0 MB") as seen:
        never.get(timeout=PATIENCE)
    assert re.search(r"Keep the data elsewhere", str(seen.value))
    assert later.get(timeout=PATIENCE) == "xxx"
    wait_until(lambda: not held(own_redis, worker), "both are acknowledged")
    assert own_redis.refused() == []
    assert worker.stop() == 0


@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_chord_fails_with_a_result_that_never_fits(start, own_redis, is_ignored):
    producer = Producer(own_redis)
    own_redis.client.config_set("maxmemory", f"{LIMIT}mb")
    worker = start(server=own_redis, CONCURRENCY="1").ready()

    def ask(size):
        return producer.app.signature("lab_app.repeat", ("x", size), queue=worker.queue)

    body = producer.app.signature("lab_app.total", queue=worker.queue)
    never = ask(16 * MB).set(ignore_result=is_ignored)
    with pytest.raises((BackendStoreError, ChordError), match=rf"16\.0 MB.*{LIMIT}\.0 MB"):
        chord([ask(3), never])(body).get(timeout=30)
    assert worker.stop() == 0
