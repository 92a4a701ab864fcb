"""Make the module importable as Ansible finds it: a file, not a package."""

import sys
from pathlib import Path

import ansible.module_utils

ROLES = Path(__file__).parents[2]
sys.path.insert(0, str(ROLES / "redis" / "library"))
ansible.module_utils.__path__.append(str(ROLES / "podman_host" / "module_utils"))
