"""Who shall reach Redis, and what each host is asked for that."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from ansible.errors import AnsibleError
from jinja2 import Undefined

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
    admitted = clients.admitted(hosts, ["r1"], WORKERS)
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


ELECT = ["r1", "r2", "r3"]


def test_those_that_elect_a_primary_admit_each_other(clients: ModuleType) -> None:
    hosts: dict[str, dict[str, Any]] = {
        "r1": {
            "redis_address": "10.0.0.1",
            "podman_host_state": {"clients": {"shop": ["10.9.9.9"]}},
        },
        "r2": {"ansible_facts": {"default_ipv4": {"address": "10.0.0.2"}}},
        "r3": {"redis_address": "10.0.0.3"},
        "shop": {},
        "web1": {"podman_host_state": {"source": "10.0.0.8"}},
    }
    assert clients.members(hosts, ELECT) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert clients.members(hosts, ["r1"]) == []
    assert clients.admitted(hosts, ELECT, ["web1"]) == {
        "r1": ["10.0.0.1"],
        "r2": ["10.0.0.2"],
        "r3": ["10.0.0.3"],
        "web1": ["10.0.0.8"],
        "shop": ["10.9.9.9"],
    }
    hosts["r2"]["ansible_host"] = "two.example"
    assert clients.elected_url(hosts, ELECT, 3) == (
        "sentinels://worker@10.0.0.1:26379,10.0.0.2:26379,10.0.0.3:26379/3?master_name=celery"
    )
    # The play has not looked at it, and the address behind its name is not known.
    hosts["r2"] = {"ansible_host": "two.example"}
    assert ",two.example:26379," in clients.elected_url(hosts, ELECT, 3)
    assert clients.named(hosts, ELECT) == {"10.0.0.1": "r1", "10.0.0.3": "r3"}
    assert clients.named(hosts, ["r1"]) == {}


def test_a_primary_that_would_be_lost_is_no_run(clients: ModuleType) -> None:
    hosts: dict[str, dict[str, Any]] = {
        name: {"redis_address": f"10.0.0.{name[1]}", "podman_host_state": {"primary": "10.0.0.3"}}
        for name in ELECT
    }
    assert clients.lost_primary(hosts, ELECT) == ""
    said = clients.lost_primary(hosts, ["r1", "r2"])
    assert said.startswith("host r1: 10.0.0.3 is the primary of Redis, and no host of the group")
    assert "run playbooks/remove.yml with --limit for it" in said
    assert clients.lost_primary({"r1": {}}, ["r1"]) == ""


SOLE = {"is_sole": True}


@pytest.mark.parametrize(
    ("states", "lost", "remedy"),
    [
        ({}, "", ""),
        ({"r1": SOLE}, "", ""),
        ({"r2": SOLE}, "r2", "Write r2 first in the group redis"),
        ({"r1": SOLE, "r3": SOLE}, "r3", "Let its workers empty it"),
        ({"r2": SOLE, "r3": SOLE}, "r2", "Let its workers empty it"),
        # It comes to those that have elected one.
        ({"r1": {"members": ["10.0.0.1"]}, "r3": SOLE}, "r3", "Let its workers empty it"),
    ],
)
def test_the_tasks_of_a_single_redis_are_not_replaced(
    clients: ModuleType, states: dict[str, Any], lost: str, remedy: str
) -> None:
    hosts = {name: {"podman_host_state": states.get(name, {})} for name in ELECT}
    said = clients.replaced_data(hosts, ELECT)
    assert bool(said) == bool(lost)
    assert said.startswith(f"host {lost}: " if lost else "")
    assert remedy in said
    assert clients.replaced_data(hosts, ["r2"]) == ""


def test_who_elected_and_is_to_no_more_leaves(clients: ModuleType) -> None:
    before = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    hosts = {
        name: {"redis_address": f"10.0.0.{name[1]}", "podman_host_state": {"members": before}}
        for name in ("r1", "r2", "r3")
    }
    hosts["r4"] = {"redis_address": "10.0.0.4", "podman_host_state": {"members": []}}
    assert clients.leaving(hosts, ["r1", "r2", "r3"]) == []
    assert clients.leaving(hosts, ["r1", "r2", "r4"]) == ["10.0.0.3"]
    assert clients.leaving(hosts, ["r2"]) == ["10.0.0.1", "10.0.0.3"]
    # One of them has changed already, in a run that was cut.
    hosts["r1"]["podman_host_state"] = {"members": before[:2]}
    assert clients.leaving(hosts, ["r1", "r2"]) == ["10.0.0.3"]
    assert clients.leaving({"r1": {"redis_address": "10.0.0.1"}}, ["r1"]) == []


class Unreadable(dict[str, Any]):
    """Variables of which none can be read."""

    def get(self, name: str, default: Any = None) -> Any:
        raise AnsibleError(name)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([None, None, None], []),
        ([2, 2, 2], []),
        # The check of all variables tells.
        (["3", 2.5, None], []),
        ([Undefined(), 1, [3]], []),
        (
            [3, 3, 3],
            [
                "hosts r1, r2, r3: redis_replicas_required is 3, and of 3 hosts in the group redis "
                "2 are replicas, so that the primary would never take a task: write 1, with which "
                "one of them may be away, or 2, with which none may; or add hosts."
            ],
        ),
        (
            [None, 4, 3],
            ["host r2: redis_replicas_required is 4", "host r3: redis_replicas_required is 3"],
        ),
    ],
)
def test_no_more_replicas_are_asked_for_than_there_are(
    clients: ModuleType, values: list[Any], texts: list[str]
) -> None:
    hosts = {
        host: {} if value is None else {"redis_replicas_required": value}
        for host, value in zip(ELECT, values, strict=True)
    }
    said = clients.replica_problems(hosts, ELECT)
    assert all(text in said for text in texts)
    assert said.endswith("\nNothing was changed.") if texts else said == ""
    # One alone has no replicas, and is asked for none.
    assert clients.replica_problems(hosts, ["r1"]) == clients.replica_problems({}, []) == ""


def test_a_number_of_replicas_that_cannot_be_read_is_left_alone(clients: ModuleType) -> None:
    hosts = {host: Unreadable() for host in ELECT}
    assert clients.replica_problems(hosts, ELECT) == ""


def test_a_host_takes_what_it_lacks_of_the_one_that_makes_it(clients: ModuleType) -> None:
    server = {"version": "3", "authority": "a", "mark": "m"}
    keeper = {
        "podman_host_state": {
            "secrets": {
                "celery-redis-worker": {"version": "1"},
                "celery-redis-certificate-server": server,
                "celery-app-other": {"version": "1"},
            }
        },
        "__redis_users": {"labels": {"celery-redis-worker": {"version": "2"}}},
        "__redis_certificates": {"skipped": True},
    }
    made = clients.made(keeper)
    assert made == {
        "celery-redis-worker": {"version": "2"},
        "celery-redis-certificate-server": server,
    }
    assert clients.lacking(made, {}) == sorted(made)
    # Its own timer has renewed the certificate.
    own = {**made, "celery-redis-certificate-server": {**server, "version": "4"}}
    assert clients.lacking(made, own) == []
    own["celery-redis-certificate-server"] |= {"authority": "b"}
    assert clients.lacking(made, own) == ["celery-redis-certificate-server"]


def test_a_producer_that_runs_workers_reports_its_address_itself(clients: ModuleType) -> None:
    producers = ["web1", "web3", "shop1"]
    found = clients.contacts(HOSTS, "r1", "r1", WORKERS, producers, ALL)
    assert found["clients"] == {"web3": ["nat.example"], "shop1": ["192.0.2.7"]}
    assert clients.contacts(HOSTS, "r1", "r1", WORKERS, producers, ["r1"])["absent"].keys() == {
        "web1",
        "web2",
    }
