"""Make the modules, what they share with the host's program, and the filters importable."""

import sys
from pathlib import Path

import ansible.module_utils

ROLE = Path(__file__).parents[1]
sys.path[:0] = [str(ROLE / "library"), str(ROLE / "filter_plugins")]
for role in (ROLE, ROLE.parent / "podman_host"):
    ansible.module_utils.__path__.append(str(role / "module_utils"))
