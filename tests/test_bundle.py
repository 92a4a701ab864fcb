"""What goes into a bundle, and what does not."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import subprocess
import tarfile
from types import ModuleType

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bundle() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bundle", ROOT / "tools" / "bundle.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parts(tmp_path: pathlib.Path) -> pathlib.Path:
    """What the playbook leaves for the script, with other content."""
    directory = tmp_path / "parts"
    (directory / "images").mkdir(parents=True)
    for name in ("images/app.tar", "images/redis.tar", "packages.tar"):
        (directory / name).write_text(name)
    return directory


@pytest.fixture
def offline(bundle: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the package index: one wheel, which is none."""

    def download(_: pathlib.Path, target: pathlib.Path) -> None:
        target.mkdir()
        (target / "uv-1-py3-none-any.whl").write_text("no archive")

    monkeypatch.setattr(bundle, "download", download)


def pins(path: pathlib.Path) -> dict[str, set[str]]:
    """Requirement to its hashes, from a lock file."""
    found = {}
    for block in re.split(r"\n(?=\S)", path.read_text()):
        name = re.match(r"[\w.-]+==[\w.]+", block)
        if name:
            found[name.group()] = set(re.findall(r"sha256:\w+", block))
    return found


def test_the_controller_of_a_bundle_is_that_of_the_checkout(bundle: ModuleType) -> None:
    small, whole = pins(ROOT / bundle.LOCK), pins(ROOT / "requirements.lock")
    assert {name.partition("==")[0] for name in small} >= {"ansible", "ansible-core", "uv"}
    assert small.items() <= whole.items()


def test_the_kit_is_whole_and_no_inventory_of_the_user_is_in_it(
    bundle: ModuleType, tmp_path: pathlib.Path
) -> None:
    checkout = tmp_path / "checkout"
    for name in [*bundle.KIT, "inventory/shop", ".git", ".venv", ".cache"]:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            (checkout / name).write_text("x")
        else:
            (checkout / name / "tests").mkdir(parents=True)
            for inside in ("hosts.yml", "conftest.py", "tests/test_x.py", "bundle.yml"):
                (checkout / name / inside).write_text("x")
    bundle.copy_kit(checkout, tmp_path / "kit")
    copied = {str(one.relative_to(tmp_path / "kit")) for one in (tmp_path / "kit").rglob("*")}
    assert "site.yml" in copied
    assert "inventory/cluster/hosts.yml" in copied
    assert not [name for name in copied if re.search(r"shop|^\.|tests|bundle|conftest", name)]


def test_all_that_the_playbooks_name_is_in_the_kit(
    bundle: ModuleType, tmp_path: pathlib.Path
) -> None:
    bundle.copy_kit(ROOT, tmp_path)
    for playbook in (tmp_path / "playbooks").glob("*.yml"):
        for name in re.findall(r"import_playbook: (\S+)", playbook.read_text()):
            assert (playbook.parent / name).is_file(), (playbook.name, name)
    used = set(
        re.findall(
            r"\.\./\.\./(app/[\w-]+)", (ROOT / "roles/image").joinpath("vars/main.yml").read_text()
        )
    )
    assert used
    assert all((tmp_path / name).is_dir() for name in used)


def test_what_is_missing_is_named(bundle: ModuleType, parts: pathlib.Path) -> None:
    (parts / "packages.tar").unlink()
    with pytest.raises(bundle.BundleError, match=r"has no packages\.tar: run playbooks/bundle"):
        bundle.make(parts, parts.with_name("out.tar"))
    assert not parts.with_name("out.tar").exists()


def test_wheels_that_cannot_be_had_are_named(
    bundle: ModuleType, parts: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(bundle.BundleError, match=r"(?s)Python 3\.12 could not.*No matching dist"):
        bundle.make(parts, parts.with_name("out.tar"))
    assert not parts.with_name("out.tar").exists()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_the_installer_names_what_is_not_as_it_was(
    bundle: ModuleType, parts: pathlib.Path, damage: str
) -> None:
    output = parts.with_name("out.tar")
    digest = bundle.make(parts, output)
    known = subprocess.run(["sha256sum", output], capture_output=True, text=True, check=True)
    assert known.stdout.split()[0] == digest
    assert [one.name for one in output.parent.iterdir()] == ["out.tar"]
    with tarfile.open(output) as tar:
        assert {(one.uid, one.mode & 0o022) for one in tar.getmembers()} == {(0, 0)}
        tar.extractall(output.parent, filter="data")
    top = output.parent / bundle.NAME
    image = top / "images" / "app.tar"
    if damage == "changed":
        image.write_text("images/app.taR")
    else:
        image.unlink()
    done = subprocess.run([top / "install.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "images/app.tar: FAILED" in done.stdout
    assert "install: this bundle is not whole" in done.stderr
    assert not (top / "kit" / ".venv").exists()
