#!/usr/bin/python
"""Let Redis fork whatever it holds, and give the kernel its earlier setting back on removal."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_overcommit
short_description: Set vm.overcommit_memory to 1 in the running kernel, or what it was before
description:
  - Sets the running kernel; C(/etc/sysctl.d/60-celery-metal.conf) does it at each boot.
  - The first call records the earlier value, and only if it was another one.
options:
  state:
    description:
      - With C(absent), the recorded value is set again, then what C(sysctl.d) declares; that file
        must be gone by then. A value that is no longer 1 stays; so does one without a record.
    type: str
    choices: [present, absent]
    default: present
author: celery-metal
"""

EXAMPLES = r"""
- name: Give the earlier setting back
  celery_overcommit:
    state: absent
"""

RETURN = r"""
value: {description: What the kernel has now, type: int, returned: always}
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import conclude, output

SETTING = Path("/proc/sys/vm/overcommit_memory")
RECORD = Path("/var/lib/celery-metal/overcommit_memory")
ALWAYS = 1  # vm.overcommit_memory: a fork is never refused
VALUES = (0, 1, 2)


def current() -> int:
    return int(SETTING.read_text())


def recorded() -> int | None:
    """The value from before; None where there is no record, or a damaged one."""
    try:
        value = int(RECORD.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if value in VALUES else None


def apply(check_mode: bool) -> bool:
    """Set the value that Redis needs; whether it was another one."""
    before = current()
    if before == ALWAYS:
        return False
    if not check_mode:
        if recorded() is None:
            RECORD.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            RECORD.write_text(f"{before}\n")
        SETTING.write_text(f"{ALWAYS}\n")
    return True


def give_back(check_mode: bool) -> bool:
    """Set the recorded value, or what the host's own sysctl.d declares; whether anything changed.

    :raises HostError: when systemd-sysctl fails.
    """
    before, now = recorded(), current()
    changed = before is not None and now == ALWAYS
    if check_mode:
        return changed
    if changed:
        SETTING.write_text(f"{before}\n")
        output("/usr/lib/systemd/systemd-sysctl", "--prefix=/vm/overcommit_memory")
    RECORD.unlink(missing_ok=True)
    return changed and current() != now


def work(module: AnsibleModule) -> dict[str, Any]:
    act = apply if module.params["state"] == "present" else give_back
    changed = act(module.check_mode)
    return {"changed": changed, "value": current()}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"}
        },
        supports_check_mode=True,
    )
    # Not under the lock of runs that change the host: on removal its file is gone by now.
    conclude(module, lambda: work(module), changes=False)


if __name__ == "__main__":
    main()
