"""Make the roles' module_utils importable as Ansible finds them: beside its own.

pyproject.toml has the other directories, in `pythonpath`.
"""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils

UTILS = sorted(Path(__file__).parent.glob("*/module_utils"))
ansible.module_utils.__path__.extend(map(str, UTILS))
