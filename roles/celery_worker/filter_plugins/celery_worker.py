"""The unit files of all queues of a host, rendered in one pass."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from celery_metal_types import Egress, Plan, PlannedBeat, PlannedQueue, Units

# A task that the drain interrupts has 3 s for its `finally`; the rest is to give it back to Redis.
INTERRUPT_SECONDS = 10
# Podman's own time to end a container that was killed.
PODMAN_SECONDS = 15
# For a task that Beat is sending when it is told to stop, with a Redis that is slow.
SEND_SECONDS = 10
# Conmon, Podman while it starts the container, and the main process with its threads.
OWN_TASKS = 256
# Processes and threads of a process that runs tasks: a browser, or a library that starts a few
# threads for each CPU of the host.
PROCESS_TASKS = 128
CPU_TASKS = 4
# Celery's default for Redis.
LEAST_VISIBILITY_SECONDS = 3600

# What is gone with the container, and so is the memory that it takes.
TMPFS = ("/tmp", "/var/tmp")

QUADLETS = "/etc/containers/systemd/celery-metal"
UNITS = "/etc/systemd/system"

# The workers' own network in Podman, and its bridge.
NETWORK, BRIDGE = "celery-metal", "celery0"
EGRESS = (
    # As "podman network create --disable-dns --opt isolate=strict" writes it, without a run of
    # Podman. Strict isolation keeps containers of other networks apart.
    f"/etc/containers/networks/{NETWORK}.json",
    "/etc/celery-metal/egress.nft",
    f"{UNITS}/celery-egress.service",
    f"{UNITS}/nftables.service.d/celery-egress.conf",
)
# What brings Podman's rules back, for every network of Podman's.
RELOADER = "celery-network.service"
RELOADS = (f"{UNITS}/{RELOADER}", f"{UNITS}/nftables.service.d/celery-network.conf")
WITHOUT_RULES = ("host", "none")

# Where Python finds the runtime and the app, as the images of the role "image" have it.
PYTHONPATH = "/opt/celery-metal:/app:/app/src"

# What opens Redis, to its name in the container, where the runtime looks for it.
BROKER_TARGETS = {
    "celery-redis-worker": "celery-redis-password",
    "celery-redis-ca": "celery-redis-ca",
    "celery-redis-certificate-worker": "celery-redis-certificate",
}


def specifier(text: str) -> str:
    """Text for a unit file where systemd expands ``%`` specifiers but reads no quotes."""
    return text.replace("%", "%%")


def quoted(text: str) -> str:
    """One word for a list such as ``Environment=``, through Quadlet and systemd's ``ExecStart=``.

    Both strip one level of quotes; systemd expands ``%`` and ``$`` besides.

    >>> quoted('A=50% of "$HOME"')
    '"A=50%% of \\\\"$$HOME\\\\""'
    """
    for char, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        text = text.replace(char, escaped)
    return f'"{text}"'


def unit_keys(keys: dict[str, Any]) -> str:
    """The lines of a user's own keys, as written: a ``%`` in them is systemd's, as in any unit.

    >>> unit_keys({"Sysctl": ["a=1", "b=2"], "ReadOnlyTmpfs": False})
    'Sysctl=a=1\\nSysctl=b=2\\nReadOnlyTmpfs=false\\n'
    """
    lines = [
        f"{key}={str(one).lower() if isinstance(one, bool) else one}\n"
        for key, value in keys.items()
        for one in (value if isinstance(value, list) else [value])
    ]
    return "".join(lines)


def needed(plan: Plan) -> dict[str, str]:
    """Paths that must be on the host before a worker or Beat starts, to who needs them.

    >>> queue = {"name": "a", "volumes": ["/x:/y:ro"], "devices": ["/dev/z"]}
    >>> needed({"queues": [queue], "beat": {"volumes": ["/x:/y"]}})
    {'/x': 'volumes of queue a, celery_beat_volumes', '/dev/z': 'devices of queue a'}
    """
    wanted = [
        (f"{key} of queue {queue['name']}", paths)
        for queue in plan["queues"]
        for key, paths in (("volumes", queue["volumes"]), ("devices", queue["devices"]))
    ]
    if beat := plan["beat"]:
        wanted.append(("celery_beat_volumes", beat["volumes"]))
    found: dict[str, list[str]] = {}
    for who, paths in wanted:
        for one in paths:
            found.setdefault(one.partition(":")[0], []).append(who)
    return {path: ", ".join(dict.fromkeys(who)) for path, who in found.items()}


def drain_chain(drain_seconds: int) -> dict[str, int]:
    """What follows from a queue's ``drain_seconds``, in seconds, each above the one before.

    drain_seconds (the runtime interrupts and gives back what still runs) < StopTimeout (Podman
    kills) < TimeoutStopSec (systemd kills Podman).

    >>> drain_chain(60)
    {'stop_timeout': 70, 'timeout_stop_seconds': 85}
    """
    stop = drain_seconds + INTERRUPT_SECONDS
    return {"stop_timeout": stop, "timeout_stop_seconds": stop + PODMAN_SECONDS}


def tmpfs_of(queue: PlannedQueue) -> list[str]:
    """The directories of a worker that get a tmpfs of the plan's size.

    Podman's own have none, but half of the host's memory. Not where the queue has a volume, or has
    switched Podman's off.

    >>> tmpfs_of({"volumes": ["/srv/tmp:/tmp:idmap"], "quadlet": {}})
    ['/var/tmp']
    """
    keys = queue["quadlet"].get("Container", {})
    if str(keys.get("ReadOnlyTmpfs", True)).strip().lower() in ("false", "no", "off", "0"):
        return []
    volumes = {one.split(":")[1].rstrip("/") for one in queue["volumes"]}
    return [path for path in TMPFS if path not in volumes]


def tasks_limit(processes: int, threads: int, vcpus: int) -> dict[str, Any]:
    """``TasksMax`` of a unit, above what apps need and below what harms the host, and its reason.

    >>> tasks_limit(2, 0, 4)["most"], tasks_limit(2, 0, 64)["most"], tasks_limit(1, 50, 4)["most"]
    (512, 768, 434)
    """
    each = max(PROCESS_TASKS, CPU_TASKS * vcpus)
    return {
        "most": OWN_TASKS + processes * each + threads,
        "reason": f"{OWN_TASKS} + {processes} x {each} processes and threads"
        + (f" + {threads} of the pool" if threads else ""),
    }


def visibility_seconds(drains: list[int]) -> int:
    """Celery's visibility timeout for all workers of a Redis, from how long tasks may take.

    ``drains`` are the ``drain_seconds`` and ``time_limit_seconds`` of all queues. These workers do
    not rely on it, but look after it for others on the same Redis, whose tasks run a second time
    when they take longer; so it is above the longest of any queue.

    >>> visibility_seconds([60, 7200])
    14400
    """
    return max(LEAST_VISIBILITY_SECONDS, 2 * max(drains, default=0))


def of_the_app(share: PlannedQueue | PlannedBeat, context: dict[str, Any]) -> dict[str, Any]:
    """What a queue's workers, or Beat, have of the app's environment and secrets.

    :param share: its part of the plan; its own variables go before those of all.
    :param context: the ``environment``, ``secrets``, ``secrets_exported`` and ``result_backend``
        of all queues; a secret that the last names is one of each queue, and of Beat.
    """
    secrets, exported = context["secrets"], context["secrets_exported"]
    names = secrets if share["secrets"] == "all" else share["secrets"]
    kind, _, named = context["result_backend"].partition(":")
    of_results = [named] if kind == "secret" else []
    return {
        "environment": with_pythonpath({**context["environment"], **share["environment"]}),
        "secrets": {name: secrets[name] for name in sorted({*names, *of_results})},
        "secrets_exported": [name for name in sorted(names) if name in exported],
    }


def with_pythonpath(environment: Mapping[str, str]) -> dict[str, str]:
    """The app's environment, in which its ``PYTHONPATH`` does not hide the runtime and the app.

    A unit's variable replaces that of the image, and no worker starts without the runtime.

    >>> with_pythonpath({"PYTHONPATH": "/app/lib", "TZ": "UTC"})
    {'PYTHONPATH': '/opt/celery-metal:/app:/app/src:/app/lib', 'TZ': 'UTC'}
    """
    if "PYTHONPATH" not in environment:
        return dict(environment)
    own = environment["PYTHONPATH"]
    return {**environment, "PYTHONPATH": f"{PYTHONPATH}:{own}" if own else PYTHONPATH}


def endpoints(url: str) -> tuple[list[str], list[int]]:
    """The addresses and the ports in a broker's URL; a name in it is no address.

    >>> endpoints("sentinels://worker@10.0.0.7:26379,[fd00::1]:26379,redis1/0?master_name=celery")
    (['10.0.0.7', 'fd00::1'], [6379, 26379])
    >>> endpoints("redis+socket://worker@/run/redis/redis.sock?virtual_host=0")
    ([], [])
    """
    scheme, _, rest = url.partition("://")
    if scheme == "redis+socket":
        return [], []
    hosts, ports = [], {6379}
    for one in re.split("[/?]", rest)[0].rpartition("@")[2].split(","):
        found = re.fullmatch(r"\[?(.*?)\]?(?::([0-9]+))?", one)
        with suppress(ValueError):
            hosts.append(str(ipaddress.ip_address(found[1] if found else "")))
        if found and found[2]:
            ports.add(int(found[2]))
    return hosts, sorted(ports)


def egress_rules(egress: list[str], subnet: str, broker_url: str, broker_port: int) -> Egress:
    """What the templates of the workers' network need to know.

    :param egress: addresses and networks that workers may connect to, and ``any`` for all but
        their host and its containers.
    :param subnet: the network that workers have their addresses from.
    :param broker_url: where Redis, or its Sentinels, are; they may be on this host.
    :param broker_port: that of a Redis that Sentinels name.
    """
    hosts, ports = endpoints(broker_url)
    listed = [one for one in egress if one != "any"]
    found: Egress = {
        "mark": "",
        "network": NETWORK,
        # Podman's own are random.
        "id": hashlib.sha256(NETWORK.encode()).hexdigest(),
        "gateway": str(ipaddress.ip_network(subnet)[1]),
        "bridge": BRIDGE,
        "subnet": subnet,
        "any": "any" in egress,
        "listed": _by_version(listed),
        "brokers": _by_version(hosts),
        "ports": sorted({*ports, broker_port}) if hosts else [],
    }
    text = json.dumps(found, sort_keys=True).encode()
    return {**found, "mark": hashlib.sha1(text, usedforsecurity=False).hexdigest()}


def egress_lacks(plan: Plan, network: str, loaded: str | None, written: str) -> bool:
    """Whether the kernel of a host has other rules than its file, as after ``nft flush ruleset``.

    :param network: the variable ``celery_worker_network``.
    :param loaded: mark of the kernel's rules; None where the host had no file of them.
    :param written: mark of the file. One that this run writes is loaded in any case.
    """
    is_used = network == "bridge" and (plan["queues"] or plan["beat"])
    return bool(is_used and loaded is not None and loaded != written)


def running(units: Units) -> list[str]:
    """What is to run besides workers and their targets.

    >>> running({"files": {"/etc/systemd/system/celery-network.service": ""}})
    ['celery.target', 'celery-network.service']
    """
    return ["celery.target", *([RELOADER] if RELOADS[0] in units["files"] else [])]


def reloads(
    written: Mapping[str, Sequence[str]], state: Mapping[str, Any], egress_is_lost: bool
) -> list[str]:
    """The services that load rules again: those that changed, or that the kernel has lost.

    :param written: what ``celery_units`` returned; workers that are cut off may lack Podman's
        rules.
    :param state: what ``celery_host`` returned.
    :param egress_is_lost: of ``egress_lacks``.
    """
    changed = [*written["new"], *written["written"]]
    found = ["celery-egress.service"] if EGRESS[1] in changed or egress_is_lost else []
    is_lost = state["podman_rules"] is False or written["waiting"]
    # Where it does not run yet it is started, and where no worker needs it any more it goes.
    is_there = RELOADER not in written["start"] and RELOADS[0] not in written["gone"]
    if is_lost and is_there and state["podman_rules"] is not None:
        found.append(RELOADER)
    return found


def _by_version(networks: list[str]) -> dict[int, list[str]]:
    found = sorted({ipaddress.ip_network(one) for one in networks}, key=str)
    return {
        version: [
            one.compressed.removesuffix(f"/{one.max_prefixlen}")
            for one in found
            if one.version == version
        ]
        for version in (4, 6)
    }


def lacks(kept: dict[str, dict[str, str]], wanted: dict[str, str]) -> list[str]:
    """The secrets that a host does not have, or of another version.

    >>> lacks({"a": {"version": "1"}, "b": {"version": "1"}}, {"a": "1", "b": "2", "c": "1"})
    ['b', 'c']

    :param kept: secret to its labels.
    :param wanted: secret to its version.
    """
    return [name for name, mark in wanted.items() if kept.get(name, {}).get("version") != mark]


def worker_units(plan: Plan, templates: str, **context: Any) -> Units:
    """Unit files and links of all queues in a host's plan, and of Beat where it is in the plan.

    :param plan: what ``roles/capacity`` returned for the host.
    :param templates: the role's template directory, which mirrors the host's paths.
    :param context: what all queues share: image, app, broker_url, environment, broker_secrets and
        secrets (name to its mark), secrets_exported and broker_variables (names), ...
    :returns: ``files`` (path to content), ``links`` (path to target) and ``needed`` (path to who
        needs it), options of the module ``celery_units``.
    :raises jinja2.UndefinedError, KeyError: when the context lacks something.
    """
    jinja = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters.update(quoted=quoted, specifier=specifier, unit_keys=unit_keys)
    jinja.globals.update(broker_targets=BROKER_TARGETS)
    container = jinja.get_template(f"{QUADLETS[1:]}/celery-@.container.j2")
    target = jinja.get_template(f"{UNITS[1:]}/celery-.target.j2")
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    vcpus = plan["host"]["vcpus"]
    context["egress"] = egress_rules(
        context["egress"], context.pop("subnet"), context["broker_url"], context.pop("broker_port")
    )
    for queue in plan["queues"]:
        unit = f"celery-{queue['unit']}"
        files[f"{QUADLETS}/{unit}@.container"] = container.render(
            **{**context, **of_the_app(queue, context)},
            **drain_chain(queue["drain_seconds"]),
            host=plan["host"]["name"],
            queue=queue,
            share=queue,
            tmpfs=tmpfs_of(queue),
            tasks=tasks_limit(
                queue["processes"], queue["concurrency"] if queue["pool"] == "threads" else 0, vcpus
            ),
            command="worker",
            unit=f"{unit}@",
            container=f"{unit}-%i",
            target=f"{unit}.target",
        )
        files[f"{UNITS}/{unit}.target"] = target.render(queue=queue)
        links[f"{UNITS}/celery.target.wants/{unit}.target"] = f"{UNITS}/{unit}.target"
        for number in range(1, queue["instances"] + 1):
            links[f"{QUADLETS}/{unit}@{number}.container"] = f"{unit}@.container"
    if beat := plan["beat"]:
        files[f"{QUADLETS}/celery-beat.container"] = jinja.get_template(
            f"{QUADLETS[1:]}/celery-beat.container.j2"
        ).render(
            **{**context, **of_the_app(beat, context)},
            **drain_chain(SEND_SECONDS),
            share=beat,
            tasks=tasks_limit(1, 0, vcpus),
            command="beat",
            unit="celery-beat",
            container="celery-beat",
            target="celery.target",
        )
    if files and context["network"] not in WITHOUT_RULES:
        for path in (*RELOADS, *(EGRESS if context["network"] == "bridge" else ())):
            files[path] = jinja.get_template(f"{path[1:]}.j2").render(context)
        links[f"{UNITS}/celery.target.wants/{RELOADER}"] = f"{UNITS}/{RELOADER}"
    return {"files": files, "links": links, "needed": needed(plan)}


def network_files(units: Units) -> dict[str, str]:
    """Those of the files that a container in the workers' network needs."""
    return {path: units["files"][path] for path in EGRESS[:2] if path in units["files"]}


def of_commands(units: Units, plan: Plan) -> dict[str, Any]:
    """What the module ``celery_run`` needs for a command as this version of workers has it."""
    return {
        "units": units["files"],
        "queues": {queue["name"]: queue["unit"] for queue in plan["queues"]},
        "free_mb": plan["totals"]["free_mb"],
    }


def surge_sizes(plan: Plan) -> dict[str, int]:
    """Template of each queue's workers to the memory in MB of an instance beside the old one.

    Not of those with ports: the old one has them.
    """
    return {
        f"celery-{queue['unit']}@.service": queue["memory_mb"]
        for queue in plan["queues"]
        if not queue["ports"]
    }


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "celery_worker_egress_lacks": egress_lacks,
            "celery_worker_lacks": lacks,
            "celery_worker_network_files": network_files,
            "celery_worker_of_commands": of_commands,
            "celery_worker_reloads": reloads,
            "celery_worker_running": running,
            "celery_worker_surge": surge_sizes,
            "celery_worker_units": worker_units,
            "celery_worker_visibility_seconds": visibility_seconds,
        }
