"""Paused queues, with a real Redis and real workers: nothing begins, and nothing is lost."""

import hashlib
import json
import signal
from types import SimpleNamespace

import pytest
from celery_metal_runtime import pauses
from runtime_lab import PASSWORD, PATIENCE, Producer, constants, wait_until

PAUSED, PAUSING = "celery-metal.paused", "celery-metal.pausing"
POOLS = ["prefork", "threads", "gevent", "solo"]
RECORD = json.dumps({"by": "me@here", "at": 1, "id": "1"})
OFTEN = constants({"ledger.BEAT_SECONDS": 0.2})


@pytest.fixture
def lab(start, own_redis, tmp_path):
    """A Redis, and workers of one queue each; tasks leave a line in a file."""
    file = tmp_path / "ran"
    file.touch()
    producer = Producer(own_redis)

    def begin(queue="mail", **options):
        options = {"server": own_redis, "CELERY_METAL_QUEUE": queue, "CONCURRENCY": "1"} | options
        return start("worker", **options).ready()

    def send(name, queue="mail", **options):
        options |= {"queue": queue, "task_id": name, "ignore_result": True}
        producer.app.send_task("lab_app.note", (str(file), name), **options)

    def touch(mark, queue="mail"):
        producer.app.send_task("lab_app.touch", (str(mark),), queue=queue, ignore_result=True)

    def pause(queue="mail", value=RECORD):
        own_redis.client.hset(PAUSED, queue, value)

    def confirmed(worker, queue="mail", value=RECORD):
        """How many tasks the pool has yet to begin, once the worker knows of this pause."""
        said = json.loads(own_redis.client.hget(PAUSING, worker.node) or "{}")
        known, ahead = said.get(queue, ["", None])
        return ahead if known == hashlib.sha256(value.encode()).hexdigest()[:16] else None

    def quiet(worker, **options):
        wait_until(lambda: confirmed(worker, **options) == 0, "it has confirmed")

    yield SimpleNamespace(
        begin=begin,
        send=send,
        touch=touch,
        pause=pause,
        quiet=quiet,
        confirmed=confirmed,
        resume=lambda queue="mail": own_redis.client.hdel(PAUSED, queue),
        ran=lambda: file.read_text().split(),
        waiting=lambda queue="mail": own_redis.client.llen(queue),
        redis=own_redis,
        tmp=tmp_path,
    )
    assert own_redis.refused() == []


@pytest.mark.versions
@pytest.mark.parametrize("pool", POOLS)
def test_nothing_begins_while_its_queue_is_paused_whatever_is_restarted(lab, pool):
    worker, mark = lab.begin(CELERY_METAL_POOL=pool), lab.tmp / "mark"
    lab.touch(mark)
    wait_until(mark.exists, "it runs")
    lab.send("behind")
    lab.pause()
    # With solo also while its loop stands still.
    lab.quiet(worker)
    lab.send("other")
    (lab.tmp / "mark.go").touch()
    wait_until(lambda: mark.read_text() == "done", "what runs is finished")
    worker.expect("0 busy, 1 done, paused")
    assert worker.stop() == 0
    # Its own first task is no task of the queue.
    worker = lab.begin(CELERY_METAL_POOL=pool)
    worker.expect("0 busy, 0 done, paused")
    lab.send("third")
    lab.quiet(worker)
    assert (lab.ran(), lab.waiting()) == ([], 3)
    lab.resume()
    wait_until(lambda: len(lab.ran()) == 3, "all run")
    assert lab.ran() == ["behind", "other", "third"]
    worker.expect("0 busy, 3 done")
    wait_until(lambda: not lab.redis.client.exists(PAUSING), "it is confirmed no more")


@pytest.mark.versions
@pytest.mark.parametrize("pool", POOLS)
def test_what_was_claimed_ahead_goes_back_when_its_turn_comes(lab, pool):
    worker = lab.begin(CELERY_METAL_POOL=pool, CELERY_METAL_PREFETCH="4", **OFTEN)
    mark = lab.tmp / "mark"
    lab.send("eta", countdown=3)
    lab.touch(mark)
    wait_until(mark.exists, "it runs")
    names = ["a", "b", "c"]
    for name in names:
        lab.send(name, priority=3)
    # The loop of gevent waits for a place with one, and that of solo runs the first task.
    left = {"gevent": 2, "solo": 3}.get(pool, 0)
    wait_until(lambda: lab.waiting("mail\x06\x163") == left, "the others are claimed")
    lab.pause()
    wait_until(lambda: lab.confirmed(worker) is not None, "it knows")
    # What a pool of threads or greenlets has is finished, and the worker says how much that is.
    ahead = lab.confirmed(worker)
    assert ahead == 0 if pool in ("prefork", "solo") else ahead > 0
    (lab.tmp / "mark.go").touch()
    lab.quiet(worker)
    begun = set(lab.ran())
    assert len(begun) <= ahead
    wait_until(lambda: lab.waiting() == 1, "the one with a countdown is back")
    wait_until(lambda: lab.waiting("mail\x06\x163") == 3 - len(begun), "the others, too")
    assert set(lab.ran()) == begun
    lab.resume()
    wait_until(lambda: len(lab.ran()) == 4, "all run")
    assert sorted(lab.ran()) == [*names, "eta"]


@pytest.mark.versions
def test_a_worker_of_several_queues_takes_those_that_are_not_paused(lab):
    lab.pause("a")
    worker = lab.begin("both", CELERY_METAL_QUEUES="a,b", **OFTEN)
    lab.send("1", "a")
    for name in "23":
        lab.send(name, "b")
        wait_until(lambda name=name: name in lab.ran(), "the other queue is served")
    worker.expect("2 done, paused: 1 of 2 queues")
    assert lab.waiting("a") == 1
    lab.resume("a")
    wait_until(lambda: lab.ran() == ["2", "3", "1"], "it is resumed")


def test_a_pause_is_not_confirmed_while_the_answer_to_an_earlier_claim_is_unread():
    since, said = [], []
    channel = SimpleNamespace(may_be_claiming_since=lambda when: since.append(when) or is_claiming)
    ledger = SimpleNamespace(channel=channel, _queues={"mail"}, key=str, node="mail-1@here")

    def answer(script, *words):
        if script == pauses.READ:
            return [b"value"]
        return said.append(words[-1])

    client, mine, is_claiming = SimpleNamespace(eval=answer), pauses.Pauses(ledger), True
    for _ in range(2):
        mine.look(client)
        assert (said[-1], mine.is_due, [*mine.found]) == ("", True, ["mail"])
        mine._has_confirmed = True
    # It is known since the first look, and the answer was a task of before.
    assert since[0] == since[1]
    mine.seen(["mail"], ())
    assert not mine.found
    mine.look(client)
    assert since[2] > since[1]
    is_claiming = False
    mine.look(client)
    assert json.loads(said[-1])["mail"][1] == 0
    assert not mine.is_due


@pytest.mark.parametrize("user", ["worker", "admin"])
@pytest.mark.usefixtures("module_utils")
def test_the_playbook_and_the_runtime_understand_each_other(lab, user):
    from ansible.module_utils import celery_pauses
    from ansible.module_utils.celery_redis import Client

    worker, client = lab.begin(), Client(str(lab.redis.path), 5)
    client.ask(("AUTH", user, PASSWORD))
    place = celery_pauses.place_of("mail", ["mail"], [])
    value, _ = celery_pauses.pause(client, place, "é" * 500, "\U0001f600" * 500)
    found = celery_pauses.confirmed(client, place, value, PATIENCE)
    assert (found.workers, found.unconfirmed, found.is_kept) == (1, [], True)
    (pause,) = celery_pauses.pauses_of(client, [], [])
    assert (pause["queue"], pause["by"]) == ("mail", "é" * celery_pauses.LONGEST_TEXT)
    lab.send("one")
    assert celery_pauses.resume(client, place)
    wait_until(lambda: lab.ran() == ["one"], "it is resumed")
    worker.expect("0 busy, 1 done")
    client.close()


def test_a_worker_that_stood_still_meanwhile_takes_nothing(lab):
    worker = lab.begin()
    lab.send("before")
    wait_until(lambda: lab.ran() == ["before"], "it works")
    worker.process.send_signal(signal.SIGSTOP)
    # Its last request for a task is over.
    wait_until(lambda: "flags=b" not in lab.redis.client.execute_command("CLIENT", "LIST"), "over")
    lab.pause()
    lab.send("after")
    worker.process.send_signal(signal.SIGCONT)
    lab.quiet(worker)
    assert (lab.ran(), lab.waiting()) == (["before"], 1)


def test_a_pause_counts_whatever_its_value_is(lab):
    worker, client = lab.begin(**OFTEN), lab.redis.client
    values = ["", "{", "x" * 100_000, b"\xff\x00", "[" * 4000]
    for number, value in enumerate(values, 1):
        lab.pause("\x1b[2J", value)
        lab.pause(value=value)
        wait_until(lambda: client.hexists(PAUSING, worker.node), "it has confirmed")
        lab.send(f"{number}")
        worker.expect(f"{number - 1} done, paused")
        assert (len(lab.ran()), lab.waiting()) == (number - 1, 1)
        lab.resume()
        wait_until(lambda number=number: len(lab.ran()) == number, "it is resumed")
        wait_until(lambda: not client.exists(PAUSING), "it knows")
    assert "\x1b" not in worker.log


def test_keys_of_another_type_pause_nothing_and_end_nothing(lab):
    client = lab.redis.client

    def fill(add):
        for key in (PAUSED, PAUSING):
            client.delete(key)
            add(key)

    fill(lambda key: client.set(key, "mail"))
    worker = lab.begin(**OFTEN)
    lab.send("1")
    wait_until(lambda: lab.ran() == ["1"], "it works")
    fill(lambda key: client.lpush(key, "mail"))
    lab.send("2")
    wait_until(lambda: lab.ran() == ["1", "2"], "it works")
    fill(lambda key: client.zadd(key, {"mail": 1}))
    lab.send("3")
    wait_until(lambda: lab.ran() == ["1", "2", "3"], "it works")
    client.delete(PAUSED)
    lab.pause()
    wait_until(lambda: client.type(PAUSING) == "hash", "the key is replaced")
    lab.quiet(worker)


@pytest.mark.parametrize("user", ["producer", "monitor"])
def test_only_workers_and_the_operator_can_pause(own_redis, user):
    for key in (PAUSED, PAUSING):
        for command in (["HSET", key, "mail", ""], ["HDEL", key, "mail"], ["DEL", key]):
            said = own_redis.client.execute_command("ACL", "DRYRUN", user, *command)
            assert "no permissions" in str(said)
