"""A header task that runs again counts once in its chord, with every supported Celery."""

import signal
from uuid import uuid4

import pytest
from celery import chord, signature
from celery.app.task import Context
from celery_metal_runtime import chords
from runtime_lab import PATIENCE, Producer, wait_until
from test_runtime_transport import held, lines

pytestmark = pytest.mark.versions
SIZE = 2
UNORDERED = '{"result_backend_transport_options": {"result_chord_ordered": false}}'


def send(producer, queue, folder):
    # A process that is lost after its task's result was stored has ended none, from Celery 5.7.
    options = {"queue": queue, "ignore_result": True}
    parts = [signature("lab_app.part", (str(folder), n), **options) for n in range(SIZE)]
    collect = signature("lab_app.collect", (str(folder / "body"),), queue=queue)
    return chord(parts, collect, app=producer.app).apply_async()


def has_run_twice(redis, worker, folder):
    """Each header task has ended its process, run again and been acknowledged."""
    wait_until(lambda: all(lines(folder / str(n)) == 2 for n in range(SIZE)), "all ran again")
    wait_until(lambda: not held(redis, worker), "all are acknowledged")
    wait_until(lambda: not redis.client.llen(worker.queue), "nothing waits")


@pytest.mark.parametrize("more", [{}, {"LAB_CONF": UNORDERED}], ids=["ordered", "unordered"])
def test_a_header_task_that_runs_again_counts_once(start, redis, producer, tmp_path, more):
    worker = start(CONCURRENCY="3", **more).ready()
    sent = send(producer, worker.queue, tmp_path)
    assert sorted(sent.get(timeout=PATIENCE)) == [[n, 1] for n in range(SIZE)]
    has_run_twice(redis, worker, tmp_path)
    assert lines(tmp_path / "body") == 1


def test_a_task_that_died_before_it_sent_the_body_sends_it_when_it_runs_again(
    redis, producer, monkeypatch
):
    backend, queue, name = producer.operator.backend, uuid4().hex, uuid4().hex
    body = signature("x", queue=queue, task_id=uuid4().hex)
    backend.set_chord_size(name, 2)

    def end(task, index):
        request = Context(id=task, group=name, group_index=index, chord=body)
        chords.count_once(backend, request, "SUCCESS", index)

    def die(*_):
        raise SystemExit

    end("a", 0)
    with monkeypatch.context() as patch:
        patch.setattr(chords, "_values", die)
        with pytest.raises(SystemExit):
            end("b", 1)
    end("a", 0)  # comes again, but the body is not its own to send
    assert redis.client.llen(queue) == 0
    for _ in range(2):
        end("b", 1)
        end("a", 0)
        assert redis.client.llen(queue) == 1


def test_a_header_task_that_ends_while_redis_is_full_is_counted_when_there_is_room(
    start, own_redis
):
    producer = Producer(own_redis)
    worker = start(server=own_redis, CONCURRENCY="1").ready()
    worker.process.send_signal(signal.SIGSTOP)
    add = producer.app.signature("lab_app.total", queue=worker.queue)
    # Nothing but the count is to be kept.
    header = [add.clone((numbers,)).set(ignore_result=True) for numbers in ([1, 2], [3])]
    result = chord(header)(add)
    own_redis.client.config_set("maxmemory", 1)
    worker.process.send_signal(signal.SIGCONT)

    key = f"celery-metal.held:{worker.node}:{worker.queue}"
    wait_until(lambda: own_redis.client.llen(key), "it is taken")
    first = own_redis.refused_as_full()
    wait_until(lambda: own_redis.refused_as_full() > first + 2, "it is tried again")
    own_redis.client.config_set("maxmemory", 0)
    assert result.get(timeout=PATIENCE) == 6
    wait_until(lambda: not own_redis.client.exists(key), "all are acknowledged")
    result.backend = None  # its end would wait for a Redis that is gone, before 5.7
