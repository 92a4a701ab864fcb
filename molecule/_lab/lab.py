#!/usr/bin/env python3
"""Throwaway Debian hosts for tests: systemd-nspawn on overlay clones of one cached base.

Needs root, Python 3.12 or later, and the system packages that tools/bootstrap.sh installs. Nothing
else: no virtual environment, so it also runs before there is one.

A lab is a bridge with a /24 of its own, and hosts that ansible reaches by SSH. All its state is in
/var/lib/celery-metal-lab/LAB; bases are cached in /var/cache/celery-metal-lab. A host's processes
live in a cgroup of its own, and its mounts in a mount namespace of its own: when the processes are
gone, so are the mounts.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import configparser
import contextlib
import dataclasses
import fcntl
import hashlib
import inspect
import ipaddress
import json
import os
import pathlib
import resource
import select
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

STATE = pathlib.Path("/var/lib/celery-metal-lab")
CACHE = pathlib.Path("/var/cache/celery-metal-lab")
CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
# Unix sockets have short paths only, so SSH's do not live under STATE.
SOCKETS = pathlib.Path("/run/celery-metal-lab")
LOCK = pathlib.Path("/run/lock/celery-metal-lab.lock")
LOCAL_CAS = pathlib.Path("/usr/local/share/ca-certificates")
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# What decides the content of the images that a stock holds.
STOCK_SOURCES = ("roles/image", "app/runtime", "app/sample")
STOCK_PLAYBOOK = CHECKOUT / "molecule" / "_lab" / "stock.yml"
STOCK_DAYS = 7
SUBNETS = ipaddress.ip_network("10.213.0.0/16")
# Of the sockets there: Ansible names its own by a hash, and shared() those of tests.
ANSIBLES = "[0-9a-f]*"
FIRST_HOST = 11
BOOT_SECONDS = 120
# What systemd-nspawn returns when the host inside has asked for a reboot.
NSPAWN_REBOOT = 133
CAP_SYS_RESOURCE = 24

SYSTEM_PACKAGES = (
    "systemd,systemd-sysv,dbus,udev,python3,python3-apt,openssh-server,sudo,ca-certificates,"
    "iproute2,nftables,procps,kmod"
)
PODMAN_PACKAGES = "podman,crun,netavark,aardvark-dns,passt"
ENABLED_UNITS = ("systemd-networkd.service", "ssh.service")
MASKED_UNITS = (
    # With these mounted, `podman run --userns=auto` fails: "cannot unmount /sys/kernel".
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    # They would hold dpkg's lock at a moment of their own choosing.
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
)

# Where the kernel still has memory limits of cgroup v1.
V1_MEMORY = pathlib.Path("/sys/fs/cgroup/memory")


class LabError(Exception):
    """Something the user can act on; its text is all that is printed."""


@dataclasses.dataclass(frozen=True)
class Platform:
    """One host as a scenario asks for it. `memory_mb` in MiB; None: what this machine has.

    An `offline` host reaches the lab's own network, and has no route out of it. A host starts with
    the images of the sample app if this checkout's are in stock; without `images` or Podman it has
    none.
    """

    name: str
    groups: tuple[str, ...] = ()
    cpus: int | None = None
    memory_mb: int | None = None
    release: str = "trixie"
    bare: bool = False
    offline: bool = False
    images: bool = True


@dataclasses.dataclass(frozen=True)
class Host:
    """A host of a lab: its platform, its number in the lab and its address."""

    lab: str
    index: int
    address: str
    platform: Platform

    @property
    def name(self) -> str:
        return self.platform.name

    @property
    def directory(self) -> pathlib.Path:
        return STATE / self.lab / "hosts" / self.name

    @property
    def machine(self) -> str:
        return machine_name(self.lab, self.index)


@dataclasses.dataclass(frozen=True)
class Lab:
    """A lab's name, its subnet ("10.213.0.0/24") and its hosts."""

    name: str
    subnet: str
    hosts: tuple[Host, ...]

    @property
    def directory(self) -> pathlib.Path:
        return STATE / self.name

    @property
    def gateway(self) -> str:
        return str(ipaddress.ip_network(self.subnet)[1])

    def host(self, name: str) -> Host:
        """Return the host called `name`; LabError if there is none."""
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise LabError(f"lab {self.name} has no host {name!r}, only: {known}")


# --- pure parts -----------------------------------------------------------------------------------


def short_id(lab: str) -> str:
    """Six hex digits for the lab: names of interfaces have no room for its name."""
    return hashlib.sha256(lab.encode()).hexdigest()[:6]


def bridge_name(lab: str) -> str:
    """Name of the lab's bridge; at most 15 characters, the kernel's limit."""
    return f"cm-{short_id(lab)}"


def table_name(lab: str) -> str:
    """Name of the lab's own nftables table."""
    return f"celery_metal_{short_id(lab)}"


def machine_name(lab: str, index: int) -> str:
    """Name of host number `index` for systemd-nspawn: unique on the machine."""
    return f"cm{short_id(lab)}-{index}"


def veth_name(lab: str, index: int) -> str:
    """Name that systemd-nspawn gives to this machine's end of the host's cable."""
    return f"vb-{machine_name(lab, index)}"


def choose_subnet(taken: list[str]) -> str:
    """Return the first /24 of 10.213.0.0/16 that overlaps none of `taken`; LabError if none is."""
    used = [ipaddress.ip_network(network, strict=False) for network in taken]
    for candidate in SUBNETS.subnets(new_prefix=24):
        if not any(candidate.overlaps(network) for network in used):
            return str(candidate)
    raise LabError(f"no free /24 network is left in {SUBNETS}")


def scale_meminfo(meminfo: str, memory_mb: int) -> str:
    """Return /proc/meminfo's text as a machine of `memory_mb` MiB would show it, in proportion."""
    total_kb = next(
        int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemTotal:")
    )
    lines = []
    for line in meminfo.splitlines():
        key, _, value = line.partition(":")
        # Address space and page sizes do not shrink with the memory.
        fixed = key.startswith(("Vmalloc", "DirectMap", "Hugepagesize"))
        if value.endswith("kB") and not fixed:
            scaled = int(value.split()[0]) * memory_mb * 1024 // total_kb
            lines.append(f"{key + ':':<16}{scaled:>8} kB")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def full_name(name: str, checkout: pathlib.Path = CHECKOUT) -> str:
    """Return the lab's full name: `@default` is the lab `default` of this checkout alone."""
    if not name.startswith("@"):
        return name
    return f"{hashlib.sha256(str(checkout).encode()).hexdigest()[:8]}-{name[1:]}"


def parse_platforms(data: Any) -> tuple[Platform, ...]:
    """Turn decoded JSON (a list of mappings) into platforms; LabError names what is wrong."""
    if not isinstance(data, list) or not data:
        raise LabError("platforms must be a list with at least one host")
    known = {field.name for field in dataclasses.fields(Platform)}
    platforms = []
    for item in data:
        unknown = sorted(set(item) - known)
        if unknown or not item.get("name"):
            problem = f"unknown key {unknown[0]!r}" if unknown else "no name"
            raise LabError(f"platform {item}: {problem}; keys are: {', '.join(sorted(known))}")
        platforms.append(Platform(**{**item, "groups": tuple(item.get("groups", ()))}))
    names = [platform.name for platform in platforms]
    if len(set(names)) != len(names):
        raise LabError(f"two platforms have the same name: {', '.join(sorted(names))}")
    return tuple(platforms)


def place(lab: str, subnet: str, present: tuple[Host, ...], wanted: tuple[Platform, ...]) -> Lab:
    """Give every new platform a number and an address; hosts already there keep theirs."""
    hosts = {host.name: host for host in present}
    for platform in wanted:
        old = hosts.get(platform.name)
        if old and old.platform != platform:
            raise LabError(f"host {platform.name} is there, but different: take the lab down first")
        if not old:
            index = max((host.index for host in hosts.values()), default=0) + 1
            address = str(ipaddress.ip_network(subnet)[FIRST_HOST + index - 1])
            hosts[platform.name] = Host(lab, index, address, platform)
    return Lab(lab, subnet, tuple(hosts.values()))


def ssh_options(lab: Lab) -> list[str]:
    """SSH options that reach this lab's hosts, and believe no other."""
    return [
        "-o", f"UserKnownHostsFile={lab.directory}/known_hosts",
        "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", "StrictHostKeyChecking=yes",
        "-o", "IdentitiesOnly=yes",
        "-o", "BatchMode=yes",
        "-o", "ServerAliveInterval=15",
    ]  # fmt: skip


def host_vars(lab: Lab, host: Host) -> dict[str, str]:
    """Return what ansible needs to know to reach `host`."""
    return {
        "ansible_host": host.address,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": f"{lab.directory}/key",
        "ansible_ssh_common_args": " ".join(ssh_options(lab)),
        # A later lab may get the same addresses: it must not find the connections of this one.
        "ansible_control_path_dir": str(SOCKETS / short_id(lab.name)),
        "ansible_python_interpreter": "/usr/bin/python3",
    }


def groups_of(lab: Lab) -> dict[str, list[str]]:
    """Return the names of the hosts by group, both in the platforms' order."""
    groups: dict[str, list[str]] = {}
    for host in lab.hosts:
        for group in host.platform.groups:
            groups.setdefault(group, []).append(host.name)
    return groups


def render_inventory(lab: Lab) -> str:
    """Return the lab as an inventory file. JSON is valid YAML, and needs no library."""
    children: dict[str, Any] = {
        group: {"hosts": {name: {} for name in names}} for group, names in groups_of(lab).items()
    }
    hosts = {host.name: host_vars(lab, host) for host in lab.hosts}
    return json.dumps({"all": {"hosts": hosts, "children": children}}, indent=2) + "\n"


def render_dynamic(lab: Lab) -> str:
    """Return the lab as ansible's protocol for inventory scripts wants it from `--list`."""
    groups: dict[str, Any] = {group: {"hosts": names} for group, names in groups_of(lab).items()}
    groups["all"] = {"hosts": [host.name for host in lab.hosts]}
    groups["_meta"] = {"hostvars": {host.name: host_vars(lab, host) for host in lab.hosts}}
    return json.dumps(groups, indent=2) + "\n"


# --- the machine ----------------------------------------------------------------------------------


def run(*command: str | pathlib.Path, stdin: str | None = None) -> str:
    """Run a command and return its output; LabError with all it said if it fails.

    Without this Python's own settings: what mmdebstrap starts in a new system would have them too,
    and PYTHONPYCACHEPREFIX would lay the system's bytecode where its own Python does not look.
    """
    done = subprocess.run(
        [str(part) for part in command],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        text = (done.stdout + done.stderr).strip()
        raise LabError(f"{' '.join(map(str, command))}: status {done.returncode}\n{text}")
    return done.stdout


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; it ends with the process at the latest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return when `condition()` is true; LabError naming `what` when it is not in `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


def systemd_is_init() -> bool:
    """Tell whether this machine itself is run by systemd."""
    return pathlib.Path("/run/systemd/system").is_dir()


def cgroup_root() -> pathlib.Path:
    """Where the cgroup v2 tree is mounted, in a hybrid tree too; LabError if it is not."""
    for line in pathlib.Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return pathlib.Path(where)
    raise LabError("no cgroup v2 tree is mounted on this machine")


def has_controllers() -> bool:
    """Tell whether hosts get cgroup controllers: only where systemd can delegate them."""
    return systemd_is_init() and "memory" in (cgroup_root() / "cgroup.controllers").read_text()


def has_capability(number: int) -> bool:
    """Tell whether this process has the capability with this number."""
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    mask = next(line.split()[1] for line in status if line.startswith("CapEff:"))
    return bool(int(mask, 16) >> number & 1)


def host_cgroup(host: Host) -> pathlib.Path:
    """Return the cgroup that holds all processes of the host, its supervisor included."""
    if systemd_is_init():
        return cgroup_root() / "system.slice" / f"{host.machine}.service"
    return cgroup_root() / host.machine


def is_populated(cgroup: pathlib.Path) -> bool:
    """Tell whether any process lives in the cgroup or below it."""
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text()
    except (FileNotFoundError, OSError):
        return False


def is_up(host: Host) -> bool:
    """Tell whether the host has processes. A crashed kernel cannot happen: it has none."""
    return is_populated(host_cgroup(host))


def seen_from_here(host: Host, path: str) -> pathlib.Path:
    """Return the path by which this machine reaches a file of a running host, mounts included."""
    scope = host_cgroup(host) / "payload" / "init.scope" / "cgroup.procs"
    try:
        first = scope.read_text().split()[0]
    except (OSError, IndexError):
        raise LabError(f"host {host.name} does not run") from None
    return pathlib.Path("/proc", first, "root", path.lstrip("/"))


def kill_cgroup(cgroup: pathlib.Path) -> None:
    """SIGKILL every process of the cgroup at once, wait for their end, and remove the cgroup."""
    if not cgroup.is_dir():
        return
    with contextlib.suppress(FileNotFoundError):  # systemd may be faster at removing its own
        with (cgroup / "cgroup.events").open() as events:
            poller = select.poll()
            poller.register(events, select.POLLPRI)
            (cgroup / "cgroup.kill").write_text("1")
            while is_populated(cgroup):
                poller.poll(100)
        for directory, _, _ in os.walk(cgroup, topdown=False):
            os.rmdir(directory)


def default_route() -> tuple[str, int]:
    """Return this machine's outgoing interface and its MTU in bytes; LabError without one."""
    routes = json.loads(run("ip", "-j", "-4", "route", "show", "default"))
    if not routes:
        raise LabError("this machine has no default route: hosts could not install packages")
    device = routes[0]["dev"]
    return device, int(pathlib.Path(f"/sys/class/net/{device}/mtu").read_text())


def networks_in_use() -> list[str]:
    """Return every IPv4 network this machine has an address in, a route to, or a lab on."""
    networks = [
        f"{address['local']}/{address['prefixlen']}"
        for link in json.loads(run("ip", "-j", "-4", "address"))
        for address in link.get("addr_info", [])
    ]
    routes = json.loads(run("ip", "-j", "-4", "route"))
    networks += [route["dst"] for route in routes if route["dst"] != "default"]
    networks += [lab.subnet for lab in all_labs()]
    return networks


def nameservers() -> list[str]:
    """Return the name servers that hosts can use as well; LabError if there are none."""
    # A loopback address is systemd-resolved's own; the servers it asks are in its second file.
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        if not os.path.exists(path):
            continue
        words = [line.split() for line in pathlib.Path(path).read_text().splitlines()]
        servers = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
        servers = [server for server in servers if not server.startswith(("127.", "::1"))]
        if servers:
            return servers
    raise LabError("/etc/resolv.conf names no server but loopback: hosts could not look up names")


def remove_tree(directory: pathlib.Path) -> None:
    """Remove a directory if it is there, but nothing that is mounted in it."""
    run("rm", "--recursive", "--force", "--one-file-system", directory)


def delete_link(name: str) -> None:
    """Delete a network interface if it is there."""
    path = pathlib.Path("/sys/class/net") / name
    if path.exists():
        try:
            run("ip", "link", "delete", name)
        except LabError:
            # The kernel deletes a dead host's cable by itself, maybe just now.
            if path.exists():
                raise


# --- the base -------------------------------------------------------------------------------------


def debian_mirror() -> str:
    """Return the Debian archive this machine's own apt uses; LabError if it uses none."""
    form = "$(ORIGIN) $(LABEL) $(SITE)"
    targets = run("apt-get", "indextargets", "--format", form, "Created-By: Packages")
    for line in targets.splitlines():
        if line.startswith("Debian Debian "):
            return line.split()[2]
    # Without downloaded lists apt knows neither origin nor label.
    sites = run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages").split()
    for site in sites:
        if site.rstrip("/").endswith("/debian"):
            return site
    raise LabError("this machine's apt uses no Debian archive (apt-get indextargets)")


def local_cas() -> list[pathlib.Path]:
    """Return this machine's own certificate authorities: a proxy's, for example."""
    return sorted(LOCAL_CAS.rglob("*.crt"))


def pip_config() -> str:
    """Return what hosts need as /etc/pip.conf: this machine's index and trust; often nothing."""
    lines = []
    parser = configparser.ConfigParser(interpolation=None)
    parser.read("/etc/pip.conf")
    index = parser.get("global", "index-url", fallback="")
    if index.startswith("http"):
        lines.append(f"index-url = {index}")
    if local_cas():
        lines.append(f"cert = {CA_BUNDLE}")
    return "\n".join(["[global]", *lines, ""]) if lines else ""


def build_base(release: str, bare: bool) -> pathlib.Path:
    """Return the directory of the base, building it if there is none for this recipe yet."""
    mirror = debian_mirror()
    packages = SYSTEM_PACKAGES if bare else f"{SYSTEM_PACKAGES},{PODMAN_PACKAGES}"
    recipe = [release, mirror, packages, ENABLED_UNITS, MASKED_UNITS, pip_config()]
    recipe += [path.read_text() for path in local_cas()]
    recipe.append(inspect.getsource(make_base))
    name = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
    base = CACHE / name
    with locked(CACHE / f"{name}.lock"):
        if not base.is_dir():
            kind = "without podman" if bare else "with podman"
            say(f"building the base system, {release} {kind}: about 20 s, once on this machine")
            started = time.monotonic()
            # Renamed when complete; what a killed build has left is in the way of nobody else.
            scratch = CACHE / f".{name}"
            remove_tree(scratch)
            make_base(scratch, release, mirror, packages)
            scratch.rename(base)
            say(f"base system {name} is ready after {time.monotonic() - started:.0f} s")
    return base


def make_base(root: pathlib.Path, release: str, mirror: str, packages: str) -> None:
    """Install and set up a base system in the directory `root`, its Python compiled."""
    run(
        # Killed, mmdebstrap leaves its mounts of /proc, /sys and /dev: let them end with it.
        "unshare", "--mount", "--propagation=private",
        "mmdebstrap", "--mode=root", "--variant=minbase", f"--include={packages}",
        f"--keyring={KEYRING}", '--aptopt=Acquire::Languages "none"',
        release, root, f"deb {mirror} {release} main",
    )  # fmt: skip
    for path in local_cas():
        shutil.copy(path, root / "usr/local/share/ca-certificates")
    run("chroot", root, "update-ca-certificates")
    if pip_config():
        (root / "etc/pip.conf").write_text(pip_config())
    run("systemctl", f"--root={root}", "enable", *ENABLED_UNITS)
    run("systemctl", f"--root={root}", "mask", *MASKED_UNITS)
    # As Debian's installer does; PAM warns without it.
    (root / "etc/default/locale").write_text("LANG=C.UTF-8\n")
    # Tests read the journal of before a reboot, too.
    (root / "var/log/journal").mkdir(exist_ok=True)
    for path in (root / "etc/ssh").glob("ssh_host_*"):
        path.unlink()
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "var/lib/containers").mkdir(exist_ok=True)


# --- images ---------------------------------------------------------------------------------------


def sources_digest(checkout: pathlib.Path = CHECKOUT) -> str:
    """Return twelve hex digits for the content of all files that images are made of."""
    digest = hashlib.sha256()
    for top in STOCK_SOURCES:
        for path in sorted((checkout / top).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and "tests" not in path.parts:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(checkout)} {content}\n".encode())
    return digest.hexdigest()[:12]


def stock_of(base: pathlib.Path) -> pathlib.Path:
    """Return where the containers' directory with this checkout's images is, if it is there.

    The stock saves time and decides nothing: a host that has another image, or none, gets what it
    lacks from the roles.
    """
    return CACHE / f"stock-{base.name}-{sources_digest()}"


def build_stock() -> pathlib.Path:
    """Return the stock, made on a host that is shut down cleanly, if there is none yet."""
    base = build_base("trixie", bare=False)
    stock = stock_of(base)
    with locked(CACHE / f"{stock.name}.lock"):
        if not stock.is_dir():
            say("building the images of the sample app, once for all hosts: about 40 s")
            started = time.monotonic()
            name = full_name("@stock")
            down(name)
            up(name, (Platform("metal", ("redis", "celery"), images=False),))
            lab = load_or_fail(name)
            playbook = pathlib.Path(sys.executable).with_name("ansible-playbook")
            environment = {**os.environ, "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg")}
            done = subprocess.run(
                [playbook, "-i", lab.directory / "hosts.yml", STOCK_PLAYBOOK],
                cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise LabError(f"the images could not be built\n{done.stdout}{done.stderr}")
            power_off(lab, lab.hosts[0])
            copy_tree(lab.hosts[0].directory / "containers", stock)
            down(name)
            forget_stocks(keep=stock)
            say(f"the images are in stock after {time.monotonic() - started:.0f} s")
    return stock


def forget_stocks(keep: pathlib.Path) -> None:
    """Remove stocks that no new host has been made from for STOCK_DAYS."""
    for path in CACHE.glob("stock-*-*"):
        aged = time.time() - path.stat().st_mtime > STOCK_DAYS * 86400
        if aged and path.is_dir() and path != keep:
            remove_tree(path)


def copy_tree(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a directory with owners, modes and attributes; `target` is whole or not there."""
    scratch = target.with_name(f".{target.name}")
    remove_tree(scratch)
    run("cp", "--archive", "--reflink=auto", source, scratch)
    scratch.rename(target)


# --- hosts ----------------------------------------------------------------------------------------


def write(root: pathlib.Path, path: str, text: str, mode: int = 0o644) -> None:
    """Write a file of the host below `root`, with its directories."""
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    target.chmod(mode)


def create_host(lab: Lab, host: Host) -> None:
    """Create the host's directories and the files in which it differs from its base."""
    base = build_base(host.platform.release, host.platform.bare)
    # All is prepared beside and then renamed: a directory that is there is complete.
    scratch = host.directory.with_name(f".{host.name}")
    remove_tree(scratch)
    for part in ("upper", "work", "root"):
        (scratch / part).mkdir(parents=True)
    stock = stock_of(base)
    if host.platform.images and not host.platform.bare and stock.is_dir():
        copy_tree(stock, scratch / "containers")
        os.utime(stock)
    else:
        (scratch / "containers").mkdir()
    (scratch / "base").write_text(str(base))
    upper = scratch / "upper"
    _, mtu = default_route()
    gateway = "" if host.platform.offline else f"Gateway={lab.gateway}\n"
    write(upper, "/etc/machine-id", uuid.uuid4().hex + "\n", 0o444)
    write(upper, "/etc/hostname", host.name + "\n")
    write(upper, "/etc/resolv.conf", "".join(f"nameserver {it}\n" for it in nameservers()))
    write(
        upper,
        "/etc/systemd/network/10-lab.network",
        f"[Match]\nName=host0\n[Link]\nMTUBytes={mtu}\n"
        f"[Network]\nAddress={host.address}/24\n{gateway}LinkLocalAddressing=no\n",
    )
    write(upper, "/root/.ssh/authorized_keys", (lab.directory / "key.pub").read_text(), 0o600)
    for suffix, mode in ((".pub", 0o644), ("", 0o600)):
        key = (lab.directory / f"host_key{suffix}").read_text()
        write(upper, f"/etc/ssh/ssh_host_ed25519_key{suffix}", key, mode)
    (upper / "root").chmod(0o700)
    (upper / "root/.ssh").chmod(0o700)
    if host.platform.memory_mb:
        fake_memory(upper, host.platform.memory_mb)
    write(upper, "/etc/containers/containers.conf.d/lab.conf", containers_conf())
    scratch.rename(host.directory)


def containers_conf() -> str:
    """Return what podman must be told where this machine itself is limited; often only a title."""
    lines = ["[containers]"]
    if not has_controllers():
        # Podman's default asks the pids controller, which hosts do not have here.
        lines.append("pids_limit = 0")
    if not has_capability(CAP_SYS_RESOURCE):
        # `podman build` raises both to values of its own, which nobody may do here.
        for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
            hard = resource.getrlimit(kind)[1]
            lines.append(f'"{name}={hard}:{hard}",')
        lines[-2:] = ["default_ulimits = [", *lines[-2:], "]"]
    return "\n".join([*lines, ""])


def fake_memory(upper: pathlib.Path, memory_mb: int) -> None:
    """Make the host show another amount of memory, in MiB: facts are read from /proc/meminfo."""
    meminfo = pathlib.Path("/proc/meminfo").read_text()
    write(upper, "/etc/lab-meminfo", scale_meminfo(meminfo, memory_mb))
    write(
        upper,
        "/etc/systemd/system/lab-meminfo.service",
        "[Unit]\nDescription=Another amount of memory for tests\nDefaultDependencies=no\n"
        "Before=sysinit.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        "ExecStart=mount --bind /etc/lab-meminfo /proc/meminfo\n",
    )
    wants = upper / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(parents=True)
    (wants / "lab-meminfo.service").symlink_to("../lab-meminfo.service")


def boot_host(host: Host) -> None:
    """Start the supervisor of a host that is down, and return once it is in its cgroup."""
    # What a dead host has left: cgroups, which a crash of the machine's own tools can leave too.
    kill_cgroup(host_cgroup(host))
    command = [sys.executable, os.path.abspath(__file__), "supervise", host.lab, host.name]
    with (host.directory / "console.log").open("ab") as console:
        if systemd_is_init():
            # Not tried on the project's own build machines, which have no systemd as PID 1:
            # delegation is what makes limits such as MemoryMax= bind inside the host.
            run(
                "systemd-run", "--collect", f"--unit={host.machine}", "--slice=system.slice",
                "--property=Delegate=yes", "--property=DelegateSubgroup=supervisor",
                "--property=TasksMax=infinity",
                f"--property=StandardOutput=append:{host.directory}/console.log",
                f"--property=StandardError=append:{host.directory}/console.log",
                *command,
            )  # fmt: skip
        else:
            host_cgroup(host).mkdir()
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                cwd="/",
            )
    wait_until(lambda: is_up(host), 10, f"supervisor of {host.name}")


def supervise(host: Host) -> int:
    """Run the host until it is powered off; a reboot inside starts it again. The exit status."""
    if not systemd_is_init():
        (host_cgroup(host) / "cgroup.procs").write_text(str(os.getpid()))
    directory = host.directory
    # Mounts in a namespace of its own end with the host, however it ends.
    os.unshare(os.CLONE_NEWNS)
    run("mount", "--make-rprivate", "/")
    base = (directory / "base").read_text()
    layers = f"lowerdir={base},upperdir={directory}/upper,workdir={directory}/work"
    run("mount", "-t", "overlay", "overlay", "-o", layers, directory / "root")
    status = NSPAWN_REBOOT
    while status == NSPAWN_REBOOT:
        # The kernel may not have deleted the cable of the last boot yet.
        delete_link(veth_name(host.lab, host.index))
        status = subprocess.run(nspawn_command(host), check=False).returncode
    return status


def nspawn_command(host: Host) -> list[str]:
    """Return the command that boots the host, in the foreground."""
    command = [
        "systemd-nspawn", "--quiet", "--boot", f"--directory={host.directory}/root",
        f"--machine={host.machine}", f"--hostname={host.name}", "--register=no", "--keep-unit",
        # crun needs both to start containers.
        "--system-call-filter=@keyring", "--system-call-filter=bpf",
        "--private-users=no", "--console=pipe", "--link-journal=no", "--resolv-conf=off",
        f"--network-bridge={bridge_name(host.lab)}",
        # Podman's own overlays cannot lie on the host's overlay.
        f"--bind={host.directory}/containers:/var/lib/containers",
    ]  # fmt: skip
    pinned = pinned_cpus(host, sorted(os.sched_getaffinity(0)))
    affinity = ["taskset", "--cpu-list", ",".join(map(str, pinned))] if pinned else []
    return ["env", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1", *affinity, *command]


def pinned_cpus(host: Host, available: list[int]) -> list[int]:
    """Return the CPUs the host may use, other ones for its neighbour; none: all of them."""
    count = host.platform.cpus
    if not count:
        return []
    if count > len(available):
        raise LabError(f"{host.name} wants {count} CPUs, this machine has {len(available)}")
    return sorted(available[(host.index - 1 + turn) % len(available)] for turn in range(count))


def ssh(lab: Lab, host: Host, *extra: str) -> list[str]:
    """Return the ssh command line for the host, up to where the remote command follows."""
    options = [*ssh_options(lab), "-o", "LogLevel=ERROR", "-i", f"{lab.directory}/key", *extra]
    return ["ssh", *options, f"root@{host.address}"]


def shared(lab: Lab) -> list[str]:
    """Return SSH options for many short commands: one connection to each host, kept for a while."""
    path = SOCKETS / short_id(lab.name) / "tests-%n"
    return ["-o", "ControlMaster=auto", "-o", "ControlPersist=60", "-o", f"ControlPath={path}"]


def ssh_answers(host: Host) -> bool:
    """Tell whether an SSH server greets at the host's address; LabError if the host has died."""
    if not is_up(host):
        log = (host.directory / "console.log").read_text(errors="replace")
        raise LabError(f"host {host.name} has died while booting:\n{log[-2000:]}")
    try:
        with socket.create_connection((host.address, 22), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def wait_booted(lab: Lab, host: Host, other_than: str = "") -> None:
    """Return when the host has finished booting (with a boot ID `other_than`); else LabError."""
    deadline = time.monotonic() + BOOT_SECONDS

    def booted() -> bool:
        command = "cat /proc/sys/kernel/random/boot_id; systemctl is-system-running --wait"
        answer = subprocess.run(
            [*ssh(lab, host, "-o", "ConnectTimeout=5"), command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=max(1.0, deadline - time.monotonic()),
            check=False,
        )
        words = answer.stdout.split()
        return len(words) == 2 and words[0] != other_than and words[1] in ("running", "degraded")

    wait_until(lambda: ssh_answers(host), BOOT_SECONDS, f"SSH of {host.name}")
    try:
        wait_until(booted, BOOT_SECONDS, f"end of the boot of {host.name}")
    except subprocess.TimeoutExpired:
        raise LabError(f"end of the boot of {host.name}: not within {BOOT_SECONDS} s") from None


def in_parallel(action: Callable[[Host], object], hosts: tuple[Host, ...]) -> None:
    """Call `action` for all hosts at once, and raise the first error when all have ended."""
    if hosts:
        with concurrent.futures.ThreadPoolExecutor(len(hosts)) as pool:
            list(pool.map(action, hosts))


# --- labs -----------------------------------------------------------------------------------------


def load(name: str) -> Lab | None:
    """Return the lab called `name`, or None."""
    path = STATE / name / "lab.json"
    if not path.exists():
        return None
    data = json.loads(path.read_text())
    hosts = tuple(
        Host(name, item["index"], item["address"], parse_platforms([item["platform"]])[0])
        for item in data["hosts"]
    )
    return Lab(name, data["subnet"], hosts)


def load_or_fail(name: str) -> Lab:
    """Return the lab called `name`; LabError if there is none."""
    lab = load(name)
    if not lab:
        raise LabError(f"there is no lab {name!r}: lab.py list")
    return lab


def all_labs() -> list[Lab]:
    """Return all labs of this machine, also those of other checkouts."""
    found = (load(path.parent.name) for path in sorted(STATE.glob("*/lab.json")))
    return [lab for lab in found if lab]


def save(lab: Lab) -> None:
    """Write the lab's own record, its inventory, and whom to believe."""
    lab.directory.mkdir(parents=True, exist_ok=True)
    for key in ("key", "host_key"):
        if not (lab.directory / f"{key}.pub").exists():
            path = lab.directory / key
            path.unlink(missing_ok=True)
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"lab {lab.name}", "-f", path)
    (lab.directory / "hosts").mkdir(exist_ok=True)
    host_key = (lab.directory / "host_key.pub").read_text()
    known = "".join(f"{host.address} {host_key}" for host in lab.hosts)
    replace(lab.directory / "known_hosts", known)
    replace(lab.directory / "hosts.yml", render_inventory(lab))
    replace(lab.directory / "lab.json", json.dumps(dataclasses.asdict(lab), indent=2) + "\n")


def replace(path: pathlib.Path, text: str) -> None:
    """Write a file so that readers see the old or the new one, never half of it."""
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(text)
    scratch.rename(path)


def connect(lab: Lab) -> None:
    """Create the lab's bridge and its masquerading; what is there is left as it is."""
    bridge = bridge_name(lab.name)
    if not pathlib.Path("/sys/class/net", bridge).exists():
        _, mtu = default_route()
        run("ip", "link", "add", bridge, "mtu", str(mtu), "type", "bridge")
        run("ip", "address", "add", f"{lab.gateway}/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
    forwarding = pathlib.Path("/proc/sys/net/ipv4/ip_forward")
    remembered = STATE / ".ip_forward"
    if not remembered.exists():
        remembered.write_text(forwarding.read_text())
    forwarding.write_text("1\n")
    table = table_name(lab.name)
    rules = (
        f"table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n"
        "chain postrouting { type nat hook postrouting priority srcnat;\n"
        f'ip saddr {lab.subnet} oifname != "{bridge}" masquerade\n}}\n}}\n'
    )
    run("nft", "-f", "-", stdin=rules)


def write_hosts_file(lab: Lab) -> None:
    """Let all hosts of the lab know one another by name, also those added later."""
    names = "".join(f"{host.address} {host.name}\n" for host in lab.hosts)
    for host in lab.hosts:
        if not is_up(host):
            write(host.directory / "upper", "/etc/hosts", f"127.0.0.1 localhost\n{names}")


def up(name: str, platforms: tuple[Platform, ...], inventory: pathlib.Path | None = None) -> None:
    """Create and boot the lab's missing hosts; return when all of `platforms` have booted."""
    for release, bare in sorted({(it.release, it.bare) for it in platforms}):
        build_base(release, bare)  # outside the lock: other labs need not wait for it
    with locked(LOCK):
        present = load(name)
        subnet = present.subnet if present else choose_subnet(networks_in_use())
        lab = place(name, subnet, present.hosts if present else (), platforms)
        wanted = tuple(lab.host(platform.name) for platform in platforms)
        save(lab)
        connect(lab)
        (SOCKETS / short_id(name)).mkdir(parents=True, exist_ok=True, mode=0o700)
        for host in wanted:
            if not host.directory.exists():
                create_host(lab, host)
        write_hosts_file(lab)
        down_ones = tuple(host for host in wanted if not is_up(host))
        in_parallel(boot_host, down_ones)
    in_parallel(lambda host: wait_booted(lab, host), wanted)
    if inventory:
        inventory.parent.mkdir(parents=True, exist_ok=True)
        replace(inventory, render_inventory(lab))


def down(name: str, journals: pathlib.Path | None = None) -> None:
    """Remove everything of the lab, also of half a lab or of one whose hosts have died.

    Warnings of its journals are kept in the directory `journals`, one HOST.log each, beside the CPU
    seconds of each host.
    """
    with locked(LOCK):
        lab = load(name)
        hosts = lab.hosts if lab else ()
        close_connections(name)
        shutil.rmtree(SOCKETS / short_id(name), ignore_errors=True)
        if journals and hosts:
            keep_cpu_seconds(hosts, journals)
        in_parallel(lambda host: kill_cgroup(host_cgroup(host)), hosts)
        if journals:
            in_parallel(lambda host: keep_journal(host, journals), hosts)
        for host in hosts:
            delete_link(veth_name(name, host.index))
        delete_link(bridge_name(name))
        table = table_name(name)
        run("nft", "-f", "-", stdin=f"table ip {table}\ndelete table ip {table}\n")
        remove_tree(STATE / name)
        if not all_labs():
            forget_machine()


def cpu_seconds(host: Host) -> float:
    """Return the CPU time of the host's processes since its last boot; 0 for one that is down."""
    path = host_cgroup(host) / "cpu.stat"
    words = path.read_text().split() if path.exists() else []
    return int(words[words.index("usage_usec") + 1]) / 1e6 if words else 0.0


def keep_cpu_seconds(hosts: tuple[Host, ...], directory: pathlib.Path) -> None:
    """Write the CPU seconds of each host to the file cpu.json of a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({host.name: round(cpu_seconds(host), 1) for host in hosts})
    (directory / "cpu.json").write_text(text + "\n")


def keep_journal(host: Host, directory: pathlib.Path) -> None:
    """Write the host's last 200 warnings and errors to a file, also when it has died."""
    journal = host.directory / "upper/var/log/journal"
    if journal.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        words = ("--priority=warning", "--lines=200", "--no-pager", "--quiet")
        text = run("journalctl", f"--directory={journal}", *words)
        (directory / f"{host.name}.log").write_text(text)


def forget_machine() -> None:
    """With the last lab gone, leave the machine as it was found."""
    remembered = STATE / ".ip_forward"
    if remembered.exists():
        pathlib.Path("/proc/sys/net/ipv4/ip_forward").write_text(remembered.read_text())
        remembered.unlink()
    for directory in (STATE, SOCKETS):
        # Not empty: a lab of which only half is there, and which is not ours to remove.
        with contextlib.suppress(OSError):
            directory.rmdir()


def close_connections(name: str, order: str = "exit", pattern: str = "*") -> None:
    """End the SSH connections that are kept open to this lab's hosts.

    With the order "stop" those in use stay, and a new command makes a new one. ANSIBLES is the
    pattern of those that Ansible keeps.
    """
    for path in (SOCKETS / short_id(name)).glob(pattern):
        if path.is_socket():
            # A master that has gone by itself is as good as one told to go.
            subprocess.run(
                ["ssh", "-o", f"ControlPath={path}", "-O", order, "lab"],
                capture_output=True,
                check=False,
            )


def reboot(lab: Lab, host: Host) -> None:
    """Reboot the host from inside and return when it has booted again."""
    before = run(*ssh(lab, host), "cat /proc/sys/kernel/random/boot_id").strip()
    # The connection may break before the command has returned.
    subprocess.run([*ssh(lab, host), "systemctl reboot"], stdin=subprocess.DEVNULL, check=False)
    close_connections(lab.name, "stop")
    wait_booted(lab, host, other_than=before)


def power_off(lab: Lab, host: Host) -> None:
    """Shut the host down cleanly, and return when it has no process any more."""
    close_connections(lab.name, "stop")
    subprocess.run([*ssh(lab, host), "systemctl poweroff"], stdin=subprocess.DEVNULL, check=False)
    wait_until(lambda: not is_up(host), BOOT_SECONDS, f"end of {host.name}")


def start(lab: Lab, host: Host) -> None:
    """Boot a host that is down, and return when it has booted."""
    with locked(LOCK):
        if not is_up(host):
            boot_host(host)
    wait_booted(lab, host)


def kill(host: Host) -> None:
    """Cut the power: all of the host's processes end at once, without a word."""
    close_connections(host.lab, "stop")
    kill_cgroup(host_cgroup(host))


def move_processes(source: pathlib.Path, target: pathlib.Path) -> bool:
    """Move all processes of one cgroup into another; tell whether there were any."""
    pids = (source / "cgroup.procs").read_text().split()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            (target / "cgroup.procs").write_text(pid)
    return bool(pids)


@contextlib.contextmanager
def limited_memory(host: Host, unit: str, mb: int) -> Iterator[None]:
    """Hold what now runs in a unit of a host, and its children, to so much memory for a while.

    Where the hosts have cgroup controllers, systemd's MemoryMax does that already. Elsewhere a
    memory group of cgroup v1 does, whose kernel ends a process in just the same way; LabError
    where there is neither.
    """
    if has_controllers():
        yield
        return
    if not (V1_MEMORY / "memory.limit_in_bytes").exists():
        raise LabError("this machine has no memory controller: nothing can be held to a limit")
    group = V1_MEMORY / f"{host.machine}-{unit}"
    group.mkdir(exist_ok=True)
    try:
        (group / "memory.limit_in_bytes").write_text(f"{mb}M")
        for path in host_cgroup(host).glob(f"payload/**/{unit}/**/cgroup.procs"):
            move_processes(path.parent, group)
        yield
    finally:
        # A process may have started another one meanwhile.
        wait_until(lambda: not move_processes(group, V1_MEMORY), 10, f"{group} is empty")
        group.rmdir()


# --- the command line -----------------------------------------------------------------------------


def say(text: str) -> None:
    """Tell the user about progress, beside the output proper."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def arguments() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(prog="lab.py", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, text: str, *, lab: bool = True) -> argparse.ArgumentParser:
        command = verbs.add_parser(name, help=text, description=text)
        if lab:
            text = "its name; @NAME: this checkout's own"
            command.add_argument("lab", metavar="LAB", type=full_name, help=text)
        return command

    base = verb("base", "build the cached base system and print its directory", lab=False)
    base.add_argument("--release", default="trixie", help="of Debian (default: %(default)s)")
    base.add_argument("--without", choices=["podman"], help="leave this out")
    verb("stock", "build the images that new hosts start with, and print their place", lab=False)
    command = verb("up", "create and boot hosts, and wait until all have booted")
    command.add_argument("--platforms", required=True, metavar="JSON|@FILE")
    command.add_argument("--inventory", type=pathlib.Path, metavar="FILE", help="write it here too")
    command = verb("down", "remove labs and all that belongs to them", lab=False)
    command.add_argument(
        "labs", nargs="*", metavar="LAB", type=full_name, help="default: all of this checkout"
    )
    command.add_argument(
        "--journals", type=pathlib.Path, metavar="DIR", help="keep the hosts' warnings here"
    )
    verb("list", "show all labs of this machine", lab=False)
    command = verb("inventory", "print the path of the lab's inventory")
    command.add_argument("--list", action="store_true", help="print it, as a script's answer")
    command = verb("shell", "a shell on a host, or one command")
    command.add_argument("host", nargs="?", metavar="HOST", help="default: the first")
    for name, text in (
        ("reboot", "reboot hosts from inside, and wait"),
        ("kill", "cut the power of hosts"),
        ("start", "boot hosts that are down, and wait"),
    ):
        command = verb(name, text)
        command.add_argument("hosts", nargs="*", metavar="HOST", help="default: all")
    command = verb("supervise", "(internal) run one host in the foreground")
    command.add_argument("host", metavar="HOST")
    return parser


def read_platforms(text: str) -> tuple[Platform, ...]:
    """Read platforms from JSON, or from the file named after an `@`."""
    if text.startswith("@"):
        text = pathlib.Path(text[1:]).read_text()
    try:
        return parse_platforms(json.loads(text))
    except json.JSONDecodeError as error:
        raise LabError(f"--platforms is no JSON: {error}") from None


def show_labs() -> None:
    """Print one line for each host of each lab."""
    for lab in all_labs():
        for host in lab.hosts:
            state = "up" if is_up(host) else "down"
            groups = ",".join(host.platform.groups)
            print(f"{lab.name:<24} {host.name:<16} {host.address:<15} {state:<5} {groups}")


def shell(lab: Lab, host: Host, command: list[str]) -> NoReturn:
    """Become ssh: a shell on the host, or one command."""
    line = ssh(lab, host) + command
    os.execvp(line[0], line)


def main(argv: list[str]) -> int:
    """Run one verb and return the exit status."""
    # argparse would take the options of the command after `--` for its own.
    end = argv.index("--") if "--" in argv else len(argv)
    argv, command = argv[:end], argv[end + 1 :]
    options = arguments().parse_args(argv)
    if options.verb != "list" and os.geteuid() != 0:
        raise LabError("labs need root: they mount, bridge and boot")
    match options.verb:
        case "base":
            print(build_base(options.release, options.without == "podman"))
        case "stock":
            print(build_stock())
        case "up":
            up(options.lab, read_platforms(options.platforms), options.inventory)
        case "down":
            mine = [path.name for path in STATE.glob(full_name("@*"))]
            for name in options.labs or mine:
                down(name, options.journals)
        case "list":
            show_labs()
        case "inventory":
            lab = load_or_fail(options.lab)
            path = lab.directory / "hosts.yml"
            print(render_dynamic(lab) if options.list else path, end="" if options.list else "\n")
        case "supervise":
            return supervise(load_or_fail(options.lab).host(options.host))
        case "shell":
            lab = load_or_fail(options.lab)
            shell(lab, lab.host(options.host) if options.host else lab.hosts[0], command)
        case "reboot" | "kill" | "start" as verb:
            lab = load_or_fail(options.lab)
            hosts = tuple(lab.host(name) for name in options.hosts) or lab.hosts
            actions = {"reboot": lambda it: reboot(lab, it), "kill": kill}
            actions["start"] = lambda it: start(lab, it)
            in_parallel(actions[verb], hosts)
    return 0


if __name__ == "__main__":
    if not hasattr(os, "unshare"):
        sys.exit("lab: needs Python 3.12 or later, such as .venv/bin/python")
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as problem:
        sys.exit(f"lab: {problem}")
