"""Whether all that a run of site.yml has deployed works at its end, and what to do where not."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Beside this file; Ansible loads filters by their path.
sys.path.insert(0, str(Path(__file__).parent))
import fleet
import reported
from celery_metal_runtime.names import node_name

WRITTEN = "__celery_worker_written"
HOLDS = "holds the lock"
DATABASE = "celery_worker_broker_database"
# What a message has room for.
MOST_QUEUES, MOST_SECONDS = 20, 10**9


class Deployed(NamedTuple):
    """A worker that is to run: its host, its unit, and the queues that it consumes."""

    host: str
    unit: str
    queues: list[str]


class Silence(NamedTuple):
    """How long a worker has been silent, in seconds, if known; queues that it does not consume."""

    seconds: int | None
    missing: list[str]


def _deployed(hosts: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Deployed]:
    """Node name to each worker that this run has brought to its host, or found there."""
    found: dict[str, Deployed] = {}
    for host in names:
        written, plan = hosts[host].get(WRITTEN), hosts[host].get("capacity_plan")
        # Drained, none runs there.
        if not written or written.get("kept_out", True) or not plan:
            continue
        # Redis is asked for one database, that of the first host.
        if str(hosts[host].get(DATABASE, 0)) != str(hosts[names[0]].get(DATABASE, 0)):
            continue
        for queue in plan["queues"]:
            for number in map(str, range(1, queue["instances"] + 1)):
                node = node_name(queue["name"], number, host)
                unit = f"celery-{queue['unit']}@{number}.service"
                found[node] = Deployed(host, unit, queue.get("queues") or [queue["name"]])
    return found


def expected(hosts: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[str]]:
    """Node name of each worker that is to run to the queues that it consumes.

    :param hosts: Ansible's hostvars.
    :param names: the hosts of the run.
    """
    return {node: one.queues for node, one in _deployed(hosts, names).items()}


def beat_is_lost(
    hosts: Mapping[str, Mapping[str, Any]], names: Sequence[str], celery: Sequence[str]
) -> bool:
    """Whether this run has seen every Beat, and none of them held the schedule's lock.

    One that was started by this run has shown that it can send.

    :param names: the hosts of the run.
    :param celery: all hosts that may run Beat.
    """
    seen = [_beat(hosts[host]) for host in names if _runs_beat(hosts[host])]
    return bool(seen) and set(celery) <= set(names) and all(seen) and not any(map(_holds, seen))


def _runs_beat(host: Mapping[str, Any]) -> bool:
    return bool((host.get("capacity_plan") or {}).get("beat"))


def _beat(host: Mapping[str, Any]) -> str:
    return str((host.get(WRITTEN) or {}).get("beat", ""))


def _holds(said: str) -> bool:
    return said.removeprefix("schedule: ").startswith(HOLDS)


def problems(
    hosts: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    celery: Sequence[str],
    lives: Mapping[str, Any],
    redis: str,
) -> str:
    """What does not work, a text of what, why and remedy for each; empty where all does.

    :param lives: what ``celery_lives`` returned.
    :param redis: the hosts of Redis, or the URL of one of the user's own.
    """
    found = [*_of_workers(hosts, names, lives, redis)]
    retired = [host for host in names if (hosts[host].get(WRITTEN) or {}).get("kept")]
    if found and retired:
        found.append(
            f"{', '.join(retired)}: what is no longer declared was not removed, for not all that "
            "is declared works\n  Fix: correct the above, then run site.yml again."
        )
    return "\n".join([*found, *_of_beat(hosts, names, celery)])


def workers_work(
    hosts: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    lives: Mapping[str, Any],
    redis: str,
) -> bool:
    """Whether all workers that are declared work, so that others may be removed.

    :param lives: as for ``problems``, as ``redis``.
    """
    return not any(_of_workers(hosts, names, lives, redis))


def _of_workers(
    hosts: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    lives: Mapping[str, Any],
    redis: str,
) -> Iterator[str]:
    # A module that failed has a message, and nothing that it returns.
    error = str(lives["error"] if "silent" in lives else lives.get("msg", "no answer"))
    if error:
        fix = "look at 'systemctl status celery-redis' there"
        if "://" in redis:
            fix = "look at it there, and at the rights of its user (docs/external.md)"
        elif "," not in redis:
            fix += "; 'systemctl restart celery-redis' replaces one that hangs"
        yield (
            f"{redis}: Redis does not say which workers live: "
            f"{reported.shown(error, fleet.MAX_WHY)}\n"
            "  Workers wait for one that does not answer, and no task is lost.\n"
            f"  Fix: {fix}."
        )
    silent = _silent(lives)
    deployed = _deployed(hosts, names)
    away = {node: one for node, one in deployed.items() if node in silent}
    if deployed and set(away) == set(deployed) and not any(map(_was_seen, silent.values())):
        yield (
            f"{', '.join(sorted({one.host for one in away.values()}))}: no worker has left a sign "
            f"of life in the Redis of {redis}\n"
            "  Their connections go elsewhere, or the app sets global_keyprefix.\n"
            "  Fix: look at CELERY_METAL_BROKER in their units; write a global_keyprefix of the "
            "app into redis_key_prefixes."
        )
        away = {}
    for node, one in away.items():
        yield _of_worker(one, silent[node])


def _of_beat(
    hosts: Mapping[str, Mapping[str, Any]], names: Sequence[str], celery: Sequence[str]
) -> Iterator[str]:
    if beat_is_lost(hosts, names, celery):
        beats = [host for host in names if _runs_beat(hosts[host])]
        again = {host: _again(hosts[host]) for host in beats}
        if not any(map(_holds, again.values())):
            said = "; ".join(f"{host}: {reported.shown(text)}" for host, text in again.items())
            yield (
                f"{', '.join(beats)}: no Beat holds the lock of the schedule, so nothing is sent\n"
                f"  {said}\n"
                "  Fix: end a Beat that runs elsewhere with the same Redis. If there is none, "
                "remove the key celery-metal.beat.lock as the user admin (docs/access.md)."
            )


def _silent(lives: Mapping[str, Any]) -> dict[str, Silence]:
    """The workers without a sign of life; what the host of Redis reports, as far as it can be."""
    found = lives.get("silent")
    return {
        node: Silence(
            min(one["seconds"], MOST_SECONDS) if type(one.get("seconds")) is int else None,
            [str(name) for name in one["missing"][:MOST_QUEUES]]
            if isinstance(one.get("missing"), list)
            else [],
        )
        for node, one in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(one, Mapping)
    }


def _was_seen(one: Silence) -> bool:
    return one.seconds is not None or bool(one.missing)


def _of_worker(one: Deployed, silence: Silence) -> str:
    if silence.missing:
        what = f"does not consume {', '.join(reported.shown(name) for name in silence.missing)}"
    elif silence.seconds is None:
        what = "has left no sign of life in Redis"
    else:
        what = f"has left no sign of life in Redis for {silence.seconds} s"
    return (
        f"{one.host}: {one.unit} {what}\n"
        f"  Fix: see 'journalctl -u {one.unit}' there, and the network between it and Redis; "
        f"'systemctl restart {one.unit}' replaces a worker that hangs."
    )


def _again(host: Mapping[str, Any]) -> str:
    return str((host.get("site_beat") or {}).get("beat", "")) or _beat(host)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "up_beat_is_lost": beat_is_lost,
            "up_expected": expected,
            "up_problems": problems,
            "up_workers_work": workers_work,
        }
