"""Check the kit's variables against the roles' argument specs, all at once and in plain words.

Ansible checks a role's arguments when the role begins, when hosts have been changed already, and
prints the whole specification with the mistake. This looks at what the inventory and the command
line say before any host is contacted.
"""

from __future__ import annotations

import difflib
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import Undefined

# Variables of this name belong to the kit; a name close to one of ours is taken for a typing error.
PREFIXES = ("capacity_", "celery_", "image_", "podman_host_", "redis_")
KINDS = {
    "bool": (bool, "true or false"),
    "dict": (Mapping, "a mapping"),
    "int": (int, "a whole number"),
    "list": (list, "a list"),
    "path": (str, "text"),
    "str": (str, "text"),
}
CLOSE = 0.85
# A name of before to that of now.
RENAMED = {"celery_worker_app": "celery_app"}
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
LETTERS = "take letters, digits and _, not a digit first"
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
SECRET = re.compile(r"[A-Za-z0-9_.-]{1,100}", re.ASCII)
# podman-secret-create(1): below 512 kB.
SECRET_BYTES = 512000
# What the container has of the kit, and what Celery itself would read instead of it.
OURS = ("CELERY_METAL_",)
TAKEN = {
    "BROKER_URL",
    "CELERY_APP",
    "CELERY_BROKER",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_URL",
    "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
    "NOTIFY_SOCKET",
    "RESULT_BACKEND",
}
SECRETS_TAKEN = {".", "..", "celery-redis-password"}


def bounds(description: str | list[str]) -> tuple[int, int] | None:
    """The range that a description states as ``1 to 65535``.

    >>> bounds("The TCP port, 1 to 65535.")
    (1, 65535)
    """
    found = re.search(r"\b(\d+) to (\d+)\b", " ".join(flat(description)))
    return (int(found.group(1)), int(found.group(2))) if found else None


def flat(description: str | list[str]) -> list[str]:
    return [description] if isinstance(description, str) else description


def problem(name: str, value: Any, option: Mapping[str, Any]) -> str:
    """What is wrong with a variable's value, and what to write; empty when nothing is."""
    kind = option.get("type", "str")
    if kind == "raw":
        return ""  # a number or a word: the role that owns it checks it
    if isinstance(value, Undefined):
        return f"{name} names something that is not defined: {value._undefined_message}"
    python, words = KINDS[kind]
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    wanted = words
    limits = bounds(option.get("description", "")) if kind == "int" else None
    if limits:
        wanted += f", {limits[0]} to {limits[1]}"
    if option.get("choices"):
        wanted = f"one of {', '.join(map(str, option['choices']))}"
    fits = isinstance(value, python) and not (kind == "int" and isinstance(value, bool))
    if fits and option.get("choices"):
        fits = value in option["choices"]
    if fits and limits:
        fits = limits[0] <= value <= limits[1]
    if fits and kind == "list" and option.get("elements"):
        element = {"type": option["elements"], "description": ""}
        wrong = [problem(f"{name}[{place}]", one, element) for place, one in enumerate(value)]
        return "; ".join(filter(None, wrong))
    if fits:
        return ""
    hint = ""
    if isinstance(value, str) and kind in ("int", "bool"):
        hint = ", without quotes (-e name=value always gives text: use -e '{name: value}')"
    return f"{name} is {shown}: it must be {wanted}{hint}"


def declaration_problems(
    variables: Mapping[str, Any],
    specs: Iterable[Mapping[str, Any]],
    host: str,
    facts_known: bool = False,
    address: str | None = None,
    places: Iterable[str] = (),
) -> str:
    """All that is wrong with the kit's variables of a host, one line each; empty when nothing is.

    :param variables: all variables of the host.
    :param specs: the parsed ``meta/argument_specs.yml`` of each role.
    :param host: the host's name, for the message.
    :param facts_known: whether facts were gathered; before, a value made of them is let pass.
    :param address: what Redis would listen on; None where it does not, or before facts are known.
    :param places: directories of the controller in which files with a relative path are looked for.
    """
    options: dict[str, Mapping[str, Any]] = {}
    for spec in specs:
        options |= spec["argument_specs"]["main"]["options"]
    problems = []
    for name in sorted(name for name in variables if name.startswith(PREFIXES)):
        if name == "celery_queues":
            continue  # they have a check of their own, which knows more than types
        if name in options:
            value = variables[name]
            unknown = isinstance(value, Undefined) and not facts_known
            wrong = "" if unknown else problem(name, value, options[name])
        elif name in RENAMED:
            wrong = f"{name} has another name now: write {RENAMED[name]}"
        else:
            near = difflib.get_close_matches(name, options, n=1, cutoff=CLOSE)
            wrong = f"{name} is no variable of the kit: did you mean {near[0]}?" if near else ""
        problems += [wrong] if wrong else []
    problems += app_problems(variables) + beat_problems(variables)
    certificates = variables.get("podman_host_ca_certificates", [])
    if isinstance(certificates, list) and all(isinstance(one, str) for one in certificates):
        problems += certificate_problems(certificates, places)
    if address is not None:
        problems += address_problems(address)
    if not problems:
        return ""
    return "\n".join([f"host {host}:", *(f"- {one}" for one in problems), "Nothing was changed."])


def app_problems(variables: Mapping[str, Any]) -> list[str]:
    """What is wrong with the environment and the secrets of the app; never with a secret in it."""
    prefix = "celery_worker_"
    secrets = variables.get(f"{prefix}secrets", {})
    exported = variables.get(f"{prefix}secrets_exported", [])
    queues = variables.get("celery_queues", [])
    overrides = variables.get("celery_queue_overrides", {})
    shaped = isinstance(secrets, Mapping) and isinstance(exported, list)
    if not shaped or not isinstance(queues, list) or not isinstance(overrides, Mapping):
        return []  # said already
    problems = environment_problems(
        f"{prefix}environment", variables.get(f"{prefix}environment", {}), exported
    )
    problems += secret_problems(secrets)
    for name in exported:
        if name not in secrets:
            problems.append(
                f"{prefix}secrets_exported names {name}, which is none of {prefix}secrets: "
                f"{_known(secrets)}"
            )
        elif not VARIABLE.fullmatch(str(name)):
            problems.append(
                f"{prefix}secrets_exported names {name}, which is no name of a variable: {LETTERS}"
            )
    named = [
        (f"celery_queues ({queue.get('name')})", queue)
        for queue in queues
        if isinstance(queue, Mapping)
    ]
    named += [(f"celery_queue_overrides ({name})", own) for name, own in overrides.items()]
    for where, queue in named:
        if not isinstance(queue, Mapping):
            continue
        problems += environment_problems(
            f"{where}: environment", queue.get("environment", {}), exported
        )
        network = variables.get("celery_worker_network", "bridge")
        if queue.get("ports") and network in ("host", "none"):
            problems.append(
                f"{where} has ports, and celery_worker_network is {network}, where there are none "
                "to lead anywhere: remove them, or take bridge"
            )
        wanted = queue.get("secrets", "all")
        for name in wanted if isinstance(wanted, list) else []:
            if name not in secrets:
                problems.append(
                    f"{where}: secrets names {name}, which is none of {prefix}secrets: "
                    f"{_known(secrets)}"
                )
    return problems


def beat_problems(variables: Mapping[str, Any]) -> list[str]:
    """What is wrong with the choice of hosts that run Beat."""
    chosen = variables.get("celery_beat_hosts")
    if not isinstance(chosen, list):
        return []  # the first two, or said already
    known = list(variables.get("groups", {}).get("celery", []))
    hosts = f"the group celery has {', '.join(known) or 'no host'}"
    if not chosen:
        return [
            f"celery_beat_hosts is empty, so that no host would schedule: name some ({hosts}), or "
            "leave celery_beat out"
        ]
    return [
        f"celery_beat_hosts names {host}, which is no host of the group celery: {hosts}"
        for host in chosen
        if host not in known
    ]


def environment_problems(where: str, values: Any, exported: Iterable[str]) -> list[str]:
    """What is wrong with environment variables, each with its value and the remedy."""
    problems = []
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if not isinstance(name, str) or not VARIABLE.fullmatch(name):
            problems.append(f"{where} names {name!r}, which is no name of a variable: {LETTERS}")
        elif name.startswith(OURS) or name in TAKEN:
            problems.append(
                f"{where} sets {name}, which the kit sets itself: use the kit's variable for it"
            )
        elif name in exported:
            problems.append(
                f"{where} sets {name}, which celery_worker_secrets_exported names as well: keep one"
            )
        elif not isinstance(value, str):
            problems.append(
                f"{where} has {name} as {value!r}, which is no text (YAML reads no as false, and "
                "010 as 8): put what you mean in quotes"
            )
        elif CONTROL.search(value):
            problems.append(
                f"{where} has {name} as {value!r}: a unit file has no place for lines and control "
                "characters; make it a secret, which is a file"
            )
    return problems


def secret_problems(secrets: Mapping[str, Any]) -> list[str]:
    """What is wrong with secrets, without their values."""
    problems = []
    for name, value in secrets.items():
        if isinstance(value, Undefined):
            problems.append(
                f"celery_worker_secrets[{name}] names something that is not defined: "
                f"{value._undefined_message}"
            )
        elif not isinstance(name, str) or not SECRET.fullmatch(name) or name in SECRETS_TAKEN:
            problems.append(
                f"celery_worker_secrets has the name {name!r}: take 1 to 100 of the letters A to "
                "Z, digits, and _ . - , and none of the kit's own"
            )
        elif not isinstance(value, str):
            problems.append(
                f"celery_worker_secrets[{name}] is no text: put its value in quotes (a mapping or "
                "list: make it text with to_json)"
            )
        elif not 0 < len(value.encode()) < SECRET_BYTES:
            problems.append(
                f"celery_worker_secrets[{name}] is empty, or larger than Podman keeps "
                f"({SECRET_BYTES - 1} bytes): give it a value, or remove it"
            )
    return problems


def _known(names: Iterable[str]) -> str:
    return f"it has {', '.join(sorted(map(str, names))) or 'no secret'}"


def certificate_problems(paths: Iterable[str], places: Iterable[str]) -> list[str]:
    """What is wrong with podman_host_ca_certificates: files that are missing, or would be one file.

    Relative paths are looked for as Ansible does: in each place, in its directory ``files`` first.
    """
    problems, taken = [], {}
    for path in paths:
        whole = pathlib.Path(os.path.expanduser(path))  # leaves a user that is not known
        found = [whole] if whole.is_absolute() else []
        if not whole.is_absolute():
            found = [pathlib.Path(place, "files", path) for place in places]
            found += [pathlib.Path(place, path) for place in places]
        if not any(one.is_file() for one in found):
            problems.append(
                f"podman_host_ca_certificates names {path}, which is no file on the controller: "
                "write the path of a PEM file there"
            )
        # As the role names the file on the host.
        name = re.sub(r"\.(crt|pem)$", "", whole.name)
        if name in taken:
            problems.append(
                f"podman_host_ca_certificates names {taken[name]} and {path}, which would both be "
                f"{name}.crt on the host: rename one"
            )
        taken.setdefault(name, path)
    return problems


def address_problems(address: str) -> list[str]:
    """What is wrong with the address that Redis shall listen on, once facts are known."""
    if address.strip():
        return []
    return [
        f'redis_address is "{address}": other hosts must reach Redis, and its host has no default '
        "IPv4 address to take; write the address that they reach, such as redis_address: 10.0.0.5"
    ]


def broker_problem(secrets: Mapping[str, Any], host: str, redis: str, address: str) -> str:
    """Why a host cannot use a Redis that is not part of the run; empty when it can.

    :param secrets: Podman's secrets on the host of Redis.
    :param host: the host that needs it.
    :param redis: the host of Redis.
    :param address: what Redis listens on.
    """
    if "celery-redis-password" not in secrets:
        return (
            f"{host} needs Redis, and {redis} has no password for it yet. Nothing was changed. "
            "Run site.yml without --limit."
        )
    return "".join(
        f"host {redis}: {one}. Nothing was changed." for one in address_problems(address)
    )


def contact_problems(hosts: Mapping[str, Mapping[str, Any]], redis: str) -> str:
    """Which hosts did not answer, one to a line, with Ansible's word on why; empty when all did.

    :param hosts: host to what the first task on it gave.
    :param redis: the host of Redis, without which no run can do.
    """
    silent = {
        host: "cannot be reached" if said.get("unreachable") else "gives no facts"
        for host, said in hosts.items()
        if said.get("unreachable") or said.get("failed")
    }
    if not silent:
        return ""
    lines = []
    for host, what in silent.items():
        why = str(hosts[host].get("msg", "no reason was given")).removeprefix("Task failed: ")
        lines.append(f"{host} {what}: {why.strip().rstrip('.')}.")
    lines.append("Nothing was changed on any host.")
    if redis in silent:
        lines.append(f"All workers need {redis}, for it runs Redis: mend that, then run again.")
    elif len(silent) < len(hosts):
        limit = ":".join(["all", *(f"!{host}" for host in silent)])
        it = "it" if len(silent) == 1 else "them"
        lines.append(f"To go on without {it}: --limit '{limit}'.")
    else:
        lines.append("Mend the way to the hosts, then run again.")
    return "\n".join(lines)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "broker_problem": broker_problem,
            "contact_problems": contact_problems,
            "declaration_problems": declaration_problems,
        }
