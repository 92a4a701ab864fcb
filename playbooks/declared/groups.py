"""The groups of an inventory: which of them a playbook needs, and what is missing."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence

from texts import shown

#: What a playbook needs: all that a deployment needs; a host of each group; a host of any group.
DEPLOY, USE, ANY = "deploy", "use", "any"
GROUPS = ("celery", "redis", "celery_producers")
# Of a name that may be meant as a group's, and how many hosts of a group a message lists.
CLOSE, MOST_HOSTS = 0.7, 6


def problem(
    groups: Mapping[str, Sequence[str]], needs: str = USE, *, is_external: bool = False
) -> str:
    """Why a playbook cannot run with these groups; empty when it can.

    :param groups: the inventory's, whatever ``--limit`` is.
    :param is_external: whether ``redis_mode`` is external, so that the group redis has no host.

    >>> problem({"celery": ["a"], "redis": ["a"]})
    ''
    >>> print(problem({"Celery": ["a"]}, ANY))
    The inventory needs a host in the group celery, redis or celery_producers, and has none.
      It has the group "Celery": did you mean celery?
      Fix: write the hosts into these groups. Nothing was changed.
    """
    celery, redis = (list(groups.get(name) or ()) for name in GROUPS[:2])
    if needs == ANY:
        if any(groups.get(name) for name in GROUPS):
            return ""
        what = f"a host in the group {', '.join(GROUPS[:2])} or {GROUPS[2]}, and has none."
        return _text(what, _meant(groups, GROUPS), "write the hosts into these groups.")
    is_short = not redis and not is_external
    is_tied = needs == DEPLOY and len(redis) == 2 and not is_external
    if celery and not is_short and not is_tied:
        return ""
    names = ", ".join(redis[:MOST_HOSTS]) + (", ..." if len(redis) > MOST_HOSTS else "")
    what = (
        f"at least one host in the group celery (it has {len(celery)}) and exactly one in the "
        f"group redis (it has {len(redis)}{': ' if redis else ''}{names}), or three and more, of "
        "which one is elected."
    )
    missing = [name for name, lacks in (("celery", not celery), ("redis", is_short)) if lacks]
    remedies = ["write hosts into the group celery"] if not celery else []
    if is_short:
        remedies.append("write one into the group redis, or redis_mode: external for one of yours")
    if is_tied:
        remedies.append("take one host out of the group redis, or add one")
    fix = f"{'; '.join(remedies)}. A host may be in both."
    return _text(what, _meant(groups, missing), fix)


def _meant(groups: Mapping[str, Sequence[str]], missing: Sequence[str]) -> Iterator[str]:
    """Groups of the inventory whose names may be slips for those that are missing."""
    others = {name.lower(): name for name in groups if name not in (*GROUPS, "all", "ungrouped")}
    for name in missing:
        for near in difflib.get_close_matches(name, others, 1, CLOSE):
            yield f"It has the group {shown(others[near])}: did you mean {name}?"


def _text(what: str, meant: Iterator[str], fix: str) -> str:
    lines = [f"The inventory needs {what}", *(f"  {one}" for one in meant)]
    return "\n".join([*lines, f"  Fix: {fix} Nothing was changed."])
