"""Reading what a host's tools print."""

import json
import socket
import subprocess
import sys

import celery_host
import pytest
from ansible.module_utils import podman_images
from ansible.module_utils.celery_holders import recorded
from ansible.module_utils.celery_metal import HostError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("podman version 5.4.2\n", "5.4.2"),
        ("podman version 5.4.2-rhel\n", "5.4.2"),
        ("podman version 6.0.0-dev\n", "6.0.0"),
        ("podman:\n  Installed: (none)\n  Candidate: 5.4.2+ds1-2+b3\n", "5.4.2"),
        ("podman:\n  Candidate: 2:4.9.3+ds1-1\n", "4.9.3"),
        ("podman:\n  Installed: (none)\n  Candidate: (none)\n", ""),
        ("", ""),
        ("sh: podman: not found", ""),
    ],
)
def test_version(text, expected):
    assert celery_host.version(text) == expected


def test_a_missing_or_failing_command_prints_nothing():
    assert celery_host.told("no-such-command-here", "--version") == ""
    assert celery_host.told("sh", "-c", "echo text; exit 1") == ""
    assert celery_host.told("sh", "-c", "echo text") == "text\n"


def test_a_podman_that_fails_is_none_without_secrets(monkeypatch, tmp_path):
    # Without secrets Redis would get another password.
    podman = tmp_path / "podman"
    podman.write_text("#!/bin/sh\necho no space left >&2\nexit 125\n")
    podman.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for look in (celery_host.secrets, podman_images.listed):
        with pytest.raises(HostError, match="no space left"):
            look()


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ('{"host": {"memory_mb": 4096}}', 4096),
        ('{"host": {"memory_mb": "4096"}}', 0),
        ('{"host": {"memory_mb": true}}', 0),
        ('{"host": {"memory_mb": -1}}', 0),
        ('{"host": {"memory_mb": 1e9}}', 0),
        ('{"host": 7}', 0),
        ("[1]", 0),
        ("{", 0),
        (None, 0),
    ],
)
def test_the_memory_of_the_plan_that_is_deployed(monkeypatch, tmp_path, text, memory):
    monkeypatch.setattr(celery_host, "PLAN", tmp_path / "plan.json")
    if text is not None:
        celery_host.PLAN.write_text(text)
    assert celery_host.planned_memory_mb() == memory


def test_the_images_of_workers_and_of_beat_are_found_in_their_units(monkeypatch, tmp_path):
    monkeypatch.setattr(celery_host, "UNITS", tmp_path)
    assert celery_host.app_images() == []
    for name, image in (("celery-a@", "app:2"), ("celery-b@", "app:1"), ("celery-beat", "app:1")):
        (tmp_path / f"{name}.container").write_text(f"[Container]\nImage={image}\nExec=x\n")
    (tmp_path / "celery-a@1.container").symlink_to("celery-a@.container")
    (tmp_path / "celery-gone@.container").symlink_to("nowhere")
    (tmp_path / "celery-redis.container").write_text("[Container]\nImage=redis:8\n")
    assert celery_host.app_images() == ["app:1", "app:2"]


@pytest.mark.parametrize(
    ("text", "image"), [(None, ""), ("{", ""), ("[]", ""), ("{}", ""), ('{"image": "a:1"}', "a:1")]
)
def test_hooks_that_are_left_are_known_by_their_image(monkeypatch, tmp_path, text, image):
    monkeypatch.setattr(celery_host, "HOOKS", tmp_path / "hooks.json")
    if text is not None:
        celery_host.HOOKS.write_text(text)
    assert celery_host.hooks_left() == image


def test_images_that_are_damaged_for_one_reason_are_one_message():
    told = celery_host.damage_told(
        {"b:1": "layer x is missing", "a:1": "layer x is missing", "c:1": "y"}
    )
    assert [one.partition(":")[0] for one in told] == ["a", "c"]
    assert told[0].startswith("a:1, b:1: damaged, ")
    assert "layer x is missing. site.yml removes it" in told[0]


def test_only_labels_of_our_secrets(monkeypatch):
    asked = []

    def output(*argv):
        asked.append(argv)
        if "ls" in argv:
            return "celery-redis-acl\nother\ncelery-plain\n"
        return json.dumps(
            [
                {"Spec": {"Name": "celery-redis-acl", "Labels": {"version": "x"}}},
                {"Spec": {"Name": "celery-plain", "Labels": None}},
            ]
        )

    monkeypatch.setattr(celery_host, "output", output)
    assert celery_host.secrets() == {"celery-redis-acl": {"version": "x"}, "celery-plain": {}}
    assert "other" not in asked[-1]
    assert "--showsecret" not in asked[-1]


def test_nothing_is_missing_where_nothing_is_wanted():
    assert celery_host.missing_packages([]) == []


def test_apt_is_not_asked_where_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(celery_host, "told", lambda *argv: pytest.fail(f"{argv} costs each run"))
    assert celery_host.packages_known([])


@pytest.mark.parametrize(
    ("missing", "policy", "known"),
    [
        (["podman"], "", False),
        (["podman"], "podman:\n  Installed: (none)\n  Candidate: (none)\n", False),
        (["podman"], "podman:\n  Candidate: 5.4.2+ds1-2+b3\n", True),
        (["crun", "podman"], "podman:\n  Candidate: 5.4.2+ds1-2+b3\n", False),
    ],
)
def test_which_packages_the_package_manager_knows(monkeypatch, missing, policy, known):
    monkeypatch.setattr(celery_host, "told", lambda *_: policy)
    assert celery_host.packages_known(missing) is known


@pytest.fixture
def names(monkeypatch):
    """The only names and addresses that are known."""
    known = {"shop.example": ["10.0.0.7", "fd00::7"], "10.0.0.8": ["10.0.0.8"]}

    def look_up(name, port, **_):
        if name not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [(0, 0, 0, "", (one, port)) for one in reversed(known[name])]

    monkeypatch.setattr(celery_host.socket, "getaddrinfo", look_up)


def test_clients_are_known_by_all_their_addresses(names):
    clients = {"shop": ["shop.example"], "web1": ["10.0.0.8", "nowhere.example"]}
    found = {"shop": ["10.0.0.7", "fd00::7"], "web1": ["10.0.0.8"]}
    assert celery_host.resolve(clients, {}, {"shop": ["192.0.2.9"]}) == (found, [])


def test_a_client_without_an_address_is_refused(names):
    with pytest.raises(HostError) as caught:
        celery_host.resolve({"shop": ["a.example", "b.example"], "web1": ["10.0.0.8"]}, {}, {})
    assert str(caught.value).startswith(
        "Redis shall admit shop, and this host knows no address of a.example or b.example. Nothing "
        "was changed. Write redis_client_addresses for each"
    )


def test_who_is_not_there_stays_admitted_as_before(names):
    absent = {"web1": ["10.0.0.8"], "web2": ["shop.example"], "web3": ["nowhere.example"]}
    kept = {"web1": ["192.0.2.1"], "gone": ["192.0.2.2"]}
    found, lost = celery_host.resolve({}, absent, kept)
    assert found == {"web1": ["192.0.2.1"], "web2": ["10.0.0.7", "fd00::7"]}
    assert lost == ["web3"]


def test_the_way_to_redis_is_asked_of_the_kernel():
    assert celery_host.source_toward("127.0.0.1") == "127.0.0.1"


def test_no_way_to_redis_is_told(names):
    with pytest.raises(HostError, match=r"no way from here to Redis at broker\.example: Name or"):
        celery_host.source_toward("broker.example")


def test_without_rules_of_the_kit_all_are_admitted(monkeypatch, tmp_path):
    monkeypatch.setattr(celery_host, "CLIENTS", tmp_path / "clients.json")
    monkeypatch.setattr(celery_host, "EGRESS", tmp_path / "egress.nft")
    monkeypatch.setattr(celery_host, "told", lambda *argv: pytest.fail(f"{argv} costs each run"))
    params = {"toward": "", "clients": {}, "absent": {}, "names": []}
    found = celery_host.network(params)
    assert (found["admitted"], found["firewall"], found["egress"]) == (None, "", None)
    assert found["egress_written"] == ""
    assert not any(found[name] for name in ("source", "clients", "told", "members"))
    assert (found["admitted_hosts"], found["holders"]) == (None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"hosts": {}}', {"hosts": {}}),
        ("[]", {"error": "it is not a JSON object"}),
        ("", {"error": "it is not JSON"}),
        ("[" * 100_000, {"error": "it is not JSON"}),
        ("\udcff", {"error": "it is not JSON"}),
        ("1" * 2_000_000, {"error": "it has more than 1048576 bytes"}),
    ],
)
def test_the_record_of_hosts_is_read_whatever_is_in_it(tmp_path, text, expected):
    path = tmp_path / "holders.json"
    assert recorded(path) is None
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert recorded(path) == expected


def test_those_that_elect_a_primary_are_known(monkeypatch, tmp_path):
    path = tmp_path / "redis-elected.json"
    path.write_text(json.dumps({"members": ["10.0.0.1", "10.0.0.2"]}))
    monkeypatch.setattr(celery_host, "ELECTED", path)
    found = celery_host.network({"toward": "", "clients": {}, "absent": {}, "names": []})
    assert (found["members"], found["primary"]) == (["10.0.0.1", "10.0.0.2"], "")
    state = tmp_path / "sentinel.conf"
    state.write_text("port 0\nsentinel monitor celery 10.0.0.2 6379 2\nsentinel myid x\n")
    monkeypatch.setattr(celery_host, "SENTINEL", state)
    assert celery_host.known_primary() == "10.0.0.2"


def test_whom_redis_admits_and_by_which_rules(monkeypatch, tmp_path):
    path = tmp_path / "clients.json"
    path.write_text(json.dumps({"hosts": {"web1": ["10.0.0.8"]}, "others": ["10.1.0.0/16"]}))
    monkeypatch.setattr(celery_host, "CLIENTS", path)
    table = {"table": {"name": "celery_metal", "comment": "abc"}}
    listed = json.dumps({"nftables": [{"metainfo": {}}, table]})
    monkeypatch.setattr(celery_host, "told", lambda *_: listed)
    params = {"toward": "", "clients": {}, "absent": {"web9": ["no name"]}, "names": []}
    found = celery_host.network(params)
    assert found["admitted"] == ["10.0.0.8", "10.1.0.0/16"]
    assert found["firewall"] == "abc"
    assert found["admitted_hosts"] == ["web1"]
    assert found["told"][0].startswith("web9 is not admitted to Redis: it is no part of this run")
    # The table is not there: somebody has removed it.
    monkeypatch.setattr(celery_host, "told", lambda *_: "")
    assert celery_host.network({**params, "absent": {}})["firewall"] == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unixsocket /x\n# bind 10.0.0.4\nbind 10.0.0.5\nport 0\nbind * -::*\n", ["10.0.0.5"]),
        ("bind -10.0.0.4 -fd00::4 10.0.0.5\n", ["10.0.0.4", "fd00::4", "10.0.0.5"]),
        ("port 0\n", []),
        ("bind \n", []),
    ],
)
def test_where_redis_listens(monkeypatch, tmp_path, text, expected):
    monkeypatch.setattr(celery_host, "REDIS", tmp_path / "redis.conf")
    assert celery_host.listens_on() == []
    (tmp_path / "redis.conf").write_text(text)
    assert celery_host.listens_on() == expected


def test_a_redis_of_its_own_has_data_that_nobody_else_has(monkeypatch, tmp_path):
    monkeypatch.setattr(celery_host, "DATA", tmp_path)
    monkeypatch.setattr(celery_host, "SEVERAL", tmp_path / "redis-of-several")
    assert not celery_host.is_sole([])
    (tmp_path / "appendonlydir").mkdir()
    assert not celery_host.is_sole([])
    (tmp_path / "appendonlydir/appendonly.aof.1.incr.aof").touch()
    assert celery_host.is_sole([])
    assert not celery_host.is_sole(["10.0.0.1", "10.0.0.2"])
    (tmp_path / "redis-of-several").touch()
    assert not celery_host.is_sole([])


def test_which_broker_the_workers_were_given(monkeypatch, tmp_path):
    monkeypatch.setattr(celery_host, "UNITS", tmp_path / "none")
    assert celery_host.broker() == ""
    monkeypatch.setattr(celery_host, "UNITS", tmp_path)
    (tmp_path / "celery-redis.container").write_text("[Container]\n")
    assert celery_host.broker() == ""
    text = 'Environment="A=1"\nEnvironment="CELERY_METAL_BROKER=redis://w%%20@h:6379/0?a=$$"\n'
    (tmp_path / "celery-a@.container").write_text(text)
    assert celery_host.broker() == "redis://w%20@h:6379/0?a=$"


def test_which_queues_the_deployed_workers_consume(monkeypatch, tmp_path):
    monkeypatch.setattr(celery_host, "UNITS", tmp_path)
    assert celery_host.queues() == []
    for name, lines in {
        "celery-redis": "",
        "celery-beat": 'Environment="CELERY_METAL_QUEUE=no worker"\n',
        "celery-a@": 'Environment="CELERY_METAL_QUEUE=50%% of \\"$$a\\" \\\\"\n',
        "celery-b@": 'Environment="CELERY_METAL_QUEUE=b"\nEnvironment="CELERY_METAL_QUEUES=x,y"\n',
        "celery-c@": 'Environment="CELERY_METAL_QUEUE=x"\n',
        "celery-d@": "[Container]\n",
    }.items():
        (tmp_path / f"{name}.container").write_text(f"[Container]\n{lines}")
    assert celery_host.queues() == ['50% of "$a" \\', "x", "y"]


def test_which_rules_of_the_workers_network_the_kernel_has(monkeypatch, tmp_path):
    path = tmp_path / "egress.nft"
    path.write_text('table inet celery_egress {\n\t# Shows which.\n\tcomment "abd"\n}\n')
    monkeypatch.setattr(celery_host, "EGRESS", path)
    tables = {"celery_egress": {"nftables": [{"table": {"comment": "abc"}}]}}
    monkeypatch.setattr(celery_host, "told", lambda *argv: json.dumps(tables.get(argv[-1], {})))
    params = {"toward": "", "clients": {}, "absent": {}, "names": []}
    found = celery_host.network(params)
    assert (found["egress"], found["egress_written"]) == ("abc", "abd")
    # As "nft flush ruleset" leaves it.
    monkeypatch.setattr(celery_host, "told", lambda *_: "")
    assert celery_host.network(params)["egress"] == ""


def test_names_of_redis_are_looked_up_on_the_host(names):
    params = {"toward": "", "clients": {}, "absent": {}, "names": ["shop.example", "no.example"]}
    found = celery_host.network(params)["names"]
    assert found == {"shop.example": ["10.0.0.7", "fd00::7"], "no.example": []}


def written(address):
    """As the kernel shows it: in the order of bytes of the machine."""
    return f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}"


@pytest.mark.parametrize(
    ("routes", "found"),
    [
        (["eth0 10.87.0.0 255.255.255.0 1"], ["10.87.0.0/24"]),
        (["eth0 10.0.0.0 255.0.0.0 3", "eth1 10.87.0.0 255.255.255.0 1"], ["10.0.0.0/8"]),
        (["eth0 10.1.0.0 255.255.0.0 3", "eth0 10.2.0.7 255.255.255.255 7"], None),
        (["eth0 172.31.0.0 255.255.0.0 1", "eth0 172.31.0.0 255.255.0.0 3"], ["172.31.0.0/16"]),
        # The default route, also in two halves; the workers' own network; what is refused or down.
        (["eth0 0.0.0.0 0.0.0.0 3", "tun0 0.0.0.0 128.0.0.0 3"], []),
        (["celery0 10.87.0.0 255.255.255.0 1"], []),
        (["* 10.0.0.0 255.0.0.0 201", "eth0 10.3.0.0 255.255.0.0 0"], []),
        (["eth0 192.0.2.0 255.255.255.0 1"], []),
        ([], []),
    ],
)
def test_private_networks_that_the_host_has_routes_to(monkeypatch, tmp_path, routes, found):
    lines = ["Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"]
    for one in routes:
        interface, target, mask, flags = one.split()
        words = (interface, written(target), "0" * 8, f"{flags:0>4}", "0", "0", "0", written(mask))
        lines.append("\t".join((*words, "0", "0", "0")))
    path = tmp_path / "route"
    path.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(celery_host, "ROUTES", path)
    expected = ["10.1.0.0/16", "10.2.0.7/32"] if found is None else found
    assert celery_host.routes() == expected


def test_a_host_without_ipv4_has_no_routes(monkeypatch, tmp_path):
    monkeypatch.setattr(celery_host, "ROUTES", tmp_path / "route")
    assert celery_host.routes() == []


@pytest.mark.parametrize(
    ("has_unit", "status", "expected"), [(False, 0, None), (True, 0, True), (True, 1, False)]
)
def test_whether_all_rules_went_since_podman_wrote_its_own(
    monkeypatch, tmp_path, has_unit, status, expected
):
    path = tmp_path / "celery-network.service"
    if has_unit:
        path.touch()
    monkeypatch.setattr(celery_host, "RELOADER", path)
    monkeypatch.setattr(celery_host.shutil, "which", lambda name: name)

    def run(*argv):
        assert argv[-1] == "celery_network"
        return subprocess.CompletedProcess(argv, status)

    monkeypatch.setattr(celery_host, "run", run)
    assert celery_host.has_podman_rules() == expected
