"""How many tasks a worker takes ahead of their ETA or countdown."""

import pytest
from celery import Celery
from celery_metal_runtime.ahead import AHEAD, BYTES_PER_TASK, MOST, most_ahead
from celery_metal_runtime.settings import UsageError
from runtime_lab import wait_until

IN_ONE_MB = 1024 * 1024 // BYTES_PER_TASK
# Each place of the pool may be taken by one more.
HELD = IN_ONE_MB + 2


@pytest.mark.versions
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_worker_holds_as_many_as_its_plan_has_memory_for(start, producer, redis, pool):
    worker = start(CELERY_METAL_POOL=pool, CELERY_METAL_AHEAD_MB="1").ready()
    for _ in range(HELD + 13):
        producer.app.send_task("lab_app.work", (0,), queue=worker.queue, countdown=3600)
    wait_until(lambda: f"{HELD} tasks are held" in worker.log, "the worker says that it is full")
    held = f"celery-metal.held:{worker.node}:{worker.queue}"
    assert redis.client.llen(held) == HELD
    assert redis.client.llen(worker.queue) == 13
    assert worker.stop() == 0
    assert redis.client.llen(worker.queue) == HELD + 13
    assert not redis.client.exists(held)


@pytest.mark.versions
def test_the_limit_of_the_app_wins_and_celery_does_not_count_too():
    app = Celery("own", set_as_current=False)
    app.conf.worker_eta_task_limit = 7
    assert most_ahead(app, {AHEAD: "64"})[0] == 7
    assert app.conf.worker_eta_task_limit is None


@pytest.mark.parametrize(
    ("megabytes", "limit"), [("64", 5461), ("1", IN_ONE_MB), ("100000", MOST), ("", None)]
)
def test_the_limit_follows_from_the_memory(megabytes, limit):
    app = Celery("none", set_as_current=False)
    assert most_ahead(app, {AHEAD: megabytes})[0] == limit


@pytest.mark.parametrize("value", [0, -1, "many"])
def test_a_limit_that_is_none_is_refused(value):
    app = Celery("bad", set_as_current=False)
    app.conf.worker_eta_task_limit = value
    with pytest.raises(UsageError, match=f"worker_eta_task_limit={value!r}"):
        most_ahead(app, {})
