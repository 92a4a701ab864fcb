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
        else:
            near = difflib.get_close_matches(name, options, n=1, cutoff=CLOSE)
            wrong = f"{name} is no variable of the kit: did you mean {near[0]}?" if near else ""
        problems += [wrong] if wrong else []
    certificates = variables.get("podman_host_ca_certificates", [])
    if isinstance(certificates, list) and all(isinstance(one, str) for one in certificates):
        problems += certificate_problems(certificates, places)
    if address is not None:
        problems += address_problems(address)
    if not problems:
        return ""
    return "\n".join([f"host {host}:", *(f"- {one}" for one in problems), "Nothing was changed."])


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
