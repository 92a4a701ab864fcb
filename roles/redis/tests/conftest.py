"""Make the module and what it shares with the host's program importable, as Ansible finds them."""

import sys
from pathlib import Path

import ansible.module_utils

ROLE = Path(__file__).parents[1]
sys.path.insert(0, str(ROLE / "library"))
for role in (ROLE, ROLE.parent / "podman_host"):
    ansible.module_utils.__path__.append(str(role / "module_utils"))
