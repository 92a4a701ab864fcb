"""What becomes of an app's secrets; Podman's store itself is for the scenarios."""

from types import SimpleNamespace

import celery_secrets
import pytest
from ansible.module_utils.podman_store import Kept

FOUND = {
    name: Kept(value, {"version": f"mark-{name.lower()}"})
    for name, value in (("A", "one"), ("B", "two"), ("old", "x"))
}


def test_only_another_secret_gets_another_mark():
    marks, written = celery_secrets.versions({"A": "one", "B": "TWO", "C": "three"}, FOUND)
    assert written == ["B", "C"]
    assert marks["A"] == "mark-a"
    assert marks.keys() == {"A", "B", "C"}
    assert len({*marks.values(), "mark-b"}) == 4
    assert not any(value in mark for mark in marks.values() for value in ("TWO", "three"))


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize("remove", [["celery-app-old", "celery-app-gone", "celery-redis"], []])
def test_the_same_is_said_with_and_without_check(monkeypatch, check_mode, remove):
    did = []
    store = {f"celery-app-{name}": one for name, one in FOUND.items()}
    monkeypatch.setattr(celery_secrets, "kept", lambda _: {**store, "celery-redis": FOUND["A"]})
    monkeypatch.setattr(celery_secrets, "keep", lambda name, *_, **__: did.append(name))
    monkeypatch.setattr(celery_secrets, "output", lambda *words: did.append(words[-1]))
    module = SimpleNamespace(
        params={"secrets": {"A": "one", "B": "TWO"}, "broker": None, "remove": remove},
        check_mode=check_mode,
    )
    found = celery_secrets.bring(module)
    line, work = (
        ("remove secret celery-app-old", "celery-app-old")
        if remove
        else ("keep secret celery-app-B", "celery-app-B")
    )
    assert found["diff"]["prepared"].splitlines() == [line]
    assert did == ([] if check_mode else [work])


def test_of_a_broker_only_what_workers_have_is_touched(monkeypatch):
    names = ("celery-redis-worker", "celery-redis-ca", "celery-redis-worker-of-somebody")
    store = {name: Kept("x", {"version": f"mark-{name}"}) for name in names}
    did = []
    monkeypatch.setattr(celery_secrets, "kept", lambda _: store)
    monkeypatch.setattr(celery_secrets, "keep", lambda name, *_, **__: did.append(name))
    params = {"secrets": {"A": "one"}, "broker": {"celery-redis-worker": "x"}, "remove": []}
    found = celery_secrets.bring(SimpleNamespace(params=params, check_mode=False))
    assert did == ["celery-app-A"]
    assert found["broker"] == {"celery-redis-worker": "mark-celery-redis-worker"}
    assert found["versions"].keys() == {"A"}
    assert found["gone"] == ["celery-redis-ca"]
