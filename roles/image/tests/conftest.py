"""Make filters and modules importable as Ansible finds them: files, not packages."""

import sys
from pathlib import Path

import ansible.module_utils

ROLE = Path(__file__).parents[1]
sys.path[:0] = [str(ROLE / "filter_plugins"), str(ROLE / "library")]
ansible.module_utils.__path__.append(str(ROLE.parent / "podman_host" / "module_utils"))
