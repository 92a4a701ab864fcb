"""Queues that a run would remove while tasks wait in them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))  # Ansible loads filters by their path
from fleet import queue_names
from reported import shown

# More queues do not fit on a host.
MOST = 10_000
MOST_OF_ERROR = 200
UNCOUNTED = "tasks that could not be counted"
LEFT = (
    "  Fix: stop the producers and let the workers finish (playbooks/status.yml shows what is "
    "left), or declare the queue again.\n"
    "  To leave the tasks in Redis: -e queues_left=true. Nothing was changed."
)
SILENT = (
    "  Fix: run site.yml with the queue declared, which starts Redis; then without it.\n"
    "  To leave the tasks uncounted in Redis: -e queues_left=true. Nothing was changed."
)

if TYPE_CHECKING:
    from celery_metal_types import Backlog, Findings


def dropped(hosts: Mapping[str, Mapping[str, Any]], host: str, celery: Sequence[str]) -> list[str]:
    """Return the queues that the deployed workers of a host consume and no host declares.

    :param hosts: Ansible's hostvars, with what ``celery_host`` returned.
    :param celery: the hosts that are to run workers.
    """
    deployed = hosts[host].get("podman_host_state", {}).get("queues", [])
    if not deployed or not isinstance(deployed, list):
        return []
    declared = {*queue_names(hosts, celery)}
    # As the host reports them: it may be compromised.
    names = [str(one) for one in deployed[:MOST] if isinstance(one, str)]
    return [queue for queue in names if queue not in declared]


def dropped_text(
    hosts: Mapping[str, Mapping[str, Any]],
    host: str,
    played: Iterable[str],
    celery: Sequence[str],
    accepted: bool,
) -> Findings:
    """Return what would stay in the queues that a run removes.

    A queue of several hosts is in the findings of the first one. Without an answer of Redis each
    queue may have tasks.

    :param played: the hosts of the run, each with what ``celery_backlog`` returned as
        ``check_left``.
    :param accepted: whether the user leaves the tasks in Redis.
    """
    removed = {one: dropped(hosts, one, celery) for one in played}
    said: Backlog = hosts[host]["check_left"]
    lines = []
    for queue in removed[host]:
        there = [one for one, queues in removed.items() if queue in queues]
        waiting = said["waiting"].get(queue, 0)
        held = sum(one["tasks"] for one in said["held"] if one["queue"] == queue)
        if there[0] == host and (said["error"] or waiting + held):
            has = UNCOUNTED if said["error"] else f"{waiting} waiting and {held} claimed tasks"
            lines.append(
                f"queue {shown(queue)} of {', '.join(there)}: this run removes its workers, and it "
                f"has {has}"
            )
    if not lines:
        return {"problems": "", "notes": ""}
    if said["error"]:
        lines.append(f"  Redis does not answer: {shown(said['error'], MOST_OF_ERROR)}")
    if accepted:
        return {"problems": "", "notes": "\n".join([*lines, "  They stay in Redis."])}
    return {"problems": "\n".join([*lines, SILENT if said["error"] else LEFT]), "notes": ""}


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"queues_dropped": dropped, "queues_dropped_text": dropped_text}
