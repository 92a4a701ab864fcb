"""A Redis that the user already runs, in the place of one that the kit deploys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from jinja2 import Undefined, UndefinedError

try:
    from ansible.errors import AnsibleError
except ImportError:  # the functions also serve where Ansible is not installed
    AnsibleError = ValueError

if TYPE_CHECKING:
    from celery_metal_types import AskOptions, Backlog, Endpoint, Finding, Findings

MODE = "redis_mode"
# Of all hosts alike: there is one broker.
SHARED = (MODE, "redis_external_url")
DEFAULTS = {MODE: "deploy", "redis_external_url": ""}
# What a user may find safe enough, for what is done there.
ACCEPTABLE = (
    "appendfsync",
    "authentication",
    "eviction",
    "info",
    "permissions",
    "persistence",
    "replicas",
)


def is_external(hosts: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Any]) -> bool:
    """Whether the broker is the user's own; all hosts say the same, or were refused.

    :param hosts: Ansible's hostvars.
    :param groups: the inventory's.
    """
    first = next(iter(groups.get("celery", [])), "")
    return bool(first) and said_by(hosts, first, MODE) == "external"


def said_by(hosts: Mapping[str, Mapping[str, Any]], host: str, name: str) -> Any:
    """A variable of a host; None when it cannot be read, which the check of all variables tells."""
    try:
        value = hosts[host].get(name, DEFAULTS[name])
    except (AnsibleError, RecursionError, UndefinedError):
        return None
    return None if isinstance(value, Undefined) else value


def mode_problems(hosts: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Any]) -> str:
    """Why the groups do not go with redis_mode, or hosts not with each other; or nothing."""
    celery, redis = list(groups.get("celery", [])), list(groups.get("redis", []))
    for name in SHARED if celery else ():
        said = {host: said_by(hosts, host, name) for host in [*celery, *redis]}
        other = next((host for host in said if said[host] != said[celery[0]]), None)
        if other:
            return (
                f"{name} is {hushed(said[celery[0]])} on {celery[0]}, and {hushed(said[other])} on "
                f"{other}, but all hosts use one broker: write it once, such as in "
                "group_vars/all.yml. Nothing was changed."
            )
    if redis and is_external(hosts, groups):
        return (
            f"{MODE} is external, so that no Redis is deployed, and the group redis has "
            f"{', '.join(redis)}: take the hosts out of the group redis, or write {MODE}: deploy. "
            "Nothing was changed."
        )
    return ""


def hushed(value: Any) -> str:
    """A value for a message, without a password that an address may hold."""
    return re.sub(r"//\S*:\S*@", "//...@", ascii(value))


def endpoint(url: str) -> Endpoint:
    """What an address says, as options of the modules that ask Redis over the network.

    >>> endpoint("rediss://worker@10.0.0.5:6380/1")
    {'tls': True, 'user': 'worker', 'database': 1, 'host': '10.0.0.5', 'port': 6380}
    """
    parts = urlsplit(url)
    user, _, hosts = parts.netloc.rpartition("@")
    is_elected = parts.scheme.startswith("sentinel")
    found: Endpoint = {
        "tls": parts.scheme in ("rediss", "sentinels"),
        "user": user,
        "database": int(parts.path.strip("/") or 0),
        "host": "" if is_elected else parts.hostname or "",
        "port": 0 if is_elected else parts.port or 6379,
    }
    if not is_elected:
        return found
    named = [urlsplit(f"//{host}") for host in hosts.split(",")]
    query = parse_qs(parts.query)
    return {
        **found,
        "sentinels": [[one.hostname or "", one.port or 26379] for one in named],
        "master_name": query["master_name"][0],
        "sentinel_auth": query.get("sentinel_auth") != ["no"],
    }


def survey_text(
    hosts: Mapping[str, Mapping[str, Any]],
    played: Iterable[str],
    accepted: Iterable[str],
    url: str,
) -> Findings:
    """What all hosts have found, as ``problems`` and ``notes``; each is empty when there are none.

    :param hosts: Ansible's hostvars, with what ``celery_host`` and ``celery_survey`` gave.
    :param played: the hosts of the run.
    :param accepted: kinds of findings that the user accepts.
    :param url: the address, for the message.
    """
    found: dict[tuple[str, str, str], list[str]] = {}
    noted: dict[str, list[str]] = {}
    for host in played:
        said = hosts[host].get("check_survey", {})
        if "celery-redis-acl" in hosts[host].get("podman_host_state", {}).get("secrets", ()):
            key = (
                "deployed",
                "a Redis that the kit has deployed is still there, with the tasks in it",
                "let workers empty it with what was declared before, and take it away with "
                "playbooks/remove.yml; or write redis_mode: deploy",
            )
            found.setdefault(key, []).append(host)
        findings: list[Finding] = said.get("findings", [])
        for one in findings:
            found.setdefault((one["kind"], one["seen"], one["remedy"]), []).append(host)
        for note in said.get("notes", ()):
            noted.setdefault(note, []).append(host)
    lines: list[str] = []
    notes: list[str] = []
    for (kind, seen, remedy), there in found.items():
        where = f"host{'s' if len(there) > 1 else ''} {', '.join(there)}"
        if kind in ACCEPTABLE and kind in accepted:
            notes.append(f"accepted ({kind}): {seen}.")
            continue
        unless = f"; or accept it: redis_external_accept: [{kind}]" if kind in ACCEPTABLE else ""
        lines.append(f"- {where}: {seen}: {remedy}{unless}.")
    notes += [f"{note}." for note in noted]
    head = f"redis_external_url is {url}:"
    return {
        "problems": "\n".join([head, *lines, "Nothing was changed."]) if lines else "",
        "notes": "\n".join([head, *(f"- {one}" for one in notes)]) if notes else "",
    }


# ------------------------------------------------------------------------------------------
# The broker that workers have now, where a run would give them another

SOCKET = "redis+socket:"


def left(
    hosts: Mapping[str, Mapping[str, Any]], host: str, groups: Mapping[str, Any], database: int
) -> str:
    """The address of the broker that the workers of a host have, and would have no more; or none.

    :param hosts: Ansible's hostvars, with what ``celery_host`` gave.
    :param database: of the broker that the kit deploys.
    """
    earlier = hosts[host].get("podman_host_state", {}).get("broker", "")
    if not earlier:
        return ""
    servers, number = _servers(earlier)
    if is_external(hosts, groups):
        wanted, database = _servers(str(said_by(hosts, host, "redis_external_url")))
        is_kept = not servers.isdisjoint(wanted)
    else:
        # A host of the kit's has one Redis, whatever its port is.
        names = {"" for one in groups["redis"] if one == host}
        names |= {name for one in groups["redis"] for name in _names(hosts[one], one)}
        is_kept = not names.isdisjoint(server for server, _ in servers)
    return "" if is_kept and number == database else earlier


def _servers(url: str) -> tuple[set[tuple[str, int]], int]:
    """Each server of an address with its port, "" for this host; and the database."""
    if url.startswith(SOCKET):
        query = parse_qs(urlsplit(url).query)
        return {("", 0)}, int(query.get("virtual_host", ["0"])[0])
    said = endpoint(url)
    servers = said.get("sentinels") or [[said["host"], said["port"]]]
    return {(str(host), int(port)) for host, port in servers}, said["database"]


def _names(variables: Mapping[str, Any], host: str) -> set[str]:
    """By what a host may be known to workers."""
    facts = variables.get("ansible_facts", {})
    return {
        host,
        *(
            str(variables[name])
            for name in ("redis_address", "ansible_host")
            if variables.get(name)
        ),
        *facts.get("all_ipv4_addresses", ()),
        *facts.get("all_ipv6_addresses", ()),
        facts.get("default_ipv4", {}).get("address", host),
    }


def how_to_ask(url: str) -> AskOptions:
    """The options by which the module ``celery_backlog`` asks a broker at an address."""
    if url.startswith(SOCKET):
        return {"database": _servers(url)[1]}
    return {"external": endpoint(url)}


def left_text(
    hosts: Mapping[str, Mapping[str, Any]],
    host: str,
    played: Iterable[str],
    groups: Mapping[str, Any],
    database: int,
    accepted: bool,
) -> Findings:
    """What would stay behind in the broker that workers of a host have now.

    :param host: of those that have the same broker, the first says it for all.
    :param played: the hosts of the run, with what ``celery_backlog`` gave as ``check_left``.
    :param database: as for ``left``.
    :param accepted: whether the user leaves it there.
    :returns: ``problems`` and ``notes``; each is empty when there are none.
    """
    nothing: Findings = {"problems": "", "notes": ""}
    url = left(hosts, host, groups, database)
    said: Backlog = hosts[host]["check_left"]
    there = [host]
    if not url.startswith(SOCKET):
        there = [one for one in played if left(hosts, one, groups, database) == url]
    now = hosts[host].get("check_survey", {})
    # By another address.
    is_the_next = said["run_id"] and (said["run_id"], _servers(url)[1]) == (
        now.get("run_id"),
        now.get("database"),
    )
    if there[0] != host or is_the_next:
        return nothing
    broker = f"host{'s' if len(there) > 1 else ''} {', '.join(there)}: the broker until now, {url},"
    if said["error"]:
        return {
            **nothing,
            "notes": f"{broker} gives no answer, and keeps what it has: {said['error']}.",
        }
    tasks = [f"{number} in {queue}" for queue, number in said["waiting"].items() if number]
    if held := sum(one["tasks"] for one in said["held"]):
        tasks.append(f"{held} held by workers")
    tasks += [f"{number} of {queue} put aside" for queue, number in said["dead"].items()]
    if not tasks:
        return nothing
    found = f"{broker} has tasks that no worker would do any more: {', '.join(tasks)}."
    if accepted:
        return {**nothing, "notes": f"{found} They are left there."}
    remedy = (
        "Have what sends tasks wait, or send to the next broker; let workers empty this one, as "
        "playbooks/status.yml shows with what was declared before; and run again. Or leave them "
        "there: -e broker_left=true. Nothing was changed."
    )
    return {**nothing, "problems": f"{found} {remedy}"}


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "broker_endpoint": endpoint,
            "broker_how_to_ask": how_to_ask,
            "broker_is_external": is_external,
            "broker_left": left,
            "broker_left_text": left_text,
            "broker_mode_problems": mode_problems,
            "broker_survey_text": survey_text,
        }
