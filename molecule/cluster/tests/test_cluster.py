"""A Redis host and two worker hosts: each is sized by itself, and all work from one broker."""

import json
import re
import shutil

from kit_fixtures import ROOT

QUEUES = ["add_queue", "multiply_queue"]
WORKERS = ["small", "large"]


def test_both_hosts_take_part(kit):
    reports = kit.smoke("small", "celery-add_queue-1", *QUEUES, count=200)
    for queue, report in reports.items():
        assert report["done"] == report["sent"] >= 200, (queue, report)
        assert report["wrong"] == 0, (queue, report)
        assert set(report["workers"]) == {f"{queue}-1@{host}" for host in WORKERS}


def test_each_host_is_sized_by_itself(kit):
    for host in WORKERS:
        for queue in QUEUES:
            planned = kit.queue(host, queue)["processes"]
            assert len(kit.children(host, f"celery-{queue}-1")) == planned, (host, queue)
    small, large = (kit.queue(host, "multiply_queue")["processes"] for host in WORKERS)
    assert small < large
    assert kit.plan("small")["host"]["vcpus"] == 1
    assert kit.plan("large")["host"]["vcpus"] == 2


def test_redis_has_its_host_to_itself(kit, lab):
    assert kit.services("broker") == {"celery-redis.service"}
    assert kit.plan("broker")["queues"] == []
    for host in WORKERS:
        assert "celery-redis.service" not in kit.services(host)
        assert kit.plan(host)["redis"] is None


def test_redis_listens_on_its_address_only(lab):
    lines = [line for line in lab.run("broker", "ss -ltnH").splitlines() if ":6379" in line]
    assert [line.split()[3] for line in lines] == [f"{lab.address('broker')}:6379"]


def test_redis_wants_the_password(kit, lab):
    ask = (
        "import socket,sys; s=socket.create_connection((sys.argv[1],6379),5);"
        "s.sendall(b'PING\\r\\n'); print(s.recv(99).decode())"
    )
    assert "NOAUTH" in lab.run("small", ["python3", "-c", ask, lab.address("broker")])
    assert kit.redis("broker", "ping") == "PONG"


def test_all_hosts_have_the_same_images_and_password(kit, lab):
    passwords = {kit.password(host) for host in lab.hosts}
    assert len(passwords) == 1
    images = {
        json.loads(lab.run(host, "podman inspect celery-add_queue-1"))[0]["Image"]
        for host in WORKERS
    }
    assert len(images) == 1
    # A host has what it needs: no app where no worker runs, no Redis where none runs.
    assert "celery-metal/redis" not in lab.run("small", "podman images")


def test_a_run_limited_to_one_host_needs_no_other(kit, lab):
    before = {host: lab.invocation_ids(host, "celery*") for host in lab.hosts}
    assert kit.play("--limit", "large").changed == {"large": 0}
    assert {host: lab.invocation_ids(host, "celery*") for host in lab.hosts} == before


def test_removal_asks_first_on_every_host(kit, lab):
    # Limited to the broker, the play of the workers has no host at all.
    before = lab.invocation_ids("broker", "celery*")
    played = kit.play("--limit", "broker", playbook="playbooks/remove.yml", fails=True)
    assert "these hosts: broker." in played.output
    assert lab.invocation_ids("broker", "celery*") == before
    assert kit.services("broker") == {"celery-redis.service"}


def test_a_limited_run_says_that_it_cannot_build(kit, lab, tmp_path):
    # Another app than the deployed one, and the build host is not among the hosts of the run.
    shutil.copytree(ROOT / "app" / "sample", tmp_path / "app")
    (tmp_path / "app" / "new.txt").write_text("new\n")
    before = lab.invocation_ids("large", "celery*")
    played = kit.play("--limit", "large", fails=True, image_app_source=str(tmp_path / "app"))
    assert "--limit 'large,broker'" in " ".join(played.output.split())
    assert lab.invocation_ids("large", "celery*") == before


def test_a_new_password_reaches_every_host_and_restarts_what_uses_it(kit, lab):
    old = kit.password("broker")
    lab.run("broker", "podman secret rm celery-redis-password celery-redis-acl")
    kit.play()
    new = {kit.password(host) for host in lab.hosts}
    assert len(new) == 1
    assert new != {old}
    reports = kit.smoke("large", "celery-add_queue-1", *QUEUES)
    assert all(report["missing"] == report["wrong"] == 0 for report in reports.values())
    assert set(kit.play().changed.values()) == {0}


def test_a_host_that_died_and_came_back_works_again(kit, lab):
    everything = kit.services("small")
    lab.cut_power("small")
    # A request for tasks that was open when the power went is still answered, to nobody; it ends
    # after kombu's brpop_timeout. The connection itself may look open for minutes.
    address = f"addr={lab.address('small')}:"

    def asking():
        clients = kit.redis("broker", "client", "list").splitlines()
        return [one for one in clients if address in one and re.search(r" flags=\w*b", one)]

    lab.wait_for(
        lambda: not asking(),
        30,
        "end of the dead host's requests",
        host="broker",
        unit="celery-redis.service",
    )
    # The other one serves all queues meanwhile.
    reports = kit.smoke("large", "celery-add_queue-1", *QUEUES)
    for queue, report in reports.items():
        assert report["missing"] == 0
        assert set(report["workers"]) == {f"{queue}-1@large"}
    lab.start("small")
    lab.wait_for(lambda: kit.services("small") == everything, 90, "all units", host="small")
    reports = kit.smoke("small", "celery-add_queue-1", *QUEUES, count=200)
    assert "add_queue-1@small" in reports["add_queue"]["workers"]
