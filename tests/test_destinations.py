"""Destinations: a run for the wrong one is refused before a host is contacted or changed."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import celery_destinations
import destination
import destinations
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_refusals import DEAF, LOCAL, QUEUES, ROOT, Site

PRODUCTION = {"web1": ("production", None), "web2": ("production", None)}
PROTECTED = {"web1": ("production", True)}
NONE = {"web1": (None, None)}
BOTH = {"a/production.yml": ["production"], "a/staging.yml": ["staging", "staging"]}


@pytest.mark.parametrize(
    ("declared", "given_", "inventories", "wants", "said"),
    [
        (PRODUCTION, {"deploy_destination": "staging"}, {}, "", "is set on the command line"),
        (PROTECTED, {"deploy_protected": False}, {}, "", "deploy_protected is set on the command"),
        (PROTECTED, {"destination_changes": "false"}, {}, "", "destination_changes is set on the"),
        (PROTECTED, {"destination_wants": ""}, {}, "a", "destination_wants is set on the command"),
        ({"web1": ("Prod", None)}, {}, {}, "", 'web1: deploy_destination is "Prod"'),
        ({"web1": ("a\n", None)}, {}, {}, "", 'web1: deploy_destination is "a\\n"'),
        ({"web1": (["a"], None)}, {}, {}, "", "web1: deploy_destination is ['a']"),
        ({"web1": ("a", "yes")}, {}, {}, "", 'web1: deploy_protected is "yes"'),
        ({"web1": (None, True)}, {}, {}, "", "deploy_protected is true, and deploy_destination is"),
        (
            {**PRODUCTION, "web3": ("staging", None), "web4": (None, None)},
            {},
            {},
            "",
            '"production" on web1, web2, "staging" on web3 and not set on web4, and a run has one',
        ),
        ({**PROTECTED, "web2": ("production", False)}, {}, {}, "", "deploy_protected is True on"),
        (
            PRODUCTION,
            {},
            BOTH,
            "",
            '"production" in a/production.yml and "staging" in a/staging.yml, and a run has one',
        ),
        (PRODUCTION, {"destination": "staging"}, {}, "", 'of this inventory is "production"'),
        (NONE, {"destination": "production"}, {}, "", "of this inventory is not set"),
        (PRODUCTION, {"destination": True}, {}, "", "destination is True, and deploy_destination"),
        (PRODUCTION, {}, {}, "remove.yml", "and remove.yml needs its name as a confirmation"),
        (PROTECTED, {}, {}, "", "deploy_protected is true, and this run changes hosts"),
    ],
)
def test_a_run_for_the_wrong_destination_is_refused(
    declared: Any, given_: Any, inventories: Any, wants: str, said: str
) -> None:
    found = destination.problem(declared, given_, inventories, wants, changes=True)
    assert said in found.partition("\n  Fix: ")[0]
    assert found.endswith(". Nothing was changed.")
    assert "\n  Fix: " in found


@pytest.mark.parametrize(
    ("declared", "given_", "inventories", "wants", "changes"),
    [
        ({}, {}, {}, "", True),
        (NONE, {}, {}, "remove.yml", True),
        (PRODUCTION, {}, {"a": ["production"], "b": [], "c": ["production"]}, "", True),
        (PRODUCTION, {"destination": "production"}, {}, "remove.yml", True),
        (PROTECTED, {"destination": "production"}, {}, "remove.yml", True),
        (PROTECTED, {}, {}, "", False),
        ({"web1": ("production", False)}, {}, {}, "", True),
    ],
)
def test_others_are_not(
    declared: Any, given_: Any, inventories: Any, wants: str, changes: bool
) -> None:
    assert destination.problem(declared, given_, inventories, wants, changes=changes) == ""


@given(st.one_of(st.none(), st.text(), st.integers(), st.lists(st.text())), st.booleans())
def test_no_name_but_an_allowed_one_passes_and_every_refusal_is_text(
    name: Any, is_protected: bool
) -> None:
    given_ = {"destination": name}
    found = destination.problem({"web1": (name, is_protected)}, given_, {}, "x", changes=True)
    if isinstance(name, str) and destination.NAME.fullmatch(name):
        assert found == ""
    elif name is not None or is_protected:
        assert found.count("\n") == 1
        assert found.replace("\n", "").isprintable()


@pytest.mark.parametrize("value", [True, "true", "yes", "production", 1])
@pytest.mark.parametrize("name", destination.INSISTING)
def test_what_insists_is_found(name: str, value: Any) -> None:
    assert destination.insisting({name: value}) == name


@pytest.mark.parametrize("value", [False, "false", "no", "", None, 0])
def test_what_does_not_insist_is_not(value: Any) -> None:
    assert destination.insisting(dict.fromkeys(destination.INSISTING, value)) == ""


def moved(name: str | None, *recorded: Any, was: str = "", moves: bool = True) -> str:
    variables: dict[str, Any] = {"destination_was": was} if was else {}
    if name:
        variables["deploy_destination"] = name
    hosts = {f"web{place}": variables for place in range(len(recorded))}
    states = {f"web{place}": {"destination": one} for place, one in enumerate(recorded)}
    return destinations.moved(hosts, states, moves)


def test_hosts_keep_their_destination() -> None:
    assert moved("staging", "", "staging") == ""
    assert moved(None, "") == ""
    assert moved("staging", "production", "", "production").splitlines() == [
        "web0, web2: deployed for destination production "
        "(/var/lib/celery-metal/destination.json), and deploy_destination is staging.",
        "  Fix: take the inventory of production; -e destination_was=production moves a host, see "
        "docs/destinations.md#move-a-host. Nothing was changed.",
    ]
    assert "and deploy_destination is not set" in moved(None, "production")


def test_a_host_moves_only_from_the_destination_that_is_named() -> None:
    assert moved("staging", "production", "staging", was="production") == ""
    assert moved(None, "production", was="production") == ""
    assert "production" in moved("staging", "production", was="preview")
    # Not by a playbook that does not record the new one.
    assert "production" in moved("staging", "production", was="production", moves=False)


def test_a_host_without_an_answer_is_passed_over() -> None:
    hosts: dict[str, Any] = {"web1": {"deploy_destination": "staging"}}
    assert destinations.moved(hosts, {"web1": {"unreachable": True, "msg": "no"}}) == ""
    assert destinations.moved(hosts, {"web1": {"failed": True, "msg": "no"}}) == ""
    # An answer without it is none of the module's.
    assert "web1: " in destinations.moved(hosts, {"web1": {"changed": False}})


@pytest.mark.parametrize("recorded", [None, 1, "\x1b[2J", "a" * 999, ["production"], "?"])
def test_what_no_run_has_recorded_is_refused(recorded: Any) -> None:
    for was in ("", "production", "?"):
        said = moved("production", recorded, was=was)
        assert "which is no name of a destination" in said
        assert said.replace("\n", "").isprintable()
        assert len(said) < 400


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"destination": "production"}\n', "production"),
        *((text, "?") for text in ("", "[]", "{}", '{"destination": 1}', '{"destination": ""}')),
        ("\xff", "?"),
    ],
)
def test_the_name_on_a_host(tmp_path: pathlib.Path, text: str, name: str) -> None:
    path = tmp_path / "destination.json"
    assert celery_destinations.recorded_destination(path) == ""
    path.write_bytes(text.encode("latin-1"))
    assert celery_destinations.recorded_destination(path) == name


# Whole runs, against hosts whose address refuses connections.

EXAMPLE = ROOT / "inventory/destinations"
REFUSED = "needs its name as a confirmation; destination is not set"
#: Playbook and variables of all that must be confirmed.
CONFIRMED = {
    "remove": "remove_confirmed=true",
    "restore": "restore_file=redis-20261125T020000Z.rdb restore_confirmed=web1",
    "rollback": "rollback_version=1",
    "rotate-secrets": "",
    "dead": "dead_action=delete dead_all=true dead_confirmed=true",
    "queues": "queues_action=purge queues_from=emails queues_confirmed=true",
    "drain": "drain_all=true",
    "site": "broker_left=true",
    "upgrade": "queues_left=true destination_was=staging",
}
#: Of all that changes hosts, and needs no confirmation in any other destination.
CHANGES = {
    "site": "",
    "upgrade": "",
    "undrain": "",
    "run": "run_command=true",
    "dead": "dead_action=send dead_all=true",
    "queues": "queues_action=move queues_from=a queues_to=emails",
}
#: Of what only looks; dead, queues, restore and rollback are in CONFIRMED, by the same way.
LOOKS = ("check", "doctor", "logs", "producer", "status")


@pytest.fixture
def site(tmp_path: pathlib.Path) -> Site:
    site = Site(tmp_path)
    site.variables(f"{QUEUES}deploy_destination: production\n")
    return site


@pytest.mark.playbook
@pytest.mark.parametrize("name", CONFIRMED)
def test_what_must_be_confirmed_names_the_destination(site: Site, name: str) -> None:
    path, given_ = f"playbooks/{name}.yml", CONFIRMED[name]
    run = site.run("-e", given_ or "x=y", playbook=path)
    assert run.status != 0
    assert "deploy_destination is production, and " in run.said
    assert REFUSED in run.said
    assert "then add -e destination=production. Nothing was changed." in run.said
    assert "SUMMARY of production" in run.said
    assert "UNREACHABLE" not in run.said


@pytest.mark.playbook
@pytest.mark.parametrize("name", CHANGES)
def test_a_protected_destination_is_named_for_every_change(site: Site, name: str) -> None:
    path, given_ = f"playbooks/{name}.yml", CHANGES[name] or "x=y"
    site.variables(f"{QUEUES}deploy_destination: production\ndeploy_protected: true\n")
    run = site.run("-e", given_, playbook=path)
    assert run.status != 0
    assert "deploy_protected is true, and this run changes hosts; destination is not" in run.said
    assert "UNREACHABLE" not in run.said
    # With it the run gets as far as the hosts, and reports that they do not answer.
    run = site.run("-e", f"{given_} destination=production", playbook=path)
    assert run.status != 0
    assert "fatal: [web1]: UNREACHABLE!" in run.said
    assert "FAILED web1" in run.said


@pytest.mark.playbook
@pytest.mark.parametrize("name", LOOKS)
def test_a_look_refuses_a_wrong_name(site: Site, name: str) -> None:
    path = f"playbooks/{name}.yml"
    run = site.run("-e", "destination=staging", playbook=path)
    assert run.status != 0
    said = 'destination is "staging", and deploy_destination of this inventory is "production"'
    assert said in run.said
    assert "UNREACHABLE" not in run.said


@pytest.mark.playbook
def test_a_look_and_check_need_no_name(site: Site) -> None:
    site.variables(f"{QUEUES}deploy_destination: production\ndeploy_protected: true\n")
    for words in (["--check", "-e", "queues_left=true"], ["-e", "dead_action=list"]):
        path = "playbooks/dead.yml" if "--check" not in words else "site.yml"
        run = site.run(*words, playbook=path)
        assert "destination is not set" not in run.said
        assert "UNREACHABLE" in run.said


@pytest.mark.playbook
def test_a_switch_that_is_a_list_is_refused(site: Site) -> None:
    site.variables(f"{QUEUES}deploy_destination: production\ndeploy_protected: [true]\n")
    run = site.run(playbook="playbooks/drain.yml")
    assert "deploy_protected is [True]" in run.said
    assert "Fix: write true or false" in run.said


@pytest.mark.playbook
def test_a_template_that_fails_is_named(site: Site) -> None:
    site.variables(f"{QUEUES}deploy_destination: '{{{{ nowhere }}}}'\n")
    for playbook in ("site.yml", "playbooks/drain.yml"):
        run = site.run(playbook=playbook)
        assert "the destination of this run cannot be read: " in run.said
        assert "'nowhere' is undefined" in run.said
        assert "UNREACHABLE" not in run.said


@pytest.mark.playbook
def test_an_inventory_does_not_confirm_itself(site: Site) -> None:
    site.variables(f"{QUEUES}deploy_destination: production\ndestination: production\n")
    run = site.run("-e", "remove_confirmed=true", playbook="playbooks/remove.yml")
    assert REFUSED in run.said
    assert "UNREACHABLE" not in run.said


def inventory(directory: pathlib.Path, name: str, host: str, within: bool) -> str:
    """An inventory of one host for a destination; its name within the file, or beside it."""
    variables = {**LOCAL, **({"deploy_destination": name} if within else {})}
    groups = {group: {"hosts": {host: None}} for group in ("celery", "redis")}
    path = directory / f"{name}.yml"
    directory.mkdir(exist_ok=True)
    path.write_text(json.dumps({"all": {"vars": variables, "children": groups}}))
    if not within:
        (directory / "group_vars").mkdir()
        (directory / "group_vars/all.yml").write_text(json.dumps({"deploy_destination": name}))
    return str(path)


@pytest.mark.playbook
@pytest.mark.parametrize("within", [True, False])
def test_two_inventories_with_the_same_host_are_refused(
    tmp_path: pathlib.Path, within: bool
) -> None:
    # All hosts get the variables of the last one.
    one, other = (tmp_path if within else tmp_path / name for name in ("staging", "production"))
    sources = [inventory(one, "staging", "web1", within)]
    sources += [inventory(other, "production", "web1", within)]
    ways = [[f"-i{path}" for path in sources]] + ([[f"-i{tmp_path}"]] if within else [])
    for way in ways:
        run = Site.run_with(*way)
        assert run.status != 0
        said = f'deploy_destination is "production" in {sources[1]} and "staging" in {sources[0]}'
        assert said in run.said
        assert "UNREACHABLE" not in run.said


@pytest.mark.playbook
def test_the_example() -> None:
    deaf = json.dumps(DEAF)
    production = Site.run_with(f"-i{EXAMPLE}/production.yml", "-e", "destination=production")
    for host in ("broker1", "worker1", "worker2"):
        assert f"{host} cannot be reached" in production.said
    assert "SUMMARY of production" in production.said
    staging = Site.run_with(f"-i{EXAMPLE}/staging.yml", "-e", deaf)
    assert "stage1 cannot be reached" in staging.said
    both = Site.run_with(f"-i{EXAMPLE}")
    said = f'"production" in {EXAMPLE}/production.yml and "staging" in {EXAMPLE}/staging.yml'
    assert said in both.said


@pytest.mark.playbook
def test_each_destination_has_its_vault(tmp_path: pathlib.Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "shop")
    bin_ = pathlib.Path(sys.executable).parent
    for name in ("production", "staging"):
        password = tmp_path / f"{name}.txt"
        password.write_text(f"password of {name}\n")
        path = tmp_path / f"shop/group_vars/{name}/vault.yml"
        path.write_text(f"vault_database_url: postgres://{name}\n")
        vault = [bin_ / "ansible-vault", "encrypt", "--encrypt-vault-id", name]
        vault += ["--vault-id", f"{name}@{password}", path]
        subprocess.run(vault, check=True, capture_output=True)

    def value(inventory: str, password: str) -> subprocess.CompletedProcess[str]:
        line = [bin_ / "ansible", "-i", tmp_path / f"shop/{inventory}.yml", "celery", "-c", "local"]
        line += ["--vault-id", f"{password}@{tmp_path}/{password}.txt"]
        line += ["-m", "debug", "-a", "var=vault_database_url"]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)

    for name in ("production", "staging"):
        assert f"postgres://{name}" in value(name, name).stdout
    wrong = value("production", "staging")
    assert wrong.returncode != 0
    assert "postgres" not in wrong.stdout
