"""Hosts that do not answer at the beginning of a run, or where Ansible does not become root."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # Ansible loads filters by their path
from reported import shown

MOST = 300
OF_SUDO = (
    "  Fix: give the right password (--ask-become-pass). Ansible does not recognize the prompt of "
    "sudo-rs: there let the user run sudo without a password (NOPASSWD), or install sudo and name "
    "it with ansible_become_exe."
)
BECOME = re.compile(r"privilege escalation|sudo|become (password|success)", re.IGNORECASE)


def _contact(said: Mapping[str, Any]) -> str:
    """What is wrong with a host, from the result of the first task on it."""
    errors = str(said.get("module_stderr", "")).strip().splitlines()
    why = str(said.get("msg", "no reason was given")).removeprefix("Task failed: ")
    why = shown((errors or [why])[-1], MOST).strip().rstrip(".:")
    if BECOME.search(why):
        return f"answers, and Ansible does not become root there: {why}.\n{OF_SUDO}"
    return f"{'cannot be reached' if said.get('unreachable') else 'gives no facts'}: {why}."


def contact_problems(hosts: Mapping[str, Mapping[str, Any]], redis: str) -> str:
    """Which hosts did not answer, one to a line, with Ansible's word on why; empty when all did.

    :param hosts: host to what the first task on it gave.
    :param redis: the host of Redis, without which no run can do.
    """
    silent = {
        host: _contact(said)
        for host, said in hosts.items()
        if said.get("unreachable") or said.get("failed")
    }
    if not silent:
        return ""
    lines = [f"{host} {what}" for host, what in silent.items()]
    lines.append("Nothing was changed on any host.")
    if redis in silent:
        lines.append(f"All workers need {redis}, for it runs Redis: mend that, then run again.")
    elif len(silent) < len(hosts):
        limit = ":".join(["all", *(f"!{host}" for host in silent)])
        it = "it" if len(silent) == 1 else "them"
        lines.append(f"To go on without {it}: --limit '{limit}'.")
    else:
        lines.append("Mend the way to the hosts, then run again.")
    return "\n".join(lines)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"contact_problems": contact_problems}
