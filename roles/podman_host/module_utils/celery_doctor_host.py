"""What the playbook doctor.yml has to know of a host. It reads, and in bounded time."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
PLAN = Path("/etc/celery-metal/plan.json")
BACKUPS = Path("/var/lib/celery-metal/backups")
#: Where something of ours grows, and what.
PLACES = {
    "/": "the system",
    "/var/lib/containers": "images",
    "/var/lib/celery-metal/redis": "Redis's data",
    "/var/lib/celery-metal/backups": "backups",
    "/var/log": "the journal",
}
THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
COMMAND_SECONDS, MOST_PROCESSES, MOST_UNITS, MOST_BACKUPS = 5, 2000, 500, 1000
KIB = 1024
UNIT = re.compile(r"celery-(?:[^/@]+@[^/@]+|redis|sentinel|beat)\.service")
#: The files of an installed package, by the standard for Python's packages.
PACKAGE = re.compile(r"(celery|kombu|redis)-([0-9][0-9A-Za-z.]{0,30})\.dist-info")
PYTHONS = ("usr/local/lib", "usr/lib", "opt/venv/lib", "app/.venv/lib", "venv/lib")
TIME_ERROR = 5  # adjtimex(2)


class Process(NamedTuple):
    """One of a unit: bytes at most until now, of its own, in swap; open files, and its limit."""

    pid: int
    parent: int
    name: str
    peak: int
    resident: int
    swap: int
    files: int
    files_limit: int


def output(*argv: str) -> str:
    """What a command prints; empty where it is missing, fails, or takes too long."""
    try:
        done = subprocess.run(argv, capture_output=True, check=False, timeout=COMMAND_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def text_of(path: Path, most: int = 1 << 16) -> str:
    """The begin of a file; empty where there is none."""
    try:
        with path.open(errors="replace") as file:
            return file.read(most)
    except OSError:
        return ""


def number_of(path: Path) -> int | None:
    """The number in a file of the kernel's; None where it has another word, or there is none."""
    text = text_of(path).strip()
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) else None


def host_facts() -> dict[str, Any]:
    """All of it but Redis."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "system": system_name(),
        "in_container": Path("/run/systemd/container").exists(),
        "is_synchronised": is_synchronised(),
        "memory": memory(),
        "disks": disks(),
        "limits": limits(),
        "units": [*units()],
        "plan": plan(),
        "backup": backup(),
        # The last, as near as can be to the moment when the controller hears of it.
        "at": time.time(),
    }


def system_name() -> str:
    """The distribution, as it names itself."""
    found = re.search(r'^PRETTY_NAME="?(.{1,100}?)"?$', text_of(Path("/etc/os-release")), re.M)
    return found[1] if found else ""


def is_synchronised() -> bool | None:
    """Whether the kernel's clock is kept right, as ``timedatectl`` has it; None if not known."""
    # struct timex, whose first word 0 changes nothing, is not longer anywhere.
    buffer = ctypes.create_string_buffer(512)
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except AttributeError:
        return None
    return None if state < 0 else state != TIME_ERROR


def memory() -> dict[str, int]:
    """Of the host, in bytes."""
    found = re.findall(r"^(\w+): +([0-9]{1,15}) kB$", text_of(PROC / "meminfo"), re.M)
    sizes = {name: int(kib) * KIB for name, kib in found}
    names = {"total": "MemTotal", "available": "MemAvailable", "swap": "SwapTotal"}
    return {key: sizes[name] for key, name in names.items() if name in sizes}


def disks() -> list[dict[str, Any]]:
    """Each file system with something of ours, in bytes, once."""
    mounts = [line.split() for line in text_of(PROC / "self/mounts", 1 << 20).splitlines()]
    kinds = {words[1]: words[2] for words in mounts if len(words) > 2}
    found: dict[int, dict[str, Any]] = {}
    for place, what in PLACES.items():
        try:
            device, at = os.stat(place).st_dev, os.statvfs(place)
        except OSError:
            continue
        if device in found:
            found[device]["holds"].append(what)
            continue
        mount = Path(place)
        while str(mount) not in kinds and mount != mount.parent:
            mount = mount.parent
        found[device] = {
            "mount": str(mount),
            "type": kinds.get(str(mount), ""),
            "holds": [what],
            "size": at.f_blocks * at.f_frsize,
            "free": at.f_bavail * at.f_frsize,
            "inodes": at.f_files,
            "inodes_free": at.f_ffree,
        }
    return [*found.values()]


def limits() -> dict[str, Any]:
    """Of the kernel."""
    files = text_of(PROC / "sys/fs/file-nr").split()
    chosen = re.search(r"\[(\w+)\]", text_of(THP))
    return {
        "files": int(files[0]) if len(files) == 3 and files[0].isdigit() else None,
        "files_most": number_of(PROC / "sys/fs/file-max"),
        "huge_pages": chosen[1] if chosen else "",
    }


def units() -> Iterator[dict[str, Any]]:
    """Each running service of ours, with what its processes use."""
    slice_ = CGROUPS / "celery.slice"
    folders = sorted(path for path in slice_.glob("celery-*.service") if UNIT.fullmatch(path.name))
    left = MOST_PROCESSES
    for folder in folders[:MOST_UNITS]:
        processes = [*_processes(folder, left)]
        left -= len(processes)
        inside = [one for one in processes if one.name not in ("conmon", "podman", "crun")]
        if not inside:
            continue
        pids = {one.pid for one in inside}
        main = next((one for one in inside if one.parent not in pids), inside[0])
        children = [one for one in inside if one.parent == main.pid]
        yield {
            "unit": folder.name,
            "processes": len(inside),
            "main_peak": main.peak,
            "child_peak": max((one.peak for one in children), default=0),
            # What they share counts for each.
            "resident": sum(one.resident for one in inside),
            "swap": sum(one.swap for one in inside),
            **_files(inside),
            **_limits_of(folder),
            "anonymous": _statistic(folder / "memory.stat", "anon"),
            "oom_kills": _statistic(folder / "memory.events", "oom_kill"),
            "versions": versions(main.pid),
        }


def _processes(folder: Path, most: int) -> Iterator[Process]:
    pids = [
        int(pid) for path in sorted(folder.rglob("cgroup.procs")) for pid in text_of(path).split()
    ]
    for pid in pids[: max(most, 0)]:
        said = dict(re.findall(r"^(\w+):\s+(\S+)", text_of(PROC / str(pid) / "status"), re.M))
        if "VmHWM" not in said:
            continue
        limit = re.search(r"^Max open files +(\d+)", text_of(PROC / str(pid) / "limits"), re.M)
        files = 0
        with suppress(OSError):
            files = len(os.listdir(PROC / str(pid) / "fd"))
        yield Process(
            pid,
            int(said.get("PPid", 0)),
            said.get("Name", ""),
            int(said["VmHWM"]) * KIB,
            int(said.get("RssAnon", 0)) * KIB,
            int(said.get("VmSwap", 0)) * KIB,
            files,
            int(limit[1]) if limit else 0,
        )


def _files(processes: Iterable[Process]) -> dict[str, int]:
    """Of the process that is nearest to its limit."""
    one = max(processes, key=lambda one: one.files / (one.files_limit or 1 << 62))
    return {"files": one.files, "files_most": one.files_limit}


def _limits_of(folder: Path) -> dict[str, Any]:
    """What the kernel counts for a unit, where it has the controllers for it."""
    return {
        "memory_most": number_of(folder / "memory.max"),
        "tasks": number_of(folder / "pids.current"),
        "tasks_most": number_of(folder / "pids.max"),
        "tasks_denied": _statistic(folder / "pids.events", "max"),
    }


def _statistic(path: Path, name: str) -> int | None:
    found = re.search(rf"^{name} ([0-9]{{1,19}})$", text_of(path), re.M)
    return int(found[1]) if found else None


def versions(pid: int) -> dict[str, str]:
    """Celery, kombu and redis-py in the container of a process, by the names of their files.

    Links in there would lead out of the container: none is followed.
    """
    found: dict[str, str] = {}
    for place in PYTHONS:
        for packages in ("site-packages", "dist-packages"):
            folder = PROC / str(pid) / "root" / place
            try:
                pythons = [one for one in os.listdir(folder) if re.fullmatch(r"python3[.\d]*", one)]
            except OSError:
                continue
            for python in pythons[:20]:
                names = _names(folder / python / packages)
                for one in filter(None, map(PACKAGE.fullmatch, names)):
                    found.setdefault(one[1], one[2])
    return found


def _names(folder: Path) -> list[str]:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return []
    try:
        return os.listdir(handle)
    except OSError:
        return []
    finally:
        os.close(handle)


def plan() -> dict[str, Any]:
    """The plan that is deployed, as far as a rule needs it."""
    try:
        whole = json.loads(PLAN.read_text())
        keys = ("name", "unit", "pool", "concurrency", "memory_per_process_mb", "memory_mb")
        more = ("tmp_mb", "prefetch", "acks_late", "time_limit_seconds", "drain_seconds")
        redis = whole["redis"] or {}
        return {
            "totals": whole["totals"],
            "maxmemory_mb": redis.get("maxmemory_mb"),
            "queues": [
                {key: one[key] for key in (*keys, *more)} | {"queues": one["queues"]}
                for one in whole["queues"][:MOST_UNITS]
            ],
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def backup() -> dict[str, Any] | None:
    """What backups of the Redis here there are; None where none are to be made."""
    timer = _shown("celery-redis-backup.timer", "LoadState,ActiveState,LastTriggerUSec")
    if timer.get("LoadState") != "loaded":
        return None
    service = _shown("celery-redis-backup.service", "ActiveState,Result,ExecMainExitTimestamp")
    dumps = sorted(BACKUPS.glob("redis-*.rdb"))[-MOST_BACKUPS:]
    proven = [one for one in dumps if one.with_name(f"{one.name}.json").is_file()]
    newest = 0
    with suppress(OSError):
        newest = int(proven[-1].stat().st_mtime) if proven else 0
    return {
        "timer": timer.get("ActiveState", ""),
        "triggered": _moment(timer.get("LastTriggerUSec")),
        "state": service.get("ActiveState", ""),
        "result": service.get("Result", ""),
        "ended": _moment(service.get("ExecMainExitTimestamp")),
        "count": len(proven),
        "unproven": len(dumps) - len(proven),
        "newest": newest,
    }


def _shown(unit: str, properties: str) -> Mapping[str, str]:
    said = output("systemctl", "show", "--timestamp=unix", f"--property={properties}", unit)
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def _moment(text: str | None) -> int:
    """Seconds since 1970 in ``@1795979784``, as ``systemctl`` prints them; 0 for never."""
    found = re.fullmatch(r"@([0-9]{1,11})", text or "")
    return int(found[1]) if found else 0
