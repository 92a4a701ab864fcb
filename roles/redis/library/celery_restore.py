#!/usr/bin/python
"""Bring a backup of Redis back: look at what is there, prove the chosen one, exchange the data."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_restore
short_description: List the backups of Redis, prove one by loading it, and put it in Redis's place
description:
  - Without I(file), the backups of this host are listed, and nothing is changed.
  - With I(step=stage), a backup is compared with its SHA-256, laid out as Redis reads it, beside
    Redis's data, loaded there by a throwaway Redis without a network, and counted. Redis runs on.
  - With I(step=switch), Redis is stopped, its data are moved aside and kept, what was staged takes
    their place, and Redis is started and counted. A run that was cut off is completed.
options:
  file:
    description: Name of a backup.
    type: str
    default: ""
  host:
    description: Name of this host in the inventory.
    type: str
    required: true
  confirmed:
    description: What the operator gave to confirm. It must be I(host).
    type: str
    default: ""
  step:
    description: What to do with the backup.
    type: str
    choices: [stage, switch]
    required: true
author: celery-metal
"""

EXAMPLES = r"""
- name: Prove the backup
  celery_restore:
    file: redis-20261125T020000Z.rdb
    host: "{{ inventory_hostname }}"
    confirmed: host-a
    step: stage
"""

RETURN = r"""
text: {description: What an operator is told, type: str, returned: success}
aside: {description: Where the data from before are, type: str, returned: step is switch}
"""

from typing import Any

from ansible.module_utils import celery_redis_backup as backups
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError, conclude


def offered(site: backups.Site, host: str) -> str:
    """The backups that are there, and how one is brought back."""
    lines = backups.listed(site)
    here = backups.good(site)
    try:
        lines += [f"{name}  only shipped" for name in backups.shipped(site) if name not in here]
    except backups.BackupError as problem:
        lines.append(f"(those that were shipped cannot be listed: {problem})")
    names = [line.split()[0] for line in lines if line.startswith("redis-")]
    if not names:
        return (
            f"{host} has no backup in {site.backups}. Put one there with the file NAME.json beside "
            "it, or make one: 'systemctl start celery-redis-backup'. Nothing was changed."
            + "".join(f"\n{line}" for line in lines)
        )
    return "\n".join(
        [
            f"The backups of {host}, the newest last. Nothing was changed.",
            *lines,
            "To bring one back: ansible-playbook playbooks/restore.yml -e "
            f"restore_file={max(names)} -e restore_confirmed={host}",
        ]
    )


def confirm(site: backups.Site, params: dict[str, Any]) -> None:
    """Have the operator's confirmation.

    :raises HostError: without it.
    """
    host, name = params["host"], params["file"]
    if params["confirmed"] == host:
        return
    given = params["confirmed"] or "not given"
    raise HostError(
        f"all data of Redis on {host} would be replaced by those of {name}: what was sent, done or "
        "put aside since then would be as it was then, and the workers of all hosts would stop "
        f"meanwhile. restore_confirmed is {given}. Nothing was changed; run it again with "
        f"-e restore_confirmed={host}."
    )


def work(module: AnsibleModule) -> dict[str, Any]:
    """Do one step; what the operator is told."""
    params, site = module.params, backups.Site()
    name = params["file"]
    if not name:
        return {"changed": False, "text": offered(site, params["host"])}
    try:
        backups.taken(name)
        confirm(site, params)
        if not module.check_mode:
            backups.bring_back(site, name)
        if module.check_mode:
            if name not in backups.good(site) and name in backups.shipped(site):
                return {"changed": False, "text": f"{name} would be brought here, and proven"}
            note = backups.check(site, name)
            text = f"{name} can be used: {backups.described(note)}"
            # What the run would do to the host's units and files.
            prepared = f"replace {site.data} by {name}\nrestart {site.unit}\n"
            switches = params["step"] == "switch"
            return {
                "changed": switches,
                "text": text,
                "diff": {"prepared": prepared if switches else ""},
            }
        if params["step"] == "stage":
            if backups.pending(site, name):
                return {"changed": False, "text": f"{name} is in place already"}
            note = backups.stage(site, name)
            return {"changed": False, "text": f"{name} was loaded: {backups.described(note)}"}
        found = backups.switch(site, name)
    except backups.BackupError as problem:
        raise HostError(str(problem)) from None
    except backups.RedisError as problem:
        raise HostError(f"Redis ended the step: {problem}. Run the same playbook again.") from None
    return {
        "changed": True,
        "aside": found["aside"],
        "text": (
            f"Redis of {params['host']} has the data of {name}: "
            f"{backups.described(found['note'])}. What it had before is kept in "
            f"{found['aside']}: remove it when nobody needs it."
        ),
        "diff": {"prepared": f"replace {site.data} by {name}\nrestart {site.unit}\n"},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "file": {"type": "str", "default": ""},
            "host": {"type": "str", "required": True},
            "confirmed": {"type": "str", "default": ""},
            "step": {"type": "str", "choices": ["stage", "switch"], "required": True},
        },
        supports_check_mode=True,
    )
    conclude(module, lambda: work(module), changes=True)


if __name__ == "__main__":
    main()
