"""Podman's store as the modules use it; the real one is for the scenarios."""

import json
import subprocess

import pytest
from ansible.module_utils import podman_images, podman_store
from ansible.module_utils.celery_metal import HostError
from ansible.module_utils.podman_store import Kept


def test_the_store_is_read_by_the_beginnings_of_names(monkeypatch):
    def output(*argv):
        if "ls" in argv:
            return "celery-redis-worker\ncelery-app-A\nother\ncelery-app-key.pem\n"
        assert argv[-2:] == ("celery-app-A", "celery-app-key.pem")
        secrets = [("celery-app-A", "one", {"version": "m"}), ("celery-app-key.pem", "two", None)]
        return json.dumps(
            [
                {"Spec": {"Name": name, "Labels": labels}, "SecretData": value}
                for name, value, labels in secrets
            ]
        )

    monkeypatch.setattr(podman_store, "output", output)
    monkeypatch.setattr(podman_store.shutil, "which", lambda _: "/usr/bin/podman")
    found = podman_store.kept("celery-app-")
    assert found == {
        "celery-app-A": Kept("one", {"version": "m"}),
        "celery-app-key.pem": Kept("two", {}),
    }
    assert [one.version for one in found.values()] == ["m", ""]


def test_a_secret_is_in_no_command_line_and_a_failure_does_not_tell_it(monkeypatch, tmp_path):
    podman = tmp_path / "podman"
    podman.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/words\ncat > {tmp_path}/input\nexit $FAIL\n'
    )
    podman.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("FAIL", "0")
    podman_store.keep("A", "hush\nhush\n", "So what.", version="mark", rules="r")
    assert (tmp_path / "input").read_text() == "hush\nhush\n"
    words = (tmp_path / "words").read_text().split()
    assert words[3:] == ["--label", "version=mark", "--label", "rules=r", "A", "-"]
    monkeypatch.setenv("FAIL", "125")
    with pytest.raises(HostError) as failed:
        podman_store.keep("A", "hush", "So what.", version="mark")
    assert "did not keep the secret A: . So what." in str(failed.value)
    assert "hush" not in str(failed.value)


def test_images_that_are_gone_are_those_that_podman_does_not_have_and_those_that_are_damaged(
    monkeypatch,
):
    codes = {"a:1": 0, "a:2": 1, "a:3": 125}
    damaged = {"a:4": "layer x is missing"}

    def run(*argv):
        assert argv[:-1] == ("podman", "image", "exists")
        return subprocess.CompletedProcess(argv, codes[argv[-1]], "", "no such store")

    monkeypatch.setattr(podman_store, "run", run)
    found = podman_images.Found({}, damaged, [])
    monkeypatch.setattr(podman_images, "look", lambda _: found)
    assert podman_store.images_gone(["a:2", "a:1", "a:2", "a:4"]) == {"a:2": "", **damaged}
    assert podman_store.images_gone([]) == {}
    with pytest.raises(HostError, match="has a:3: no such store\n  Fix: "):
        podman_store.images_gone(["a:3"])
