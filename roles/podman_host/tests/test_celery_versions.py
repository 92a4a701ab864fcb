"""celery_versions: which versions an operator may go back to, without a host."""

import json
from types import SimpleNamespace

import celery_versions
import pytest
from ansible.module_utils.celery_metal import HostError

SHOWN = {"localhost/app:2": "built 2026-11-28 23:10 UTC"}
IMAGES = ["localhost/app:1", "localhost/app:2", "localhost/app:3"]


def refusal(version, gone):
    gone = gone if isinstance(gone, dict) else dict.fromkeys(gone, "")
    with pytest.raises(HostError) as refused:
        celery_versions.chosen(version, IMAGES, gone, lambda images: SHOWN)
    return str(refused.value).splitlines()


def test_a_version_is_one_that_worked_and_whose_image_is_there():
    assert celery_versions.chosen("1", IMAGES, dict.fromkeys(IMAGES[1:], "")) == IMAGES[0]


def test_those_that_are_there_are_listed():
    assert celery_versions.listed(IMAGES, {IMAGES[0]: ""}, lambda images: SHOWN) == [
        "  images of 1 were removed from this host",
        "  this host has kept, the newest last:",
        "  - 2 (built 2026-11-28 23:10 UTC)",
        "  - 3",
    ]


def test_a_version_whose_image_is_gone_is_refused_and_not_offered():
    said = refusal("1", IMAGES[:1])
    assert said[0] == (
        "rollback_version is 1, and its image was removed from this host, as "
        "'podman system prune -a' does"
    )
    assert "  - 1" not in said
    assert refusal("9", IMAGES[:2]) == [
        "rollback_version is 9",
        "  images of 1, 2 were removed from this host",
        "  this host has kept, the newest last:",
        "  - 3",
        "  Fix: give one of them with -e rollback_version=TAG, or deploy the sources of another "
        "with site.yml. Nothing was changed.",
    ]


def test_a_version_whose_image_is_damaged_is_refused_and_not_offered():
    assert refusal("1", {IMAGES[0]: "layer x is missing", IMAGES[1]: ""})[:5] == [
        "rollback_version is 1",
        "  images of 2 were removed from this host",
        "  the image of 1 is damaged: layer x is missing",
        "  this host has kept, the newest last:",
        "  - 3",
    ]


def test_where_all_are_gone_the_sources_are_the_remedy():
    assert refusal("1", IMAGES)[1:] == [
        "  images of 1, 2, 3 were removed from this host",
        "  this host has kept the image of no version",
        "  Fix: deploy the sources of the version that you want with site.yml. Nothing was "
        "changed.",
    ]


@pytest.mark.parametrize("text", [None, "", "[]", "{}", json.dumps({"images": []})])
def test_where_no_version_has_worked_the_host_is_to_be_left_out(tmp_path, text):
    file = tmp_path / "workers.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(HostError, match=r"(?s)no version has worked there yet .* 'all:!web1'"):
        celery_versions.worked(file, "web1")


def test_those_that_worked_are_read_from_the_state(tmp_path):
    file = tmp_path / "workers.json"
    file.write_text(json.dumps({"images": IMAGES, "version": {}}))
    assert celery_versions.worked(file, "web1") == IMAGES


def test_date_and_commit_are_what_podman_reports(monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    labels = [{celery_versions.REVISION: one} for one in (commit, f"{commit}-dirty", "x\n")]
    created = ["2026-11-28T23:10:05.123456789Z", "x\n", ""]
    said = [{"Created": at, "Labels": one} for at, one in zip(created, labels, strict=True)]
    monkeypatch.setattr(celery_versions, "run", lambda *_: SimpleNamespace(stdout=json.dumps(said)))
    assert celery_versions.described(IMAGES) == {
        IMAGES[0]: "built 2026-11-28 23:10 UTC, commit 0123456789ab",
        IMAGES[1]: "commit 0123456789ab and uncommitted changes",
    }
    assert celery_versions.described(IMAGES[:2]) == celery_versions.described([]) == {}
