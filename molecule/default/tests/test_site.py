"""The whole site on one host: what runs is what the plan says, and tasks go through every queue."""

import json
import re
from pathlib import Path

import pytest
import yaml

GROUP_VARS = Path(__file__).parents[1] / "inventory/group_vars/all.yml"
HOST = "metal"
QUEUES = ["add_queue", "multiply_queue", "threaded", "green", "one_by_one"]


CONNECT = """
import socket
try:
    socket.socket(socket.AF_UNIX).connect("/run/celery-metal/redis/redis.sock")
except OSError as problem:
    print(problem.strerror)
"""


def connects_as(lab, user):
    """Why a local user reaches no Redis by its socket; or nothing."""
    return lab.run(HOST, ["runuser", "-u", user, "--", "python3", "-c", CONNECT]).strip()


def test_tasks_flow_through_every_queue(kit):
    reports = kit.smoke(HOST, "celery-add_queue-1", *QUEUES)
    assert set(reports) == set(QUEUES)
    for queue, report in reports.items():
        assert report["done"] == report["sent"] >= 100, (queue, report)
        assert report["wrong"] == report["missing"] == 0, (queue, report)
        # No other queue's worker has helped out.
        assert set(report["workers"]) == {f"{queue}-1@{HOST}"}


def test_the_status_shows_for_how_long_tasks_wait(kit, lab):
    sent = kit.smoke(HOST, "celery-add_queue-1", "add_queue")["add_queue"]["sent"]

    def counted():
        text = kit.redis(HOST, "hget", "celery-metal.metrics", f"add_queue-1@{HOST}")
        return json.loads(text)["queues"]["add_queue"]["outcomes"].get("succeeded", 0)

    lab.wait_for(lambda: counted() >= sent, 60, "the worker has counted its tasks", host=HOST)
    lab.run(HOST, "systemctl stop celery-one_by_one@1")
    try:
        send = "from metal_sample.tasks import add; add.apply_async((1, 2), queue='one_by_one')"
        lab.run(
            HOST, ["podman", "exec", "celery-add_queue-1", "celery-metal-run", "python", "-c", send]
        )
        objectives = [{"name": name, "latency_objective_seconds": 1} for name in QUEUES]
        words = ("-e", json.dumps({"celery_queues": objectives}))
        late = "one_by_one misses its objective of 1 s: the next task has waited for "
        lab.wait_for(
            lambda: [one for one in kit.status(*words)["wrong"] if one["what"].startswith(late)],
            60,
            "the objective is missed",
            host=HOST,
        )
    finally:
        lab.run(HOST, "systemctl start celery-one_by_one@1")
    rows = {one["queue"]: one for one in kit.status(*words)["queues"]}
    assert rows.keys() == set(QUEUES)
    row = rows["add_queue"]
    assert row["objective"] == 1
    assert row["per_hour"].keys() == {"succeeded"}
    assert row["started"] >= sent
    assert 0 < row["half"] <= row["most"]


def test_pools_are_as_large_as_planned(kit):
    plan = {row["name"]: row for row in kit.plan(HOST)["queues"]}
    assert set(plan) == set(QUEUES)
    reports = kit.smoke(HOST, "celery-add_queue-1", *QUEUES)
    for queue, row in plan.items():
        children = kit.children(HOST, f"celery-{row['unit']}-1")
        assert len(children) == (row["processes"] if row["pool"] == "prefork" else 0), queue
        assert reports[queue]["workers"] == {f"{queue}-1@{HOST}": row["concurrency"]}
    # Every process of a prefork pool has worked.
    assert len(reports["multiply_queue"]["pids"]) == plan["multiply_queue"]["processes"]


def test_the_plan_follows_the_host(kit, lab):
    plan = kit.plan(HOST)
    assert plan["host"]["vcpus"] == 2
    assert plan["host"]["memory_mb"] == 4096
    totals = plan["totals"]
    used = totals["workers_mb"] + totals["redis_mb"] + totals["reserve_mb"]
    assert used + totals["free_mb"] == 4096
    maxmemory = int(kit.redis(HOST, "config", "get", "maxmemory").split()[1])
    assert maxmemory == plan["redis"]["maxmemory_mb"] * 1024 * 1024
    for row in plan["queues"]:
        unit = f"celery-{row['unit']}@1.service"
        assert lab.show(HOST, unit, "MemoryMax") == str(row["memory_mb"] * 1024 * 1024)
        assert lab.show(HOST, unit, "CPUWeight") == str(row["cpu_weight"])
        assert lab.show(HOST, unit, "Slice") == "celery.slice"
    # Others have systemd's 100.
    assert lab.show(HOST, "celery.slice", "CPUWeight") == "500"
    assert lab.show(HOST, "system.slice", "CPUWeight") in ("[not set]", "100")


def test_redis_keeps_everything_and_evicts_nothing(kit):
    values = {
        name: kit.redis(HOST, "config", "get", name).split()[1:]
        for name in ("maxmemory-policy", "appendonly", "appendfsync", "maxclients")
    }
    assert values == {
        "maxmemory-policy": ["noeviction"],
        "appendonly": ["yes"],
        "appendfsync": ["everysec"],
        # Of a limit of open files that is too low Redis would make fewer.
        "maxclients": ["10000"],
    }


def test_nothing_listens_on_the_network(lab):
    listening = lab.run(HOST, "ss -ltnpH")
    assert "sshd" in listening
    assert "redis" not in listening
    assert ":6379" not in listening


def test_units_say_how_they_are(kit, lab):
    unit = "celery-multiply_queue@1.service"
    size = kit.queue(HOST, "multiply_queue")["concurrency"]
    assert size > 1

    def worked():
        return re.fullmatch(
            rf"multiply_queue: {size} processes, 0 busy, [1-9]\d* done",
            lab.show(HOST, unit, "StatusText"),
        )

    lab.wait_for(worked, 15, "status that counts tasks", host=HOST, unit=unit)
    assert "accept connections" in lab.show(HOST, "celery-redis.service", "StatusText")
    shown = lab.run(HOST, "systemctl cat celery-add_queue@1.service")
    reasons = next(
        row["reasons"]
        for row in json.loads(lab.run(HOST, "cat /etc/celery-metal/plan.json"))["queues"]
        if row["name"] == "add_queue"
    )
    assert all(f"# {reason}" in shown for reason in reasons.values())
    log = lab.run(HOST, "journalctl --no-pager -o cat -u celery-add_queue@1.service")
    assert f"add_queue-1@{HOST} ready" in log


@pytest.mark.parametrize("container", ["celery-redis", "celery-add_queue-1", "celery-green-1"])
def test_containers_are_locked_down(kit, lab, container):
    main = kit.main_process(HOST, container)
    status = lab.run(HOST, f"cat /proc/{main}/status")
    assert re.search(r"^CapEff:\s+0+$", status, re.M)
    assert re.search(r"^CapBnd:\s+0+$", status, re.M)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    assert int(re.search(r"^Uid:\s+(\d+)", status, re.M).group(1)) > 65535
    assert not lab.succeeds(HOST, f"podman exec {container} touch /usr/bin/new")
    assert "Read-only" in lab.run(HOST, f"podman exec {container} touch /usr/bin/new 2>&1; true")


def test_the_socket_belongs_to_a_group(lab):
    lab.run(HOST, "useradd stranger; useradd --groups celery-redis member")
    lab.run(HOST, "systemctl restart celery-redis")
    assert connects_as(lab, "stranger") == "Permission denied"
    assert connects_as(lab, "member") == ""


def test_every_container_has_ids_of_its_own(kit, lab):
    containers = lab.run(HOST, "podman ps --format '{{.Names}}'").split()
    ranges = set()
    for container in containers:
        main = kit.main_process(HOST, container)
        ranges.add(lab.run(HOST, f"cat /proc/{main}/uid_map").split()[1])
    assert len(ranges) == len(containers) == 1 + len(QUEUES)


def test_the_password_shows_nowhere(kit, lab):
    password = kit.password(HOST)
    assert len(password) >= 32
    # From standard input, or the search itself would be what it finds.
    search = 'read -r word; grep -rlaFs -- "$word" {} || [ $? -le 2 ]'
    for place in ("/etc", "/run/systemd", "/proc/[0-9]*/environ", "/proc/[0-9]*/cmdline"):
        assert lab.run(HOST, search.format(place), stdin=password + "\n") == "", place
    assert password not in lab.run(HOST, "journalctl --no-pager -a")
    assert password not in lab.run(HOST, "podman inspect $(podman ps -q)")
    assert password not in kit.play("-vvv").output


def test_images_are_small(lab):
    sizes = {
        image["Names"][0].split(":")[0].rsplit("/", 1)[-1]: image["Size"] / 1e6
        for image in json.loads(lab.run(HOST, "podman images --format json"))
        if image.get("Names")
    }
    assert sizes["app"] <= 120
    # What is sent to other hosts for another version of the code is the code.
    assert sizes["app"] - sizes["app_base"] <= 2
    assert sizes["redis"] <= 60


def test_a_second_run_touches_nothing(kit, lab):
    before = lab.invocation_ids(HOST, "celery*")
    assert len(before) >= 1 + len(QUEUES)
    assert kit.play().changed == {HOST: 0}
    assert lab.invocation_ids(HOST, "celery*") == before


def test_an_operator_who_is_not_root_deploys_too(kit, lab):
    lab.run(
        HOST,
        "useradd --create-home deployer && mkdir ~deployer/.ssh"
        " && cp ~root/.ssh/authorized_keys ~deployer/.ssh && chown -R deployer ~deployer/.ssh"
        " && echo 'deployer ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/deployer",
    )
    assert kit.play(ansible_user="deployer").changed == {HOST: 0}


def test_check_mode_changes_nothing_and_prints_the_plan(kit, lab):
    before = lab.invocation_ids(HOST, "celery*")
    listing = lab.run(HOST, "find /etc -newermt '-1 hour' -type f | sort")
    declared = yaml.safe_load(GROUP_VARS.read_text())["celery_queues"]
    declared[0]["concurrency"] = 1 + kit.queue(HOST, declared[0]["name"])["concurrency"]
    played = kit.play("--check", "--diff", celery_queues=declared)
    assert re.search(r"^ +add_queue .* explicit$", played.output, re.M)
    assert played.changed[HOST] >= 1
    # What changes, and not what is around it.
    assert len(played.stdout.splitlines()) <= 180, played.stdout
    summary = played.stdout.partition("SUMMARY *")[2].splitlines()[1:]
    assert len(summary) <= 24
    concurrency = declared[0]["concurrency"]
    unit = rf"celery-add_queue@\.container \(.*concurrency {concurrency - 1} -> {concurrency}[,)]"
    assert any(re.match(f"{HOST}: would change {unit}", line) for line in summary), summary
    assert any(line.startswith(f"{HOST}: would restart celery-add_queue@") for line in summary)
    assert lab.invocation_ids(HOST, "celery*") == before
    assert lab.run(HOST, "find /etc -newermt '-1 hour' -type f | sort") == listing


def test_an_override_on_the_host_counts(kit, lab):
    drop_in = "/etc/containers/systemd/celery-multiply_queue@.container.d/10-local.conf"
    planned = kit.queue(HOST, "multiply_queue")["concurrency"]
    assert planned > 1
    lab.run(
        HOST,
        f"mkdir -p {drop_in.rpartition('/')[0]}; cat > {drop_in}",
        stdin="[Container]\nEnvironment=CONCURRENCY=1\n",
    )
    lab.run(HOST, "systemctl daemon-reload; systemctl restart celery-multiply_queue@1")
    assert len(kit.children(HOST, "celery-multiply_queue-1")) == 1
    # It is the operator's, so a run of the playbook leaves it alone.
    kit.play()
    assert len(kit.children(HOST, "celery-multiply_queue-1")) == 1
    lab.run(HOST, f"rm -r {drop_in.rpartition('/')[0]}; systemctl daemon-reload")
    lab.run(HOST, "systemctl restart celery-multiply_queue@1")
    assert len(kit.children(HOST, "celery-multiply_queue-1")) == planned


def test_an_instance_started_by_hand_works_too(kit, lab):
    lab.run(HOST, "systemctl start celery-add_queue@9")
    reports = kit.smoke(HOST, "celery-add_queue-9", "add_queue", count=300)
    assert f"add_queue-9@{HOST}" in reports["add_queue"]["workers"]
    lab.run(HOST, "systemctl stop celery-add_queue@9")
    assert "celery-add_queue@9.service" not in kit.services(HOST)


def test_targets_pass_on_what_they_are_told(kit, lab):
    everything = kit.services(HOST)
    before = lab.invocation_ids(HOST, "celery-*.service")
    lab.run(HOST, "systemctl restart celery-add_queue.target")

    def restarted():
        now = lab.invocation_ids(HOST, "celery-*.service")
        changed = {unit for unit in before if now.get(unit) != before[unit]}
        return changed == {"celery-add_queue@1.service"} and kit.services(HOST) == everything

    lab.wait_for(restarted, 60, "restart of one queue alone", host=HOST)
    lab.run(HOST, "systemctl stop celery.target")
    lab.wait_for(lambda: not kit.services(HOST), 90, "stop of everything", host=HOST)
    lab.run(HOST, "systemctl start celery.target")
    lab.wait_for(lambda: kit.services(HOST) == everything, 60, "start of everything", host=HOST)


def test_a_stopped_broker_is_waited_for(kit, lab):
    unit = "celery-add_queue@1.service"
    before = lab.invocation_ids(HOST, unit)
    since = lab.run(HOST, "date +%s.%N").strip()
    lab.run(HOST, "systemctl stop celery-redis")
    # Until it has ended, Redis writes its directories: its manifest, and the end of its socket.
    log = lab.run(HOST, f"journalctl -u celery-redis --no-pager -o cat --since @{since}")
    assert "Redis is now ready to exit" in log
    assert "denied" not in log
    lab.wait_for(
        lambda: "waiting for the broker" in lab.show(HOST, unit, "StatusText"),
        60,
        "status that says what is awaited",
        host=HOST,
        unit=unit,
    )
    lab.run(HOST, "systemctl start celery-redis")
    lab.wait_for(
        lambda: "waiting" not in lab.show(HOST, unit, "StatusText"),
        90,
        "work again",
        host=HOST,
        unit=unit,
    )
    assert lab.invocation_ids(HOST, unit) == before
    assert kit.smoke(HOST, "celery-add_queue-1", "add_queue")["add_queue"]["missing"] == 0


def test_a_bad_unit_is_refused_before_it_is_written(kit, lab):
    before = lab.run(HOST, "ls /etc/containers/systemd/celery-metal")
    running = lab.invocation_ids(HOST, "celery*")
    bad = {"name": "add_queue", "quadlet": {"Container": {"NoSuchKey": "1"}}}
    played = kit.play(fails=True, celery_queues=[bad])
    assert "Nothing was written" in played.output
    assert "NoSuchKey" in played.output
    assert lab.run(HOST, "ls /etc/containers/systemd/celery-metal") == before
    kit.play()
    assert lab.invocation_ids(HOST, "celery*") == running


def test_a_build_that_fails_leaves_what_runs_and_nothing_behind(kit, lab, tmp_path):
    before = lab.invocation_ids(HOST, "celery*")
    images = set(lab.run(HOST, "podman images --all --quiet").split())
    (tmp_path / "requirements.txt").write_text(f"celery==0 --hash=sha256:{'0' * 64}\n")
    # Layers that no build has made before, below the one that fails.
    others = {"image_app_debian_packages": ["hello"]}
    played = kit.play(fails=True, image_app_source=str(tmp_path), **others)
    said = played.said
    assert f"{HOST} could not build the images: ERROR: " in said
    last = "ERROR: No matching distribution found for celery==0"
    assert f"{last} Workers run on with the image they have" in said
    assert lab.invocation_ids(HOST, "celery*") == before
    assert not lab.succeeds(HOST, "test -e /var/lib/celery-metal/image")
    assert set(lab.run(HOST, "podman images --all --quiet").split()) <= images
    assert "buildah" not in lab.run(HOST, "podman ps --external --format '{{.Command}}'")


def test_everything_is_back_after_a_reboot(kit, lab):
    everything = kit.services(HOST)
    kit.redis(HOST, "set", "kept", "over the reboot")
    lab.reboot(HOST)
    lab.wait_for(lambda: kit.services(HOST) == everything, 90, "all units", host=HOST)
    assert kit.redis(HOST, "get", "kept") == "over the reboot"
    assert lab.run(HOST, "stat -c '%a %U %G' /run/celery-metal") == "750 root celery-redis\n"
    reports = kit.smoke(HOST, "celery-add_queue-1", *QUEUES)
    assert all(report["missing"] == report["wrong"] == 0 for report in reports.values())
    # As a new kernel leaves it: it has 9 MB more, and nothing restarts for that.
    more = 's/^(MemTotal: *)([0-9]+)/echo "\\1$((\\2 + 9216))"/e'
    lab.run(HOST, f"sed -E '{more}' /etc/lab-meminfo > /tmp/new && cat /tmp/new > /etc/lab-meminfo")
    assert kit.play().changed == {HOST: 0}
