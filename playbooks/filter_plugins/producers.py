"""Hosts that send tasks, and machines outside: what is declared for them, and what they get."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Beside this file, and rules that are no plugins; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "declared"))
import clients
import commands
import contact
import destination
import holders
from addresses import UNREADABLE, redis_address
from arguments import OPTIONS
from external import is_external
from of_the_app import OURS
from texts import LETTERS, VARIABLE, shown, word

GROUP, PREFIX = "celery_producers", "celery_producer_"
DIRECTORY = "/etc/celery-producer"
RECORD = "/var/lib/celery-metal/producer.json"
#: Of the role, whose defaults other hosts' variables do not have.
VARIABLES: dict[str, Any] = {
    "celery_producer_files": True,
    "celery_producer_directory": DIRECTORY,
    "celery_producer_owner": "root",
    "celery_producer_group": "root",
    "celery_producer_mode": "0640",
    "celery_producer_broker_variables": [],
    "celery_producer_certificate": "",
    "celery_producer_reload": [],
    "celery_producer_restart": [],
}
DEFAULTS = {name.removeprefix(PREFIX): value for name, value in VARIABLES.items()}
# Of playbooks/producer.yml.
OUTSIDE = OPTIONS["producer"]
SOCKET = "/run/celery-metal/redis/redis.sock"
SECRETS = {
    "password": "celery-redis-producer",
    "ca": "celery-redis-ca",
    "certificate": "celery-redis-certificate-producer",
}
PATH = re.compile(r"(/[A-Za-z0-9][A-Za-z0-9._-]*){2,}", re.ASCII)
TEXTS = ("true", "false")
#: A boot, or systemd-tmpfiles, removes what is below.
LOST = ("/dev", "/proc", "/run", "/sys", "/tmp", "/var/run", "/var/tmp")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", re.ASCII)
MODE = re.compile(r"0?[46][046]0")
CLOSE, LONGEST = 0.85, 200
Found = Iterator[tuple[str, str]]


def problems(hosts: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> str:
    """What is wrong with what is declared for producers; empty when nothing is.

    :param hosts: Ansible's hostvars.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for host in groups.get(GROUP, ()):
        try:
            for said in _of_host(hosts, groups, host):
                alike.setdefault(said, []).append(host)
        except UNREADABLE as error:
            said = f"a variable {PREFIX}... cannot be read: {error}", "correct its template"
            alike.setdefault(said, []).append(host)
    return "\n".join(
        f"{', '.join(those)}: {what}\n  Fix: {fix}. Nothing was changed."
        for (what, fix), those in alike.items()
    )


def _of_host(
    hosts: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]], host: str
) -> Found:
    given = _given(hosts[host])
    for name in sorted(given.keys() - DEFAULTS.keys()):
        near = difflib.get_close_matches(name, DEFAULTS, 1, CLOSE)
        remedy = f"write {PREFIX}{near[0]}" if near else "remove it; see docs/producers.md"
        yield f"{PREFIX}{name} is an unknown variable", remedy
    value = {**DEFAULTS, **given}
    if not isinstance(value["files"], bool) and str(value["files"]).lower() not in TEXTS:
        yield f"{PREFIX}files is {shown(value['files'])}", "write true or false"
        return
    if not _gets_files(given):
        return
    if is_external(hosts, groups):
        yield (
            "redis_mode is external, and the passwords of that Redis are not known here",
            f"write {PREFIX}files: false, or take it out of {GROUP}",
        )
        return
    if not _is(PATH, value["directory"]) or len(value["directory"]) > LONGEST:
        yield (
            f"{PREFIX}directory is {shown(value['directory'])}",
            f"write a path with two names or more, such as {DIRECTORY}",
        )
    elif lost := [one for one in LOST if value["directory"].startswith(f"{one}/")]:
        yield (
            f"{PREFIX}directory is {shown(value['directory'])}, and files below {lost[0]} do not "
            "last: a boot or systemd-tmpfiles removes them",
            f"write a directory elsewhere, such as {DIRECTORY}",
        )
    for key, kind in (("owner", "user"), ("group", "group")):
        if not _is(NAME, value[key]):
            yield f"{PREFIX}{key} is {shown(value[key])}", f"write the name of a {kind} of the host"
    if not _is(MODE, value["mode"]):
        yield (
            f"{PREFIX}mode is {shown(value['mode'])}",
            'write "0640", "0600", "0440" or "0400", in quotes: others must not read passwords',
        )
    is_elected = len(groups.get("redis", ())) > 1
    yield from _variables(f"{PREFIX}broker_variables", value["broker_variables"], is_elected)
    for key in ("reload", "restart"):
        yield from _commands(f"{PREFIX}{key}", value[key])
    if groups.get("redis"):
        own = bool(hosts[groups["redis"][0]].get("redis_tls_files"))
        yield from _certificate(f"{PREFIX}certificate", value["certificate"], own)


def _given(variables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.removeprefix(PREFIX): variables[name]
        for name in variables
        if name.startswith(PREFIX) and name != f"{PREFIX}wanted"
    }


def _gets_files(given: Mapping[str, Any]) -> bool:
    """Whether a host gets files; an inventory in INI format gives a text."""
    return str(given.get("files", True)).lower() != "false"


def with_files(
    hosts: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]]
) -> list[str]:
    """The hosts of the group that get files, so that Ansible connects to them."""
    return [host for host in groups.get(GROUP, ()) if _gets_files(_given(hosts[host]))]


def _is(form: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and bool(form.fullmatch(value))


def _variables(where: str, names: Any, is_elected: bool) -> Found:
    if not isinstance(names, list):
        yield f"{where} is {shown(names)}", "write a list of names, such as [CELERY_BROKER_URL]"
        return
    for name in names:
        if not _is(VARIABLE, name):
            yield f"{where} has {shown(name)}, which is no name of a variable", LETTERS
        elif name.startswith(OURS):
            yield f"{where} has {name}, which holds something else", "remove it"
    if names and is_elected:
        yield (
            f"{where} is {shown(names)}, and no URL holds a Redis that Sentinels elect",
            "remove it, and use the runtime; see docs/producers.md#with-sentinels",
        )


def _commands(where: str, value: Any) -> Found:
    if not isinstance(value, list):
        yield f"{where} is {shown(value)}", "write a list, such as [systemctl reload shop]"
        return
    for command in value:
        try:
            if not isinstance(command, str):
                raise ValueError("it is no text")
            commands.words(command)
        except ValueError as error:
            yield (
                f"{where} has {shown(command)}: {error}",
                "write a program and its arguments; no shell reads them",
            )


def _certificate(where: str, path: Any, is_own: bool) -> Found:
    if not isinstance(path, str):
        yield f"{where} is {shown(path)}", "write the path of a file on the controller"
    elif is_own and not path:
        yield (
            "redis_tls_files names an authority of yours, and a producer has no certificate of it",
            f"write {where}: a file on the controller with its certificate and key",
        )
    elif path and not is_own:
        yield (
            f"{where} is {shown(path)}, and Redis takes certificates of its own authority only",
            "remove it, or set redis_tls_files",
        )
    elif path and not os.path.isfile(path):
        yield f"{where} is {shown(path)}, and the controller has no such file", "write its path"


def options(
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    host: str,
    state: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The options of the module ``celery_producer`` for a host of the group.

    :param state: what ``celery_host`` gave of the first host of Redis where it is not in the run.
    """
    value = {**DEFAULTS, **_given(hosts[host])}
    is_here = list(groups["redis"]) == [host]
    found = _opens(
        hosts, groups, state, is_local=is_here, has_certificate=bool(value["certificate"])
    )
    return {
        **found,
        **{key: value[key] for key in ("directory", "owner", "group", "mode")},
        "variables": value["broker_variables"],
        "destination": hosts[host].get("deploy_destination") or "",
        "reload": [commands.words(one) for one in value["reload"]],
        "restart": [commands.words(one) for one in value["restart"]],
    }


def outside(
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    variables: Mapping[str, Any],
) -> dict[str, Any]:
    """The options of ``celery_producer`` for a machine that Ansible does not reach."""
    own = bool(variables.get("producer_certificate"))
    return {
        **_opens(hosts, groups, None, is_local=False, has_certificate=own),
        "directory": os.path.abspath(os.path.expanduser(variables["producer_to"])),
        "place": variables.get("producer_place", DIRECTORY),
        "mode": "0600",
        "variables": _names(variables.get("producer_broker_variables", [])),
    }


def _names(value: Any) -> Any:
    """A list; from the command line it is a text with commas."""
    return value.split(",") if isinstance(value, str) else value


def outside_problems(
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    variables: Mapping[str, Any],
) -> str:
    """What is wrong with the variables of ``playbooks/producer.yml``; empty when nothing is."""
    found = next(_of_outside(hosts, groups, variables), None)
    return f"{found[0]}.\n  Fix: {found[1]}. Nothing was changed." if found else ""


def outside_text(
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    variables: Mapping[str, Any],
    check: bool,
) -> str:
    """What an operator has to do with the files; without a secret."""
    wanted = outside(hosts, groups, variables)
    first = hosts[groups["redis"][0]]
    lines = [
        f"{shown(wanted['directory'])} {'would have' if check else 'has'} what opens Redis",
        f"  Copy it to {wanted['place']} of the machine, readable by the program alone, and give "
        f"the program the variables in {wanted['place']}/environment.",
    ]
    if first.get("redis_firewall", True):
        lines.append("  redis_allowed_sources has to hold the address of the machine.")
    lines.append("  Run this again after each rotate-secrets.yml, before its rotate_finish=true.")
    return "\n".join(lines)


def _of_outside(
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    variables: Mapping[str, Any],
) -> Found:
    for name in sorted(name for name in variables if name.startswith("producer_")):
        # An inventory may have others of its own.
        if name not in OUTSIDE and (near := difflib.get_close_matches(name, OUTSIDE, 1, CLOSE)):
            yield f"{name} is an unknown variable", f"write {near[0]}"
    if is_external(hosts, groups):
        yield (
            "redis_mode is external, and the passwords of that Redis are not known here",
            "take them from where that Redis runs",
        )
        return
    folder = variables.get("producer_to", "")
    if not isinstance(folder, str) or not folder or not folder.isprintable():
        yield f"producer_to is {shown(folder)}", "write the path of a directory on this machine"
        return
    target = Path(folder).expanduser()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        yield (
            f"producer_to is {shown(folder)}, which is a link or no directory",
            "write the path of a directory on this machine; it is created where it is missing",
        )
        return
    place = variables.get("producer_place", DIRECTORY)
    if not _is(PATH, place) or len(place) > LONGEST:
        yield (
            f"producer_place is {shown(place)}",
            f"write where the files will be on that machine, such as {DIRECTORY}",
        )
    redis = list(groups["redis"])
    names = _names(variables.get("producer_broker_variables", []))
    yield from _variables("producer_broker_variables", names, len(redis) > 1)
    own = bool(hosts[redis[0]].get("redis_tls_files"))
    yield from _certificate("producer_certificate", variables.get("producer_certificate", ""), own)
    others = [*groups.get("celery", ()), *groups.get(GROUP, ()), *redis]
    if not clients.listens(hosts, redis[0], others):
        yield (
            f"Redis on {redis[0]} does not listen on the network",
            "write redis_listen: true, and redis_allowed_sources with the address of the machine, "
            "and run site.yml first",
        )


def _opens(
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    state: Mapping[str, Any] | None,
    *,
    is_local: bool,
    has_certificate: bool,
) -> dict[str, Any]:
    """The address of Redis, and the secrets that open it with their versions."""
    redis = list(groups["redis"])
    first = hosts[redis[0]]
    has_tls = bool(first.get("redis_tls", True)) and not is_local
    kinds = ["password"]
    if has_tls:
        kinds += ["ca", *([] if has_certificate else ["certificate"])]
    labels = clients.made({**first, **({"podman_host_state": state} if state else {})})
    url = _url(hosts, groups, state, is_local=is_local, has_tls=has_tls)
    return {
        "url": url,
        "results": _results(hosts[groups["celery"][0]], url),
        "secrets": {
            SECRETS[kind]: labels[SECRETS[kind]]["version"]
            for kind in kinds
            # Under --check a new Redis has none yet.
            if "version" in labels.get(SECRETS[kind], {})
        },
    }


def _results(worker: Mapping[str, Any], url: str) -> str:
    """Where programs find the results of the workers; empty for where their app keeps them.

    Another backend needs what a program may not have, such as a library or a password.
    """
    return url if worker.get("celery_worker_result_backend", "app") == "redis" else ""


def _url(
    hosts: Mapping[str, Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    state: Mapping[str, Any] | None,
    *,
    is_local: bool,
    has_tls: bool,
) -> str:
    redis = list(groups["redis"])
    first = hosts[redis[0]]
    database = hosts[groups["celery"][0]].get("celery_worker_broker_database", 0)
    if is_local:
        return f"redis+socket://producer@{SOCKET}?virtual_host={database}"
    if len(redis) > 1:
        url = clients.elected_url(hosts, redis, database).replace("://worker@", "://producer@", 1)
        return f"{url}&replicas={first.get('redis_replicas_required', 1)}"
    where = redis_address(hosts, redis[0], state)
    port = first.get("redis_port", 6379)
    return f"{'rediss' if has_tls else 'redis'}://producer@{where}:{port}/{database}"


def lacks(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The secrets that a host has to get: those that it does not have as they are wanted.

    :param wanted: as of ``options``.
    :param found: what the module ``celery_producer`` saw there.
    """
    versions = found.get("versions", {})
    return [name for name, one in wanted["secrets"].items() if versions.get(name) != one]


def found_problems(
    hosts: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Sequence[str]], play: Sequence[str]
) -> str:
    """Why producers of a run cannot be given anything, before a host is changed; or nothing."""
    those = [host for host in play if _gets_files(_given(hosts[host]))]
    said = {host: hosts[host].get("__celery_producer_found", {}) for host in those}
    # The others of the fleet have answered, so that a run goes on without these.
    answers = {host: one if one.get("unreachable") else {} for host, one in said.items()}
    silent = contact.contact_problems({"": {}, **answers}, "")
    # The look never counts as failed: what it could not read are the versions.
    refused = [
        str(one["msg"])
        for one in said.values()
        if "msg" in one and "versions" not in one and not one.get("unreachable")
    ]
    # Looked at where the host of Redis is not part of the run.
    limited = [
        holders.unrecorded(hosts[host]["site_producer_broker"], host, groups, {})
        for host in those
        if "secrets" in hosts[host].get("site_producer_broker", {})
    ]
    return "\n".join(filter(None, [silent, *refused, moved(hosts, those, True), *limited]))


def moved(hosts: Mapping[str, Mapping[str, Any]], play: Sequence[str], moves: bool = False) -> str:
    """Why producers with the files of another destination are refused; empty when they are not.

    :param moves: whether the playbook takes ``destination_was``.
    """
    found: dict[str, list[str]] = {}
    for host in play:
        recorded = str(hosts[host].get("__celery_producer_found", {}).get("destination", ""))
        if not (moves and recorded == hosts[host].get("destination_was")):
            found.setdefault(recorded, []).append(host)
    problems = [
        destination.host_problem(
            some, recorded, hosts[some[0]].get("deploy_destination"), moves=moves
        ).replace(destination.STATE, RECORD)
        for recorded, some in found.items()
    ]
    return "\n".join(filter(None, problems))


def connected(found: Any, host: str, is_last: bool) -> str:
    """Which programs are connected to a Redis by an earlier password; empty where none are.

    :param found: what the module ``redis_users`` returned with ``earlier``.
    :param is_last: whether this run has ended the earlier passwords.
    """
    rows = found.get("connections") if isinstance(found, Mapping) else None
    lines = [
        f"  {word(str(row.get('user')))} from {word(str(row.get('address')))}: "
        f"{_number(row.get('count'))}, the oldest for {_number(row.get('seconds'))} s"
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, Mapping)
    ]
    if not lines:
        return ""
    if is_last:
        end = "This run has ended them: programs without the new password cannot send tasks now."
    else:
        end = (
            "They end with -e rotate_finish=true.\n"
            "  Fix: give these programs the new password before, unless they read it again, as the "
            "runtime does; see docs/producers.md."
        )
    title = f"{host}: connections from before the new password:"
    return "\n".join([title, *lines, f"  {end}"])


def _number(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 53 else 0


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "producer_connected": connected,
            "producer_found_problems": found_problems,
            "producer_hosts": with_files,
            "producer_lacks": lacks,
            "producer_moved": moved,
            "producer_options": options,
            "producer_outside": outside,
            "producer_outside_problems": outside_problems,
            "producer_outside_text": outside_text,
            "producer_problems": problems,
        }
