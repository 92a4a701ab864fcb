"""Options of playbooks: a slip in a name, or a value that cannot be read, is refused."""

from __future__ import annotations

import pathlib
from typing import Any

import arguments
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_refusals import Site


def read(value: Any) -> Any:
    if "{{" in str(value):
        raise ValueError("'x' is undefined\n\x1b[2J")
    return value


def problem(playbook: str, variables: dict[Any, Any]) -> str:
    return arguments.problem(playbook, variables, variables, read)


@pytest.mark.parametrize(
    ("playbook", "name", "meant"),
    [
        ("queues", "queue", "one of queues_action, queues_from, "),
        ("queues", "queues", "one of queues_action, queues_from, "),
        ("queues", "queue_from", "queues_from"),
        ("queues", "queue_form", "queues_from"),
        ("queues", "action", "queues_action"),
        ("dead", "deads_action", "dead_action"),
        ("doctor", "format", "doctor_format"),
        ("doctor", "doctors_format", "doctor_format"),
        ("logs", "log_queue", "logs_queue"),
        ("logs", "since", "logs_since"),
        ("run", "queue", "run_queue"),
        ("run", "runs_command", "run_command"),
        ("producer", "producers_to", "producer_to"),
        ("status", "status_fromat", "status_format"),
        ("drain", "drain", "drain_all"),
        ("remove", "remove_confirm", "remove_confirmed"),
        # Would begin another rotation.
        ("rotate-secrets", "rotate_finnish", "rotate_finish"),
        ("rollback", "rollback_verson", "rollback_version"),
    ],
)
def test_a_slip_in_a_name_is_refused(playbook: str, name: str, meant: str) -> None:
    said = problem(playbook, {name: "a"})
    assert said.startswith(f"{name} is an unknown variable.\n  Fix: write {meant}")
    assert said.endswith(". Nothing was changed.")


def test_a_slip_beside_an_option_is_refused() -> None:
    given_ = {"queues_action": "pause", "queue_from": "a"}
    assert "write queues_from" in problem("queues", given_)


@pytest.mark.parametrize(
    ("playbook", "variables", "said"),
    [
        ("dead", {"dead_action": "{{ x }}"}, "dead_action cannot be read: 'x' is undefined"),
        ("status", {"status_format": "xml"}, 'status_format is "xml".\n  Fix: write table or json'),
        ("status", {"status_format": "JSON"}, 'status_format is "JSON"'),
        ("status", {"status_format": ["json"]}, "status_format is ['json']"),
        ("status", {"status_format": None}, "status_format is None"),
        # These would count as false.
        ("rotate-secrets", {"rotate_finish": "si"}, 'is "si".\n  Fix: write true or false'),
        ("remove", {"remove_confirmed": [True]}, "remove_confirmed is [True]"),
        ("drain", {"drain_all": ""}, 'drain_all is ""'),
    ],
)
def test_a_value_that_no_playbook_can_use_is_refused(
    playbook: str, variables: dict[str, Any], said: str
) -> None:
    assert said in problem(playbook, variables)


@pytest.mark.parametrize(
    ("playbook", "variables"),
    [
        *((playbook, {}) for playbook in arguments.OPTIONS),
        *(
            (playbook, dict.fromkeys(known, "1"))
            for playbook, known in arguments.OPTIONS.items()
            if playbook != "status"
        ),
        # Variables of an inventory's own, of Ansible's, and of other playbooks.
        ("queues", {"shop_version": "{{ x }}", "ansible_port": 22, "destination": "a"}),
        ("run", {"host": "web1", "run_environment": "prod"}),
        ("status", {"status_format": "json"}),
        ("rotate-secrets", {"rotate_finish": True, "rotate_certificates": "No"}),
        ("site", {"queue": "a", "status_format": "xml"}),
        # A file of the roles' variables, and a word of templates beside an option.
        ("producer", {"celery_producer_certificate": "worker", "producer_to": "/a"}),
        ("producer", {"celery_producer_broker_variables": ["A"]}),
        ("run", {"run_command": "true", "version": "1.2", "run": "42"}),
        ("run", {1: 2, "a": 3}),
        ("of-a-user", {"queue": "a"}),
    ],
)
def test_others_are_not_refused(playbook: str, variables: dict[Any, Any]) -> None:
    assert problem(playbook, variables) == ""


def test_a_name_is_shown_as_a_terminal_may_have_it() -> None:
    said = problem("rollback", {"rollback_versio\x1b": "1"})
    assert said.startswith('"rollback_versio\\u001b" is an unknown variable.')


@given(
    st.sampled_from(sorted(arguments.OPTIONS)),
    st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())),
)
def test_no_name_or_value_reaches_the_terminal(playbook: str, variables: dict[str, Any]) -> None:
    assert problem(playbook, variables).replace("\n", "").isprintable()


def test_each_playbook_of_the_table_exists() -> None:
    directory = pathlib.Path(__file__).parents[1] / "playbooks"
    assert all((directory / f"{playbook}.yml").is_file() for playbook in arguments.OPTIONS)


@pytest.mark.playbook
@pytest.mark.parametrize(
    ("name", "given_", "said"),
    [
        ("queues", "queue=emails", "queue is an unknown variable. Fix: write one of queues_action"),
        ("logs", "logs_since={{nowhere}}", "logs_since cannot be read: 'nowhere' is undefined"),
        ("status", "status_format=xml", 'status_format is "xml". Fix: write table or json'),
    ],
)
def test_a_run_is_refused_before_a_host_is_contacted(
    tmp_path: pathlib.Path, name: str, given_: str, said: str
) -> None:
    run = Site(tmp_path).run("-e", given_, playbook=f"playbooks/{name}.yml")
    assert run.status == 2
    assert said in run.said
    assert "Nothing was changed." in run.said
    assert "UNREACHABLE" not in run.said
    assert "Task failed" not in run.said
