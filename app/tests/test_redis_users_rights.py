"""What each user of Redis may do, by the answers of a real one."""

import re
import uuid
from pathlib import Path

import pytest
from celery import chord, signature
from kombu import Queue
from kombu.exceptions import OperationalError
from runtime_lab import PATIENCE, Producer
from test_runtime_questions import grant

DOCUMENT = Path(__file__).parents[2] / "docs/access.md"
# Keys of Celery, kombu and the runtime, with the queue in them or without.
OWN = (
    "celery-metal.nodes",
    "celery-metal.beat.lock",
    "celery-metal.held:mail-1@host:mail",
    "celery-metal.dead:mail",
    "celery-metal.x:celery-task-meta-1",
    "celery-metal.x:celery-taskset-meta-1",
    "celery-metal.x_kombu.binding.y",
    "unacked",
    "unacked_index",
    "unacked_mutex",
)
RESULTS = ("celery-task-meta-1", "celery-taskset-meta-1")
QUEUES = ("mail", "celery", "celery-tasks", "mail\x06\x163", "unack", "u", "_", "é", "\n")


def allowed(redis, user, key):
    """The commands that a user may send for a key, of all that this Redis has."""
    client, found = redis.client, set()
    for name, command in client.command().items():
        if command["first_key_pos"]:
            words = [name, *[key] * (abs(command["arity"]) - 1)]
            if client.execute_command("ACL", "DRYRUN", user, *words) == "OK":
                found.add(name)
    return found


@pytest.mark.versions
@pytest.mark.parametrize("key", OWN)
def test_a_producer_has_no_right_on_keys_of_the_runtime_and_of_kombu(redis, key):
    assert allowed(redis, "producer", key) == set()


@pytest.mark.versions
def test_a_producer_that_hears_replies_has_the_rights_of_a_client_that_waits_for_them(own_redis):
    grant(own_redis, "producer", replies=True)
    found = {key: allowed(own_redis, "producer", key) for key in OWN}
    assert {key: rights for key, rights in found.items() if rights} == {
        "unacked_mutex": {"set", "get", "del"},
        "unacked_index": {"zrange", "zrevrangebyscore"},
    }
    reply = f"{uuid.uuid4()}.reply.celery.pidbox"
    assert allowed(own_redis, "producer", reply) == {
        *("brpop", "del", "exists", "llen", "lpush", "pexpire")
    }
    questions = reply.replace("celery", "celery-inspect")
    assert allowed(own_redis, "producer", questions) == {"llen", "lpush"}


@pytest.mark.versions
def test_a_producer_binds_no_queue_to_an_exchange_of_replies(redis):
    for exchange in (".mail", ".reply", ".reply.cel", ".re", "_permanent.mail"):
        assert allowed(redis, "producer", f"_kombu.binding{exchange}") == {"sadd", "smembers"}
    for exchange in ("celery.pidbox", "celery-inspect.pidbox"):
        assert allowed(redis, "producer", f"_kombu.binding.reply.{exchange}") == set()


@pytest.mark.versions
def test_a_producer_makes_no_list_of_a_result_and_no_result_of_a_queue(redis):
    assert allowed(redis, "producer", RESULTS[0]) == {"get", "mget", "del"}
    assert allowed(redis, "producer", RESULTS[1]) == {"get", "mget", "del", "set", "setex"}
    # Of an app with a prefix that is not in redis_key_prefixes it is a name of a queue.
    for queue in (*QUEUES, f"shop:{RESULTS[0]}"):
        assert allowed(redis, "producer", queue) == {"lpush", "llen"}


@pytest.mark.versions
@pytest.mark.parametrize("key", [*OWN, *RESULTS, *QUEUES, "_kombu.binding.mail", "celeryev.mail"])
def test_a_monitor_only_reads_lengths_of_what_is_not_its_own(redis, key):
    own = {
        "unacked_mutex": {"set", "get", "del"},
        "unacked_index": {"zrange", "zrevrangebyscore"},
        "celery-metal.nodes": {"hgetall"},
    }
    assert allowed(redis, "monitor", key) == {"llen"} | own.get(key, set())


# Older kombu sends no PEXPIRE for a producer.
def test_an_expiring_queue_needs_the_documented_right(own_redis):
    rights = re.search(r"^  producer: (\(~reports.*)$", DOCUMENT.read_text(), re.M)[1]
    app = Producer(own_redis).app
    queue = Queue("reports", expires=600)
    with pytest.raises(OperationalError, match=r"(?i)permission"):
        app.send_task("x", queue=queue, retry=False)
    own_redis.client.execute_command("ACL", "SETUSER", "producer", rights)
    app.send_task("x", queue=queue, priority=6, retry=False)
    assert own_redis.client.llen("reports\x06\x166") == 1
    assert 0 < own_redis.client.pttl("reports\x06\x166") <= 600_000


@pytest.mark.versions
def test_a_task_can_add_another_to_its_chord(start, producer):
    worker = start().ready()
    header = [signature("lab_app.grow_chord", queue=worker.queue)]
    body = signature("lab_app.total", queue=worker.queue)
    assert chord(header, body, app=producer.app).apply_async().get(timeout=PATIENCE) == 3
