"""The programs of the host of Redis, as they lie there: beside what they import."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROLES = Path(__file__).parents[2]
SHARED = [
    ROLES / "podman_host/module_utils" / name
    for name in ("celery_lists.py", "celery_redis.py", "container_files.py")
]
PROGRAMS = [
    *(ROLES / "redis/files" / f"redis_{name}.py" for name in ("elected", "memory", "mend", "stop")),
    ROLES / "redis/module_utils/celery_redis_backup.py",
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_a_program_needs_no_ansible_and_leaves_nothing_behind(program, tmp_path):
    for path in (*SHARED, program):
        shutil.copy(path, tmp_path)
    load = f"import runpy; runpy.run_path({str(tmp_path / program.name)!r})"
    # Without site-packages, which have Ansible here.
    subprocess.run([sys.executable, "-I", "-S", "-c", load], check=True)
    assert {path.name for path in tmp_path.iterdir()} == {
        program.name,
        *(path.name for path in SHARED),
    }
