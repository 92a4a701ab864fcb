"""Texts of an inventory: which can be used as they are, and how a message shows them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
LETTERS = "take letters, digits and _, not a digit first"
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# systemd ignores a line with one of these, which Unicode keeps out of text.
NO_CHARACTER = re.compile(
    "[\ufdd0-\ufdef"
    + "".join(chr(n << 16 | 0xFFFE) + chr(n << 16 | 0xFFFF) for n in range(17))
    + "]"
)
# What names a Python object.
NAMES = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
# Longest value that a message quotes in full.
SHOWN_LENGTH = 70
PATH_LENGTH = 300
#: What Ansible takes for true and false on the command line.
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
#: What Ansible makes of the words of a value of -e after the first.
REST = "_raw_params"
# What can stand in a command for a shell as it is, and what JSON in quotes can hold: never a
# template, for Ansible would fill it in.
PLAIN, QUOTED = re.compile(r"[\w.:@/-]{1,60}"), re.compile(r"[\w.:@/ -]{1,60}")


def shown(value: Any) -> str:
    """A value for a message: on one line, not too long, and with nothing that a terminal obeys."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=not value.isprintable())
    else:
        text = ascii(value)
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 3] + "..."


def option(name: str, value: Any) -> str:
    """An option for a command that is pasted into a shell; empty for a value that none can hold.

    >>> option("queues_from", "a"), option("queues_from", "$(x)")
    (' -e queues_from=a', '')
    >>> print(option("queues_from", "a b"))
     -e '{"queues_from": "a b"}'
    """
    if isinstance(value, str) and PLAIN.fullmatch(value):
        return f" -e {name}={value}"
    if isinstance(value, str) and QUOTED.fullmatch(value):
        return f" -e '{json.dumps({name: value}, ensure_ascii=False)}'"
    return ""


def word(text: str) -> str:
    """Text for a message, in quotes only where it would not be seen as it is."""
    return text if text.isprintable() and len(text) <= PATH_LENGTH else shown(text)


def hushed(url: str) -> str:
    """An address for a message, without the password in it."""
    return re.sub(r"//[^@/]*:[^@]*(@|$)", r"//...\1", url) if "@" in url else url


def known(names: Iterable[str]) -> str:
    """Which secrets there are, and what to do about one that is not among them."""
    found = ", ".join(sorted(map(str, names))) or "no secret"
    return f"it has {found}; add it there, or remove it here"


def cut(variables: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong where Ansible has cut a value at a blank: of ``-e a='b c'`` a is b.

    :param variables: those of a host; of the other words Ansible makes one.
    """
    if REST not in variables:
        return None
    said = f"a value of the command line ends before {shown(variables[REST])}"
    return said, "put a value with blanks in quotes of its own: -e \"NAME='two words'\""
