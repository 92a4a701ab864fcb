"""Tests of the lab's pure parts: they boot nothing."""

from __future__ import annotations

import ipaddress
import json
import pathlib

import lab
import pytest

MEMINFO = (
    "MemTotal:       24683656 kB\n"
    "MemFree:        12341828 kB\n"
    "VmallocTotal:   34359738367 kB\n"
    "HugePages_Total:       0\n"
    "Hugepagesize:       2048 kB\n"
)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ([], "10.213.0.0/24"),
        (["10.213.0.5/24"], "10.213.1.0/24"),
        (["10.213.0.0/23", "192.0.2.2/24"], "10.213.2.0/24"),
        (["10.213.1.0/24"], "10.213.0.0/24"),
        (["10.213.0.200"], "10.213.1.0/24"),
    ],
)
def test_the_first_free_subnet_is_chosen(taken: list[str], expected: str) -> None:
    assert lab.choose_subnet(taken) == expected


def test_no_free_subnet_is_an_error() -> None:
    with pytest.raises(lab.LabError, match="no free"):
        lab.choose_subnet(["10.0.0.0/8"])


def test_memory_is_what_was_asked_for() -> None:
    scaled = dict(line.split(":") for line in lab.scale_meminfo(MEMINFO, 2048).strip().splitlines())
    assert scaled["MemTotal"].split() == ["2097152", "kB"]
    assert scaled["MemFree"].split() == ["1048576", "kB"]


def test_what_is_not_memory_is_not_scaled() -> None:
    scaled = lab.scale_meminfo(MEMINFO, 512).splitlines()
    assert scaled[2:] == MEMINFO.splitlines()[2:]


@pytest.mark.parametrize("name", ["a", "0123abcd-default", "x" * 200])
def test_names_of_interfaces_fit_the_kernel(name: str) -> None:
    assert len(lab.bridge_name(name)) <= 15
    assert len(lab.veth_name(name, 200)) <= 15


def test_labs_of_two_checkouts_differ() -> None:
    one, two = (lab.full_name("@default", pathlib.Path(path)) for path in ("/a", "/b"))
    assert one != two
    assert one.endswith("-default")
    assert lab.full_name("mine") == "mine"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "at least one"),
        ({"name": "a"}, "at least one"),
        ([{"groups": []}], "no name"),
        ([{"name": "a", "ram": 1}], "unknown key 'ram'"),
        ([{"name": "a"}, {"name": "a"}], "same name"),
    ],
)
def test_wrong_platforms_are_refused(data: object, message: str) -> None:
    with pytest.raises(lab.LabError, match=message):
        lab.parse_platforms(data)


def two_hosts() -> lab.Lab:
    platforms = lab.parse_platforms(
        [{"name": "a", "groups": ["redis", "workers"]}, {"name": "b", "groups": ["workers"]}]
    )
    return lab.place("t", "10.213.7.0/24", (), platforms)


def test_hosts_get_addresses_in_the_subnet() -> None:
    made = two_hosts()
    assert [host.address for host in made.hosts] == ["10.213.7.11", "10.213.7.12"]
    network = ipaddress.ip_network(made.subnet)
    assert all(ipaddress.ip_address(host.address) in network for host in made.hosts)
    assert made.gateway == "10.213.7.1"


def test_hosts_that_are_there_keep_their_addresses() -> None:
    before = two_hosts()
    wanted = lab.parse_platforms([{"name": "c"}, {"name": "b", "groups": ["workers"]}])
    after = lab.place("t", before.subnet, before.hosts, wanted)
    assert after.hosts[:2] == before.hosts
    assert after.host("c").address == "10.213.7.13"


def test_a_host_cannot_change_under_way() -> None:
    before = two_hosts()
    wanted = lab.parse_platforms([{"name": "b", "groups": ["workers"], "cpus": 1}])
    with pytest.raises(lab.LabError, match="different"):
        lab.place("t", before.subnet, before.hosts, wanted)


def test_inventory_has_groups_and_reaches_hosts() -> None:
    inventory = json.loads(lab.render_inventory(two_hosts()))["all"]
    assert list(inventory["children"]["workers"]["hosts"]) == ["a", "b"]
    assert list(inventory["children"]["redis"]["hosts"]) == ["a"]
    assert inventory["hosts"]["b"]["ansible_host"] == "10.213.7.12"
    assert "StrictHostKeyChecking=yes" in inventory["hosts"]["b"]["ansible_ssh_common_args"]


def test_both_forms_of_the_inventory_agree() -> None:
    made = two_hosts()
    static = json.loads(lab.render_inventory(made))["all"]
    dynamic = json.loads(lab.render_dynamic(made))
    assert dynamic["_meta"]["hostvars"] == static["hosts"]
    for group, members in static["children"].items():
        assert dynamic[group]["hosts"] == list(members["hosts"])


def test_ssh_sockets_have_room_for_their_names() -> None:
    directory = lab.host_vars(two_hosts(), two_hosts().hosts[0])["ansible_control_path_dir"]
    # sun_path has 108 bytes; ssh and ansible add about 30.
    assert len(directory) + 30 < 108


@pytest.mark.parametrize(
    ("cpus", "index", "expected"),
    [(None, 1, []), (1, 1, [4]), (1, 2, [7]), (1, 3, [4]), (2, 2, [4, 7])],
)
def test_hosts_share_the_cpus_in_turn(cpus: int | None, index: int, expected: list[int]) -> None:
    host = lab.Host("t", index, "10.213.7.11", lab.Platform("a", cpus=cpus))
    assert lab.pinned_cpus(host, [4, 7]) == expected


def test_more_cpus_than_there_are_is_an_error() -> None:
    host = lab.Host("t", 1, "10.213.7.11", lab.Platform("a", cpus=3))
    with pytest.raises(lab.LabError, match="wants 3 CPUs"):
        lab.pinned_cpus(host, [0, 1])
