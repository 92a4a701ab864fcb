#!/usr/bin/python
"""What a host, the Redis on it, and the workers that it reaches have that may hurt."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_doctor
short_description: Gather what the rules of playbooks/doctor.yml look at, changing nothing
description:
  - Reads files of the kernel's, the plan, systemd's word on backups, and, where there is a Redis,
    some of what it counts, a sample of its keys, and answers of running workers.
  - It takes some seconds at most, whatever there is.
options:
  redis:
    description: Whether to ask the Redis of this host, or with I(external) another one.
    type: bool
    default: false
  queues:
    description: Names of queues to look into.
    type: list
    elements: str
    default: []
  prefixes:
    description: What apps may set as Celery's C(global_keyprefix), besides none.
    type: list
    elements: str
    default: []
  database:
    description: Number of the Redis database.
    type: int
    default: 0
  asked:
    description: The controller's clock, which is returned with the facts.
    type: float
    default: 0
  external:
    description: As for C(celery_backlog).
    type: dict
author: celery-metal
"""

EXAMPLES = r"""
- name: Look at the host
  celery_doctor:
  register: doctor_host
"""

RETURN = r"""
facts:
  description:
    - What was found, in bytes and seconds; what is not known is null or is not there. C(redis) is
      null where none was asked, and has C(error) alone where it gave no answer.
  type: dict
  returned: always
"""

import contextlib
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_doctor_host import host_facts
from ansible.module_utils.celery_doctor_redis import redis_facts
from ansible.module_utils.celery_metal import HostError
from ansible.module_utils.celery_redis import SOCKET, RedisError
from ansible.module_utils.celery_redis_login import client_at, client_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from celery_metal_types import Endpoint

FORMAT = 1


def of_redis(params: Mapping[str, Any], directory: str) -> dict[str, Any]:
    """What there is to know of Redis, or why not."""
    external: Endpoint | None = params["external"]
    database = external["database"] if external else params["database"]
    try:
        client = client_at(external, directory) if external else client_of("admin")
        with contextlib.closing(client):
            return redis_facts(client, params["queues"], params["prefixes"], database)
    except (RedisError, HostError, OSError) as problem:
        why = getattr(problem, "strerror", None) or str(problem)
        return {"error": f"{'over the network' if external else SOCKET}: {why}"}


def main() -> None:
    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "redis": {"type": "bool", "default": False},
            "queues": names,
            "prefixes": names,
            "database": {"type": "int", "default": 0},
            "asked": {"type": "float", "default": 0},
            "external": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    redis = of_redis(module.params, module.tmpdir) if module.params["redis"] else None
    asked = module.params["asked"]
    facts = {"format": FORMAT, "asked": asked, "redis": redis, **host_facts()}
    module.exit_json(changed=False, facts=facts)


if __name__ == "__main__":
    main()
