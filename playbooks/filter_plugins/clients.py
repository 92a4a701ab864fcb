"""Who shall reach Redis over the network, and by which address; for the rules of its port."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Undefined

NAME = re.compile(r"\w([\w.-]{0,251}\w)?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", re.ASCII)
ADDRESSES = "redis_client_addresses"


def listens(hosts: Mapping[str, Mapping[str, Any]], redis: str, others: Iterable[str]) -> bool:
    """Whether Redis listens on the network: it is told to, or some other host needs it.

    :param hosts: Ansible's hostvars.
    :param redis: the host of Redis.
    :param others: the hosts that run workers or producers.
    """
    return bool(hosts[redis].get("redis_listen", False)) or bool(set(others) - {redis})


def redis_address(hosts: Mapping[str, Mapping[str, Any]], redis: str) -> str:
    """What Redis listens on; empty where its host has no default address."""
    facts = hosts[redis].get("ansible_facts", {})
    return hosts[redis].get("redis_address", facts.get("default_ipv4", {}).get("address", ""))


def names_of(variables: Mapping[str, Any], host: str) -> list[str]:
    """By what a host is known that nobody has asked: what it declares, or what Ansible reaches."""
    return list(variables.get(ADDRESSES, [])) or [str(variables.get("ansible_host", host))]


def contacts(
    hosts: Mapping[str, Mapping[str, Any]],
    host: str,
    redis: str,
    workers: Sequence[str],
    producers: Sequence[str],
    played: Sequence[str],
) -> dict[str, Any]:
    """What the module ``celery_host`` shall find out on a host, as its options.

    :param hosts: Ansible's hostvars.
    :param host: the one to be looked at.
    :param redis: the host of Redis.
    :param workers: the hosts that are to run workers.
    :param producers: those that send tasks; nobody connects to them.
    :param played: the hosts of the run: each of them says itself from which address it comes.
    """
    if not listens(hosts, redis, [*workers, *producers]):
        return {}
    if not hosts[redis].get("redis_firewall", True):
        return {}
    if redis not in played:
        return {}
    if host != redis:
        return {"toward": redis_address(hosts, redis)}
    others = [one for one in workers if one != redis]
    declared = [one for one in others if hosts[one].get(ADDRESSES)]
    return {
        "clients": {
            one: names_of(hosts[one], one) for one in [*declared, *producers] if one != redis
        },
        "absent": {
            one: names_of(hosts[one], one)
            for one in others
            if one not in played and one not in declared
        },
    }


def admitted(
    hosts: Mapping[str, Mapping[str, Any]], redis: str, workers: Sequence[str]
) -> dict[str, list[str]]:
    """Each host that Redis shall admit, with its addresses, once all hosts were looked at."""
    states = {one: hosts[one].get("podman_host_state", {}) for one in {redis, *workers}}
    found = {one: [states[one]["source"]] for one in workers if states[one].get("source")}
    return {**found, **states[redis].get("clients", {})}


def client_problems(hosts: Mapping[str, Mapping[str, Any]], producers: Iterable[str]) -> str:
    """What is wrong with the addresses of producers, whom no play looks at; or nothing."""
    problems = []
    for host in producers:
        names = hosts[host].get(ADDRESSES, [])
        remedy = "write a list of addresses or names, such as [10.0.0.7]"
        if isinstance(names, Undefined):
            continue
        if not isinstance(names, list):
            problems.append(f"host {host}: {ADDRESSES} is {names!a}: {remedy}")
            continue
        problems += [
            f"host {host}: {ADDRESSES} holds {name!a}, which is neither: {remedy}"
            for name in names
            if not isinstance(name, Undefined)  # made of a fact
            and not (isinstance(name, str) and NAME.fullmatch(name))
        ]
    return "\n".join([*problems, "Nothing was changed."]) if problems else ""


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "redis_address": redis_address,
            "redis_admitted": admitted,
            "redis_client_problems": client_problems,
            "redis_contacts": contacts,
            "redis_listens": listens,
        }
