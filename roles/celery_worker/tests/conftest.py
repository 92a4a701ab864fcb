"""Make the filters importable as Ansible finds them: files, not a package."""

import sys
from pathlib import Path

ROLES = Path(__file__).parents[2]
# The planner too: what is rendered is what it returns.
sys.path[:0] = [str(ROLES / role / "filter_plugins") for role in ("celery_worker", "capacity")]
