#!/usr/bin/python
"""Look at what a host already has, in one call, so that an unchanged host costs one module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_host
short_description: Report what a host has of celery-metal, changing nothing
description:
  - Reads the engine's version, missing packages, images, secrets, ID ranges and NUMA nodes.
  - Later tasks are decided by this one look; a host that has everything is not asked again.
options:
  packages:
    description: Distribution packages that the host needs.
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
images: {description: Image reference to image ID, type: dict, returned: always}
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
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import conclude, output, run

CA_DIRECTORY = Path("/usr/local/share/ca-certificates/celery-metal")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
# Without its cache: apt would write it anew, also under --check.
POLICY = ("apt-cache", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=", "policy")
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


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


def images() -> dict[str, str]:
    """Each reference by which Podman knows an image (tag and digest), with the image's ID."""
    known = {}
    for image in json.loads(output("podman", "images", "--format", "json") or "[]"):
        for reference in [*(image.get("Names") or []), *(image.get("RepoDigests") or [])]:
            known[reference] = image["Id"]
    return known


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


def look(packages: list[str]) -> dict[str, Any]:
    """All that is reported; errors are those of a Podman that is there and does not work."""
    installed = version(told("podman", "--version"))
    missing = missing_packages(packages)
    return {
        "changed": False,
        "systemd": Path("/run/systemd/system").is_dir(),
        "podman": installed,
        "podman_candidate": "" if installed else version(told(*POLICY, "podman")),
        "packages_missing": missing,
        "packages_known": packages_known(missing),
        "images": images() if installed else {},
        "secrets": secrets() if installed else {},
        "user_range": has_user_range(),
        "ca_stale": ca_stale(),
        "overcommit_memory": {
            "value": int(OVERCOMMIT.read_text()),
            # In a system container the value is the outer host's, and read-only.
            "writable": os.access(OVERCOMMIT, os.W_OK),
        },
        "numa_nodes": len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={"packages": {"type": "list", "elements": "str", "default": []}},
        supports_check_mode=True,
    )
    conclude(module, lambda: look(module.params["packages"]), changes=False)


if __name__ == "__main__":
    main()
