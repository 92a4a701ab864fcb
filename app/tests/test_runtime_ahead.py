"""How many tasks a worker takes ahead of their ETA or countdown."""

import json
import uuid
from pathlib import Path

import pytest
from celery import Celery
from celery_metal_runtime import ahead
from celery_metal_runtime.ahead import AHEAD, BYTES_PER_TASK, LEAST, MOST, most_ahead
from celery_metal_runtime.settings import UsageError
from runtime_lab import constants, wait_until

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


def test_the_main_process_keeps_to_its_plan(start, producer, redis):
    """With all the tasks that it takes ahead; what others have left of it is theirs."""
    worker = start(fresh=True, CELERY_METAL_AHEAD_MB="64", CONCURRENCY="1").ready()
    limit = int(worker.log.partition("up to ")[2].split()[0])
    assert LEAST <= limit < 64 * IN_ONE_MB - 1000, worker.log
    producer.app.send_task("lab_app.work", (0,), queue="some", countdown=36000)
    one = redis.client.rpop("some")
    sent = [one.replace(json.loads(one)["headers"]["id"], str(uuid.uuid4())) for _ in range(limit)]
    redis.client.lpush(worker.queue, *sent, one, one)
    held = f"celery-metal.held:{worker.node}:{worker.queue}"
    wait_until(lambda: redis.client.llen(held) == limit + 1, "as many are held")
    status = Path(f"/proc/{worker.pid}/status").read_text()
    used = int(status.split("RssAnon:")[1].split()[0]) / 1024
    print(f"{limit} tasks, RssAnon {used:.0f} MB", *status.split("VmHWM:")[1].split()[:1])
    assert used <= 64
    assert worker.stop() == 0
    assert redis.client.llen(worker.queue) == limit + 2


@pytest.mark.versions
def test_no_number_of_tasks_ahead_lifts_the_limit_of_the_others(start, producer, redis):
    """kombu's highest prefetch count, 65535, is that of AMQP."""
    more = {"kombu.common.PREFETCH_COUNT_MAX": 5}
    worker = start(
        CONCURRENCY="1", LAB_CONF='{"worker_eta_task_limit": 20}', **constants(more)
    ).ready()
    for _ in range(10):
        producer.app.send_task("lab_app.work", (0,), queue=worker.queue, countdown=3600)
    held = f"celery-metal.held:{worker.node}:{worker.queue}"
    wait_until(lambda: redis.client.llen(held) == 10, "they are held")
    producer.post(worker, "lab_app.work", 3600, times=5)
    wait_until(lambda: redis.client.llen(held) == 11, "one runs")
    worker.systemd.wait_for(" 1 busy")
    assert redis.client.llen(held) == 11
    assert "QoS: Disabled" not in worker.log


@pytest.mark.versions
def test_the_limit_of_the_app_wins_and_celery_does_not_count_too():
    app = Celery("own", set_as_current=False)
    app.conf.worker_eta_task_limit = 7
    assert most_ahead(app, {AHEAD: "64"}, "prefork").most == 7
    assert app.conf.worker_eta_task_limit is None


@pytest.mark.parametrize(
    ("megabytes", "limit"), [("64", 5461), ("1", IN_ONE_MB), ("100000", MOST), ("", None)]
)
def test_the_limit_follows_from_the_memory(megabytes, limit):
    app = Celery("none", set_as_current=False)
    assert most_ahead(app, {AHEAD: megabytes}, "threads").most == limit


@pytest.mark.parametrize(
    ("megabytes", "own", "limit"),
    [("64", 40.0, 24 * IN_ONE_MB), ("64", 300.0, LEAST), ("1", 300.0, IN_ONE_MB)],
)
def test_the_main_process_itself_is_in_its_plan(megabytes, own, limit, monkeypatch, capfd):
    monkeypatch.setattr(ahead, "own_mb", lambda: own)
    app = Celery("own", set_as_current=False)
    found = most_ahead(app, {AHEAD: megabytes}, "prefork").most
    assert limit <= found < limit + IN_ONE_MB
    said = capfd.readouterr().err
    assert f"which itself uses {own:.0f} MB" in said
    assert ("raise capacity_main_process_mb" in said) == (own > 64)


@pytest.mark.parametrize("value", [0, -1, "many"])
def test_a_limit_that_is_none_is_refused(value):
    app = Celery("bad", set_as_current=False)
    app.conf.worker_eta_task_limit = value
    with pytest.raises(UsageError, match=f"worker_eta_task_limit={value!r}"):
        most_ahead(app, {}, "prefork")
