"""What was revoked stays revoked, whatever is restarted, with a real Redis and real workers."""

import json
from types import SimpleNamespace

import pytest
from runtime_lab import PATIENCE, Producer, constants, run, wait_until

KEY = "celery-metal.revoked"
OFTEN = constants({"revokes.LOOK_SECONDS": 0.1})
# By one stamp of several, by one of several names.
STAMPED = ({"customer": "é"}, {"batch": ["6", "7"]}, {"customer": "c", "batch": "7"})
NEVER = constants({"revokes.LOOK_SECONDS": 3600.0})

pytestmark = pytest.mark.versions


@pytest.fixture
def lab(start, own_redis, tmp_path):
    """A Redis, and workers of one name each: as a worker is replaced by its successor."""
    file = tmp_path / "ran"
    file.touch()
    producer = Producer(own_redis)

    def begin(queue="mail", **options):
        options |= {"server": own_redis, "CELERY_METAL_QUEUE": queue, "CONCURRENCY": "1"}
        return start("worker", **options).ready()

    def send(name, queue="mail", task_id=None, **options):
        task_id = task_id or name
        sent = producer.app.send_task(
            "lab_app.note", (str(file), name), queue=queue, task_id=task_id, **options
        )
        sent.backend = None  # its end would wait for this Redis, gone by then, before 5.7
        return task_id

    def states(ids):
        return {producer.app.backend.get_state(one) for one in ids}

    def heard(worker):
        ping = producer.monitor.control.ping
        wait_until(lambda: ping([worker.node], timeout=0.5), "ping is answered")

    def revoked(worker):
        inspect = producer.operator.control.inspect([worker.node], timeout=PATIENCE, limit=1)
        return set(inspect.revoked()[worker.node])

    def ran():
        return file.read_text().split()

    yield SimpleNamespace(
        begin=begin,
        send=send,
        heard=heard,
        revoked=revoked,
        ran=ran,
        states=states,
        redis=own_redis,
        file=file,
        control=producer.app.control,
        operator=producer.operator.control,
        producer=producer,
    )
    assert own_redis.refused() == []


def kept(lab):
    return set(lab.redis.client.zrange(KEY, 0, -1))


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_no_revoked_task_runs_after_all_workers_were_restarted(lab, pool):
    worker = lab.begin(CELERY_METAL_POOL=pool)
    lab.heard(worker)
    lab.control.revoke("one")
    lab.control.revoke(["two", "three"])
    lab.control.terminate("four")
    lab.control.revoke("five", terminate=True, signal="SIGKILL")
    lab.control.revoke_by_stamped_headers({"customer": ["é", "b"], "batch": "7"})
    wait_until(lambda: len(kept(lab)) == 8, "all are kept")
    worker.stop()
    names = ["one", "two", "three", "four", "five"]
    sent = [lab.send(name) for name in names]
    for number, stamps in enumerate(STAMPED):
        headers = {"stamped_headers": [*stamps], "stamps": stamps}
        sent.append(lab.send(f"stamped{number}", headers=headers))
    # What no client sends: the name of a stamp without a stamp.
    lab.send("odd", headers={"stamped_headers": ["customer"], "stamps": {}})
    lab.send("other", headers={"stamped_headers": ["customer"], "stamps": {"customer": "c"}})
    lab.begin(CELERY_METAL_POOL=pool)
    wait_until(lambda: "other" in lab.ran(), "the last one has run")
    assert lab.ran() == ["odd", "other"]
    wait_until(lambda: lab.states(sent) == {"REVOKED"}, "callers learn of it")


def test_a_task_that_was_terminated_does_not_come_back_with_a_killed_worker(lab, tmp_path):
    worker = lab.begin()
    lab.heard(worker)
    mark = tmp_path / "mark"
    options = {"queue": "mail", "task_id": "long", "ignore_result": True}
    lab.producer.app.send_task("lab_app.touch", (str(mark),), **options)
    wait_until(mark.exists, "it runs")
    lab.control.revoke("long", terminate=True, signal="SIGKILL")
    wait_until(lambda: kept(lab) == {"id:long"}, "it is kept")
    worker.process.kill()
    worker.process.wait()
    mark.unlink()
    lab.send("other")
    lab.begin()
    wait_until(lambda: lab.ran() == ["other"], "the other one runs")
    assert not mark.exists()


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_worker_that_drains_writes_down_what_is_revoked(lab, tmp_path, pool):
    worker = lab.begin(CELERY_METAL_POOL=pool)
    lab.heard(worker)
    mark = tmp_path / "mark"
    options = {"queue": "mail", "ignore_result": True}
    lab.producer.app.send_task("lab_app.touch", (str(mark),), **options)
    wait_until(mark.exists, "it runs")
    worker.process.terminate()
    worker.expect("STOPPING")

    def is_heard(name):
        # Before, it is the consumer's loop that answers, and obeys other commands, too.
        return "this one is stopping" in str(lab.operator.revoke(name, reply=True, timeout=0.5))

    wait_until(lambda: is_heard("x"), "the worker that drains answers")
    lab.operator.broadcast("shutdown")
    wait_until(lambda: is_heard("y"), "it obeys no other command")
    assert kept(lab) == {"id:x", "id:y"}
    (tmp_path / "mark.go").touch()
    assert worker.process.wait(PATIENCE) == 0
    assert mark.read_text() == "done"


def test_a_worker_that_did_not_hear_a_revoke_learns_of_it(lab):
    one = lab.begin("one", **NEVER)
    other, late = lab.begin("other", **OFTEN), lab.begin("late", **NEVER)
    for worker in (one, other, late):
        lab.heard(worker)
    lab.control.revoke("x", destination=[one.node])
    wait_until(lambda: lab.revoked(other) == {"x"}, "it is read soon")
    assert lab.revoked(late) == set()
    lab.redis.client.client_kill_filter(_type="pubsub")
    lab.heard(late)
    wait_until(lambda: lab.revoked(late) == {"x"}, "it is read after a lost connection")


def test_a_redis_that_has_lost_its_memory_learns_from_workers(lab):
    worker = lab.begin(**NEVER)
    lab.heard(worker)
    lab.control.revoke("x")
    lab.control.revoke_by_stamped_headers({"a": "b"})
    members = wait_until(lambda: len(kept(lab)) == 2 and kept(lab), "both are kept")
    lab.redis.client.delete(KEY)
    lab.redis.client.client_kill_filter(_type="normal", skipme=True)
    lab.redis.client.client_kill_filter(_type="pubsub")
    wait_until(lambda: kept(lab) == members, "both are kept again")


def test_as_many_are_kept_as_celery_keeps_and_as_long(lab):
    limits = {"CELERY_WORKER_REVOKES_MAX": "3", "CELERY_WORKER_REVOKE_EXPIRES": "600"}
    now = int(lab.redis.client.time()[0]) * 1000
    lab.redis.client.zadd(KEY, {"id:old": now - 601_000, "id:new": now - 500_000})
    worker = lab.begin(fresh=True, **limits)  # Celery reads them as it is loaded
    lab.heard(worker)
    assert lab.revoked(worker) == {"new"}
    for name in "abcde":
        lab.control.revoke(name)
    wait_until(lambda: kept(lab) == {"id:c", "id:d", "id:e"}, "the last three are kept")
    assert 0 < lab.redis.client.pttl(KEY) <= 600_000


def test_nothing_in_redis_ends_a_worker_or_becomes_a_revoke(lab):
    now = int(lab.redis.client.time()[0]) * 1000
    hostile = [
        *("", "x", "id:", "id:\n", "id:" + "y" * 1025, "id:" + "z" * 9_000_000, b"id:\xff"),
        *("stamp:", "stamp:[", 'stamp:["a"]', 'stamp:{"a": 1, "b": 2}', 'stamp:["a", 1]'),
        *('stamp:[["a"], "b"]', "stamp:" + "[" * 8000, "stamp:1", 'stamp:"ab"x'),
    ]
    client = lab.redis.client
    client.zadd(KEY, dict.fromkeys(hostile, now) | {"id:valid": now, "id:late": float("inf")})
    client.zadd(KEY, {f"garbage{number}": now for number in range(3000)})
    worker = lab.begin(**OFTEN)
    lab.heard(worker)
    assert lab.revoked(worker) == {"valid", "late"}
    client.set(KEY, "text")
    wait_until(lambda: client.type(KEY) == "zset", "it is replaced")
    assert kept(lab) == {"id:valid", "id:late"}
    worker.process.kill()
    client.set(KEY, "text")
    lab.send("other", "second")
    lab.begin("second")
    wait_until(lambda: lab.ran() == ["other"], "a worker starts")


def test_a_revoke_is_kept_when_redis_is_full(lab):
    worker, client = lab.begin(), lab.redis.client
    lab.heard(worker)
    client.config_set("maxmemory", 1)
    client.publish("/0.celery.pidbox", json.dumps(command("revoke", task_id="x")))
    wait_until(lambda: kept(lab) == {"id:x"}, "it is kept")
    client.config_set("maxmemory", 0)


def test_a_redis_without_the_rights_is_reported_and_keeps_no_worker_from_its_tasks(lab):
    lab.redis.client.execute_command(
        *(
            "ACL",
            "SETUSER",
            "worker",
            "clearselectors",
            "~*",
            "+hset",
            "+hget",
            "+hgetall",
            "+hdel",
        ),
        *("+get", "+set", "+setex", "+sadd", "+smembers", "+srem", "+zadd", "-zrange"),
    )
    worker = lab.begin(**OFTEN)
    lab.heard(worker)
    lab.control.revoke("x")
    wait_until(lambda: "Redis does not keep what is revoked" in worker.log, "it is reported")
    lab.send("other")
    wait_until(lambda: lab.ran() == ["other"], "its tasks run")
    lab.redis.client.execute_command("ACL", "SETUSER", "worker", "+zrange", "+zrem")
    wait_until(lambda: kept(lab) == {"id:x"}, "it is kept once that may be")
    lab.redis.client.acl_log_reset()


def test_the_command_line_revokes_by_stamps(lab):
    worker = lab.begin()
    lab.heard(worker)
    environ = lab.redis.environ()
    words = ("control", "-d", worker.node, "revoke_by_stamped_headers", "a=b", "c=d")
    done = run(environ, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert kept(lab) == {'stamp:["a", "b"]', 'stamp:["c", "d"]'}


def test_a_start_learns_all_of_fifty_thousand(lab):
    now = int(lab.redis.client.time()[0]) * 1000
    ids = [f"{number:08}-0000-4000-8000-000000000000" for number in range(50_000)]
    for begin in range(0, len(ids), 5000):
        lab.redis.client.zadd(KEY, {f"id:{one}": now for one in ids[begin : begin + 5000]})
    sent = [lab.send("revoked", task_id=one) for one in (ids[0], ids[-1])]
    lab.send("other")
    lab.begin()
    wait_until(lambda: "other" in lab.ran(), "the last one has run")
    assert lab.ran() == ["other"]
    assert lab.states(sent) == {"REVOKED"}


def command(method, **arguments):
    """A control command as kombu publishes it."""
    body = {"method": method, "arguments": arguments, "destination": None}
    info = {"exchange": "celery.pidbox", "routing_key": ""}
    return {
        "body": json.dumps(body),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"clock": 1},
        "properties": {"delivery_tag": "1", "delivery_info": info, "priority": 0},
    }
