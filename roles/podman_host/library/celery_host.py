#!/usr/bin/python
"""Look at what a host already has, in one call, so that an unchanged host costs one module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_host
short_description: Report what a host has of celery-metal, changing nothing
description:
  - Reads the engine's version, missing packages, images, secrets, ID ranges and NUMA nodes, and
    what the way to Redis looks like from here.
  - Later tasks are decided by this one look; a host that has everything is not asked again.
options:
  packages:
    description: Distribution packages that the host needs.
    type: list
    elements: str
    default: []
  toward:
    description: Address or name of Redis, to which this host must find a way; empty for none.
    type: str
    default: ""
  clients:
    description: Host to the addresses and names that Redis, here, shall admit it by.
    type: dict
    default: {}
  absent:
    description:
      - The same for hosts that are no part of the run. What Redis has admitted them by goes first,
        and one that has no address is a warning.
    type: dict
    default: {}
  images:
    description:
      - References of images of which the content is compared with what Podman recorded of it; none
        is by default.
    type: list
    elements: str
    default: []
  files:
    description: Paths, or patterns of them, of files and links of which the content is compared.
    type: list
    elements: str
    default: []
  names:
    description: Names of Redis of which the addresses shall be returned, as this host knows them.
    type: list
    elements: str
    default: []
author: celery-metal
"""

EXAMPLES = r"""
- name: Look at the host
  celery_host:
    packages: [podman]
  register: podman_host_state
"""

RETURN = r"""
systemd: {description: Whether systemd is PID 1, type: bool, returned: always}
podman: {description: Version of the installed engine or empty, type: str, returned: always}
podman_candidate:
  description: Version that the package manager would install, or empty when it knows none yet
  type: str
  returned: always
packages_missing: {description: Packages that are not installed, type: list, returned: always}
packages_known:
  description: Whether the package manager knows all that are missing; without lists it does not
  type: bool
  returned: always
images:
  description: Image reference to image ID, without those that are damaged
  type: dict
  returned: always
images_damaged:
  description: Image reference to what is wrong with it, of those in I(images)
  type: dict
  returned: always
images_unproven:
  description: Those in I(images) that no run has written to the disk yet, as C(celery_images) does
  type: list
  returned: always
files:
  description: "Path to the SHA-1 of a file, or to C(-> target) of a link, of those that are there"
  type: dict
  returned: always
secrets: {description: Podman secret to its labels, type: dict, returned: always}
user_range:
  description: Whether subuid and subgid hold a range for UserNS=auto
  type: bool
  returned: always
ca_stale:
  description: Whether a private CA certificate is newer than the trust store made of them
  type: bool
  returned: always
overcommit_memory:
  description: The kernel's vm.overcommit_memory, and whether this host may set it
  type: dict
  returned: always
numa_nodes: {description: Number of NUMA nodes, type: int, returned: always}
planned_memory_mb:
  description: Memory of this host in MiB in the plan that is deployed; 0 without one
  type: int
  returned: always
app_images:
  description: Images of the app in the units of workers and of Beat
  type: list
  returned: always
hooks_left:
  description: The image of a deploy whose last hooks have not run; empty for none
  type: str
  returned: always
destination: {description: What the host was deployed for, or empty, type: str, returned: always}
has_data: {description: Whether there are data of a Redis here, type: bool, returned: always}
routes:
  description:
    - The private IPv4 networks that the main routing table leads to, without default routes and
      the workers' own network
  type: list
  returned: always
egress:
  description:
    - Mark of the rules that the kernel has for the workers' network, or empty; null where the host
      has no file of them
  type: str
  returned: always
egress_written: {description: Mark in that file, or empty, type: str, returned: always}
podman_rules:
  description:
    - Whether the kernel has had all rules since Podman wrote its own; null where no unit of the
      workers' looks after them
  type: bool
  returned: always
names: {description: Name of Redis to its addresses, type: dict, returned: always}
source:
  description: The address from which this host reaches Redis, or empty
  type: str
  returned: always
clients: {description: Host to its addresses, type: dict, returned: always}
admitted:
  description: The networks that Redis, here, admits; null where it has no rules of the kit
  type: list
  returned: always
primary:
  description: Address of the primary, as the Sentinel of this host knows it, or empty
  type: str
  returned: always
members:
  description: Addresses of those that elect a primary, where Redis here is one of them
  type: list
  returned: always
listens_on:
  description:
    - Addresses that Redis here was configured to listen on. In a move the earlier ones come first.
  type: list
  returned: always
is_sole:
  description: Whether there are data of a Redis here that was none of those
  type: bool
  returned: always
broker:
  description: Address of the broker that the workers and Beat here were given, or empty
  type: str
  returned: always
queues:
  description: The queues in Redis that the deployed workers of this host consume
  type: list
  returned: always
firewall:
  description: Mark of the rules that the kernel has, or empty
  type: str
  returned: always
told:
  description: Hosts whose addresses are not known, and images that are damaged
  type: list
  returned: always
holders:
  description:
    - The record of the hosts that were given what opens the Redis here; null where there is none,
      and C(error) alone where it cannot be read
  type: dict
  returned: always
admitted_hosts:
  description: The hosts that Redis, here, admits; null where it has no rules of the kit
  type: list
  returned: always
"""

import ipaddress
import json
import os
import re
import shutil
import socket
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_destinations import recorded_destination
from ansible.module_utils.celery_holders import recorded
from ansible.module_utils.celery_kept import digests
from ansible.module_utils.celery_metal import HostError, conclude, output, run
from ansible.module_utils.container_files import Folder, RefusedError
from ansible.module_utils.podman_images import Found, by_cause
from ansible.module_utils.podman_images import look as look_at_images

CA_DIRECTORY = Path("/usr/local/share/ca-certificates/celery-metal")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# Without its cache: apt would write it anew, also under --check.
POLICY = ("apt-cache", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=", "policy")
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
# Whom the rules of Redis's port admit, as the role redis keeps it.
CLIENTS = Path("/etc/celery-metal/clients.json")
ELECTED = Path("/etc/celery-metal/redis-elected.json")
SENTINEL = Path("/var/lib/celery-metal/sentinel/sentinel.conf")
SENTINEL_BYTES = 1 << 20
REDIS = Path("/etc/celery-metal/redis.conf")
DATA = Path("/var/lib/celery-metal/redis")
# There while Redis is one of several, and with its data when it was removed.
SEVERAL = Path("/var/lib/celery-metal/redis-of-several")
UNITS = Path("/etc/containers/systemd/celery-metal")
PLAN = Path("/etc/celery-metal/plan.json")
HOOKS = Path("/var/lib/celery-metal/hooks.json")
MOST_MEMORY_MB = 1 << 30  # what capacity_planned_memory_mb takes
RULES = ("nft", "--json", "--terse", "list", "table", "inet")
EGRESS = Path("/etc/celery-metal/egress.nft")
RELOADER = Path("/etc/systemd/system/celery-network.service")
ROUTES = Path("/proc/net/route")
BRIDGE = "celery0"  # of the workers' network
RTF_UP, RTF_REJECT = 0x1, 0x200  # linux/route.h
# A VPN writes the default route as two halves; no network of one's own is so large.
DEFAULT_BITS = 8
# Where celery_worker_subnet can be.
PRIVATE = [
    ipaddress.IPv4Network(one)
    for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
]
MOST_ROUTES = 4096


def told(*argv: str) -> str:
    """What a command prints, or an empty string when it is missing or fails."""
    if not shutil.which(argv[0]):
        return ""
    done = run(*argv)
    return done.stdout if done.returncode == 0 else ""


def version(text: str) -> str:
    """The upstream version in ``podman version 5.4.2`` or ``Candidate: 5.4.2+ds1-2+b3``."""
    found = re.search(r"(?:version|Candidate:)\s+(?:\d+:)?(\d+(?:\.\d+)*)", text)
    return found.group(1) if found else ""


def missing_packages(wanted: list[str]) -> list[str]:
    """Those of the wanted packages that dpkg does not list as installed, sorted."""
    if not wanted or not shutil.which("dpkg-query"):
        return []
    # It fails when one of them is unknown, and prints the others.
    listed = run("dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted).stdout
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
    return sorted(set(wanted) - installed)


def packages_known(missing: list[str]) -> bool:
    """Whether the package manager has a version to install of each of these packages."""
    if not missing:
        return True  # on most hosts, and asking apt takes half a second
    return len(re.findall(r"Candidate: (?!\(none\))", told(*POLICY, *missing))) == len(missing)


def secrets() -> dict[str, dict[str, str]]:
    """Labels of the secrets whose name begins with ``celery-``; never their content."""
    names = [
        name
        for name in output("podman", "secret", "ls", "--format", "{{.Name}}").split()
        if name.startswith("celery-")
    ]
    if not names:
        return {}
    found = json.loads(output("podman", "secret", "inspect", *names))
    return {one["Spec"]["Name"]: one["Spec"].get("Labels") or {} for one in found}


def has_user_range() -> bool:
    """Whether both ID files hold a range for ``containers``, the user of UserNS=auto."""
    return all(
        path.exists() and re.search(r"^containers:", path.read_text(), re.M)
        for path in (Path("/etc/subuid"), Path("/etc/subgid"))
    )


def ca_stale() -> bool:
    """Whether the trust store was last made before one of our CA certificates came."""
    made = CA_BUNDLE.stat().st_mtime if CA_BUNDLE.exists() else 0
    return any(path.stat().st_mtime > made for path in CA_DIRECTORY.glob("*.crt"))


def source_toward(address: str) -> str:
    """The address from which a connection would go out; no packet is sent.

    :raises HostError: when there is no way to it.
    """
    try:
        # Any port: a datagram socket only looks up the route.
        family, kind, protocol, _, where = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(where)
            source: str = probe.getsockname()[0]
            return source
    except OSError as problem:
        raise HostError(
            f"there is no way from here to Redis at {address}: {problem.strerror or problem}. "
            "Nothing was changed. Mend the route or the name there, or correct redis_address of "
            "the host of Redis, then run again."
        ) from None


def addresses_of(name: str) -> list[str]:
    """All addresses that a name has here, sorted; an address is its own."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    # Without the interface that follows a link-local one.
    return sorted({str(one[4][0]).partition("%")[0] for one in found})


def kept_in(path: Path) -> dict[str, Any]:
    """What the last run has kept there, such as whom Redis admits; nothing where it has not."""
    try:
        kept: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # or damaged: as good as nothing
        return {}
    return kept if isinstance(kept, dict) else {}


def app_images() -> list[str]:
    """Images in the units of workers and of Beat."""
    units = [*UNITS.glob("celery-*@.container"), *UNITS.glob("celery-beat.container")]
    texts = [one.read_text(errors="replace") for one in units if one.is_file()]
    return sorted({image for text in texts for image in re.findall(r"^Image=(\S+)$", text, re.M)})


def hooks_left() -> str:
    """The image of a deploy whose last hooks have not run yet, or empty."""
    try:
        return str(json.loads(HOOKS.read_text())["image"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def planned_memory_mb() -> int:
    """The memory in MiB for which this host was planned; 0 where no plan says so."""
    host = kept_in(PLAN).get("host")
    memory_mb = host.get("memory_mb") if isinstance(host, dict) else None
    return memory_mb if type(memory_mb) is int and 0 < memory_mb <= MOST_MEMORY_MB else 0


def resolve(
    clients: Mapping[str, Sequence[str]],
    absent: Mapping[str, Sequence[str]],
    kept: Mapping[str, Sequence[str]],
) -> tuple[dict[str, list[str]], list[str]]:
    """The addresses of all hosts that Redis shall admit, and the absent ones that have none.

    :param kept: host to the addresses by which it was admitted.
    :raises HostError: when one of the clients has none.
    """
    found = {
        host: sorted({one for name in names for one in addresses_of(name)})
        for host, names in clients.items()
    }
    unknown = sorted(host for host in found if not found[host])
    if unknown:
        raise HostError(
            f"Redis shall admit {', '.join(unknown)}, and this host knows no address of "
            f"{', '.join(' or '.join(clients[host]) for host in unknown)}. Nothing was changed. "
            "Write redis_client_addresses for each, such as [10.0.0.7], or make the name known to "
            "this host; then run again."
        )
    for host, names in absent.items():
        found[host] = list(kept.get(host, [])) or addresses_of(names[0])
    lost = [host for host in found if not found[host]]
    return {host: one for host, one in found.items() if one}, lost


def known_primary() -> str:
    """Whom the Sentinel of this host has written down as the primary; empty where it has not."""
    try:
        # The container of the Sentinel writes it.
        with Folder(SENTINEL.parent) as folder:
            lines = folder.text(SENTINEL.name, SENTINEL_BYTES).splitlines()
    except FileNotFoundError:
        return ""
    except RefusedError as refused:
        raise HostError(f"{refused} Nothing was changed.") from None
    for line in lines:
        words = line.split()
        if words[:3] == ["sentinel", "monitor", "celery"] and len(words) > 3:
            return words[3]
    return ""


def listens_on() -> list[str]:
    """The addresses that Redis here was configured to listen on."""
    try:
        # The first: redis_extra_config may have one of its own, which is for no worker.
        found = re.search(r"^bind (.+)$", REDIS.read_text(), re.M)
    except FileNotFoundError:
        return []
    # With "-" where Redis starts without it, too.
    return [one.removeprefix("-") for one in found[1].split()] if found else []


def has_data() -> bool:
    """Whether there are data of a Redis here, of one that was removed, too."""
    return any((*DATA.glob("appendonlydir/*"), *DATA.glob("*.rdb")))


def is_sole(members: Sequence[str]) -> bool:
    """Whether there are data of a single Redis here, which are nowhere else."""
    return not members and not SEVERAL.exists() and has_data()


def variable(unit: str, name: str) -> str:
    """A variable in the text of a container unit, without its escapes; empty where it has none.

    >>> variable('Environment="A=50%% of \\\\"$$HOME\\\\""', "A")
    '50% of "$HOME"'
    """
    found = re.search(rf'^Environment="{name}=(.*)"$', unit, re.M)
    return re.sub(r"\\(.)|%(%)|\$(\$)", lambda one: one[one.lastindex], found[1]) if found else ""


def broker() -> str:
    """The address of the broker that the app's containers here were given; empty without any."""
    units = (path.read_text() for path in sorted(UNITS.glob("*.container")))
    return next(filter(None, (variable(unit, "CELERY_METAL_BROKER") for unit in units)), "")


def queues() -> list[str]:
    """The queues in Redis that the deployed workers of this host consume."""
    found: list[str] = []
    for path in sorted(UNITS.glob("celery-*@.container")):
        unit = path.read_text()
        several = variable(unit, "CELERY_METAL_QUEUES")
        found += several.split(",") if several else [variable(unit, "CELERY_METAL_QUEUE")]
    return sorted({*filter(None, found)})


def rules_mark(table: str) -> str:
    """The mark of the rules that the kernel has in a table of family inet, or an empty string."""
    for one in json.loads(told(*RULES, table) or "{}").get("nftables", []):
        if "table" in one:
            mark: str = one["table"].get("comment", "")
            return mark
    return ""


def written_mark(path: Path) -> str:
    """The mark in a file of rules; empty where there is none."""
    try:
        found = re.search(r'^\s*comment "(\S+)"$', path.read_text(errors="replace"), re.M)
    except FileNotFoundError:
        return ""
    return found[1] if found else ""


def has_podman_rules() -> bool | None:
    """Whether Podman's rules have stayed since its containers got them; None where nobody knows.

    All rules go together, by ``nft flush ruleset``: with them goes the table that
    celery-network.service adds when Podman's are there.
    """
    if not RELOADER.exists() or not shutil.which("nft"):
        return None
    return run(*RULES, "celery_network").returncode == 0


def routes() -> list[str]:
    """The private networks that this host has routes to, as few as hold the same addresses."""
    try:
        lines = ROUTES.read_text().splitlines()[1:]
    except FileNotFoundError:  # without IPv4
        return []
    found = set()
    for line in lines:
        interface, target, _, flags, *_, mask, _, _, _ = line.split()
        if interface == BRIDGE or int(flags, 16) & (RTF_UP | RTF_REJECT) != RTF_UP:
            continue
        # In the order of bytes that the machine has.
        network = ipaddress.IPv4Network((_packed(target), int(mask, 16).bit_count()))
        if network.prefixlen >= DEFAULT_BITS and any(map(network.overlaps, PRIVATE)):
            found.add(network)
    return [str(one) for one in ipaddress.collapse_addresses(found)][:MOST_ROUTES]


def _packed(hexadecimal: str) -> bytes:
    return struct.pack("=I", int(hexadecimal, 16))


def network(params: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to know of the way to Redis."""
    kept = kept_in(CLIENTS)
    clients, lost = resolve(params["clients"], params["absent"], kept.get("hosts", {}))
    members = kept_in(ELECTED).get("members", [])
    networks = [one for some in kept.get("hosts", {}).values() for one in some]
    return {
        "source": source_toward(params["toward"]) if params["toward"] else "",
        "clients": clients,
        "admitted": networks + kept.get("others", []) if kept else None,
        "admitted_hosts": sorted(kept.get("hosts", {})) if kept else None,
        "holders": recorded(),
        "firewall": rules_mark("celery_metal") if kept else "",
        "egress": rules_mark("celery_egress") if EGRESS.exists() else None,
        "egress_written": written_mark(EGRESS),
        "podman_rules": has_podman_rules(),
        "names": {name: addresses_of(name) for name in params["names"]},
        "members": members,
        "listens_on": listens_on(),
        "is_sole": is_sole(members),
        "broker": broker(),
        "queues": queues(),
        "primary": known_primary(),
        "told": [
            f"{host} is not admitted to Redis: it is no part of this run, and its address is not "
            "known here. Write redis_client_addresses for it, or run site.yml without --limit."
            for host in lost
        ],
    }


def look(packages: list[str], references: list[str]) -> dict[str, Any]:
    """All that is reported; errors are those of a Podman that is there and does not work."""
    installed = version(told("podman", "--version"))
    missing = missing_packages(packages)
    found = look_at_images(references) if installed else Found({}, {}, [])
    return {
        "changed": False,
        "systemd": Path("/run/systemd/system").is_dir(),
        "podman": installed,
        "podman_candidate": "" if installed else version(told(*POLICY, "podman")),
        "packages_missing": missing,
        "packages_known": packages_known(missing),
        "images": found.whole,
        "images_damaged": found.damaged,
        "images_unproven": found.unproven,
        "secrets": secrets() if installed else {},
        "user_range": has_user_range(),
        "ca_stale": ca_stale(),
        "overcommit_memory": {
            "value": int(OVERCOMMIT.read_text()),
            # In a system container the value is the outer host's, and read-only.
            "writable": os.access(OVERCOMMIT, os.W_OK),
        },
        "routes": routes(),
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
        "planned_memory_mb": planned_memory_mb(),
        "app_images": app_images(),
        "hooks_left": hooks_left(),
        "destination": recorded_destination(),
        "has_data": has_data(),
    }


def work(params: Mapping[str, Any]) -> dict[str, Any]:
    """All of it."""
    found = {**look(params["packages"], params["images"]), **network(params)}
    found["files"] = digests(params["files"])
    found["told"] += damage_told(found["images_damaged"])
    return found


def damage_told(damaged: Mapping[str, str]) -> list[str]:
    """A line for each cause, with the images that have it.

    >>> damage_told({"app:1": "layer aa is missing"})[0][:40]
    'app:1: damaged, as a power cut soon afte'
    """
    return [
        f"{', '.join(some)}: damaged, as a power cut soon after a build or load leaves it: "
        f"{reason}. site.yml removes it, and brings it again where it is needed."
        for reason, some in by_cause(damaged).items()
    ]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "default": []},
            "images": {"type": "list", "elements": "str", "default": []},
            "files": {"type": "list", "elements": "str", "default": []},
            "toward": {"type": "str", "default": ""},
            "clients": {"type": "dict", "default": {}},
            "absent": {"type": "dict", "default": {}},
            "names": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    conclude(
        module,
        lambda: work(module.params),
        changes=False,
        warned="told",
    )


if __name__ == "__main__":
    main()
