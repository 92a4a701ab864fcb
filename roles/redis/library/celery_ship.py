#!/usr/bin/python
"""Make the key with which backups are shipped, and pin the host that they are shipped to."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_ship
short_description: A key for shipping backups, made once, and the one host that it is for
description:
  - The private key never leaves the host. The host keys of the target come from facts, and no other
    is accepted.
options:
  address:
    description: Address of the target.
    type: str
    required: true
  port:
    description: Its port of SSH.
    type: int
    default: 22
  facts:
    description: Facts of the target, with its host keys.
    type: dict
    required: true
author: celery-metal
"""

EXAMPLES = r"""
- name: Make the key
  celery_ship: {address: 10.0.0.9, facts: "{{ target.ansible_facts }}"}
"""

RETURN = r"""
public_key: {description: The public key, type: str, returned: always}
"""

import re
import socket
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError, conclude, run

KIND = re.compile(r"[a-z0-9@.-]{1,64}")
KEY = re.compile(r"[A-Za-z0-9+/]{1,2000}={0,2}")
KEYS = Path("/etc/celery-metal/ship")
UNMADE = "ssh-ed25519 (made by a run without --check)"


def known_hosts(address: str, port: int, facts: dict[str, Any]) -> str:
    """The lines that pin a host's keys.

    >>> known_hosts("h", 22, {"ansible_ssh_host_key_ed25519_public": "AA"})
    'h ssh-ed25519 AA\\n'
    """
    name = address if port == 22 else f"[{address}]:{port}"
    lines = []
    for fact, key in sorted(facts.items()):
        found = re.fullmatch(r"(ansible_ssh_host_key_(\w+)_public)", fact)
        if found:
            kind = facts.get(f"{fact}_keytype", f"ssh-{found[2]}")
            # Each is a word of a line; that host may be compromised.
            if not (KIND.fullmatch(str(kind)) and KEY.fullmatch(str(key))):
                raise HostError(
                    f"{address} reports a host key {fact} that is none: {str(key)[:60]!a}. Nothing "
                    "was changed. Find out what runs there."
                )
            lines.append(f"{name} {kind} {key}\n")
    return "".join(lines)


def bring(module: AnsibleModule) -> dict[str, Any]:
    """Make the key, if there is none, and write whom it is for."""
    params = module.params
    wanted = known_hosts(params["address"], params["port"], params["facts"])
    if not wanted:
        raise HostError(
            f"the host keys of {params['address']} are not known: its facts have none. Is sshd "
            "installed there? Nothing was changed."
        )
    key, hosts = KEYS / "key", KEYS / "known_hosts"
    before = hosts.read_text() if hosts.exists() else ""
    lines = [] if key.exists() else [f"keep secret {key}\n"]
    if not module.check_mode and (lines or before != wanted):
        KEYS.mkdir(mode=0o700, exist_ok=True)
        if lines:
            comment = f"celery-metal {socket.gethostname()}"
            words = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key))
            done = run(*words)
            if done.returncode:
                raise HostError(f"ssh-keygen failed: {done.stderr.strip()}. Nothing was changed.")
        hosts.write_text(wanted)
    diff = [{"prepared": "".join(lines)}] if lines else []
    if before != wanted:
        header = {"before_header": str(hosts), "after_header": str(hosts)}
        diff.append({**header, "before": before, "after": wanted})
    public = key.with_name("key.pub")
    return {
        "changed": bool(diff),
        "public_key": public.read_text().strip() if public.exists() else UNMADE,
        "diff": diff,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "default": 22},
            "facts": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    conclude(module, lambda: bring(module), changes=True)


if __name__ == "__main__":
    main()
