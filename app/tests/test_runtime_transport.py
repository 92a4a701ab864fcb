"""That a task is never nowhere: what a worker has taken is in Redis until it is done."""

import fcntl
import json
import os
import re
import signal
import socket
import struct
import termios
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import chord, signature
from celery_metal_runtime import ledger, twins
from celery_metal_runtime.transport import Claiming
from redis import Redis as Client
from runtime_lab import PASSWORD, PATIENCE, Producer, constants, wait_until

POOLS = ("prefork", "threads", "gevent", "solo")
COUNT, LATER, TOUCH = "lab_app.count", "lab_app.count_later", "lab_app.touch"
NODES = "celery-metal.nodes"
BEAT_SECONDS, LEASE_SECONDS = 0.1, 2.0
QUICK = constants({"ledger.BEAT_SECONDS": BEAT_SECONDS, "ledger.LEASE_SECONDS": LEASE_SECONDS})


def held(server, worker):
    return server.client.lrange(f"celery-metal.held:{worker.node}:{worker.queue}", 0, -1)


def beats(server, worker):
    """The number of the worker's last beat."""
    return json.loads(server.client.hget(NODES, worker.node))[0]


def message(producer, server, queue, *arguments, task=COUNT):
    """A message as a producer sends it, taken out of its queue."""
    producer.app.send_task(task, arguments, queue=queue, ignore_result=True)
    return server.client.rpop(queue)


def lines(path):
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.versions
def test_what_a_killed_worker_held_is_done_by_its_successor_at_once(
    start, redis, producer, tmp_path
):
    for pool in POOLS:
        size = 1 if pool == "solo" else 2
        killed = start(CELERY_METAL_POOL=pool, CONCURRENCY=str(size)).ready()
        marks = [tmp_path / f"{pool}-{number}" for number in range(size)]
        for mark in marks:
            producer.post(killed, TOUCH, str(mark))
        wait_until(lambda marks=marks: all(mark.exists() for mark in marks), "the tasks run")
        assert len(held(redis, killed)) == size
        assert redis.client.llen(killed.queue) == 0
        children = killed.children
        killed.process.kill()
        killed.process.wait()
        for mark in marks:
            mark.unlink()
        successor = start(CELERY_METAL_QUEUE=killed.queue, CELERY_METAL_POOL=pool)
        successor.ready()
        wait_until(lambda marks=marks: all(mark.exists() for mark in marks), "they run again")
        successor.says(f"{size} tasks of this worker's predecessor are back")
        assert not redis.client.exists("unacked")
        for pid in children:
            wait_until(lambda pid=pid: not is_running(pid), "the orphaned child has ended")


def test_an_empty_message_that_a_predecessor_held_keeps_no_worker_from_starting(start, redis):
    first = start().ready()
    assert first.stop() == 0
    redis.client.lpush(f"celery-metal.held:{first.node}:{first.queue}", "", "")
    successor = start(CELERY_METAL_QUEUE=first.queue).ready()
    assert held(redis, successor) == []
    assert redis.client.lrange(f"celery-metal.dead:{first.queue}", 0, -1) == ["", ""]


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.versions
def test_a_worker_that_ends_holds_nothing(start, redis, producer, tmp_path):
    workers = [start(CELERY_METAL_POOL=pool).ready() for pool in ("prefork", "gevent")]
    for worker in workers:
        mark = tmp_path / f"{worker.queue}.mark"
        producer.post(worker, COUNT, str(mark), 0)
        # Taken, but not begun: it waits in the worker for its time.
        producer.app.send_task(COUNT, (str(mark), 0), queue=worker.queue, countdown=3600)
        wait_until(lambda mark=mark: lines(mark) == 1, "the first is done")
        wait_until(lambda worker=worker: len(held(redis, worker)) == 1, "the second is held")
        # By Redis's own clock, so one look at Redis shows how old it is.
        _, (*_, seconds), queues = json.loads(redis.client.hget(NODES, worker.node))
        assert 0 <= redis.client.time()[0] - seconds < 60
        assert worker.queue in queues
    for worker in workers:
        assert worker.stop() == 0
        assert held(redis, worker) == []
        assert redis.client.llen(worker.queue) == 1
        assert worker.node not in redis.client.hkeys(NODES)


def waits_in_pipes(pid):
    """How many bytes a process has been sent through its pipes and has not read."""
    count = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if not os.readlink(path).startswith("pipe:"):
            continue
        with suppress(OSError), open(path, "rb", buffering=0) as pipe:
            count += struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    return count


@pytest.mark.versions
def test_what_a_process_has_and_not_begun_at_a_stop_runs_once(start, redis, producer, tmp_path):
    closed = tmp_path / "closed"
    worker = start(CONCURRENCY="1", LAB_CLOSED=str(closed)).ready()
    (child,) = worker.children
    os.kill(child, signal.SIGSTOP)
    assert not waits_in_pipes(child)
    producer.post(worker, COUNT, str(tmp_path / "mark"), 0)
    wait_until(lambda: waits_in_pipes(child), "the process has it")
    worker.process.send_signal(signal.SIGTERM)
    wait_until(closed.exists, "the consumer has closed")
    os.kill(child, signal.SIGCONT)
    assert worker.process.wait(PATIENCE) == 0
    assert lines(tmp_path / "mark") == 1
    assert held(redis, worker) == []
    assert redis.client.llen(worker.queue) == 0


@pytest.mark.versions
def test_a_lost_connection_neither_loses_nor_doubles_a_task(start, own_redis, tmp_path):
    producer = Producer(own_redis)
    workers = [start(server=own_redis, CELERY_METAL_POOL=pool, **QUICK) for pool in POOLS[:3]]
    marks = {worker.ready(): tmp_path / f"{worker.queue}.mark" for worker in workers}
    for worker, mark in marks.items():
        producer.post(worker, LATER, str(mark), f"{mark}.go", times=2)
        producer.post(worker, COUNT, str(mark), 0, times=3)
        worker.systemd.wait_for("2 busy")
    assert own_redis.client.client_kill_filter(_type="normal", skipme=True) > 9
    # Long enough for others to take what a silent worker holds, and for it to look itself.
    before = [beats(own_redis, worker) for worker in workers]
    for worker, number in zip(workers, before, strict=True):
        wanted = number + 1.5 * LEASE_SECONDS / BEAT_SECONDS
        wait_until(lambda w=worker, n=wanted: beats(own_redis, w) > n, "it beats on")
    for worker, mark in marks.items():
        mark.with_name(f"{mark.name}.go").touch()
        worker.expect("0 busy, 5 done")
        assert lines(mark) == 5, worker.log
        wait_until(lambda worker=worker: not held(own_redis, worker), "all are acknowledged")


def test_a_redis_that_answers_nobody_is_waited_for(start, own_redis, tmp_path):
    producer = Producer(own_redis)
    # The limit is 6 s, and an attempt takes a third of it.
    quick = constants({"broker.COMMAND_SECONDS": 2.0, "ledger.BEAT_SECONDS": 0.5})
    watched = {"CELERY_METAL_WATCHDOG_SECONDS": "9"} | quick
    workers = [start(server=own_redis, CELERY_METAL_POOL=pool, **watched) for pool in POOLS[:3]]
    marks = {worker.ready(): tmp_path / f"{worker.queue}.mark" for worker in workers}
    for worker, mark in marks.items():
        for number in range(2):
            producer.post(worker, LATER, str(mark), f"{mark}.go-{number}")
    for worker in workers:
        worker.systemd.wait_for("2 busy")
    begun = time.monotonic()
    # It takes what it is sent and never answers: as a network that drops all.
    own_redis.process.send_signal(signal.SIGSTOP)
    # One ends before the worker knows, the other after that.
    for mark in marks.values():
        mark.with_name(f"{mark.name}.go-0").touch()
    for worker, mark in marks.items():
        worker.systemd.wait_for("waiting for the broker since", since=begun)
        mark.with_name(f"{mark.name}.go-1").touch()
        wait_until(lambda mark=mark: lines(mark) == 2, "the tasks are done")
    for worker in workers:
        worker.systemd.wait_for("WATCHDOG=1", since=begun + 8)
        worker.says("Redis does not answer; acknowledgements are kept until it does: ")
        assert "Redis answers again" not in worker.log
    own_redis.process.send_signal(signal.SIGCONT)
    for worker, mark in marks.items():
        wait_until(lambda worker=worker: not held(own_redis, worker), "all are acknowledged")
        told = "Redis answers again; all acknowledgements are in"
        wait_until(lambda worker=worker, told=told: told in worker.log, "it is said")
        assert own_redis.client.llen(worker.queue) == 0
        assert worker.process.poll() is None
        producer.post(worker, COUNT, str(mark), 0)
    for mark in marks.values():
        wait_until(lambda mark=mark: lines(mark) == 3, "it goes on")


def test_an_acknowledgement_that_comes_too_late_is_said(start, redis, producer, tmp_path):
    worker, mark = start().ready(), tmp_path / "mark"
    producer.post(worker, TOUCH, str(mark))
    wait_until(mark.exists, "the task runs")
    # As another worker does that has heard nothing of this one.
    redis.client.delete(f"celery-metal.held:{worker.node}:{worker.queue}")
    mark.with_name("mark.go").touch()
    wait_until(lambda: "was not held any more: this worker was silent" in worker.log, "it is said")
    worker.says("see 'A task may run twice' in docs/safety.md")


@pytest.mark.versions
def test_a_request_of_kombus_own_claims_nothing():
    # Before 5.7 kombu keeps no time of it. A worker with a no_ack queue sends such requests.
    channel = object.__new__(Claiming)
    channel._in_poll = object()
    assert not channel.may_be_claiming_since(time.monotonic())


def test_a_task_whose_reply_was_lost_goes_back(start, redis, producer, tmp_path):
    worker, mark = start(**QUICK).ready(), tmp_path / "mark"
    item = message(producer, redis, "elsewhere", str(mark), 0)
    redis.client.lpush(f"celery-metal.held:{worker.node}:{worker.queue}", item)
    wait_until(lambda: lines(mark) == 1, "it is done")
    wait_until(lambda: not held(redis, worker), "it is acknowledged")


@pytest.mark.parametrize("beats", [True, False])
def test_what_a_silent_worker_held_goes_back(start, redis, producer, tmp_path, beats):
    mark, name = tmp_path / "mark", tmp_path.name
    node, queue = f"{name}-9@far", f"{name}-0"
    item = message(producer, redis, queue, str(mark), 0)
    redis.client.lpush(f"celery-metal.held:{node}:{queue}", item)
    redis.client.hset(NODES, node, json.dumps([1, 1, [queue]]))
    worker = start(CELERY_METAL_QUEUE=queue, **QUICK).ready()
    begun = time.monotonic()
    while beats and time.monotonic() < begun + 1.5 * LEASE_SECONDS:
        redis.client.hset(NODES, node, json.dumps([time.monotonic(), 1, [queue]]))
        time.sleep(0.05)
        assert lines(mark) == 0
    wait_until(lambda: lines(mark) == 1, "it is done")
    assert time.monotonic() - begun > LEASE_SECONDS
    wait_until(lambda: node not in redis.client.hkeys(NODES), "it is forgotten")
    assert re.search(rf"{node} is silent for \d+ s: 1 tasks back to the queue; look", worker.log)


def test_a_node_that_cannot_be_read_keeps_no_other_from_being_looked_at(start, own_redis, tmp_path):
    producer, mark = Producer(own_redis), tmp_path / "mark"
    queue, client = f"{tmp_path.name}-0", own_redis.client
    lives = {b"no-json@far": "{", b"short@far": "[1]", b"odd@far": "[1, 1, 7]", b"\xff@far": "[]"}
    lives[b"silent@far"] = json.dumps([1, 1, [queue]])
    client.hset(NODES, mapping=lives)
    item = message(producer, own_redis, queue, str(mark), 0)
    client.lpush(f"celery-metal.held:silent@far:{queue}", item)
    worker = start(server=own_redis, CELERY_METAL_QUEUE=queue, **QUICK).ready()
    wait_until(lambda: lines(mark) == 1, "what the silent one held is done")
    wait_until(lambda: client.hlen(NODES) == 1, "all but the worker are forgotten")
    assert worker.log.count("is silent for") == len(lives)
    assert worker.log.count("cannot be read") == 4
    life = client.hget(NODES, worker.node)
    wait_until(lambda: client.hget(NODES, worker.node) != life, "the worker goes on beating")


def test_a_beat_that_fails_is_said_once_and_does_not_end_the_beating(monkeypatch, capfd):
    monkeypatch.setattr(ledger, "BEAT_SECONDS", 0.001)
    owner, beats = ledger.Ledger("q-1@here"), []
    owner._clients = [None] * 3
    beat = ledger.Beat(owner)

    def fail(client, now):
        beats.append(now)
        owner.closed = len(beats) == 5
        raise ValueError("odd")

    monkeypatch.setattr(beat, "beat", fail)
    beat.run()
    assert len(beats) == 5
    said = capfd.readouterr().err
    assert said.count("a beat of this worker has failed") == 1
    assert "ValueError: odd" in said
    assert "in fail" in said


def lost_tasks(own_redis, items):
    """A ledger that holds tasks of a channel that is gone, the last one claimed last."""
    owner = ledger.Ledger("q-1@here")
    client = Client(unix_socket_path=str(own_redis.path), username="admin", password=PASSWORD)
    owner._clients, owner._queues = [client] * 3, {"q"}
    owner.channel = SimpleNamespace(
        global_keyprefix="",
        _get_message_priority=lambda task, reverse: 0,
        _q_for_pri=lambda queue, priority: queue,
        may_be_claiming_since=lambda moment: False,
    )
    for number, item in enumerate(items):
        client.lpush(owner.held_key("q"), item)
        owner._records[str(number)] = ledger.Record("q", item, "one that is gone")
    return owner


def test_what_a_lost_connection_leaves_goes_back_in_its_order_and_the_worker_beats(
    own_redis, redis, producer, monkeypatch
):
    monkeypatch.setattr(ledger, "BEAT_SECONDS", 0.0)
    items = [message(producer, redis, "elsewhere", str(one), 0).encode() for one in range(300)]
    owner = lost_tasks(own_redis, items)
    beat = ledger.Beat(owner)
    client = owner._clients[1]
    beat._reconcile(client, time.monotonic())
    assert client.llen("q") == 0
    number = beat.number
    beat._reconcile(client, time.monotonic() + ledger.SUSPECT_SECONDS)
    # The next one is taken from the right end.
    waiting = [json.loads(item) for item in client.lrange("q", 0, -1)]
    assert [one["headers"]["id"] for one in reversed(waiting)] == [
        json.loads(item)["headers"]["id"] for item in items
    ]
    assert client.llen(owner.held_key("q")) == 0
    assert beat.number >= number + len(items)


def test_a_worker_whose_name_another_one_may_have_gives_nothing_back(own_redis, redis, producer):
    owner = lost_tasks(own_redis, [])
    client, item = owner._clients[1], message(producer, redis, "elsewhere", "x", 0)
    owner.twins.token = twins.new_token(client)
    client.lpush(owner.held_key("q"), item)
    beat, earlier = ledger.Beat(owner), [owner.twins.token.started - 1, "other", "boot", 1]
    for number in range(twins.SIGHTINGS):
        client.hset(NODES, owner.node, json.dumps([number, earlier, ["q"]]))
        beat.beat(client, time.monotonic() + number * ledger.SUSPECT_SECONDS)
    assert owner.closed
    assert client.llen(owner.held_key("q")) == 1


def test_a_user_who_may_not_ask_for_the_time_beats_without_it(own_redis):
    client, owner = own_redis.client, ledger.Ledger("q-1@here")
    owner.channel = SimpleNamespace(global_keyprefix="")
    client.execute_command("ACL", "SETUSER", client.acl_whoami(), "-time")
    owner._live(client, 7)
    assert json.loads(client.hget(NODES, owner.node)) == [7, [None], []]


@pytest.mark.versions
def test_a_full_redis_still_gives_its_tasks(start, own_redis, tmp_path):
    producer, mark = Producer(own_redis), tmp_path / "mark"
    worker = start(server=own_redis).ready()
    worker.process.send_signal(signal.SIGSTOP)
    producer.post(worker, COUNT, str(mark), 0, times=20)
    own_redis.client.config_set("maxmemory", 1)
    worker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: lines(mark) == 20, "all are done")
    wait_until(lambda: not held(own_redis, worker), "all are acknowledged")
    assert worker.process.poll() is None
    own_redis.client.config_set("maxmemory", 0)
    producer.post(worker, COUNT, str(mark), 0)
    wait_until(lambda: lines(mark) == 21, "it goes on")


@pytest.mark.versions
def test_a_worker_of_a_full_redis_stays_alive_and_keeps_results(start, own_redis, tmp_path):
    producer, mark = Producer(own_redis), tmp_path / "mark"
    worker = start(server=own_redis, **QUICK).ready()
    worker.process.send_signal(signal.SIGSTOP)
    sent = [producer.app.send_task(COUNT, (str(mark), 0.2), queue=worker.queue) for _ in range(20)]
    own_redis.client.config_set("maxmemory", 1)
    beats = own_redis.client.hget(NODES, worker.node)
    worker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: lines(mark) == 20, "all are done")
    wait_until(lambda: not held(own_redis, worker), "all are acknowledged")
    assert own_redis.client.hget(NODES, worker.node) != beats
    assert [one.get(timeout=PATIENCE) for one in sent] == [None] * 20
    assert 0 < own_redis.client.ttl(f"celery-task-meta-{sent[0].id}") <= 86400
    assert "Redis does not answer" not in worker.log
    assert "Redis gives no tasks" not in worker.log
    for result in sent:
        result.backend = None  # its end would wait for a Redis that is gone by then, before 5.7


@pytest.mark.versions
@pytest.mark.parametrize("pool", ["prefork", "gevent"])
def test_a_retry_that_a_full_redis_refuses_loses_no_task(start, own_redis, tmp_path, pool):
    producer, mark = Producer(own_redis), tmp_path / "mark"
    worker = start(server=own_redis, CELERY_METAL_POOL=pool, **QUICK).ready()
    worker.process.send_signal(signal.SIGSTOP)
    sent = producer.app.send_task("lab_app.retry_once", (str(mark),), queue=worker.queue)
    own_redis.client.config_set("maxmemory", 1)
    worker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: lines(mark) >= 2, "it has come back")
    own_redis.client.config_set("maxmemory", 0)
    assert sent.get(timeout=PATIENCE) is None
    wait_until(lambda: not held(own_redis, worker), "it is acknowledged")
    sent.backend = None  # its end would wait for a Redis that is gone, before 5.7


@pytest.mark.versions
def test_a_retry_while_its_connection_is_replaced_loses_no_task(start, own_redis, tmp_path):
    producer, mark = Producer(own_redis), tmp_path / "mark"
    worker = start(server=own_redis, **QUICK).ready()
    worker.process.send_signal(signal.SIGSTOP)
    client = {"unix_socket_path": str(own_redis.path), "username": "admin", "password": PASSWORD}
    arguments = (str(mark), client)
    sent = producer.app.send_task("lab_app.retry_as_there_is_room", arguments, queue=worker.queue)
    own_redis.client.config_set("maxmemory", 1)
    worker.process.send_signal(signal.SIGCONT)
    assert sent.get(timeout=PATIENCE) is None
    assert lines(mark) == 2
    wait_until(lambda: not held(own_redis, worker), "it is acknowledged")
    sent.backend = None  # its end would wait for a Redis that is gone, before 5.7


@pytest.mark.versions
def test_a_result_that_is_longer_than_its_message_waits_for_room(start, own_redis):
    producer = Producer(own_redis)
    worker = start(server=own_redis, CONCURRENCY="1", **QUICK).ready()
    worker.process.send_signal(signal.SIGSTOP)
    long, echo, short = (
        producer.app.send_task("lab_app.repeat", arguments, queue=worker.queue)
        for arguments in (("x", 2000), ("x" * 2000, 1), ("x", 1))
    )
    own_redis.client.config_set("maxmemory", 1)
    worker.process.send_signal(signal.SIGCONT)

    # Its result alone is refused again and again, with growing pauses.
    wait_until(lambda: held(own_redis, worker), "it is taken")
    first = own_redis.refused_as_full()
    wait_until(lambda: own_redis.refused_as_full() > first + 2, "it is tried again")
    assert len(held(own_redis, worker)) >= 1
    assert not own_redis.client.exists(f"celery-task-meta-{long.id}")
    own_redis.client.config_set("maxmemory", 0)
    assert long.get(timeout=PATIENCE) == "x" * 2000
    own_redis.client.config_set("maxmemory", 1)
    assert [len(one.get(timeout=PATIENCE)) for one in (echo, short)] == [2000, 1]
    for result in (long, echo, short):
        result.backend = None


def test_a_redis_that_cannot_write_is_waited_for(start, own_redis, tmp_path):
    producer, mark = Producer(own_redis), tmp_path / "mark"
    watched = {"CELERY_METAL_WATCHDOG_SECONDS": "2"} | constants({"health.ANSWER_SECONDS": 2.0})
    worker = start(server=own_redis, **watched).ready()
    own_redis.client.config_set("min-replicas-to-write", 1)
    wait_until(lambda: "Redis gives no tasks" in worker.log, "it is said")
    begun = time.monotonic()
    worker.systemd.wait_for("WATCHDOG=1", since=begun + 6)  # beyond the limit of an answer, 5 s
    own_redis.client.config_set("min-replicas-to-write", 0)
    producer.post(worker, COUNT, str(mark), 0)
    wait_until(lambda: lines(mark) == 1, "it goes on")
    worker.says("Redis gives tasks again")
    assert worker.log.count("Redis gives no tasks") == 1
    worker.says("Look at the disk and at the journal of celery-redis.service")


@pytest.mark.versions
def test_what_is_no_task_is_put_aside(start, redis, producer, tmp_path):
    mark, queue = tmp_path / "mark", f"{tmp_path.name}-0"
    held_key = f"celery-metal.held:{queue}-1@{socket.gethostname()}:{queue}"
    redis.client.lpush(held_key, "held, and no JSON")
    worker = start().ready()
    assert worker.queue == queue
    for item in ("no JSON", "5", "{}"):
        redis.client.lpush(worker.queue, item)
    producer.post(worker, COUNT, str(mark), 0)
    wait_until(lambda: lines(mark) == 1, "the task behind them is done")
    dead = f"celery-metal.dead:{worker.queue}"
    assert redis.client.lrange(dead, 0, -1) == ["{}", "5", "no JSON", "held, and no JSON"]
    assert worker.log.count(f"refused a message in queue {worker.queue}: ") == 4
    assert worker.log.count(f"It is a dead letter now, in the list {dead}: look at it") == 4
    assert worker.stop() == 0
    assert held(redis, worker) == []


def test_a_task_that_always_kills_its_worker_is_put_aside(start, redis, producer, tmp_path):
    worker = start().ready()
    worker.process.kill()
    worker.process.wait()
    item = json.loads(message(producer, redis, worker.queue, str(tmp_path / "mark"), 0))
    for crashes in (9, 10):
        item["headers"]["celery_metal_crashes"] = crashes
        one = json.dumps(item | {"n": crashes})
        redis.client.lpush(f"celery-metal.held:{worker.node}:{worker.queue}", one)
        redis.client.hset(
            f"celery-metal.begun:{worker.node}", ledger.BEGUN + ledger.digest(one.encode()), ""
        )
    successor = start(CELERY_METAL_QUEUE=worker.queue).ready()
    wait_until(lambda: lines(tmp_path / "mark") == 1, "the one is done")
    dead = redis.client.lrange(f"celery-metal.dead:{worker.queue}", 0, -1)
    assert [json.loads(item)["n"] for item in dead] == [10]
    successor.says(f"[{item['headers']['id']}] was there at 11 ends")
    successor.says("then send it back by playbooks/dead.yml: see 'Tasks that were put aside'")


@pytest.mark.versions
@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_task_that_always_ends_its_process_is_put_aside(start, redis, producer, tmp_path, how):
    limit = "60" if how == "dies" else "1"
    worker = start(CONCURRENCY="1", CELERY_METAL_TIME_LIMIT_SECONDS=limit).ready()
    mark, other = tmp_path / "mark", tmp_path / "other"
    task = ("lab_app.die" if how == "dies" else TOUCH, str(mark))
    item = json.loads(message(producer, redis, "elsewhere", *task[1:], task=task[0]))
    item["headers"]["celery_metal_crashes"] = 9
    redis.client.lpush(worker.queue, json.dumps(item))
    dead = f"celery-metal.dead:{worker.queue}"
    wait_until(lambda: redis.client.llen(dead) == 1, "it is put aside")
    if how == "dies":
        assert lines(mark) == 2
    producer.post(worker, COUNT, str(other), 0)
    wait_until(lambda: lines(other) == 1, "the task behind it is done")
    worker.says(f"[{item['headers']['id']}] was there at 11 ends")
    wait_until(lambda: not held(redis, worker), "nothing is held")


def test_a_task_that_asks_for_it_is_requeued_for_ever(start, redis, producer, tmp_path):
    worker, mark = start().ready(), tmp_path / "mark"
    producer.post(worker, "lab_app.again", str(mark))
    wait_until(lambda: lines(mark) > 20, "it runs again and again")
    Path(f"{mark}.stop").touch()
    wait_until(lambda: not held(redis, worker) and not redis.client.llen(worker.queue), "it ends")
    assert not redis.client.exists(f"celery-metal.dead:{worker.queue}")


@pytest.mark.versions
def test_priorities_are_kept(start, redis, producer, tmp_path):
    worker, mark = start(CONCURRENCY="1").ready(), tmp_path / "mark"
    producer.app.send_task(COUNT, (str(mark), 0), queue=worker.queue, priority=5)
    wait_until(lambda: lines(mark) == 1, "a low priority is consumed too")
    worker.process.send_signal(signal.SIGSTOP)
    order = tmp_path / "order"
    for priority in (9, 0, 9, 0):
        producer.app.send_task(
            "lab_app.note", (str(order), priority), queue=worker.queue, priority=priority
        )
    worker.process.send_signal(signal.SIGCONT)
    wait_until(lambda: lines(order) == 4, "all are done")
    assert order.read_text().split() == ["0", "0", "9", "9"]


def of_two(tmp_path, order="round_robin"):
    """What makes a worker of two queues, and these."""
    queues = [f"{tmp_path.name}-urgent", f"{tmp_path.name}-bulk"]
    environ = {"CELERY_METAL_QUEUES": ",".join(queues), "CELERY_METAL_QUEUE_ORDER": order}
    return {**environ, "CONCURRENCY": "1"}, queues


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        # Each queue in its turn, with the best priority of all first.
        ("round_robin", ["bulk0", "urgent3", "bulk3", "urgent3", "bulk3", "urgent9"]),
        # All of the first queue, and in each the best priority first.
        ("priority", ["urgent3", "urgent3", "urgent9", "bulk0", "bulk3", "bulk3"]),
    ],
)
def test_several_queues_are_taken_from_in_their_order(
    start, redis, producer, tmp_path, order, expected
):
    environ, (urgent, bulk) = of_two(tmp_path, order)
    path = tmp_path / "order"
    for name, queue, priority in (
        *(("bulk", bulk, 3),) * 2,
        ("urgent", urgent, 9),
        *(("urgent", urgent, 3),) * 2,
        ("bulk", bulk, 0),
    ):
        producer.app.send_task(
            "lab_app.note", (str(path), f"{name}{priority}"), queue=queue, priority=priority
        )
    start(**environ).ready()
    wait_until(lambda: lines(path) == 6, "all are done")
    assert path.read_text().split() == expected


def test_none_of_several_queues_waits_for_the_others(start, redis, producer, tmp_path):
    environ, (_, bulk) = of_two(tmp_path)
    # A wait for one queue alone, which must not be.
    start(**environ, **constants({"kombu.transport.redis.Transport.brpop_timeout": 10})).ready()
    mark, begun = tmp_path / "mark", time.monotonic()
    for number in range(1, 11):
        # The turn is that of the other queue each time.
        producer.app.send_task(COUNT, (str(mark), 0), queue=bulk)
        wait_until(lambda number=number: lines(mark) == number, "it is done")
    # Ten such waits would take ten times as long.
    assert time.monotonic() - begun < 10


def test_what_a_worker_of_several_queues_gives_back_goes_where_it_came_from(
    start, redis, producer, tmp_path
):
    environ, (urgent, bulk) = of_two(tmp_path)
    worker, mark = start(**environ).ready(), tmp_path / "mark"
    for queue, priority in ((urgent, 0), (bulk, 6)):
        producer.app.send_task(
            COUNT, (str(mark), 0), queue=queue, priority=priority, countdown=3600
        )
    list_of = "celery-metal.held:{}:{}".format
    keys = [list_of(worker.node, queue) for queue in (urgent, bulk)]
    wait_until(lambda: all(map(redis.client.exists, keys)), "both are held")
    assert worker.stop() == 0
    assert [redis.client.llen(key) for key in (urgent, bulk, f"{bulk}\x06\x166")] == [1, 0, 1]
    assert not any(map(redis.client.exists, keys))


def test_a_successor_with_other_queues_gives_back_what_was_held_of_the_old_ones(
    start, redis, producer, tmp_path
):
    environ, (urgent, bulk) = of_two(tmp_path)
    killed = start(**environ).ready()
    producer.app.send_task(TOUCH, (str(tmp_path / "mark"),), queue=bulk)
    wait_until((tmp_path / "mark").exists, "the task runs")
    killed.process.kill()
    killed.process.wait()
    successor = start(**{**environ, "CELERY_METAL_QUEUES": urgent}, CELERY_METAL_QUEUE=killed.queue)
    successor.ready()
    assert redis.client.llen(bulk) == 1
    successor.says(f"1 tasks of this worker's predecessor are back in {bulk}")


# With gevent each task has a connection of its own.
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_results_are_kept_when_their_connection_dies(start, redis, producer, pool):
    worker = start(CELERY_METAL_POOL=pool, CONCURRENCY="1").ready()
    add = signature("metal_sample.tasks.add", (1, 2), queue=worker.queue)
    body = signature("lab_app.total", queue=worker.queue)
    for turn in range(3):
        # The first result makes the connection.
        assert producer.answers(worker, "lab_app.total", [turn]) == [turn]
        assert producer.answers(worker, "lab_app.trust_connections") == [True]
        redis.client.client_kill_filter(_type="normal")
        redis.client.client_kill_filter(_type="pubsub")
        producer = Producer(redis)
        if turn == 0:
            assert producer.answers(worker, "metal_sample.tasks.add", 1, 2) == [3]
        else:
            work = chord([add] * (turn + 1), body, app=producer.app)
            assert work().get(timeout=PATIENCE) == 3 * (turn + 1)
