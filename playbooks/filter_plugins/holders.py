"""Which hosts were given what opens Redis, and which of them must not have it any more.

The hosts of Redis keep the record: host to what it was given, a user's password or a certificate,
each with the version that its secret has as a label. A version that differs from today's is an
earlier one. Only a complete rotation removes an entry, for only that ends what it stands for.
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Beside this file; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
import clients
import reported

PATH = "/etc/celery-metal/holders.json"
PREFIX = "celery-redis-"
USERS = ("admin", "monitor", "producer", "replica", "sentinel", "worker")
# A certificate that an authority has signed, and the key of an authority.
CERTIFICATE, AUTHORITY = "certificate", "authority"
KINDS = frozenset({*USERS, CERTIFICATE, AUTHORITY})
VERSION = re.compile(r"[0-9a-f]{1,64}")
MAX_HOSTS, MAX_NAME = 4096, 253
MAX_SECONDS = 253402300799  # the last one of the year 9999
# As celery-redis-certificate.timer warns.
AUTHORITY_DAYS, OWN_DAYS = 365, 30
# The timer has renewed it 130 days before its end.
SERVER_DAYS = 30

ROTATE = "ansible-playbook playbooks/rotate-secrets.yml"
WITH_CERTIFICATES = f"{ROTATE} -e rotate_certificates=true"
FINISH = f"{ROTATE} -e rotate_finish=true"
PAGE = "docs/access.md#a-host-leaves"


class Record(NamedTuple):
    """hosts: host to kind to version. certificates: version of an authority to its end."""

    hosts: dict[str, dict[str, str]]
    certificates: dict[str, int]


class RecordError(ValueError):
    """What is wrong with a record."""


def checked(raw: Any) -> Record | None:
    """A record as a host of Redis reports it; None where there is none.

    :raises RecordError: when it is none that a run has written.
    """
    if raw is None:
        return None
    if not isinstance(raw, Mapping) or raw.keys() != {"hosts", "certificates"}:
        known = isinstance(raw, Mapping) and set(raw) == {"error"}
        raise RecordError(reported.shown(raw["error"]) if known else "it has other keys")
    hosts, certificates = raw["hosts"], raw["certificates"]
    if not isinstance(hosts, Mapping) or not isinstance(certificates, Mapping):
        raise RecordError("it has other values")
    if len(hosts) > MAX_HOSTS or len(certificates) > MAX_HOSTS:
        raise RecordError(f"it has more than {MAX_HOSTS} entries")
    for host, given in hosts.items():
        if not (isinstance(host, str) and 0 < len(host) <= MAX_NAME and host.isprintable()):
            raise RecordError(f"{reported.shown(host)} is no name of a host")
        if not isinstance(given, Mapping) or not given.keys() <= KINDS:
            raise RecordError(f"the entry of {host} has other keys")
        if not all(_is_version(one) for one in given.values()):
            raise RecordError(f"the entry of {host} has a version that is none")
    for version, end in certificates.items():
        # A bool is an int.
        if not (_is_version(version) and type(end) is int and 0 <= end <= MAX_SECONDS):
            raise RecordError("the end of a certificate is none")
    return Record({host: {**given} for host, given in hosts.items()}, {**certificates})


def _is_version(value: Any) -> bool:
    return isinstance(value, str) and bool(VERSION.fullmatch(value))


def valid(labels: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Each kind to its newest version, from the labels of the secrets of Redis.

    Certificates of the user's own have no authority that a rotation could end.
    """
    found = {
        user: labels[PREFIX + user]["version"]
        for user in USERS
        if _is_version(labels.get(PREFIX + user, {}).get("version"))
    }
    authority = labels.get(f"{PREFIX}ca", {}).get("authority")
    if _is_version(authority):
        found |= {CERTIFICATE: str(authority), AUTHORITY: str(authority)}
    return found


def entitled(groups: Mapping[str, Sequence[str]], host: str) -> Collection[str]:
    """What a host has to have, by its groups."""
    if host in groups.get("redis", ()):
        return KINDS
    worker = {"worker", CERTIFICATE} if host in groups.get("celery", ()) else set()
    # Nobody connects to it; its operator has brought it these.
    producer = {"producer", CERTIFICATE} if host in groups.get("celery_producers", ()) else set()
    return worker | producer


def record(
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    retired: Iterable[str] | None = None,
) -> str:
    """The text of the record, with the hosts of this run, before they are given anything.

    :param hosts: Ansible's hostvars.
    :param retired: at the end of a rotation the users of whom only the newest password is valid.
    """
    keeper = hosts[groups["redis"][0]]
    labels = clients.made(keeper)
    now = valid(labels)
    found = _known(hosts, groups)
    for host in {*groups["celery"], *groups["redis"], *groups.get("celery_producers", ())}:
        is_there = "podman_host_state" in hosts[host] or host in groups.get("celery_producers", ())
        if is_there:
            own = {kind: now[kind] for kind in entitled(groups, host) if kind in now}
            found.hosts[host] = {**found.hosts.get(host, {}), **own}
    if CERTIFICATE in now:
        end = labels[f"{PREFIX}ca"].get("until", "")
        found.certificates[now[CERTIFICATE]] = int(end) if re.fullmatch(r"\d{1,11}", end) else 0
    if retired is not None:
        trusted = {labels.get(f"{PREFIX}ca", {}).get(one) for one in ("authority", "before")}
        ended = set(retired)
        for given in found.hosts.values():
            for kind in [*given]:
                is_certificate = kind in (CERTIFICATE, AUTHORITY)
                # Without TLS nobody asks for any; they count again when it is back.
                gone = is_certificate and CERTIFICATE in now and given[kind] not in trusted
                if gone or (kind in ended and given[kind] != now.get(kind)):
                    del given[kind]
    kept = {host: given for host, given in found.hosts.items() if given}
    used = {given[kind] for given in kept.values() for kind in given if kind not in USERS}
    ends = {version: end for version, end in found.certificates.items() if version in used}
    return json.dumps({"hosts": kept, "certificates": ends}, indent=2, sort_keys=True) + "\n"


def _known(hosts: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> Record:
    """The record as it was before this run: that of the first host of Redis that has one.

    Without one all that may have been given something before have it.
    """
    states = [hosts[host].get("podman_host_state", {}) for host in groups["redis"]]
    for state in states:
        try:
            if found := checked(state.get("holders")):
                return found
        except RecordError:
            continue
    earlier = valid(states[0].get("secrets", {}))
    if not earlier:
        return Record({}, {})
    admitted = states[0].get("admitted_hosts") or []
    former = {
        host: ("worker", CERTIFICATE)
        for host in (admitted if isinstance(admitted, list) else [])[:MAX_HOSTS]
        if isinstance(host, str) and 0 < len(host) <= MAX_NAME and host.isprintable()
    }
    of_now = {host: tuple(entitled(groups, host)) for host in [*groups["celery"], *groups["redis"]]}
    return Record(
        {
            host: {kind: earlier[kind] for kind in kinds if kind in earlier}
            for host, kinds in {**former, **of_now}.items()
        },
        {},
    )


def unrecorded(
    state: Mapping[str, Any],
    host: str,
    groups: Mapping[str, Sequence[str]],
    own: Mapping[str, Any],
) -> str:
    """Why a host cannot be given what opens a Redis that is not part of the run; or nothing.

    One that left and came back may be recorded with an earlier version: that is no record of
    today's.

    :param state: what the module ``celery_host`` gave of the host of Redis.
    :param own: the secrets that the host has.
    """
    try:
        found = checked(state.get("holders"))
    except RecordError:
        found = None
    if found:
        now, given = valid(state.get("secrets", {})), found.hosts.get(host, {})
        is_known = host in found.hosts and all(
            given.get(kind) == now[kind] for kind in entitled(groups, host) if kind in now
        )
    else:
        admitted = state.get("admitted_hosts")
        is_known = host in admitted if admitted is not None else f"{PREFIX}worker" in own
    if is_known:
        return ""
    redis = groups["redis"]
    return (
        f"host {host}: it needs what opens Redis, and {redis[0]} has not recorded it\n"
        "  Redis's host records each host first, to report it when it leaves the inventory.\n"
        f"  Fix: let the run go to both: --limit '{','.join([host, *redis])}'. Nothing was changed."
    )


def left_by_run(
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    broker: Mapping[str, Any] | None = None,
    retired: Iterable[str] | None = None,
) -> dict[str, Any]:
    """What ``reports`` needs, as this run leaves it on the first host of Redis.

    :param broker: what ``celery_host`` gave of that host, when it is not part of the run.
    :param retired: as of ``record``.
    """
    redis = groups.get("redis") or []
    if not redis or "podman_host_state" not in hosts[redis[0]]:
        return {**(broker or {})}
    found: dict[str, Any] = json.loads(record(hosts, groups, retired))
    damage = damage_of(redis[0], hosts[redis[0]]["podman_host_state"].get("holders"))
    return {"holders": found, "secrets": clients.made(hosts[redis[0]]), "damage": damage}


def reports(
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    state: Mapping[str, Any],
    days: int = 0,
    now: float | None = None,
) -> list[str]:
    """What an operator must do about hosts that left, and about certificates that end.

    :param hosts: Ansible's hostvars.
    :param state: ``holders`` and ``secrets`` of the first host of Redis; empty without an answer.
    :param days: how long before its end a certificate is reported; 0 for 365 days, and 30 for one
        of the user's own.
    """
    redis = groups.get("redis") or []
    if not redis:
        return []
    if not isinstance(state.get("secrets"), Mapping):
        # What a task that failed or found no host has registered; nothing where none ran.
        is_silent = bool(state.get("unreachable") or state.get("msg"))
        text = (
            f"host {redis[0]}: it did not answer, so hosts that left and certificates that end are "
            f"not known\n  Fix: look at {redis[0]}, then run playbooks/status.yml again"
        )
        return [text] if is_silent else []
    try:
        labels = reported.labels(redis[0], state["secrets"])
        found = checked(state.get("holders"))
    except reported.ReportedError as refused:
        return [str(refused)]
    except RecordError:
        found = None
    others = [*groups["celery"], *groups.get("celery_producers", ()), *redis]
    is_encrypted = bool(hosts[redis[0]].get("redis_tls", True)) and clients.listens(
        hosts, redis[0], others
    )
    lines = [state.get("damage", "") or damage_of(redis[0], state.get("holders"))]
    lines += _left(found, labels, groups, hosts, is_encrypted) if found else []
    if is_encrypted:
        moment = datetime.datetime.now(datetime.UTC).timestamp() if now is None else now
        lines += _ending(redis[0], labels, int(days), moment)
    return [line for line in lines if line]


def damage_of(host: str, raw: Any) -> str:
    """What it means that a record cannot be read; or nothing."""
    try:
        checked(raw)
    except RecordError as problem:
        return (
            f"host {host}: {PATH} cannot be read: {problem}\n"
            "  Which hosts left before, and still have what opens Redis, is not known any more.\n"
            f"  Fix: {_fix([WITH_CERTIFICATES, FINISH])}. See {PAGE}"
        )
    return ""


def _left(
    found: Record,
    labels: Mapping[str, Mapping[str, str]],
    groups: Mapping[str, Sequence[str]],
    inventory: Collection[str],
    is_encrypted: bool,
) -> list[str]:
    """A line for all hosts that must not have the same any more."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for host, given in sorted(found.hosts.items()):
        rights = entitled(groups, host)
        extra = {
            kind: version
            for kind, version in given.items()
            if kind not in rights and (kind in USERS or is_encrypted)
        }
        if extra:
            where = "its group of" if host in inventory else ""
            key = (where, _what(extra, found.certificates), _fix(_steps(extra, labels)))
            alike.setdefault(key, []).append(host)
    return [
        f"{', '.join(those)}: {'has' if len(those) == 1 else 'have'} left "
        f"{where + ' ' if where else ''}the inventory and still "
        f"{'has' if len(those) == 1 else 'have'} {what}\n"
        "  Redis accepts this until it is rotated.\n"
        f"  Fix: {fix}. See {PAGE}"
        for (where, what, fix), those in alike.items()
    ]


def _what(extra: Mapping[str, str], ends: Mapping[str, int]) -> str:
    """What a host still has, in words."""
    users = [kind for kind in USERS if kind in extra]
    words = [f"the password{'s' if len(users) > 1 else ''} of {', '.join(users)}"] if users else []
    if CERTIFICATE in extra:
        end = ends.get(extra[CERTIFICATE], 0)
        words.append(f"a certificate{f' until {_day(end)}' if end else ''}")
    if AUTHORITY in extra:
        words.append("the key of the authority that signs them")
    return " and ".join(words)


def _steps(extra: Mapping[str, str], labels: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The runs that end it, in their order."""
    now = valid(labels)
    certificates = [extra[kind] for kind in (CERTIFICATE, AUTHORITY) if kind in extra]
    # Only the earlier one of producer waits for the second run.
    passwords = [
        kind for kind in extra if kind in USERS and not _waits(kind, extra[kind], now.get(kind, ""))
    ]
    steps = []
    if now.get(CERTIFICATE) in certificates:
        # One that has begun must end before another begins.
        has_begun = bool(labels.get(f"{PREFIX}ca", {}).get("before"))
        steps = [*([FINISH] if has_begun else []), WITH_CERTIFICATES]
    elif passwords:
        steps = [ROTATE]
    return [*steps, FINISH] if certificates or "producer" in extra else steps


def _waits(kind: str, version: str, newest: str) -> bool:
    return kind == "producer" and version != newest


def _fix(steps: Sequence[str]) -> str:
    """The runs as one sentence.

    >>> _fix([ROTATE, FINISH])
    'ansible-playbook playbooks/rotate-secrets.yml, then the same with -e rotate_finish=true'
    """
    first, *rest = steps
    return ", then the same with ".join([first, *(one.removeprefix(f"{ROTATE} ") for one in rest)])


def _ending(host: str, labels: Mapping[str, Mapping[str, str]], days: int, now: float) -> list[str]:
    """The certificates that end soon."""

    def end(name: str) -> int:
        text = labels.get(PREFIX + name, {}).get("until", "")
        return int(text) if re.fullmatch(r"[0-9]{1,11}", text) else MAX_SECONDS

    is_own = f"{PREFIX}authority" not in labels
    limit = now + (days or (OWN_DAYS if is_own else AUTHORITY_DAYS)) * 86400
    first = min(end("ca"), end(f"{CERTIFICATE}-worker"))
    if is_own:
        first = min(first, end(f"{CERTIFICATE}-server"))
        text = "a certificate of redis_tls_files"
        fix = "put new ones in the place of redis_tls_files, and run site.yml"
    else:
        text = "the authority of Redis's certificates, and with it each client's certificate,"
        fix = f"{_fix([WITH_CERTIFICATES, FINISH])}. See docs/tls.md"
    lines = []
    if first < limit:
        lines.append(
            f"host {host}: {text} ends at {_day(first)}\n"
            "  After that no worker of another host reaches Redis.\n"
            f"  Fix: {fix}"
        )
    server = end(f"{CERTIFICATE}-server")
    if not is_own and server < now + SERVER_DAYS * 86400 and server < first:
        lines.append(
            f"host {host}: Redis's own certificate ends at {_day(server)}, and its timer has not "
            "renewed it\n"
            "  After that no worker of another host reaches Redis.\n"
            "  Fix: run site.yml, which renews it; 'journalctl -u celery-redis-certificate' there "
            "says why the timer did not"
        )
    return lines


def _day(seconds: int) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d}"


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "redis_holders": record,
            "redis_holders_after": left_by_run,
            "redis_holders_reports": reports,
            "redis_unrecorded": unrecorded,
        }
