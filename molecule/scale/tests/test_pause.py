"""A paused queue stays so, whatever is restarted or deployed; no task is lost or doubled."""

HOST, TOOL = "metal", "playbooks/queues.yml"
UNIT, KEY = "celery-mail@1.service", "metal_sample.record:paused"
ADD = {"name": "add_queue", "concurrency": 1}
MULTIPLY = {"name": "multiply_queue", "concurrency": 2, "workload": "io"}
MAIL = {"name": "mail", "concurrency": 1, "tmp_mb": 4}
# As many seconds of work as a busy machine may need to pause the queue.
TASKS = 20
SEND = f"""
from celery_metal_runtime import configure
from metal_sample.celery import app
from metal_sample.tasks import record

configure(app)
record.apply_async(("paused", 0, 0), queue="mail", countdown=15)
for number in range(1, {TASKS}):
    record.apply_async(("paused", number, 3), queue="mail", priority=number % 10)
"""


def test_a_queue_is_paused_over_restarts_and_a_deploy_and_every_task_done_once(kit, lab):
    kit.ensure(celery_queues=[ADD, MULTIPLY, MAIL])
    kit.redis(HOST, "del", KEY)

    def done():
        return sorted(int(one.split()[0]) for one in kit.redis(HOST, "smembers", KEY).splitlines())

    def is_idle():
        return kit.claimed(HOST) == 0 and "0 busy" in lab.show(HOST, UNIT, "StatusText")

    pause = {"queues_action": "pause", "queues_from": "mail", "queues_reason": "mail is down"}
    assert "mail would be paused" in kit.play("--check", playbook=TOOL, **pause).said
    assert kit.redis(HOST, "exists", "celery-metal.paused") == "0"
    lab.run(HOST, ["podman", "exec", "celery-mail-1", "python", "-c", SEND])
    lab.wait_for(lambda: "1 busy" in lab.show(HOST, UNIT, "StatusText"), 20, "a task", unit=UNIT)
    said = kit.play(playbook=TOOL, **pause).said
    assert "workers that have confirmed: 1 of 1" in said
    # It is on the disk by then.
    assert "power cut" not in said
    begun = len(done())
    # What runs is finished, and the task with a countdown goes back.
    lab.wait_for(is_idle, 60, "nothing is claimed", unit=UNIT)
    finished = done()
    assert begun <= len(finished) <= begun + 1 < TASKS

    lab.run(HOST, ["systemctl", "restart", "celery-redis.service", UNIT])
    # A deploy replaces the worker, and proves the new one by a task of its own.
    played = kit.play(celery_queues=[ADD, MULTIPLY, {**MAIL, "concurrency": 2}])
    assert played.changed[HOST] > 0
    end = played.said.partition("SUMMARY ")[2]
    assert "queue mail is paused since " in end
    assert "playbooks/queues.yml -e queues_action=resume -e queues_from=mail" in end
    assert len(kit.children(HOST, "celery-mail-1")) == 2
    status = kit.status()
    (row,) = [one for one in status["workers"] if one["queue"] == "mail"]
    assert (row["state"], row["waiting"]) == ("paused", TASKS - len(finished))
    (paused,) = status["paused"]
    assert (paused["name"], paused["reason"]) == ("mail", "mail is down")
    assert paused["by"]
    assert paused["at"] is not None
    assert lab.show(HOST, UNIT, "StatusText").endswith("0 done, paused")
    # A run with nothing to do is green, and changes nothing.
    again = kit.play(celery_queues=[ADD, MULTIPLY, {**MAIL, "concurrency": 2}])
    assert (again.changed[HOST], done()) == (0, finished)

    resume = {"queues_action": "resume", "queues_from": "mail"}
    assert "mail is resumed" in kit.play(playbook=TOOL, **resume).said
    lab.wait_for(lambda: len(done()) >= TASKS, 90, "all are done", unit=UNIT)
    lab.wait_for(is_idle, 60, "all are acknowledged", unit=UNIT)
    # An element for each execution.
    assert done() == list(range(TASKS))
    assert kit.status()["paused"] == []
    assert kit.redis(HOST, "exists", "celery-metal.dead:mail") == "0"
