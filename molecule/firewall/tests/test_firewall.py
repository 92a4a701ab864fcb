"""Only the hosts of the inventory, and the sources that it allows, reach Redis."""

import base64
import json
import uuid

import changes
import pytest
from on_hosts import KNOCK, REACH, SAY, SCAN, TALK

BROKER, WORKER, SHOP, OUTSIDER = HOSTS = ["broker", "worker", "shop", "outsider"]
PORT = 6379
TABLE = "inet celery_metal"
# What Debian's own service loads: it begins by removing all rules, also those of others.
OWN_RULES = """#!/usr/sbin/nft -f
flush ruleset
table inet mine {
	chain input {
		type filter hook input priority filter; policy accept;
		tcp dport 9999 drop
	}
}
"""
KIT_FILES = "find /etc /run /var/lib /usr/local -xdev -name '*celery*'"
NOT_LISTENING = f"! ss -ltnH 'sport = :{PORT}' | grep ."


@pytest.fixture(scope="session", autouse=True)
def six(lab):
    """Host to an IPv6 address that it keeps, besides the one that the lab has given it."""
    addresses = {host: f"fd00:213::{number}" for number, host in enumerate(HOSTS, 11)}
    directory = "/etc/systemd/network/10-lab.network.d"
    for host, address in addresses.items():
        text = f"[Network]\nAddress={address}/64\n"
        lab.run(host, f"mkdir -p {directory} && cat > {directory}/six.conf", stdin=text)
        lab.run(host, "networkctl reload")
    for host, address in addresses.items():
        settled = f"ip -6 -o address show dev host0 | grep '{address}/' | grep -v tentative"
        lab.wait_for(lambda at=host, on=settled: lab.run(at, on), 20, "IPv6 address", host=host)
    return addresses


@pytest.fixture(scope="session")
def both(lab, six):
    """Host to its addresses, of both kinds."""
    return {host: [lab.address(host), six[host]] for host in HOSTS}


@pytest.fixture(scope="session", autouse=True)
def certificates(kit, lab):
    """What the shop needs to talk to Redis, and has of the operator."""
    for secret, name in (("ca", "ca"), ("certificate-producer", "producer")):
        text = kit.secret(BROKER, f"celery-redis-{secret}")
        lab.run(SHOP, f"cat > /root/{name}.pem", stdin=text)


@pytest.fixture
def other_network(lab):
    """A second network of the broker, which has its default route; its address there."""
    before = lab.run(BROKER, "ip route show default").strip()
    add = """
    ip link add second type veth peer name second-far
    ip link set second up && ip link set second-far up
    ip addr add 10.99.0.5/24 dev second
    ip route del default && ip route add default via 10.99.0.1 dev second
    """
    lab.run(BROKER, add)
    assert " src 10.99.0.5 " in lab.run(BROKER, "ip route get 192.0.2.1")
    yield "10.99.0.5"
    lab.run(BROKER, f"ip link del second; ip route add {before}")


def reaches(lab, host, address):
    return lab.succeeds(host, ["python3", "-c", REACH, address, str(PORT)])


def scan(lab, host, address):
    return json.loads(lab.run(host, ["python3", "-c", SCAN, address], timeout=120))


def refused(lab):
    """How many packets the rules have refused since they were loaded."""
    listed = json.loads(lab.run(BROKER, f"nft -j list counter {TABLE} refused"))
    return next(one["counter"]["packets"] for one in listed["nftables"] if "counter" in one)


def is_shut(lab, both):
    """The worker and the shop reach Redis, and the outsider does not, by any address."""
    assert all(reaches(lab, host, both[BROKER][0]) for host in (WORKER, SHOP))
    assert not any(reaches(lab, OUTSIDER, address) for address in both[BROKER])


def running(lab):
    return {host: lab.invocation_ids(host, "celery*") for host in (BROKER, WORKER)}


def start(lab, host, name, script, *words):
    """Run a script on a host beside all else; where it writes what it has seen."""
    path = f"/run/{name}"
    lab.succeeds(host, f"systemctl reset-failed {name}")  # of an earlier one, if there was
    lab.run(host, f"rm -f {path}")
    lab.run(host, ["systemd-run", f"--unit={name}", "python3", "-c", script, path, *words])
    lab.wait_for(lambda: lab.run(host, f"cat {path}"), 10, name, host=host, unit=name)
    return path


def send(kit, lab, host, numbers):
    """Send a task of the sample from a host that has no Celery; its id."""
    task = str(uuid.uuid4())
    body = base64.b64encode(json.dumps([numbers, {}, {}]).encode()).decode()
    message = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": "metal_sample.tasks.add", "id": task, "root_id": task},
        "properties": {
            "correlation_id": task,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "add_queue"},
            "delivery_tag": str(uuid.uuid4()),
            "body_encoding": "base64",
            "priority": 0,
        },
    }
    said = [
        ["AUTH", "producer", kit.password(BROKER, "producer")],
        ["LPUSH", "add_queue", json.dumps(message)],
    ]
    stdin = "".join(f"{json.dumps(words)}\n" for words in said)
    lab.run(host, ["python3", "-c", SAY, lab.address(BROKER), str(PORT)], stdin=stdin)
    return task


def test_tasks_flow_from_the_worker_and_from_a_producer(kit, lab):
    report = kit.smoke(WORKER, "celery-add_queue-1", "add_queue")["add_queue"]
    assert report["done"] == report["sent"]
    key = f"celery-task-meta-{send(kit, lab, SHOP, [40, 2])}"
    lab.wait_for(lambda: kit.redis(BROKER, "get", key), 20, "answer", host=WORKER)
    assert json.loads(kit.redis(BROKER, "get", key))["result"] == 42


def test_services_that_are_no_containers_have_few_rights(lab):
    listed = lab.run(BROKER, "systemctl list-unit-files --no-legend 'celery*.service'")
    found = {
        unit for unit, state, *_ in map(str.split, listed.splitlines()) if state != "generated"
    }
    assert found == {
        f"celery-{one}.service"
        for one in ("firewall", "redis-backup", "redis-certificate", "redis-memory")
    }
    # It runs a container.
    most = dict.fromkeys(found, 20) | {"celery-redis-backup.service": 75}
    for unit, threshold in most.items():
        words = f"--no-pager --threshold={threshold}"
        assert lab.succeeds(BROKER, f"systemd-analyze security {words} {unit}"), unit
    # They work like that.
    for unit in sorted(found - {"celery-firewall.service"}):
        lab.run(BROKER, f"systemctl start {unit}")


def test_the_certificate_is_renewed_and_the_alarm_raised(kit, lab):
    before = lab.invocation_ids(BROKER, "celery-redis.service")
    kit.make_it_end_soon(BROKER, "celery-redis-certificate-server")
    lab.run(BROKER, "systemctl start celery-redis-certificate")
    assert lab.invocation_ids(BROKER, "celery-redis.service") != before
    limit = kit.redis(BROKER, "config", "get", "maxmemory").split()[1]
    kit.redis(BROKER, "config", "set", "maxmemory", "1")
    assert not lab.succeeds(BROKER, "systemctl start celery-redis-memory")
    assert lab.succeeds(BROKER, "test -e /run/celery-metal/redis-memory-alarm")
    kit.redis(BROKER, "config", "set", "maxmemory", limit)
    lab.run(BROKER, "systemctl start celery-redis-memory")
    assert not lab.succeeds(BROKER, "test -e /run/celery-metal/redis-memory-alarm")


def test_a_port_scan_from_outside_finds_nothing_but_ssh(lab, both):
    before = refused(lab)
    for address in (*both[BROKER], *both[WORKER]):
        assert scan(lab, OUTSIDER, address) == [22], address
    # One for each of the broker's addresses, at least.
    assert refused(lab) >= before + 2
    # It does listen there, and the scan would find it.
    assert scan(lab, SHOP, both[BROKER][0]) == [22, PORT]


def test_a_changed_list_cuts_and_restarts_nothing(kit, lab, both, monkeypatch):
    before = running(lab)
    path = start(lab, SHOP, "talk", TALK, lab.address(BROKER), str(PORT))
    process = lab.show(SHOP, "talk", "MainPID")
    others = [lab.address(OUTSIDER), "fd00:213::/64", "192.0.2.0/24", "192.0.2.7"]
    with monkeypatch.context() as patch:
        patch.setenv("ANSIBLE_STDOUT_CALLBACK", "ansible.posix.json")
        checked = kit.play("--check", "--diff", redis_allowed_sources=others).output
        is_shut(lab, both)
        played = kit.play("--diff", redis_allowed_sources=others).output
    foretold = changes.said(checked, BROKER)
    assert foretold == changes.said(played, BROKER)
    assert foretold["reload"] == {"celery-firewall.service"}
    assert not foretold["restart"] | foretold["start"]
    assert all(reaches(lab, OUTSIDER, address) for address in both[BROKER])
    assert kit.play().changed == {BROKER: 2, WORKER: 0, SHOP: 0}
    is_shut(lab, both)
    assert running(lab) == before
    # All the while, on one connection.
    heard = int(lab.run(SHOP, f"cat {path}"))
    lab.wait_for(lambda: int(lab.run(SHOP, f"cat {path}") or 0) > heard, 10, "answers", host=SHOP)
    assert lab.show(SHOP, "talk", "MainPID") == process
    lab.run(SHOP, "systemctl stop talk")


def test_rules_that_somebody_has_removed_come_back_with_the_next_run(kit, lab, both):
    before = running(lab)
    lab.run(BROKER, "nft flush ruleset")
    # systemd keeps others out as well, while Redis runs.
    is_shut(lab, both)
    assert kit.play().changed == {BROKER: 1, WORKER: 0, SHOP: 0}
    is_shut(lab, both)
    assert running(lab) == before


def test_rules_of_others_and_ours_leave_each_other_alone(kit, lab, both):
    before = running(lab)
    lab.run(BROKER, "cat > /etc/nftables.conf", stdin=OWN_RULES)
    # Each of them removes all rules.
    for verb in ("start", "reload", "restart", "stop", "restart"):
        lab.run(BROKER, f"systemctl {verb} nftables")
        assert lab.succeeds(BROKER, "nft list table inet mine") == (verb != "stop")
        is_shut(lab, both)
    # As somebody may add by hand; a run must not load their file again either.
    lab.run(BROKER, "nft add rule inet mine input tcp dport 9998 counter accept")
    theirs = lab.run(BROKER, "nft list table inet mine")
    kit.play(redis_allowed_sources=["192.0.2.1"])
    kit.play()
    lab.run(BROKER, "systemctl reload celery-firewall")
    assert lab.run(BROKER, "nft list table inet mine") == theirs
    is_shut(lab, both)
    assert running(lab) == before


def test_redis_is_never_open_while_nftables_restarts(lab, both):
    path = start(lab, OUTSIDER, "knock", KNOCK, str(PORT), *both[BROKER])

    def tries():
        return lab.run(OUTSIDER, f"cat {path}").splitlines()

    restarts = 0
    while len(tries()) < 400:
        lab.run(BROKER, "systemctl reset-failed nftables; systemctl restart nftables")
        restarts += 1
    assert restarts > 20
    lab.run(OUTSIDER, "systemctl stop knock")
    assert [line for line in tries() if "open" in line] == []
    is_shut(lab, both)


def test_redis_is_never_open_while_its_host_boots(kit, lab, both):
    lab.run(BROKER, "systemctl enable nftables")
    path = start(lab, OUTSIDER, "knock", KNOCK, str(PORT), *both[BROKER])
    lab.reboot(BROKER)
    lab.wait_for(lambda: reaches(lab, SHOP, both[BROKER][0]), 60, "Redis", host=BROKER)
    tried = len(lab.run(OUTSIDER, f"cat {path}").splitlines())
    lab.wait_for(
        lambda: len(lab.run(OUTSIDER, f"cat {path}").splitlines()) > tried + 10,
        20,
        "more knocks",
        host=OUTSIDER,
    )
    lab.run(OUTSIDER, "systemctl stop knock")
    assert "open" not in lab.run(OUTSIDER, f"cat {path}")
    # It was not too slow to see it: the rules were there before any address was.
    moment = "ActiveEnterTimestampMonotonic"
    units = ("nftables", "celery-firewall", "systemd-networkd", "celery-redis")
    moments = [int(lab.show(BROKER, unit, moment)) for unit in units]
    assert 0 < moments[0] < moments[1] < moments[2] < moments[3]
    is_shut(lab, both)
    assert scan(lab, OUTSIDER, both[BROKER][0]) == [22]
    assert lab.succeeds(BROKER, "nft list table inet mine")
    assert set(kit.play().changed.values()) == {0}


def test_redis_does_not_run_without_its_rules(kit, lab, both):
    unit = "celery-redis.service"
    lab.run(BROKER, f"echo table >> /etc/celery-metal/firewall.nft; nft delete table {TABLE}")
    lab.run(BROKER, f"systemctl --no-block restart {unit}")
    lab.wait_for(
        lambda: lab.show(BROKER, unit, "SubState") == "auto-restart",
        30,
        "a start that fails",
        host=BROKER,
        unit=unit,
    )
    assert lab.succeeds(BROKER, NOT_LISTENING)
    assert kit.play().changed[BROKER] == 2
    is_shut(lab, both)


def test_a_run_limited_to_redis_locks_nobody_out(kit, lab, both):
    assert kit.play("--limit", BROKER).changed == {BROKER: 0}
    is_shut(lab, both)


def test_redis_stays_where_it_is_when_another_network_gets_the_default_route(
    kit, lab, both, other_network
):
    before = running(lab)
    given = "grep -rh CELERY_METAL_BROKER= /etc/containers/systemd/celery-metal"
    assert f"@{both[BROKER][0]}:{PORT}" in lab.run(WORKER, given)
    for limits in ((), ("--limit", WORKER)):
        assert set(kit.play(*limits).changed.values()) == {0}
    assert running(lab) == before
    assert other_network not in lab.run(WORKER, given)
    report = kit.smoke(WORKER, "celery-add_queue-1", "add_queue")["add_queue"]
    assert report["done"] == report["sent"]


def test_a_new_worker_is_admitted_in_the_run_that_brings_it(kit, lab, both, tmp_path):
    before = running(lab)
    (tmp_path / "hosts.yml").write_text(json.dumps({"celery": {"hosts": {OUTSIDER: {}}}}))
    more = ("-i", str(tmp_path), "--limit")
    played = kit.play(*more, OUTSIDER, fails=True)
    said = played.said
    address = lab.address(OUTSIDER)
    assert f"{OUTSIDER} comes to Redis from {address}, which {BROKER} does not admit yet." in said
    assert f"Nothing was changed. Let the run go to both: --limit '{OUTSIDER},{BROKER}'." in said
    assert played.changed == {OUTSIDER: 0}
    kit.play(*more, f"{OUTSIDER},{BROKER}")
    report = kit.smoke(OUTSIDER, "celery-add_queue-1", "add_queue")["add_queue"]
    assert report["done"] == report["sent"]
    assert reaches(lab, WORKER, both[BROKER][0])
    assert running(lab) == before
    assert kit.play(*more, OUTSIDER).changed == {OUTSIDER: 0}
    # And out of the inventory, it is out.
    lab.run(OUTSIDER, "systemctl stop 'celery-*@*.service'")
    kit.play()
    is_shut(lab, both)


def test_switched_off_nothing_of_it_is_left(kit, lab, both):
    before = running(lab)
    kit.play(redis_firewall=False)
    assert not lab.succeeds(BROKER, f"nft list table {TABLE}")
    assert lab.run(BROKER, "systemctl list-units --all --no-legend 'celery-firewall*'") == ""
    assert lab.succeeds(BROKER, "nft list table inet mine")
    # systemd applies the end of its list to Redis with the next start of the memory alarm.
    open_at = both[BROKER][0]
    lab.wait_for(lambda: reaches(lab, OUTSIDER, open_at), 90, "open port", host=BROKER)
    lab.run(BROKER, "systemctl restart nftables")
    assert not lab.succeeds(BROKER, f"nft list table {TABLE}")
    kit.play()
    is_shut(lab, both)
    after = running(lab)
    assert after[BROKER].pop("celery-firewall.service")
    before[BROKER].pop("celery-firewall.service")
    assert after == before


def test_removal_takes_the_rules_and_leaves_those_of_others(kit, lab):
    kit.play(playbook="playbooks/remove.yml", remove_confirmed=True)
    tables = lab.run(BROKER, "nft list tables").splitlines()
    assert "table inet mine" in tables
    assert f"table {TABLE}" not in tables
    assert lab.run(BROKER, KIT_FILES).split() == ["/var/lib/celery-metal"]
    assert not lab.succeeds(BROKER, "test -e /etc/systemd/system/nftables.service.d")
    assert lab.run(BROKER, "systemctl list-units --all --plain --no-legend 'celery*'") == ""
    lab.run(BROKER, "systemctl restart nftables")
    assert lab.succeeds(BROKER, "nft list table inet mine")


def test_a_first_deployment_on_two_networks_demands_the_address(kit, lab, both, other_network):
    before = [lab.run(host, KIT_FILES) for host in (BROKER, WORKER)]
    played = kit.play(fails=True)
    assert set(played.changed.values()) == {0}
    assert [lab.run(host, KIT_FILES) for host in (BROKER, WORKER)] == before
    own = both[BROKER][0]
    assert (
        f"redis_address is not set, and the host has 2 addresses: {other_network} (second), "
        f"{own} (host0)"
    ) in played.said
    assert f"they reach, such as redis_address: {own} Nothing was changed." in played.said
    kit.play(playbook="playbooks/check.yml", redis_address=own)
