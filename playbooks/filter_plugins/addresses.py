"""The one address of Redis on a network: for its configuration, URLs, certificates and rules."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleError
from jinja2 import UndefinedError

# Beside this file; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
import reported

NAME = "redis_address"
STATE = "podman_host_state"
# Redis itself takes 16.
MOST_KEPT = 16
# What comes of looking at a value whose template fails.
UNREADABLE = (AnsibleError, RecursionError, UndefinedError)
# The ends of containers and virtual machines on a bridge: Podman's, Docker's, libvirt's, nspawn's.
PORT = re.compile(r"(veth|vnet|tap|vb-|ve-|virbr)")
# What networks of Kubernetes add beside bridges.
INNER = re.compile(r"(cali|cilium|cni|flannel|kube-|nodelocaldns|tunl)")
# More are not written into a message.
MOST_SHOWN = 8


def redis_address(
    hosts: Mapping[str, Mapping[str, Any]], redis: str, state: Mapping[str, Any] | None = None
) -> str:
    """What Redis listens on and others reach it by; empty where only the user can tell.

    What is declared; else what Redis has already, while the host has it; else the host's only one.
    A default route that moves to another network moves no Redis.

    :param hosts: Ansible's hostvars.
    :param redis: the host of Redis.
    :param state: what ``celery_host`` gave of that host, where that is not in its variables.
    :raises ReportedError: when the host reports no address.
    """
    variables = hosts[redis]
    if NAME in variables and (declared := variables[NAME]):
        return str(declared)
    facts = variables.get("ansible_facts", {})
    own = next((one for one in _kept(variables, state) if one in held(facts)), "")
    if not own:
        found = candidates(facts)
        if len(found) > 1:
            return ""
        own = next(iter(found), facts.get("default_ipv4", {}).get("address", ""))
    return reported.address(redis, "the address for Redis", own) if own else ""


def _kept(variables: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> list[str]:
    """What Redis was deployed to listen on, as its host reports it; nothing where it was not."""
    kept = (state or variables.get(STATE) or {}).get("listens_on")
    some = kept[:MOST_KEPT] if isinstance(kept, list) else []
    return [one for one in some if isinstance(one, str)]


def former(
    hosts: Mapping[str, Mapping[str, Any]], redis: Sequence[str], workers: Sequence[str]
) -> list[str]:
    """Where Redis listens and workers reach it, besides the address that they get in this run.

    Redis listens there as well until all workers have come to that address: those that do not come
    up there go back to where they were. Of several hosts of Redis each has one address.

    :param hosts: Ansible's hostvars, with what ``celery_host`` gave of the hosts of the run.
    :param workers: the hosts that are to run workers; one that is no part of the run may use any.
    """
    if len(redis) != 1:
        return []
    variables = hosts[redis[0]]
    wanted = redis_address(hosts, redis[0])
    port = variables.get("redis_port", 6379)
    away = _is_away(hosts, redis, workers)
    used = {_endpoint(hosts[one].get(STATE, {}).get("broker", "")) for one in workers}
    return [
        one
        for one in dict.fromkeys(_kept(variables))
        if one != wanted and _is_literal(one) and (away or (one, port) in used)
    ]


def left(
    hosts: Mapping[str, Mapping[str, Any]], redis: Sequence[str], workers: Sequence[str]
) -> list[str]:
    """The addresses that Redis leaves at the end of a run in which all workers have come up."""
    return [] if _is_away(hosts, redis, workers) else former(hosts, redis, workers)


def _is_away(
    hosts: Mapping[str, Mapping[str, Any]], redis: Sequence[str], workers: Sequence[str]
) -> bool:
    """Whether a host with workers, besides that of Redis, is no part of the run."""
    return any(not hosts[one].get(STATE) for one in {*workers} - {*redis})


def _endpoint(broker: Any) -> tuple[str, int]:
    """Address and port in the URL of a broker, as a host reports it; of a socket none."""
    try:
        url = urlsplit(broker if isinstance(broker, str) else "")
        return url.hostname or "", url.port or 0
    except ValueError:
        return "", 0


def _is_literal(text: str) -> bool:
    """Whether it is the address of a network card, and no name."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    usual = address.is_loopback or address.is_multicast or address.is_unspecified
    return not usual and not getattr(address, "scope_id", None)


def is_open(hosts: Mapping[str, Mapping[str, Any]], redis: str) -> bool:
    """Whether it depends on the Redis that is there: none is declared, and its host has several."""
    variables = hosts[redis]
    try:
        if variables.get(NAME):
            return False
    except UNREADABLE:
        return False
    return len(held(variables.get("ansible_facts", {}))) > 1


def known(hosts: Mapping[str, Mapping[str, Any]], redis: str) -> str | None:
    """The address, for the check of what is declared, which itself tells what cannot be read."""
    try:
        return redis_address(hosts, redis)
    except UNREADABLE:
        return None


def held(facts: Mapping[str, Any]) -> dict[str, str]:
    """Each IPv4 address of a host that Redis may have, with its interface.

    Not those of bridges that lead to containers and virtual machines alone.
    """
    found = {}
    default = facts.get("default_ipv4", {}).get("interface")
    for name in facts.get("interfaces", ()):
        if name != default and _is_inner(name, _device(facts, name)):
            continue
        interface = _entry(facts, name)
        for one in (interface.get("ipv4", {}), *interface.get("ipv4_secondaries", ())):
            if _is_reachable(address := one.get("address", "")):
                found[address] = name
    return found


def candidates(facts: Mapping[str, Any]) -> dict[str, str]:
    """Those that a Redis may get; a loopback and an interface that is down keep what they have."""
    return {
        address: name
        for address, name in held(facts).items()
        if (device := _device(facts, name)).get("type") != "loopback" and device.get("active", True)
    }


def _device(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The facts of an interface; of an alias, such as eth0:1, those of the one that has it."""
    return _entry(facts, name.partition(":")[0])


def _entry(facts: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = facts.get(name.replace("-", "_"), {})
    return found if isinstance(found, Mapping) else {}


def _is_inner(name: str, device: Mapping[str, Any]) -> bool:
    """Whether only containers and virtual machines of the host are behind an interface."""
    if device.get("type") != "bridge":
        return bool(INNER.match(name))
    return all(PORT.match(port) for port in device.get("interfaces", ()))


def _is_reachable(text: str) -> bool:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_link_local or address.is_unspecified)


def problems(
    variables: Mapping[str, Any], address: str, state: Mapping[str, Any] | None = None
) -> list[str]:
    """Why there is no address for Redis to listen on, once facts are known.

    :param variables: all variables of the host of Redis.
    :param address: what ``redis_address`` gave.
    :param state: as there.
    """
    if address.strip():
        return []
    found = candidates(variables.get("ansible_facts", {}))
    lost = ", ".join(_kept(variables, state))
    before = f"; Redis listened on {reported.shown(lost)} until now, which is gone" if lost else ""
    if not found:
        return [
            f"{NAME} is not set, and the host has no IPv4 address on a network{before}\n"
            "  Other hosts must reach Redis.\n"
            f"  Fix: write {NAME}: the address that they reach, such as {NAME}: 10.0.0.5"
        ]
    ordered = sorted(found, key=ipaddress.IPv4Address)
    listed = [f"{one} ({reported.shown(found[one])})" for one in ordered]
    more = [f"{len(listed) - MOST_SHOWN} more"] if len(listed) > MOST_SHOWN else []
    # The controller reaches it, so others may.
    likely = str(variables.get("ansible_host", ""))
    example = likely if likely in found else ordered[0]
    return [
        f"{NAME} is not set, and the host has {len(listed)} addresses: "
        f"{', '.join(listed[:MOST_SHOWN] + more)}{before}\n"
        "  Other hosts must reach Redis, which listens on one address.\n"
        f"  Fix: write {NAME}: the address that they reach, such as {NAME}: {example}"
    ]


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "redis_address": redis_address,
            "redis_address_is_open": is_open,
            "redis_address_known": known,
            "redis_former": former,
            "redis_left": left,
        }
