"""What ``playbooks/doctor.yml`` prints."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from celery_metal_runtime.names import node_name
from findings import SEVERITIES, Finding, Site

#: With the recap below, the summary is a screen.
MOST_ROWS, MOST_SEEN, MOST_NAMES, MOST_UNKNOWN = 16, 5, 3, 6


def table(site: Site, found: Sequence[Finding], accepted: Sequence[str]) -> str:
    """Each finding, and below them a summary."""
    lines: list[str] = []
    for one in found:
        lines += [f"{one.rule.severity.upper()}  {one.rule.name}: {one.rule.title}"]
        lines += [f"  Measured: {seen.where}: {seen.measured}" for seen in one.seen[:MOST_SEEN]]
        if len(one.seen) > MOST_SEEN:
            lines.append(f"  Measured: and {len(one.seen) - MOST_SEEN} more; doctor_format=json")
        lines += [f"  Risk: {one.rule.risk}", f"  Fix: {one.fix}", ""]
    width = max([len(one.rule.name) for one in found], default=0)
    for one in found[:MOST_ROWS]:
        where = _some(one.where)
        lines.append(f"{one.rule.severity:6}  {one.rule.name:{width}}  {where}: {one.rule.title}")
    if len(found) > MOST_ROWS:
        lines.append(f"and {len(found) - MOST_ROWS} more, above")
    return "\n".join([*lines, *unknown(site), headline(site, found, accepted)])


def headline(site: Site, found: Sequence[Finding], accepted: Sequence[str]) -> str:
    """How many findings, of what, and when."""
    counts = Counter(one.rule.severity for one in found)
    each = ", ".join(f"{counts[one]} {one}" for one in SEVERITIES if counts[one])
    words = f"{len(found)} finding{'' if len(found) == 1 else 's'}" if found else "no finding"
    asked = len(site.hosts)
    moment = datetime.datetime.fromtimestamp(site.now, datetime.UTC)
    line = f"{words}{f': {each}' if each else ''}; {asked} host{'' if asked == 1 else 's'}"
    line += f"; {moment:%Y-%m-%d %H:%M:%S} UTC"
    return line + (f"; not looked at: {', '.join(accepted)}" if accepted else "")


def unknown(site: Site) -> list[str]:
    """What could not be looked at, which is no finding."""
    return [f"not known: {one}" for one in [*_unknown(site)][:MOST_UNKNOWN]]


def _unknown(site: Site) -> Iterator[str]:
    answered = {node for node, _ in site.workers()}
    silent = [
        node
        for one in site.fleet["workers"]
        if one["state"] == "active"
        and (node := node_name(one["queue"], one["instance"], one["host"])) not in answered
    ]
    if silent:
        yield f"the settings of {_some(silent)}, which gave no answer in time"
    clocks = [name for name, host in site.known() if host.facts.truth("is_synchronised") is None]
    if clocks:
        yield f"whether the clock of {_some(clocks)} is synchronised"
    if not any(redis.inner("results") for _, redis in site.redises()):
        yield "how many results there are: no Redis was asked, or its user may not search"


def as_json(site: Site, found: Sequence[Finding], accepted: Sequence[str]) -> str:
    """The same for a program."""
    rows: list[dict[str, Any]] = [
        {
            "rule": one.rule.name,
            "severity": one.rule.severity,
            "title": one.rule.title,
            "hosts": one.where,
            "measured": [{"host": seen.where, "what": seen.measured} for seen in one.seen],
            "risk": one.rule.risk,
            "fix": one.fix,
        }
        for one in found
    ]
    return json.dumps(
        {
            "at": int(site.now),
            "hosts": [*site.hosts],
            "findings": rows,
            "accepted": [*accepted],
            "unknown": [*_unknown(site)],
        },
        indent=2,
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
