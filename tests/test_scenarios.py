"""The tests of scenarios find what they import, before a host is made for them."""

import os
import pathlib

import pytest

SCENARIOS = sorted(
    path.parent for path in pathlib.Path(__file__).parents[1].glob("molecule/*/tests")
)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.name)
def test_its_tests_can_be_collected(scenario):
    child = os.fork()
    if not child:  # of its own: each has a conftest.py of that name
        os.chdir(scenario)
        os._exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests"]))
    assert os.waitpid(child, 0)[1] == 0
