"""Hosts that were deployed for another destination than that of the run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Rules that are no plugins; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parents[1] / "declared"))
import destination


def moved(
    hosts: Mapping[str, Mapping[str, Any]],
    states: Mapping[str, Mapping[str, Any]],
    moves: bool = False,
) -> str:
    """Why a run is refused for what hosts have on record; empty when it is not.

    :param hosts: Ansible's hostvars.
    :param states: host to what ``celery_host`` or ``celery_destination`` has returned of it; a host
        without an answer, which the run does not change, is passed over.
    :param moves: whether the playbook takes ``destination_was``.
    """
    found: dict[str, list[str]] = {}
    for host, state in states.items():
        if not any(state.get(how) for how in ("unreachable", "failed", "skipped")):
            recorded = str(state.get("destination", destination.UNKNOWN))
            found.setdefault(recorded, []).append(host)
    lines = []
    for recorded, some in found.items():
        variables = hosts[some[0]]
        is_name = destination.NAME.fullmatch(recorded)
        if moves and is_name and recorded == variables.get("destination_was"):
            continue
        name = variables.get("deploy_destination")
        lines.append(destination.host_problem(some, recorded, name, moves=moves))
    return "\n".join(filter(None, lines))


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"destination_moved": moved}
