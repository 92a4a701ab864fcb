"""A repository that apt installs from, and believes only as far as its checksums."""

import subprocess

import debian_packages
import pytest


@pytest.fixture
def repository(tmp_path):
    """A repository with one package, and a function that runs apt with its configuration."""
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = "Package: metal-probe\nVersion: 1:2.0\nArchitecture: all\n"
    control += "Maintainer: nobody <nobody@example.com>\nDescription: nothing\n more of it\n"
    (tree / "DEBIAN" / "control").write_text(control)
    debs = tmp_path / "debs"
    debs.mkdir()
    deb = debs / "metal-probe_1%3a2.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", tree, deb], check=True, capture_output=True)
    debian_packages.repository(debs, str(debs))

    def apt(*words):
        options = ["-o", f"Dir::State::status={tmp_path}/status", "-o", f"Dir::Cache={tmp_path}"]
        (tmp_path / "status").touch()
        (tmp_path / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            ["apt-get", *options, *words],
            env={"APT_CONFIG": f"{debs}/apt.conf", "PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )

    return deb, apt


def test_apt_finds_what_is_in_it_and_nothing_else(repository):
    _, apt = repository
    assert apt("update").returncode == 0
    assert "Inst metal-probe (1:2.0 " in apt("install", "--simulate", "metal-probe").stdout
    # The mirrors of this machine are not asked, and their lists are not read.
    assert "Unable to locate package bash" in apt("install", "--simulate", "bash").stderr


def test_apt_refuses_a_package_that_is_not_the_one_that_was_packed(repository):
    deb, apt = repository
    assert apt("update").returncode == 0
    deb.write_bytes(deb.read_bytes()[:-1] + b"x")
    done = apt("install", "--yes", "--download-only", "metal-probe")
    assert done.returncode
    assert "Hash Sum mismatch" in done.stdout + done.stderr
