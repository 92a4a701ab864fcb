"""What a role documents is what it has: argument specs, defaults and names do not drift apart."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if (path / "meta").is_dir())
# They belong to no role: they are what users write, for the whole kit.
UNPREFIXED = {
    *("celery_app", "celery_beat", "celery_beat_hosts"),
    *("celery_queue_overrides", "celery_queues"),
    *("deploy_destination", "deploy_hooks", "deploy_protected"),
    *("celery_beat_environment", "celery_beat_quadlet"),
    *("celery_beat_secrets", "celery_beat_volumes"),
}


def spec(role: str) -> dict[str, Any]:
    text = (ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text()
    return yaml.safe_load(text)["argument_specs"]["main"]


def defaults(role: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text()) or {}


def options(found: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, option in found["options"].items():
        yield prefix + name, option
        if "options" in option:
            yield from options(option, f"{prefix}{name}.")


def test_all_roles_are_found() -> None:
    assert {"capacity", "celery_worker", "image", "podman_host", "redis"} <= set(ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_spec_say_the_same(role: str) -> None:
    documented = {
        name: option["default"]
        for name, option in spec(role)["options"].items()
        if "default" in option
    }
    assert documented == defaults(role)
    undocumented = set(spec(role)["options"]) - set(documented)
    assert undocumented <= UNPREFIXED


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_carries_the_role_s_prefix(role: str) -> None:
    names = set(spec(role)["options"]) | set(defaults(role))
    assert [name for name in sorted(names - UNPREFIXED) if not name.startswith(f"{role}_")] == []


@pytest.mark.parametrize("role", ROLES)
def test_internal_variables_begin_with_underscores(role: str) -> None:
    path = ROOT / "roles" / role / "vars" / "main.yml"
    internals = yaml.safe_load(path.read_text()) if path.exists() else {}
    assert [name for name in internals if not name.startswith(f"__{role}_")] == []


@pytest.mark.parametrize("role", ROLES)
def test_every_option_is_described_in_whole_sentences(role: str) -> None:
    found = spec(role)
    texts = [("role", found["description"])]
    texts += [(name, option.get("description", "")) for name, option in options(found)]
    for name, description in texts:
        sentences = [description] if isinstance(description, str) else description
        assert sentences, name
        for sentence in sentences:
            assert sentence.endswith("."), (name, sentence)
    assert found["short_description"]


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_used(role: str) -> None:
    """In a task, template or internal variable of the role, in a playbook, a filter or an action.

    The filters of other roles read variables of the whole kit: capacity reads celery_beat.
    """
    places = [
        *(
            path
            for top in (ROOT / "roles" / role, ROOT / "playbooks")
            for path in top.rglob("*")
            if path.suffix in (".yml", ".j2") and path.parent.name not in ("meta", "defaults")
        ),
        *ROOT.glob("roles/*/filter_plugins/*.py"),
        *ROOT.glob("playbooks/filter_plugins/*.py"),
        *ROOT.glob("playbooks/action_plugins/*.py"),
    ]
    text = "\n".join(path.read_text() for path in places)
    unused = [name for name in spec(role)["options"] if not re.search(rf"\b{name}\b", text)]
    assert unused == []
