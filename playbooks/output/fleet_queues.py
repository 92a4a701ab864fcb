"""What each queue's tasks waited for and ended by, against its objective, for ``status.yml``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Ansible loads what imports this by its path.
sys.path.insert(0, str(Path(__file__).parents[1] / "declared"))
import queue_entries

if TYPE_CHECKING:
    from celery_metal_types import Backlog, Counted, FleetQueue

# Shares of the tasks that a row names.
HALF, MOST = 0.5, 0.95
COLUMNS = {
    "queue": "queue",
    "waiting": "waiting",
    "oldest": "oldest",
    "half": "50 %",
    "most": "95 %",
    "objective": "objective",
    "succeeded": "done/min",
    "failed": "failed/min",
    "retried": "retried/min",
}
TITLE = "per queue, in seconds and tasks a minute, of the last {}:"


def objectives(hosts: Mapping[str, Mapping[str, Any]], celery: Sequence[str]) -> dict[str, int]:
    """Queue to ``latency_objective_seconds``, of those that have one; the shortest of all hosts.

    :param hosts: Ansible's hostvars.
    :param celery: the hosts that are to run workers.
    """
    found: dict[str, int] = {}
    for entry in queue_entries.entries(hosts, celery):
        wanted = entry.get("latency_objective_seconds", 0)
        # Ansible has integers of its own.
        if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted > 0:
            for name in queue_entries.consumed(entry):
                found[name] = min(int(wanted), found.get(name, int(wanted)))
    return found


def rows(backlog: Backlog, wanted: Mapping[str, int]) -> list[FleetQueue]:
    """A row for each queue that is declared or has a worker.

    :param backlog: validated.
    :param wanted: as of ``objectives``.
    """
    return [_row(name, backlog, wanted.get(name, 0)) for name in backlog["waiting"]]


def _row(name: str, backlog: Backlog, objective: int) -> FleetQueue:
    nothing: Counted = {"bounds_ms": [], "wait": [0], "per_hour": {}, "seconds": 0}
    one = backlog["counted"].get(name, nothing)
    started = sum(one["wait"])
    late = above(one, objective) if objective and started else None
    return {
        "queue": name,
        "objective": objective,
        "waiting": backlog["waiting"][name],
        "oldest": backlog["oldest"].get(name),
        "seconds": one["seconds"],
        "started": started,
        "half": quantile(one, HALF),
        "most": quantile(one, MOST),
        "late_percent": None if late is None else round(100 * late, 1),
        "per_hour": one["per_hour"],
    }


def quantile(one: Counted, share: float) -> float | None:
    """Seconds that this share of the tasks had waited at most; None where none has begun.

    Within a bucket durations count as evenly spread, as by Prometheus's ``histogram_quantile``; of
    the last bucket, which has no end, its beginning is returned.

    >>> quantile({"bounds_ms": [1000, 2000], "wait": [0, 4, 0], "per_hour": {}, "seconds": 9}, 0.5)
    1.5
    """
    wanted, before = share * sum(one["wait"]), 0.0
    if not wanted:
        return None
    edges = [0, *one["bounds_ms"]]
    for index, number in enumerate(one["wait"]):
        if before + number >= wanted and index < len(one["bounds_ms"]):
            part = (wanted - before) / number
            return round((edges[index] + part * (edges[index + 1] - edges[index])) / 1000, 2)
        before += number
    return edges[-1] / 1000


def above(one: Counted, seconds: float) -> float:
    """Which share of the tasks that have begun had waited for longer, at least.

    Of a bucket in which some may have waited for less, none counts.

    >>> above({"bounds_ms": [1000, 2000], "wait": [3, 4, 1], "per_hour": {}, "seconds": 9}, 1.5)
    0.125
    """
    lows = [0, *one["bounds_ms"]]
    late = sum(
        number for low, number in zip(lows, one["wait"], strict=True) if low >= 1000 * seconds
    )
    return late / (sum(one["wait"]) or 1)


def lines(found: Sequence[FleetQueue]) -> list[str]:
    """A table for a terminal, of queues of which anything is known; empty without any."""
    shown = [one for one in found if one["seconds"] or one["oldest"] is not None]
    if not shown:
        return []
    seconds = max(one["seconds"] for one in shown)
    cells = [COLUMNS, *map(_cells, shown)]
    widths = {key: max(len(row[key]) for row in cells) for key in COLUMNS}
    table = [
        "  ".join(
            row[key].ljust(width) if key == "queue" else row[key].rjust(width)
            for key, width in widths.items()
        ).rstrip()
        for row in cells
    ]
    return ["", TITLE.format(f"{seconds} s"), *table]


def _cells(one: FleetQueue) -> dict[str, str]:
    values: dict[str, Any] = {**one, "objective": one["objective"] or None}
    for outcome in ("succeeded", "failed", "retried"):
        number = one["per_hour"].get(outcome, 0)
        values[outcome] = round(number / 60, 1) if one["seconds"] else None
    return {key: _text(values[key]) for key in COLUMNS}


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)
