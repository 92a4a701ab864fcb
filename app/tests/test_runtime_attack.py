"""That no message, and nothing that Redis holds, ends a worker, stops a queue or takes a slot."""

import base64
import bz2
import json
import lzma
import os
import time
import zlib
from pathlib import Path

import pytest
from attacks import VALUES, bomb, commands, messages, task, values
from celery_metal_runtime.messages import (
    _DECODERS,
    LARGEST_BODY,
    RefusedError,
    check_command,
    check_task,
    crashes_of,
    parse,
)
from kombu.transport.virtual.base import Base64, Message
from runtime_lab import PATIENCE, Producer, constants, wait_until

POOLS = ("prefork", "threads", "gevent", "solo")
NODES, BEAT = "celery-metal.nodes", "celery-metal.beat"
COUNT = "lab_app.count"
#: `make attack` tries more, and other seeds.
SEED = int(os.environ.get("ATTACK_SEED", "19"))
TIMES = int(os.environ.get("ATTACK_TIMES", "1"))
#: Seconds that a good task may wait behind bad ones. Where other checks keep the CPUs busy, more.
LONGEST = 1.0 if "ATTACK_TIMES" in os.environ else PATIENCE
BATCH = 25


class Channel:
    """As much of one as a message needs."""

    @staticmethod
    def decode_body(body, encoding):
        return Base64().decode(body) if encoding == "base64" else body


def good_task_is_done(producer, worker, folder):
    """Seconds that a task took behind all that was sent before it."""
    mark, begun = folder / f"mark-{time.monotonic_ns()}", time.monotonic()
    producer.post(worker, COUNT, str(mark), 0)

    def done():
        assert worker.process.poll() is None, worker.log[-5000:]
        return mark.exists()

    wait_until(done, lambda: "the task behind them is done")
    return time.monotonic() - begun


def works_as_before(producer, worker, folder, size):
    """It is the same process, and all slots of its pool are free."""
    if size > 1:
        room = folder / f"room-{time.monotonic_ns()}"
        room.mkdir()
        producer.post(worker, "lab_app.gather", str(room), size, times=size)
        wait_until(lambda: len(os.listdir(room)) == size, "all slots run a task at once")
    assert worker.process.poll() is None
    assert worker.systemd.lines("READY=1") == ["READY=1"]


def dead(server, worker):
    """Why each message was put aside, the last one first."""
    found = server.client.lrange(f"celery-metal.dead:{worker.queue}", 0, -1)
    return [json.loads(one)["headers"]["celery_metal_reason"] for one in found]


def send(server, worker, *tasks):
    """Put messages into a queue: the first is taken first."""
    server.client.lpush(worker.queue, *(json.dumps(one) for one in tasks))


@pytest.mark.versions
@pytest.mark.parametrize("pool", POOLS)
def test_no_task_message_ends_a_worker_or_stops_its_queue(start, redis, producer, tmp_path, pool):
    size = 1 if pool == "solo" else 3
    worker = start(CELERY_METAL_POOL=pool, CONCURRENCY=str(size)).ready()
    longest, sent = 0.0, list(messages(SEED + POOLS.index(pool), 200 * TIMES))
    for begin in range(0, len(sent), BATCH):
        redis.client.lpush(worker.queue, *sent[begin : begin + BATCH])
        longest = max(longest, good_task_is_done(producer, worker, tmp_path))
    print(f"{pool}: {len(sent)} messages, a task behind {BATCH} of them waited {longest:.2f} s")
    assert longest < LONGEST
    works_as_before(producer, worker, tmp_path, size)
    assert redis.client.llen(f"celery-metal.dead:{worker.queue}") > len(sent) / 3
    assert worker.stop() == 0


@pytest.mark.versions
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_no_remote_control_ends_a_worker(start, own_redis, tmp_path, pool):
    producer = Producer(own_redis)
    worker = start(server=own_redis, CELERY_METAL_POOL=pool).ready()
    pings = [one.control.ping for one in (producer.operator, producer.monitor)]
    for ping in pings:
        wait_until(lambda ping=ping: ping([worker.node], timeout=0.5), "ping is answered")
    for one in commands(SEED, 200 * TIMES):
        own_redis.client.publish("/0.celery.pidbox", one)
        own_redis.client.publish("/0.celery-inspect.pidbox", one)
    assert good_task_is_done(producer, worker, tmp_path) < LONGEST
    works_as_before(producer, worker, tmp_path, 2)
    for ping in pings:
        wait_until(lambda ping=ping: ping([worker.node], timeout=0.5), "ping is answered as before")
    wait_until(lambda: "refused" in worker.systemd.lines("STATUS=")[-1], "they are counted")
    said = [line for line in worker.log.splitlines() if "celery-metal: dropped a " in line]
    assert 0 < len(said) == len(set(said)) <= 20
    assert worker.stop() == 0


def test_what_a_remote_control_answers_goes_to_who_asked(start, own_redis):
    worker = start(server=own_redis).ready()
    ping = Producer(own_redis).operator.control.ping
    wait_until(lambda: ping([worker.node], timeout=0.5), "ping is answered")
    answer_to = {"exchange": "", "routing_key": "celery-metal.nodes-2"}
    for to in (answer_to, answer_to | {"exchange": "reply.celery.pidbox"}):
        body = {
            "method": "ping",
            "arguments": {},
            "destination": None,
            "reply_to": to,
            "ticket": "t",
        }
        message = task(1, body=body) | {"headers": {"clock": 1}}
        own_redis.client.publish("/0.celery.pidbox", json.dumps(message))
    wait_until(lambda: worker.log.count("dropped a control command: ") == 2, "both are dropped")
    assert own_redis.client.keys("*nodes-2*") == []


@pytest.mark.versions
def test_no_value_in_the_runtime_s_own_keys_ends_a_worker(start, own_redis, tmp_path):
    producer = Producer(own_redis)
    quick = constants({"ledger.BEAT_SECONDS": 0.02, "ledger.LEASE_SECONDS": 0.1})
    worker = start(server=own_redis, **quick).ready()
    client, longest = own_redis.client, 0.0
    own, others = (f"celery-metal.held:{node}:{worker.queue}" for node in (worker.node, "gone"))
    binding = f"_kombu.binding.{worker.queue}"
    for number, value in enumerate(values(SEED, 200 * TIMES)):
        client.hset(NODES, f"node-{number}", value)
        client.hset(NODES, value[:99], json.dumps([1, 2, [worker.queue]]))
        client.hset(NODES, "gone", json.dumps([number, 2, [worker.queue]]))
        client.lpush(own, value)
        client.lpush(others, value)
        client.sadd(binding, value[:99])
        client.hset(BEAT, f"entry-{number}", value)
        if number % BATCH == 0:
            longest = max(longest, good_task_is_done(producer, worker, tmp_path))
    wait_until(lambda: client.hlen(NODES) == 1, "who never beats is forgotten")
    wait_until(lambda: not client.exists(others), "nothing is left of the one that is gone")
    assert longest < LONGEST
    assert "a beat of this worker has failed" not in worker.log
    works_as_before(producer, worker, tmp_path, 2)
    assert worker.stop() == 0
    assert not client.exists(own)


@pytest.mark.versions
def test_another_kind_of_value_in_the_place_of_the_runtime_s_lists_is_replaced(
    start, own_redis, tmp_path
):
    producer, client = Producer(own_redis), own_redis.client
    name = f"{tmp_path.name}-0"
    node = start(server=own_redis)
    node.process.kill()
    held, buried = f"celery-metal.held:{node.node}:{name}", f"celery-metal.dead:{name}"
    for key in (held, buried, NODES):
        client.set(key, "no list")
    worker = start(server=own_redis, CELERY_METAL_QUEUE=name).ready()
    worker.says("was not a list and was deleted")
    client.lpush(name, "no task")
    wait_until(lambda: client.type(buried) == "list", "it is put aside all the same")
    for key in (held, NODES):
        client.delete(key)
        client.lpush(key, "no task")
        client.delete(key)
        client.set(key, "no list")
        assert good_task_is_done(producer, worker, tmp_path) < PATIENCE
    wait_until(lambda: client.type(NODES) == "hash", "the worker beats")
    assert worker.stop() == 0


def test_a_queue_that_is_no_list_keeps_no_other_from_its_turn(start, own_redis, tmp_path):
    producer = Producer(own_redis)
    own_redis.client.set("odd", "no list")
    worker = start(
        server=own_redis, CELERY_METAL_QUEUE="even", CELERY_METAL_QUEUES="odd,even"
    ).ready()
    assert good_task_is_done(producer, worker, tmp_path) < PATIENCE
    assert own_redis.client.get("odd") == "no list"


def test_a_body_that_expands_without_end_is_not_expanded(start, redis, producer, tmp_path):
    worker = start().ready()
    item = bomb()
    assert len(item) < 1 << 20
    redis.client.lpush(worker.queue, item)
    assert good_task_is_done(producer, worker, tmp_path) < PATIENCE
    (reason,) = dead(redis, worker)
    assert "it expands to more than 16777216 bytes" in reason
    status = Path(f"/proc/{worker.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    assert peak < 256, f"the main process used {peak:.0f} MiB"


def test_no_poll_for_a_chord_sends_itself_again_without_a_pause(start, redis, producer, tmp_path):
    worker = start().ready()
    body = [["group", {"task": COUNT}], {"interval": 0.001, "result": [["x", None]]}, None]
    send(redis, worker, task(1, "celery.chord_unlock", body=body))
    assert good_task_is_done(producer, worker, tmp_path) < PATIENCE
    assert dead(redis, worker) == ["interval 0.001 is below the minimum of 0.1 s"]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_tasks_with_one_delivery_tag_each_run_once(start, redis, producer, tmp_path, pool):
    worker, mark = start(CELERY_METAL_POOL=pool).ready(), tmp_path / "mark"
    sent = [task(number, COUNT, body=[[str(mark), 0.01], {}, None]) for number in range(20)]
    for one in sent:
        one["properties"]["delivery_tag"] = "the same"
    send(redis, worker, *sent)
    held = f"celery-metal.held:{worker.node}:{worker.queue}"
    assert good_task_is_done(producer, worker, tmp_path) < PATIENCE
    wait_until(lambda: not redis.client.exists(worker.queue, held), "all are done")
    assert mark.read_text() == "done\n" * 20


@pytest.mark.parametrize("pool", POOLS)
def test_what_runs_out_of_memory_fails_and_ends_no_worker(start, producer, tmp_path, pool):
    worker = start(CELERY_METAL_POOL=pool).ready()
    result = producer.app.send_task("lab_app.run_out_of_memory", queue=worker.queue)
    with pytest.raises(Exception, match="no more"):
        result.get(timeout=PATIENCE)
    works_as_before(producer, worker, tmp_path, 1 if pool == "solo" else 2)


@pytest.mark.versions
def test_no_task_sees_the_memory_of_the_main_process(start, producer):
    worker = start(LAB_WITHOUT_CAPABILITIES="1").ready()
    ways = producer.answers(worker, "lab_app.spy_on", worker.pid)[0]
    assert len(ways) == 5
    assert set(ways.values()) == {"PermissionError"}, ways
    # Processes of the pool are open to one another: they run the same code.
    ways = producer.answers(worker, "lab_app.spy_on", *worker.children)[0]
    assert set(ways.values()) == {""}, ways


@pytest.mark.parametrize("pool", ["threads", "gevent", "solo"])
def test_what_a_task_starts_sees_no_memory_of_the_worker(start, producer, pool):
    worker = start(LAB_WITHOUT_CAPABILITIES="1", CELERY_METAL_POOL=pool).ready()
    command = f"exec 3</proc/{worker.pid}/mem || exit 9"
    assert producer.answers(worker, "lab_app.shell", command) != [0]


@pytest.mark.parametrize("pool", POOLS)
def test_a_task_that_the_app_does_not_have_is_kept(start, redis, producer, pool):
    worker = start(CELERY_METAL_POOL=pool).ready()
    result = producer.app.send_task("lab_app.of_tomorrow", queue=worker.queue)
    with pytest.raises(Exception, match=r"lab_app\.of_tomorrow"):
        result.get(timeout=PATIENCE)
    wait_until(lambda: dead(redis, worker), "it is put aside")
    assert dead(redis, worker) == ["the app does not define it"]
    worker.says(f"cannot run lab_app.of_tomorrow[{result.id}]: ")


def test_the_reason_is_said_and_none_forges_a_line(start, redis, producer, tmp_path):
    worker = start().ready()
    for field in ("id", "task", "root_id", "shadow", "eta", "get\ncelery-metal: forged", "retries"):
        send(redis, worker, task(1, **{field: "x\ncelery-metal: forged"}))
    assert good_task_is_done(producer, worker, tmp_path) < PATIENCE
    assert len(dead(redis, worker)) == 6
    assert all(reason in worker.log for reason in dead(redis, worker))
    assert not [line for line in worker.log.splitlines() if line.startswith("celery-metal: forged")]


def test_a_task_sends_nothing_into_the_runtime_s_own_keys(start, own_redis, tmp_path):
    producer = Producer(own_redis)
    worker = start(server=own_redis).ready()
    keys = ("celery-metal.other", "celery-metal.held:x:y")
    for number, key in enumerate(keys):
        after = {"task": COUNT, "args": ["x", 0], "kwargs": {}, "options": {"queue": key}}
        after["subtask_type"], after["immutable"] = None, True
        send(own_redis, worker, task(number, body=[[[1]], {}, {"callbacks": [after]}]))
    assert good_task_is_done(producer, worker, tmp_path) < PATIENCE
    works_as_before(producer, worker, tmp_path, 2)
    assert not own_redis.client.exists(*keys)


@pytest.mark.versions
def test_an_end_while_a_task_is_taken_counts_for_that_task(start, redis, producer):
    worker = start().ready()
    producer.app.send_task(COUNT, ("x", 0), queue=worker.queue, countdown=3600)
    held = f"celery-metal.held:{worker.node}:{worker.queue}"
    wait_until(lambda: redis.client.llen(held) == 1, "one waits for its time")
    producer.post(worker, "lab_app.fall")
    assert worker.process.wait(PATIENCE) == 3
    found = [json.loads(one)["headers"] for one in redis.client.lrange(worker.queue, 0, -1)]
    counts = {one["task"]: one.get("celery_metal_crashes", 0) for one in found}
    assert counts == {"lab_app.fall": 1, COUNT: 0}


def test_what_cannot_go_back_to_its_queue_becomes_a_dead_letter(start, redis, producer, tmp_path):
    worker = start().ready()
    redis.client.set(f"{worker.queue}\x06\x163", "not a list")
    one = task(1, "lab_app.again", body=[[str(tmp_path / "mark")], {}, None])
    one["properties"]["priority"] = 3
    send(redis, worker, one)
    wait_until(lambda: redis.client.llen(f"celery-metal.dead:{worker.queue}"), "it is put aside")
    assert "in Redis is not a list" in dead(redis, worker)[0]
    redis.client.delete(f"{worker.queue}\x06\x163")  # which no producer gets past
    assert good_task_is_done(producer, worker, tmp_path) < PATIENCE
    assert "Redis does not answer" not in worker.log


@pytest.mark.parametrize("quotes", [b'\\"' * 50_000, b'"' * 50_001])
def test_a_text_without_an_end_is_refused_at_once(quotes):
    begun = time.monotonic()
    with pytest.raises(RefusedError):
        parse(b"[" * 201 + b'"' + quotes)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("matcher", ["pcre", "", "GLOB", ["glob"], None, "glob"])
def test_no_pattern_of_a_command_takes_for_ever(matcher):
    body = {"method": "ping", "arguments": {}, "pattern": "(a+)+b", "matcher": matcher}
    if matcher in (None, "glob"):
        check_command({}, body, {"ping"}, "")
        return
    with pytest.raises(RefusedError, match="invalid matcher"):
        check_command({}, body, {"ping"}, "")


def test_no_clock_and_no_name_of_a_queue_in_a_command_does_harm(start, own_redis, tmp_path):
    producer = Producer(own_redis)
    worker = start(server=own_redis).ready()
    control = producer.operator.control
    wait_until(lambda: control.ping([worker.node], timeout=0.5), "ping is answered")
    for clock in (2**53, 10**300, -5):
        body = {"method": "ping", "arguments": {}, "destination": None}
        message = task(1, body=body) | {"headers": {"clock": clock}}
        own_redis.client.publish("/0.celery.pidbox", json.dumps(message))
    wait_until(lambda: control.ping([worker.node], timeout=0.5), "ping is answered as before")
    held = "celery-metal.held:other:queue"
    control.add_consumer(held, destination=[worker.node])
    wait_until(lambda: "invalid queue: 'celery-metal.held:other" in worker.log, "it is refused")
    own_redis.client.lpush(held, "the task of another")
    assert good_task_is_done(producer, worker, tmp_path) < PATIENCE
    assert own_redis.client.llen(held) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"expires": "9999-12-31T23:59:59.999999"}, ""),
        ({"eta": "9999-12-31T23:59:59.999999"}, "invalid eta"),
        ({"eta": "2026-11-28T06:00:00+14:00", "expires": None}, ""),
        ({"timelimit": [1.5, None], "retries": 3, "shadow": "other"}, ""),
        ({"mine": [1, {"a": None}], "stamps": {"a": ["b"]}, "stamped_headers": ["a"]}, ""),
        ({"ignore_result": 1, "group": "g", "group_index": 2}, ""),
        ({"timelimit": [-1, None]}, "invalid timelimit"),
        ({"callbacks": [5]}, "invalid task in callbacks"),
    ],
)
def test_what_celery_takes_is_taken(changes, reason):
    message = Message(task(1, **changes), channel=Channel)
    if reason:
        with pytest.raises(RefusedError, match=reason):
            check_task(message)
    else:
        check_task(message)


@pytest.mark.parametrize(
    ("priority", "taken"),
    [
        (0, 1),
        (9, 1),
        (5.0, 1),
        ("5", 1),
        (True, 1),
        (None, 1),
        ("x", 0),
        (float("inf"), 0),
        ([], 0),
    ],
)
def test_a_priority_is_a_number(priority, taken):
    one = task(1)
    one["properties"]["priority"] = priority
    if taken:
        assert parse(json.dumps(one).encode())["headers"] == one["headers"]
    else:
        with pytest.raises(RefusedError, match="invalid priority"):
            parse(json.dumps(one).encode())


def test_yaml_of_a_few_aliases_is_not_read():
    levels = [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 10)]
    body = "- []\n- a0: &a0 {k: 1}\n  " + "\n  ".join(levels) + "\n- null\n"
    one = task(1) | {"body": base64.b64encode(body.encode()).decode()}
    message = Message(one | {"content-type": "application/x-yaml"}, channel=Channel)
    with pytest.raises(RefusedError, match="YAML with aliases"):
        check_task(message)


@pytest.mark.parametrize(
    ("kind", "compress"),
    [
        ("application/x-gzip", zlib.compress),
        ("application/x-bz2", bz2.compress),
        ("application/x-lzma", lzma.compress),
        ("application/x-lzma", lambda data: lzma.compress(data, preset=9)),
    ],
)
def test_compressed_bodies_expand_as_with_kombu(kind, compress):
    expand, data = _DECODERS[kind], b"some data" * 1000
    assert expand(compress(data)) == data
    if kind != "application/x-gzip":
        assert expand(compress(data) + compress(data)) == data * 2
        assert expand(compress(data) + b"no stream, but text") == data
    with pytest.raises(ValueError, match="truncated"):
        expand(compress(data)[:-4])
    with pytest.raises(ValueError, match="expands to more"):
        expand(compress(b"0" * (LARGEST_BODY + 1)))


@pytest.mark.parametrize("value", VALUES)
def test_a_count_of_crashes_that_a_sender_invents_is_none(value):
    counts = type(value) is int and value in (1, 7)
    assert crashes_of(value) == (value if counts else 0)
