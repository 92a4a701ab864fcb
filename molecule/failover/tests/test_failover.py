"""Three Redis, of which Sentinels elect the primary: what is acknowledged survives each of them."""

import itertools
import os
import pathlib
import re
import ssl
import threading
import time
from collections import Counter
from contextlib import contextmanager
from uuid import uuid4

import effects
import kit_fixtures
import pytest
from conftest import REDIS
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

WORKER, QUEUE = "work1", "add_queue"
ROTATE = "playbooks/rotate-secrets.yml"
# Of Redis, and of its Sentinel.
PORTS = (6379, 26379)
MARKDOWN = os.environ.get("FAILOVER_MARKDOWN", "")
MB = 1024 * 1024
# Between two tasks, in seconds: the CPUs belong to other checks, too.
PERIOD = 0.02 if MARKDOWN else 0.06
# What the defaults promise, measured by `make failover`. Other checks beside it make hosts slow.
BACK_SECONDS = 15 if MARKDOWN else 60


def primary(app, lab):
    """The host of the primary, as a majority of the Sentinels has it; none while they elect one."""
    try:
        address = app.backend.client.connection_pool.get_master_address()[0]
    except RedisError:
        return ""
    return next(host for host in lab.hosts if lab.address(host) == address)


def role(kit, host):
    return kit.redis(host, "role").splitlines()[0]


def follows(kit, lab, host):
    """Whether it is a replica, and has all that the primary has."""
    said = kit.redis(host, "role").splitlines()
    return said[0] == "slave" and said[3] == "connected"


class Load(threading.Thread):
    """Sends tasks until it is told to end, and notes which of them were acknowledged, and when."""

    def __init__(self, app):
        super().__init__(daemon=True)
        self.app, self.run_id = app, str(uuid4())
        self.enough = threading.Event()
        self.sent, self.acknowledged, self.refused = 0, {}, []
        self.begun = time.monotonic()

    def run(self):
        while not self.enough.wait(PERIOD):
            number, self.sent = self.sent, self.sent + 1
            try:
                self.app.send_task(
                    "metal_sample.tasks.record",
                    (self.run_id, number, 0.02),
                    queue=QUEUE,
                    ignore_result=True,
                    retry=False,
                )
                self.acknowledged[number] = time.monotonic()
            except (OperationalError, OSError) as error:
                self.refused.append(error)

    def wait(self, seconds):
        """Have it go on for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.is_alive()
            time.sleep(0.05)

    @property
    def pause(self):
        """For how long, at most, no task was acknowledged."""
        moments = sorted([self.begun, *self.acknowledged.values()])
        return max(later - one for one, later in itertools.pairwise(moments))


@pytest.fixture(scope="module")
def rows():
    """Rows of the table in docs/failover.md, which is written where one asks for it."""
    found = []
    yield found
    if MARKDOWN:
        path = pathlib.Path(kit_fixtures.ROOT, MARKDOWN)
        head = r"(\| What happens under load .*\n\|---.*\n)(?:\|.*\n)*"
        lines = "".join(f"| {' | '.join(map(str, row))} |\n" for row in found)
        path.write_text(re.sub(head, lambda one: one[1] + lines, path.read_text()))


@pytest.fixture
def load(app, kit, lab, rows):
    """A load; and at its end how many of the acknowledged tasks were never done, or twice."""

    @contextmanager
    def run(name, app=app):
        one = Load(app)
        one.start()
        one.wait(3)
        try:
            yield one
            one.wait(3)
        finally:
            one.enough.set()
            one.join(60)
        key = f"metal_sample.record:{one.run_id}"

        def done():
            lines = kit.redis(primary(app, lab), "smembers", key).splitlines()
            return effects.count(lines, one.sent, range(one.sent), one.begun), {
                int(line.split()[0]) for line in lines
            }

        def lost():
            return set(one.acknowledged) - done()[1]

        try:
            # A busy machine needs its time, as long as it goes on.
            while left := len(lost()):
                lab.wait_for(
                    lambda left=left: len(lost()) < left,
                    60,
                    f"more of {left} tasks that were acknowledged are done",
                    unit="celery-*",
                )
        finally:
            counted = done()[0]
            pauses = (f"{one.pause:.1f}", f"{counted.pause:.1f}")
            rows.append((name, len(one.acknowledged), len(lost()), counted.duplicates, *pauses))
            print(
                f"{name}: {len(one.acknowledged)} acknowledged, {len(lost())} lost, "
                f"{counted.duplicates} twice, {len(one.refused)} refused; nothing was acknowledged "
                f"for {one.pause:.1f} s, nothing was done for {counted.pause:.1f} s"
            )
            print(Counter(str(error) for error in one.refused))
        if max(one.pause, counted.pause) >= BACK_SECONDS:
            for host in REDIS:
                print(lab.journal(host, "celery-[rs]e*", 400))
        assert one.pause < BACK_SECONDS
        assert counted.pause < BACK_SECONDS

    return run


def all_follow(app, kit, lab):
    def complete():
        first = primary(app, lab)
        if not first:
            return False
        others = [host for host in REDIS if host != first]
        return role(kit, first) == "master" and all(follows(kit, lab, host) for host in others)

    lab.wait_for(complete, 60, "one primary, and two that follow it")


def invocations(lab):
    found = lab.invocation_ids(WORKER, "celery-*@*.service")
    assert len(found) == 2
    return found


def test_tasks_flow_and_nothing_changes_by_a_second_run(app, kit, lab):
    all_follow(app, kit, lab)
    report = kit.smoke(WORKER, f"celery-{QUEUE}-1", QUEUE)[QUEUE]
    assert report["missing"] == report["wrong"] == 0
    report = kit.smoke("red3", "celery-beside-1", "beside")["beside"]
    assert report["missing"] == report["wrong"] == 0
    before = {host: lab.invocation_ids(host, "celery*") for host in lab.hosts}
    assert set(kit.play().changed.values()) == {0}
    assert kit.play("--limit", WORKER).changed == {WORKER: 0}
    assert {host: lab.invocation_ids(host, "celery*") for host in lab.hosts} == before


def test_a_worker_beside_the_primary_reaches_it(app, kit, lab):
    """By the address of their host, from its own network."""
    all_follow(app, kit, lab)
    kit.redis("red3", "config", "set", "replica-priority", "1")
    try:
        if (first := primary(app, lab)) != "red3":
            lab.run(first, "systemctl restart celery-redis", timeout=120)
        lab.wait_for(lambda: primary(app, lab) == "red3", 60, "it is the primary")
        all_follow(app, kit, lab)
        report = kit.smoke("red3", "celery-beside-1", "beside")["beside"]
        assert report["missing"] == report["wrong"] == 0
    finally:
        kit.redis("red3", "config", "set", "replica-priority", "100")


def test_the_status_says_who_is_the_primary_and_who_follows(app, kit, lab):
    all_follow(app, kit, lab)
    first = primary(app, lab)
    said = kit.status()["redis_replication"]
    assert said["primary"] == f"{lab.address(first)}:{PORTS[0]}"
    others = [host for host in REDIS if host != first]
    assert (said["host"], said["absent"]) == (first, [])
    replicas = {one["host"]: one["address"] for one in said["replicas"]}
    assert replicas == {host: f"{lab.address(host)}:{PORTS[0]}" for host in others}
    assert {one["state"] for one in said["replicas"]} == {"online"}
    assert all(one["behind_bytes"] >= 0 and one["lag_seconds"] <= 3 for one in said["replicas"])
    assert (said["count"], said["required"], said["missing"]) == (2, 1, 0)
    lab.run(others[0], "systemctl stop celery-redis")
    try:
        assert kit.status()["redis_replication"]["absent"] == [others[0]]
    finally:
        lab.run(others[0], "systemctl start celery-redis")
    all_follow(app, kit, lab)


def test_what_the_plan_gives_is_what_each_has(kit, lab):
    for host in REDIS:
        plan = kit.plan(host)
        for unit, share in (("celery-redis", plan["redis"]), ("celery-sentinel", plan["sentinel"])):
            assert lab.show(host, unit, "MemoryMax") == str(share["memory_mb"] * MB)
        # At its most so far, a third of it was free.
        pid = lab.run(host, "podman inspect --format '{{.State.Pid}}' celery-sentinel").strip()
        peak = re.search(r"VmHWM:\s+(\d+) kB", lab.run(host, ["cat", f"/proc/{pid}/status"]))
        assert int(peak[1]) * 1024 * 3 / 2 < plan["sentinel"]["memory_mb"] * MB


def test_nobody_else_reaches_redis_or_a_sentinel(lab):
    code = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)"
    for host, port in itertools.product(REDIS, PORTS):
        line = ["python3", "-c", code, lab.address(host), str(port)]
        assert lab.succeeds(WORKER, line)
        assert not lab.succeeds("red4", line)


def test_a_part_of_those_that_elect_is_no_run(kit, lab):
    played = kit.play("--limit", REDIS[0], fails=True)
    assert "red2, red3 would keep what the other hosts of Redis have no more" in played.said


def test_a_primary_that_loses_its_power_is_followed_by_another(app, kit, lab, load):
    workers, before = invocations(lab), primary(app, lab)
    with load("the primary's host loses its power") as one:
        lab.cut_power(before)
        try:
            lab.wait_for(lambda: primary(app, lab) not in ("", before), 30, "another is elected")
            one.wait(10)
        finally:
            lab.start(before)
    all_follow(app, kit, lab)
    assert primary(app, lab) != before
    assert invocations(lab) == workers


def test_a_primary_that_is_killed_is_back_or_followed(app, kit, lab, load):
    with load("Redis is killed, and starts again"):
        host = primary(app, lab)
        lab.run(host, f"kill -KILL {kit.main_process(host, 'celery-redis')}")
        lab.wait_for(lambda: role(kit, host), 60, "it is back")
    all_follow(app, kit, lab)


@contextmanager
def apart(lab, host, others):
    """Cut a host off from others, and from nobody else."""
    addresses = ", ".join(lab.address(other) for other in others)
    rules = "add table inet apart; "
    for hook, side in (("input", "saddr"), ("output", "daddr")):
        rules += f"add chain inet apart {hook} {{ type filter hook {hook} priority -300; }}; "
        rules += f"add rule inet apart {hook} ip {side} {{ {addresses} }} drop; "
    lab.run(host, ["nft", rules])
    try:
        yield
    finally:
        lab.run(host, "nft delete table inet apart")


def test_a_primary_that_is_cut_off_from_the_others_is_left(app, kit, lab, load):
    """Both halves are alive, and workers and producers reach both."""
    workers, before = invocations(lab), primary(app, lab)
    with load("the primary is cut off from the other Redis hosts, and workers reach both") as one:
        with apart(lab, before, [host for host in REDIS if host != before]):
            lab.wait_for(lambda: primary(app, lab) not in ("", before), 30, "another is elected")
            one.wait(10)
            assert role(kit, before) == "master"
        one.wait(5)
    all_follow(app, kit, lab)
    assert invocations(lab) == workers


def test_a_stop_that_is_meant_is_no_pause(app, kit, lab, load):
    before = primary(app, lab)
    with load("`systemctl restart celery-redis`") as one:
        lab.run(before, "systemctl restart celery-redis", timeout=90)
    assert primary(app, lab) != before
    assert one.pause < BACK_SECONDS / 2
    all_follow(app, kit, lab)


def sentinel(kit, lab, host, *words):
    """What redis-cli prints for admin's command to the Sentinel of a host."""
    command = ["podman", "exec", "-i", "celery-sentinel", "sh", "-c"]
    script = 'read -r REDISCLI_AUTH; export REDISCLI_AUTH; exec redis-cli --raw "$@"'
    options = ["-s", "/run/sentinel/sentinel.sock", "--user", "admin", "--no-auth-warning"]
    line = [*command, script, "redis-cli", *options, *words]
    return lab.run(host, line, stdin=kit.password(host, "admin") + "\n")


def sentinels_known(kit, lab, host):
    """How many other Sentinels the one of a host knows, and how many replicas."""
    said = sentinel(kit, lab, host, "sentinel", "master", "celery").splitlines()
    fields = dict(zip(said[::2], said[1::2], strict=True))
    return int(fields["num-other-sentinels"]), int(fields["num-slaves"])


def test_a_replica_comes_and_goes_by_a_change_of_the_inventory(app, kit, lab, load, tmp_path):
    wide = kit.inventory_with_redis(tmp_path / "wide", *REDIS, "red4")
    if primary(app, lab) == REDIS[0]:  # it learns from the others who is
        lab.run(REDIS[0], "systemctl restart celery-redis", timeout=90)
        all_follow(app, kit, lab)
    with load("a replica comes and goes"):
        kit.play(inventory=wide)
        lab.wait_for(lambda: follows(kit, lab, "red4"), 60, "it follows", host="red4")
        for host in (*REDIS, "red4"):
            lab.wait_for(
                lambda host=host: sentinels_known(kit, lab, host) == (3, 3), 30, "all know it"
            )
        if primary(app, lab) == "red4":
            played = kit.play(fails=True)
            assert "is the primary of Redis, and no host of the group redis has" in played.said
            lab.run("red4", "systemctl restart celery-redis", timeout=90)
            lab.wait_for(lambda: follows(kit, lab, "red4"), 60, "it follows", host="red4")
        # It runs on, and has no part in it: no other is elected but by a majority of the rest.
        kit.play()
        for host in REDIS:
            lab.wait_for(
                lambda host=host: sentinels_known(kit, lab, host) == (2, 2), 30, "it is forgotten"
            )
        assert not follows(kit, lab, "red4")
    all_follow(app, kit, lab)
    away = {"playbook": "playbooks/remove.yml", "remove_confirmed": True}
    kit.play("--limit", "red4", inventory=wide, **away)
    assert kit.services("red4") == set()


def presented(lab, host):
    """The certificates that Redis and its Sentinel show, to whoever asks."""
    return [ssl.get_server_certificate((lab.address(host), port), timeout=10) for port in PORTS]


def test_a_certificate_that_ends_is_replaced_by_the_timer(app, kit, lab):
    all_follow(app, kit, lab)
    host = primary(app, lab)
    before = presented(lab, host)
    kit.make_it_end_soon(host, "celery-redis-certificate-server")
    lab.run(host, "systemctl start celery-redis-certificate", timeout=120)
    after = presented(lab, host)
    assert after[0] == after[1] != before[0] == before[1]
    all_follow(app, kit, lab)
    # Nor is anything left to do of the run before, by which a replica went.
    assert set(kit.play().changed.values()) == {0}


def test_a_backup_comes_back_on_all_of_them(app, kit, lab):
    all_follow(app, kit, lab)
    for _ in range(20):
        app.send_task("metal_sample.tasks.whoami", queue="parked")
    lab.wait_for(lambda: kit.redis(REDIS[0], "llen", "parked") == "20", 10, "it has them")
    lab.run(REDIS[0], "systemctl start celery-redis-backup", timeout=120)
    kit.redis(primary(app, lab), "del", "parked")
    listed = kit.play(playbook="playbooks/restore.yml").output
    chosen = re.findall(r"redis-[0-9TZ]+\.rdb", listed)[0]
    restore = {"restore_file": chosen, "restore_confirmed": REDIS[0]}
    kit.play(playbook="playbooks/restore.yml", **restore)
    all_follow(app, kit, lab)
    for host in REDIS:
        assert kit.redis(host, "llen", "parked") == "20"
    report = kit.smoke(WORKER, f"celery-{QUEUE}-1", QUEUE)[QUEUE]
    assert report["missing"] == report["wrong"] == 0
    kit.redis(primary(app, lab), "del", "parked")


def test_passwords_and_certificates_change_on_all_of_them_under_load(app, new_app, kit, lab, load):
    users = ("worker", "replica", "sentinel")
    old = {user: kit.password(REDIS[0], user) for user in users}
    shown = [presented(lab, host) for host in REDIS]
    with load("`rotate-secrets.yml -e rotate_certificates=true`"):
        kit.play(playbook=ROTATE, rotate_certificates=True)
    new = {user: kit.password(REDIS[0], user) for user in users}
    assert kit.password(WORKER) == new["worker"]
    for user, host in itertools.product(users, REDIS):
        assert kit.password(host, user) == new[user] != old[user]
        assert kit.redis(host, "auth", user, new[user]) == "OK"
        assert kit.redis(host, "auth", user, old[user]).startswith("WRONGPASS")
        if user != "replica":
            assert sentinel(kit, lab, host, "auth", user, new[user]).strip() == "OK"
            assert sentinel(kit, lab, host, "auth", user, old[user]).startswith("WRONGPASS")
    all_follow(app, kit, lab)
    assert set(kit.play().changed.values()) == {0}
    # They still elect another.
    before = primary(app, lab)
    lab.run(before, "systemctl restart celery-redis", timeout=90)
    all_follow(app, kit, lab)
    assert primary(app, lab) != before
    app_now = new_app()
    with load("`rotate-secrets.yml -e rotate_finish=true`", app_now):
        kit.play(playbook=ROTATE, rotate_finish=True)
    all_follow(app_now, kit, lab)
    assert all(
        one not in before
        for host, before in zip(REDIS, shown, strict=True)
        for one in presented(lab, host)
    )
    # Whoever has only what was given out before is nobody now.
    with pytest.raises((OperationalError, OSError)):
        app.send_task("metal_sample.tasks.whoami", queue=QUEUE, ignore_result=True, retry=False)
    assert set(kit.play().changed.values()) == {0}
