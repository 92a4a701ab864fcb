#!/usr/bin/python
"""Lines of the journal that units of celery-metal have written."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_logs
short_description: Read what workers, Beat and Redis of a host have written into its journal
description:
  - Returns the newest lines, in order of time. Nothing is changed.
  - With I(text), lines that contain it, each failure with its traceback.
options:
  queue:
    description: Lines of this queue's workers alone.
    type: str
    default: ''
  unit:
    description:
      - Lines of this unit alone, C(celery-NAME.service), such as C(redis), C(beat) or C(emails@1).
    type: str
    default: ''
  text:
    description: What a line contains, such as the ID of a task. Case counts.
    type: str
    default: ''
  since:
    description: Not before this time, in seconds since 1970.
    type: float
    required: true
  before:
    description: Not after this time, likewise.
    type: float
  lines:
    description: How many lines at most.
    type: int
    default: 200
author: celery-metal
"""

EXAMPLES = r"""
- name: Read what became of a task
  celery_logs:
    text: 83021622-2e5f-4c30-adfb-0bdfdac878f9
    since: 1795980960
"""

RETURN = r"""
entries:
  description: Lists of microseconds since 1970, unit without celery- and .service, and line
  type: list
  returned: always
is_cut: {description: Whether there are older lines than these, type: bool, returned: always}
dropped:
  description: What systemd-journald reports of lines that it did not keep
  type: list
  returned: always
has_queue:
  description: Whether the plan of the host has the queue, true without one
  type: bool
  returned: always
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_entries import ReadError, dropped, entries

if TYPE_CHECKING:
    from celery_metal_types import PlannedQueue

PLAN = Path("/etc/celery-metal/plan.json")
EVERY = "celery-*.service"


def patterns(planned: list[PlannedQueue], queue: str, unit: str) -> list[str]:
    """What journalctl calls the units whose lines are asked for; empty if no unit has the queue.

    >>> patterns([{"name": "a/b", "unit": "a_2fb", "queues": ["a/b", "c"]}], "c", "")
    ['celery-a_2fb@*.service']
    """
    if unit:
        return [f"celery-{unit}.service"]
    if not queue:
        return [EVERY]
    return [
        f"celery-{one['unit']}@*.service"
        for one in planned
        if queue == one["name"] or queue in one["queues"]
    ]


def main() -> None:
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            **dict.fromkeys(("queue", "unit", "text"), text),
            "since": {"type": "float", "required": True},
            "before": {"type": "float"},
            "lines": {"type": "int", "default": 200},
        },
        supports_check_mode=True,
    )
    asked = module.params
    planned: list[PlannedQueue] = json.loads(PLAN.read_text())["queues"] if PLAN.exists() else []
    units = patterns(planned, asked["queue"], asked["unit"])
    between = asked["since"], asked["before"]
    try:
        found, is_cut = entries(units, between, asked["text"], asked["lines"])
        lost = dropped(between)
    except ReadError as problem:
        module.fail_json(str(problem))
    module.exit_json(
        changed=False,
        entries=[[one.at, one.source, one.line] for one in found],
        is_cut=is_cut,
        dropped=lost,
        has_queue=bool(units),
    )


if __name__ == "__main__":
    main()
