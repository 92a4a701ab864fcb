"""Load the playbooks' filters and the tools by their paths: they are files, not packages."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from types import ModuleType

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def load(path: str) -> ModuleType:
    """Import one Python file of the checkout."""
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def declarations() -> ModuleType:
    return load("playbooks/filter_plugins/declarations.py")


@pytest.fixture(scope="session")
def clients() -> ModuleType:
    return load("playbooks/filter_plugins/clients.py")


@pytest.fixture(scope="session")
def external() -> ModuleType:
    return load("playbooks/filter_plugins/external.py")


@pytest.fixture(scope="session")
def fleet() -> ModuleType:
    return load("playbooks/filter_plugins/fleet.py")


@pytest.fixture(scope="session")
def capacity() -> ModuleType:
    return load("roles/capacity/filter_plugins/capacity.py")


@pytest.fixture(scope="session")
def document() -> ModuleType:
    return load("tools/document.py")
