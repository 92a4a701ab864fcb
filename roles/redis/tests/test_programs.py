"""The programs that import celery_redis.py, as they lie on a host."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROLES = Path(__file__).parents[2]
SHARED = ROLES / "podman_host/module_utils/celery_redis.py"


@pytest.mark.parametrize("name", ["redis_elected.py", "redis_memory.py"])
def test_a_program_needs_no_ansible_and_leaves_nothing_behind(name, tmp_path):
    for path in (SHARED, ROLES / "redis/files" / name):
        shutil.copy(path, tmp_path)
    load = f"import runpy; runpy.run_path({str(tmp_path / name)!r})"
    # Without site-packages, which have Ansible here.
    subprocess.run([sys.executable, "-I", "-S", "-c", load], check=True)
    assert {path.name for path in tmp_path.iterdir()} == {SHARED.name, name}
