"""The tests of scenarios find what they import, before a host is made for them."""

import pathlib
import subprocess
import sys

MOLECULE = pathlib.Path(__file__).parents[1] / "molecule"
# Each in a process of its own, for each has a conftest.py; what they share is imported once.
COLLECT = """
import os, pathlib, sys
import celery, hypothesis, jinja2, pytest, redis, testinfra, yaml
failed = []
for scenario in sorted(path.parent for path in pathlib.Path(sys.argv[1]).glob("*/tests")):
    child = os.fork()
    if not child:
        os.chdir(scenario)
        os._exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests"]))
    if os.waitpid(child, 0)[1]:
        failed.append(scenario.name)
sys.exit(f"cannot be collected: {failed}" if failed else 0)
"""


def test_the_tests_of_each_scenario_can_be_collected():
    command = [sys.executable, "-c", COLLECT, MOLECULE]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr + found.stdout
    assert found.stdout.count("tests collected") == len([*MOLECULE.glob("*/tests")])
