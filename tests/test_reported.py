"""What a compromised host reports is used on no other host, and not on the controller."""

from __future__ import annotations

import ipaddress
import re
from types import ModuleType
from typing import Any

import pytest
import reported
from hypothesis import given
from hypothesis import strategies as st

HOSTS: dict[str, dict[str, Any]] = {
    "r1": {"ansible_host": "10.0.0.1", "redis_address": "10.0.0.1"},
    "r2": {"ansible_host": "10.0.0.2", "redis_address": "10.0.0.2"},
    "web1": {"ansible_host": "10.0.0.8"},
    "web2": {"ansible_host": "10.0.0.9"},
}
NO_ADDRESS = [
    *(
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.8/32",
        "::/0",
        "",
        "web1",
        "10.0.0.8\n",
        "10.0.0.8, 0.0.0.0",
    ),
    *(
        "0.0.0.0",
        "::",
        "127.0.0.1",
        "::1",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "fe80::1%eth0",
    ),
    *(
        "::ffff:127.0.0.1",
        "::ffff:0.0.0.0",
        7,
        True,
        167772168,
        ["10.0.0.8"],
        None,
        {},
        b"10.0.0.8",
    ),
    "10.0.0.8 } ; flush ruleset ; #",
]


def admitted(clients: ModuleType, source: Any, **web1: Any) -> Any:
    state = {"source": source}
    hosts = {**HOSTS, "web1": {**HOSTS["web1"], **web1, "podman_host_state": state}}
    return clients.admitted(hosts, ["r1"], ["web1", "web2"])


@pytest.mark.parametrize("value", [one for one in NO_ADDRESS if one])
def test_what_a_worker_says_becomes_no_rule(clients: ModuleType, value: Any) -> None:
    with pytest.raises(reported.ReportedError) as error:
        admitted(clients, value)
    said = str(error.value)
    assert said.startswith('host web1: it reports source "')
    assert "Fix: " in said
    assert said.endswith("Nothing was changed.")
    assert said.count("\n") == 1
    assert said.isascii()


@pytest.mark.parametrize("value", NO_ADDRESS)
def test_all_that_is_no_single_address(value: Any) -> None:
    with pytest.raises(reported.ReportedError):
        reported.address("web1", "source", value)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("10.0.0.9", "which is the address of web2"),
        ("10.0.0.1", "which is the address of r1"),
        ("203.0.113.77", None),  # of the documentation, so not a public one
        ("8.8.8.8", "is a public address, while Redis at 10.0.0.1 is private"),
        ("10.7.0.8", None),
        ("10.0.0.8", None),
    ],
)
def test_it_is_one_that_the_inventory_leads_to_expect(
    clients: ModuleType, value: str, why: str | None
) -> None:
    if why is None:
        assert admitted(clients, value) == {"web1": [value]}
    else:
        with pytest.raises(reported.ReportedError, match=why):
            admitted(clients, value)


def test_an_address_that_the_operator_declares_goes_before(clients: ModuleType) -> None:
    assert admitted(clients, "0.0.0.0/0", redis_client_addresses=["8.8.8.8"]) == {}
    assert admitted(clients, "8.8.8.8", ansible_host="8.8.8.8") == {"web1": ["8.8.8.8"]}


@given(st.text() | st.from_regex(r"[0-9a-f.:/]{1,40}") | st.ip_addresses().map(str) | st.integers())
def test_what_is_taken_is_a_single_address_of_a_host(value: Any) -> None:
    try:
        found = ipaddress.ip_address(reported.address("web1", "source", value))
    except reported.ReportedError as refused:
        said = str(refused)
    else:
        said = "taken"
    assert re.fullmatch(r"[ -~\n]{1,400}", said)
    if said != "taken":
        return
    network = ipaddress.ip_network(str(value))
    assert network.num_addresses == 1
    assert not any((found.is_loopback, found.is_multicast, found.is_unspecified))


@pytest.mark.parametrize(
    "said",
    [
        {"web1": ["0.0.0.0/0"]},
        {"web1": "10.0.0.8"},
        {"web1": ["10.0.0.8"] * 100},
        {"x # }\n flush ruleset": ["10.0.0.8"]},
    ],
)
def test_what_the_host_of_redis_says_of_clients(clients: ModuleType, said: Any) -> None:
    hosts = {**HOSTS, "r1": {**HOSTS["r1"], "podman_host_state": {"clients": said}}}
    with pytest.raises(reported.ReportedError, match="host r1: it reports"):
        clients.admitted(hosts, ["r1", "r2"], ["web1"])


@pytest.mark.parametrize(
    "label",
    ["1\nVolume=/:/host", "a\nExecStartPre=/bin/sh", "x" * 9999, None, ["1"], "\x1b[2J", '"'],
)
def test_a_label_of_a_secret_stands_in_units_of_other_hosts(
    clients: ModuleType, label: Any
) -> None:
    kept = {"celery-redis-worker": {"version": label}}
    host = {"inventory_hostname": "r1", "podman_host_state": {"secrets": kept}}
    for use in (lambda: clients.made(host), lambda: clients.secrets(host, kept, True)):
        with pytest.raises(reported.ReportedError, match="host r1: it reports the label 'version'"):
            use()


def test_members_are_addresses(clients: ModuleType) -> None:
    hosts = {**HOSTS, "r2": {**HOSTS["r2"], "podman_host_state": {"members": ["10.0.0.7", "x y"]}}}
    with pytest.raises(reported.ReportedError, match="host r2: it reports members"):
        clients.leaving(hosts, ["r1", "r2"])


def test_a_run_ends_before_it_changes_anything_and_names_all() -> None:
    hosts = {
        "r1": {"podman_host_state": {"primary": "::", "members": ["10.0.0.2"], "secrets": {}}},
        "web1": {"podman_host_state": {"source": "0.0.0.0/0"}},
        "web2": {"site_broker_state": {"secrets": {"a": {"version": "\n"}}}},
        "web3": {"podman_host_state": {"source": "10.0.0.8", "secrets": {"a": {"version": "1"}}}},
        "web4": {},
    }
    said = reported.problems(hosts, ["r1"], list(hosts))
    assert [line.split(":")[0] for line in said.splitlines()[::2]] == [
        *("host r1", "host web1", "host r1")
    ]
    assert reported.problems(hosts, ["r1"], ["web3", "web4"]) == ""


KEY = f"ssh-ed25519 {'A' * 68} celery-metal host-a"


@pytest.mark.parametrize(
    "text", [f"{KEY}\nssh-ed25519 {'B' * 68} x", f"{KEY}\n", f"command=x {KEY}", "", None, 7]
)
def test_the_key_for_shipping_is_one_line(text: Any) -> None:
    with pytest.raises(reported.ReportedError, match="is no key of ssh-ed25519"):
        reported.public_key(text, "r1")
    assert reported.public_key(KEY, "r1") == KEY
    assert reported.public_key(reported.UNMADE, "r1") == reported.UNMADE


def test_the_names_of_a_certificate_may_be_many(clients: ModuleType) -> None:
    names = ",".join(f"10.0.0.{number}" for number in range(255))
    found = {
        "celery-redis-certificate-server": {"names": f"redis.example.org,*.example.org,{names}"}
    }
    assert reported.labels("r1", found) == found


@pytest.mark.parametrize("redis", [[], ["r1"]])
def test_without_a_host_of_redis_workers_are_checked_all_the_same(redis: list[str]) -> None:
    hosts = {"web1": {"podman_host_state": {"source": "10.0.0.7"}}, "r1": {}}
    assert reported.problems(hosts, redis, ["web1"]) == ""
    hosts["web1"]["podman_host_state"]["source"] = "0.0.0.0/0"
    assert 'web1: it reports source "0.0.0.0/0"' in reported.problems(hosts, redis, ["web1"])
