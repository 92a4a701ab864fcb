"""That nobody waits for a task that became a dead letter, and that no innocent task becomes one."""

import json
import time
from pathlib import Path
from uuid import uuid4

import pytest
from attacks import task
from celery import chord
from celery.exceptions import ChordError, InvalidTaskError, NotRegistered, WorkerLostError
from celery.result import AsyncResult
from celery_metal_runtime.dead import REASON, stub
from celery_metal_runtime.ledger import BEGUN, GIVEN, TAKEN, Suspects, digest
from celery_metal_runtime.messages import LARGEST
from celery_metal_runtime.verdict import MOST_TRIES, Verdicts
from runtime_lab import PATIENCE, constants, wait_until

DIE, COUNT, NOTE = "lab_app.die", "lab_app.count", "lab_app.note"
CRASHES = "celery_metal_crashes"
TELLING = "celery-metal.telling"
QUICK = constants(
    {"ledger.BEAT_SECONDS": 0.1, "verdict.LOOK_SECONDS": 0.1, "verdict.PAUSE_SECONDS": 0.2}
)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def untold(worker):
    return f"celery-metal.untold:{worker.queue}"


def begun(worker):
    return f"celery-metal.begun:{worker.node}"


def all_are_told(server, worker):
    wait_until(lambda: not server.client.exists(untold(worker), TELLING), "no one is left")


def forget(*results):
    """Before Celery 5.7 their end would wait for a Redis that is gone by then."""
    for one in results:
        one.backend = None


def counts(server, worker):
    """The count of crashes in each message that waits."""
    found = server.client.lrange(worker.queue, 0, -1)
    return [json.loads(one)["headers"].get(CRASHES, 0) for one in found]


@pytest.mark.versions
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
    all_are_told(redis, worker)
    assert lines(errors) == ["x"]


@pytest.mark.versions
def test_who_waits_for_an_invalid_message_learns_of_it(start, redis, producer):
    worker, one = start(**QUICK).ready(), task(str(uuid4()), eta="never")
    redis.client.lpush(worker.queue, json.dumps(one), "no message", json.dumps(task([])))
    result = AsyncResult(one["headers"]["id"], app=producer.app)
    with pytest.raises(InvalidTaskError, match="eta"):
        result.get(timeout=PATIENCE)
    forget(result)
    all_are_told(redis, worker)


@pytest.mark.versions
def test_who_waits_for_a_task_that_the_app_does_not_define_learns_of_it(
    start, redis, producer, tmp_path
):
    worker, errors = start(**QUICK).ready(), tmp_path / "errors"
    sign, options = producer.app.signature, {"queue": worker.queue}
    errback = sign(NOTE, (str(errors), "x"), immutable=True, **options)
    lost = sign("lab_app.of_tomorrow", **options)
    result = lost.apply_async(link_error=errback)
    with pytest.raises(NotRegistered, match=r"lab_app\.of_tomorrow"):
        result.get(timeout=PATIENCE)
    wait_until(lambda: lines(errors) == ["x"], "its errback runs")
    header, body = [lost, sign("lab_app.total", ([1],), **options)], sign("lab_app.total")
    whole = chord(header, body.set(**options), app=producer.app).apply_async()
    error = whole.get(timeout=PATIENCE, propagate=False)
    assert isinstance(error, ChordError)
    assert "of_tomorrow" in str(error)
    after = (lost | sign("lab_app.total", **options)).apply_async()
    with pytest.raises(NotRegistered):
        after.get(timeout=PATIENCE)
    forget(result, whole, *whole.parent.results, after, after.parent)
    all_are_told(redis, worker)
    assert lines(errors) == ["x"]
    assert redis.client.llen(f"celery-metal.dead:{worker.queue}") == 3


@pytest.mark.versions
def test_who_waits_for_what_is_too_large_to_be_read_learns_of_it(start, redis, producer):
    worker = start(fresh=True, **QUICK).ready()
    large = producer.app.send_task("lab_app.total", ("x" * LARGEST,), queue=worker.queue)
    many = task(str(uuid4()), many=[0] * 1_000_001)
    redis.client.lpush(worker.queue, json.dumps(many))
    # What is known of it by its reason is beyond the limit, and the message is not.
    brim = task(str(uuid4()), eta="never")
    brim["body"] += "A" * (LARGEST - len(json.dumps(brim)))
    redis.client.lpush(worker.queue, json.dumps(brim))
    numbers = [one["headers"]["id"] for one in (many, brim)]
    results = [large, *(AsyncResult(number, app=producer.app) for number in numbers)]
    reasons = ("its size is", "values; the limit", "invalid eta")
    for result, reason in zip(results, reasons, strict=True):
        with pytest.raises(InvalidTaskError, match=reason):
            result.get(timeout=PATIENCE)
    forget(*results)
    all_are_told(redis, worker)
    assert redis.client.llen(f"celery-metal.dead:{worker.queue}") == 3
    peak = int(Path(f"/proc/{worker.pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    assert peak < 256, f"the main process used {peak:.0f} MiB"


@pytest.mark.parametrize(
    "text",
    [
        '{"body": "x", "headers": {"id": "a"}, "properties": {}}',
        '{"headers": {"id": "a"}, "body": "' + "x" * 100_000 + '"}',
        '{"body": "' + "x" * 100_000 + '", "properties": {"correlation_id": "a"}}',
        '"headers": {"headers": {"headers": {"headers": {"correlation_id": "a"',
    ],
)
def test_the_id_of_a_message_that_cannot_be_read_is_found(text):
    assert json.loads(stub(text.encode(), "why"))["headers"] == {"id": "a", REASON: "why"}


@pytest.mark.parametrize(
    "text",
    ["", "\xff", '"headers": ' + "[" * 9999, '"headers": {"id": 5}', '"headers": {"id": ""}'],
)
def test_a_message_without_an_id_has_no_one_who_waits(text):
    assert stub(text.encode(), "why") == b""


def test_a_worker_tells_what_one_that_has_ended_did_not(start, own_redis, tmp_path):
    worker = start(server=own_redis, **QUICK).ready()
    own_redis.client.lpush(untold(worker), json.dumps(task(1, celery_metal_reason="x")))
    all_are_told(own_redis, worker)
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
    redis.client.lpush(untold(worker), json.dumps(one))
    all_are_told(redis, worker)
    assert result.get(timeout=PATIENCE) == 3


@pytest.mark.versions
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_no_errback_of_a_dead_letter_ends_a_worker_or_stops_the_others(
    start, redis, producer, tmp_path, pool
):
    worker, errors = start(CELERY_METAL_POOL=pool, **QUICK).ready(), tmp_path / "errors"
    sign, options = producer.app.signature, {"queue": worker.queue}
    good = sign(NOTE, (str(errors), "good"), immutable=True, **options)
    quits = sign("lab_app.quit_as_errback", **options)
    lost = sign("x", queue="_kombu.binding.x")  # whose key is no list
    redis.client.sadd("_kombu.binding.x", "x")
    for errback in (quits, lost, good):
        body = [[[1]], {}, {"errbacks": [dict(errback)]}]
        one = task(str(uuid4()), body=body, ignore_result=True, celery_metal_reason="x")
        redis.client.lpush(untold(worker), json.dumps(one))
    wait_until(lambda: lines(errors) == ["good"], "the last errback runs")
    all_are_told(redis, worker)
    assert worker.process.poll() is None
    assert worker.log.count("an errback of lab_app.total") == 2
    assert worker.stop() == 0


def test_a_failure_that_cannot_be_stored_comes_again(start, own_redis):
    worker = start(server=own_redis, **QUICK).ready()
    chord = {"task": "lab_app.total", "args": [], "kwargs": {}, "options": {}}
    body = [[[1]], {}, {"chord": chord | {"subtask_type": None, "immutable": False}}]
    one = task(str(uuid4()), body=body, celery_metal_reason="x", group="g")
    # Where the parts of the chord are counted there is something else.
    own_redis.client.set("celery-taskset-meta-g.j", "no set")
    own_redis.client.lpush(untold(worker), json.dumps(one))
    wait_until(lambda: "cannot store that lab_app.total" in worker.log, "it fails")
    own_redis.client.delete("celery-taskset-meta-g.j")
    all_are_told(own_redis, worker)
    assert own_redis.client.exists("celery-taskset-meta-g.j")


def test_a_failure_that_is_never_stored_is_given_up(own_redis, capfd):
    client, key = own_redis.client, "celery-metal.untold:mail"
    verdicts = Verdicts(None, None)
    verdicts._client = client
    client.lpush(key, json.dumps(task("one")))
    for number in range(1, MOST_TRIES + 1):
        assert client.llen(key) == 1
        item = client.lindex(key, -1).encode()
        verdicts._put_off(key, item, ValueError("no backend"))
        said = capfd.readouterr().err
        assert ("It is tried again" in said) == (number < MOST_TRIES)
    assert f"After {MOST_TRIES} tries nobody learns of it" in said
    assert client.llen(key) == 0


def test_a_dead_letter_that_is_sent_back_begins_anew(start, redis, producer, tmp_path):
    worker, mark = start(CONCURRENCY="1", **QUICK).ready(), tmp_path / "mark"
    dead = f"celery-metal.dead:{worker.queue}"
    producer.app.send_task(DIE, (str(mark),), queue=worker.queue, headers={CRASHES: 10})
    wait_until(lambda: redis.client.llen(dead) == 1, "it is a dead letter")
    assert len(lines(mark)) == 1
    note = json.loads(redis.client.lrange(dead, 0, -1)[0])["headers"]["celery_metal_dead"]
    assert time.time() - PATIENCE < note.pop("at") <= time.time()
    assert note == {"worker": worker.node, "crashes": 11, "priority": 0}
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
    assert not redis.client.exists(begun(worker))


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


def test_without_a_note_of_what_had_begun_no_task_counts_twice():
    old = [b'{"celery_metal_crashes": 1, "n": %d}' % number for number in range(3)]

    def counted(items, *begun):
        suspects = Suspects({(mark + digest(item)).encode() for mark, item in begun})
        suspects.look(items)
        return [item for item in items if suspects.count(item)]

    given, begun, taken = (GIVEN, old[1]), (BEGUN, old[2]), (TAKEN, old[0])
    assert counted([b"new", *old]) == [b"new"]
    assert counted([b"new", *old], given) == [b"new", old[1]]
    assert counted([b"new", *old], given, (GIVEN, old[2]), begun) == [b"new", old[2]]
    assert counted(old) == []
    # What ends a worker as it is taken counts, whatever else ran.
    assert counted([b"new", *old], taken, begun) == [b"new", old[0], old[2]]
    assert counted(old, taken) == [old[0]]


@pytest.mark.versions
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_tasks_that_wait_for_their_time_survive_any_number_of_kills(start, redis, producer, pool):
    """Nothing else is in the worker that could be the cause."""
    worker, size = start(CELERY_METAL_POOL=pool), 20
    name, held = worker.queue, f"celery-metal.held:{worker.node}:{worker.queue}"
    noted = begun(worker)
    for _ in range(size):
        producer.app.send_task(COUNT, ("x", 0), queue=name, countdown=3600)
    for number in range(12):
        if number:
            worker.says(f"{size} tasks of this worker's predecessor are back")
        assert not redis.client.exists(f"celery-metal.dead:{name}")
        wait_until(lambda: redis.client.llen(held) == size, "all are held")
        wait_until(lambda: not redis.client.exists(noted), "none is being taken")
        worker.process.kill()
        worker.process.wait()
        if number < 11:
            worker = start(CELERY_METAL_QUEUE=name, CELERY_METAL_POOL=pool)
    start(CELERY_METAL_QUEUE=name, CELERY_METAL_POOL=pool).ready().stop()
    assert counts(redis, worker) == [1] * size
    assert not redis.client.exists(f"celery-metal.dead:{name}")


@pytest.mark.versions
@pytest.mark.parametrize("moment", ["run", "receive", "parse"])
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_task_that_kills_its_worker_each_time_is_put_aside(start, redis, producer, pool, moment):
    worker = start(CELERY_METAL_POOL=pool, LAB_KILLED_AT=moment)
    name, headers = worker.queue, {CRASHES: 9}
    for _ in range(3):
        producer.app.send_task(COUNT, ("x", 0), queue=name, countdown=3600, headers={CRASHES: 10})
    producer.app.send_task("lab_app.kill_worker", queue=name, headers=headers)
    for _ in range(2):
        worker.process.wait(PATIENCE)
        worker = start(CELERY_METAL_POOL=pool, CELERY_METAL_QUEUE=name, LAB_KILLED_AT=moment)
    worker.ready()
    dead = [json.loads(one) for one in redis.client.lrange(f"celery-metal.dead:{name}", 0, -1)]
    assert [one["headers"]["task"] for one in dead] == ["lab_app.kill_worker"]
    assert worker.stop() == 0
    assert counts(redis, worker) == [10] * 3
