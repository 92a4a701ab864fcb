#!/usr/bin/env python3
"""Write the tables of variables in docs/roles/ from the roles' argument specs.

    document.py            writes what is out of date
    document.py --check    writes nothing; exit status 1 if a page is out of date

In each page docs/roles/ROLE.md the text between the two markers is replaced; all else stays.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
BEGIN = "<!-- variables: begin -->"
END = "<!-- variables: end -->"
TYPES = {
    "bool": "true or false",
    "dict": "mapping",
    "int": "number",
    "list": "list",
    "path": "path",
    "raw": "see description",
    "str": "text",
}


class PageError(Exception):
    """A page cannot be written; the text says which, and what to do."""


def markdown(text: str) -> str:
    """Ansible's markup as Markdown, fit for a table's cell.

    >>> markdown("C(a) or I(b), O(c=1)|V(d)")
    '`a` or `b`, `c=1`\\\\|`d`'
    """
    return re.sub(r"\b[BCIOV]\(([^)]*)\)", r"`\1`", text).replace("|", "\\|")


def described(option: Mapping[str, Any]) -> str:
    """The description of an option in one paragraph, with its choices."""
    description = option["description"]
    text = " ".join([description] if isinstance(description, str) else description)
    if option.get("choices"):
        text += f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}."
    return markdown(text)


def kind(option: Mapping[str, Any]) -> str:
    """The type of an option in words."""
    if option["type"] == "list":
        elements = {"str": "texts", "int": "numbers", "path": "paths", "dict": "mappings"}
        return f"list of {elements[option['elements']]}"
    return TYPES[option["type"]]


def default(option: Mapping[str, Any]) -> str:
    """The default of an option as it would be written in YAML, or that there is none."""
    if option.get("required"):
        return "required"
    if "default" not in option:
        return "none"
    value = option["default"]
    plain = isinstance(value, str) and value != ""
    return f"`{value if plain else json.dumps(value)}`".replace("|", "\\|")


def table(options: Mapping[str, Mapping[str, Any]], title: str) -> list[str]:
    """The lines of a table with one row for each option."""
    rows = [
        f"| `{name}` | {kind(option)} | {default(option)} | {described(option)} |"
        for name, option in options.items()
    ]
    return [f"| {title} | Type | Default | Description |", "|---|---|---|---|", *rows]


def tables(options: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of a role's variables, and one for the keys of each variable that has keys."""
    lines = table(options, "Variable")
    for name, option in options.items():
        if "options" in option:
            lines += ["", f"Keys of an item of `{name}`:", "", *table(option["options"], "Key")]
    return "\n".join(lines)


def page(text: str, options: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """A page with its tables renewed.

    Raises PageError unless the page has both markers, once each and in order.
    """
    before, found, rest = text.partition(f"{BEGIN}\n")
    _, ended, after = rest.partition(END)
    if not found or not ended or BEGIN in after or END in before + after:
        raise PageError(f"{name} needs one line {BEGIN}, and one line {END} after it")
    return f"{before}{BEGIN}\n{tables(options)}\n{END}{after}"


def renewed(role: pathlib.Path, path: pathlib.Path) -> str:
    """The text that a role's page should have."""
    spec = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text())
    if not path.exists():
        raise PageError(f"{path.relative_to(ROOT)} is missing: each role has a page")
    name = str(path.relative_to(ROOT))
    return page(path.read_text(), spec["argument_specs"]["main"]["options"], name)


def main() -> int:
    """Run what the command line asks for and return the exit status."""
    parser = argparse.ArgumentParser(description="Write the tables of variables in docs/roles/.")
    parser.add_argument("--check", action="store_true", help="only tell what is out of date")
    check = parser.parse_args().check
    status = 0
    for spec in sorted(ROOT.glob("roles/*/meta/argument_specs.yml")):
        role = spec.parents[1]
        path = ROOT / "docs" / "roles" / f"{role.name}.md"
        try:
            text = renewed(role, path)
        except PageError as error:
            print(f"document.py: {error}", file=sys.stderr)
            status = 1
            continue
        if text == path.read_text():
            continue
        if check:
            print(f"{path.relative_to(ROOT)} is out of date: run tools/document.py")
            status = 1
        else:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
