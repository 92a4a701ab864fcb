"""Check the kit's variables against the roles' argument specs, all at once and in plain words.

Ansible checks a role's arguments when the role begins, when hosts have been changed already, and
prints the whole specification with the mistake. This looks at what the inventory and the command
line say before any host is contacted.
"""

from __future__ import annotations

import difflib
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
) -> str:
    """All that is wrong with the kit's variables of a host, one line each; empty when nothing is.

    :param variables: all variables of the host.
    :param specs: the parsed ``meta/argument_specs.yml`` of each role.
    :param host: the host's name, for the message.
    :param facts_known: whether facts were gathered; before, a value made of them is let pass.
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
    if not problems:
        return ""
    return "\n".join([f"host {host}:", *(f"- {one}" for one in problems), "Nothing was changed."])


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"declaration_problems": declaration_problems}
