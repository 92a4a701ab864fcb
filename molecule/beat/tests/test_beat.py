"""One schedule for two hosts: each due time is sent once, whatever happens to who sends it."""

import itertools
import json
import re
import time

BROKER, HOSTS = "broker", ["one", "two"]
UNIT, CONTAINER = "celery-beat.service", "celery-beat"
# The scenario's interval in seconds, and the lock's timeout.
EVERY, LOCK = 2, 30
# Far from the lock's timeout.
SOON = LOCK / 3
# At one moment.
BOTH = """
return {redis.call('HGET', 'celery-metal.beat', 'heartbeat'),
        redis.call('LLEN', 'metal_sample.heartbeats')}
"""
# On a file system whose owners can be mapped.
SCHEDULE = "/var/lib/containers/schedule"
DRAIN, UNDRAIN = "playbooks/drain.yml", "playbooks/undrain.yml"


def everything(host):
    """All that runs there: a queue of the name "beat" has its own units, and one host no queue."""
    return {"one": {UNIT, "celery-beat@1.service"}, "two": {UNIT}}[host]


def sent(kit):
    """Moment of each heartbeat, by the id of its task; the worker runs them as they come."""
    lines = kit.redis(BROKER, "lrange", "metal_sample.heartbeats", "0", "-1").splitlines()
    return {task: float(moment) for moment, task in map(str.split, lines)}


def words(lab, host):
    # systemd keeps the last words of a unit that is gone.
    active = lab.show(host, UNIT, "ActiveState") == "active"
    return lab.show(host, UNIT, "StatusText") if active else ""


def holder(lab):
    """The host that schedules, once it is known, and the other."""

    def found():
        holding = [host for host in HOSTS if words(lab, host).startswith("schedule: holds")]
        return holding if len(holding) == 1 else []

    host = lab.wait_for(found, 60, "one holds the lock", unit=UNIT)[0]
    return host, next(other for other in HOSTS if other != host)


def holds(lab, host, seconds):
    """Wait until that host schedules; for how long it took."""
    begun = time.monotonic()
    lab.wait_for(
        lambda: words(lab, host).startswith("schedule: holds"),
        seconds,
        "the lock is taken over",
        host=host,
        unit=UNIT,
    )
    return time.monotonic() - begun


def more(kit, lab, number=3):
    before = set(sent(kit))
    lab.wait_for(lambda: len(set(sent(kit)) - before) >= number, 90, "heartbeats", unit=UNIT)


def counted(kit, lab, late=0.7):
    """What was written of the entry is what was sent; none came before its time.

    For how long none came, at the most, in seconds. `late` is how much later than the one before
    it a worker may begin a task.
    """

    def same():
        record, number = kit.redis(BROKER, "eval", BOTH, "0").splitlines()
        return json.loads(record)["total_run_count"] == int(number)

    lab.wait_for(same, 10, "as many heartbeats as were written down")
    gaps = [later - one for one, later in itertools.pairwise(sorted(sent(kit).values()))]
    assert min(gaps) > EVERY - late, gaps
    return max(gaps)


def begin_anew(kit, lab):
    """Forget what was sent, with the schedule standing still."""
    for host in HOSTS:
        lab.run(host, f"systemctl stop {UNIT}")
    lab.wait_for(lambda: kit.redis(BROKER, "llen", "add_queue") == "0", 30, "an empty queue")
    kit.redis(BROKER, "del", "metal_sample.heartbeats", "celery-metal.beat")
    for host in HOSTS:
        lab.run(host, f"systemctl start {UNIT}")
    more(kit, lab)
    return holder(lab)


def test_one_of_the_two_schedules(kit, lab):
    begin_anew(kit, lab)
    more(kit, lab, 5)
    assert counted(kit, lab) < EVERY + 2
    assert UNIT not in kit.services(BROKER)
    for host in HOSTS:
        assert kit.services(host) == everything(host)
        assert lab.show(host, UNIT, "NRestarts") == "0"
        assert kit.plan(host)["beat"]["memory_mb"] == kit.plan(host)["totals"]["beat_mb"] == 150
    assert kit.plan(BROKER)["beat"] is None


def test_status_says_who_schedules(kit, lab):
    host, other = holder(lab)
    found = kit.status()["beat"]
    assert re.match(r"holds the lock, 1 entry, next heartbeat at 20", found[host])
    assert found[other] == "stands by, another Beat holds the lock"


def test_a_container_without_rights_and_without_a_writable_disk(lab):
    for host in HOSTS:
        found = json.loads(lab.run(host, f"podman inspect {CONTAINER}"))[0]
        assert found["HostConfig"]["ReadonlyRootfs"]
        assert found["EffectiveCaps"] in (None, [])
        assert found["Config"]["User"] == "999:999"


def test_a_planned_stop_moves_it_at_once(kit, lab):
    host, other = begin_anew(kit, lab)
    lab.run(host, f"systemctl stop {UNIT}")
    # It looks each second, and does not wait until the lock has run out.
    holds(lab, other, SOON)
    assert lab.show(host, UNIT, "Result") == "success"
    more(kit, lab)
    assert counted(kit, lab) < SOON
    lab.run(host, f"systemctl start {UNIT}")
    assert words(lab, host) == "schedule: stands by, another Beat holds the lock"
    # It returns before the units of the target have stopped.
    lab.run(other, "systemctl restart celery.target", timeout=120)
    holds(lab, host, 60)
    lab.wait_for(lambda: lab.show(other, UNIT, "ActiveState") == "active", 60, "it stands by")
    more(kit, lab)
    # On one of the two hosts the target's worker begins anew, too, and then has to catch up.
    assert counted(kit, lab, late=EVERY) < SOON


def test_a_host_that_loses_its_power_is_followed(kit, lab):
    host, other = begin_anew(kit, lab)
    lab.cut_power(host)
    holds(lab, other, LOCK + 10)
    more(kit, lab)
    assert EVERY < counted(kit, lab) < EVERY + LOCK + 5
    lab.start(host)
    lab.wait_for(lambda: "stands by" in words(lab, host), 90, "it stands by", host=host, unit=UNIT)
    more(kit, lab)
    counted(kit, lab)


def test_one_that_is_killed_is_back_or_followed(kit, lab):
    host, _ = begin_anew(kit, lab)
    before = lab.show(host, UNIT, "InvocationID")
    lab.run(host, f"kill -KILL {kit.main_process(host, CONTAINER)}")
    lab.wait_for(lambda: lab.show(host, UNIT, "InvocationID") != before, 60, "a successor")
    more(kit, lab)
    assert counted(kit, lab) < EVERY + LOCK + 5


def test_one_that_was_stopped_longer_than_its_lock_sends_nothing(kit, lab):
    host, other = begin_anew(kit, lab)
    main = kit.main_process(host, CONTAINER)
    lab.run(host, f"kill -STOP {main}")
    holds(lab, other, LOCK + 10)
    # Before systemd's watchdog, so that it goes on.
    lab.run(host, f"kill -CONT {main}")
    lab.wait_for(lambda: "stands by" in words(lab, host), 60, "it stands by", host=host, unit=UNIT)
    more(kit, lab)
    assert EVERY < counted(kit, lab) < EVERY + LOCK + 5


def test_one_that_is_cut_off_from_redis_sends_nothing(kit, lab):
    host, other = begin_anew(kit, lab)
    before = lab.show(host, UNIT, "InvocationID")
    with lab.cut_off(host, BROKER, 6379):
        holds(lab, other, LOCK + 15)
        lab.wait_for(
            lambda: "waiting for the broker" in words(lab, host), 30, "it knows", host=host
        )
        more(kit, lab)
    lab.wait_for(lambda: "stands by" in words(lab, host), 60, "it stands by", host=host, unit=UNIT)
    more(kit, lab)
    assert counted(kit, lab) < EVERY + LOCK + 10
    assert lab.show(host, UNIT, "InvocationID") == before


def test_redis_that_starts_anew_is_waited_for(kit, lab):
    begin_anew(kit, lab)
    before = {host: lab.show(host, UNIT, "InvocationID") for host in HOSTS}
    lab.run(BROKER, "systemctl restart celery-redis.service", timeout=120)
    more(kit, lab)
    # The worker has waited for Redis as well, and longer.
    counted(kit, lab, late=EVERY)
    assert {host: lab.show(host, UNIT, "InvocationID") for host in HOSTS} == before


def test_a_reboot_moves_it(kit, lab):
    host, other = begin_anew(kit, lab)
    lab.reboot(host)
    assert holder(lab)[0] == other
    lab.wait_for(lambda: "stands by" in words(lab, host), 90, "it stands by", host=host, unit=UNIT)
    more(kit, lab)
    assert counted(kit, lab) < EVERY + 5


def test_a_run_with_nothing_to_do_touches_nothing(kit, lab):
    before = {host: lab.invocation_ids(host, "celery*") for host in lab.hosts}
    assert set(kit.play().changed.values()) == {0}
    assert {host: lab.invocation_ids(host, "celery*") for host in lab.hosts} == before


def test_a_drained_host_does_not_schedule(kit, lab):
    host, other = begin_anew(kit, lab)
    kit.play("--limit", host, playbook=DRAIN)
    assert holder(lab)[0] == other
    assert kit.services(host) == set()
    assert kit.status()["beat"][host] == "drained"
    lab.run(host, f"systemctl start {UNIT}")
    assert kit.services(host) == set()
    kit.play("--limit", host, playbook=UNDRAIN)
    assert kit.services(host) == everything(host)
    more(kit, lab)
    assert counted(kit, lab) < EVERY + 2


def test_another_schedule_is_taken_over_by_a_run(kit, lab):
    begin_anew(kit, lab)
    record = json.loads(kit.redis(BROKER, "hget", "celery-metal.beat", "heartbeat"))
    kit.play(celery_worker_environment={"METAL_SAMPLE_HEARTBEAT_SECONDS": "4"})
    more(kit, lab, 4)
    newest = sorted(sent(kit).values())[-3:]
    assert all(3.3 < later - one < 5 for one, later in itertools.pairwise(newest)), newest
    after = json.loads(kit.redis(BROKER, "hget", "celery-metal.beat", "heartbeat"))
    assert after["total_run_count"] > record["total_run_count"]
    kit.play()


def test_a_schedule_that_is_broken_goes_back_alone(kit, lab):
    """Also on the host that stands by, which would schedule only later."""
    begin_anew(kit, lab)
    seconds = "METAL_SAMPLE_HEARTBEAT_SECONDS"
    new = {"celery_worker_environment": {seconds: str(EVERY), "MARK": "new"}}
    new |= {"celery_worker_secrets": {"TOKEN": "hush", "OTHER": "hush"}}
    said = kit.play(fails=True, **new, celery_beat_environment={seconds: "often"}).said
    assert "could not convert string to float: 'often'" in said
    assert "The workers have come up, and stay on app:" in said
    assert "Beat alone is back in its previous version, on app:" in said
    more(kit, lab)
    # The worker, too, was replaced meanwhile.
    assert counted(kit, lab, late=EVERY) < EVERY + 15
    assert kit.environment("one", "celery-beat-1")["MARK"] == "new"
    for host in HOSTS:
        assert "MARK" not in kit.environment(host, CONTAINER)
        lab.run(host, f"mkdir -p {SCHEDULE} && chown 999:999 {SCHEDULE}")
    # The next run completes it, here with what is of Beat alone.
    own = {"celery_beat_environment": {"MARK": "Beat's"}, "celery_beat_secrets": ["TOKEN"]}
    own["celery_beat_volumes"] = [f"{SCHEDULE}:/schedule:idmap"]
    own["celery_beat_quadlet"] = {"Service": {"Nice": -5}}
    kit.play(**new, **own)
    for host in HOSTS:
        assert kit.environment(host, CONTAINER)["MARK"] == "Beat's"
        look = "ls /run/secrets | grep -v redis; touch /schedule/here"
        assert lab.run(host, ["podman", "exec", CONTAINER, "sh", "-c", look]).split() == ["TOKEN"]
        assert lab.run(host, f"stat -c %u {SCHEDULE}/here").strip() == "999"
        assert lab.show(host, UNIT, "Nice") == "-5"
    kit.play()


def test_other_hosts_and_none(kit, lab):
    begin_anew(kit, lab)
    # The first two of the group, and one of them alone.
    kit.play(celery_beat_hosts=["broker", "one"])
    assert UNIT in kit.services(BROKER)
    assert kit.services("two") == set()
    assert not lab.succeeds("two", f"test -e /run/systemd/generator/{UNIT}")
    more(kit, lab)
    assert counted(kit, lab) < EVERY + 5
    kit.play(celery_beat=False)
    for host in lab.hosts:
        assert UNIT not in kit.services(host)
    assert kit.redis(BROKER, "exists", "celery-metal.beat.lock") == "0"
    assert set(kit.play(celery_beat=False).changed.values()) == {0}
    kit.play()
    more(kit, lab)


def test_removal_takes_it_along(kit, lab):
    kit.play(playbook="playbooks/remove.yml", remove_confirmed=True)
    for host in lab.hosts:
        assert lab.run(host, "systemctl list-units --all --plain --no-legend 'celery*'") == ""
        assert lab.run(host, "podman ps -aq") == ""
        left = "find /etc /run -xdev -name '*celery*'"
        assert lab.run(host, left).split() == []
