"""A Redis host and two worker hosts: each is sized by itself, and all work from one broker."""

import json
import re
import shutil

import changes
import pytest
from kit_fixtures import ROOT

QUEUES = ["add_queue", "multiply_queue"]
WORKERS = ["small", "large"]
DRAIN, UNDRAIN = "playbooks/drain.yml", "playbooks/undrain.yml"
LOGS = "playbooks/logs.yml"


def send(lab, queue, seconds, count):
    """Send tasks that do nothing for so many seconds; their ids."""
    code = (
        "from metal_sample.tasks import wait; from metal_sample.celery import app;"
        "from celery_metal_runtime import configure; configure(app);"
        f"[print(wait.apply_async(({seconds},), queue='{queue}').id) for _ in range({count})]"
    )
    command = ["podman", "exec", "celery-add_queue-1", "python", "-c", code]
    return lab.run("large", command).split()


def result(kit, task_id):
    return json.loads(kit.redis("broker", "get", f"celery-task-meta-{task_id}") or "{}")


def rows(status):
    return {(row["host"], row["queue"], row["instance"]): row for row in status["workers"]}


def test_both_hosts_take_part_although_they_have_one_hostname(kit, lab):
    for host in WORKERS:
        lab.run(
            host, "hostnamectl hostname twin && systemctl restart 'celery-*@1.service'", timeout=120
        )
        assert lab.run(host, "hostname") == "twin\n"
    reports = kit.smoke("small", "celery-add_queue-1", *QUEUES, count=200)
    for queue, report in reports.items():
        assert report["done"] == report["sent"] >= 200, (queue, report)
        assert report["wrong"] == 0, (queue, report)
        assert set(report["workers"]) == {f"{queue}-1@{host}" for host in WORKERS}
    for host in WORKERS:
        lab.run(host, ["hostnamectl", "hostname", host])


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


def test_all_hosts_have_the_same_images_and_password(kit, lab):
    passwords = {kit.password(host) for host in lab.hosts}
    assert len(passwords) == 1
    images = {
        # By its name, which is its content's: each host has put the code on top itself.
        json.loads(lab.run(host, "podman inspect celery-add_queue-1"))[0]["ImageName"]
        for host in WORKERS
    }
    assert len(images) == 1
    # A host has what it needs: no app where no worker runs, no Redis where none runs.
    assert "celery-metal/redis" not in lab.run("small", "podman images")


def test_a_run_limited_to_one_host_needs_no_other(kit, lab):
    before = {host: lab.invocation_ids(host, "celery*") for host in lab.hosts}
    assert kit.play("--limit", "large").changed == {"large": 0}
    assert {host: lab.invocation_ids(host, "celery*") for host in lab.hosts} == before


def test_a_queue_runs_where_it_is_placed(kit, lab, tmp_path):
    before = {host: lab.invocation_ids(host, "celery*") for host in lab.hosts}
    # As the host_vars of an inventory: more of it on the large host.
    (tmp_path / "hosts.yml").write_text("all: {hosts: {large: {}}}\n")
    (tmp_path / "host_vars").mkdir()
    own = "celery_queue_overrides: {placed: {instances: 2}}\n"
    (tmp_path / "host_vars" / "large.yml").write_text(own)

    def site(*hosts, words=()):
        queues = [{"name": name} for name in QUEUES]
        queues.append({"name": "placed", "hosts": list(hosts), "concurrency": 1})
        return kit.play("-i", str(tmp_path), *words, celery_queues=queues)

    def running():
        units = {host: sorted(kit.services(host)) for host in WORKERS}
        return {h: [unit for unit in names if "placed" in unit] for h, names in units.items()}

    both = ["celery-placed@1.service", "celery-placed@2.service"]
    site("large")
    assert running() == {"small": [], "large": both}
    report = kit.smoke("large", "celery-add_queue-1", "placed", count=40)["placed"]
    assert report["done"] == report["sent"]
    assert set(report["workers"]) == {"placed-1@large", "placed-2@large"}
    assert set(site("large").changed.values()) == {0}
    # From one host to the other, by a group and by a name.
    site("celery")
    assert running() == {"small": both[:1], "large": both}
    site("small")
    assert running() == {"small": both[:1], "large": []}
    # A limited run looks at all hosts, and says what none of them serves.
    said = site(words=["--limit", "small"]).output
    assert "No host serves placed (hosts: []): their tasks wait." in said
    assert running() == {"small": [], "large": []}
    status = kit.status()
    assert not [row for row in status["workers"] if row["queue"] == "placed"]
    # All else went on, but for what has another share of its host meanwhile.
    kit.play()
    after = {host: lab.invocation_ids(host, "celery*") for host in lab.hosts}
    assert after["broker"] == before["broker"]
    assert {host: set(units) for host, units in after.items()} == {
        host: set(units) for host, units in before.items()
    }


def test_a_host_may_serve_no_queue(kit, lab):
    queues = [{"name": name, "hosts": ["large"]} for name in QUEUES]
    said = kit.play(celery_queues=queues).output
    assert "In the group celery, but no queue is placed there: small." in said
    assert "no queue is placed on this host, and no worker runs here" in said
    assert kit.services("small") == set()
    assert kit.plan("small")["queues"] == []
    assert {row["host"] for row in kit.status()["workers"]} == {"large"}
    assert set(kit.play(celery_queues=queues).changed.values()) == {0}
    kit.play()
    reports = kit.smoke("large", "celery-add_queue-1", *QUEUES, count=200)
    assert set(reports["add_queue"]["workers"]) == {f"add_queue-1@{host}" for host in WORKERS}


@pytest.fixture
def other_network(lab):
    """A second network of the broker, which only the large worker reaches; its address."""
    add = """
    ip link add second type veth peer name second-far
    ip link set second up && ip link set second-far up
    ip addr add 10.99.0.5/24 dev second
    """
    lab.run("broker", add)
    lab.run("large", f"ip route add 10.99.0.5 via {lab.address('broker')}")
    # By a router that is not there.
    lab.run("small", f"ip route add 10.99.0.5 via {lab.address('small').rpartition('.')[0]}.250")
    yield "10.99.0.5"
    for host in WORKERS:
        lab.run(host, "ip route del 10.99.0.5")
    lab.run("broker", "ip link del second")


def test_redis_stays_at_its_address_until_all_workers_have_come_to_another(kit, lab, other_network):
    own = lab.address("broker")

    def ends():
        listening = lab.run("broker", "ss -ltnH 'sport = :6379'").splitlines()
        urls = "grep -rhoP 'worker@\\K[0-9.]+' /etc/containers/systemd/celery-metal | sort -u"
        return {line.split()[3].partition(":")[0] for line in listening}, {
            host: lab.run(host, urls).split() for host in WORKERS
        }

    def all_work():
        report = kit.smoke("small", "celery-add_queue-1", "add_queue", count=200)["add_queue"]
        assert report["done"] == report["sent"]
        assert set(report["workers"]) == {f"add_queue-1@{host}" for host in WORKERS}

    before = lab.invocation_ids("small", "celery-multiply_queue@1.service")
    said = kit.play(fails=True, redis_address=other_network).said
    assert f"Redis moves to {other_network}, and still listens on {own} for workers of" in said
    assert "The previous version is back, its unit files too, and all units are up." in said
    assert "write another redis_address for broker. Fix: correct the cause" in said
    assert ends() == ({own, other_network}, {"small": [own], "large": [other_network]})
    assert lab.invocation_ids("small", "celery-multiply_queue@1.service") == before
    all_work()
    # Where it is mended there is no other address any more, and Redis has just restarted.
    kit.play(redis_address=own)
    assert ends() == ({own}, {"small": [own], "large": [own]})
    all_work()
    assert set(kit.play().changed.values()) == {0}


def test_removal_asks_first_on_every_host(kit, lab):
    before = lab.invocation_ids("broker", "celery*")
    played = kit.play(playbook="playbooks/remove.yml", fails=True)
    said = played.said
    assert "remove_confirmed is False. Nothing was changed; run it again with -e" in said
    # Limited to the broker, it would go under the workers of the others, confirmed or not.
    played = kit.play(
        "--limit", "broker", playbook="playbooks/remove.yml", fails=True, remove_confirmed=True
    )
    said = played.said
    assert "use this Redis and would wait without end: remove them there" in said
    assert lab.invocation_ids("broker", "celery*") == before
    assert kit.services("broker") == {"celery-redis.service"}


def test_a_limited_run_says_that_it_cannot_build(kit, lab, tmp_path):
    # Other requirements than those deployed, and the build host is not among the hosts of the run.
    shutil.copytree(ROOT / "app" / "sample", tmp_path / "app")
    with (tmp_path / "app" / "requirements.txt").open("a") as file:
        file.write("# new\n")
    before = lab.invocation_ids("large", "celery*")
    played = kit.play("--limit", "large", fails=True, image_app_source=str(tmp_path / "app"))
    assert "--limit 'large,broker'" in played.said
    assert lab.invocation_ids("large", "celery*") == before


def test_a_drain_of_every_host_is_asked_about(kit, lab):
    before = {host: lab.invocation_ids(host, "celery*") for host in WORKERS}
    for words in ([], ["--limit", "small,large"]):
        played = kit.play(*words, playbook=DRAIN, fails=True)
        said = played.said
        assert "small, large. drain_all is False. Nothing was changed." in said
        assert "-e drain_all=true" in said
    assert {host: lab.invocation_ids(host, "celery*") for host in WORKERS} == before
    assert not any(lab.succeeds(host, "test -e /etc/celery-metal/drained") for host in WORKERS)


def test_a_drained_host_finishes_its_tasks_and_stays_out(kit, lab):
    everything = kit.services("small")
    # More than both hosts can run at once: the rest waits.
    size = {host: kit.queue(host, "add_queue")["processes"] for host in WORKERS}
    # So long that a slow machine has looked before they end.
    tasks = send(lab, "add_queue", 15, sum(size.values()) + 1)

    def all_busy():
        texts = {
            host: lab.show(host, "celery-add_queue@1.service", "StatusText") for host in WORKERS
        }
        return all(f" {size[host]} busy" in texts[host] for host in WORKERS)

    lab.wait_for(all_busy, 15, "tasks on both hosts")
    status = kit.status()
    for host in WORKERS:
        row = rows(status)[host, "add_queue", "1"]
        assert row["state"] == "active"
        assert row["concurrency"] == row["busy"] == size[host]
        assert row["waiting"] == 1
        assert row["since"] > 1e9
        container = json.loads(lab.run(host, "podman inspect celery-add_queue-1"))[0]
        assert container["ImageName"].endswith(f":{row['version']}")
    assert {one["node"]: one["tasks"] for one in status["held"]} == {
        f"add_queue-1@{host}": size[host] for host in WORKERS
    }
    assert all(one["listed"] for one in status["held"])

    drained = kit.play("--limit", "small", playbook=DRAIN)
    assert drained.changed == {"small": 1}
    assert "small is drained" in drained.output
    assert kit.services("small") == set()
    # It was not cut short, nor given back: this host's own worker has ended it.
    log = lab.run("small", "journalctl --no-pager -o cat -b -u celery-add_queue@1.service")
    assert any(f"[{task}] succeeded" in log for task in tasks), log
    lab.wait_for(
        lambda: all(result(kit, task).get("status") == "SUCCESS" for task in tasks),
        30,
        "answers to all tasks",
        host="large",
    )
    assert kit.play("--limit", "small", playbook=DRAIN).changed == {"small": 0}
    reports = kit.smoke("large", "celery-add_queue-1", *QUEUES)
    for queue, report in reports.items():
        assert report["missing"] == 0
        assert set(report["workers"]) == {f"{queue}-1@large"}

    lab.run("small", "systemctl restart celery.target; systemctl start celery-add_queue@1")
    assert kit.services("small") == set()
    lab.reboot("small")
    unit = "celery-add_queue@1.service"
    # The boot has tried to start it.
    lab.wait_for(
        lambda: lab.show("small", unit, "ConditionTimestampMonotonic") != "0",
        60,
        "end of the boot",
        host="small",
    )
    assert lab.show("small", unit, "ConditionResult") == "no"
    assert lab.show("small", "celery.target", "ActiveState") == "active"
    assert kit.services("small") == set()

    # Files follow what is declared all the same.
    files = "/etc/containers/systemd/celery-metal/*.container"
    for level, changed in (("debug", True), ("info", True), ("info", False)):
        played = kit.play("--limit", "small", celery_worker_log_level=level)
        assert "small is drained" in played.output
        assert (played.changed["small"] > 0) == changed
        assert f"LOGLEVEL={level}" in lab.run("small", f"cat {files}")
        assert kit.services("small") == set()

    assert kit.play("--limit", "small", playbook=UNDRAIN).changed == {"small": 2}
    assert kit.services("small") == everything
    assert kit.play(playbook=UNDRAIN).changed == {"small": 0, "large": 0}
    reports = kit.smoke("small", "celery-add_queue-1", "add_queue", count=200)
    assert set(reports["add_queue"]["workers"]) == {f"add_queue-1@{host}" for host in WORKERS}
    assert kit.play("--limit", "small").changed == {"small": 0}


def test_a_single_redis_that_gets_others_is_the_one_they_follow(kit, tmp_path):
    several = kit.inventory_with_redis(tmp_path / "several", "small", "broker", "large")
    played = kit.play(inventory=several, fails=True)
    assert (
        "host broker: Redis there has been the only one, and among several it would have what "
        "small has in the place of its own tasks. Write broker first in the group redis"
    ) in played.said
    assert set(played.changed.values()) == {0}


def test_a_new_password_reaches_every_host_and_restarts_what_uses_it(kit, lab, monkeypatch):
    old = kit.password("broker")
    lab.run("broker", "podman secret rm celery-redis-acl celery-redis-admin celery-redis-worker")
    with monkeypatch.context() as patch:
        patch.setenv("ANSIBLE_STDOUT_CALLBACK", "ansible.posix.json")
        checked, played = kit.play("--check", "--diff").output, kit.play("--diff").output
    for host in lab.hosts:
        foretold = changes.unmarked(changes.said(checked, host))
        assert foretold == changes.unmarked(changes.said(played, host))
        assert "celery-redis-worker" in foretold["keep secret"]
        assert {unit.partition("@")[0] for unit in foretold["restart"]} == (
            {"celery-redis.service"}
            if host == "broker"
            else {f"celery-{queue}" for queue in QUEUES}
        )
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
    status = kit.status("--timeout", "3")
    assert status["hosts"]["large"]["state"] == "ok"
    assert "small" not in {row["host"] for row in status["workers"]}
    assert status["hosts"]["small"]["state"] == "unreachable"
    shown = kit.play("--timeout", "3", playbook=LOGS, logs_lines=1).output
    assert re.search(r"^ +small: not read: .*(unreachable|timed out|connect)", shown, re.M), shown
    # The other one serves all queues meanwhile.
    reports = kit.smoke("large", "celery-add_queue-1", *QUEUES)
    for queue, report in reports.items():
        assert report["missing"] == 0
        assert set(report["workers"]) == {f"{queue}-1@large"}
    lab.start("small")
    lab.wait_for(lambda: kit.services("small") == everything, 90, "all units", host="small")
    reports = kit.smoke("small", "celery-add_queue-1", *QUEUES, count=200)
    assert "add_queue-1@small" in reports["add_queue"]["workers"]


def logged(output):
    """The lines that logs.yml shows: time, host, unit and text."""
    line = r"^ +(20\d\d-\S+ \S+)  (\S+) +(\S+)  (.*)$"
    return re.findall(line, output, re.M)


def test_the_journals_of_all_hosts_are_read_in_order_of_time(kit, lab):
    call = "celery-metal-run celery call metal_sample.tasks.add --queue add_queue --args"
    command = ["podman", "exec", "celery-add_queue-1", *call.split(), '["x", 3]']
    task = lab.run("small", command).strip()
    lab.wait_for(lambda: result(kit, task).get("status") == "FAILURE", 30, "it has failed")
    lines = logged(kit.play(playbook=LOGS, logs_task=task).output)
    texts = [text for _, _, _, text in lines]
    assert len({(host, unit) for _, host, unit, _ in lines}) == 1
    assert texts[0].endswith(f"Task metal_sample.tasks.add[{task}] received")
    assert "raised unexpected: TypeError" in texts[1]
    assert texts[2] == "Traceback (most recent call last):"
    assert texts[-1].startswith("TypeError: ")

    shown = kit.play(
        playbook=LOGS, logs_queue="multiply_queue", logs_text="ready.", logs_since="1d"
    )
    lines = logged(shown.output)
    # Of an upgrade there may be a surge instance, too.
    assert {host for _, host, _, _ in lines} == {*WORKERS}
    assert {unit.partition("@")[0] for _, _, unit, _ in lines} == {"multiply_queue"}
    times = [at for at, _, _, _ in lines]
    assert times == sorted(times)
    assert "not read" not in shown.output


DEAD = "playbooks/dead.yml"
# One that a worker puts aside, and one that it can run.
TWO = """
from celery_metal_runtime import configure
from metal_sample.celery import app
from metal_sample.tasks import add

configure(app)
print(app.send_task("shop.gone", (5,), queue="add_queue").id)
print(add.apply_async((1, 2), queue="put_aside").id)
"""


def test_dead_letters_are_listed_shown_sent_back_and_deleted(kit, lab, tmp_path):
    lists = ("celery-metal.dead:add_queue", "celery-metal.dead:removed")
    command = ["podman", "exec", "celery-add_queue-1", "python", "-c", TWO]
    gone, good = lab.run("large", command).split()
    lab.wait_for(lambda: kit.redis("broker", "llen", lists[0]) == "1", 30, "it is put aside")
    # As a worker of earlier versions has left it; and one of a queue that is gone.
    kit.redis("broker", "lmove", "put_aside", lists[0], "RIGHT", "LEFT")
    kit.redis("broker", "rpush", lists[1], "no task\x1b[2J")

    played = kit.play(playbook=DEAD)
    assert set(played.changed.values()) == {0}
    assert "\x1b" not in played.output
    row = rf"shop\.gone +{gone} +add_queue +20\S+ \S+ +0 +add_queue-1@\S+ +the app does not def"
    assert re.search(row, played.output), played.output
    assert re.search(rf"metal_sample\.tasks\.add +{good} +add_queue +- +- +- +- ", played.output)
    assert "3 dead letters: add_queue 2, removed 1" in played.output
    shown = kit.play(playbook=DEAD, dead_action="show", dead_id=gone).output
    assert '"celery_metal_reason": "the app does not define it"' in shown

    said = kit.play("--check", playbook=DEAD, dead_action="send", dead_all=True)
    assert "2 dead letters would be sent back: add_queue 2" in said.output
    assert "1 dead letter cannot be sent back" in said.output
    assert kit.redis("broker", "llen", lists[0]) == "2"
    said = kit.play(playbook=DEAD, dead_action="send", dead_id=good).output
    assert "1 dead letter sent back: add_queue 1" in said
    lab.wait_for(lambda: result(kit, good).get("status") == "SUCCESS", 30, "it is done")
    assert result(kit, good)["result"] == 3

    file = tmp_path / "dead.jsonl"
    kit.play(playbook=DEAD, dead_action="export", dead_task="shop.gone", dead_file=str(file))
    (line,) = file.read_text().splitlines()
    assert json.loads(json.loads(line)["message"])["headers"]["id"] == gone
    choice = {"dead_action": "delete", "dead_id": gone}
    said = kit.play(playbook=DEAD, fails=True, **choice).output
    assert "dead_action is delete, and dead_confirmed is False." in said
    assert kit.redis("broker", "llen", lists[0]) == "1"
    said = kit.play(playbook=DEAD, dead_confirmed=True, **choice).output
    assert "1 dead letter deleted: add_queue 1" in said
    kit.play(playbook=DEAD, dead_action="delete", dead_queue="removed", dead_confirmed=True)
    assert "no dead letter" in kit.play(playbook=DEAD).output
    assert kit.redis("broker", "exists", *lists) == "0"


@pytest.fixture(scope="module")
def waiting(kit, lab):
    """Three tasks wait in multiply_queue, which nobody serves until the end of this file."""
    kit.play("--limit", "small", playbook=DRAIN)
    lab.run("large", "systemctl stop celery-multiply_queue@1.service")
    yield send(lab, "multiply_queue", 0, 3)
    lab.run("large", "systemctl start celery-multiply_queue@1.service")
    kit.play(playbook=UNDRAIN)
    lab.wait_for(lambda: kit.redis("broker", "llen", "multiply_queue") == "0", 15, "work again")


def test_status_shows_what_nobody_works_on(kit, waiting):
    kit.redis("broker", "rpush", "celery-metal.dead:multiply_queue", "no task")
    status = kit.status("--check")
    small, large = (rows(status)[host, "multiply_queue", "1"] for host in WORKERS)
    assert (small["state"], large["state"]) == ("drained", "inactive")
    assert small["waiting"] == large["waiting"] == 3
    assert small["busy"] is large["busy"] is None
    assert status["dead"] == {"multiply_queue": 1}
    stuck = "multiply_queue: 3 tasks wait, and none of its workers takes any: "
    first = {
        "what": f"{stuck}small drained, large inactive",
        "fix": "run undrain.yml with --limit small",
    }
    assert first == status["wrong"][0]
    # With --limit too, Redis is asked.
    table = kit.play("-vvv", "--limit", "large", playbook="playbooks/status.yml").output
    assert kit.password("broker") not in table
    assert re.search(r"^ +large +multiply_queue +1 +inactive +- +- +- +3 +- ", table, re.M), table
    assert re.search(r"^ +- put aside: multiply_queue 1$", table, re.M), table
    assert " small " not in table
    assert kit.redis("broker", "del", "celery-metal.dead:multiply_queue") == "1"


def test_status_reports_tasks_in_undeclared_queues(kit, waiting):
    # A misspelt queue, one of its priorities, and a queue of another app.
    keys = ("mutliply_queue", "mutliply_queue\x06\x163", "other:mail")
    for key in keys:
        kit.redis("broker", "copy", "multiply_queue", key)
    kit.redis("broker", "rpush", "celery-metal.dead:gone", "no task")
    kit.redis("broker", "rpush", "celery-metal.held:gone-1@away:gone", "no task")
    # A list, and a list of JSON, of the app's own.
    kit.redis("broker", "rpush", "app.log", "12:00")
    kit.redis("broker", "rpush", "app.json", '{"headers": {}}')
    status = kit.status()
    assert status["unconsumed"] == {"mutliply_queue": 6, "other:mail": 3}
    assert status["is_complete"] is True
    assert status["dead"] == {"gone": 1}
    gone = {"node": "gone-1@away", "queue": "gone", "tasks": 1, "beats": False, "listed": False}
    assert gone in status["held"]
    assert "multiply_queue" not in status["unconsumed"]
    table = kit.play(playbook="playbooks/status.yml").output
    assert "- undeclared queues without a consumer: mutliply_queue 6, other:mail 3\n" in table
    lists = ("celery-metal.dead:gone", "celery-metal.held:gone-1@away:gone", "app.log", "app.json")
    assert kit.redis("broker", "del", *keys, *lists) == "7"


def test_a_queue_with_tasks_is_not_removed(kit, lab, waiting):
    before = {host: lab.invocation_ids(host, "celery*") for host in lab.hosts}
    without = [{"name": name} for name in QUEUES if name != "multiply_queue"]
    played = kit.play(celery_queues=without, fails=True)
    assert (
        "queue multiply_queue of small, large: this run removes its workers, and it has 3 waiting "
        "and 0 claimed tasks" in " ".join(played.output.split())
    )
    assert "-e queues_left=true" in played.output
    assert {host: lab.invocation_ids(host, "celery*") for host in lab.hosts} == before
    assert kit.redis("broker", "llen", "multiply_queue") == "3"
    said = kit.play("--check", celery_queues=without, queues_left=True).output
    assert "They stay in Redis." in said


def test_a_redis_that_is_left_is_empty(kit, lab, waiting, tmp_path):
    elsewhere = kit.inventory_with_redis(tmp_path / "elsewhere", "small")
    before = {host: lab.invocation_ids(host, "celery*") for host in lab.hosts}
    played = kit.play(inventory=elsewhere, fails=True)
    assert (
        f"hosts small, large: the broker until now, rediss://worker@{lab.address('broker')}:6379/0,"
        " has tasks that no worker would do any more: 3 in multiply_queue. Have what sends"
    ) in played.said
    assert set(played.changed.values()) == {0}
    assert {host: lab.invocation_ids(host, "celery*") for host in lab.hosts} == before
    checked = kit.play("--check", inventory=elsewhere, broker_left=True)
    assert "more: 3 in multiply_queue. They are left there." in checked.said
