"""What several of these tests use."""

import contextlib
import subprocess
import time

import pytest
from ansible.module_utils.celery_redis import Client


@pytest.fixture
def client(tmp_path):
    """A connection to a Redis of its own."""
    path = tmp_path / "redis.sock"
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""],
        stdout=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    end, found = time.monotonic() + 60, None
    while found is None:
        assert time.monotonic() < end
        with contextlib.suppress(OSError):  # its file is there before it listens
            found = Client(str(path), 5)
    yield found
    found.close()
    server.terminate()
    server.wait()
