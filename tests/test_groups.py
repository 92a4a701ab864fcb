"""Every playbook refuses an inventory without hosts in a group, before a host is contacted."""

from __future__ import annotations

import pathlib

import groups
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_refusals import DEAF, QUEUES, Site

ONE, NO_REDIS, NO_CELERY = ["a"], "group redis (it has 0)", "group celery (it has 0)"
BOTH = {"celery": ONE, "redis": ONE}
ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("found", "needs", "is_external", "texts"),
    [
        ({}, "use", False, [NO_CELERY, NO_REDIS, "write hosts into the group celery; write one"]),
        ({}, "use", True, [NO_CELERY, "Fix: write hosts into the group celery. A host"]),
        ({"redis": ONE}, "use", False, [NO_CELERY, "redis (it has 1: a)", "Fix: write hosts into"]),
        ({"celery": ONE}, "use", False, ["celery (it has 1)", NO_REDIS, "redis_mode: external"]),
        ({"celery": [], "redis": ONE}, "deploy", False, [NO_CELERY]),
        ({"celery": ONE, "redis": []}, "deploy", False, [NO_REDIS]),
        ({"celery": ONE, "redis": ["a", "b"]}, "deploy", False, ["2: a, b", "take one host out"]),
        ({"Celery": ONE, "redis": ONE}, "use", False, ['"Celery": did you mean celery?']),
        ({"celery": ONE, "reddis": ONE}, "use", False, ['"reddis": did you mean redis?']),
        ({"celery": ONE, "r\x1bedis": ONE}, "use", False, ['"r\\u001bedis": did you mean redis?']),
        (
            {"all": ONE, "shop": ONE},
            "any",
            False,
            ["redis or celery_producers, and has none"],
        ),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(
    found: dict[str, list[str]], needs: str, is_external: bool, texts: list[str]
) -> None:
    said = groups.problem(found, needs, is_external=is_external)
    assert all(text in said for text in texts), said
    assert said.endswith("Nothing was changed.")
    assert said.count("\n  Fix: ") == 1


@pytest.mark.parametrize(
    ("found", "needs", "is_external"),
    [
        (BOTH, "use", False),
        (BOTH, "deploy", False),
        ({"celery": ONE}, "use", True),
        ({"celery": ONE, "redis": []}, "deploy", True),
        # Refused by site.yml alone: what only looks works.
        ({"celery": ONE, "redis": ["a", "b"]}, "use", False),
        ({"celery": ONE, "redis": ["a", "b", "c"]}, "deploy", False),
        *(({name: ONE}, "any", False) for name in groups.GROUPS),
    ],
)
def test_what_can_be_used_is_not_refused(
    found: dict[str, list[str]], needs: str, is_external: bool
) -> None:
    assert groups.problem(found, needs, is_external=is_external) == ""


@given(st.dictionaries(st.text(), st.lists(st.text(), max_size=2)), st.sampled_from(["use", "any"]))
def test_no_name_of_a_group_reaches_the_terminal(found: dict[str, list[str]], needs: str) -> None:
    assert groups.problem(found, needs).replace("\n", "").isprintable()


# Whole runs, against hosts whose address refuses connections.

INVENTORIES = {
    "none": "all: {hosts: {a: }}",
    "redis": "redis: {hosts: {a: }}",
    "celery": "celery: {hosts: {a: }}",
    "empty celery": "{celery: {hosts: {}}, redis: {hosts: {a: }}}",
    "empty redis": "{celery: {hosts: {a: }}, redis: {hosts: {}}}",
    "misspelled": "{celery: {hosts: {a: }}, reddis: {hosts: {a: }}}",
}
#: Playbook to an inventory that it refuses, and to what it needs besides.
REFUSING = {
    # Never on this machine, whatever the check does.
    "bundle": ("celery", "bundle_host=a"),
    "check": ("misspelled", ""),
    "dead": ("celery", ""),
    "doctor": ("empty redis", ""),
    "drain": ("misspelled", "drain_all=true"),
    "logs": ("redis", ""),
    "producer": ("celery", "producer_to=/nowhere"),
    "queues": ("empty redis", ""),
    "remove": ("none", "remove_confirmed=true"),
    "restore": ("none", "restore_file=redis-20261125T020000Z.rdb restore_confirmed=a"),
    "rollback": ("celery", "rollback_version=1"),
    "rotate-secrets": ("redis", ""),
    "run": ("misspelled", "run_command=true"),
    "site": ("empty celery", ""),
    "status": ("none", ""),
    "undrain": ("celery", ""),
    "upgrade": ("misspelled", ""),
}


def test_all_playbooks_are_tried() -> None:
    found = {path.stem for path in (pathlib.Path(__file__).parents[1] / "playbooks").glob("*.yml")}
    # These are parts of others.
    assert found - {"declared", "destination"} == set(REFUSING)


@pytest.fixture
def site(tmp_path: pathlib.Path) -> Site:
    site = Site(tmp_path)
    site.variables(f"{QUEUES}ansible_host: {DEAF['ansible_host']}\nansible_port: 1\n")
    return site


@pytest.mark.playbook
@pytest.mark.parametrize("name", REFUSING)
def test_every_playbook_refuses_an_inventory_that_lacks_hosts(site: Site, name: str) -> None:
    inventory, given_ = REFUSING[name]
    (site.directory / "hosts.yml").write_text(INVENTORIES[inventory])
    run = site.run("-e", given_ or "x=y", playbook=f"playbooks/{name}.yml")
    assert run.status == 2
    assert "The inventory needs " in run.said
    assert "Nothing was changed." in run.said.partition(" Fix: write ")[2]
    assert ("did you mean redis?" in run.said) == (inventory == "misspelled")
    for raw in ("UNREACHABLE", "Task failed", "undefined", "no attribute", "Traceback"):
        assert raw not in run.said, run.said


@pytest.mark.playbook
@pytest.mark.parametrize(
    ("name", "inventory", "mode"),
    [
        ("queues", "celery", "external"),
        ("dead", "empty redis", "external"),
        # All workers, or Redis, were removed and taken out of the inventory before.
        ("remove", "redis", "deploy"),
        ("remove", "celery", "deploy"),
    ],
)
def test_others_get_as_far_as_the_hosts(site: Site, name: str, inventory: str, mode: str) -> None:
    (site.directory / "hosts.yml").write_text(INVENTORIES[inventory])
    given_ = "remove_confirmed=true redis_external_url=redis://127.0.0.1:2/0"
    run = site.run("-e", f"{given_} redis_mode={mode}", playbook=f"playbooks/{name}.yml")
    assert "fatal: [a]: UNREACHABLE!" in run.said


def test_every_playbook_fills_in_a_template_with_a_test_before_it_forks() -> None:
    # Ansible loads all filters when it meets a test that Jinja lacks: without it in each fork.
    found = {}
    for path in sorted((ROOT / "playbooks").glob("*.yml")):
        first = yaml.safe_load(path.read_text())[0]
        imported = first.get("import_playbook") or first.get("ansible.builtin.import_playbook")
        found[path.name] = imported or "is truthy" in first["hosts"]
    slow = [name for name, one in found.items() if one is False]
    assert slow == []
    assert found["status.yml"] is True
