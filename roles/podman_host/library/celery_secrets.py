#!/usr/bin/python
"""Keep the secrets of an app in Podman's store, each with a mark that changes when it does."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_secrets
short_description: Keep an app's secrets, and tell which of them have changed
description:
  - C(containers.podman.podman_secret) takes one secret a task, and gives no mark of what it kept.
  - Each is kept as C(celery-app-NAME) with the label C(version), a random mark that says nothing of
    it. A secret that is the same keeps its mark, and so restarts nobody.
options:
  secrets:
    description: Name to text. No other secrets than these are wanted.
    type: dict
    default: {}
  prune:
    description: Remove those that are not wanted any more, instead of writing any.
    type: bool
    default: false
author: celery-metal
"""

EXAMPLES = r"""
- name: Keep the app's secrets
  celery_secrets:
    secrets: {DATABASE_URL: "{{ vault_database_url }}"}
  register: app_secrets
"""

RETURN = r"""
versions: {description: Name of each wanted secret to its mark, type: dict, returned: always}
written: {description: Names of those that are new or another, type: list, returned: always}
gone: {description: Names of those that are kept and not wanted, type: list, returned: always}
diff: {description: Names of what is written and removed, type: dict, returned: always}
"""

import secrets as randomness
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import conclude, output
from ansible.module_utils.podman_store import Kept, keep, kept

PREFIX = "celery-app-"
CONSEQUENCE = "The workers run on with the old one."


def versions(wanted: dict[str, str], found: dict[str, Kept]) -> tuple[dict[str, str], list[str]]:
    """The mark of each wanted secret, and the names of those that must be written."""
    written = [
        name for name in sorted(wanted) if name not in found or found[name].value != wanted[name]
    ]
    marks = {name: one.version for name, one in found.items() if name in wanted}
    return {**marks, **{name: randomness.token_hex(6) for name in written}}, written


def bring(module: AnsibleModule) -> dict[str, Any]:
    """Write what differs; or, if told so, remove what is not wanted."""
    wanted = module.params["secrets"]
    found = {name.removeprefix(PREFIX): one for name, one in kept(PREFIX).items()}
    marks, written = versions(wanted, found)
    gone = sorted(set(found) - set(wanted))
    # Under --check the call before has not written them, and has said them.
    write_now = [] if module.params["prune"] else written
    remove = gone if module.params["prune"] else []
    if not module.check_mode:
        for name in write_now:
            keep(PREFIX + name, wanted[name], CONSEQUENCE, version=marks[name])
        if remove:
            output("podman", "secret", "rm", *(PREFIX + name for name in remove))
    lines = [f"keep secret {PREFIX}{name}\n" for name in write_now]
    lines += [f"remove secret {PREFIX}{name}\n" for name in remove]
    return {
        "changed": bool(lines),
        "versions": marks,
        "written": written,
        "gone": gone,
        "diff": {"prepared": "".join(lines)},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "prune": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    conclude(module, lambda: bring(module), changes=True)


if __name__ == "__main__":
    main()
