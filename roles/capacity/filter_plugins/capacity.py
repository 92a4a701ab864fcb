"""Queues in, plan out: what celery_queues may say, and how many processes it becomes on a host.

Everything above FilterModule is pure: no facts, no files, no clock, no Ansible. The same input
gives the same output, and a host with more vCPUs or memory never gives a queue fewer processes.
All memory is in MB of 1024 x 1024 bytes, as in Ansible's facts and systemd's "M".
"""

from __future__ import annotations

import difflib
import heapq
import json
import math
import posixpath
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

try:
    from ansible.errors import AnsibleError, AnsibleFilterError
    from jinja2 import UndefinedError

    # What comes of looking at a value whose template fails.
    UNREADABLE: tuple[type[Exception], ...] = (AnsibleError, RecursionError, UndefinedError)
except ImportError:  # the functions also serve where Ansible is not installed
    AnsibleFilterError, UNREADABLE = ValueError, ()

if TYPE_CHECKING:
    from celery_metal_types import (
        Autoscale,
        BeatKeys,
        Findings,
        Host,
        Limits,
        Plan,
        PlannedBeat,
        PlannedQueue,
        Queue,
        RedisLimits,
        RedisShare,
        Refusal,
        Share,
    )


class QueuesError(ValueError):
    """celery_queues is refused; the text lists every problem, one to a line."""


class PlanError(ValueError):
    """The queues do not fit the host; the text names host, variable, sum and remedy."""


# ------------------------------------------------------------------------------------------
# What may be written: ranges live here, the schema in meta/argument_specs.yml; a test compares them


class Rule(NamedTuple):
    """What one key accepts, bounds included.

    kind: name | choice | int | auto_int | concurrency | bool | mapping | names | queues |
    texts (see WRITTEN) | sections (see QUADLET_SECTIONS).
    """

    kind: str
    default: Any = None
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()


QUEUE_RULES: dict[str, Rule] = {
    "name": Rule("name"),
    "workload": Rule("choice", "cpu", choices=("cpu", "io")),
    "pool": Rule("choice", "prefork", choices=("prefork", "threads", "gevent", "solo")),
    "weight": Rule("int", 1, 1, 1000),
    "concurrency": Rule("concurrency", "auto", 1, 10000),
    "instances": Rule("int", 1, 1, 100),
    "memory_per_process_mb": Rule("int", 150, 16, 1048576),
    "tmp_mb": Rule("auto_int", "auto", 4, 1048576),
    "drain_seconds": Rule("int", 60, 1, 86400),
    "acks_late": Rule("bool", True),
    "prefetch": Rule("int", 1, 1, 1000),
    "time_limit_seconds": Rule("auto_int", 0, 0, 604800),
    "max_tasks_per_child": Rule("int", 0, 0, 1000000),
    "latency_objective_seconds": Rule("int", 0, 0, 86400),
    "environment": Rule("mapping", {}),
    "secrets": Rule("names", "all"),
    "hosts": Rule("names", "all"),
    "queues": Rule("queues", []),
    "queue_order": Rule("choice", "round_robin", choices=("round_robin", "priority")),
    "volumes": Rule("texts", []),
    "ports": Rule("texts", []),
    "devices": Rule("texts", []),
    "gpus": Rule("texts", []),
    "quadlet": Rule("sections", {}),
}

# The keys of a queue that Beat has, too: each is a variable of this prefix.
BEAT = "celery_beat_"
BEAT_KEYS = ("environment", "secrets", "volumes", "quadlet")

SETTING_RULES: dict[str, Rule] = {
    "celery_queue_overrides": Rule("mapping", {}),
    **{f"{BEAT}{key}": QUEUE_RULES[key] for key in BEAT_KEYS},
    "capacity_runs_workers": Rule("bool", True),
    "capacity_runs_beat": Rule("bool", False),
    "capacity_redis_host": Rule("bool", False),
    "capacity_redis_sentinel": Rule("bool", False),
    "capacity_reserve_mb": Rule("auto_int", "auto", 0, 16777216),
    "capacity_redis_memory_mb": Rule("auto_int", "auto", 64, 16777216),
    "capacity_process_factor": Rule("int", 4, 1, 32),
    "capacity_threads_per_vcpu": Rule("int", 10, 1, 1000),
    "capacity_greenlets_per_vcpu": Rule("int", 100, 1, 10000),
    "capacity_main_process_mb": Rule("int", 64, 16, 65536),
    "capacity_beat_memory_mb": Rule("int", 150, 64, 65536),
    "capacity_numa_nodes": Rule("int", 1, 1, 1024),
    "capacity_planned_memory_mb": Rule("int", 0, 0, 1073741824),
}

# celery 5.7: only these pools have the grow() and shrink() that worker/autoscale.py calls.
AUTOSCALE_POOLS = ("prefork", "gevent")

# A file name has 255 bytes: "celery-", "@100.container", ".d" and a temporary name must fit beside.
SLUG_BYTES = 200

# Quadlet also copies a volume's path into RequiresMountsFor=, with no way to escape these.
PLAIN = r"[^\s:,;\"'\\$]"


class Written(NamedTuple):
    """How one item of a list of texts is written: podman's own way, checked by a pattern."""

    pattern: re.Pattern[str]
    wanted: str


WRITTEN: dict[str, Written] = {
    "volumes": Written(
        re.compile(rf"(?P<host>/{PLAIN}*):(?P<inside>/{PLAIN}+)(:(?P<options>[^\s:\"'\\$]+))?"),
        "HOST:CONTAINER or HOST:CONTAINER:OPTIONS with whole paths, as in /srv/media:/media:ro, "
        "and no blanks, quotes, backslashes or $ in them",
    ),
    "ports": Written(
        re.compile(
            r"((?P<address>[0-9.]+|\[[0-9A-Fa-f:.]+\]):)?(?P<port>\d{1,5}):(?P<inside>\d{1,5})"
            r"(/(?P<protocol>tcp|udp|sctp))?",
            re.ASCII,
        ),
        'PORT:PORT or ADDRESS:PORT:PORT with the host\'s first, in quotes, as in "8080:80"',
    ),
    "devices": Written(
        re.compile(rf"(?P<host>/dev/{PLAIN}+)(:/{PLAIN}+)?(:[rwm]{{1,3}})?"),
        "a device of the host, as in /dev/ttyUSB0 or /dev/ttyUSB0:/dev/meter:rw",
    ),
    "gpus": Written(
        re.compile(r"[A-Za-z0-9.-]+/[A-Za-z0-9_-]+=[A-Za-z0-9_.:-]+", re.ASCII),
        "a CDI name, as in nvidia.com/gpu=all or nvidia.com/gpu=0",
    ),
}

# Why a key that the kit sets itself, or that its safety stands on, is not the user's.
SANDBOX = "the sandbox of all workers stands on it"
STOPPING = "that no task is lost at a stop stands on it; set drain_seconds"
SIZING = "the plan sets it; use concurrency, memory_per_process_mb, tmp_mb and weight"
RUNNING = "the kit starts and watches the worker by it"
QUADLET_SECTIONS: dict[str, dict[str, str]] = {
    "Container": {
        "Image": "use image_source and its variables",
        "Rootfs": "use image_source and its variables",
        "Pull": "images are there before a worker starts",
        "AutoUpdate": "playbooks/upgrade.yml brings new versions",
        "Environment": "use the key environment",
        "EnvironmentFile": "use the key environment, or secrets",
        "EnvironmentHost": SANDBOX,
        "Secret": "use celery_worker_secrets and the key secrets",
        "Volume": "use the key volumes",
        "Mount": "use the key volumes",
        "PublishPort": "use the key ports",
        "AddDevice": "use the keys devices and gpus",
        "Network": "use celery_worker_network",
        "Pod": RUNNING,
        "ContainerName": RUNNING,
        "ServiceName": RUNNING,
        "Exec": RUNNING,
        "Entrypoint": RUNNING,
        "RunInit": RUNNING,
        "Notify": RUNNING,
        "LogDriver": "the journal is where workers are read",
        "StopTimeout": STOPPING,
        "StopSignal": STOPPING,
        "User": SANDBOX,
        "Group": SANDBOX,
        "UserNS": SANDBOX,
        "UIDMap": SANDBOX,
        "GIDMap": SANDBOX,
        "SubUIDMap": SANDBOX,
        "SubGIDMap": SANDBOX,
        "RemapUsers": SANDBOX,
        "RemapUid": SANDBOX,
        "RemapGid": SANDBOX,
        "RemapUidSize": SANDBOX,
        "ReadOnly": SANDBOX,
        "DropCapability": SANDBOX,
        "NoNewPrivileges": SANDBOX,
        "CgroupsMode": SIZING,
        "Memory": SIZING,
        "ContainersConfModule": "it could undo the sandbox; put it into a drop-in of yours",
        "GlobalArgs": "it could undo the sandbox; put it into a drop-in of yours",
        "PodmanArgs": "it could undo the sandbox; put it into a drop-in of yours",
    },
    "Service": {
        "Type": RUNNING,
        "NotifyAccess": RUNNING,
        "WatchdogSec": "use celery_worker_watchdog_seconds",
        "WatchdogSignal": RUNNING,
        "PIDFile": RUNNING,
        "RemainAfterExit": RUNNING,
        "Restart": RUNNING,
        "RestartSec": RUNNING,
        "RestartSteps": RUNNING,
        "RestartMaxDelaySec": RUNNING,
        "RestartForceExitStatus": RUNNING,
        "RestartPreventExitStatus": RUNNING,
        "SuccessExitStatus": RUNNING,
        "SyslogIdentifier": "the journal is where workers are read",
        "StandardOutput": "the journal is where workers are read",
        "StandardError": "the journal is where workers are read",
        "Environment": "it would be Podman's; use the key environment",
        "EnvironmentFile": "it would be Podman's; use the key environment",
        "TimeoutSec": STOPPING,
        "TimeoutStartSec": RUNNING,
        "TimeoutStopSec": STOPPING,
        "TimeoutAbortSec": STOPPING,
        "RuntimeMaxSec": STOPPING,
        "KillMode": STOPPING,
        "KillSignal": STOPPING,
        "RestartKillSignal": STOPPING,
        "SendSIGKILL": STOPPING,
        "SendSIGHUP": STOPPING,
        "FinalKillSignal": STOPPING,
        "Slice": SIZING,
        "Delegate": SIZING,
        "MemoryMax": SIZING,
        "MemorySwapMax": SIZING,
        "OOMPolicy": SIZING,
        "CPUWeight": SIZING,
        "User": "Podman runs as root",
        "Group": "Podman runs as root",
        "DynamicUser": "Podman runs as root",
        "RootDirectory": RUNNING,
        "RootImage": RUNNING,
    },
}

# The same for Beat, whose variables have other names. It runs no task, and listens to nothing.
BEAT_REASONS = {
    "use the key environment": f"use {BEAT}environment",
    "use the key environment, or secrets": f"use {BEAT}environment, or {BEAT}secrets",
    "use celery_worker_secrets and the key secrets": f"use celery_worker_secrets and {BEAT}secrets",
    "use the key volumes": f"use {BEAT}volumes",
    "use the key ports": "Beat listens to nothing; use the key ports of a queue",
    "use the keys devices and gpus": "Beat runs no task; use the keys devices and gpus of a queue",
    "it would be Podman's; use the key environment": f"it would be Podman's; use {BEAT}environment",
    STOPPING: "that another host schedules at once stands on it",
    SIZING: "the plan sets it; use capacity_beat_memory_mb",
}
BEAT_SECTIONS = {
    section: {key: BEAT_REASONS.get(why, why) for key, why in keys.items()}
    for section, keys in QUADLET_SECTIONS.items()
}

# What tasks write there is the worker's memory: `tmp_mb` is its size.
TMPFS = ("/tmp", "/var/tmp")

# What a terminal does not show: control, format, surrogate, line and paragraph separator.
INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# What Unicode keeps out of text; systemd ignores a line with one of these.
NO_CHARACTER = re.compile(
    "[\ufdd0-\ufdef"
    + "".join(chr(n << 16 | 0xFFFE) + chr(n << 16 | 0xFFFF) for n in range(17))
    + "]"
)


# How a refusal ends: the playbook asks before it changes any host.
UNCHANGED = "Nothing was changed."

# Longest value that a message quotes in full.
SHOWN_LENGTH = 70


def unit_slug(name: str) -> str:
    """Return a queue's name as the middle of a unit's name: what is outside [A-Za-z0-9_.-] becomes
    "_" and two hex digits for each of its UTF-8 bytes. Two names may share a slug ("a/", "a_2f");
    validate_queues refuses such a pair.
    """
    return re.sub(
        r"[^A-Za-z0-9_.-]",
        lambda found: "".join(f"_{byte:02x}" for byte in found[0].encode("utf-8", "surrogatepass")),
        name,
    )


def validate_queues(queues: Any) -> list[Queue]:
    """Return celery_queues with defaults filled in and `unit` added, in the order it was written.

    Raises QueuesError with all problems at once, each with item, key, value and remedy.
    """
    problems = queue_problems(queues)
    if problems:
        raise QueuesError(report(problems))
    return [_normalised(queue) for queue in queues]


def queue_problems(queues: Any) -> list[str]:
    """Return what is wrong with celery_queues, one line each; an empty list when it is good."""
    example = "write a list such as [{name: emails}]"
    if queues is None:
        return [f"celery_queues is not set: {example}"]
    if not isinstance(queues, (list, tuple)):
        return [f"celery_queues is {_show(queues)}, not a list: {example}"]
    if not queues:
        return [f"celery_queues is an empty list: {example}"]
    found = [
        line for position, item in enumerate(queues, 1) for line in _item_problems(position, item)
    ]
    return found + _clashes(queues)


def setting_problems(settings: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the capacity_* variables, one line each; absent means default."""
    found = []
    for key, rule in SETTING_RULES.items():
        problem = _value_problem(key, settings.get(key, rule.default), rule)
        if problem:
            text_value = isinstance(settings.get(key), str) and rule.kind != "choice"
            hint = " (-e key=value always gives text: use -e '{key: value}')" if text_value else ""
            found.append(problem + hint)
    return found


def report(problems: list[str]) -> str:
    """Return the problems as text: alone as they are, several under a count, one to a line."""
    if len(problems) > 1:
        return "\n".join([f"{len(problems)} problems:", *(f"- {problem}" for problem in problems)])
    return "".join(problems)


def _normalised(queue: Mapping[str, Any]) -> Queue:
    values = {key: queue.get(key, rule.default) for key, rule in QUEUE_RULES.items()}
    if isinstance(values["concurrency"], Mapping):
        values["concurrency"] = {bound: values["concurrency"][bound] for bound in ("min", "max")}
    if values["time_limit_seconds"] == "auto":
        # What outlasts the drain would run again from its beginning at each stop.
        values["time_limit_seconds"] = values["drain_seconds"]
    values["queues"] = list(values["queues"]) or [queue["name"]]
    # QUEUE_RULES names the same keys; a test compares them.
    return cast("Queue", {"name": values.pop("name"), "unit": unit_slug(queue["name"]), **values})


def _item_problems(position: int, item: Any) -> list[str]:
    where = f"celery_queues item {position}"
    if not isinstance(item, Mapping):
        return [f"{where} is {_show(item)}, not a mapping: write {{name: ...}}"]
    if isinstance(item.get("name"), str) and item["name"]:
        where += f" ({_show(item['name'])})"
    found = [_unknown_key(key, QUEUE_RULES) for key in item if key not in QUEUE_RULES]
    if "name" not in item:
        found.append("name is missing: every queue needs one")
    bad_keys = set()
    for key, rule in QUEUE_RULES.items():
        if key in item:
            problem = _value_problem(key, item[key], rule)
            if problem:
                bad_keys.add(key)
                found.append(problem)
    if not bad_keys & {"pool", "concurrency"}:
        found += _pool_problems(item)
    if item.get("ports") and not bad_keys & {"ports", "instances"} and item.get("instances", 1) > 1:
        found.append(
            f"ports is {_show(item['ports'])} with instances {item['instances']}, and only one of "
            "them could bind a port of the host: write instances: 1, and raise concurrency; or "
            "make a queue of each, with queues: of the same name and a port of its own"
        )
    return [f"{where}: {problem}" for problem in found]


def _unknown_key(key: Any, keys: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(key).lower(), keys, n=1, cutoff=0.5)
    known = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(keys)}"
    return f"{_show(key).strip(chr(34))} is an unknown key: {known}"


def _pool_problems(item: Mapping[str, Any]) -> list[str]:
    pool = item.get("pool", "prefork")
    size = item.get("concurrency", "auto")
    if pool == "solo" and size not in ("auto", 1):
        return [
            f"concurrency is {_show(size)} with pool solo, which runs each task in the worker's "
            "main process and ignores concurrency: remove it, raise instances, or choose another "
            "pool"
        ]
    if isinstance(size, Mapping) and pool not in AUTOSCALE_POOLS:
        return [
            f"concurrency is {_show(size)} with pool {pool}, which cannot grow or shrink while it "
            f"runs: write a number, or choose pool {' or '.join(AUTOSCALE_POOLS)}"
        ]
    limit = item.get("time_limit_seconds", 0)
    if limit and pool != "prefork":
        return [
            f"time_limit_seconds is {_show(limit)} with pool {pool}, which cannot end a task: "
            "remove it, or choose pool prefork"
        ]
    tasks = item.get("max_tasks_per_child", 0)
    if tasks and pool != "prefork":
        return [
            f"max_tasks_per_child is {_show(tasks)} with pool {pool}, which has no processes to "
            "replace: remove it, or choose pool prefork"
        ]
    return []


def _clashes(queues: Iterable[Any]) -> list[str]:
    names: dict[str, list[int]] = {}
    for position, item in enumerate(queues, 1):
        if isinstance(item, Mapping) and isinstance(item.get("name"), str) and item["name"]:
            names.setdefault(item["name"], []).append(position)
    found = [
        f"celery_queues items {' and '.join(map(str, positions))} are named {_show(name)}: "
        "keep one (instances: starts several workers of a queue)"
        for name, positions in names.items()
        if len(positions) > 1
    ]
    slugs: dict[str, list[str]] = {}
    for name in names:
        slugs.setdefault(unit_slug(name), []).append(name)
    return found + [
        f"celery_queues names {' and '.join(map(_show, same))} would share the units "
        f"celery-{slug}@: rename one"
        for slug, same in slugs.items()
        if len(same) > 1
    ]


def _value_problem(key: str, value: Any, rule: Rule) -> str | None:
    if rule.kind == "name":
        return _name_problem(value)
    if value is None:
        return f"{key} is empty: give it a value, or remove the key (default {_show(rule.default)})"
    if rule.kind == "choice":
        return _choice_problem(key, value, rule)
    if rule.kind == "bool":
        return None if isinstance(value, bool) else f"{key} is {_show(value)}: write true or false"
    if rule.kind == "mapping":
        wanted = "write a mapping such as {NAME: value}"
        return None if isinstance(value, Mapping) else f"{key} is {_show(value)}: {wanted}"
    if rule.kind == "names":
        named = isinstance(value, list) and all(isinstance(one, str) for one in value)
        wanted = "write all, or a list of names"
        return None if named or value == rule.default else f"{key} is {_show(value)}: {wanted}"
    if rule.kind == "queues":
        return _queues_problem(value)
    if rule.kind == "texts":
        return _texts_problem(key, value)
    if rule.kind == "sections":
        return _sections_problem(key, value)
    if rule.kind in ("auto_int", "concurrency") and isinstance(value, str) and value == "auto":
        return None
    if rule.kind == "concurrency" and isinstance(value, Mapping):
        return _autoscale_problem(value, rule)
    return _int_problem(key, value, rule)


def _queues_problem(value: Any) -> str | None:
    if not isinstance(value, list) or not value:
        return f"queues is {_show(value)}: write a list of names of queues, or remove the key"
    for place, name in enumerate(value, 1):
        problem = _name_problem(name)
        if problem:
            return f"queues, item {place}: {problem}"
        if name in value[: place - 1]:
            return f"queues names {_show(name)} twice: keep one"
    return None


def _texts_problem(key: str, value: Any) -> str | None:
    kind = key.removeprefix(BEAT)
    written = WRITTEN[kind]
    if not isinstance(value, list):
        return f"{key} is {_show(value)}: write a list, each {written.wanted}"
    for place, one in enumerate(value):
        found = written.pattern.fullmatch(one) if isinstance(one, str) else None
        if not found or any(unicodedata.category(char) in INVISIBLE for char in one):
            return f"{key} has {_show(one)}: write {written.wanted}"
        if one in value[:place]:
            return f"{key} has {_show(one)} twice: keep one"
        problem = OWN_CHECKS[kind](found) if kind in OWN_CHECKS else None
        if problem:
            return f"{key} has {_show(one)}: {problem}"
    return None


def _volume_problem(volume: re.Match[str]) -> str | None:
    options = (volume["options"] or "").split(",")
    if "U" in options:
        return (
            "U gives the whole directory to one worker's own IDs, and the next one has others; use "
            "idmap, see docs/queues.md"
        )
    if "O" in options:
        return "O is an overlay that is gone with the container: leave it out, or write ro"
    if re.match(r"/(run/secrets|run/redis|proc|sys|dev)(/|$)", volume["inside"]):
        return "the kit, or Podman, has this path in the container: choose another"
    if ".." in f"{volume['host']}/{volume['inside']}".split("/"):
        return "write the paths without .."
    return None


def _port_problem(port: re.Match[str]) -> str | None:
    if not all(1 <= int(port[end]) <= 65535 for end in ("port", "inside")):
        return "a port is a number from 1 to 65535"
    return None


OWN_CHECKS: dict[str, Callable[[re.Match[str]], str | None]] = {
    "volumes": _volume_problem,
    "ports": _port_problem,
}


def _sections_problem(key: str, value: Any) -> str | None:
    example = "write a mapping such as {Container: {ShmSize: 256m}}"
    if not isinstance(value, Mapping):
        return f"{key} is {_show(value)}: {example}"
    known_keys = BEAT_SECTIONS if key.startswith(BEAT) else QUADLET_SECTIONS
    for section, keys in value.items():
        if section not in known_keys:
            known = " and ".join(known_keys)
            return f"{key} has the section {_show(section)}: there are {known}; {example}"
        if not isinstance(keys, Mapping):
            return f"{key}.{section} is {_show(keys)}: {example}"
        for name, given in keys.items():
            problem = _unit_key_problem(known_keys[section], name, given)
            if problem:
                return f"{key}.{section}: {problem}"
    return None


def _unit_key_problem(kept: Mapping[str, str], name: Any, given: Any) -> str | None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name, re.ASCII):
        return f"{_show(name)} is no key of a unit file: write one such as ShmSize"
    if name in kept:
        return f"{name} is not taken: {kept[name]}"
    if name.startswith("Exec"):
        return f"{name} is not taken: {RUNNING}"
    for one in given if isinstance(given, list) else [given]:
        plain = isinstance(one, str) and one.strip() != ""
        if not plain and (one is None or not isinstance(one, (int, float))):
            return f"{name} is {_show(given)}: write text, a number, or a list of them"
        if isinstance(one, str) and any(unicodedata.category(char) == "Cc" for char in one):
            return f"{name} is {_show(one)}: a unit file has no place for control characters"
        if isinstance(one, str) and one.endswith("\\"):
            return f"{name} is {_show(one)}: a backslash at its end would join the next line"
        path = str(one).strip("\"' ").partition(":")[0]
        if (
            kept is QUADLET_SECTIONS["Container"]
            and name == "Tmpfs"
            and posixpath.normpath("/" + path.lstrip("/")) in TMPFS
        ):
            return f"Tmpfs is {_show(one)}: the size of /tmp and /var/tmp is the key tmp_mb"
        if name == "Label" and "celery-metal." in str(one):
            return f"Label is {_show(one)}: labels with celery-metal. are the kit's own"
    return None


def port_clashes(queues: Iterable[Queue]) -> list[str]:
    """Return which queues of one host want the same port of it."""
    taken: dict[tuple[str, str], list[tuple[str, str]]] = {}
    found = []
    for queue in queues:
        for port in queue["ports"]:
            parts = WRITTEN["ports"].pattern.fullmatch(port)
            if not parts:
                continue  # no valid queue has it
            address = parts["address"] or ""
            others = taken.setdefault((str(int(parts["port"])), parts["protocol"] or "tcp"), [])
            found += [
                f"celery_queues: ports of {_show(other)} and {_show(queue['name'])} both have "
                f"the host's port {parts['port']}: give one of them another, or another host"
                for other, theirs in others
                if not address or not theirs or address == theirs
            ]
            others.append((queue["name"], address))
    return found


def _name_problem(value: Any) -> str | None:
    if value is None or value == "":
        return "name is empty: every queue needs a name"
    if isinstance(value, bool):
        example = "yes" if value else "no"
        return (
            f"name is {_show(value)} (YAML reads yes, no, on and off as booleans): put what you "
            f'wrote in quotes, as in name: "{example}"'
        )
    if not isinstance(value, str):
        return (
            f"name is {_show(value)}, not text: put it in quotes, as in name: {_show(str(value))}"
        )
    if "," in value:
        return (
            f"name is {_show(value)}: Celery's -Q splits names at commas; choose a name without one"
        )
    if any(unicodedata.category(c) in INVISIBLE or NO_CHARACTER.match(c) for c in value):
        shown = _show(value, ascii_only=True)
        return f"name is {shown}: it holds an invisible or control character; remove it"
    if value != value.strip():
        return f"name is {_show(value)}: remove the space at its start or end"
    if len(unit_slug(value)) > SLUG_BYTES:
        size = f"{len(unit_slug(value))} bytes as a unit's name"
        return f"name is {_show(value)}: {size}; shorten it to {SLUG_BYTES} or fewer"
    return None


def _choice_problem(key: str, value: Any, rule: Rule) -> str | None:
    if isinstance(value, str) and value in rule.choices:
        return None
    near = difflib.get_close_matches(str(value).strip().lower(), rule.choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{key} is {_show(value)}: write one of {', '.join(rule.choices)}{hint}"


def _int_problem(key: str, value: Any, rule: Rule) -> str | None:
    wanted = f"write a whole number from {rule.low} to {rule.high}"
    if rule.kind == "auto_int":
        wanted = f"write auto, or a whole number from {rule.low} to {rule.high}"
    elif rule.kind == "concurrency":
        wanted = (
            f"write auto, a whole number from {rule.low} to {rule.high}, or {{min: ..., max: ...}}"
        )
    if isinstance(value, bool):
        return f"{key} is {_show(value)} (YAML reads yes, no, on and off as booleans): {wanted}"
    if isinstance(value, str) and re.fullmatch(r"0[0-9]+", value.strip()):
        number = int(value)
        return (
            f"{key} is {_show(value)} (YAML reads a leading zero as text or octal): write {number}"
        )
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value.strip()):
        return f"{key} is {_show(value)}, a string: drop the quotes and write {int(value)}"
    if not isinstance(value, int) or not rule.low <= value <= rule.high:
        return f"{key} is {_show(value)}: {wanted}"
    return None


def _autoscale_problem(value: Mapping[str, Any], rule: Rule) -> str | None:
    if set(value) != {"min", "max"}:
        return f"concurrency is {_show(value)}: as a mapping it takes exactly the keys min and max"
    bound = rule._replace(kind="int")
    for key in ("min", "max"):
        problem = _int_problem(f"concurrency.{key}", value[key], bound)
        if problem or value[key] is None:
            return problem
    if value["min"] > value["max"]:
        return f"concurrency is {_show(value)}: min is above max; swap them"
    return None


def _show(value: Any, ascii_only: bool = False) -> str:
    try:
        text = json.dumps(value, ensure_ascii=ascii_only, default=str)
        text.encode()
    except (TypeError, ValueError):
        text = ascii(value)
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 3] + "..."


# ------------------------------------------------------------------------------------------
# Which queue runs where

OVERRIDES = "celery_queue_overrides"


def overridden(queues: Any, overrides: Any) -> Any:
    """Return celery_queues with what celery_queue_overrides says of some keys of some queues.

    What is malformed is left as it is, for those that refuse it.
    """
    if not isinstance(queues, (list, tuple)) or not isinstance(overrides, Mapping):
        return queues
    return [
        {**queue, **own}
        if isinstance(queue, Mapping)
        and isinstance(queue.get("name"), str)
        and isinstance(own := overrides.get(queue["name"]), Mapping)
        else queue
        for queue in queues
    ]


def override_problems(queues: Any, overrides: Mapping[Any, Any]) -> list[str]:
    """Return what is wrong with celery_queue_overrides, given good celery_queues."""
    names = [queue["name"] for queue in queues]
    keys = [key for key in QUEUE_RULES if key != "name"]
    found = []
    for name, own in overrides.items():
        where = f"{OVERRIDES} ({_show(name)})"
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
            known = f"did you mean {near[0]}?" if near else f"write one of {', '.join(names)}"
            found.append(f"{where}: celery_queues has no queue of that name: {known}")
        elif not isinstance(own, Mapping):
            found.append(f"{where} is {_show(own)}: write a mapping such as {{instances: 4}}")
        else:
            found += [f"{where}: {_unknown_key(key, keys)}" for key in own if key not in keys]
    if found or not overrides:
        return found
    return [f"with {OVERRIDES}: {one}" for one in queue_problems(overridden(queues, overrides))]


def serves(queue: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether a host of that name, in groups of those names, has workers of a queue."""
    hosts = queue.get("hosts", "all")
    return hosts == "all" or not {"all", *names}.isdisjoint(hosts)


class Placement(NamedTuple):
    """Where queues run: what is wrong with it, and what an operator should know of it."""

    problems: list[str]
    notes: list[str]


def placement(hosts: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]]) -> Placement:
    """Return which names in `hosts` of queues are unknown, which queues run on no host, and which
    hosts run none. What else is wrong with the queues is not looked at.

    hosts: each host of the group celery to its variables. groups: those of the inventory.
    """
    lists = {host: _readable(variables) for host, variables in hosts.items()}
    member = {host: {host, *(g for g, own in groups.items() if host in own)} for host in lists}
    unknown: dict[str, list[str]] = {}
    declared: dict[str, list[Any]] = {}
    served: set[str] = set()
    for host, queues in lists.items():
        for queue in queues:
            name, wanted = queue["name"], queue.get("hosts", "all")
            declared.setdefault(name, []).append(wanted)
            if serves(queue, member[host]):
                served.add(name)
            for one in wanted if wanted != "all" else ():
                if one not in hosts and one not in groups:
                    unknown.setdefault(_unknown_host(name, one, hosts, groups), []).append(host)
    problems = [f"{_some(where)}: {line}" for line, where in unknown.items()]
    nowhere = {name: wanted for name, wanted in declared.items() if name not in served}
    meant = [name for name, wanted in nowhere.items() if not any(wanted)]
    problems += [
        f"queue {_show(name)} of celery_queues would run on no host: its hosts are "
        f"{_show(next(filter(None, wanted)))}, and no host of the group celery is among them: add "
        "one, or write hosts: [] for a queue that shall have no workers"
        for name, wanted in nowhere.items()
        if name not in meant and not unknown
    ]
    notes = []
    if meant:
        notes.append(f"No host serves {', '.join(meant)} (hosts: []): their tasks wait.")
    idle = [
        host
        for host, queues in lists.items()
        if queues and not any(serves(queue, member[host]) for queue in queues)
    ]
    if idle:
        notes.append(f"In the group celery, but no queue is placed there: {', '.join(idle)}.")
    return Placement(problems, notes)


def _readable(variables: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The queues of a host of which at least the name, and the key hosts, can be read.

    None where a template fails, which the check of all variables tells.
    """
    try:
        queues = overridden(variables.get("celery_queues"), variables.get(OVERRIDES, {}))
        return [
            queue
            for queue in (queues if isinstance(queues, list) else ())
            if isinstance(queue, Mapping)
            and isinstance(queue.get("name"), str)
            and not _value_problem("hosts", queue.get("hosts", "all"), QUEUE_RULES["hosts"])
        ]
    except UNREADABLE:
        return []


def _unknown_host(
    queue: str, name: str, hosts: Iterable[str], groups: Mapping[str, list[str]]
) -> str:
    where = f"celery_queues ({_show(queue)}): hosts names {_show(name)}, which is "
    if name in groups.get("all", []):
        return f"{where}no host of the group celery: add it to the group, or remove it here"
    known = [*hosts, *groups]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{where}neither a host of the group celery nor a group of the inventory: {hint}"


def _some(hosts: list[str], shown: int = 3) -> str:
    """Hosts as the beginning of a message: the first few, and how many more."""
    more = f" and {len(hosts) - shown} more" if len(hosts) > shown else ""
    return f"host{'s' if len(hosts) > 1 else ''} {', '.join(hosts[:shown])}{more}"


# ------------------------------------------------------------------------------------------
# The plan


# On fewer vCPUs, one for Redis alone would cost the queues too much.
REDIS_VCPU_FROM = 4
# The same whatever the queues are: a share that followed them would restart Redis with each change.
REDIS_CPU_WEIGHT = 10000
BEAT_CPU_WEIGHT = 1000
# The size of /tmp by default, at most that of a process; and where memory is short, down to this.
TMP_MB, LEAST_TMP_MB = 64, 16
# What a Sentinel uses does not grow with queues, tasks or workers.
SENTINEL_MB = 32
SENTINEL_CPU_WEIGHT = 1000


@dataclass
class _Pool:
    """A queue while it is being sized; size is its concurrency per instance."""

    queue: Queue
    size: int
    explicit: bool
    tmp_mb: int

    @property
    def prefork(self) -> bool:
        return self.queue["pool"] == "prefork"

    @property
    def automatic(self) -> bool:
        return self.prefork and not self.explicit

    @property
    def instances(self) -> int:
        return self.queue["instances"]

    @property
    def per_instance(self) -> int:
        """Processes that run tasks in one instance: only prefork has more than the main one."""
        return self.size if self.prefork else 1

    @property
    def processes(self) -> int:
        return self.instances * self.per_instance

    @property
    def seat_mb(self) -> int:
        """Memory of one more process in each instance."""
        return self.instances * self.queue["memory_per_process_mb"]

    @property
    def most_tmp_mb(self) -> int:
        """The size of /tmp that is declared, or wanted by default."""
        declared = self.queue["tmp_mb"]
        wanted = min(TMP_MB, self.queue["memory_per_process_mb"])
        return wanted if declared == "auto" else declared

    def memory_mb(self, main_process_mb: int) -> int:
        """Memory of one instance; a prefork worker's main process comes on top of its pool.

        Files in /tmp are memory, too: full, it leaves the processes what is planned for them.
        """
        own = main_process_mb if self.prefork else 0
        return own + self.per_instance * self.queue["memory_per_process_mb"] + self.tmp_mb


class _Memory(NamedTuple):
    """How a host's memory is divided before any queue is sized."""

    reserve: int
    redis: int
    redis_reason: str
    workers: int  # what is left; below zero when the rest does not fit


class _Stop(NamedTuple):
    """The seat that memory refused, and what was left for it."""

    pool: _Pool
    spare: int


class _Sized(NamedTuple):
    """All that a reason may speak of, once every queue is sized."""

    host: Host
    limits: Limits
    pools: list[_Pool]
    cap: int
    stop: _Stop | None


def plan(host: Host, queues: list[Queue], limits: Limits) -> Plan:
    """Return how many processes each queue gets on this host, how much memory, and why.

    host: see Host. queues: from validate_queues, or [] on a pure Redis host. limits: see Limits.
    Numbers that users wrote are kept or refused, only automatic ones shrink. Raises PlanError when
    explicit numbers, or one process for each instance of an automatic queue, cannot fit.

    Automatic prefork queues are filled vCPU by vCPU (see _grant_seats), so the plan of a smaller
    host is the beginning of a larger one's: per queue it never falls as vCPUs or memory grow.
    """
    memory = _divide_memory(host, bool(queues), limits)
    pools = [_start(queue, host, limits) for queue in queues]
    _refuse_processes(host, pools, limits)
    _refuse_memory(host, pools, memory, limits)
    wanted = [_start(queue, host, limits) for queue in queues]
    _grant_seats(wanted, host, limits, math.inf)
    spare = _grant_tmp(pools, memory.workers - sum(_total_mb(pool, limits) for pool in pools))
    stop = _grant_seats(pools, host, limits, spare)
    sized = _Sized(host, limits, pools, _process_cap(host, pools, limits), stop)
    rows = [
        _row(pool, free.size, weight, sized)
        for pool, free, weight in zip(pools, wanted, _cpu_weights(queues), strict=True)
    ]
    workers = sum(_total_mb(pool, limits) for pool in pools)
    return {
        "host": {
            "name": host["name"],
            "vcpus": host["vcpus"],
            "memory_mb": host["memory_mb"],
            "numa_nodes": host["numa_nodes"],
        },
        "queues": rows,
        "beat": _beat_share(limits) if limits["beat_mb"] else None,
        "redis": _redis_share(memory) if limits["redis"] else None,
        "sentinel": _sentinel_share(limits) if limits["sentinel_mb"] else None,
        "totals": {
            "processes": sum(pool.processes for pool in pools),
            "process_cap": sized.cap,
            "process_factor": limits["process_factor"],
            "workers_mb": workers,
            "beat_mb": limits["beat_mb"],
            "redis_mb": memory.redis,
            "sentinel_mb": limits["sentinel_mb"],
            "reserve_mb": memory.reserve,
            "free_mb": memory.workers - workers,
            "memory_mb": host["memory_mb"],
        },
    }


def _row(pool: _Pool, wanted: int, weight: tuple[int, str], sized: _Sized) -> PlannedQueue:
    queue = pool.queue
    return {
        "name": queue["name"],
        "unit": queue["unit"],
        "pool": queue["pool"],
        "workload": queue["workload"],
        "weight": queue["weight"],
        "instances": queue["instances"],
        "concurrency": pool.size,
        "autoscale": _autoscale(queue),
        "processes": pool.per_instance,
        "memory_per_process_mb": queue["memory_per_process_mb"],
        "tmp_mb": pool.tmp_mb,
        "memory_mb": pool.memory_mb(sized.limits["main_process_mb"]),
        "cpu_weight": weight[0],
        "drain_seconds": queue["drain_seconds"],
        "acks_late": queue["acks_late"],
        "prefetch": queue["prefetch"],
        "time_limit_seconds": queue["time_limit_seconds"],
        "max_tasks_per_child": queue["max_tasks_per_child"],
        "environment": queue["environment"],
        "secrets": queue["secrets"],
        "queues": queue["queues"],
        "queue_order": queue["queue_order"],
        "volumes": queue["volumes"],
        "ports": queue["ports"],
        "devices": queue["devices"],
        "gpus": queue["gpus"],
        "quadlet": queue["quadlet"],
        "reasons": {
            "concurrency": _size_reason(pool, wanted, sized),
            "memory_mb": _memory_reason(pool, sized.limits),
            "tmp_mb": _tmp_reason(pool),
            "cpu_weight": weight[1],
        },
    }


def usable_vcpus(vcpus: int, runs_redis: bool) -> int:
    """Return the vCPUs that cpu queues share: a Redis beside them gets one from 4 vCPUs on."""
    return vcpus - 1 if runs_redis and vcpus >= REDIS_VCPU_FROM else vcpus


def _divide_memory(host: Host, runs_workers: bool, limits: Limits) -> _Memory:
    # Floor division takes at most 1 of each MB more: what is left never falls as memory grows.
    total = host["memory_mb"]
    declared = limits["reserve_mb"]
    reserve = declared if declared != "auto" else max(256, total // 10)
    redis, reason = 0, ""
    if limits["redis"]:
        wanted, reason = limits["redis"]["memory_mb"], "explicit"
        if wanted != "auto":
            redis = wanted
        else:
            percent = 20 if runs_workers else 70
            left = total - reserve
            redis = max(96, left * percent // 100)
            reason = f"{percent}% of the {left} MB beside the reserve"
            if redis > left * percent // 100:
                reason = f"the least, more than {reason}"
    rest = total - reserve - redis - limits["sentinel_mb"] - limits["beat_mb"]
    return _Memory(reserve, redis, reason, rest)


def _start(queue: Queue, host: Host, limits: Limits) -> _Pool:
    """Size a queue before seats are granted: explicit, by its pool's rule, or one process."""
    size, tmp = queue["concurrency"], queue["tmp_mb"]
    tmp_mb = LEAST_TMP_MB if tmp == "auto" else tmp
    if isinstance(size, Mapping):
        return _Pool(queue, size["max"], True, tmp_mb)
    if size != "auto":
        return _Pool(queue, size, True, tmp_mb)
    return _Pool(queue, _per_vcpu(queue, limits) * host["vcpus"] or 1, False, tmp_mb)


def _per_vcpu(queue: Queue, limits: Limits) -> int:
    """Threads or greenlets per vCPU; 0 for pools that are not sized so."""
    per_vcpu = {"threads": limits["threads_per_vcpu"], "gevent": limits["greenlets_per_vcpu"]}
    if queue["pool"] not in per_vcpu:
        return 0
    return per_vcpu[queue["pool"]] if queue["workload"] == "io" else 1


def _total_mb(pool: _Pool, limits: Limits) -> int:
    return pool.instances * pool.memory_mb(limits["main_process_mb"])


def _process_cap(host: Host, pools: list[_Pool], limits: Limits) -> int:
    """vCPUs x the factor, but never below the one process that every instance must have."""
    return max(host["vcpus"] * limits["process_factor"], sum(pool.instances for pool in pools))


def _refuse_processes(host: Host, pools: list[_Pool], limits: Limits) -> None:
    vcpus, factor = host["vcpus"], limits["process_factor"]
    allowed = vcpus * factor
    most = f"{vcpus} vCPUs x capacity_process_factor {factor} = {allowed} processes"
    remedy = (
        "lower concurrency or instances, write concurrency: auto, or raise capacity_process_factor"
    )
    found = [
        f"host {host['name']}: {_named(pool)}: concurrency {_show(pool.queue['concurrency'])} "
        f"with instances {pool.instances} needs {pool.processes} processes, and the host may run "
        f"{most}: {remedy}"
        for pool in pools
        if pool.prefork and pool.size > 1 and pool.processes > allowed
    ]
    if found:
        raise PlanError(report(found))
    least = sum(pool.processes for pool in pools)
    cap = _process_cap(host, pools, limits)
    if least > cap:
        terms = [(_named(p), f"{p.instances} x {p.per_instance}", p.processes) for p in pools]
        instances = sum(pool.instances for pool in pools)
        why = most if cap == allowed else f"one for each of {instances} instances, more than {most}"
        raise PlanError(
            f"host {host['name']}: celery_queues needs {least} processes, and the host may run "
            f"{cap} ({why}):\n{_sum_lines(terms, '')}\n{remedy}"
        )


def _refuse_memory(host: Host, pools: list[_Pool], memory: _Memory, limits: Limits) -> None:
    needed = host["memory_mb"] - memory.workers + sum(_total_mb(pool, limits) for pool in pools)
    total = host["memory_mb"]
    if needed <= total:
        return
    terms = [("reserve", f"capacity_reserve_mb: {limits['reserve_mb']}", memory.reserve)]
    if limits["redis"]:
        terms.append(
            ("Redis", f"capacity_redis_memory_mb: {limits['redis']['memory_mb']}", memory.redis)
        )
    if limits["sentinel_mb"]:
        terms.append(("Sentinel", "beside a Redis of several hosts", limits["sentinel_mb"]))
    if limits["beat_mb"]:
        terms.append(("Beat", "capacity_beat_memory_mb", limits["beat_mb"]))
    for pool in pools:
        least = ", auto at its least" if pool.automatic else ""
        text = f"{pool.instances} x ({_memory_reason(pool, limits)}){least}"
        terms.append((_named(pool), text, _total_mb(pool, limits)))
    what = "celery_queues" if pools else "Redis"
    remedy = (
        "lower concurrency, instances, memory_per_process_mb or tmp_mb, move a queue to another "
        "host, or add memory"
    )
    if not pools:
        remedy = "lower capacity_redis_memory_mb or capacity_reserve_mb, or add memory"
    raise PlanError(
        f"host {host['name']}: {what} needs {needed} MB, {needed - total} MB more than the {total} "
        f"MB that the host has:\n{_sum_lines(terms, 'MB')}\n{remedy}"
    )


def _named(pool: _Pool) -> str:
    return f"queue {_show(pool.queue['name'])}"


def _sum_lines(terms: list[tuple[str, str, int]], unit: str) -> str:
    rows = [*terms, ("sum", "", sum(value for *_, value in terms))]
    names, texts, values = (max(len(str(row[column])) for row in rows) for column in range(3))
    return "\n".join(
        f"  {name:<{names}}  {text:<{texts}}  {value:>{values}} {unit}".rstrip()
        for name, text, value in rows
    )


def _grant_tmp(pools: list[_Pool], spare: int) -> int:
    """Give each /tmp its size, in place; return the memory that is left for more processes.

    Where memory is short, automatic sizes shrink alike, and no queue gets another process: so no
    plan is refused for a default, and no process is taken away as memory grows.
    """

    def cost(level: int) -> int:
        return sum(p.instances * (min(level, p.most_tmp_mb) - p.tmp_mb) for p in automatic)

    automatic = [pool for pool in pools if pool.queue["tmp_mb"] == "auto"]
    level = max(one for one in range(LEAST_TMP_MB, TMP_MB + 1) if cost(one) <= spare)
    left = spare - cost(level) if cost(level) == cost(TMP_MB) else 0
    for pool in automatic:
        pool.tmp_mb = min(level, pool.most_tmp_mb)
    return left


def _grant_seats(pools: list[_Pool], host: Host, limits: Limits, spare: float) -> _Stop | None:
    """Give automatic prefork queues their processes, in place; return the seat that memory refused.

    A seat is one process in each instance of a queue. vCPU by vCPU, cpu queues get seats until they
    fill the usable vCPUs, then io queues until all processes reach the factor. No step looks at how
    many vCPUs or MB follow, and the first seat that memory refuses ends it: the grants of a smaller
    host are a prefix of a larger one's. Who is next is Webster's (Sainte-Lague's) divisor rule,
    weight / (processes + half a seat), ties by order in the list. Largest remainders could take a
    seat away as the house grows, the Alabama paradox (Balinski, Young: Fair Representation, 1982).
    """
    waiting = {kind: _waiting(pools, kind) for kind in ("cpu", "io")}
    busy = {
        kind: sum(p.processes for p in pools if p.queue["workload"] == kind)
        for kind in ("cpu", "io")
    }
    for level in range(1, host["vcpus"] + 1):
        for kind, heap in waiting.items():
            while heap:
                pool = pools[heap[0][1]]
                if pool.instances > _room(kind, level, busy, bool(waiting["cpu"]), limits):
                    break  # it waits for a later vCPU; nobody overtakes it
                if pool.seat_mb > spare:
                    return _Stop(pool, int(spare))
                spare -= pool.seat_mb
                busy[kind] += pool.instances
                pool.size += 1
                heapq.heapreplace(heap, (_turn(pool), heap[0][1]))
    return None


def _waiting(pools: list[_Pool], kind: str) -> list[tuple[float, int]]:
    heap = [
        (_turn(p), i) for i, p in enumerate(pools) if p.automatic and p.queue["workload"] == kind
    ]
    heapq.heapify(heap)
    return heap


def _turn(pool: _Pool) -> float:
    # Equal ratios of small integers are equal floats, so ties fall to the order in the list.
    return -pool.queue["weight"] / (2 * pool.processes + pool.instances)


def _room(kind: str, level: int, busy: Mapping[str, int], cpu_waits: bool, limits: Limits) -> int:
    """Return how many processes more this kind may have once `level` vCPUs are counted."""
    room = limits["process_factor"] * level - busy["cpu"] - busy["io"]
    cpu_room = usable_vcpus(level, bool(limits["redis"])) - busy["cpu"]
    if kind == "cpu":
        return min(room, cpu_room)
    # What cpu queues still wait for is kept free, or a queue of many instances would wait forever.
    return room - max(0, cpu_room) if cpu_waits else room


def _cpu_weights(queues: list[Queue]) -> list[tuple[int, str]]:
    """Return CPUWeight per instance and why; all scale down together to systemd's 1 to 10000."""
    if not queues:
        return []
    peak = max(100 * queue["weight"] / queue["instances"] for queue in queues)
    scale = min(1.0, 10000 / peak)
    note = "" if scale == 1 else f", all scaled by {scale:.2g} to systemd's 10000"
    return [
        (
            max(1, int(scale * 100 * queue["weight"] / queue["instances"] + 1e-9)),
            f"100 x weight {queue['weight']} / {_count(queue['instances'], 'instance')}{note}",
        )
        for queue in queues
    ]


def _redis_share(memory: _Memory) -> RedisShare:
    """Return Redis's part of the plan.

    The third above maxmemory is for copy-on-write while the AOF is rewritten and fragmentation;
    buffers of clients count as used memory, and redis.conf limits them:
    https://redis.io/docs/latest/operate/oss_and_stack/management/admin/
    """
    return {
        "memory_mb": memory.redis,
        "maxmemory_mb": memory.redis * 2 // 3,
        "cpu_weight": REDIS_CPU_WEIGHT,
        "reasons": {
            "memory_mb": memory.redis_reason,
            "maxmemory_mb": (
                "2/3 of its memory, a quarter of that for clients at most; "
                "the rest: copy-on-write, fragmentation"
            ),
            "cpu_weight": "the highest: every queue waits for it, and it uses one vCPU at most",
        },
    }


def _sentinel_share(limits: Limits) -> Share:
    """Return the part of the Sentinel beside a Redis that is one of several."""
    return {
        "memory_mb": limits["sentinel_mb"],
        "cpu_weight": SENTINEL_CPU_WEIGHT,
        "reasons": {
            "memory_mb": "enough for any number of queues and tasks: it has none of them",
            "cpu_weight": "high: it decides within seconds, whatever the workers beside it do",
        },
    }


def _beat_share(limits: Limits) -> PlannedBeat:
    """Return Beat's part of the plan."""
    return {
        **limits["beat"],
        "memory_mb": limits["beat_mb"],
        "cpu_weight": BEAT_CPU_WEIGHT,
        "reasons": {
            "memory_mb": "capacity_beat_memory_mb: one process, which loads the app",
            "cpu_weight": "high: on time beside busy workers, though it needs next to nothing",
        },
    }


def _autoscale(queue: Queue) -> Autoscale | None:
    return queue["concurrency"] if isinstance(queue["concurrency"], Mapping) else None


def _memory_reason(pool: _Pool, limits: Limits) -> str:
    own = f"main process {limits['main_process_mb']} + " if pool.prefork else ""
    each = pool.queue["memory_per_process_mb"]
    return f"{own}{pool.per_instance} x {each} + /tmp {pool.tmp_mb} MB"


def _tmp_reason(pool: _Pool) -> str:
    if pool.queue["tmp_mb"] != "auto":
        return "explicit"
    if pool.tmp_mb < pool.most_tmp_mb:
        return f"shrunk from {pool.most_tmp_mb} MB: that is what memory is left for"
    return f"auto: as a process, {TMP_MB} MB at most"


def _size_reason(pool: _Pool, wanted: int, sized: _Sized) -> str:
    host, limits = sized.host, sized.limits
    nodes = host["numa_nodes"]
    note = f"; {nodes} NUMA nodes, not pinned" if nodes > 1 else ""
    bounds = _autoscale(pool.queue)
    if bounds:
        return f"explicit, autoscale {bounds['min']} to {bounds['max']}{note}"
    if pool.explicit:
        return f"explicit{note}"
    if pool.queue["pool"] == "solo":
        return f"solo runs one task at a time{note}"
    if not pool.prefork:
        kind = "thread" if pool.queue["pool"] == "threads" else "greenlet"
        each = _count(_per_vcpu(pool.queue, limits), kind)
        return f"{each} per vCPU, {_count(host['vcpus'], 'vCPU')}{note}"
    if sized.stop and wanted > pool.size:
        return _shrunk_reason(pool, wanted, sized.stop) + note
    return _share_reason(pool, sized) + note


def _shrunk_reason(pool: _Pool, wanted: int, stop: _Stop) -> str:
    several = stop.pool.instances > 1
    seat = f"{stop.pool.instances} processes" if several else "process"
    whose = "" if stop.pool is pool else f", for {_show(stop.pool.queue['name'])},"
    return (
        f"shrunk from {wanted} to {pool.size}: the next {seat} of "
        f"{stop.pool.queue['memory_per_process_mb']} MB{whose} {'do' if several else 'does'} "
        f"not fit in {stop.spare} MB"
    )


def _share_reason(pool: _Pool, sized: _Sized) -> str:
    kind = pool.queue["workload"]
    alike = [other for other in sized.pools if other.queue["workload"] == kind]
    weights = sum(other.queue["weight"] for other in alike if other.automatic)
    weight = f"weight {pool.queue['weight']} of {weights}"
    if kind == "io":
        return f"{pool.processes} of at most {_processes(sized.cap)}, {weight}"
    usable = usable_vcpus(sized.host["vcpus"], bool(sized.limits["redis"]))
    busy = sum(other.processes for other in alike)
    where = _count(usable, "usable vCPU")
    if pool.size == 1 and busy > usable:
        return f"the least: {busy} cpu processes on {where}"
    return f"{pool.processes} of {where}, {weight}"


def _count(number: int, one: str) -> str:
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def _processes(number: int) -> str:
    return f"{number} process" if number == 1 else f"{number} processes"


# ------------------------------------------------------------------------------------------
# The plan for people

COLUMNS = ("queue", "pool", "inst.", "conc.", "procs", "/tmp", "MB each", "CPU weight", "why")
LEFT_ALIGNED = ("queue", "pool", "why")
TABLE_WIDTH = 110
NAME_WIDTH = 24


def plan_table(plan: Plan) -> str:
    """Return a plan as aligned plain text, at most 110 columns wide, without a last newline."""
    host = plan["host"]
    head = f"host {host['name']}: {_count(host['vcpus'], 'vCPU')}, {host['memory_mb']} MB memory"
    rows = [_queue_cells(queue) for queue in plan["queues"]]
    if beat := plan["beat"]:
        numbers = ("1", "", "1", "", str(beat["memory_mb"]), str(beat["cpu_weight"]))
        rows.append(("Beat", "", *numbers, "the schedule; one of its hosts schedules at a time"))
    if plan["redis"]:
        redis = plan["redis"]
        why = f"maxmemory {redis['maxmemory_mb']} MB; {redis['reasons']['memory_mb']}"
        rows.append(
            ("Redis", "", "1", *[""] * 3, str(redis["memory_mb"]), str(redis["cpu_weight"]), why)
        )
    if sentinel := plan["sentinel"]:
        numbers = ("1", "", "", "", str(sentinel["memory_mb"]), str(sentinel["cpu_weight"]))
        rows.append(("Sentinel", "", *numbers, "has a say in which Redis is the primary"))
    if not rows:
        return f"{head}\nno queue is placed on this host, and no worker runs here"
    return "\n".join([head, *_aligned([COLUMNS, *rows]), _sum_line(plan), *_rollout_lines(plan)])


def _queue_cells(queue: PlannedQueue) -> tuple[str, ...]:
    bounds = queue["autoscale"]
    size = f"{bounds['min']} to {bounds['max']}" if bounds else str(queue["concurrency"])
    numbers = (queue["processes"], queue["tmp_mb"], queue["memory_mb"], queue["cpu_weight"])
    cells = (
        _shortened(queue["name"]),
        queue["pool"],
        str(queue["instances"]),
        size,
        *map(str, numbers),
    )
    return (*cells, queue["reasons"]["concurrency"] + _shrunk_tmp(queue) + _consumed(queue))


def _shrunk_tmp(queue: PlannedQueue) -> str:
    """Why /tmp is smaller than by default; what is usual goes without saying."""
    reason = queue["reasons"]["tmp_mb"]
    return f"; /tmp {reason}" if reason.startswith("shrunk") else ""


def _consumed(queue: PlannedQueue) -> str:
    """The queues that a worker consumes, where that is more than its name says."""
    if queue["queues"] == [queue["name"]]:
        return ""
    strict = queue["queue_order"] == "priority" and len(queue["queues"]) > 1
    return f"; consumes {', '.join(queue['queues'])}{', the first one first' if strict else ''}"


def _shortened(name: str) -> str:
    """Cut the middle out of a long name: what tells queues apart is mostly at the ends."""
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 12]}..{name[-10:]}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS) - 1)]
    indent = sum(widths) + 2 * len(widths)
    lines = []
    for *cells, why in rows:
        padded = (
            cell.ljust(width) if title in LEFT_ALIGNED else cell.rjust(width)
            for title, cell, width in zip(COLUMNS, cells, widths, strict=False)
        )
        first, *more = textwrap.wrap(why, TABLE_WIDTH - indent) or [""]
        lines.append("".join(f"{cell}  " for cell in padded) + first)
        lines += [" " * indent + line for line in more]
    return lines


def _sum_line(plan: Plan) -> str:
    totals = plan["totals"]
    terms = [
        ("workers", totals["workers_mb"]),
        ("Beat", totals["beat_mb"]),
        ("Redis", totals["redis_mb"]),
        ("Sentinel", totals["sentinel_mb"]),
        ("reserve", totals["reserve_mb"]),
    ]
    absent = {"workers": not plan["queues"]}
    absent |= {"Beat": not plan["beat"], "Redis": not plan["redis"]}
    absent |= {"Sentinel": not plan["sentinel"]}
    parts = " + ".join(f"{name} {value}" for name, value in terms if not absent.get(name))
    total = sum(value for _, value in terms)
    text = f"{parts} = {total} of {totals['memory_mb']} MB"
    if plan["queues"]:
        text += f", {totals['processes']} of {_processes(totals['process_cap'])}"
    return text


def _rollout_lines(plan: Plan) -> list[str]:
    """The queues that pause while their worker is replaced: there is no room for one beside it."""
    free = plan["totals"]["free_mb"]
    names = [_shortened(q["name"]) for q in plan["queues"] if q["memory_mb"] > free]
    ports = [_shortened(q["name"]) for q in plan["queues"] if q["ports"]]
    lines = []
    if names:
        text = f"{free} MB are free: at a change these pause, with no new worker beside the old one"
        lines += textwrap.wrap(f"{text}: {', '.join(names)}", TABLE_WIDTH)
    if ports:
        text = f"at a change these pause, for a port is bound once: {', '.join(ports)}"
        lines += textwrap.wrap(text, TABLE_WIDTH)
    return lines


# ------------------------------------------------------------------------------------------
# From Ansible's variables, and back


def same_memory_mb(memory_mb: int, planned_mb: int) -> int:
    """Return the memory to plan with, in MiB: that of the deployed plan, up to 1 % more or less.

    A new kernel leaves some MB more or less, and Redis would restart for another ``maxmemory``. The
    deployed plan keeps its number, so many small steps do not add up to a large one.

    :param planned_mb: that of the deployed plan, 0 where there is none.

    >>> same_memory_mb(4005, 3996), same_memory_mb(3990, 3996), same_memory_mb(8000, 3996)
    (3996, 3996, 8000)
    """
    return planned_mb if 100 * abs(memory_mb - planned_mb) <= planned_mb else memory_mb


def host_from_facts(
    facts: Mapping[str, Any], name: str, numa_nodes: int, planned_memory_mb: int = 0
) -> Host:
    """Return the planner's host from ansible_facts; processor_nproc respects affinity and wins.

    :param planned_memory_mb: see ``same_memory_mb``.

    Raises PlanError when the facts are missing.
    """
    vcpus = facts.get("processor_nproc") or facts.get("processor_vcpus")
    memory_mb = facts.get("memtotal_mb")
    if not vcpus or not memory_mb:
        absent = [
            key
            for key, value in (("processor_nproc", vcpus), ("memtotal_mb", memory_mb))
            if not value
        ]
        raise PlanError(
            f"host {name}: ansible_facts has no {' and no '.join(absent)}: gather facts first "
            "(gather_facts: true, or ansible.builtin.setup with gather_subset: [hardware])"
        )
    return {
        "name": str(name),
        "vcpus": int(vcpus),
        "memory_mb": same_memory_mb(int(memory_mb), planned_memory_mb),
        "numa_nodes": numa_nodes,
    }


def limits_from_settings(settings: Mapping[str, Any]) -> Limits:
    """Return the planner's limits from the capacity_* variables; an absent one is its default."""
    value = {key: settings.get(key, rule.default) for key, rule in SETTING_RULES.items()}
    redis: RedisLimits | None = (
        {"memory_mb": value["capacity_redis_memory_mb"]} if value["capacity_redis_host"] else None
    )
    elects = value["capacity_redis_host"] and value["capacity_redis_sentinel"]
    return {
        "reserve_mb": value["capacity_reserve_mb"],
        "process_factor": value["capacity_process_factor"],
        "threads_per_vcpu": value["capacity_threads_per_vcpu"],
        "greenlets_per_vcpu": value["capacity_greenlets_per_vcpu"],
        "main_process_mb": value["capacity_main_process_mb"],
        "beat_mb": value["capacity_beat_memory_mb"] if value["capacity_runs_beat"] else 0,
        "beat": cast("BeatKeys", {key: value[f"{BEAT}{key}"] for key in BEAT_KEYS}),
        "sentinel_mb": SENTINEL_MB if elects else 0,
        "redis": redis,
    }


def problems_text(queues: Any, settings: Mapping[str, Any], names: Iterable[str] = ()) -> str:
    """Return all that is wrong with celery_queues and the capacity_* variables; "" when nothing is.

    A host that runs no workers (capacity_runs_workers: false) needs no celery_queues. names: its
    own, and those of its groups.
    """
    runs_workers = settings.get("capacity_runs_workers", True)
    found = setting_problems(settings)
    if runs_workers:
        found += queue_problems(queues)
    if runs_workers and not found:
        found = override_problems(queues, settings.get(OVERRIDES, {}))
    if runs_workers and not found:
        found = port_clashes(_placed(queues, settings, names))
    return report(found)


def _placed(queues: Any, settings: Mapping[str, Any], names: Iterable[str]) -> list[Queue]:
    """The queues of a host, valid ones, as it sees them."""
    own = validate_queues(overridden(queues, settings.get(OVERRIDES, {})))
    return [queue for queue in own if serves(queue, names)]


def refusal_text(
    queues: Any, settings: Mapping[str, Any], name: str, groups: Iterable[str] = ()
) -> str:
    """Return what problems_text says as the refusal of one host's run; "" when nothing is wrong."""
    problems = problems_text(queues, settings, [name, *groups])
    return f"host {name}: {problems}\n{UNCHANGED}" if problems else ""


def plan_or_error(
    queues: Any,
    facts: Mapping[str, Any],
    name: str,
    settings: Mapping[str, Any],
    groups: Iterable[str] = (),
) -> Plan | Refusal:
    """Return the plan of one host, which is in groups of those names, or {"error": text}.

    Text instead of an exception: Ansible buries a filter's exception under three layers of its own,
    while assert shows a text as it is.
    """
    refusal = refusal_text(queues, settings, name, groups)
    if refusal:
        return {"error": refusal}
    runs_workers = settings.get("capacity_runs_workers", True)
    valid = _placed(queues, settings, [name, *groups]) if runs_workers else []
    try:
        nodes, planned = (
            settings.get(key, SETTING_RULES[key].default)
            for key in ("capacity_numa_nodes", "capacity_planned_memory_mb")
        )
        host = host_from_facts(facts, name, nodes, planned)
        return plan(host, valid, limits_from_settings(settings))
    except PlanError as error:
        return {"error": f"{error}\n{UNCHANGED}"}


def placement_text(
    hosts: Mapping[str, Mapping[str, Any]], groups: Mapping[str, list[str]], celery: Iterable[str]
) -> Findings:
    """Return what `placement` says as the text of a refusal, and of a notice; "" for nothing.

    hosts: Ansible's hostvars. celery: the hosts that are to run workers.
    """
    found = placement({host: hosts[host] for host in celery}, groups)
    problems = report(found.problems)
    return {
        "problems": f"{problems}\n{UNCHANGED}" if problems else "",
        "notes": "\n".join(found.notes),
    }


def runs_beat(variables: Mapping[str, Any]) -> bool:
    """Whether Beat is to run on a host of the group celery, given all variables of it."""
    chosen = variables.get("celery_beat_hosts", variables["groups"]["celery"][:2])
    return bool(variables.get("celery_beat")) and variables["inventory_hostname"] in chosen


def runs_app(variables: Mapping[str, Any]) -> bool:
    """Whether workers or Beat are to run on a host of the group celery, as for `runs_beat`."""
    names = {variables["inventory_hostname"], *variables["group_names"]}
    return runs_beat(variables) or any(serves(queue, names) for queue in _readable(variables))


def longest_seconds(hosts: Mapping[str, Mapping[str, Any]], celery: Iterable[str]) -> list[int]:
    """Return drain_seconds and time_limit_seconds of all queues of all hosts, whatever runs where.

    From what is declared, not from plans: with --limit other hosts have none.
    """
    keys = ("drain_seconds", "time_limit_seconds")
    values = {
        queue.get(key, QUEUE_RULES[key].default)
        for host in celery
        for queue in _readable(hosts[host])
        for key in keys
    }
    return sorted(value for value in values if isinstance(value, int))


def table_or_error(plan: Plan | Refusal) -> str:
    """Return what plan_or_error gave as text: its table, or its error."""
    return plan["error"] if "error" in plan else plan_table(plan)


def _raising(function: Callable[..., Any]) -> Callable[..., Any]:
    def filtered(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (QueuesError, PlanError) as error:
            raise AnsibleFilterError(str(error)) from error

    return filtered


class FilterModule:
    """The filters: those for queues and plans raise, the others return what is wrong as text."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "celery_refusal": refusal_text,
            "celery_plan_or_error": plan_or_error,
            "celery_plan_table": table_or_error,
            "celery_placement": placement_text,
            "celery_runs_app": runs_app,
            "celery_runs_beat": runs_beat,
            "celery_longest_seconds": longest_seconds,
            "celery_queues_valid": _raising(validate_queues),
            "celery_plan": _raising(lambda queues, host, limits: plan(host, queues, limits)),
        }
