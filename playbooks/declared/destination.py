"""Destinations: one for a run, the same on all of its hosts, and named where that is demanded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from texts import shown

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}", re.ASCII)
FORM = "write 1 to 31 small letters, digits and -, a letter first"
PAGE = "docs/destinations.md"
STATE = "/var/lib/celery-metal/destination.json"
#: Variables that insist on what a run would refuse.
INSISTING = ("broker_left", "destination_was", "drain_all", "queues_left")
FALSE = ("", "false", "no", "off", "0", "none")
#: Of a host that has reported nothing.
UNKNOWN = "?"
# That a message lists.
MOST_HOSTS = 6


def problem(
    declared: Mapping[str, tuple[Any, Any]],
    given: Mapping[str, Any],
    inventories: Mapping[str, Sequence[Any]],
    wants: str = "",
    *,
    changes: bool = False,
) -> str:
    """Why a run with these variables is refused; empty when it is not.

    :param declared: host to its ``deploy_destination`` and ``deploy_protected``; None for none.
    :param given: the variables of the command line.
    :param inventories: each of several inventories to all values of ``deploy_destination`` in it.
    :param wants: what the name of the destination must confirm; empty for nothing.
    :param changes: whether it changes something.
    """
    found = _declared_problem(declared, given, inventories)
    if not found:
        name, is_protected = next(iter(declared.values()), (None, None))
        found = _given_problem(name, is_protected, given, wants, changes=changes)
    return f"{found[0]}.\n  Fix: {found[1]}. Nothing was changed." if found else ""


def switch(value: Any) -> Any:
    """A value of ``deploy_protected``; an inventory in the form of INI has texts.

    >>> switch("false"), switch(True), switch(["true"])
    (False, True, ['true'])
    """
    return value == "true" if value in ("true", "false") else value


def insisting(variables: Mapping[str, Any]) -> str:
    """The variables of a run that insist on what it would refuse; empty without any.

    >>> insisting({"queues_left": "true", "drain_all": False})
    'queues_left'
    """
    return ", ".join(
        name for name in INSISTING if str(variables.get(name, "")).strip().lower() not in FALSE
    )


def _declared_problem(
    declared: Mapping[str, tuple[Any, Any]],
    given: Mapping[str, Any],
    inventories: Mapping[str, Sequence[Any]],
) -> tuple[str, str] | None:
    for variable in ("deploy_destination", "deploy_protected"):
        if variable in given:
            return (
                f"{variable} is set on the command line",
                f"write it into the inventory of the destination; see {PAGE}",
            )
    for variable in ("destination_changes", "destination_needs", "destination_wants"):
        if variable in given:
            return f"{variable} is set on the command line", "remove it: playbooks set it"
    for host, (name, is_protected) in declared.items():
        if name is not None and not (isinstance(name, str) and NAME.fullmatch(name)):
            return f"{host}: deploy_destination is {shown(name)}", FORM
        if not isinstance(is_protected, bool | None):
            return f"{host}: deploy_protected is {shown(is_protected)}", "write true or false"
        if is_protected and name is None:
            return (
                f"{host}: deploy_protected is true, and deploy_destination is not set",
                "write the name of the destination, such as deploy_destination: production",
            )
    one = "give the inventory of one destination, such as -i inventory/shop/production.yml"
    if problem := _differences("deploy_destination", {h: pair[0] for h, pair in declared.items()}):
        return f"{problem}, and a run has one destination", one
    if problem := _differences("deploy_protected", {h: pair[1] for h, pair in declared.items()}):
        return problem, "write it for all hosts of the destination"
    places = {value: place for place, values in inventories.items() for value in map(shown, values)}
    if len(places) > 1:
        parts = " and ".join(f"{value} in {place}" for value, place in sorted(places.items()))
        return f"deploy_destination is {parts}, and a run has one destination", one
    return None


def _differences(variable: str, values: Mapping[str, Any]) -> str:
    """Which hosts have which value of a variable; empty where all have the same."""
    hosts: dict[str, list[str]] = {}
    for host, value in values.items():
        hosts.setdefault("not set" if value is None else shown(value), []).append(host)
    if len(hosts) < 2:
        return ""
    parts = [f"{value} on {listed(some)}" for value, some in hosts.items()]
    return f"{variable} is {', '.join(parts[:-1])} and {parts[-1]}"


def _given_problem(
    name: Any, is_protected: Any, given: Mapping[str, Any], wants: str, *, changes: bool
) -> tuple[str, str] | None:
    named = given.get("destination")
    if named is not None and named != name:
        here = "not set" if name is None else shown(name)
        return (
            f"destination is {shown(named)}, and deploy_destination of this inventory is {here}",
            "check which inventory -i names" + (f", or write destination={name}" if name else ""),
        )
    if name is None or named is not None or not (wants or (changes and is_protected)):
        return None
    if wants:
        why = f"deploy_destination is {name}, and {wants} needs its name as a confirmation"
    else:
        why = f"deploy_destination is {name}, deploy_protected is true, and this run changes hosts"
    return f"{why}; destination is not set", f"check the inventory, then add -e destination={name}"


def host_problem(hosts: Sequence[str], remembered: Any, name: Any, *, moves: bool) -> str:
    """Why hosts with this destination on record are refused; empty when they are not.

    :param remembered: what the hosts report; an empty text where no run has recorded one.
    :param name: the destination of the run; None for none.
    :param moves: whether the playbook takes ``destination_was``.
    """
    if remembered in ("", name):
        return ""
    here = "is not set" if name is None else f"is {name}"
    if not (isinstance(remembered, str) and NAME.fullmatch(remembered)):
        return (
            f"{listed(hosts)}: {STATE} there has {shown(remembered)}, which is no name of a "
            f"destination; deploy_destination {here}.\n"
            "  Fix: look at who wrote it; delete the file. Nothing was changed."
        )
    way = f"{'' if moves else 'site.yml '}-e destination_was={remembered}"
    return (
        f"{listed(hosts)}: deployed for destination {remembered} ({STATE}), and "
        f"deploy_destination {here}.\n"
        f"  Fix: take the inventory of {remembered}; {way} moves a host, see "
        f"{PAGE}#move-a-host. Nothing was changed."
    )


def listed(hosts: Sequence[str]) -> str:
    """Names of hosts for a message.

    >>> listed(["b", "a"]), listed(list("abcdefgh"))
    ('b, a', 'a, b, c, d, e, f and 2 more')
    """
    more = f" and {len(hosts) - MOST_HOSTS} more" if len(hosts) > MOST_HOSTS else ""
    return ", ".join(hosts[:MOST_HOSTS]) + more
