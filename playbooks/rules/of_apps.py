"""Rules about the app and its workers: settings, versions, and what status.yml knows of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from findings import HIGH, LOW, MEDIUM, Given, Seen, Site, duration, rule

LONG_SECONDS, MANY_RESTARTS = 60, 3
MOST_NAMES = 5
DOWN = ("failed", "inactive", "not found", "restarting")
KIB_PER_MB = 1024


@rule(
    "worker-down",
    HIGH,
    "a worker does not run",
    risk="Its queue has fewer workers than planned, or none.",
    fix="'journalctl -u UNIT' there says why; then run site.yml",
)
def down(site: Site) -> Iterator[Seen]:
    for worker in site.fleet["workers"]:
        if worker["state"] in DOWN:
            name = f"{worker['queue']}@{worker['instance']}"
            yield Seen(worker["host"], f"celery-{name} is {worker['state']}")


@rule(
    "worker-restarts",
    MEDIUM,
    "a worker ended again and again",
    risk="Each end interrupts its tasks; one that ended ten times with a worker is a dead letter.",
    fix="'journalctl -u UNIT' there says why it ended",
)
def restarts(site: Site) -> Iterator[Seen]:
    for worker in site.fleet["workers"]:
        if worker["restarts"] >= MANY_RESTARTS:
            name = f"{worker['queue']}@{worker['instance']}"
            yield Seen(worker["host"], f"celery-{name}: {worker['restarts']} restarts by systemd")


@rule(
    "queue-unserved",
    HIGH,
    "tasks wait where no worker takes them",
    risk="They wait without end.",
    fix="run undrain.yml or site.yml on a host that serves the queue; declare it in celery_queues; "
    "or move its tasks: playbooks/queues.yml",
)
def unserved(site: Site) -> Iterator[Seen]:
    fleet = site.fleet
    running = [one for one in fleet["workers"] if one["state"] not in (*DOWN, "drained")]
    served = {queue for worker in running for queue in worker["queues"]}
    served |= fleet["consumers"].keys()
    lost = {queue: n for queue, n in fleet["waiting"].items() if n and queue not in served}
    if fleet["whole"]:
        for queue, number in sorted({**lost, **fleet["unconsumed"]}.items()):
            yield Seen(fleet["redis_host"], f"queue {queue}: {number} wait")


@rule(
    "queue-paused",
    LOW,
    "tasks wait in a queue that is paused",
    risk="They wait until it is resumed.",
    fix="resume it: playbooks/queues.yml -e queues_action=resume -e queues_from=QUEUE",
)
def paused(site: Site) -> Iterator[Seen]:
    for one in site.fleet["paused"]:
        if number := site.fleet["waiting"].get(one["queue"]):
            since = f", for {duration(site.now - one['at'])}" if one["at"] else ""
            by, why = (one[key] or "not known" for key in ("by", "reason"))
            text = f"queue {one['name']}: {number} wait{since}; paused by {by}, reason: {why}"
            yield Seen(site.fleet["redis_host"], text)


@rule(
    "claims-left",
    MEDIUM,
    "a worker that is gone still holds tasks",
    risk="It sends no heartbeat, so they wait until a worker of its node name starts.",
    fix="start a worker of that node name, such as by 'systemctl start' of its unit",
)
def claims(site: Site) -> Iterator[Seen]:
    for one in site.fleet["held"]:
        if not one["beats"] and not one["listed"] and site.fleet["whole"]:
            yield Seen(
                site.fleet["redis_host"],
                f"{one['node']} holds {one['tasks']} of {one['queue']}, without a heartbeat",
            )


@rule(
    "dead-letters",
    MEDIUM,
    "tasks were put aside",
    risk="They do not run, and their senders have a failure as the result.",
    fix="playbooks/dead.yml shows why, sends them back or deletes them",
)
def dead(site: Site) -> Iterator[Seen]:
    for queue, number in sorted(site.fleet["dead"].items()):
        yield Seen(site.fleet["redis_host"], f"queue {queue}: {number}")


@rule(
    "versions-unsupported",
    HIGH,
    "an app has versions that do not go together",
    risk="A worker may take tasks without a trace, or not start.",
    fix="change the app's requirements to a pair of the table 'Versions' in docs/images.md",
)
def unsupported(site: Site) -> Iterator[Seen]:
    # The rule is the runtime's own, which is on the controller, too.
    from celery_metal_runtime.settings import UsageError
    from celery_metal_runtime.versions import check

    for name, unit in _apps(site):
        found = unit.inner("versions")
        if all(found.text(one) for one in ("celery", "kombu", "redis")):
            try:
                check(found.text)
            except UsageError as problem:
                yield Seen(name, f"{unit.text('unit')}: {str(problem).partition(': ')[0]}")


@rule(
    "versions-differ",
    MEDIUM,
    "workers run different versions of Celery, kombu or redis-py",
    risk="What one sends the other may not understand.",
    fix="run site.yml without --limit, which brings one image to all hosts",
)
def differ(site: Site) -> Iterator[Seen]:
    found: dict[str, list[tuple[str, str]]] = {}
    for name, unit in _apps(site):
        versions = [
            f"{one} {unit.inner('versions').text(one)}"
            for one in ("celery", "kombu", "redis")
            if unit.inner("versions").text(one)
        ]
        if versions:
            found.setdefault(", ".join(versions), []).append((name, unit.text("unit")))
    if len(found) > 1:
        for versions_, where in sorted(found.items()):
            for name in dict.fromkeys(host for host, _ in where):
                units = [unit for host, unit in where if host == name]
                yield Seen(name, f"{_some(units)}: {versions_}")


@rule(
    "image-differs",
    MEDIUM,
    "workers of a queue run different versions of the image",
    risk="A task behaves by the host that it comes to.",
    fix="run site.yml without --limit, or finish the upgrade: playbooks/upgrade.yml",
)
def images(site: Site) -> Iterator[Seen]:
    found: dict[str, dict[str, set[str]]] = {}
    for worker in site.fleet["workers"]:
        if worker["version"]:
            hosts = found.setdefault(worker["queue"], {}).setdefault(worker["version"], set())
            hosts.add(worker["host"])
    for queue, versions in sorted(found.items()):
        if len(versions) > 1:
            for version, hosts in sorted(versions.items()):
                for host in sorted(hosts):
                    yield Seen(host, f"queue {queue}: {version}")


#: Setting of Celery's to what the queue has instead, from its row in the plan; None where it
#: has no word on it.
WANTED: dict[str, Callable[[Given], Any]] = {
    "task_acks_late": lambda queue: queue.truth("acks_late"),
    "task_reject_on_worker_lost": lambda queue: queue.truth("acks_late"),
    "worker_prefetch_multiplier": lambda queue: queue.number("prefetch"),
    "worker_max_memory_per_child": lambda queue: (
        (queue.number("memory_per_process_mb") or 0) * KIB_PER_MB
        if queue.text("pool") == "prefork"
        else None
    ),
    "task_time_limit": lambda queue: queue.number("time_limit_seconds") or None,
}


@rule(
    "setting-differs",
    MEDIUM,
    "a setting of the app overrides the queue's",
    risk="The plan counts on the queue's value: on it depend memory, drains, and whether a task "
    "outlives its worker.",
    fix="remove the setting from the app, or write its value for the queue in celery_queues",
)
def settings(site: Site) -> Iterator[Seen]:
    for node, worker in site.workers():
        queue, own = site.queue_of(node), worker.inner("settings")
        if not queue:
            continue
        for name, wanted in WANTED.items():
            planned = wanted(queue)
            value = own.raw.get(name)
            if planned is None or name not in own.raw or value == planned:
                continue
            shown = own.number(name)
            said = str(value) if value is None or isinstance(value, bool) else shown
            yield Seen(_host(node), f"{node}: {name} is {said}, and the queue has {planned}")


@rule(
    "prefetch-unlimited",
    HIGH,
    "workers take as many tasks as there are",
    risk="One worker holds the whole queue in its memory, while others are idle.",
    fix="remove worker_prefetch_multiplier = 0 from the app; prefetch of the queue has its value",
)
def unlimited(site: Site) -> Iterator[Seen]:
    for node, worker in site.workers():
        own = worker.inner("settings")
        is_off = own.truth("worker_disable_prefetch")
        if own.number("worker_prefetch_multiplier") == 0 and not is_off:
            yield Seen(_host(node), f"{node}: worker_prefetch_multiplier is 0")


@rule(
    "prefetch-long",
    MEDIUM,
    "tasks wait in a worker behind long ones",
    risk="Another worker that is free cannot run them, and an end of the worker delays them.",
    fix="set prefetch: 1 for the queue, and give long tasks a queue of their own",
)
def prefetch(site: Site) -> Iterator[Seen]:
    held = {one["node"]: 0 for one in site.fleet["held"]}
    for one in site.fleet["held"]:
        held[one["node"]] += one["tasks"]
    for node, worker in site.workers():
        many = worker.inner("settings").number("worker_prefetch_multiplier") or 1
        running, longest = worker.number("running") or 0, worker.number("longest") or 0
        waiting = held.get(node, 0) - running
        if many > 1 and running and longest >= LONG_SECONDS and waiting > 0:
            yield Seen(
                _host(node),
                f"{node}: {waiting} wait in it, one has run for {duration(longest)}, "
                f"worker_prefetch_multiplier is {many}",
            )


@rule(
    "result-expires",
    MEDIUM,
    "the app has no end for results",
    risk="They fill Redis, which then takes no tasks.",
    fix="set result_expires of the app to seconds, such as 86400, or task_ignore_result = True",
)
def expires(site: Site) -> Iterator[Seen]:
    for node, worker in site.workers():
        own = worker.inner("settings")
        never = "result_expires" in own.raw and not own.raw["result_expires"]
        in_redis = own.text("result_backend") in ("redis", "rediss", "sentinel", "sentinels")
        if never and in_redis and not own.truth("task_ignore_result"):
            yield Seen(_host(node), f"{node}: result_expires is {own.raw['result_expires']}")


@rule(
    "time-limit",
    LOW,
    "a task may run longer than a drain waits",
    risk="At a stop, a deploy or a drain it is interrupted, and begins anew.",
    fix="raise drain_seconds of the queue above task_time_limit, or lower task_time_limit",
)
def limit(site: Site) -> Iterator[Seen]:
    for node, worker in site.workers():
        longest = worker.inner("settings").number("task_time_limit")
        drain = site.queue_of(node).number("drain_seconds")
        if longest and drain and longest > drain:
            yield Seen(
                _host(node), f"{node}: task_time_limit is {longest} s, drain_seconds {drain} s"
            )


@rule(
    "default-queue",
    MEDIUM,
    "tasks without a route go to a queue that no worker has",
    risk="They wait without end.",
    fix="declare the queue in celery_queues, or set task_default_queue of the app to one that is",
)
def default(site: Site) -> Iterator[Seen]:
    served = {queue for worker in site.fleet["workers"] for queue in worker["queues"]}
    served |= site.fleet["consumers"].keys()
    for node, worker in site.workers():
        name = worker.inner("settings").text("task_default_queue")
        if site.fleet["whole"] and name and name not in served:
            yield Seen(_host(node), f"{node}: task_default_queue is {name}")


@rule(
    "tasks-eager",
    HIGH,
    "the app runs tasks where they are sent",
    risk="They bypass queues and workers: nothing waits, is retried elsewhere, or is drained.",
    fix="remove task_always_eager from the app's settings; it is for tests",
)
def eager(site: Site) -> Iterator[Seen]:
    for node, worker in site.workers():
        if worker.inner("settings").truth("task_always_eager"):
            yield Seen(_host(node), f"{node}: task_always_eager is True")


def _apps(site: Site) -> Iterator[tuple[str, Given]]:
    for name, host in site.known():
        for unit in host.facts.each("units"):
            if re.fullmatch(r"celery-.+@.+\.service", unit.text("unit")):
                yield name, unit


def _host(node: str) -> str:
    return node.rpartition("@")[2]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
