"""Files of a host, made of templates.

Ansible's own lookup copies all variables of the host for each template, which costs each run more
of the controller's CPU time than all templates together.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def sha1(text: str) -> str:
    """Return the hexadecimal digest of a text.

    >>> sha1("abc")
    'a9993e364706816aba3e25717850c26c9cd0d89d'
    """
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@functools.cache
def _environment(templates: str) -> Environment:
    found = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["sha1"] = sha1
    return found


def rendered(context: Mapping[str, Any], templates: str, paths: Iterable[str]) -> dict[str, str]:
    """Return what some files of a host hold, by path.

    :param context: what the templates use, by name.
    :param templates: a role's directory of templates, which mirrors the host's paths.
    :param paths: absolute paths of the host.
    :raises jinja2.TemplateNotFound: when there is no template for a path.
    :raises jinja2.UndefinedError: when the context lacks what a template uses.
    """
    names = dict(context)
    environment = _environment(str(templates))
    return {str(path): environment.get_template(f"{path[1:]}.j2").render(names) for path in paths}


def differing(
    found: Mapping[str, str], files: Mapping[str, str], links: Mapping[str, str]
) -> list[str]:
    """Return the paths at which a host has something else than it should have, sorted.

    >>> differing({"/a": sha1("x"), "/b": "-> /a", "/c": sha1("")}, {"/a": "x"}, {"/b": "/a"})
    ['/c']

    :param found: path to the SHA-1 of a file, or to ``-> target`` of a link.
    :param files: path to content.
    :param links: path to target.
    """
    wanted = {path: sha1(text) for path, text in files.items()}
    wanted |= {path: f"-> {target}" for path, target in links.items()}
    return sorted(one for one in {**found, **wanted} if found.get(one) != wanted.get(one))


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"podman_host_differing": differing, "podman_host_rendered": rendered}
