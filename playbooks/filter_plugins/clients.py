"""Who shall reach Redis over the network, and by which address; for the rules of its port."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Undefined

# Beside this file; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
import reported
from addresses import UNREADABLE, redis_address

NAME = re.compile(r"\w([\w.-]{0,251}\w)?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", re.ASCII)
ADDRESSES = "redis_client_addresses"
REPLICAS = "redis_replicas_required"


def listens(hosts: Mapping[str, Mapping[str, Any]], redis: str, others: Iterable[str]) -> bool:
    """Whether Redis listens on the network: it is told to, or some other host needs it.

    :param hosts: Ansible's hostvars.
    :param redis: the host of Redis; empty where the kit deploys none.
    :param others: the hosts that run workers or producers.
    """
    if not redis:
        return False  # it is none of the kit's
    return bool(hosts[redis].get("redis_listen", False)) or bool(set(others) - {redis})


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
    # One that runs workers, too, reports its address itself.
    others_of_it = [one for one in producers if one not in workers and one != redis]
    return {
        "clients": {one: names_of(hosts[one], one) for one in [*declared, *others_of_it]},
        "absent": {
            one: names_of(hosts[one], one)
            for one in others
            if one not in played and one not in declared
        },
    }


def admitted(
    hosts: Mapping[str, Mapping[str, Any]], redis: Sequence[str], workers: Sequence[str]
) -> dict[str, list[str]]:
    """Each host that Redis shall admit, with its addresses, once all hosts were looked at.

    :param redis: the hosts of Redis; the first has looked at clients for all of them.
    :raises ReportedError: when a host says that it is what it cannot be.
    """
    where = redis_address(hosts, redis[0])
    states = {one: hosts[one].get("podman_host_state", {}) for one in {*redis, *workers}}
    found = {
        one: [reported.source(hosts, one, states[one]["source"], where, {*redis, *workers})]
        for one in workers
        if states[one].get("source") and not hosts[one].get(ADDRESSES)
    }
    others = {one: [redis_address(hosts, one)] for one in redis} if len(redis) > 1 else {}
    said = states[redis[0]].get("clients", {})
    for one, addresses in said.items():
        if one not in hosts:
            remedy = f"find out what runs on {redis[0]}"
            raise reported.refusal(redis[0], "a client", one, "the inventory does not have", remedy)
        reported.addresses(redis[0], f"the addresses of {one}", addresses, local=True)
    return {**found, **others, **said}


def made(keeper: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Secret to its labels on the host that makes those of Redis, with what this run has made.

    :param keeper: all variables of that host.
    """
    state = keeper.get("podman_host_state", {})
    kept = {
        name: labels
        for name, labels in state.get("secrets", {}).items()
        if name.startswith("celery-redis-")
    }
    users = keeper.get("__redis_users", {}).get("labels", {})
    found = {**kept, **users, **keeper.get("__redis_certificates", {}).get("labels", {})}
    return reported.labels(keeper.get("inventory_hostname", "of Redis"), found)


def lacking(wanted: Mapping[str, Mapping[str, str]], kept: Mapping[str, Any]) -> list[str]:
    """The secrets that a host does not have as they are wanted.

    Its own timer may have renewed the certificate of its Redis, of the same authority.
    """

    def mark(name: str, labels: Mapping[str, str]) -> Any:
        is_renewable = name == "celery-redis-certificate-server" and "authority" in labels
        return (labels["authority"], labels["mark"]) if is_renewable else labels

    return sorted(
        name
        for name, labels in wanted.items()
        if name not in kept or mark(name, kept[name]) != mark(name, labels)
    )


def members(hosts: Mapping[str, Mapping[str, Any]], redis: Sequence[str]) -> list[str]:
    """The addresses of those that elect a primary, the one that begins as it first; or none."""
    return [redis_address(hosts, host) for host in redis] if len(redis) > 1 else []


def leaving(hosts: Mapping[str, Mapping[str, Any]], redis: Sequence[str]) -> list[str]:
    """The addresses of those that have elected a primary with these hosts, and are to no more."""
    states = [hosts[host].get("podman_host_state", {}) for host in redis]
    elected = {
        member
        for host, state in zip(redis, states, strict=True)
        for member in reported.addresses(host, "members", state.get("members", []))
    }
    return sorted(elected - {redis_address(hosts, host) for host in redis})


def lost_primary(hosts: Mapping[str, Mapping[str, Any]], redis: Sequence[str]) -> str:
    """Why these hosts cannot be all that have Redis: the primary is another; or nothing."""
    wanted = {redis_address(hosts, host) for host in redis}
    for host in redis:
        primary = hosts[host].get("podman_host_state", {}).get("primary", "")
        if primary and primary not in wanted:
            return (
                f"host {host}: {primary} is the primary of Redis, and no host of the group redis "
                "has this address: what only that one has would be lost. Put its host back into "
                "the group, run playbooks/remove.yml with --limit for it, which has another "
                "elected first, and then take it out. Nothing was changed."
            )
    return ""


def replaced_data(hosts: Mapping[str, Mapping[str, Any]], redis: Sequence[str]) -> str:
    """Why what a single Redis has would be lost among several: another begins; or nothing."""
    states = {host: hosts[host].get("podman_host_state", {}) for host in redis}
    sole = [host for host, state in states.items() if state.get("is_sole")]
    lost = [host for host in sole if host != redis[0]] if len(redis) > 1 else []
    if not lost:
        return ""
    if sole == lost[:1] and not any(state.get("members") for state in states.values()):
        remedy = f"Write {lost[0]} first in the group redis: the one with which it begins."
    else:
        remedy = (
            f"Let its workers empty it, stop it with playbooks/remove.yml --limit {lost[0]}, and "
            "move /var/lib/celery-metal/redis away there."
        )
    return (
        f"host {lost[0]}: Redis there has been the only one, and among several it would have what "
        f"{redis[0]} has in the place of its own tasks. {remedy} Nothing was changed."
    )


def named(hosts: Mapping[str, Mapping[str, Any]], redis: Sequence[str]) -> dict[str, str]:
    """IP address to host of those that elect a primary, as far as they are known."""
    found = {_known_address(hosts, one): one for one in redis} if len(redis) > 1 else {}
    return {address: host for address, host in found.items() if _is_ip(address)}


def _known_address(hosts: Mapping[str, Mapping[str, Any]], host: str) -> str:
    """Where Redis is; of a host that no play has looked at, what is declared or Ansible reaches."""
    return redis_address(hosts, host) or names_of(hosts[host], host)[0]


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def elected_url(hosts: Mapping[str, Mapping[str, Any]], redis: Sequence[str], database: int) -> str:
    """The address of the primary, as workers have it, as far as the hosts are known."""
    first = hosts[redis[0]]
    port, scheme = first.get("redis_sentinel_port", 26379), "sentinels"
    if not first.get("redis_tls", True):
        scheme = "sentinel"
    where = ",".join(f"{_known_address(hosts, one)}:{port}" for one in redis)
    return f"{scheme}://worker@{where}/{database}?master_name=celery"


def secrets(
    redis: Mapping[str, Any], kept: Mapping[str, Mapping[str, str]], is_local: bool
) -> dict[str, str]:
    """What a host's workers need to open Redis: each secret to its version.

    :param redis: all variables of the host of Redis; what this run has made there is among them.
    :param kept: secret to its labels, as that host had them before.
    :param is_local: whether the workers are on that host.
    """
    host = redis.get("inventory_hostname", "of Redis")
    made_now = redis.get("__redis_certificates", {}).get("labels", {})
    labels = reported.labels(host, {**kept, **made_now})
    labels["celery-redis-worker"] = {
        "version": redis.get("__redis_users", {}).get("versions", {}).get("worker")
        or labels["celery-redis-worker"]["version"]
    }
    labels = reported.labels(host, labels)
    names = ["celery-redis-worker"]
    if redis.get("redis_tls", True) and not is_local:
        names += ["celery-redis-ca", "celery-redis-certificate-worker"]
    return {name: labels[name]["version"] for name in names}


def client_problems(hosts: Mapping[str, Mapping[str, Any]], producers: Iterable[str]) -> str:
    """What is wrong with the addresses of producers, whom no play looks at; or nothing."""
    problems = [
        f"host {host}: {ADDRESSES} {said}: write a list of addresses or names, such as [10.0.0.7]"
        for host in producers
        for said in address_problems(hosts[host])
    ]
    return "\n".join([*problems, "Nothing was changed."]) if problems else ""


def address_problems(variables: Mapping[str, Any]) -> list[str]:
    """What is wrong with what a host declares of its addresses."""
    try:
        names = variables.get(ADDRESSES, [])
        if isinstance(names, Undefined):
            return []
        if not isinstance(names, list):
            return [f"is {names!a}"]
        return [
            f"holds {name!a}, which is neither"
            for name in names
            if not isinstance(name, Undefined)  # made of a fact
            and not (isinstance(name, str) and NAME.fullmatch(name))
        ]
    except UNREADABLE as error:
        return [f"cannot be read: {error}"]


def replica_problems(hosts: Mapping[str, Mapping[str, Any]], redis: Sequence[str]) -> str:
    """Why those that elect a primary can never be replicas enough for it; or nothing."""
    most = len(redis) - 1
    refused: dict[int, list[str]] = {}
    for host in redis if most > 1 else ():
        try:
            value = hosts[host].get(REPLICAS, 1)
        except UNREADABLE:
            continue  # the check of all variables tells, as of one that is no number
        if isinstance(value, int) and value > most:
            refused.setdefault(value, []).append(host)
    problems = [
        f"host{'s' if len(there) > 1 else ''} {', '.join(there)}: {REPLICAS} is {value}, and of "
        f"{len(redis)} hosts in the group redis {most} are replicas, so that the primary would "
        f"never take a task: write {most - 1}, with which one of them may be away, or {most}, with "
        "which none may; or add hosts."
        for value, there in refused.items()
    ]
    return "\n".join([*problems, "Nothing was changed."]) if problems else ""


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "redis_admitted": admitted,
            "redis_client_problems": client_problems,
            "redis_contacts": contacts,
            "redis_elected_url": elected_url,
            "redis_elected_names": named,
            "redis_lacking": lacking,
            "redis_leaving": leaving,
            "redis_listens": listens,
            "redis_lost_primary": lost_primary,
            "redis_replaced_data": replaced_data,
            "redis_made": made,
            "redis_members": members,
            "redis_replica_problems": replica_problems,
            "redis_secrets": secrets,
        }
