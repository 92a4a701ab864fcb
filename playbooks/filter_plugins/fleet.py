"""What is wrong, then one table of all workers of all hosts, from what they and Redis answered."""

from __future__ import annotations

import datetime
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

# Beside this file, and in the runtime; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "declared"))
sys.path.insert(0, str(Path(__file__).parents[1] / "output"))
sys.path.insert(0, str(Path(__file__).parents[2] / "app/runtime"))
import fleet_queues
import fleet_wrong
import pauses
import queue_entries
import reported
from celery_metal_runtime.names import node_name

try:
    from ansible.errors import AnsibleFilterError
except ImportError:  # the functions also serve where Ansible is not installed
    AnsibleFilterError = ValueError

if TYPE_CHECKING:
    from celery_metal_types import (
        Backlog,
        Fleet,
        FleetHost,
        FleetMemory,
        FleetRedis,
        FleetReplica,
        FleetReplication,
        FleetWorker,
        HostStatus,
        NoAnswer,
        RedisUse,
        Replication,
        Worker,
    )

COLUMNS = {
    "host": "host",
    "queue": "queue",
    "instance": "inst.",
    "state": "state",
    "concurrency": "conc.",
    "busy": "busy",
    "done": "done",
    "waiting": "waiting",
    "version": "version",
    "since": "since (UTC)",
}
RIGHT = ("concurrency", "busy", "done", "waiting")
FORMATS = ("table", "json")
# What a host may report: it may be compromised, and the terminal is the operator's.
MAX_TEXT, MAX_WHY, MAX_ITEMS, MAX_DEPTH = 256, 1000, 10_000, 6
MAX_NUMBER = 1 << 53
MAX_SINCE = 253402300799  # the last second of the year 9999
WORKER: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("queue", "instance", "state"), (str,)),
    "queues": (list,),
    "restarts": (int,),
    **dict.fromkeys(("concurrency", "busy", "done", "since"), (int, type(None))),
    "version": (str, type(None)),
}
HELD: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("node", "queue"), (str,)),
    "tasks": (int,),
    "beats": (bool,),
}
PAUSE: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("queue", "name", "by", "reason"), (str,)),
    "at": (int, type(None)),
}
MEMORY: dict[str, tuple[type, ...]] = {"used": (int,), "limit": (int,)}
REPLICATION: dict[str, tuple[type, ...]] = {
    "primary": (str,),
    "replicas": (list,),
    "count": (int, type(None)),
}
REPLICA: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("address", "state"), (str,)),
    **dict.fromkeys(("behind_bytes", "lag_seconds"), (int,)),
}
COUNTED: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("bounds_ms", "wait"), (list,)),
    "per_hour": (dict,),
    "seconds": (int,),
}
BACKLOG: dict[str, tuple[type, ...]] = {
    "error": (str,),
    **dict.fromkeys(("waiting", "consumers", "unconsumed", "dead", "memory"), (dict,)),
    **dict.fromkeys(("counted", "oldest"), (dict,)),
    "is_complete": (bool, type(None)),
    **dict.fromkeys(("held", "paused"), (list,)),
    "replication": (dict, type(None)),
}


def fleet(
    hosts: Mapping[str, HostStatus | NoAnswer],
    backlog: Backlog | NoAnswer,
    redis: FleetRedis,
    whole: bool,
    destination: str | None = None,
    objectives: Mapping[str, int] = MappingProxyType({}),
) -> Fleet:
    """All that is known, in one structure.

    :param hosts: host to what the module ``celery_status`` gave, or Ansible's word on why not.
    :param backlog: what the module ``celery_backlog`` gave, or Ansible's word on why not.
    :param redis: what the inventory says of Redis.
    :param whole: whether these are all hosts; else a worker without a row is none that is missing.
    :param destination: ``deploy_destination`` of the inventory; None where it is not set.
    :param objectives: queue to its ``latency_objective_seconds``, where it has one.
    :returns: ``wrong``, what is wrong and its remedy, the worst first; ``hosts``, each with its
        ``state`` ("ok" when it answered) and ``why``; ``workers``, a row each; ``queues``, for how
        long their tasks wait and how they end; ``beat``, host to
        what its Beat says; and what Redis holds.
    """
    hosts = {host: _answer(said) for host, said in hosts.items()}
    workers: list[FleetWorker] = []
    nodes: set[str] = set()
    asked = _known(backlog)
    waiting, paused = asked["waiting"], {one["queue"] for one in asked["paused"]}
    answered = {host: said for host, said in hosts.items() if "workers" in said}
    for host, said in answered.items():
        for worker in sorted(said["workers"], key=_order):
            found = [waiting[queue] for queue in worker["queues"] if queue in waiting]
            row: FleetWorker = {
                "host": host,
                **worker,
                "waiting": sum(found) if found else None,
            }
            if worker["state"] == "active" and paused.issuperset(worker["queues"]):
                row["state"] = "paused"
            workers.append(row)
            nodes.add(node_name(worker["queue"], worker["instance"], host))
    recorded = {host: said.get("destination", "") for host, said in answered.items()}
    known: Fleet = {
        "wrong": [],
        "destination": destination,
        "destinations": {host: name for host, name in recorded.items() if name},
        "whole": whole,
        "hosts": {host: _host(said) for host, said in hosts.items()},
        "workers": workers,
        "queues": fleet_queues.rows(asked, objectives),
        "beat": {host: said["beat"] for host, said in answered.items() if said.get("beat")},
        "redis_host": redis["host"],
        "redis_error": asked["error"],
        "redis_memory": _memory(asked["memory"], redis.get("alarm_percent", 80)),
        "redis_replication": _replication(asked["replication"], redis),
        "redis_reports": [*redis.get("reports", [])],
        "waiting": waiting,
        "consumers": asked["consumers"],
        "unconsumed": asked["unconsumed"],
        "is_complete": asked["is_complete"],
        "held": [{**one, "listed": one["node"] in nodes} for one in asked["held"]],
        "dead": asked["dead"],
        "paused": asked["paused"],
    }
    return {**known, "wrong": fleet_wrong.wrong(known)}


def _known(backlog: Backlog | NoAnswer) -> Backlog:
    """What was answered; without an answer an empty backlog, with Ansible's word as its error."""
    nothing: Backlog = {
        "error": reported.shown(backlog.get("msg", "no answer"), MAX_WHY).strip(),
        "waiting": {},
        "consumers": {},
        "unconsumed": {},
        "is_complete": None,
        "dead": {},
        "held": [],
        "counted": {},
        "oldest": {},
        "paused": [],
        "memory": {},
        "run_id": "",
        "replication": None,
        "holders": None,
        "secrets": {},
    }
    if "waiting" not in backlog:
        return nothing
    raw: Mapping[str, Any] = backlog
    said: Any = {**nothing, **{key: _plain(raw[key]) for key in BACKLOG if key in raw}}
    fits = _is(said, BACKLOG)
    counts = ("waiting", "unconsumed", "dead", "oldest")
    numbers = [number for key in counts for number in said[key].values()] if fits else []
    fits = fits and all(isinstance(one, dict) and _is(one, HELD) for one in said["held"])
    fits = fits and all(isinstance(one, dict) and _is(one, PAUSE) for one in said["paused"])
    fits = fits and (not said["memory"] or _is(said["memory"], MEMORY))
    fits = fits and (not said["replication"] or _is_replication(said["replication"]))
    fits = fits and all(map(_is_counted, said["counted"].values()))
    nodes = said["consumers"].values() if fits else []
    fits = fits and all(
        isinstance(some, list) and all(isinstance(one, str) for one in some) for some in nodes
    )
    if not fits or any(type(one) is not int for one in numbers):
        return {**nothing, "error": "its report is invalid"}
    found: Backlog = said
    return found


def _is_counted(said: Any) -> bool:
    if not (isinstance(said, dict) and _is(said, COUNTED)):
        return False
    bounds, wait = said["bounds_ms"], said["wait"]
    numbers = [*bounds, *wait, *said["per_hour"].values(), said["seconds"]]
    fits = all(type(one) is int and one >= 0 for one in numbers)
    return fits and bounds == sorted(set(bounds)) and len(wait) == len(bounds) + 1


def _is_replication(said: Any) -> bool:
    return (
        isinstance(said, dict)
        and _is(said, REPLICATION)
        and all(isinstance(one, dict) and _is(one, REPLICA) for one in said["replicas"])
    )


def _answer(said: Any) -> Any:
    """What a host said, as far as it is what the module ``celery_status`` returns."""
    if not isinstance(said, Mapping) or "workers" not in said:
        return said if isinstance(said, Mapping) else {}
    found = {key: _plain(said[key]) for key in ("workers", "beat", "destination") if key in said}
    workers = found["workers"]
    if (
        isinstance(workers, list)
        and all(isinstance(found.get(key, ""), str) for key in ("beat", "destination"))
        and all(isinstance(one, dict) and _is(one, WORKER) for one in workers)
        and all(isinstance(one, str) for worker in workers for one in worker["queues"])
        and all(0 <= (worker["since"] or 0) <= MAX_SINCE for worker in workers)
    ):
        return {**found, "workers": [{key: one[key] for key in WORKER} for one in workers]}
    return {
        "failed": True,
        "msg": "its report is invalid: find out what runs there",
    }


def _is(said: Mapping[str, Any], shape: Mapping[str, tuple[type, ...]]) -> bool:
    """Whether these are there, and of one of their types; a bool is no number."""
    return all(key in said and type(said[key]) in types for key, types in shape.items())


def _plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """A copy for a terminal: texts of one line, without control characters; all of it bounded."""
    if isinstance(value, str):
        return reported.shown(value, MAX_TEXT)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return max(-MAX_NUMBER, min(int(value), MAX_NUMBER))
    if isinstance(value, Mapping) and depth:
        some = list(value.items())[:MAX_ITEMS]
        return {reported.shown(key, MAX_TEXT): _plain(one, depth - 1) for key, one in some}
    if isinstance(value, Sequence) and depth and not isinstance(value, bytes):
        return [_plain(one, depth - 1) for one in value[:MAX_ITEMS]]
    return "?"


def _memory(said: RedisUse, alarm_percent: int) -> FleetMemory | None:
    """What Redis uses of its memory; None where nothing is known, or nothing limits it."""
    if not said.get("limit"):
        return None
    used, limit = said["used"], said["limit"]
    alarm = used * 100 > limit * alarm_percent
    return {"used": used, "limit": limit, "percent": used * 100 // limit, "alarm": alarm}


def _replication(said: Replication | None, redis: FleetRedis) -> FleetReplication | None:
    """Who follows the primary, who is in neither, and how many are missing for it to take tasks."""
    if not said:
        return None
    names, required = redis.get("names", {}), redis.get("replicas_required", 0)
    count = said["count"]
    host = _named(said["primary"], names)
    replicas: list[FleetReplica] = [
        {**one, "host": _named(one["address"], names)} for one in said["replicas"]
    ]
    seen = {host, *(one["host"] for one in replicas)}
    # With an address that no host has, another that seems to be absent may be the one behind it.
    absent = (
        [] if seen - set(names.values()) else [one for one in names.values() if one not in seen]
    )
    return {
        "primary": said["primary"],
        "count": count,
        "host": host,
        "replicas": replicas,
        "absent": absent,
        "required": required,
        "missing": 0 if count is None else max(required - count, 0),
    }


def _named(address: str, names: Mapping[str, str]) -> str:
    """The host of the inventory with an address and port; the address where none is known."""
    return names.get(address.rpartition(":")[0].strip("[]"), address)


def _host(said: HostStatus | NoAnswer) -> FleetHost:
    if "workers" in said:
        return {"state": "ok", "why": ""}
    state = "unreachable" if said.get("unreachable") else "no answer"
    why = said.get("error", said.get("msg", ""))
    return {"state": state, "why": reported.shown(str(why).strip(), MAX_WHY)}


def _order(worker: Worker) -> tuple[str, int, str]:
    number = worker["instance"]
    return worker["queue"], int(number) if number.isdigit() else 0, number


def table(found: Fleet) -> str:
    """The fleet as aligned plain text, without a last newline."""
    rows: list[dict[str, str]] = []
    for host, answer in found["hosts"].items():
        own = [_cells(worker) for worker in found["workers"] if worker["host"] == host]
        state = "no workers" if answer["state"] == "ok" else answer["state"]
        rows += own or [{"host": host, "state": state}]
    top = [f"destination {found['destination']}", ""] if found["destination"] else []
    top += fleet_wrong.lines(found["wrong"])
    rows_of_queues = fleet_queues.lines(found["queues"])
    return "\n".join([*top, *_aligned([COLUMNS, *rows]), *rows_of_queues, *_notes(found)])


def _cells(worker: FleetWorker) -> dict[str, str]:
    values: Mapping[str, object] = worker
    cells = {key: "-" if values[key] is None else str(values[key]) for key in COLUMNS}
    if worker["queues"] != [worker["queue"]]:
        cells["queue"] += f" ({', '.join(worker['queues'])})"
    if worker["restarts"]:
        cells["state"] += f", {worker['restarts']} restarts"
    if worker["since"] is not None:
        moment = datetime.datetime.fromtimestamp(worker["since"], datetime.UTC)
        cells["since"] = f"{moment:%Y-%m-%d %H:%M}"
    return cells


def _aligned(rows: Sequence[Mapping[str, str]]) -> list[str]:
    widths = {key: max(len(row.get(key, "")) for row in rows) for key in COLUMNS}
    lines = []
    for row in rows:
        cells = (
            row.get(key, "").rjust(width) if key in RIGHT else row.get(key, "").ljust(width)
            for key, width in widths.items()
        )
        lines.append("  ".join(cells).rstrip())
    return lines


def _notes(found: Fleet) -> list[str]:
    """What no row tells, and is not wrong."""
    replication, held = found["redis_replication"], Counter[str]()
    notes = []
    if replication and fleet_wrong.is_followed(replication):
        followers = fleet_wrong.distances(replication)
        notes.append(f"Redis: the primary is {replication['host']}; followed by {followers}")
    notes += [f"{name} is paused {since}" for name, since in pauses.of_list(found["paused"])]
    notes += [f"schedule on {host}: {what}" for host, what in found["beat"].items()]
    for one in found["held"]:
        held[one["queue"]] += one["tasks"]
    if held:
        notes.append(f"held by workers: {fleet_wrong.counts(held)}")
    return ["", *notes] if notes else []


def queue_names(hosts: Mapping[str, Mapping[str, Any]], celery: Sequence[str]) -> list[str]:
    """The queues in Redis that the celery_queues of these hosts name, each once.

    :param hosts: Ansible's hostvars.
    :param celery: the hosts that are to run workers.
    """
    names = (
        name
        for entry in queue_entries.entries(hosts, celery)
        for name in queue_entries.consumed(entry)
    )
    return list(dict.fromkeys(names))


def fleet_text(
    hosts: Mapping[str, HostStatus | NoAnswer],
    backlog: Backlog | NoAnswer,
    redis: FleetRedis,
    form: str = "table",
    whole: bool = True,
    destination: str | None = None,
    objectives: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """The fleet as a table, or as JSON."""
    if form not in FORMATS:
        raise AnsibleFilterError(f"status_format is {form!r}: write one of {', '.join(FORMATS)}")
    found = fleet(hosts, backlog, redis, whole, destination, objectives)
    return json.dumps(found, indent=2) if form == "json" else table(found)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "fleet_objectives": fleet_queues.objectives,
            "fleet_queue_names": queue_names,
            "fleet_text": fleet_text,
        }
