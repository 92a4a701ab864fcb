"""A result that can never fit into Redis fails its task at once, and the worker goes on."""

import re

import pytest
from celery.exceptions import BackendStoreError
from runtime_lab import PATIENCE, Producer, wait_until
from test_runtime_transport import held

pytestmark = pytest.mark.versions

MB = 1024 * 1024
LIMIT = 12


@pytest.mark.parametrize(
    ("pool", "result_mb", "clients_mb"),
    [("prefork", 16, 0), ("threads", 3, LIMIT // 4)],
    ids=["beyond maxmemory", "cut off"],
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
