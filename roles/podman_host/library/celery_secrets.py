#!/usr/bin/python
"""Keep secrets in Podman's store, each with a mark that changes when it does."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_secrets
short_description: Keep the secrets of workers, and tell which of them have changed
description:
  - C(containers.podman.podman_secret) takes one secret a task, and gives no mark of what it kept.
  - Each is kept as C(celery-app-NAME) with the label C(version), a random mark that says nothing of
    it. A secret that is the same keeps its mark, and so restarts nobody.
options:
  secrets:
    description: Name to text. No other secrets than these are wanted.
    type: dict
    default: {}
  broker:
    description:
      - The same for what opens a Redis of the user's own; their whole names, and no others of these
        are wanted. Without it they are left alone.
    type: dict
  remove:
    description:
      - Remove these of the app's secrets and of those of a Redis of the user's own, where they are
        there, such as an earlier call has returned as I(gone). None is written then.
    type: list
    elements: str
    default: []
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
broker: {description: The same for those of the broker, type: dict, returned: always}
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
BROKER = ("celery-redis-worker", "celery-redis-ca", "celery-redis-certificate-worker")
CONSEQUENCE = "The workers run on with the old one."


def versions(wanted: dict[str, str], found: dict[str, Kept]) -> tuple[dict[str, str], list[str]]:
    """The mark of each wanted secret, and the names of those that must be written."""
    written = [
        name for name in sorted(wanted) if name not in found or found[name].value != wanted[name]
    ]
    marks = {name: one.version for name, one in found.items() if name in wanted}
    return {**marks, **{name: randomness.token_hex(6) for name in written}}, written


def bring(module: AnsibleModule) -> dict[str, Any]:
    """Write what differs, or remove what an earlier call has returned as gone."""
    if module.params["remove"]:
        return removed(module)
    broker = module.params["broker"]
    wanted = {f"{PREFIX}{name}": text for name, text in module.params["secrets"].items()}
    wanted |= broker or {}
    ours = kept(PREFIX if broker is None else (PREFIX, *BROKER))
    found = {name: one for name, one in ours.items() if name.startswith(PREFIX) or name in BROKER}
    marks, written = versions(wanted, found)
    gone = sorted(set(found) - set(wanted))
    if not module.check_mode:
        for name in written:
            keep(name, wanted[name], CONSEQUENCE, version=marks[name])
    return {
        "changed": bool(written),
        "versions": {
            name.removeprefix(PREFIX): mark
            for name, mark in marks.items()
            if name.startswith(PREFIX)
        },
        "broker": {name: mark for name, mark in marks.items() if name in BROKER},
        "written": written,
        "gone": gone,
        "diff": {"prepared": "".join(f"keep secret {name}\n" for name in written)},
    }


def removed(module: AnsibleModule) -> dict[str, Any]:
    """Remove those of these secrets that are workers' and are there."""
    ours = [name for name in kept((PREFIX, *BROKER)) if name.startswith(PREFIX) or name in BROKER]
    remove = sorted(set(ours) & set(module.params["remove"]))
    if remove and not module.check_mode:
        output("podman", "secret", "rm", *remove)
    return {
        "changed": bool(remove),
        "versions": {},
        "broker": {},
        "written": [],
        "gone": [],
        "diff": {"prepared": "".join(f"remove secret {name}\n" for name in remove)},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "broker": {"type": "dict", "no_log": True},
            "remove": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    conclude(module, lambda: bring(module), changes=True)


if __name__ == "__main__":
    main()
