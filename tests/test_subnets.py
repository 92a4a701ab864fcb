"""Where workers' own network does not fit a host: found before anything is changed."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import subnets
import yaml
from jinja2 import UndefinedError

ROLES = pathlib.Path(__file__).parents[1] / "roles"
GROUPS = {"redis": ["r1"], "celery": ["web1", "web2"]}


def site(routes: Any = (), names: Any = None, **variables: Any) -> dict[str, dict[str, Any]]:
    """Hostvars of a run in which both hosts of workers report this, and have these variables."""
    state = {"routes": list(routes) if isinstance(routes, tuple) else routes, "names": names or {}}
    worker = {"podman_host_state": state, **variables}
    redis = {"ansible_facts": {"default_ipv4": {"address": "10.0.0.1"}}, **variables}
    return {"r1": redis, "web1": {**worker}, "web2": {**worker}}


def said(hosts: dict[str, dict[str, Any]], played: tuple[str, ...] = ("web1", "web2")) -> str:
    return subnets.problems(hosts, GROUPS, played)


def test_the_default_is_that_of_the_role() -> None:
    defaults = yaml.safe_load((ROLES / "celery_worker/defaults/main.yml").read_text())
    assert defaults["celery_worker_subnet"] == subnets.SUBNET
    assert defaults["celery_worker_network"] == subnets.NETWORK
    assert [*subnets.EGRESS] == defaults["celery_worker_egress"]
    default = f"celery_worker_subnet | default('{subnets.SUBNET}')"
    assert default in (ROLES / "redis/vars/main.yml").read_text()


@pytest.mark.parametrize("route", ["10.87.0.0/24", "10.87.0.7/32", "10.0.0.0/8", "10.86.0.0/15"])
def test_a_network_that_the_host_has_a_route_to_is_not_taken(route: str) -> None:
    assert said(site(("10.213.0.0/24", route))) == (
        f'hosts web1, web2: celery_worker_subnet "10.87.0.0/24" overlaps {route}, to which the '
        "host has a route\n"
        "  The bridge of the workers would take these addresses from the host's network.\n"
        "  Fix: set celery_worker_subnet to a free private network, such as 172.31.87.0/24. "
        "Nothing was changed."
    )
    assert said(site((route,), celery_worker_subnet="172.31.87.0/24")) == ""
    # There is no network of ours.
    assert said(site((route,), celery_worker_network="podman")) == ""
    # Only hosts of this run.
    assert said(site((route,)), ("web2",)).startswith("host web2: ")
    assert said(site((route,)), ("r1",)) == ""


@pytest.mark.parametrize("route", ["10.88.0.0/16", "10.86.255.0/24", "192.168.1.0/24"])
def test_other_routes_are_let_be(route: str) -> None:
    assert said(site((route,))) == ""


@pytest.mark.parametrize(
    "variables",
    [
        {"redis_address": "10.87.0.9"},
        {"redis_mode": "external", "redis_external_url": "rediss://worker@10.87.0.9:6379/0"},
        {
            "redis_mode": "external",
            "redis_external_url": "sentinel://10.0.0.1,10.87.0.9/0?master_name=celery",
        },
    ],
)
def test_redis_is_not_in_the_workers_network(variables: dict[str, str]) -> None:
    assert said(site(**variables)).startswith(
        'hosts web1, web2: celery_worker_subnet "10.87.0.0/24" contains 10.87.0.9, the address of '
        "Redis\n"
    )
    assert said(site(**variables, celery_worker_subnet="10.88.0.0/24")) == ""


@pytest.mark.parametrize(
    "routes",
    [
        "10.87.0.0/24",
        None,
        7,
        ["10.87.0.0/24; x"],
        [7],
        [["a"]],
        ["\x1b[2J"],
        ["10.0.0.0/8"] * 5000,
    ],
)
def test_routes_are_networks_or_the_host_is_named(routes: Any) -> None:
    found = said(site(routes))
    assert found.startswith("host web1: it reports ")
    assert "\x1b" not in found
    assert len(found) < 500


@pytest.mark.parametrize(
    ("egress", "known", "right"),
    [
        (["any"], [], True),
        (["any", "10.9.0.0/16"], [], True),
        (["10.9.0.0/16", "10.0.0.53"], ["10.9.0.7"], True),
        (["10.9.0.0/16"], ["fd00::7", "10.9.0.7"], True),
        (["10.9.0.0/16"], ["10.8.0.7"], False),
        (["10.9.0.0/16"], [], False),
        ([], ["10.9.0.7"], False),
    ],
)
@pytest.mark.parametrize(
    "variables",
    [
        {"redis_address": "redis.example"},
        {"redis_mode": "external", "redis_external_url": "rediss://redis.example:6379/0"},
    ],
)
def test_a_redis_with_a_name_is_in_the_list(
    egress: list[str], known: list[str], right: bool, variables: dict[str, str]
) -> None:
    hosts = site(names={"redis.example": known}, celery_worker_egress=egress, **variables)
    wanted = {} if "any" in egress else {"names": ["redis.example"]}
    assert subnets.names(hosts, "web1", GROUPS) == wanted
    found = said(hosts)
    assert (found == "") == right
    assert right or found.splitlines()[0] == (
        "hosts web1, web2: celery_worker_egress has neither any nor an address of Redis, "
        f"redis.example ({', '.join(known) or 'it has none there'})"
    )


def test_a_redis_with_an_address_or_a_socket_has_a_rule() -> None:
    assert said(site(celery_worker_egress=[])) == ""
    assert subnets.names(site(celery_worker_egress=[]), "web1", GROUPS) == {}
    alone = {"redis": ["web1"], "celery": ["web1"]}
    hosts = site(celery_worker_egress=[], redis_address="redis.example")
    assert subnets.names(hosts, "web1", alone) == {}
    assert subnets.problems(hosts, alone, ["web1"]) == ""


class Unread(dict[str, Any]):
    """Hostvars of a host whose facts were not gathered."""

    def __getitem__(self, name: str) -> Any:
        raise UndefinedError(f"{name} is made of facts")


def test_an_address_made_of_facts_waits_for_them() -> None:
    hosts = site(celery_worker_egress=[])
    hosts["r1"] = Unread(redis_address="{{ ansible_facts.default_ipv4.address }}")
    assert subnets.names(hosts, "web1", GROUPS) == {}
    assert said(hosts) == ""


def test_what_a_host_says_of_a_name_is_an_address() -> None:
    hosts = site(
        names={"redis.example": ["0.0.0.0/0"]},
        celery_worker_egress=["10.0.0.0/8"],
        redis_address="redis.example",
    )
    assert said(hosts).startswith("host web1: it reports the addresses of redis.example")
