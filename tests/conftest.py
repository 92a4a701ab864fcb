"""The playbooks' filters and the tools as fixtures."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from types import ModuleType

import ansible.module_utils
import capacity as capacity_filters
import clients as clients_filters
import declarations as declarations_filters
import external as external_filters
import fleet as fleet_filters
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# As roles/conftest.py does, for tests of this directory alone.
ansible.module_utils.__path__.extend(map(str, ROOT.glob("roles/*/module_utils")))


@pytest.fixture(scope="session")
def declarations() -> ModuleType:
    return declarations_filters


@pytest.fixture(scope="session")
def clients() -> ModuleType:
    return clients_filters


@pytest.fixture(scope="session")
def external() -> ModuleType:
    return external_filters


@pytest.fixture(scope="session")
def fleet() -> ModuleType:
    return fleet_filters


@pytest.fixture(scope="session")
def capacity() -> ModuleType:
    return capacity_filters


@pytest.fixture(scope="session")
def document() -> ModuleType:
    """tools/ is not on sys.path: its test.py would hide the standard library's `test`."""
    spec = importlib.util.spec_from_file_location("document", ROOT / "tools" / "document.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
