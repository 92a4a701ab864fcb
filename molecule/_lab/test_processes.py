"""Processes that end while /proc is read."""

import subprocess
import sys

import pytest
from processes import children, has_ended

# One child that stays, and threads that come and go.
BUSY = """
import subprocess, threading
child = subprocess.Popen(["sleep", "600"])
print(child.pid, flush=True)
while True:
    for thread in [threading.Thread(target=str) for _ in range(20)]:
        thread.start()
"""


@pytest.fixture
def busy():
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as one:
        child = int(one.stdout.readline())
        yield one, child
        subprocess.run(["kill", "-9", str(one.pid), str(child)], check=True)


def test_threads_that_end_meanwhile_do_not_matter(busy):
    process, child = busy
    for _ in range(2000):
        assert children(process.pid) == [child]


def test_what_only_waits_for_its_parent_has_ended():
    with subprocess.Popen(["sleep", "600"]) as process:
        assert not has_ended(process.pid)
        process.kill()
        while not has_ended(process.pid):
            pass
        assert process.returncode is None
    assert has_ended(process.pid)
