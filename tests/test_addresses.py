"""The one address of Redis: declared, kept, the only one, or demanded."""

from __future__ import annotations

from typing import Any

import addresses
import pytest
import reported
from jinja2 import UndefinedError


def card(address: str = "", kind: str = "ether", **more: Any) -> dict[str, Any]:
    """Facts of an interface."""
    ipv4 = {"ipv4": {"address": address}} if address else {}
    return {"type": kind, "active": True, **ipv4, **more}


def facts(default: str = "", **cards: dict[str, Any]) -> dict[str, Any]:
    """Facts of a host with these interfaces; one of them has the default route."""
    cards = {"lo": card("127.0.0.1", "loopback"), **cards}
    route = {"interface": default, "address": cards[default]["ipv4"]["address"]} if default else {}
    return {
        "ansible_facts": {
            "interfaces": [name.replace("_", "-") for name in cards],
            "default_ipv4": route,
            **cards,
        }
    }


ETH0, ETH1 = card("10.0.0.5"), card("10.9.0.5")
DOCKER = card("172.17.0.1", "bridge", active=False, interfaces=[])
PODMAN = card("172.18.0.1", "bridge", interfaces=["veth0", "vethab12", "vnet3", "tap0", "vb-a"])
BRIDGED = card("10.0.0.5", "bridge", interfaces=["veth0", "eno1"])


def kept(address: Any) -> dict[str, Any]:
    return {"podman_host_state": {"listens_on": address}}


def state(broker: Any) -> dict[str, Any]:
    return {"podman_host_state": {"broker": broker}}


def chosen(host: dict[str, Any], state: dict[str, Any] | None = None) -> str:
    return addresses.redis_address({"r1": host}, "r1", state)


@pytest.mark.parametrize(
    "host",
    [
        facts("eth0", eth0=ETH0),
        # Without a default route it is the only one, too.
        facts(eth0=ETH0),
        facts("eth0", eth0=ETH0, docker0=DOCKER, br_0123456789ab=PODMAN),
        facts("docker0", eth0=ETH0, docker0={**DOCKER, "ipv4": {"address": "x"}}),
        facts("eth0", eth0=ETH0, flannel_1=ETH1, kube_ipvs0=ETH1, cali1=ETH1),
        facts("br0", br0=BRIDGED, eno1=card()),
        # A default route leads out, whatever the ports of its bridge are called.
        facts("br0", br0={**PODMAN, "ipv4": {"address": "10.0.0.5"}}),
        facts("eth0", eth0=ETH0, eth1={**ETH1, "active": False}),
        facts("eth0", eth0=ETH0, eth1=card("169.254.3.4"), lo=card("10.7.0.5", "loopback")),
    ],
)
def test_a_host_with_one_address_needs_no_declaration(host: dict[str, Any]) -> None:
    assert chosen(host) == "10.0.0.5"
    assert chosen({**host, "redis_address": ""}) == "10.0.0.5"
    assert addresses.problems(host, "10.0.0.5") == []


TWO = [
    facts("eth0", eth0=ETH0, eth1=ETH1),
    facts("eth1", eth0=ETH0, eth1=ETH1),
    facts(eth0=ETH0, eth1=ETH1),
    facts("eth0", eth0={**ETH0, "ipv4_secondaries": [{"address": "10.9.0.5"}]}),
    {
        "ansible_facts": {
            "interfaces": ["eth0", "eth0:1"],
            "eth0": ETH0,
            "eth0:1": {"ipv4": {"address": "10.9.0.5"}},
        }
    },
]


@pytest.mark.parametrize("host", TWO)
def test_of_several_addresses_the_user_chooses_at_first(host: dict[str, Any]) -> None:
    assert addresses.is_open({"r1": host}, "r1")
    assert chosen(host) == ""
    (said,) = addresses.problems({**host, "ansible_host": "10.9.0.5"}, "")
    first, why, fix = said.splitlines()
    assert first.startswith("redis_address is not set, and the host has 2 addresses: 10.0.0.5 (")
    assert why == "  Other hosts must reach Redis, which listens on one address."
    # That by which the controller reaches it.
    assert fix.endswith("such as redis_address: 10.9.0.5")
    assert addresses.problems(host, "")[0].endswith("such as redis_address: 10.0.0.5")
    assert chosen({**host, "redis_address": "redis.example"}) == "redis.example"
    assert not addresses.is_open({"r1": {**host, "redis_address": "10.0.0.5"}}, "r1")


@pytest.mark.parametrize("host", TWO)
@pytest.mark.parametrize("before", ["10.0.0.5", "10.9.0.5"])
def test_what_redis_has_stays_whatever_the_default_route_is(
    host: dict[str, Any], before: str
) -> None:
    assert chosen({**host, **kept([before])}) == before
    # In a move that did not end.
    assert chosen({**host, **kept(["10.8.0.5", before, "10.0.0.5"])}) == before
    # With --limit somebody else has looked at it.
    assert chosen(host, {"listens_on": [before]}) == before
    assert chosen({**host, **kept([before]), "redis_address": "10.0.0.9"}) == "10.0.0.9"


HERE, THERE = "10.0.0.5", "10.9.0.5"
URL = "rediss://worker@{}:6379/0"


@pytest.mark.parametrize(
    ("listens", "brokers", "expected"),
    [
        # Nothing moves.
        ([THERE], [THERE], []),
        ([], [HERE], []),
        ([HERE], [HERE, HERE], [HERE]),
        # Some have moved, some have not.
        ([HERE], [THERE, HERE], [HERE]),
        # All have: what a run left that failed later goes with the next one.
        ([HERE, THERE], [THERE, THERE], []),
        # What no worker uses is nothing to stay at.
        (["10.8.0.5"], [HERE], []),
        # A first worker, and one beside Redis.
        ([HERE], [None, ""], []),
        # By another port no worker would reach it.
        ([HERE], [f"{HERE}:6380"], []),
        (["fd00::5", "::1", "redis.example", "0.0.0.0"], ["[fd00::5]", "[::1]"], ["fd00::5"]),
    ],
)
def test_redis_stays_where_workers_reach_it_while_it_moves(
    listens: list[str], brokers: list[str | None], expected: list[str]
) -> None:
    workers = {f"w{n}": state(one and URL.format(one)) for n, one in enumerate(brokers)}
    hosts = {"r1": {"redis_address": THERE, **kept(listens)}, **workers}
    assert addresses.former(hosts, ["r1"], list(workers)) == expected
    assert addresses.left(hosts, ["r1"], list(workers)) == expected


def test_redis_stays_for_workers_that_are_no_part_of_the_run() -> None:
    hosts = {"r1": {"redis_address": THERE, **kept([HERE, THERE])}, "w1": {}, "w2": state("")}
    assert addresses.former(hosts, ["r1"], ["w1", "w2"]) == [HERE]
    assert addresses.left(hosts, ["r1"], ["w1", "w2"]) == []
    # And it does not move when it is none.
    assert addresses.former({"r1": {"redis_address": THERE}, "w1": {}}, ["r1"], ["w1"]) == []


def test_several_redis_have_one_address_each() -> None:
    one = {"redis_address": THERE, **kept([HERE])}
    hosts = {"r1": one, "r2": one, "r3": one, "w1": state(URL.format(HERE))}
    assert addresses.former(hosts, ["r1", "r2", "r3"], ["w1"]) == []
    assert addresses.former(hosts, [], ["w1"]) == []


@pytest.mark.parametrize("broker", ["redis://[x", "redis://h:99999", 7, ["x"], "redis+socket:///x"])
def test_what_is_no_url_of_a_broker_holds_no_address(broker: Any) -> None:
    hosts = {"r1": {"redis_address": THERE, **kept([HERE])}, "w1": state(broker)}
    assert addresses.former(hosts, ["r1"], ["w1"]) == []


def test_an_interface_that_is_down_keeps_its_redis() -> None:
    host = facts("eth0", eth0=ETH0, eth1={**ETH1, "active": False})
    assert addresses.is_open({"r1": host}, "r1")
    assert chosen({**host, **kept(["10.9.0.5"])}) == "10.9.0.5"


@pytest.mark.parametrize(
    "gone", [["10.8.0.5"], ["redis.example"], ["172.17.0.1"], [], None, 7, [7], "10.0.0.5"]
)
def test_an_address_that_the_host_does_not_have_is_not_kept(gone: Any) -> None:
    one = facts("eth0", eth0=ETH0, docker0=DOCKER)
    assert not addresses.is_open({"r1": one}, "r1")
    assert chosen({**one, **kept(gone)}) == "10.0.0.5"
    two = {**TWO[0], **kept(gone)}
    assert chosen(two) == ""
    (said,) = addresses.problems(two, "")
    is_told = isinstance(gone, list) and "." in str(gone)
    assert ("; Redis listened on " in said) == is_told
    assert not is_told or f"; Redis listened on {gone[0]} until now, which is gone\n" in said


def test_a_host_without_an_address_is_told() -> None:
    for host in ({}, facts(), facts(docker0=DOCKER)):
        assert chosen(host) == ""
        (said,) = addresses.problems(host, " ")
        assert said.startswith("redis_address is not set, and the host has no IPv4 address on a ")
        assert said.endswith("such as redis_address: 10.0.0.5")


def test_a_message_is_short_and_without_control_characters() -> None:
    more = {f"eth{n}": card(f"10.0.{n}.5") for n in range(50)}
    (said,) = addresses.problems(facts(**more), "")
    assert "10.0.7.5 (eth7), 42 more" in said
    assert len(said) < 500
    odd = {"interfaces": ["a\x1b[2J", "b"], "a\x1b[2J": ETH0, "b": ETH1}
    assert "\x1b" not in addresses.problems({"ansible_facts": odd}, "")[0]


def test_what_cannot_be_read_is_told_by_the_check_of_declarations() -> None:
    class Unread(dict[str, Any]):
        def get(self, *_: Any) -> Any:
            raise UndefinedError("made of facts")

        __getitem__ = get

    hosts = {"r1": Unread(redis_address="")}
    assert addresses.known(hosts, "r1") is None
    assert not addresses.is_open(hosts, "r1")
    assert addresses.known({"r1": facts("eth0", eth0=ETH0)}, "r1") == "10.0.0.5"


@pytest.mark.parametrize("value", ["x\nVolume=/:/host", "0.0.0.0", "224.0.0.1"])
def test_facts_of_the_host_of_redis_are_an_address(value: str) -> None:
    hosts = {"r1": {"ansible_facts": {"default_ipv4": {"address": value}}}}
    with pytest.raises(reported.ReportedError, match="host r1: it reports the address for Redis"):
        addresses.redis_address(hosts, "r1")
