"""What the fixture for tests of the kit does by itself."""

import subprocess
import sys
import time

from kit_fixtures import end_all
from processes import descendants

FAMILY = """
import os, subprocess, sys, time
if os.fork() == 0:
    os.setsid()  # as Ansible's workers do
    subprocess.Popen(["sleep", "60"])
print("there", flush=True)
time.sleep(60)
"""


def ended(pid):
    """Whether it runs no more; nobody may have waited for it yet."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_no_process_outlives_the_one_that_started_it():
    with subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while len(family := descendants(process.pid)) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        end_all(process.pid)
    while not all(map(ended, family)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
