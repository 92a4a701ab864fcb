"""Make the modules, what they share with the host's programs, and the filters importable."""

import sys
from pathlib import Path

import ansible.module_utils

ROLE = Path(__file__).parents[1]
HOST = ROLE.parent / "podman_host"
sys.path[:0] = [str(ROLE / "library"), str(ROLE / "filter_plugins")]
# On a host celery_redis.py is beside the programs.
sys.path.append(str(HOST / "module_utils"))
for role in (ROLE, HOST):
    ansible.module_utils.__path__.append(str(role / "module_utils"))
