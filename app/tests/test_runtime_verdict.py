"""That nobody waits for a task that became a dead letter, and that no innocent task becomes one."""

import json
from uuid import uuid4

import pytest
from attacks import task
from celery import chord
from celery.exceptions import ChordError, InvalidTaskError, WorkerLostError
from celery.result import AsyncResult
from celery_metal_runtime.ledger import BEGUN, GIVEN, Suspects, digest
from runtime_lab import PATIENCE, constants, wait_until

DIE, COUNT, NOTE = "lab_app.die", "lab_app.count", "lab_app.note"
CRASHES = "celery_metal_crashes"
UNTOLD = "celery-metal.untold"
QUICK = constants({"ledger.BEAT_SECONDS": 0.1, "verdict.LOOK_SECONDS": 0.1})


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def forget(*results):
    """Before Celery 5.7 their end would wait for a Redis that is gone by then."""
    for one in results:
        one.backend = None


def counts(server, worker):
    """The count of crashes in each message that waits."""
    found = server.client.lrange(worker.queue, 0, -1)
    return [json.loads(one)["headers"].get(CRASHES, 0) for one in found]


@pytest.mark.oldest
def test_who_waits_for_a_dead_letter_learns_of_it(start, redis, producer, tmp_path):
    worker, mark, errors = start(CONCURRENCY="1", **QUICK).ready(), tmp_path / "a", tmp_path / "b"
    sign, options = producer.app.signature, {"queue": worker.queue}
    lost = sign(DIE, (str(mark),), headers={CRASHES: 10}, **options)
    result = lost.apply_async(link_error=sign(NOTE, (str(errors), "x"), immutable=True, **options))
    with pytest.raises(WorkerLostError, match="dead letter: it was there at 11 ends"):
        result.get(timeout=PATIENCE)
    wait_until(lambda: lines(errors) == ["x"], "its errback runs")
    header, body = (
        [lost, sign("lab_app.total", ([1],), **options)],
        sign("lab_app.total", **options),
    )
    whole = chord(header, body, app=producer.app).apply_async()
    error = whole.get(timeout=PATIENCE, propagate=False)
    assert isinstance(error, ChordError)
    assert "dead letter" in str(error)
    forget(result, whole, *whole.parent.results)
    wait_until(lambda: not redis.client.exists(UNTOLD), "no one is left")
    assert lines(errors) == ["x"]


@pytest.mark.oldest
def test_who_waits_for_an_invalid_message_learns_of_it(start, redis, producer):
    worker, one = start(**QUICK).ready(), task(str(uuid4()), eta="never")
    redis.client.lpush(worker.queue, json.dumps(one), "no message", json.dumps(task([])))
    result = AsyncResult(one["headers"]["id"], app=producer.app)
    with pytest.raises(InvalidTaskError, match="eta"):
        result.get(timeout=PATIENCE)
    forget(result)
    wait_until(lambda: not redis.client.exists(UNTOLD), "no one is left")


def test_a_worker_tells_what_one_that_has_ended_did_not(start, own_redis, tmp_path):
    worker = start(server=own_redis, **QUICK).ready()
    own_redis.client.lpush(UNTOLD, json.dumps(task(1, celery_metal_reason="x")))
    wait_until(lambda: not own_redis.client.exists(UNTOLD), "it is told")
    stored = json.loads(own_redis.client.get(f"celery-task-meta-{task(1)['headers']['id']}"))
    assert stored["status"] == "FAILURE"
    assert "it is a dead letter: x" in str(stored["result"])
    assert worker.stop() == 0


def test_a_final_result_stays(start, redis, producer):
    worker = start(**QUICK).ready()
    result = producer.app.send_task("lab_app.total", ([1, 2],), queue=worker.queue)
    assert result.get(timeout=PATIENCE) == 3
    one = task(1)
    one["headers"]["id"] = result.id
    redis.client.lpush(UNTOLD, json.dumps(one))
    wait_until(lambda: not redis.client.exists(UNTOLD), "it is looked at")
    assert result.get(timeout=PATIENCE) == 3


def test_a_dead_letter_that_is_sent_back_begins_anew(start, redis, producer, tmp_path):
    worker, mark = start(CONCURRENCY="1", **QUICK).ready(), tmp_path / "mark"
    dead = f"celery-metal.dead:{worker.queue}"
    producer.app.send_task(DIE, (str(mark),), queue=worker.queue, headers={CRASHES: 10})
    wait_until(lambda: redis.client.llen(dead) == 1, "it is a dead letter")
    assert len(lines(mark)) == 1
    redis.client.lmove(dead, worker.queue, "LEFT", "RIGHT")
    wait_until(lambda: len(lines(mark)) == 3, "it runs, crashes, and runs again")
    assert redis.client.llen(dead) == 0


def test_crashes_count_for_tasks_that_had_begun(start, redis, producer, tmp_path):
    """Of those that wait for their time each counts once: which had begun was not known then."""
    worker, mark, name = start(), tmp_path / "mark", ""
    name = worker.queue
    for _ in range(50):
        producer.app.send_task(COUNT, ("x", 0), queue=name, countdown=3600)
    producer.app.send_task("lab_app.slay", (str(mark),), queue=name, headers={CRASHES: 8})
    for number in range(1, 4):
        worker.process.wait(PATIENCE)
        assert len(lines(mark)) == number
        worker = start(CELERY_METAL_QUEUE=name)
    worker.ready()
    wait_until(lambda: redis.client.llen(f"celery-metal.dead:{name}") == 1, "it is a dead letter")
    assert worker.stop() == 0
    assert counts(redis, worker) == [1] * 50
    assert not redis.client.exists(f"celery-metal.begun:{worker.node}")


def test_what_is_given_back_in_parts_keeps_its_order(start, redis, producer, tmp_path):
    worker = start()
    worker.process.kill()
    worker.process.wait()
    key = f"celery-metal.held:{worker.node}:{worker.queue}"
    sent = [
        task(number, NOTE, [[str(tmp_path / "a"), str(number)], {}, None]) for number in range(450)
    ]
    redis.client.lpush(key, *map(json.dumps, sent))
    start(CELERY_METAL_QUEUE=worker.queue, CONCURRENCY="1").ready()
    wait_until(lambda: len(lines(tmp_path / "a")) == 450, "all are done")
    assert lines(tmp_path / "a") == [str(number) for number in range(450)]


def test_without_a_note_of_what_had_begun_the_pool_s_tasks_count():
    old = [b'{"celery_metal_crashes": 1, "n": %d}' % number for number in range(3)]

    def counted(items, *begun):
        suspects = Suspects({(mark + digest(item)).encode() for mark, item in begun})
        suspects.look(items)
        return [item for item in items if suspects.count(item)]

    given, begun = (GIVEN, old[1]), (BEGUN, old[2])
    assert counted([b"new", *old]) == [b"new"]
    assert counted([b"new", *old], given) == [b"new", old[1]]
    assert counted([b"new", *old], given, (GIVEN, old[2]), begun) == [b"new", old[2]]
    assert counted(old) == old
