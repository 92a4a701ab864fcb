"""A Redis that fills up: an alarm, then errors for producers, and no acknowledged task lost."""

import json
import re

import pytest

BROKER, SENDER = "broker", "sender"
CONTAINER, QUEUE, ALARM = "celery-add_queue-1", "add_queue", "celery-redis-memory.service"
WORKER = "celery-add_queue@1.service"
MB = 1024 * 1024
# Sends until there are so many, or an error; big arguments, small results.
SEND = """
import json
from celery_metal_runtime import configure
from metal_sample.celery import app
from metal_sample.tasks import fingerprint
configure(app)
sent, error = [], ""
while len(sent) < {most} and not error:
    try:
        sent.append(fingerprint.apply_async(("x" * 100000,), queue="add_queue").id)
    except Exception as problem:
        error = f"{{type(problem).__module__}}.{{type(problem).__name__}}: {{problem}}"
print(json.dumps([sent, error]))
"""
WAIT = """
from celery_metal_runtime import configure
from metal_sample.celery import app
from metal_sample.tasks import wait
configure(app)
wait.apply_async((20,), queue="add_queue")
"""


def send(lab, most):
    """The IDs of the tasks that were acknowledged to a Celery producer, and its error."""
    words = ["podman", "exec", CONTAINER, "python", "-c", SEND.format(most=most)]
    return json.loads(lab.run(SENDER, words).splitlines()[-1])


def memory(kit, name):
    lines = kit.redis(BROKER, "info", "memory").splitlines()
    return next(int(line.split(":")[1]) for line in lines if line.startswith(f"{name}:"))


def state(lab):
    return lab.show(BROKER, ALARM, "ActiveState")


def counted(lab, word):
    """A number of the worker's status, such as "2 processes, 1 busy, 30 done"."""
    found = re.search(rf"(\d+) {word}", lab.show(SENDER, WORKER, "StatusText"))
    return int(found[1]) if found else 0


def said(lab, text):
    return lab.run(BROKER, f"journalctl -o cat -u {ALARM}").count(text)


@pytest.fixture
def small(kit):
    """A Redis with room for some 250 of the tasks."""
    kit.play()
    before = memory(kit, "maxmemory")
    room = memory(kit, "used_memory") + 40 * MB
    kit.redis(BROKER, "config", "set", "maxmemory", str(room))
    yield room
    kit.redis(BROKER, "config", "set", "maxmemory", str(before))


def test_a_full_redis_is_announced_refuses_tasks_and_loses_none(kit, lab, small):
    lab.run(BROKER, f"systemctl start {ALARM}")  # so far it is content
    status, before = kit.status(), counted(lab, "done") + 1
    assert not status["redis_memory"]["alarm"]
    # The worker lives on and takes nothing more: its pool is stopped in the middle of a task.
    lab.run(SENDER, ["podman", "exec", CONTAINER, "python", "-c", WAIT])
    lab.wait_for(lambda: counted(lab, "busy") == 1, 60, "it runs")
    pool = " ".join(map(str, kit.children(SENDER, CONTAINER)))
    lab.run(SENDER, f"kill -STOP {pool}")
    tasks = []
    # A misspelled queue.
    kit.redis(BROKER, "eval", "return redis.call('rpush', 'emials', string.rep('x', 3e6))", "0")
    while memory(kit, "used_memory") < 0.85 * small:
        first, error = send(lab, 20)
        assert error == ""
        tasks += first
    lab.wait_for(lambda: state(lab) == "failed", 90, "the alarm", host=BROKER, unit=ALARM)
    assert said(lab, " MB, the largest: add_queue (") >= 1
    assert said(lab, "MB), emials (1 messages, ") >= 1
    assert said(lab, "MB, no worker consumes it)") >= 1
    assert said(lab, ". Fix: declare the queue that no worker consumes, or ") >= 1
    seen = kit.status()["redis_memory"]
    assert seen["alarm"], seen
    # What senders had in their buffers is memory, too, until they have gone.
    assert 80 <= seen["percent"] < 100
    assert set(kit.play().changed.values()) == {0}

    kit.redis(BROKER, "del", "emials")
    more, error = send(lab, 1000)
    print(f"{len(tasks)} + {len(more)} acknowledged, then {error}")
    assert error.startswith("kombu.exceptions.OperationalError: ")
    assert "used memory > 'maxmemory'" in error
    assert len(more) < 1000
    tasks += more

    lab.run(SENDER, f"kill -CONT {pool}")
    results = [f"celery-task-meta-{task}" for task in tasks]
    lab.wait_for(
        lambda: kit.redis(BROKER, "exists", *results) == str(len(tasks)), 60, "a result of each"
    )
    lab.wait_for(lambda: kit.claimed(BROKER) == 0, 60, "all are acknowledged")
    assert not kit.status()["held"]
    # As often as they were acknowledged to the producer: none twice.
    lab.wait_for(
        lambda: counted(lab, "done") >= before + len(tasks), 60, "the worker has counted all"
    )
    assert counted(lab, "done") == before + len(tasks)
    assert kit.redis(BROKER, "llen", QUEUE) == "0"
    # The timer has proven itself above; the next minute need not be waited for.
    lab.run(BROKER, f"systemctl start {ALARM}")
    assert state(lab) == "inactive"
    assert said(lab, "% of its memory again") == 1
    lab.run(BROKER, f"systemctl start {ALARM}")
    assert said(lab, "% of its memory again") == 1


def test_a_redis_that_is_down_is_no_matter_of_the_alarm(kit, lab):
    lab.run(BROKER, "systemctl stop celery-redis")
    lab.run(BROKER, f"systemctl start {ALARM}")
    assert state(lab) == "inactive"
    lab.run(BROKER, "systemctl start celery-redis")
