"""What becomes of an app's secrets; Podman's store itself is for the scenarios."""

import json
from types import SimpleNamespace

import celery_secrets
import pytest
from ansible.module_utils.celery_metal import HostError
from celery_secrets import Kept

FOUND = {"A": Kept("one", "mark-a"), "B": Kept("two", "mark-b"), "old": Kept("x", "mark-old")}


def test_only_another_secret_gets_another_mark():
    marks, written = celery_secrets.versions({"A": "one", "B": "TWO", "C": "three"}, FOUND)
    assert written == ["B", "C"]
    assert marks["A"] == "mark-a"
    assert marks.keys() == {"A", "B", "C"}
    assert len({*marks.values(), "mark-b"}) == 4
    assert not any(value in mark for mark in marks.values() for value in ("TWO", "three"))


def test_the_store_is_read_by_the_app_s_names(monkeypatch):
    def output(*argv):
        if "ls" in argv:
            return "celery-redis-password\ncelery-app-A\nother\ncelery-app-key.pem\n"
        assert argv[-2:] == ("celery-app-A", "celery-app-key.pem")
        secrets = [("celery-app-A", "one", {"version": "m"}), ("celery-app-key.pem", "two", None)]
        return json.dumps(
            [
                {"Spec": {"Name": name, "Labels": labels}, "SecretData": value}
                for name, value, labels in secrets
            ]
        )

    monkeypatch.setattr(celery_secrets, "output", output)
    monkeypatch.setattr(celery_secrets.shutil, "which", lambda _: "/usr/bin/podman")
    assert celery_secrets.kept() == {"A": Kept("one", "m"), "key.pem": Kept("two", "")}


def test_a_secret_is_in_no_command_line_and_a_failure_does_not_tell_it(monkeypatch, tmp_path):
    podman = tmp_path / "podman"
    podman.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/words\ncat > {tmp_path}/input\nexit $FAIL\n'
    )
    podman.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("FAIL", "0")
    celery_secrets.write("A", "hush\nhush\n", "mark")
    assert (tmp_path / "input").read_text() == "hush\nhush\n"
    assert "hush" not in (tmp_path / "words").read_text()
    monkeypatch.setenv("FAIL", "125")
    with pytest.raises(HostError) as failed:
        celery_secrets.write("A", "hush", "mark")
    assert "did not keep the secret A" in str(failed.value)
    assert "hush" not in str(failed.value)


@pytest.mark.parametrize("check_mode", [True, False])
@pytest.mark.parametrize("prune", [True, False])
def test_the_same_is_said_with_and_without_check(monkeypatch, check_mode, prune):
    did = []
    monkeypatch.setattr(celery_secrets, "kept", lambda: FOUND)
    monkeypatch.setattr(celery_secrets, "write", lambda name, *_: did.append(name))
    monkeypatch.setattr(celery_secrets, "output", lambda *words: did.append(words[-1]))
    module = SimpleNamespace(
        params={"secrets": {"A": "one", "B": "TWO"}, "prune": prune}, check_mode=check_mode
    )
    found = celery_secrets.bring(module)
    line, work = (
        ("remove secret celery-app-old", "celery-app-old")
        if prune
        else ("keep secret celery-app-B", "B")
    )
    assert found["diff"]["prepared"].splitlines() == [line]
    assert did == ([] if check_mode else [work])
