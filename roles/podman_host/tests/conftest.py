"""Make the modules importable as Ansible finds them: files, not a package."""

import sys
from pathlib import Path

import ansible.module_utils

ROLE = Path(__file__).parents[1]
sys.path.insert(0, str(ROLE / "library"))
ansible.module_utils.__path__.append(str(ROLE / "module_utils"))
