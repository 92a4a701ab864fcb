"""A stop that cannot end writing first says so; molecule/access counts what it is for."""

import subprocess
import sys
from pathlib import Path

ROLES = Path(__file__).parents[2]
PROGRAM = ROLES / "redis/files/redis_stop.py"


def test_a_redis_that_cannot_be_asked_stops_all_the_same(tmp_path):
    for path in (PROGRAM, ROLES / "podman_host/module_utils/celery_redis.py"):
        (tmp_path / path.name).write_text(path.read_text())
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / PROGRAM.name)],
        env={"PATH": str(tmp_path)},  # without Podman
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("<4>Redis stops while programs write: ")
    assert "podman" in done.stdout
