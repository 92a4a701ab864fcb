"""What code in a worker's container reaches: Redis, the network, and neither host nor neighbour."""

import json

import pytest
from programs import BROKER, WORKER

SELF, NEIGHBOUR = "celery-add_queue-1", "celery-long-1"
PORT = 8000
QUADLETS = "/etc/containers/systemd"
EXECUTE = f"podman exec -i {SELF} python3 -"
# Both versions of IP; what is refused says so, and what is dropped is waited for.
LISTEN = f"""
import socket
server = socket.create_server(("", {PORT}), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    server.accept()[0].close()
"""
CONNECT = """
import json, socket
def reached(where):
    try:
        found = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0]) as client:
            client.settimeout(3)
            client.connect(found[4])
        return True
    except OSError:
        return False
print(json.dumps({name: reached(where) for name, where in TARGETS.items()}))
"""
FORGE = """
import socket
for line in ("WATCHDOG=trigger", "STOPPING=1", "STATUS=add_queue: forged"):
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(line.encode(), "/run/notify/notify.sock")
    except PermissionError:
        print("refused")
try:
    open("/proc/1/mem", "rb")
except PermissionError:
    print("refused")
"""


@pytest.fixture
def reached(lab):
    """What code in a worker's container can connect to."""
    address = "podman inspect -f '{{range .NetworkSettings.Networks}}{{.%s}}{{end}}' " + NEIGHBOUR
    neighbour, gateway = (
        lab.run(WORKER, address % key).strip() for key in ("IPAddress", "Gateway")
    )
    lab.run(WORKER, f"podman exec -i -d {NEIGHBOUR} python3 -c '{LISTEN}'")
    raw = lab.run(WORKER, f"podman exec {NEIGHBOUR} grep eth0 /proc/net/if_inet6").split()[0]
    linked = ":".join(raw[begin : begin + 4] for begin in range(0, 32, 4)) + "%eth0"
    targets = {
        "Redis": (lab.address(BROKER), 6379),
        "SSH of another host": (lab.address(BROKER), 22),
        "SSH of its host": (lab.address(WORKER), 22),
        "SSH by the bridge": (gateway, 22),
        "neighbour": (neighbour, PORT),
        "neighbour by IPv6": (linked, PORT),
    }
    at_host = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{neighbour}/{PORT}'"
    lab.wait_for(lambda: lab.succeeds(WORKER, at_host), 30, "the neighbour listens", host=WORKER)
    program = f"TARGETS = {targets!r}\n{CONNECT}"

    def look():
        seen = json.loads(lab.run(WORKER, EXECUTE, stdin=program))
        assert seen.keys() == targets.keys()
        return {name for name, was in seen.items() if was}

    return look


def test_a_worker_s_network_is_redis_and_what_is_outside(kit, lab, reached):
    assert reached() == {"Redis", "SSH of another host"}
    before = lab.invocation_ids(WORKER, "celery-*@*.service")
    kit.play(celery_worker_egress=[])
    assert reached() == {"Redis"}
    kit.play(celery_worker_egress=[lab.address(WORKER)])
    assert reached() == {"Redis", "SSH of its host"}
    # Rules change, and no worker restarts.
    assert kit.smoke(WORKER, SELF, "add_queue")["add_queue"]["missing"] == 0
    assert kit.play().changed == {BROKER: 0, WORKER: 2}
    assert reached() == {"Redis", "SSH of another host"}
    assert lab.invocation_ids(WORKER, "celery-*@*.service") == before


def test_rules_that_are_gone_come_back(kit, lab, reached):
    allowed = {"Redis", "SSH of another host"}
    lab.run(WORKER, "nft delete table inet celery_egress")
    assert "SSH of its host" in reached()
    lab.run(WORKER, "systemctl reload celery-egress")
    assert reached() == allowed
    # As a run that was cut off leaves it: the file is new, the kernel has none of it. Podman's own
    # rules are gone, too, and no event tells of that.
    before = lab.invocation_ids(WORKER, "celery-*@*.service")
    lab.run(WORKER, "nft flush ruleset")
    assert kit.play().changed == {BROKER: 0, WORKER: 1}
    assert reached() == allowed
    assert kit.play().changed == {BROKER: 0, WORKER: 0}
    # It removes all rules, also Podman's own.
    connect = f'import socket; socket.create_connection(("{lab.address(BROKER)}", 6379), 3)'
    for verb in ("restart", "reload", "stop"):
        lab.run(WORKER, f"systemctl {verb} nftables")
        lab.wait_for(
            lambda: lab.succeeds(WORKER, f"podman exec {SELF} python3 -c '{connect}'"),
            30,
            f"Redis is reached after {verb}",
            host=WORKER,
        )
    assert reached() == allowed
    assert lab.invocation_ids(WORKER, "celery-*@*.service") == before
    lab.run(WORKER, "nft flush ruleset; systemctl restart celery-long@1")
    assert lab.succeeds(WORKER, "nft list table inet celery_egress")
    lab.run(WORKER, "systemctl reload celery-network")


def test_a_run_with_nothing_to_change_fails_while_not_all_works(kit, lab):
    unit, drop_in = "celery-long@1.service", f"{QUADLETS}/celery-long@1.container.d"
    processes = "$(podman top celery-long-1 hpid | tail -n +2)"
    # It runs, and hangs; and another one would not be there after a boot.
    lab.run(WORKER, f"kill -STOP {processes}")
    lab.run(WORKER, f"mkdir {drop_in}; printf '[Container]\nNope=1\n' > {drop_in}/x.conf")
    try:
        refused = kit.play(fails=True).said
        lab.run(WORKER, f"rm -r {drop_in}")
        silent = kit.play(fails=True, site_lives_seconds=1)
    finally:
        lab.run(WORKER, f"rm -rf {drop_in}; kill -CONT {processes}")
    assert f"the next boot would not know {unit}." in refused
    assert "unsupported key 'Nope'" in refused
    assert f"worker: {unit} has left no sign of life in Redis for" in silent.said
    assert silent.changed == {BROKER: 0, WORKER: 0}


def test_a_worker_s_container_speaks_for_no_worker(kit, lab):
    unit = "celery-add_queue@1.service"
    before = lab.invocation_ids(WORKER, unit)
    assert lab.run(WORKER, EXECUTE, stdin=FORGE).split() == ["refused"] * 4
    # The runtime itself goes on.
    shown = lab.show(WORKER, unit, "StatusText")
    kit.smoke(WORKER, SELF, "add_queue")
    lab.wait_for(
        lambda: lab.show(WORKER, unit, "StatusText") not in ("", shown),
        30,
        "a new status",
        host=WORKER,
        unit=unit,
    )
    assert "forged" not in lab.show(WORKER, unit, "StatusText")
    assert lab.invocation_ids(WORKER, unit) == before
    limits = lab.run(WORKER, f"systemctl show -p TasksMax {unit}; podman inspect {SELF}")
    assert "TasksMax=512" in limits
    assert '"IpcMode": "private"' in limits


def test_a_runtime_of_before_still_finds_the_path_to_systemd(lab):
    """Connected for each sign of life, it would be restarted for ever without the path."""
    unit, drop_in = "celery-add_queue@1.service", f"{QUADLETS}/celery-add_queue@1.container.d"
    label = "[Container]\nLabel=celery-metal.notify=none\n"
    lab.run(WORKER, f"mkdir {drop_in}; cat > {drop_in}/notify.conf", stdin=label)
    try:
        lab.run(WORKER, f"systemctl daemon-reload; systemctl restart {unit}")
        # The one line that does not end the worker which it speaks for.
        forged = FORGE.replace('"WATCHDOG=trigger", "STOPPING=1", ', "")
        assert forged != FORGE
        assert lab.run(WORKER, EXECUTE, stdin=forged).split() == ["refused"]
    finally:
        lab.run(WORKER, f"rm -r {drop_in}; systemctl daemon-reload; systemctl restart {unit}")
    assert lab.run(WORKER, EXECUTE, stdin=FORGE).split() == ["refused"] * 4
