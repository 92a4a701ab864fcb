"""What is wrong in a fleet, the worst first, with the remedy of each."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# Ansible loads what imports this by its path.
sys.path.insert(0, str(Path(__file__).parents[1] / "declared"))
from texts import option

if TYPE_CHECKING:
    from celery_metal_types import Fleet, FleetReplication, FleetWorker, Wrong

# Replicas tell of themselves each second; min-replicas-max-lag of what is deployed.
SILENT_SECONDS = 3
# Of the tasks of a queue so many may wait for longer than its objective.
LATE_PERCENT = 5
# Workers that a line names.
MOST_NAMES = 3
# States of a worker that takes tasks, or will without anybody's help.
WORKING = ("active", "starting")
# And of one that should, but cannot.
BROKEN = ("failed", "restarting", "no broker")
SCHEDULES, STANDS_BY = "holds the lock", "stands by"
UNDECLARED = "see 'Undeclared queues' in docs/operating.md"


def wrong(found: Fleet) -> list[Wrong]:
    """Return what is wrong: first what stops tasks for all, last what may hurt one day.

    Args:
        found: all that hosts and Redis have answered. Where these are not all hosts, what others
            may do is not taken for missing.
    """
    kinds = (_redis, _primary, _memory, _hosts, _stuck, _nowhere, _broken, _schedule, _late)
    return [
        one
        for kind in (*kinds, _lost, _dead, _replicas, _others, _moved, _reports)
        for one in kind(found)
    ]


def lines(problems: Sequence[Wrong]) -> list[str]:
    """Return them for a terminal, without the last newline of each."""
    text = []
    for one in problems:
        text.append(f"- {one['what']}")
        if one["fix"]:
            text.append(f"  Fix: {one['fix']}")
    return ["wrong, the worst first:", *text, ""] if text else []


def _redis(found: Fleet) -> Iterator[Wrong]:
    if not found["redis_error"]:
        return
    host, is_own = found["redis_host"], "://" in found["redis_host"]
    yield {
        "what": f"{host if is_own else f'Redis on {host}'} gave no answer: {found['redis_error']}. "
        "Workers wait for it, and keep their tasks",
        "fix": "look at it where it runs"
        if is_own
        else "see 'systemctl status celery-redis' there; if it runs, run site.yml",
    }


def _primary(found: Fleet) -> Iterator[Wrong]:
    replication = found["redis_replication"]
    if replication and replication["missing"]:
        yield {
            "what": "Redis: the primary takes no tasks, and gives none: redis_replicas_required is "
            f"{replication['required']}, and replicas that keep up: {replication['count']}",
            "fix": "see 'systemctl status celery-redis' on the other hosts of the group redis",
        }


def _memory(found: Fleet) -> Iterator[Wrong]:
    memory, replication = found["redis_memory"], found["redis_replication"]
    if memory and memory["alarm"]:
        where = replication["host"] if replication else found["redis_host"]
        yield {
            "what": f"Redis on {where} uses {memory['percent']} % of its memory; producers get an "
            "error when it is full",
            "fix": "run more workers, or see 'When Redis fills up' in docs/operating.md",
        }


def _hosts(found: Fleet) -> Iterator[Wrong]:
    for host, answer in found["hosts"].items():
        if answer["state"] == "ok":
            continue
        if answer["state"] != "unreachable":
            fix = f"run site.yml with --limit {host}, or look there why the module failed"
        elif found["whole"]:
            fix = "see whether it runs; if not, others run its tasks once it was silent for 90 s"
        else:
            fix = "see whether it runs"
        yield {"what": f"{host}, {answer['state']}: {answer['why']}", "fix": fix}


def _is_silent(found: Fleet) -> bool:
    """Return whether workers may run on a host that gave no answer."""
    return any(answer["state"] != "ok" for answer in found["hosts"].values())


def _stuck(found: Fleet) -> Iterator[Wrong]:
    """Queues with rows, none of which takes the tasks that wait."""
    if not found["whole"]:
        return
    paused = {one["queue"] for one in found["paused"]}
    where = " on the hosts that answered" if _is_silent(found) else ""
    for queue, number in sorted(found["waiting"].items()):
        own = [one for one in found["workers"] if queue in one["queues"]]
        if not number or not own or queue in paused:
            continue
        if not any(one["state"] in WORKING for one in own):
            states = some([f"{one['host']} {one['state']}" for one in own])
            yield {
                "what": f"{queue}: {number} {_tasks(number)}, and none of its workers{where} takes "
                f"any: {states}",
                "fix": _cure(found, own),
            }


def _cure(found: Fleet, workers: Sequence[FleetWorker]) -> str:
    states = {one["state"] for one in workers}
    if states & set(BROKEN):
        return _look(found, next(one for one in workers if one["state"] in BROKEN))
    if states & {"drained", "draining"}:
        host = next(one["host"] for one in workers if one["state"] in ("drained", "draining"))
        return f"run undrain.yml with --limit {host}"
    return "start them: run site.yml"


def _look(found: Fleet, worker: FleetWorker) -> str:
    # Of declared queues alone, all of which Redis is asked for.
    queue = next((one for one in worker["queues"] if one in found["waiting"]), None)
    which = option("logs_queue", queue)
    return f"see why: ansible-playbook playbooks/logs.yml{which} --limit {worker['host']}"


def _nowhere(found: Fleet) -> Iterator[Wrong]:
    """Queues without a worker anywhere."""
    shown = {queue for worker in found["workers"] for queue in worker["queues"]}
    waiting = {queue: n for queue, n in found["waiting"].items() if n and queue not in shown}
    alone = {queue: n for queue, n in waiting.items() if queue not in found["consumers"]}
    if alone and found["whole"]:
        which = "no host that answered" if _is_silent(found) else "no host"
        yield {
            "what": f"tasks wait, and {which} runs a worker for them: {counts(alone)}",
            "fix": "run site.yml, or undrain.yml, on a host that serves them",
        }
    if found["unconsumed"]:
        yield {
            "what": f"undeclared queues without a consumer: {counts(found['unconsumed'])}",
            "fix": f"declare them in celery_queues, or move their tasks: {UNDECLARED}",
        }


def _others(found: Fleet) -> Iterator[Wrong]:
    shown = {queue for worker in found["workers"] for queue in worker["queues"]}
    each = [
        f"{queue} {number} by {some(found['consumers'][queue])}"
        for queue, number in sorted(found["waiting"].items())
        if number and queue not in shown and queue in found["consumers"]
    ]
    if each and found["whole"]:
        yield {
            "what": "waiting in undeclared queues, consumed by workers without a row: "
            f"{', '.join(each)}",
            "fix": "declare the queues, or look at who runs these workers",
        }
    if found["is_complete"] is False:
        yield {
            "what": "the search for undeclared queues is not complete: Redis has too many keys",
            "fix": UNDECLARED,
        }


def _broken(found: Fleet) -> Iterator[Wrong]:
    for state in BROKEN:
        own = [one for one in found["workers"] if one["state"] == state]
        if own:
            names = some([f"{one['queue']} {one['instance']} on {one['host']}" for one in own])
            words = "waiting for the broker" if state == "no broker" else state
            yield {"what": f"workers, {words}: {names}", "fix": _look(found, own[0])}


def _schedule(found: Fleet) -> Iterator[Wrong]:
    beats, is_silent = found["beat"], _is_silent(found)
    kept = (SCHEDULES, STANDS_BY) if is_silent else (SCHEDULES,)
    if found["whole"] and beats and not any(one.startswith(kept) for one in beats.values()):
        each = some([f"{host}: {what}" for host, what in beats.items()])
        if is_silent:
            what = "no Beat of the hosts that answered holds the lock"
        else:
            what = "no Beat holds the lock, so nothing is scheduled"
        yield {
            "what": f"schedule: {what} ({each})",
            "fix": "if it is still so after 30 s, see 'journalctl -u celery-beat' there",
        }
    for host, what in beats.items():
        if what.startswith(SCHEDULES) and " cannot be sent (" in what:
            yield {
                "what": f"schedule on {host}: {what}",
                "fix": "see 'journalctl -u celery-beat' there",
            }


def _late(found: Fleet) -> Iterator[Wrong]:
    """Queues whose tasks wait for longer than their objective."""
    paused = {one["queue"] for one in found["paused"]}
    for one in found["queues"]:
        wanted, reasons = one["objective"], []
        if not wanted or one["queue"] in paused:
            continue
        if one["waiting"] and (one["oldest"] or 0) > wanted:
            reasons.append(f"the next task has waited for {one['oldest']} s")
        if (one["late_percent"] or 0) > LATE_PERCENT:
            reasons.append(
                f"{one['late_percent']:g} % of those that began in the last {one['seconds']} s had "
                "waited for longer"
            )
        if reasons:
            missed = f"{one['queue']} misses its objective of {wanted} s"
            yield {
                "what": f"{missed}: {', and '.join(reasons)}",
                "fix": "see 'A queue misses its objective' in docs/operating.md",
            }


def _lost(found: Fleet) -> Iterator[Wrong]:
    for one in found["held"]:
        if not found["whole"] or one["listed"]:
            continue
        yield {
            "what": f"{one['tasks']} of {one['queue']} held by {one['node']}, which has no row",
            "fix": "wait: others run them once it was silent for 90 s"
            if one["beats"]
            else "it sends no heartbeat; a worker of this node name gives them back at its start",
        }


def _dead(found: Fleet) -> Iterator[Wrong]:
    if found["dead"]:
        yield {
            "what": f"put aside: {counts(found['dead'])}",
            "fix": "see why, and send them back or delete them, by playbooks/dead.yml",
        }


def is_followed(found: FleetReplication) -> bool:
    """Return whether a replica has what the primary has."""
    return any(
        one["state"] == "online" and one["lag_seconds"] <= SILENT_SECONDS
        for one in found["replicas"]
    )


def distances(found: FleetReplication) -> str:
    """Return each replica, and how far it is behind."""
    each = []
    for one in found["replicas"]:
        lag = one["lag_seconds"]
        silence = f", silent for {lag} s" if lag > SILENT_SECONDS else ""
        behind = f"{one['behind_bytes']} bytes behind{silence}"
        is_online = one["state"] == "online"
        each.append(f"{one['host']} ({behind if is_online else 'not online: ' + one['state']})")
    return ", ".join(each)


def _replicas(found: Fleet) -> Iterator[Wrong]:
    replication = found["redis_replication"]
    if not replication:
        return
    if not is_followed(replication):
        said = distances(replication)
        yield {
            "what": f"Redis: nobody follows the primary {replication['host']}"
            f"{said and f', not even {said}'}: if it fails, tasks are lost",
            "fix": "see docs/failover.md",
        }
    if replication["absent"]:
        yield {
            "what": f"Redis: {', '.join(replication['absent'])} neither is the primary nor follows "
            "it",
            "fix": "see 'systemctl status celery-redis' there",
        }


def _moved(found: Fleet) -> Iterator[Wrong]:
    for host, name in found["destinations"].items():
        if name != found["destination"]:
            yield {
                "what": f"{host}: deployed for destination {name}, and deploy_destination is "
                f"{found['destination'] or 'not set'}",
                "fix": f"take the inventory of {name}; see docs/destinations.md#move-a-host",
            }


def _reports(found: Fleet) -> Iterator[Wrong]:
    for report in found["redis_reports"]:
        what, _, fix = report.partition("\n  Fix: ")
        yield {"what": what, "fix": fix}


def _tasks(number: int) -> str:
    return "task waits" if number == 1 else "tasks wait"


def some(names: Sequence[str]) -> str:
    """Return the first of these names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def counts(tasks: Mapping[str, int]) -> str:
    """Return the number of tasks of each queue."""
    return ", ".join(f"{queue} {number}" for queue, number in sorted(tasks.items()))
