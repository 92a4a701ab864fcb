"""Make the filters importable as Ansible finds them: files, not a package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "filter_plugins"))
