"""celery_images: what is stopped, removed, and kept on record; Podman is for the scenarios."""

import json
import subprocess

import celery_images
import pytest
from ansible.module_utils import podman_images
from ansible.module_utils.celery_metal import HostError
from ansible.module_utils.podman_images import Found, Store

APP = "localhost/celery-metal/app:1"


def container(name, image, unit=None):
    labels = {"PODMAN_SYSTEMD_UNIT": unit} if unit else None
    return {"Names": [name], "ImageID": image, "Image": f"{image}:1", "Labels": labels}


def test_only_units_on_these_images_are_stopped():
    listed = [
        container("celery-a-1", "bad", "celery-a@1.service"),
        container("celery-b-1", "whole", "celery-b@1.service"),
        container("other", "whole"),
    ]
    assert celery_images.users(listed, {"bad"}) == {"celery-a-1": "celery-a@1.service"}


@pytest.mark.parametrize("unit", [None, "other.service"])
def test_a_container_of_others_is_not_stopped(unit):
    listed = [container("celery-a-1", "bad", "celery-a@1.service"), container("other", "bad", unit)]
    with pytest.raises(
        HostError, match=r"(?s)container other uses bad:1.*Fix: podman rm --force other"
    ):
        celery_images.users(listed, {"bad"})


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A host on which `bad` is damaged until Podman removes it; the commands that were run."""
    commands, left = [], [{"bad": "layer x is missing"}]
    images = {"bad": {"names": [APP], "layer": ""}}
    store = Store(tmp_path, "overlay", images, {})
    (tmp_path / "overlay").mkdir()

    def run(*argv):
        commands.append(" ".join(argv))
        if argv[1] == "rmi":
            left[0] = {}
        return subprocess.CompletedProcess(argv, 0, "", "it is in use")

    listed = [container("celery-a-1", "bad", "celery-a@1.service")]
    monkeypatch.setattr(celery_images.shutil, "which", lambda _: "/usr/bin/podman")
    monkeypatch.setattr(celery_images, "run", run)
    monkeypatch.setattr(celery_images, "output", lambda *_: json.dumps(listed))
    monkeypatch.setattr(podman_images, "current", lambda *_: store)
    monkeypatch.setattr(podman_images, "removable", lambda *_: (left[0], []))
    return commands


def test_units_stop_before_their_image_is_removed(host):
    done = celery_images.clean([APP], check_mode=False)
    assert host == [
        "systemctl stop -- celery-a@1.service",
        "podman rm --force --ignore celery-a-1",
        "podman rmi --force bad",
    ]
    assert (done["removed"], done["stopped"]) == ([APP], ["celery-a@1.service"])
    assert done["diff"]["prepared"] == (f"stop celery-a@1.service\nremove image {APP}\n")
    assert done["told"] == [
        f"removed {APP}: damaged: layer x is missing",
        "stopped celery-a@1.service, which ran on a damaged image",
    ]
    assert celery_images.clean([APP], check_mode=False)["changed"] is False
    assert len(host) == 3


def test_a_check_removes_nothing(host):
    assert celery_images.clean([APP], check_mode=True)["changed"]
    assert host == []


def test_what_podman_does_not_remove_has_a_remedy(host, monkeypatch):
    monkeypatch.setattr(podman_images, "removable", lambda *_: ({"bad": "layer x is missing"}, []))
    with pytest.raises(HostError, match=r"(?s)layer x is missing: it is in use\n  Fix: "):
        celery_images.clean([APP], check_mode=False)
    assert host[-1].startswith("podman system check --quick --repair")


def test_layers_that_podman_has_lost_are_removed(host, tmp_path):
    (tmp_path / "overlay" / ("a" * 64)).mkdir()
    celery_images.clean([APP], check_mode=False)
    assert host[-1].startswith("podman system check --quick --repair")


@pytest.fixture
def store(monkeypatch, tmp_path):
    """The results of one look after the other, and the record."""
    monkeypatch.setattr(celery_images, "RECORD", tmp_path / "kept/images.json")
    monkeypatch.setattr(podman_images, "RECORD", tmp_path / "kept/images.json")
    monkeypatch.setattr(podman_images, "place", lambda: (tmp_path, "overlay"))
    found = [Found({APP: "one", "other:1": "two"}, {}, [APP])]
    monkeypatch.setattr(podman_images, "look", lambda _: found[0])
    return found


def test_what_is_on_the_disk_is_kept_on_record(store):
    assert celery_images.record([APP, "none:1"], check_mode=True)["changed"]
    assert not celery_images.RECORD.exists()
    assert celery_images.record([APP, "none:1"], check_mode=False)["changed"]
    assert podman_images.recorded()["images"] == ["one"]
    assert not celery_images.record([APP], check_mode=False)["changed"]
    # Another version comes, the first one stays; then that is removed.
    store[0] = Found({APP: "one", "app:2": "three"}, {}, [])
    celery_images.record(["app:2"], check_mode=False)
    assert podman_images.recorded()["images"] == ["one", "three"]
    store[0] = Found({"app:2": "three"}, {}, [])
    celery_images.record(["app:2"], check_mode=False)
    assert podman_images.recorded()["images"] == ["three"]
    assert [one.name for one in celery_images.RECORD.parent.iterdir()] == ["images.json"]


def test_a_disk_that_takes_nothing_ends_the_run(store, monkeypatch):
    failed = subprocess.CompletedProcess((), 1, "", "sync: error syncing: Input/output error")
    monkeypatch.setattr(celery_images, "run", lambda *_: failed)
    with pytest.raises(HostError, match=r"(?s)not on the disk: .*Input/output error\n  Fix: "):
        celery_images.record([APP], check_mode=False)
    assert not celery_images.RECORD.exists()


def test_what_is_damaged_when_it_comes_is_kept_on_no_record(store):
    store[0] = Found({}, {APP: "layer x is missing"}, [])
    with pytest.raises(HostError, match=rf"(?s){APP}: layer x is missing\n  Fix: "):
        celery_images.record([APP], check_mode=False)
    assert not celery_images.RECORD.exists()
