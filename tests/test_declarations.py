"""The check of the kit's variables: types, ranges, choices, and names close to ours."""

from __future__ import annotations

import pathlib
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import StrictUndefined

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPECS = [
    yaml.safe_load(path.read_text())
    for path in sorted(ROOT.glob("roles/*/meta/argument_specs.yml"))
]
OPTIONS = {
    name: option
    for spec in SPECS
    for name, option in spec["argument_specs"]["main"]["options"].items()
}


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("The TCP port, 1 to 65535.", (1, 65535)),
        (["First line.", "After 10 to 3600 seconds."], (10, 3600)),
        ("As many as you like.", None),
        ("Version 2 too.", None),
    ],
)
def test_bounds(
    declarations: ModuleType, description: str | list[str], expected: tuple[int, int] | None
) -> None:
    assert declarations.bounds(description) == expected


INT = {"type": "int", "description": "From 1 to 9."}
STR: dict[str, Any] = {"type": "str"}


@pytest.mark.parametrize(
    ("value", "option", "text"),
    [
        (5, INT, ""),
        (0, INT, "x is 0: it must be a whole number, 1 to 9"),
        (10, INT, "x is 10: it must be a whole number, 1 to 9"),
        (True, INT, "x is True: it must be a whole number, 1 to 9"),
        (5.0, INT, "x is 5.0: it must be a whole number"),
        (None, INT, "x is None: it must be a whole number"),
        ("5", INT, 'x is "5": it must be a whole number, 1 to 9, without quotes'),
        (-1, {"type": "int"}, ""),
        (False, {"type": "bool"}, ""),
        (0, {"type": "bool"}, "x is 0: it must be true or false"),
        ("true", {"type": "bool"}, 'x is "true": it must be true or false, without quotes'),
        ("", STR, ""),
        (5, STR, "x is 5: it must be text"),
        (5, {}, "x is 5: it must be text"),
        (None, {"type": "path"}, "x is None: it must be text"),
        ("b", {"choices": ["a", "b"]}, ""),
        ("c", {"choices": ["a", "b"]}, 'x is "c": it must be one of a, b'),
        ({}, {"type": "dict"}, ""),
        ([], {"type": "dict"}, "x is []: it must be a mapping"),
        (["a", "b"], {"type": "list", "elements": "str"}, ""),
        (["a", 1, 2], {"type": "list", "elements": "str"}, "x[1] is 1: it must be text; x[2] is 2"),
        ("a", {"type": "list", "elements": "str"}, 'x is "a": it must be a list'),
        # A number or a word; the role that owns it knows more.
        (5, {"type": "raw"}, ""),
        ("auto", {"type": "raw"}, ""),
        (StrictUndefined(name="y"), STR, "x names something that is not defined: 'y' is undefined"),
    ],
)
def test_problem(declarations: ModuleType, value: Any, option: dict[str, Any], text: str) -> None:
    found = declarations.problem("x", value, option)
    assert found.startswith(text)
    assert bool(found) == bool(text)


def check(declarations: ModuleType, variables: dict[str, Any], **words: Any) -> str:
    return declarations.declaration_problems(variables, SPECS, "web1", **words)


def test_all_problems_of_a_host_one_to_a_line(declarations: ModuleType) -> None:
    said = check(declarations, {"redis_port": 0, "redis_adress": "x", "image_source": "build"})
    assert said.splitlines() == [
        "host web1:",
        "- redis_adress is no variable of the kit: did you mean redis_address?",
        "- redis_port is 0: it must be a whole number, 1 to 65535",
        "Nothing was changed.",
    ]


@pytest.mark.parametrize(
    "name",
    # Of other roles and of users: nothing of theirs is ours to judge.
    [
        "redis_exporter_version",
        "redis_cluster",
        "redis_host",
        "celery_flower_port",
        "image_registry",
        "nginx_port",
        "ansible_host",
        "podman_version",
    ],
)
def test_what_is_not_ours_is_let_pass(declarations: ModuleType, name: str) -> None:
    assert check(declarations, {name: object()}) == ""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("celery_queue", "celery_queues"),
        ("celery_worker_apps", "celery_worker_app"),
        ("capacity_reserv_mb", "capacity_reserve_mb"),
        ("podman_host_package", "podman_host_packages"),
        ("image_app_sources", "image_app_source"),
    ],
)
def test_a_misspelt_name_is_told(declarations: ModuleType, name: str, meant: str) -> None:
    assert f"did you mean {meant}?" in check(declarations, {name: 1})


def test_what_waits_for_facts_is_checked_with_them(declarations: ModuleType) -> None:
    variables = {"redis_address": StrictUndefined(name="ansible_facts")}
    assert check(declarations, variables) == ""
    assert "redis_address names something that is not" in check(
        declarations, variables, facts_known=True
    )


def test_queues_are_left_to_their_own_check(declarations: ModuleType) -> None:
    assert check(declarations, {"celery_queues": 5}) == ""


def test_the_defaults_of_all_roles_pass(declarations: ModuleType) -> None:
    defaults = {name: option["default"] for name, option in OPTIONS.items() if "default" in option}
    assert check(declarations, defaults) == ""


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(SCALARS, SCALARS, max_size=2)


@given(name=st.sampled_from(sorted(OPTIONS)), value=ANYTHING)
def test_any_value_is_accepted_or_refused_in_words(
    declarations: ModuleType, name: str, value: Any
) -> None:
    said = check(declarations, {name: value})
    assert said == "" or said.startswith("host web1:\n- ")
