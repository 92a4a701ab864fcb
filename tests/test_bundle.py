"""What goes into a bundle, and what does not."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import subprocess
import tarfile
from types import ModuleType

import bundle_signature
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
@pytest.mark.parametrize("damage", ["changed", "missing", "more"])
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
    elif damage == "missing":
        image.unlink()
    else:
        # Ansible loads all filters that are there.
        (top / "kit" / "playbooks" / "filter_plugins" / "more.py").write_text("raise SystemExit")
    done = subprocess.run([top / "install.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    if damage == "more":
        assert "'kit/playbooks/filter_plugins/more.py': not in SHA256SUMS" in done.stderr
        assert "install: this bundle has files that it was not made with" in done.stderr
    else:
        assert "images/app.tar: FAILED" in done.stdout
        assert "install: this bundle is not whole" in done.stderr
    assert not (top / "kit" / ".venv").exists()


def key_pair(folder: pathlib.Path, name: str, passphrase: str = "") -> pathlib.Path:
    """A key of ssh-keygen; its public half is beside it."""
    path = folder / name
    words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f", str(path)]
    subprocess.run(words, check=True)
    return path


@pytest.fixture
def signed(
    bundle: ModuleType, parts: pathlib.Path, offline: None, tmp_path: pathlib.Path
) -> pathlib.Path:
    """The directory of an unpacked bundle that ops@example.com has signed; its key is beside it."""
    key = key_pair(tmp_path, "key")
    public = " ".join((tmp_path / "key.pub").read_text().split()[:2])
    (tmp_path / "signers").write_text(f"eve@example.com,ops@example.com {public}\n")
    bundle.make(parts, tmp_path / "out.tar", key)
    with tarfile.open(tmp_path / "out.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    top: pathlib.Path = tmp_path / bundle.NAME
    return top


def problem(top: pathlib.Path, signers: str | None = None, **changed: str) -> str:
    """Why site.yml refuses a bundle; empty when it takes it."""
    variables = {
        "image_source": "archive",
        "image_app": str(top / "images/app.tar"),
        "image_redis": str(top / "images/redis.tar"),
        "podman_host_packages_archive": str(top / "packages.tar"),
    }
    # Packages may be of another bundle for one of the hosts.
    hosts = {"a": variables, "b": {**variables, **changed}}
    asked = str(top.parent / "signers") if signers is None else signers
    found = bundle_signature.bundle_problem(hosts, ["a", "b"], asked)
    return found.get("problem", "")


def test_a_signed_bundle_is_used_and_its_installer_takes_the_signature(
    signed: pathlib.Path,
) -> None:
    assert problem(signed) == ""
    done = subprocess.run([signed / "install.sh"], capture_output=True, text=True, check=False)
    # It has gone on to the wheel, which is none here.
    assert "is not whole" not in done.stderr
    assert "was not made with" not in done.stderr


def test_what_differs_from_what_was_signed_is_refused(
    signed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for name in ("images/app.tar", "images/redis.tar", "packages.tar"):
        before = (signed / name).read_bytes()
        (signed / name).write_bytes(before + b"x")
        what, why, fix = problem(signed).splitlines()
        assert what.endswith(f'{name}": it is not the file that was signed')
        assert why.startswith("  SHA256SUMS, which is signed, has ")
        assert fix.startswith("  Fix: copy the bundle here again")
        (signed / name).unlink()
        assert "No such file" in problem(signed)
        (signed / name).write_bytes(before)
    assert problem(signed) == ""
    (signed / "images/more.tar").write_text("x")
    assert "has no such file" in problem(signed, image_app=str(signed / "images/more.tar"))
    (tmp_path / "packages.tar").write_text("x")
    elsewhere = str(tmp_path / "packages.tar")
    said = problem(signed, podman_host_packages_archive=elsewhere)
    assert "SHA256SUMS cannot be read there" in said
    assert said.startswith("podman_host_packages_archive ")


def test_changed_sums_another_key_and_another_purpose_are_refused(
    signed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    sums, signature = signed / "SHA256SUMS", signed / "SHA256SUMS.sig"
    text = sums.read_text()
    sums.write_text(text.replace("0", "1", 1))
    assert "its signature is not valid" in problem(signed)
    sums.write_text(text)
    assert problem(signed) == ""
    key_pair(tmp_path, "other")
    for key, purpose in (("other", "celery-metal-bundle"), ("key", "file")):
        signature.unlink()
        words = ["ssh-keygen", "-q", "-Y", "sign", "-n", purpose, "-f", str(tmp_path / key), sums]
        subprocess.run(words, check=True, capture_output=True)
        assert "its signature is not valid" in problem(signed)
    signature.write_text("x")
    assert "its signature is not valid" in problem(signed)
    signature.unlink()
    said = problem(signed)
    assert "SHA256SUMS.sig cannot be read there: No such file" in said
    assert "bundle_signing_key" in said
    assert said.endswith("Nothing was changed on any host.")


def test_without_the_variable_nothing_is_asked_for(signed: pathlib.Path) -> None:
    (signed / "SHA256SUMS.sig").unlink()
    assert problem(signed, signers="") == ""
    assert "is no file on the controller" in problem(signed, signers="/nowhere")
    # Nothing of a bundle is used.
    hosts = {"a": {"image_app": "registry.example/app:1", "image_source": "registry"}}
    signers = str(signed.parent / "signers")
    assert bundle_signature.bundle_problem(hosts, ["a"], signers) == {}
    # Of Redis alone it is.
    redis = {"image_redis": str(signed / "images/redis.tar"), "image_redis_source": "archive"}
    found = bundle_signature.bundle_problem({"a": {**hosts["a"], **redis}}, ["a"], signers)
    assert "SHA256SUMS.sig cannot be read" in found["problem"]


@pytest.mark.usefixtures("offline")
def test_a_key_that_does_not_sign_makes_no_bundle(
    bundle: ModuleType, parts: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    locked = key_pair(tmp_path, "locked", "secret")
    for key in (locked, tmp_path / "none"):
        with pytest.raises(
            bundle.BundleError, match=r"(?s)bundle_signing_key .*  Fix: .*ssh-agent"
        ):
            bundle.make(parts, tmp_path / "out.tar", key)
    assert not (tmp_path / "out.tar").exists()


@pytest.mark.usefixtures("offline")
def test_the_key_of_an_agent_signs_by_its_public_half(
    bundle: ModuleType,
    parts: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = key_pair(tmp_path, "key")
    command = ["ssh-agent", "-D", "-a", str(tmp_path / "agent")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as agent:
        try:
            assert agent.stdout
            agent.stdout.readline()  # it listens
            monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
            subprocess.run(["ssh-add", "-q", key], check=True)
            key.unlink()
            bundle.make(parts, tmp_path / "out.tar", tmp_path / "key.pub")
        finally:
            agent.terminate()
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert f"{bundle.NAME}/SHA256SUMS.sig" in tar.getnames()
