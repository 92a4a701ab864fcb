"""Who shall reach Redis, and what each host is asked for that."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

WORKERS, PRODUCERS = ["r1", "web1", "web2", "web3"], ["shop1", "shop2"]
ALL = ["r1", "web1", "web2", "web3"]
HOSTS: dict[str, dict[str, Any]] = {
    "r1": {"ansible_facts": {"default_ipv4": {"address": "10.0.0.5"}}},
    "web1": {"ansible_host": "192.0.2.1"},
    "web2": {"ansible_host": "192.0.2.2"},
    "web3": {"redis_client_addresses": ["nat.example"]},
    "shop1": {"ansible_host": "192.0.2.7"},
    "shop2": {"redis_client_addresses": ["10.0.0.7", "fd00::7"]},
}


def asked(clients: ModuleType, host: str, played: list[str], **changed: Any) -> dict[str, Any]:
    hosts = {**HOSTS, "r1": {**HOSTS["r1"], **changed}}
    return clients.contacts(hosts, host, "r1", WORKERS, PRODUCERS, played)


def test_a_worker_is_asked_for_its_way_to_redis(clients: ModuleType) -> None:
    assert asked(clients, "web1", ALL) == {"toward": "10.0.0.5"}
    assert asked(clients, "web1", ALL, redis_address="10.9.9.9") == {"toward": "10.9.9.9"}


def test_the_host_of_redis_is_asked_for_those_that_nobody_asks(clients: ModuleType) -> None:
    known = {"web3": ["nat.example"], "shop1": ["192.0.2.7"], "shop2": ["10.0.0.7", "fd00::7"]}
    assert asked(clients, "r1", ALL) == {"clients": known, "absent": {}}
    # With --limit some say nothing themselves.
    absent = {"web1": ["192.0.2.1"], "web2": ["192.0.2.2"]}
    assert asked(clients, "r1", ["r1"]) == {"clients": known, "absent": absent}


@pytest.mark.parametrize("host", ["r1", "web1"])
def test_nothing_is_asked_where_no_rules_are_made(clients: ModuleType, host: str) -> None:
    assert asked(clients, host, ALL, redis_firewall=False) == {}
    # Its rules are not made in a run without it.
    assert asked(clients, host, ["web1"]) == {}
    assert clients.contacts(HOSTS, host, "r1", ["r1"], [], ["r1"]) == {}


@pytest.mark.parametrize(
    ("told", "others", "expected"),
    [
        ({}, ["r1"], False),
        ({}, [], False),
        ({"redis_listen": True}, ["r1"], True),
        ({}, ["r1", "web1"], True),
        ({}, ["shop1"], True),
    ],
)
def test_when_redis_listens(
    clients: ModuleType, told: dict[str, Any], others: list[str], expected: bool
) -> None:
    assert clients.listens({"r1": told}, "r1", others) is expected


def test_each_is_admitted_by_what_it_said_or_what_is_declared(clients: ModuleType) -> None:
    hosts: dict[str, dict[str, Any]] = {
        "r1": {"podman_host_state": {"source": "", "clients": {"web3": ["10.0.9.9"]}}},
        "web1": {"podman_host_state": {"source": "10.0.0.8", "clients": {}}},
        # Not part of the run, and not known to Redis's host either.
        "web2": {},
        # What it says itself is not what Redis sees.
        "web3": {"podman_host_state": {"source": "10.0.0.9", "clients": {}}},
    }
    admitted = clients.admitted(hosts, "r1", WORKERS)
    assert admitted == {"web1": ["10.0.0.8"], "web3": ["10.0.9.9"]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([], ""),
        (["10.0.0.7", "fd00::7", "shop.example"], ""),
        ("10.0.0.7", "is '10.0.0.7': write a list of addresses or names"),
        ([7], "holds 7, which is neither: write a list"),
        (["a b", "10.0.0.7"], "holds 'a b', which is neither"),
    ],
)
def test_addresses_of_producers(clients: ModuleType, value: Any, text: str) -> None:
    said = clients.client_problems({"shop1": {"redis_client_addresses": value}}, ["shop1"])
    assert (said == "") if not text else text in said
