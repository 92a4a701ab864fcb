"""Each user of Redis can do what Celery does for it, and nothing else; passwords change."""

import os
import pathlib
import shlex
import stat
import subprocess
import sys
import time
from collections import Counter
from uuid import uuid4

import pytest
from celery import chain, chord, group, signature
from celery.exceptions import TaskRevokedError
from programs import BROKER, PATIENCE, ROTATE, USERS, WORKER, Load, Pusher, add
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError
from web import Web

ROOT = pathlib.Path(__file__).resolve().parents[3]
OUTSIDE = "playbooks/producer.yml"
SEND = """
import os; from celery import Celery
app = Celery("shop", broker={url}, backend={url})
print(app.send_task("metal_sample.tasks.add", (20, 22), queue="add_queue").get(timeout=30))
"""


@pytest.fixture
def refused(client_of):
    """What Redis has refused since the last look: user, and what it wanted."""
    admin = client_of("admin")

    def look():
        logged = admin.acl_log(1000)
        admin.acl_log_reset()
        return [(one["username"], one["object"]) for one in logged]

    look()
    return look


def test_a_producer_can_do_all_that_celery_does_for_it(app_of, refused):
    app = app_of("producer")
    assert add(app, 1, 2).apply_async().get(timeout=PATIENCE) == 3
    assert add(app, 2, 2).apply_async(countdown=1).get(timeout=PATIENCE) == 4
    assert add(app, 3, 2).apply_async(priority=6).get(timeout=PATIENCE) == 5
    assert chain(add(app, 1, 2), add(app, 3)).apply_async().get(timeout=PATIENCE) == 6
    body = signature("metal_sample.tasks.fingerprint", args=("HOME",), app=app, immutable=True)
    work = chord([add(app, n, n) for n in range(5)], body.set(queue="add_queue"), app=app)
    assert len(work.apply_async().get(timeout=PATIENCE)) == 64
    together = group(add(app, n, n) for n in range(5)).apply_async()
    together.save()
    again = app.GroupResult.restore(together.id)
    assert again.get(timeout=PATIENCE) == [0, 2, 4, 6, 8]
    again.delete()
    late = add(app, 1, 1).apply_async(countdown=2)
    late.revoke()
    with pytest.raises(TaskRevokedError):
        late.get(timeout=PATIENCE)
    late.forget()
    assert refused() == []


def test_a_monitor_sees_events_and_asks_workers(app_of, lab, refused):
    app = app_of("monitor")
    nodes = {f"{queue}-1@{WORKER}" for queue in ("add_queue", "long")}
    inspect = app.control.inspect(timeout=2)
    for question in (inspect.ping, inspect.active, inspect.stats, inspect.registered):
        assert question().keys() == nodes
    app.control.shutdown()
    assert inspect.ping().keys() == nodes
    command = "podman exec celery-add_queue-1 python -m celery_metal_runtime control"
    lab.run(WORKER, f"{command} enable_events")
    kinds = set()
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, {"*": lambda event: kinds.add(event["type"])})
        # It ends when the receiver listens, which begins below.
        done = app_of("producer").send_task("metal_sample.tasks.wait", (2,), queue="add_queue")
        deadline = time.monotonic() + PATIENCE
        for _ in receiver.itercapture(limit=None, timeout=PATIENCE, wakeup=False):
            if "task-succeeded" in kinds or time.monotonic() > deadline:  # workers beat on
                break
    assert {"task-succeeded", "worker-heartbeat"} <= kinds
    assert done.get(timeout=PATIENCE) == 2
    lab.run(WORKER, f"{command} disable_events")
    assert refused() == []


def test_workers_and_status_can_do_all_that_they_do(kit, lab, refused):
    reports = kit.smoke(WORKER, "celery-add_queue-1", "add_queue", "long")
    assert all(report["missing"] == report["wrong"] == 0 for report in reports.values())
    for words in ("inspect ping", "status", "purge -f -Q nobody"):
        command = f"podman exec celery-add_queue-1 python -m celery_metal_runtime {words}"
        lab.run(WORKER, command)
    assert kit.status()["redis_error"] == ""
    assert refused() == []


FOR_NOBODY = (
    *(("flushall",), ("flushdb",), ("keys", "*"), ("scan", "0"), ("config", "get", "*")),
    *(("config", "set", "maxmemory", "1"), ("acl", "list"), ("acl", "log"), ("monitor",)),
    *(("shutdown", "nosave"), ("replicaof", "10.0.0.1", "1")),
    *(("save",), ("bgrewriteaof",), ("client", "list"), ("client", "kill", "user", "worker")),
    *(("module", "list"), ("function", "list"), ("pubsub", "channels"), ("randomkey",)),
    *(
        ("rename", "add_queue", "x"),
        ("migrate", "10.0.0.1", "1", "k", "0", "1"),
        ("swapdb", "0", "1"),
    ),
    *(
        ("get", "elsewhere"),
        ("set", "elsewhere", "1"),
        ("hgetall", "elsewhere"),
        ("dump", "add_queue"),
    ),
)
FOR_NO_PRODUCER = (
    *(("eval", "return 1", "0"), ("evalsha", "0" * 40, "0"), ("script", "load", "return 1")),
    *(("psubscribe", "celery-task-meta-*"), ("psubscribe", "*"), ("subscribe", "/0.celeryev")),
    *(("lrange", "add_queue", "0", "-1"), ("rpop", "add_queue"), ("del", "add_queue")),
    *(
        ("lrem", "add_queue", "0", "x"),
        ("set", "celery-task-meta-x", "forged"),
        ("hgetall", "unacked"),
    ),
    *(("hgetall", "celery-metal.nodes"), ("lrange", "celery-metal.held:x:y", "0", "-1")),
)
FOR_NO_MONITOR = (
    *(("lpush", "add_queue", "forged"), ("rpop", "add_queue"), ("del", "add_queue")),
    *(("lrange", "add_queue", "0", "-1"), ("get", "celery-task-meta-x"), ("eval", "return 1", "0")),
    *(
        ("psubscribe", "celery-task-meta-*"),
        ("subscribe", "celery-task-meta-x"),
        ("psubscribe", "*"),
    ),
    *(("publish", "celery-task-meta-x", "forged"), ("hset", "celery-metal.nodes", "a", "b")),
    *(("script", "load", "return 1"), ("publish", "/0.celery.pidbox", "null")),
    *(("sadd", "_kombu.binding.add_queue", "x"), ("del", "_kombu.binding.add_queue")),
)


@pytest.mark.parametrize(
    ("user", "commands"),
    [
        ("worker", FOR_NOBODY),
        ("producer", FOR_NOBODY + FOR_NO_PRODUCER),
        ("monitor", FOR_NOBODY + FOR_NO_MONITOR),
    ],
)
def test_what_a_user_may_not_is_refused_and_logged(client_of, refused, user, commands):
    client = client_of(user)
    for words in commands:
        with pytest.raises(NoPermissionError):
            client.execute_command(*words)
        logged = refused()
        assert [one for one, _ in logged] == [user], (words, logged)


def test_who_does_not_log_in_or_has_a_wrong_password_is_refused(
    kit, client_of, lab, refused, tmp_path
):
    tls = kit.certificates(BROKER, tmp_path)
    nobody = Redis(host=lab.address(BROKER), ssl=True, **tls)
    with pytest.raises(AuthenticationError):
        nobody.ping()
    for user in (*USERS, "default", "stranger"):
        with pytest.raises(AuthenticationError):
            client_of(user, "wrong").ping()
        assert {one for one, _ in refused()} == {user}


def test_no_password_is_in_a_unit_a_process_or_a_journal(kit, lab):
    for host in (BROKER, WORKER):
        seen = lab.run(
            host,
            "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n';"
            "systemctl cat 'celery*'; journalctl --boot; podman inspect $(podman ps -q);"
            "cat /etc/celery-metal/*",
        )
        assert "celery-redis" in seen
        for user in USERS:
            assert kit.password(BROKER, user) not in seen
        for name in ("authority", *(f"certificate-{one}" for one in ("server", *USERS))):
            key = kit.secret(BROKER, f"celery-redis-{name}").partition("PRIVATE KEY-----\n")[2]
            assert key.splitlines()[0] not in seen
    # A host has only what its workers need.
    kept = lab.run(WORKER, "podman secret ls --noheading --format '{{.Name}}'").split()
    own = ["celery-redis-ca", "celery-redis-certificate-worker", "celery-redis-worker"]
    assert sorted(kept) == own


@pytest.fixture
def web(lab):
    """A web process on a host of celery_producers, and somebody who asks it all the time."""
    found = Web(lab)
    found.install()
    yield found
    found.remove()


def test_passwords_change_under_load_and_no_task_is_lost(kit, lab, app_of, client_of, web):
    old = {user: kit.password(BROKER, user) for user in USERS}
    redis = lab.invocation_ids(BROKER, "celery-*.service")
    workers = lab.invocation_ids(WORKER, "celery-*.service")
    files = lab.run(WORKER, "sha256sum /etc/celery-producer/*").splitlines()
    earlier = web.process
    load = Load(app_of("producer"))
    load.start()
    web.start()
    try:
        reload = ["systemctl reload shop-web"]
        played = kit.play(playbook=ROTATE, celery_producer_reload=reload)
    finally:
        counted = load.end(kit, lab)
        of_web = web.end(kit)
    print(counted, of_web)
    assert web.errors == []
    assert (len(web.sent) > 20, of_web.duplicates) == (True, 0)
    assert web.process != earlier
    changed = {*files} ^ {*lab.run(WORKER, "sha256sum /etc/celery-producer/*").splitlines()}
    assert {line.split()[1] for line in changed} == {"/etc/celery-producer/password"}
    assert counted.sent > 100
    assert (counted.lost, counted.duplicates) == (0, 0)
    assert lab.invocation_ids(BROKER, "celery-*.service") == redis
    now = lab.invocation_ids(WORKER, "celery-*.service")
    assert now.keys() == workers.keys()
    assert not set(now.values()) & set(workers.values())

    new = {user: kit.password(BROKER, user) for user in USERS}
    assert not set(new.values()) & set(old.values())
    assert kit.password(WORKER) == new["worker"]
    for user in ("admin", "monitor", "worker"):
        with pytest.raises(AuthenticationError):
            client_of(user, old[user]).ping()
        assert client_of(user).ping()
    assert "-e rotate_finish=true" in played.output
    # Those of the load, which nothing has reloaded.
    assert f"{BROKER}: connections from before the new password: producer from " in played.said
    assert not any(word in played.output for word in (*old.values(), *new.values()))

    # Producers have both, until it is said that they need the earlier one no more.
    connected = client_of("producer", old["producer"])
    assert connected.ping()
    assert client_of("producer").ping()
    finished = kit.play(playbook=ROTATE, rotate_finish=True)
    assert finished.changed == {BROKER: 1, WORKER: 0}
    with pytest.raises(AuthenticationError):
        connected.ping()
    assert add(app_of("producer"), 1, 2).apply_async().get(timeout=PATIENCE) == 3
    assert web.answers(), web.errors
    assert lab.invocation_ids(WORKER, "celery-*.service") == now
    assert kit.play().changed == {BROKER: 0, WORKER: 0}
    # What Redis loads when it starts is what it was told.
    lab.run(BROKER, "systemctl restart celery-redis")
    assert add(app_of("producer"), 1, 2).apply_async().get(timeout=PATIENCE) == 3
    with pytest.raises(AuthenticationError):
        client_of("producer", old["producer"]).ping()


def test_a_machine_outside_sends_tasks_with_the_files_that_are_written_for_it(kit, tmp_path):
    files = tmp_path / "shop"
    # The machine is the one that the tests run on.
    asked = {"producer_to": str(files), "producer_place": str(files)}
    asked |= {"producer_broker_variables": "SHOP_BROKER", "celery_worker_result_backend": "redis"}
    kit.play("--check", playbook=OUTSIDE, **asked)
    assert not files.exists()
    played = kit.play(playbook=OUTSIDE, **asked)
    assert f'"{files}" has what opens Redis' in played.said
    secret = kit.password(BROKER, "producer")
    assert secret not in played.output
    found = {one.name: stat.S_IMODE(one.stat().st_mode) for one in files.iterdir()}
    assert found == dict.fromkeys(("ca.pem", "certificate.pem", "environment", "password"), 0o600)
    lines = shlex.split((files / "environment").read_text(), comments=True)
    environ = dict(line.split("=", 1) for line in lines) | {"PATH": os.environ["PATH"]}
    assert secret not in environ["CELERY_METAL_BROKER"]
    runtime = ["-m", "celery_metal_runtime", "run", sys.executable]
    for words, url in ((runtime, "None"), ([], "os.environ['SHOP_BROKER']")):
        done = subprocess.run(
            [sys.executable, *words, "-c", SEND.format(url=url)],
            env=environ | {"PYTHONPATH": str(ROOT / "app/runtime")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr
    assert kit.play(playbook=OUTSIDE, **asked).changed == {BROKER: 0, WORKER: 0}


def test_a_rotation_that_would_leave_hosts_out_is_refused(kit):
    before = [kit.password(BROKER, user) for user in USERS]
    played = kit.play("--limit", BROKER, playbook=ROTATE, fails=True)
    assert f"and {WORKER} would keep the earlier ones: run it without --limit" in played.output
    assert [kit.password(BROKER, user) for user in USERS] == before


def test_a_right_of_an_app_s_own_is_there_without_a_restart(kit, lab, client_of):
    before = {host: lab.invocation_ids(host, "celery-*.service") for host in (BROKER, WORKER)}
    worker = client_of("worker")
    with pytest.raises(NoPermissionError):
        worker.set("lock:a", "1")
    kit.play(redis_user_rules={"worker": "(~lock:* +set) (~metal_sample.* +sadd)"})
    assert worker.set("lock:a", "1")
    played = kit.play(redis_user_rules={"worker": "+nonesuch"}, fails=True)
    assert "rights of its user worker" in played.output
    assert "Mend redis_user_rules[worker]. Nothing was changed in this step." in played.output
    assert worker.set("lock:a", "1")
    kit.play()
    with pytest.raises(NoPermissionError):
        worker.set("lock:a", "1")
    after = {host: lab.invocation_ids(host, "celery-*.service") for host in (BROKER, WORKER)}
    assert after == before


def test_a_restart_of_redis_has_no_message_sent_twice(lab, client_of):
    key = f"restarts-{uuid4()}"
    admin, producer = client_of("admin"), client_of("producer", retry=None)
    pushers = [Pusher(producer, key, number) for number in range(6)]
    for pusher in pushers:
        pusher.start()
    try:
        for _ in range(5):
            cut, sent = [one.again for one in pushers], [one.sent for one in pushers]
            lab.run(BROKER, "systemctl restart celery-redis")
            lab.wait_for(
                lambda cut=cut, sent=sent: all(
                    one.again > earlier and one.sent > before
                    for one, earlier, before in zip(pushers, cut, sent, strict=True)
                ),
                PATIENCE,
                "each was cut off and sends again",
                host=BROKER,
                unit="celery-redis",
            )
    finally:
        for pusher in pushers:
            pusher.enough.set()
        for pusher in pushers:
            pusher.join()
    found = Counter(admin.lrange(key, 0, -1))
    admin.delete(key)
    print(sum(one.sent for one in pushers), "sent,", [one.again for one in pushers], "again")
    assert [message for message, times in found.items() if times > 1] == []
    assert len(found) == sum(one.sent for one in pushers)
