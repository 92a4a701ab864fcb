"""The faults, one function each; what they do is over when they return."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit_fixtures import ROOT

NEAR, FAR = "near", "far"
SHORT, LONG = "celery-short@1.service", "celery-long@1.service"
AWAY_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that happens to a site under load."""

    name: str
    inject: Callable[[Any, Any, Path], None]
    #: An operator does it: no task may run twice.
    planned: bool
    #: Why one may, where it may.
    why: str
    #: Part of every run of the tests.
    usual: bool


FAULTS: list[Fault] = []
RERUN = "a task whose process died when its effect was written and not yet acknowledged runs again"
WAITED = "a task that waits for Redis, to leave its effect, beyond time_limit_seconds runs again"


def fault(name: str, *, planned: bool = False, why: str = RERUN, usual: bool = False) -> Callable:
    """Add a function to the faults."""

    def add(function: Callable[[Any, Any, Path], None]) -> Callable[[Any, Any, Path], None]:
        FAULTS.append(Fault(name, function, planned, "" if planned else why, usual))
        return function

    return add


def other_invocation(lab: Any, host: str, unit: str, before: str, seconds: float) -> None:
    """Wait until the unit runs again."""
    lab.wait_for(
        lambda: (
            lab.show(host, unit, "InvocationID") != before
            and lab.show(host, unit, "ActiveState") == "active"
        ),
        seconds,
        "the unit runs again",
        host=host,
        unit=unit,
    )


def end(kit: Any, lab: Any, command: str, seconds: float = 60) -> None:
    """Run a command that ends the worker of the short queue, and wait for its successor."""
    before = lab.show(FAR, SHORT, "InvocationID")
    main = kit.main_process(FAR, "celery-short-1")
    conmon = lab.run(FAR, "podman inspect -f '{{.State.ConmonPid}}' celery-short-1").strip()
    lab.run(FAR, command.format(main=main, conmon=conmon))
    other_invocation(lab, FAR, SHORT, before, seconds)


@fault("SIGKILL of a pool's process", usual=True)
def kill_child(kit: Any, lab: Any, folder: Path) -> None:
    child = kit.children(FAR, "celery-short-1")[0]
    lab.run(FAR, f"kill -KILL {child}")


@fault("SIGKILL of a worker's main process", usual=True)
def kill_main(kit: Any, lab: Any, folder: Path) -> None:
    end(kit, lab, "kill -KILL {main}")


@fault("SIGKILL of conmon", usual=True)
def kill_conmon(kit: Any, lab: Any, folder: Path) -> None:
    end(kit, lab, "kill -KILL {conmon}")


@fault("podman kill", usual=True)
def podman_kill(kit: Any, lab: Any, folder: Path) -> None:
    end(kit, lab, "podman kill celery-short-1")


@fault("SIGSTOP of a worker's main process", usual=True)
def stop_main(kit: Any, lab: Any, folder: Path) -> None:
    end(kit, lab, "kill -STOP {main}", seconds=60)


@fault("SIGSTOP of a pool's process: it hangs")
def stop_child(kit: Any, lab: Any, folder: Path) -> None:
    child = kit.children(FAR, "celery-short-1")[0]
    lab.run(FAR, f"kill -STOP {child}")
    lab.wait_for(
        lambda: child not in kit.children(FAR, "celery-short-1"),
        60,
        "it is replaced, by its task's time limit or with the whole worker",
        host=FAR,
        unit=SHORT,
    )


GROW = """
from celery_metal_runtime import configure
from metal_sample.celery import app
from metal_sample.tasks import grow

configure(app)
print(grow.apply_async(({megabytes},), queue="short"))
"""


@fault("a task that takes all memory, until it is put aside")
def memory_kill(kit: Any, lab: Any, folder: Path) -> None:
    limit = {host: kit.queue(host, "short")["memory_mb"] for host in (NEAR, FAR)}
    text = GROW.format(megabytes=2 * max(limit.values()))
    with (
        lab.limited_memory(NEAR, SHORT, limit[NEAR]),
        lab.limited_memory(FAR, SHORT, limit[FAR]),
    ):
        lab.run(NEAR, ["podman", "exec", "celery-producer-1", "python", "-c", text])
        lab.wait_for(
            lambda: kit.redis(NEAR, "llen", "celery-metal.dead:short") == "1",
            180,
            "the kernel has ended its process 11 times",
        )
    kit.redis(NEAR, "del", "celery-metal.dead:short")


@fault("systemctl restart of a unit", planned=True, usual=True)
def restart_unit(kit: Any, lab: Any, folder: Path) -> None:
    lab.run(FAR, f"systemctl restart {SHORT}")


@fault("systemctl restart of a queue's target", planned=True)
def restart_queue(kit: Any, lab: Any, folder: Path) -> None:
    lab.run(FAR, "systemctl restart celery-short.target")


@fault("systemctl restart of celery.target, with Redis", planned=True, usual=True)
def restart_all(kit: Any, lab: Any, folder: Path) -> None:
    lab.run(NEAR, "systemctl restart celery.target", timeout=120)


@fault("a stop shorter than the task", planned=True)
def short_stop(kit: Any, lab: Any, folder: Path) -> None:
    lab.wait_for(lambda: "1 busy" in lab.show(FAR, LONG, "StatusText"), 30, "a long task runs")
    # Its tasks take 3 s.
    path = "/etc/containers/systemd/celery-long@.container.d"
    drop_in = "[Container]\nEnvironment=CELERY_METAL_DRAIN_SECONDS=1\n"
    lab.run(FAR, f"mkdir -p {path} && printf '{drop_in}' > {path}/short.conf")
    lab.run(FAR, f"systemctl daemon-reload && systemctl restart {LONG}", timeout=120)
    lab.wait_for(lambda: "1 busy" in lab.show(FAR, LONG, "StatusText"), 30, "a long task runs")
    lab.run(FAR, f"systemctl stop {LONG}", timeout=120)
    lab.run(FAR, f"rm -r {path} && systemctl daemon-reload && systemctl start {LONG}", timeout=120)


@fault("Redis restarted", planned=True, usual=True)
def restart_redis(kit: Any, lab: Any, folder: Path) -> None:
    lab.run(NEAR, "systemctl restart celery-redis")


@fault("SIGKILL of Redis", usual=True)
def kill_redis(kit: Any, lab: Any, folder: Path) -> None:
    before = lab.show(NEAR, "celery-redis.service", "InvocationID")
    lab.run(NEAR, f"kill -KILL {kit.main_process(NEAR, 'celery-redis')}")
    other_invocation(lab, NEAR, "celery-redis.service", before, 60)


@fault("Redis away for 2 minutes", why=WAITED)
def redis_away(kit: Any, lab: Any, folder: Path) -> None:
    lab.run(NEAR, "systemctl stop celery-redis")
    time.sleep(AWAY_SECONDS)  # this is the fault
    lab.run(NEAR, "systemctl start celery-redis")


@fault(
    "the network between a worker's host and Redis cut for 2 minutes (drop)",
    why="after 90 s of silence others run what the cut-off host still runs",
)
def cut_network(kit: Any, lab: Any, folder: Path) -> None:
    with lab.cut_off(FAR, NEAR, 6379):
        time.sleep(AWAY_SECONDS)  # this is the fault


@fault("the worker's host rebooted", planned=True, usual=True)
def reboot_worker(kit: Any, lab: Any, folder: Path) -> None:
    lab.reboot(FAR)


@fault("the worker's host loses its power")
def cut_power(kit: Any, lab: Any, folder: Path) -> None:
    lab.cut_power(FAR)
    lab.start(FAR)


@fault("the host of Redis rebooted", planned=True)
def reboot_redis(kit: Any, lab: Any, folder: Path) -> None:
    lab.reboot(NEAR)


def other_version(folder: Path, line: str) -> str:
    """Sources of the sample app that differ by one line."""
    shutil.copytree(ROOT / "app/sample", folder / "app")
    with (folder / "app/metal_sample/tasks.py").open("a") as changed:
        changed.write(f"\n{line}\n")
    return str(folder / "app")


@fault("an upgrade", planned=True)
def upgrade(kit: Any, lab: Any, folder: Path) -> None:
    source = other_version(folder, "# another version")
    kit.play(playbook="playbooks/upgrade.yml", image_app_source=source)


@fault("a rollback", planned=True)
def rollback(kit: Any, lab: Any, folder: Path) -> None:
    kept = json.loads(lab.run(FAR, "cat /var/lib/celery-metal/workers.json"))["images"]
    version = kept[-2].rpartition(":")[2]
    kit.play(playbook="playbooks/rollback.yml", rollback_version=version)


@fault("a host drained, and back", planned=True)
def drain(kit: Any, lab: Any, folder: Path) -> None:
    kit.play("--limit", FAR, playbook="playbooks/drain.yml")
    kit.play("--limit", FAR, playbook="playbooks/undrain.yml")


@fault("an upgrade to a broken version", planned=True)
def broken_upgrade(kit: Any, lab: Any, folder: Path) -> None:
    source = other_version(folder, "raise SystemError('a broken version')")
    kit.play(playbook="playbooks/upgrade.yml", fails=True, image_app_source=source)


# The beginning of a task's name, and how many seconds later the playbook and its connections end.
CUTS = (
    ("Gather the facts", 0.2),
    ("Bring the files of the host", 0.3),
    ("Write the configuration and the units of Redis", 0.3),
    ("Check and write the units", 0.2),
    ("Check and write the units", 0.5),
    ("Replace the workers", 0.3),
    ("Replace the workers", 1),
    ("Replace the workers", 2),
    ("Replace the workers", 3),
    ("Replace the workers", 5),
)


@fault("the playbook and its connections cut ten times, and run again", planned=True)
def killed_playbook(kit: Any, lab: Any, folder: Path) -> None:
    for number, point in enumerate(CUTS):
        # Each run has all workers to replace.
        assert kit.cut(*point, celery_worker_log_level=("debug", "warning")[number % 2]), point
    kit.play(celery_worker_log_level="info")


CLOCK = """
set -e
export DEBIAN_FRONTEND=noninteractive
dpkg -s libfaketime > /dev/null 2>&1 || (apt-get -qq update && apt-get -qq install libfaketime)
mkdir -p /opt/clock
cp /usr/lib/*/faketime/libfaketimeMT.so.1 /opt/clock/
echo +0 > /opt/clock/offset
for unit in {names}; do
  path=/etc/containers/systemd/$unit.container.d
  mkdir -p $path
  printf '%s\\n' '[Container]' Volume=/opt/clock:/clock:ro \
    Environment=LD_PRELOAD=/clock/libfaketimeMT.so.1 \
    Environment=FAKETIME_TIMESTAMP_FILE=/clock/offset \
    Environment=FAKETIME_NO_CACHE=1 Environment=FAKETIME_DONT_FAKE_MONOTONIC=1 > $path/clock.conf
done
systemctl daemon-reload
systemctl restart {units}
"""
CLOCK_BACK = """
set -e
for unit in {names}; do rm -r /etc/containers/systemd/$unit.container.d; done
systemctl daemon-reload
systemctl restart {units}
"""
SEEN = "podman exec celery-short-1 python -c 'import time; print(time.time())'; date +%s"


@fault("the workers' clocks moved an hour, on and back, and set right", planned=True)
def move_clock(kit: Any, lab: Any, folder: Path) -> None:
    # The lab's hosts share the machine's clock, so the workers are given one that can be moved.
    words = {"names": "celery-short@ celery-long@", "units": f"{SHORT} {LONG}"}
    for host in (NEAR, FAR):
        lab.run(host, CLOCK.format(**words), timeout=120)
    for seconds in (3600, 0):
        for host, offset in ((NEAR, seconds), (FAR, -seconds)):
            lab.run(host, f"echo {offset:+} > /opt/clock/offset")
            seen, real = map(float, lab.run(host, SEEN).split())
            assert abs(seen - real - offset) < 60, f"the clock on {host} has not moved"
        time.sleep(10)  # this is the fault
    for host in (NEAR, FAR):
        lab.run(host, CLOCK_BACK.format(**words), timeout=120)


@fault("the disk under Redis full, and freed", why=WAITED)
def full_disk(kit: Any, lab: Any, folder: Path) -> None:
    data, aside = "/var/lib/celery-metal/redis", "/var/lib/celery-metal/aside"
    # A small file system for this fault alone: the lab's hosts share that of the machine.
    lab.run(
        NEAR,
        f"systemctl stop celery-redis && cp -a {data} {aside}"
        f" && mount -t tmpfs -o size=$(( $(du -sm {data} | cut -f1) + 20 ))m,mode=0755 tmpfs {data}"
        f" && cp -a {aside}/. {data}"
        " && systemctl start celery-redis",
    )
    assert not lab.succeeds(NEAR, f"dd if=/dev/zero of={data}/filler bs=64k"), "it never fills"
    lab.wait_for(
        lambda: "MISCONF" in kit.redis(NEAR, "set", "probe", "1"), 30, "Redis refuses to write"
    )
    time.sleep(10)  # this is the fault
    lab.run(NEAR, f"rm {data}/filler")
    lab.wait_for(lambda: kit.redis(NEAR, "set", "probe", "1") == "OK", 60, "Redis writes again")


def after_full_disk(lab: Any) -> None:
    """Bring Redis's data back to the host's own file system."""
    data, aside = "/var/lib/celery-metal/redis", "/var/lib/celery-metal/aside"
    lab.run(
        NEAR,
        "systemctl stop celery-redis"
        f" && rm -rf {aside} && cp -a {data} {aside} && umount {data}"
        f" && rm -rf {data} && mv {aside} {data} && systemctl start celery-redis",
    )
