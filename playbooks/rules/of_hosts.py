"""Rules about hosts: clocks, disks, memory, limits, backups, firewalls, and what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from findings import HIGH, LOW, MEDIUM, Given, Seen, Site, duration, megabytes, rule

MIB, GIB = 1 << 20, 1 << 30
#: Beyond what the run itself took.
SKEW_SECONDS = 5
FULL_PERCENT, FULL_BYTES, LOW_PERCENT, LOW_BYTES = 5, GIB, 10, 20 * GIB
NEAR_PERCENT, MEMORY_PERCENT = 80, 90
SWAP_BYTES = 16 * MIB
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "glusterfs", "fuse.sshfs")
VOLATILE = ("tmpfs", "ramfs")
#: After a start of the timer a backup may take so long.
LATE_SECONDS = 3600


@rule(
    "host-silent",
    HIGH,
    "a host gave no valid answer",
    risk="What runs there is not known. If it is down, others run its tasks after 90 s.",
    fix="look at the host and its SSH, then run playbooks/doctor.yml again",
)
def silent(site: Site) -> Iterator[Seen]:
    return (Seen(name, host.why) for name, host in site.hosts.items() if host.why)


@rule(
    "clock-skew",
    HIGH,
    "a clock is wrong",
    risk="Tasks run at another time than their eta says, expire too early or too late, and "
    "certificates may be refused.",
    fix="install chrony or systemd-timesyncd there, and let it set the clock",
)
def skew(site: Site) -> Iterator[Seen]:
    for name, host in site.known():
        raw = host.facts.raw.get("at")
        if not isinstance(raw, (int, float)) or isinstance(raw, bool) or not host.asked:
            continue
        # It was between the two that the host looked at its clock.
        off = min(raw - host.asked, 0) or max(raw - host.answered, 0)
        if abs(off) > SKEW_SECONDS:
            word = "ahead of" if off > 0 else "behind"
            yield Seen(name, f"its clock is at least {duration(abs(off))} {word} the controller's")


@rule(
    "clock-free",
    MEDIUM,
    "a clock is not synchronised",
    risk="It drifts: eta, expires and certificates depend on it.",
    fix="install chrony or systemd-timesyncd there; 'timedatectl' shows the state",
)
def free(site: Site) -> Iterator[Seen]:
    for name, host in site.known():
        if host.facts.truth("is_synchronised") is False:
            yield Seen(name, "the kernel's clock is unsynchronised (adjtimex)")


def _disks(site: Site, has: Callable[[Given], bool]) -> Iterator[Seen]:
    for name, host in site.known():
        for disk in host.facts.each("disks"):
            if has(disk):
                size, free = disk.number("size") or 0, disk.number("free") or 0
                kind = f", {disk.text('type')}" if disk.text("type") else ""
                yield Seen(
                    name,
                    f"{disk.text('mount')}{kind}: {megabytes(free)} of {megabytes(size)} free, "
                    f"{disk.number('inodes_free') or 0} of {disk.number('inodes') or 0} inodes; "
                    f"holds {', '.join(disk.texts('holds'))}",
                )


def _is_full(disk: Given) -> bool:
    size, free = disk.number("size"), disk.number("free")
    if not size or free is None:
        return False
    return free * 100 < size * FULL_PERCENT or free < FULL_BYTES < size


def _is_low(disk: Given) -> bool:
    size, free = disk.number("size"), disk.number("free")
    if not size or free is None or _is_full(disk):
        return False
    return free * 100 < size * LOW_PERCENT and free < LOW_BYTES


@rule(
    "disk-full",
    HIGH,
    "a disk is nearly full",
    risk="On a full disk Redis stops taking tasks, and no deploy, log or backup is written.",
    fix="free space there: 'podman image prune' and 'journalctl --vacuum-size=500M' remove what is "
    "not needed; or take a larger disk",
)
def full(site: Site) -> Iterator[Seen]:
    return _disks(site, _is_full)


@rule(
    "disk-low",
    MEDIUM,
    "a disk has little space left",
    risk="A rewrite of Redis's file, a backup or the build of an image may fill it.",
    fix="free space there: 'podman image prune' and 'journalctl --vacuum-size=500M' remove what is "
    "not needed; or take a larger disk",
)
def low(site: Site) -> Iterator[Seen]:
    return _disks(site, _is_low)


@rule(
    "disk-inodes",
    HIGH,
    "a file system has few inodes left",
    risk="Without one no file can be created, although there is space.",
    fix="remove small files there: 'podman image prune', or make the file system anew",
)
def inodes(site: Site) -> Iterator[Seen]:
    def has(disk: Given) -> bool:
        most, left = disk.number("inodes"), disk.number("inodes_free")
        return bool(most) and left is not None and left * 100 < (most or 0) * FULL_PERCENT

    return _disks(site, has)


@rule(
    "disk-network",
    MEDIUM,
    "Redis's data are on a network file system",
    risk="Each second Redis waits for the network to write; a lock that is lost ends it.",
    fix="mount a local disk at /var/lib/celery-metal/redis",
)
def network(site: Site) -> Iterator[Seen]:
    return _disks(site, lambda disk: disk.text("type") in NETWORK and _holds_redis(disk))


@rule(
    "disk-volatile",
    HIGH,
    "Redis's data are in memory alone",
    risk="A reboot loses each task that waits.",
    fix="mount a disk at /var/lib/celery-metal/redis in the place of the tmpfs",
)
def volatile(site: Site) -> Iterator[Seen]:
    return _disks(site, lambda disk: disk.text("type") in VOLATILE and _holds_redis(disk))


def _holds_redis(disk: Given) -> bool:
    return "Redis's data" in disk.texts("holds")


@rule(
    "disk-rewrite",
    MEDIUM,
    "Redis's disk has no room for a rewrite and a backup",
    risk="Redis's file then grows until the disk is full, and backups fail.",
    fix="free space on that disk, or mount a larger one at /var/lib/celery-metal/redis",
)
def rewrite(site: Site) -> Iterator[Seen]:
    for name, host in site.known():
        info = host.facts.inner("redis").inner("info")
        used = info.number("used_memory")
        for disk in host.facts.each("disks"):
            free = disk.number("free")
            # A rewrite writes the data once, a backup twice for a moment.
            if _holds_redis(disk) and used and free is not None and free < 3 * used:
                yield Seen(
                    name,
                    f"{disk.text('mount')}: {megabytes(free)} free, and Redis has {megabytes(used)}"
                    " of data, which a rewrite and a backup write three times",
                )


@rule(
    "memory-missing",
    MEDIUM,
    "other programs use memory that the plan takes",
    risk="When workers use all that they may, the kernel ends processes, or the host swaps.",
    fix="raise capacity_reserve_mb to what the others need, and run site.yml",
)
def missing(site: Site) -> Iterator[Seen]:
    for name, host in site.known():
        totals = host.facts.inner("plan").inner("totals")
        parts = [totals.number(f"{key}_mb") for key in ("workers", "redis", "beat", "sentinel")]
        planned = sum(one or 0 for one in parts) * MIB
        available = host.facts.inner("memory").number("available")
        used = sum(one.number("resident") or 0 for one in host.facts.each("units"))
        if available is not None and planned and available + used < planned:
            yield Seen(
                name,
                f"{megabytes(available)} available and at most {megabytes(used)} in use by "
                f"celery.slice; the plan takes {megabytes(planned)}",
            )


@rule(
    "memory-killed",
    HIGH,
    "the kernel ended a process of a worker for its memory",
    risk="Its task runs again, and after ten such ends becomes a dead letter.",
    fix="raise memory_per_process_mb of the queue, or lower its concurrency, and run site.yml",
)
def killed(site: Site) -> Iterator[Seen]:
    for name, unit in _units(site):
        if kills := unit.number("oom_kills"):
            yield Seen(name, f"{unit.text('unit')}: {kills} since its start (memory.events)")


@rule(
    "memory-near",
    MEDIUM,
    "a unit uses nearly all memory that it may",
    risk="A little more, and the kernel ends one of its processes.",
    fix="raise memory_per_process_mb of the queue, or capacity_redis_memory_mb for Redis, and run "
    "site.yml",
)
def near(site: Site) -> Iterator[Seen]:
    for name, unit in _units(site):
        used, most = unit.number("anonymous"), unit.number("memory_most")
        if used and most and used * 100 > most * MEMORY_PERCENT:
            yield Seen(name, f"{unit.text('unit')}: {megabytes(used)} of {megabytes(most)}")


@rule(
    "memory-process",
    MEDIUM,
    "pool processes need more memory than the plan has for one",
    risk="Celery replaces such a process after each task, and the unit may exceed its limit.",
    fix="raise memory_per_process_mb of the queue above what was measured, and run site.yml",
)
def process(site: Site) -> Iterator[Seen]:
    for name, host in site.known():
        queues = {one.text("unit"): one for one in host.facts.inner("plan").each("queues")}
        for unit in host.facts.each("units"):
            middle = unit.text("unit").removeprefix("celery-").rpartition("@")[0]
            queue = queues.get(middle, Given({}))
            planned = queue.number("memory_per_process_mb")
            is_prefork = queue.text("pool") == "prefork"
            peak = unit.number("child_peak" if is_prefork else "main_peak")
            if planned and peak and peak > planned * MIB:
                yield Seen(
                    name,
                    f"queue {queue.text('name')}, {unit.text('unit')}: one had {megabytes(peak)} "
                    f"(VmHWM), and memory_per_process_mb is {planned}",
                )


@rule(
    "swap-used",
    MEDIUM,
    "a service is partly in swap",
    risk="Redis stands still while it waits for the disk, and with it every queue.",
    fix="give the host more memory or raise capacity_reserve_mb; 'swapoff -a' where swap is not "
    "needed",
)
def swap(site: Site) -> Iterator[Seen]:
    for name, unit in _units(site):
        if (used := unit.number("swap") or 0) >= SWAP_BYTES:
            yield Seen(name, f"{unit.text('unit')}: {megabytes(used)} in swap (VmSwap)")


@rule(
    "limit-files",
    HIGH,
    "a process has nearly all files open that it may",
    risk="At the limit it accepts no connection and opens no file: Redis turns clients away.",
    fix="raise LimitNOFILE: for a queue by quadlet: {Service: {LimitNOFILE: 65536}}",
)
def files(site: Site) -> Iterator[Seen]:
    for name, unit in _units(site):
        used, most = unit.number("files"), unit.number("files_most")
        if used and most and used * 100 >= most * NEAR_PERCENT:
            yield Seen(name, f"{unit.text('unit')}: {used} of {most} in one process")


@rule(
    "limit-files-host",
    HIGH,
    "the host has nearly all files open that it may",
    risk="At the limit every program there fails to open files and connections.",
    fix="raise fs.file-max by a file in /etc/sysctl.d, or find out what opens so many",
)
def files_of_host(site: Site) -> Iterator[Seen]:
    for name, host in site.known():
        limits = host.facts.inner("limits")
        used, most = limits.number("files"), limits.number("files_most")
        if used and most and used * 100 >= most * NEAR_PERCENT:
            yield Seen(name, f"{used} of {most} (fs.file-nr)")


@rule(
    "limit-tasks",
    HIGH,
    "a unit has nearly as many processes and threads as it may",
    risk="At the limit a worker cannot replace a process, and tasks that start threads fail.",
    fix="raise TasksMax of the queue by quadlet: {Service: {TasksMax: 8192}}, or lower its "
    "concurrency",
)
def tasks(site: Site) -> Iterator[Seen]:
    for name, unit in _units(site):
        used, most = unit.number("tasks"), unit.number("tasks_most")
        if denied := unit.number("tasks_denied"):
            yield Seen(name, f"{unit.text('unit')}: {denied} were refused (pids.events)")
        elif used and most and used * 100 >= most * NEAR_PERCENT:
            yield Seen(name, f"{unit.text('unit')}: {used} of {most} (pids.current)")


@rule(
    "limit-overcommit",
    LOW,
    "the kernel may refuse Redis the memory for a save",
    risk="A backup or a rewrite of Redis's file fails while memory is short.",
    fix="run site.yml, which sets vm.overcommit_memory=1; for a system container set it on the "
    "machine that runs it",
)
def overcommit(site: Site) -> Iterator[Seen]:
    for name, host in site.known():
        value = host.state.inner("overcommit_memory").number("value")
        if name in site.redis and value is not None and value != 1:
            yield Seen(name, f"vm.overcommit_memory is {value}")


@rule(
    "limit-huge-pages",
    LOW,
    "Redis uses transparent huge pages",
    risk="A save copies 2 MB for each key that changes meanwhile, and Redis is slow for so long.",
    fix="remove disable-thp from redis_extra_config, and run site.yml",
)
def huge_pages(site: Site) -> Iterator[Seen]:
    for name, host in site.known():
        config = host.facts.inner("redis").inner("config")
        pages = host.facts.inner("limits").text("huge_pages")
        if pages == "always" and config.text("disable-thp") == "no":
            yield Seen(name, "disable-thp is no, and the kernel's setting is always")


@rule(
    "backup-timer",
    MEDIUM,
    "the timer of backups does not run",
    risk="There is no backup from now on.",
    fix="run site.yml, which starts it; 'systemctl status celery-redis-backup.timer' there",
)
def timer(site: Site) -> Iterator[Seen]:
    for name, backup in _backups(site):
        if (state := backup.text("timer")) and state != "active":
            yield Seen(name, f"celery-redis-backup.timer is {state}")


@rule(
    "backup-failed",
    HIGH,
    "the last backup failed",
    risk="What came after the newest backup is lost with the disk.",
    fix="'journalctl -u celery-redis-backup' there says why; 'systemctl start celery-redis-backup' "
    "makes one now",
)
def failed(site: Site) -> Iterator[Seen]:
    for name, backup in _backups(site):
        result = backup.text("result")
        if backup.text("state") == "failed" or result not in ("", "success"):
            newest = backup.number("newest")
            age = f"the newest is {duration(site.now - newest)} old" if newest else "there is none"
            yield Seen(name, f"celery-redis-backup.service: {result or 'failed'}; {age}")


@rule(
    "backup-old",
    MEDIUM,
    "there is no backup since the timer last ran",
    risk="What came after the newest backup is lost with the disk.",
    fix="'systemctl start celery-redis-backup' there makes one; its journal says why there is none",
)
def old(site: Site) -> Iterator[Seen]:
    for name, backup in _backups(site):
        ran, newest = backup.number("triggered") or 0, backup.number("newest") or 0
        is_at_work = backup.text("state") in ("activating", "failed")
        if ran and not is_at_work and newest < ran - LATE_SECONDS and site.now - ran > LATE_SECONDS:
            age = f"the newest is {duration(site.now - newest)} old" if newest else "there is none"
            yield Seen(name, f"the timer ran {duration(site.now - ran)} ago, and {age}")


@rule(
    "backup-unproven",
    MEDIUM,
    "a dump among the backups has never been loaded",
    risk="It may not come back. Backups are loaded once when they are made; this one was not.",
    fix="'python3 /usr/local/lib/celery-metal/redis_backup.py list' there shows those that were; "
    "remove the others from /var/lib/celery-metal/backups",
)
def unproven(site: Site) -> Iterator[Seen]:
    for name, backup in _backups(site):
        number = backup.number("unproven")
        if number and backup.text("state") != "activating":
            yield Seen(
                name, f"{number} without a note, beside {backup.number('count') or 0} proven"
            )


@rule(
    "firewall-rules",
    HIGH,
    "the rules of Redis's port are not in the kernel",
    risk="Every host that has a route reaches the port.",
    fix="'systemctl restart celery-firewall' there, then find what flushes rules: docs/firewall.md",
)
def firewall(site: Site) -> Iterator[Seen]:
    for name, host in site.known():
        # Null where Redis, there, has no rules of its own.
        if isinstance(host.state.raw.get("admitted"), list) and not host.state.text("firewall"):
            yield Seen(name, "no table inet celery_metal with the mark of the rules")


@rule(
    "firewall-off",
    MEDIUM,
    "Redis's port has no rules",
    risk="Every host that has a route reaches the port; passwords and certificates protect it.",
    fix="remove redis_firewall: false, and run site.yml; where another firewall admits the hosts, "
    "accept this finding: doctor_accept",
)
def off(site: Site) -> Iterator[Seen]:
    for name, redis in site.redises():
        config, state = redis.inner("config"), site.hosts[name].state
        port = config.number("tls-port") or config.number("port")
        has_none = "admitted" in state.raw and state.raw["admitted"] is None
        if name in site.redis and port and has_none:
            yield Seen(name, f"port {port}, bind {config.text('bind')}, and no rules for it")


@rule(
    "firewall-egress",
    MEDIUM,
    "the rules of the workers' network are not in the kernel",
    risk="Tasks reach addresses that they must not, or none at all.",
    fix="'systemctl restart celery-egress celery-network' there, then find what flushes rules: "
    "docs/egress.md",
)
def egress(site: Site) -> Iterator[Seen]:
    for name, host in site.known():
        if host.state.raw.get("egress") == "":
            yield Seen(name, "no table inet celery_egress")
        elif host.state.truth("podman_rules") is False:
            yield Seen(name, "no table inet celery_network: Podman's rules are gone")


@rule(
    "redis-plain",
    MEDIUM,
    "Redis listens on the network without TLS",
    risk="Passwords and arguments of tasks can be read on the wire.",
    fix="remove redis_tls: false, and run site.yml: docs/tls.md",
)
def plain(site: Site) -> Iterator[Seen]:
    for name, redis in site.redises():
        port = redis.inner("config").number("port")
        if name in site.redis and port:
            where = redis.inner("config").text("bind")
            yield Seen(name, f"port {port}, bind {where} (CONFIG GET)")


@rule(
    "deploy-unfinished",
    MEDIUM,
    "the last hooks of a deploy have not run",
    risk="What they do after the workers, such as a migration's second half, is not done.",
    fix="run site.yml again: docs/commands.md",
)
def unfinished(site: Site) -> Iterator[Seen]:
    for name, host in site.known():
        if image := host.state.text("hooks_left"):
            yield Seen(name, f"hooks of {image} are left")


def _differs(site: Site, key: str, of: Callable[[Site, str], str]) -> Iterator[Seen]:
    values = {name: of(site, name) for name, _ in site.known()}
    values = {name: value for name, value in values.items() if value}
    if len({*values.values()}) < 2:
        return
    usual, _ = Counter(values.values()).most_common(1)[0]
    for name, value in values.items():
        if value != usual:
            yield Seen(name, f"{key} {value}; most hosts have {usual}")


@rule(
    "hosts-kernel",
    LOW,
    "hosts run different kernels",
    risk="What is tried on one host may behave otherwise on another.",
    fix="bring all to one kernel, one host after the other: docs/operating.md",
)
def kernels(site: Site) -> Iterator[Seen]:
    return _differs(site, "kernel", lambda site, name: site.hosts[name].facts.text("kernel"))


@rule(
    "hosts-system",
    LOW,
    "hosts run different distributions",
    risk="Images are built on one and run on all; what differs shows on one host alone.",
    fix="install the same release on all, one host after the other",
)
def systems(site: Site) -> Iterator[Seen]:
    def of(site: Site, name: str) -> str:
        facts = site.hosts[name].facts
        return f"{facts.text('system')} {facts.text('architecture')}".strip()

    return _differs(site, "system", of)


@rule(
    "hosts-podman",
    LOW,
    "hosts run different versions of Podman",
    risk="Units are translated by each host's own Quadlet, and may come out otherwise.",
    fix="install the same version on all, one host after the other",
)
def podmans(site: Site) -> Iterator[Seen]:
    return _differs(site, "Podman", lambda site, name: site.hosts[name].state.text("podman"))


def _units(site: Site) -> Iterator[tuple[str, Given]]:
    for name, host in site.known():
        for unit in host.facts.each("units"):
            yield name, unit


def _backups(site: Site) -> Iterator[tuple[str, Given]]:
    for name, host in site.known():
        if backup := host.facts.inner("backup"):
            yield name, backup
