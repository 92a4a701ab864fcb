"""Whether the workers' own network fits the host: its addresses are free, and Redis is reached."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Beside this file; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
import addresses
import external
import reported

# As in the defaults of the role celery_worker, whose defaults no playbook sees.
SUBNET = "10.87.0.0/24"
NETWORK = "bridge"
EGRESS = ("any",)
# More than celery_host returns is no report of it.
MOST_ROUTES = 4096


def has_own_network(hosts: Mapping[str, Mapping[str, Any]], host: str) -> bool:
    """Whether workers of a host have the network that the project makes."""
    return bool(hosts[host].get("celery_worker_network", NETWORK) == NETWORK)


def brokers(
    hosts: Mapping[str, Mapping[str, Any]], host: str, groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """Addresses and names by which workers of a host reach Redis, or its Sentinels, over a network.

    :param hosts: Ansible's hostvars.
    """
    if external.is_external(hosts, groups):
        found = external.endpoint(str(hosts[host]["redis_external_url"]))
        return [str(one[0]) for one in found.get("sentinels") or [[found["host"]]]]
    redis = list(groups.get("redis", []))
    if redis == [host]:
        return []  # by its socket
    # With --limit the host of Redis was looked at for this one.
    state = hosts[host].get("site_broker_state") if len(redis) == 1 else None
    reached = []
    for name in redis:
        # Made of facts of a host that is no part of the run: then it is no name.
        with suppress(*addresses.UNREADABLE):
            reached += [one for one in [addresses.redis_address(hosts, name, state)] if one]
    return reached


def names(
    hosts: Mapping[str, Mapping[str, Any]], host: str, groups: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """The names of Redis that a host must look up, as an option of the module ``celery_host``.

    Only where its workers have a list of addresses instead of ``any``.
    """
    if host not in groups.get("celery", []) or not has_own_network(hosts, host):
        return {}
    if "any" in hosts[host].get("celery_worker_egress", EGRESS):
        return {}
    wanted = sorted({one for one in brokers(hosts, host, groups) if _address(one) is None})
    return {"names": wanted} if wanted else {}


def problems(
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    played: Sequence[str],
) -> str:
    """Why workers' networks of a run do not fit their hosts, before anything is changed.

    :param hosts: Ansible's hostvars, with what ``celery_host`` gave.
    :param played: the hosts of the run.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    for host in groups.get("celery", []):
        if host not in played or not has_own_network(hosts, host):
            continue
        state = hosts[host].get("podman_host_state") or {}
        try:
            reached = brokers(hosts, host, groups)
            for one in _taken(hosts, host, state, reached) + _closed(hosts, host, state, reached):
                found.setdefault(one, []).append(host)
        except reported.ReportedError as refused:
            found.setdefault((str(refused), "", ""), []).append(host)
    return "\n".join(
        f"host{'s' if len(those) > 1 else ''} {', '.join(those)}: {what}\n  {why}\n"
        f"  Fix: {remedy}. Nothing was changed."
        if why
        else what
        for (what, why, remedy), those in found.items()
    )


def _taken(
    hosts: Mapping[str, Mapping[str, Any]],
    host: str,
    state: Mapping[str, Any],
    reached: Sequence[str],
) -> list[tuple[str, str, str]]:
    """What has addresses of the workers' network already."""
    subnet = ipaddress.IPv4Network(hosts[host].get("celery_worker_subnet", SUBNET))
    where = f'celery_worker_subnet "{subnet}"'
    remedy = "set celery_worker_subnet to a free private network, such as 172.31.87.0/24"
    for route in routes(host, state.get("routes", [])):
        if route.overlaps(subnet):
            return [
                (
                    f"{where} overlaps {route}, to which the host has a route",
                    "The bridge of the workers would take these addresses from the host's network.",
                    remedy,
                )
            ]
    for one in reached:
        if (address := _address(one)) and address in subnet:
            return [
                (
                    f"{where} contains {address}, the address of Redis",
                    "Workers would look for it on their own bridge.",
                    remedy,
                )
            ]
    return []


def _closed(
    hosts: Mapping[str, Mapping[str, Any]],
    host: str,
    state: Mapping[str, Any],
    reached: Sequence[str],
) -> list[tuple[str, str, str]]:
    """Names of Redis for which the list of addresses has nothing."""
    egress = hosts[host].get("celery_worker_egress", EGRESS)
    if "any" in egress:
        return []
    listed = [ipaddress.ip_network(one) for one in egress]
    known = state.get("names") or {}
    for name in reached:
        if _address(name) is not None:
            continue  # it has a rule of its own
        found = reported.addresses(host, f"the addresses of {name}", known.get(name, []))
        if not any(ipaddress.ip_address(one) in network for one in found for network in listed):
            return [
                (
                    f"celery_worker_egress has neither any nor an address of Redis, {name} "
                    f"({', '.join(sorted(found)) or 'it has none there'})",
                    "Only a Redis that is reached by an address has a rule of its own.",
                    "list its address and the DNS servers, add any, or reach Redis by its address",
                )
            ]
    return []


def routes(host: str, values: Any) -> list[ipaddress.IPv4Network]:
    """The networks that a host reports to have routes to.

    :raises reported.ReportedError: when it is no list of networks, or too long.
    """
    remedy = f"find out what runs on {host}"
    if not isinstance(values, (list, tuple)) or len(values) > MOST_ROUTES:
        raise reported.refusal(host, "routes", values, "is no list of networks", remedy)
    found = []
    for value in values:
        try:
            found.append(ipaddress.IPv4Network(value if isinstance(value, str) else ""))
        except ValueError:
            raise reported.refusal(host, "a route", value, "leads to no network", remedy) from None
    return found


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None  # a name


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"redis_names": names, "worker_network_problems": problems}
