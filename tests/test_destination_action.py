"""The action plugin celery_destination, and which records playbooks read before they act."""

from __future__ import annotations

import importlib.util
import pathlib
from types import ModuleType, SimpleNamespace
from typing import Any

import destinations
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.template import Templar, trust_as_template

ROOT = pathlib.Path(__file__).resolve().parents[1]
PLAYBOOKS = ROOT / "playbooks"
PRODUCTION = {"deploy_destination": "production"}
PROTECTED = {host: {**PRODUCTION, "deploy_protected": True} for host in ("web1", "web2", "shop1")}
GROUPS = {"celery": ["web1", "web2"], "redis": ["web1"], "celery_producers": ["shop1"]}


@pytest.fixture(scope="module")
def plugin() -> ModuleType:
    """By its path: the module of the same name is in a role."""
    path = PLAYBOOKS / "action_plugins/celery_destination.py"
    spec = importlib.util.spec_from_file_location("action_of_celery_destination", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(
    plugin: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    given: dict[str, Any],
    variables: dict[str, dict[str, Any]],
    *,
    check: bool = False,
) -> dict[str, Any]:
    """What the plugin returns for a run with one inventory."""
    monkeypatch.setattr(ActionBase, "run", lambda *_: {})
    names = {host for some in GROUPS.values() for host in some}
    hostvars = {host: variables.get(host, PRODUCTION) for host in names}
    manager = SimpleNamespace(extra_vars=given, _inventory=SimpleNamespace(_sources=["hosts.yml"]))
    action = plugin.ActionModule.__new__(plugin.ActionModule)
    action._task = SimpleNamespace(
        args=arguments, check_mode=check, get_variable_manager=lambda: manager
    )
    action._templar = Templar(DataLoader(), given)
    action._execute_module = lambda **words: {"destination": "staging", "of": words["module_name"]}
    found: dict[str, Any] = action.run(None, {"groups": GROUPS, "hostvars": hostvars, **given})
    return found


@pytest.mark.parametrize(
    ("arguments", "given", "text"),
    [
        ({"changes": True}, {}, "deploy_protected is true, and this run changes hosts"),
        ({"changes": "True"}, {}, "deploy_protected is true, and this run changes hosts"),
        ({"wants": "playbooks/remove.yml"}, {}, "and playbooks/remove.yml needs its name"),
        # Whatever the playbook is.
        ({}, {"drain_all": True}, "and drain_all needs its name as a confirmation"),
        ({}, {"yes": True, "drain_all": "{{ yes }}"}, "and drain_all needs its name"),
        ({}, {"destination": "staging"}, 'destination is "staging", and deploy_destination of'),
        ({}, {"destination_needs": "any"}, "destination_needs is set on the command line"),
    ],
)
def test_the_plugin_refuses(
    plugin: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    given: dict[str, Any],
    text: str,
) -> None:
    given = {
        name: trust_as_template(one) if isinstance(one, str) else one for name, one in given.items()
    }
    found = run(plugin, monkeypatch, arguments, given, PROTECTED)
    assert found["failed"]
    assert text in found["msg"]
    # The summary names it, for a refused run, too.
    assert found["destination"] == "production"


@pytest.mark.parametrize(
    ("arguments", "given", "check"),
    [
        ({"changes": True}, {}, True),
        ({"wants": "playbooks/remove.yml", "changes": True}, {"drain_all": True}, True),
        ({"changes": True}, {"destination": "production"}, False),
        ({"changes": False}, {"drain_all": "no"}, False),
    ],
)
def test_the_plugin_passes_on_the_destination(
    plugin: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    given: dict[str, Any],
    check: bool,
) -> None:
    found = run(plugin, monkeypatch, arguments, given, PROTECTED, check=check)
    assert found == {"destination": "production"}


def test_a_producer_of_another_destination_is_found_too(
    plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(plugin, monkeypatch, {}, {}, {"shop1": {"deploy_destination": "staging"}})
    assert '"production" on web1, web2 and "staging" on shop1, and a run has one' in found["msg"]
    assert "destination" not in found


def test_a_look_asks_the_host_alone(plugin: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(plugin, monkeypatch, {"step": "look"}, {"destination": "nowhere"}, {})
    assert found == {"destination": "staging", "of": "celery_destination"}


def test_a_directory_is_as_many_inventories_as_ansible_reads(
    plugin: ModuleType, tmp_path: pathlib.Path
) -> None:
    for name in ("a.yml", "b/c.yml", "d.yml~", "e.cfg", "group_vars/all.yml", "host_vars/a.yml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [*plugin.files_of(str(tmp_path))] == [
        str(tmp_path / one) for one in ("a.yml", "b/c.yml")
    ]
    assert [*plugin.files_of("web1,")] == ["web1,"]


def looked_at(run_on: str | None) -> list[str]:
    """The hosts whose record playbooks/run.yml reads."""
    (play,) = [one for one in yaml.safe_load((PLAYBOOKS / "run.yml").read_text()) if "hosts" in one]
    (task,) = [one for one in play["tasks"] if "destination_looks" in one.get("vars", {})]
    found = []
    for host in GROUPS["celery"]:
        variables = {"inventory_hostname": host, **({"run_on": run_on} if run_on else {})}
        looks = trust_as_template(task["vars"]["destination_looks"])
        if Templar(DataLoader(), variables).template(looks):
            found.append(host)
    return found


def test_run_reads_the_record_of_each_host_that_the_command_may_run_on() -> None:
    # Which host is the first one with the queue is known only later.
    for run_on in (None, "first", "all"):
        assert looked_at(run_on) == ["web1", "web2"]
    assert looked_at("web2") == ["web2"]


def test_a_host_that_run_leaves_alone_may_have_another_destination() -> None:
    hosts: dict[str, Any] = dict.fromkeys(("web1", "web2"), PRODUCTION)
    skipped = {"skipped": True, "changed": False}
    assert destinations.moved(hosts, {"web1": skipped, "web2": {"destination": "production"}}) == ""
    said = destinations.moved(hosts, {"web1": skipped, "web2": {"destination": "staging"}})
    assert said.startswith("web2: deployed for destination staging")
    # run.yml does not record a destination, so it moves no host.
    moving = {host: {**PRODUCTION, "destination_was": "staging"} for host in hosts}
    assert destinations.moved(moving, {"web2": {"destination": "staging"}}) == said


def places(playbook: str, *names: str) -> list[int]:
    """Where tasks stand in a playbook, of all that it has."""
    plays = yaml.safe_load((PLAYBOOKS / playbook).read_text())
    tasks = [task["name"] for play in plays for task in play.get("tasks", ())]
    return [tasks.index(name) for name in names]


def test_a_record_is_read_before_anything_runs_or_is_removed() -> None:
    checked, ran = places(
        "run.yml", "Check that hosts were deployed for no other destination", "Run the command"
    )
    assert checked < ran
    of_hosts, of_producers, *removed = places(
        "remove.yml",
        "Check that each host was deployed for no other destination",
        "Check that each has files of no other destination",
        "Drain and remove the workers",
        "Remove the files",
        "Remove Redis",
    )
    assert max(of_hosts, of_producers) < min(removed)
    # Hooks of site.yml: the checks are a playbook that it imports first.
    first, *rest = yaml.safe_load((PLAYBOOKS / "site.yml").read_text())
    assert first["ansible.builtin.import_playbook"] == "check.yml"
    hooks = [task["name"] for play in rest for task in play["tasks"] if "celery_run" in task]
    assert len(hooks) == 2
    assert places("check.yml", "Check that each host was deployed for no other destination")
