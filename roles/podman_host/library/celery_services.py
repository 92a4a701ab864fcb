#!/usr/bin/python
"""Restart and start any number of units with one systemctl call per kind."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_services
short_description: Restart and start any number of systemd units, one call per kind
description:
  - C(ansible.builtin.systemd_service) takes one unit a task, so its cost grows with the queues.
  - Waits until every unit is up; a worker is when it consumes.
  - On failure the message holds each failed unit's last journal lines.
options:
  restart:
    description: Units to restart, first. Workers drain before they stop.
    type: list
    elements: str
    default: []
  start:
    description: Units to start, last.
    type: list
    elements: str
    default: []
  journal_lines:
    description: Journal lines to show of each unit that failed.
    type: int
    default: 30
author: celery-metal
"""

EXAMPLES = r"""
- name: Bring the workers to what is declared
  celery_services:
    restart: [celery-add_queue@1.service]
    start: [celery-multiply_queue@1.service, celery-multiply_queue@2.service]
"""

import subprocess

from ansible.module_utils.basic import AnsibleModule

VERBS = ("restart", "start")


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def active(unit: str) -> bool:
    """Whether a unit is up; one that waits for its next try ("activating") has failed."""
    return run("systemctl", "is-active", unit).stdout.strip() == "active"


def journal(unit: str, lines: int) -> str:
    """State and last journal lines of a unit, for an error message."""
    state = run("systemctl", "show", "-p", "Result,ExecMainStatus,StatusText", unit).stdout
    log = run("journalctl", "--no-pager", "-o", "short-iso", "-n", str(lines), "-u", unit).stdout
    return f"== {unit}: {', '.join(state.split(chr(10))).strip(', ')}\n{log}"


def bring(verb: str, units: list[str], lines: int) -> str:
    """Run one systemctl call; returns what went wrong, or an empty string."""
    done = run("systemctl", verb, "--", *units)
    failed = [unit for unit in units if not active(unit)]
    if not done.returncode and not failed:
        return ""
    logs = "\n".join(journal(unit, lines) for unit in failed)
    names = ", ".join(failed or units)
    return f"systemctl {verb} failed for {names}: {done.stderr.strip()}\n{logs}"


def main() -> None:
    units = {verb: {"type": "list", "elements": "str", "default": []} for verb in VERBS}
    module = AnsibleModule(
        argument_spec={**units, "journal_lines": {"type": "int", "default": 30}},
        supports_check_mode=True,
    )
    wanted = {verb: module.params[verb] for verb in VERBS if module.params[verb]}
    if wanted and not module.check_mode:
        # An earlier run may have been cut off after it wrote and before systemd read.
        run("systemctl", "daemon-reload")
    for verb, names in wanted.items():
        problem = "" if module.check_mode else bring(verb, names, module.params["journal_lines"])
        if problem:
            module.fail_json(
                msg=f"{problem}Mend what the journal names, then run the same playbook again: "
                f"it goes on where this run ended."
            )
    module.exit_json(changed=bool(wanted))


if __name__ == "__main__":
    main()
