"""Reading what a host's tools print."""

import json

import celery_host
import pytest
from ansible.module_utils.celery_metal import HostError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("podman version 5.4.2\n", "5.4.2"),
        ("podman version 5.4.2-rhel\n", "5.4.2"),
        ("podman version 6.0.0-dev\n", "6.0.0"),
        ("podman:\n  Installed: (none)\n  Candidate: 5.4.2+ds1-2+b3\n", "5.4.2"),
        ("podman:\n  Candidate: 2:4.9.3+ds1-1\n", "4.9.3"),
        ("podman:\n  Installed: (none)\n  Candidate: (none)\n", ""),
        ("", ""),
        ("sh: podman: not found", ""),
    ],
)
def test_version(text, expected):
    assert celery_host.version(text) == expected


def test_a_missing_or_failing_command_prints_nothing():
    assert celery_host.told("no-such-command-here", "--version") == ""
    assert celery_host.told("sh", "-c", "echo text; exit 1") == ""
    assert celery_host.told("sh", "-c", "echo text") == "text\n"


def test_a_podman_that_fails_is_none_without_secrets(monkeypatch, tmp_path):
    # Without secrets Redis would get another password.
    podman = tmp_path / "podman"
    podman.write_text("#!/bin/sh\necho no space left >&2\nexit 125\n")
    podman.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for look in (celery_host.secrets, celery_host.images):
        with pytest.raises(HostError, match="no space left"):
            look()


def test_images_by_tag_and_digest(monkeypatch):
    listed = [
        {"Id": "aa", "Names": ["localhost/celery-metal/app:1"], "RepoDigests": None},
        {"Id": "bb", "Names": None, "RepoDigests": ["registry.example/redis@sha256:00"]},
        {"Id": "cc"},
    ]
    monkeypatch.setattr(celery_host, "output", lambda *_: json.dumps(listed))
    assert celery_host.images() == {
        "localhost/celery-metal/app:1": "aa",
        "registry.example/redis@sha256:00": "bb",
    }
    monkeypatch.setattr(celery_host, "output", lambda *_: "")
    assert celery_host.images() == {}


def test_only_labels_of_our_secrets(monkeypatch):
    asked = []

    def output(*argv):
        asked.append(argv)
        if "ls" in argv:
            return "celery-redis-acl\nother\ncelery-plain\n"
        return json.dumps(
            [
                {"Spec": {"Name": "celery-redis-acl", "Labels": {"version": "x"}}},
                {"Spec": {"Name": "celery-plain", "Labels": None}},
            ]
        )

    monkeypatch.setattr(celery_host, "output", output)
    assert celery_host.secrets() == {"celery-redis-acl": {"version": "x"}, "celery-plain": {}}
    assert "other" not in asked[-1]
    assert "--showsecret" not in asked[-1]


def test_nothing_is_missing_where_nothing_is_wanted():
    assert celery_host.missing_packages([]) == []


def test_apt_is_not_asked_where_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(celery_host, "told", lambda *argv: pytest.fail(f"{argv} costs each run"))
    assert celery_host.packages_known([])


@pytest.mark.parametrize(
    ("missing", "policy", "known"),
    [
        (["podman"], "", False),
        (["podman"], "podman:\n  Installed: (none)\n  Candidate: (none)\n", False),
        (["podman"], "podman:\n  Candidate: 5.4.2+ds1-2+b3\n", True),
        (["crun", "podman"], "podman:\n  Candidate: 5.4.2+ds1-2+b3\n", False),
    ],
)
def test_which_packages_the_package_manager_knows(monkeypatch, missing, policy, known):
    monkeypatch.setattr(celery_host, "told", lambda *_: policy)
    assert celery_host.packages_known(missing) is known
