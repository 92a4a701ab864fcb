"""A worker that is full takes the next task as soon as one ends, in every pool."""

import signal
from itertools import pairwise
from pathlib import Path

import pytest
from runtime_lab import Producer, constants, wait_until

# For each slot of the pool.
TASKS = 6
# A loop that is not woken turns once in 1 or 2 s.
SECONDS = 0.4


@pytest.mark.versions
@pytest.mark.parametrize(
    ("pool", "slots"),
    [("prefork", 1), ("threads", 1), ("threads", 20), ("gevent", 1), ("gevent", 20), ("solo", 1)],
)
def test_a_full_worker_takes_the_next_task_at_once(start, producer, tmp_path, pool, slots):
    seen = Path(tmp_path, "seen")
    # As deployed: a test's own short ticks would turn the loop.
    pace = constants({"watch.LONGEST_TICK": 1.0, "health.PROBE_SECONDS": 2.0})
    worker = start(CONCURRENCY=str(slots), CELERY_METAL_POOL=pool, **pace).ready()
    producer.post(worker, "lab_app.stamp", str(seen), times=TASKS * slots)

    def ends() -> list[float]:
        lines = seen.read_text().splitlines() if seen.exists() else []
        return sorted(float(line.split()[1]) for line in lines)

    wait_until(lambda: len(ends()) == TASKS * slots, "all tasks have run")
    pauses = sorted(after - before for before, after in pairwise(ends()))
    # Else one for each time that all slots were free. A busy machine makes one or two.
    assert pauses[-TASKS // 2] < SECONDS, pauses[-TASKS:]


@pytest.mark.versions
def test_more_greenlets_end_at_once_than_there_are_connections(start, own_redis, tmp_path):
    seen, go, many = Path(tmp_path, "seen"), Path(tmp_path, "go"), 40
    worker = start(server=own_redis, CONCURRENCY=str(many), CELERY_METAL_POOL="gevent").ready()
    Producer(own_redis).post(worker, "lab_app.count_later", str(seen), str(go), times=many)
    held = f"celery-metal.held:{worker.node}:{worker.queue}"
    wait_until(lambda: own_redis.client.llen(held) == many, "all tasks are taken")
    # So that no connection is free again before the last task ends.
    own_redis.process.send_signal(signal.SIGSTOP)
    go.touch()
    wait_until(lambda: seen.exists() and len(seen.read_text().split()) == many, "all have run")
    own_redis.process.send_signal(signal.SIGCONT)
    wait_until(lambda: not own_redis.client.exists(held), "all are acknowledged")
    assert "Redis does not answer" not in worker.log
