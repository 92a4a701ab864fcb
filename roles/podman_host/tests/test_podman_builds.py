"""What interrupted builds leave, as Podman lists it; a real one is for the scenario remove."""

import json
import subprocess

import pytest
from ansible.module_utils import podman_builds

IMAGE, ID = "localhost/celery-metal/app:old", "26f5558edc9c"
IN_USE = "Error: image used by 9a62: image is in use by a container: consider listing external"


def container(name, image=ID, command="buildah"):
    return {"Names": [name], "ImageID": image, "Command": [command]}


class Podman:
    """A store with one image and these containers; the calls that change it."""

    def __init__(self, *containers):
        self.containers = list(containers)
        self.calls = []

    def run(self, *argv):
        done = subprocess.CompletedProcess(argv, 0, "", "")
        if argv[1] == "ps":
            assert "--external" in argv
            done.stdout = json.dumps(self.containers)
        elif argv[1:3] == ("image", "inspect"):
            done.stdout = f"{ID}\n"
        else:
            self.calls.append(argv[1:])
            if argv[1] == "rm":
                kept = [one for one in self.containers if one["Names"][0] not in argv[3:]]
                self.containers = kept
            elif argv[1] == "rmi" and any(one["ImageID"] == ID for one in self.containers):
                done.returncode, done.stderr = 2, f"{IN_USE}\n"
        return done


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Make a host with these containers, processes and programs."""

    def make(*containers, processes=(), buildah=None):
        podman = Podman(*containers)
        for number, words in enumerate(processes, 10):
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / "cmdline").write_bytes("\0".join(words).encode() + b"\0")
        (tmp_path / "20").mkdir()
        (tmp_path / "20" / "cmdline").symlink_to("gone")  # it has ended
        monkeypatch.setattr(podman_builds, "run", podman.run)
        monkeypatch.setattr(podman_builds, "PROC", tmp_path)
        monkeypatch.setattr(podman_builds.shutil, "which", lambda _: buildah)
        return podman

    return make


def test_an_image_that_nothing_uses_goes_by_one_call(host):
    podman = host(container("other-working-container", image="f4210a27411"))
    assert podman_builds.removal(IMAGE) == ""
    assert podman.calls == [("rmi", IMAGE)]


def test_what_an_interrupted_build_has_left_goes_with_the_image(host):
    podman = host(
        container("app-working-container"),
        container("other-working-container", image="f4210a27411"),
        processes=[("sh", "-c", "podman build"), ("podman", "run", "x")],
    )
    assert podman_builds.removal(IMAGE) == ""
    assert podman.calls[:3] == [
        ("rmi", IMAGE),
        ("rm", "--force", "app-working-container"),
        ("rmi", IMAGE),
    ]
    assert [one["Names"] for one in podman.containers] == [["other-working-container"]]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("/usr/bin/podman", "build", "--network=host", "."), "podman build, process 10"),
        (("podman", "--root", "/x", "image", "build"), "podman build, process 10"),
        (("buildah-oci-runtime",), "buildah-oci-runtime, process 10"),
    ],
)
def test_a_build_that_runs_keeps_its_image_and_is_named(host, words, name):
    podman = host(container("app-working-container"), processes=[words])
    assert podman_builds.removal(IMAGE) == (
        f"a build uses it ({name}). The next change of a worker removes it"
    )
    assert podman.calls == [("rmi", IMAGE)]


def test_containers_that_somebody_may_work_in_are_named_and_stay(host):
    podman = host(container("app-working-container"), buildah="/usr/bin/buildah")
    said = podman_builds.removal(IMAGE)
    assert said.startswith(
        "these containers of Buildah use it: app-working-container. Fix: 'podman"
    )
    assert said.endswith(f"'podman rmi {IMAGE}'")
    assert podman.calls == [("rmi", IMAGE)]


def test_a_container_of_another_is_never_removed_and_podman_names_it(host):
    podman = host(container("theirs", command="sleep"), container("app-working-container"))
    assert podman_builds.removal(IMAGE) == IN_USE
    assert [one["Names"] for one in podman.containers] == [["theirs"]]
