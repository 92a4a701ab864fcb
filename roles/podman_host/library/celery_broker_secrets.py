#!/usr/bin/python
"""Keep what opens the broker, as its own host has it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_broker_secrets
short_description: Keep secrets of another host here, with their marks
description:
  - C(containers.podman.podman_secret) takes one secret a task, and would hide with I(no_log) which
    of them it keeps.
options:
  names:
    description: The secrets that are kept.
    type: list
    elements: str
    required: true
  inspected:
    description: What C(podman secret inspect --showsecret) has printed of them there.
    type: str
    default: ""
author: celery-metal
"""

EXAMPLES = r"""
- name: Keep the password here
  celery_broker_secrets:
    names: [celery-redis-worker]
    inspected: "{{ inspected.stdout }}"
"""

RETURN = r"""
diff: {description: Names of the secrets, type: dict, returned: always}
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError, conclude
from ansible.module_utils.podman_store import keep

CONSEQUENCE = "The workers run on with the old one."


def bring(module: AnsibleModule) -> dict[str, Any]:
    """Keep them, each with the mark that it has there."""
    names = module.params["names"]
    if not module.check_mode:
        for one in json.loads(module.params["inspected"]):
            if one["Spec"]["Name"] not in names:
                # That host may be compromised, and must not choose what this one keeps.
                raise HostError(
                    f"the host of Redis gives the secret {one['Spec']['Name'][:60]!a}, and was "
                    f"asked for {', '.join(names)}. Nothing was changed. Find out what runs there."
                )
            labels = {"version": one["Spec"]["Labels"]["version"]}
            keep(one["Spec"]["Name"], one["SecretData"], CONSEQUENCE, **labels)
    prepared = "".join(f"keep secret {name}\n" for name in names)
    return {"changed": True, "diff": {"prepared": prepared}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "inspected": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    conclude(module, lambda: bring(module), changes=True)


if __name__ == "__main__":
    main()
