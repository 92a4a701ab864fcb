#!/usr/bin/env python3
"""Make one archive of all that a site without a network needs; playbooks/bundle.yml calls it.

    bundle.py [--sign KEY] PARTS OUTPUT

PARTS has images/app.tar, images/redis.tar and packages.tar; it is removed.

The archive also gets the kit, and the wheels of Ansible for each Python in PYTHONS, with the hashes
of controller.lock. Ansible's own wheel carries the collections. SHA256SUMS names every file; with a
key of ssh-keygen, or a .pub file of one that an agent has, SHA256SUMS.sig is its signature.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import shutil
import subprocess
import sys
import tarfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAME = "celery-metal-bundle"
LOCK = "controller.lock"
# That of Debian 13, and those beside it: only a few small wheels are different.
PYTHONS = ("3.12", "3.13", "3.14")
# By name: an inventory of the user's, which may hold secrets, is none of them.
KIT = (
    *("ansible.cfg", "site.yml", "requirements.yml", "playbooks", "roles", "README.md"),
    *("CHANGELOG.md", "docs", "app/runtime", "app/sample", "inventory/single-host"),
    *("inventory/cluster", "inventory/destinations"),
)
# A bundle is made from a checkout, which also has what downloads.
LEFT_OUT = shutil.ignore_patterns("__pycache__", "conftest.py", "tests", "bundle.yml")
SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
# Signatures for anything else are none for a bundle; roles/image asks for the same.
NAMESPACE = "celery-metal-bundle"
PARTS = ("images/app.tar", "images/redis.tar", "packages.tar")


class BundleError(Exception):
    """The bundle was not made; the text says why, and what to do."""


def copy_kit(root: pathlib.Path, target: pathlib.Path) -> None:
    """Copy what playbooks need, and its documentation."""
    for name in KIT:
        source, copy = root / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=LEFT_OUT)
        else:
            shutil.copy(source, copy)


def download(lock: pathlib.Path, target: pathlib.Path) -> None:
    """Download the wheels that a lock file names, by their hashes, from pip's own index.

    :raises BundleError: when pip fails, with what it says.
    """
    for version in PYTHONS:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet"),
                *("--disable-pip-version-check", "--no-deps", "--require-hashes"),
                *("--only-binary", ":all:", "--python-version", version),
                *("--dest", str(target), "--requirement", str(lock)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise BundleError(
                f"the wheels for Python {version} could not be downloaded: "
                f"{done.stderr.strip()}\nLook at pip's index, then run again."
            )


def checksums(directory: pathlib.Path) -> str:
    """All files below a directory as ``sha256sum`` lists them, sorted."""
    lines = []
    for path in sorted(one for one in directory.rglob("*") if one.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(f"{digest}  {path.relative_to(directory)}\n")
    return "".join(lines)


def sign(sums: pathlib.Path, key: pathlib.Path) -> None:
    """Write the signature of a file beside it.

    :raises BundleError: when ssh-keygen does not, such as with a key that asks for a passphrase.
    """
    words = ["ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(sums)]
    # Without a terminal: a playbook cannot answer for the user.
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    if done.returncode or not sums.with_name(SIGNATURE).is_file():
        raise BundleError(
            f'bundle_signing_key "{key}": ssh-keygen does not sign with it: {done.stderr.strip()}\n'
            "  Fix: write the path of a private key without a passphrase, or put the key into "
            "ssh-agent and write the path of its .pub file. No bundle was made."
        )


def make(parts: pathlib.Path, output: pathlib.Path, key: pathlib.Path | None = None) -> str:
    """Complete the parts, write the archive, and return its SHA-256.

    :param key: signs the checksums.
    :raises BundleError: when a part is missing, wheels cannot be had, or the key does not sign.
    """
    missing = [name for name in PARTS if not (parts / name).is_file()]
    if missing:
        raise BundleError(f"{parts} has no {', '.join(missing)}: run playbooks/bundle.yml instead.")
    # What an interrupted run has left.
    for name in ("kit", "wheels"):
        shutil.rmtree(parts / name, ignore_errors=True)
    copy_kit(ROOT, parts / "kit")
    shutil.copy(ROOT / LOCK, parts / LOCK)
    shutil.copy(ROOT / "tools" / "install.sh", parts / "install.sh")
    download(parts / LOCK, parts / "wheels")
    for name in (SUMS, SIGNATURE):
        (parts / name).unlink(missing_ok=True)
    (parts / SUMS).write_text(checksums(parts))
    if key:
        sign(parts / SUMS, key)
    # Renamed when it is whole; nothing in it can be compressed any more.
    unfinished = output.with_name(f".{output.name}")
    with tarfile.open(unfinished, "w") as tar:
        tar.add(parts, NAME, filter=anonymous)
    unfinished.replace(output)
    shutil.rmtree(parts)
    with output.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Readable for all, and of no user: what this machine's were means nothing elsewhere."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--sign", type=pathlib.Path, metavar="KEY", help="a key of ssh-keygen")
    arguments = parser.parse_args()
    try:
        digest = make(arguments.parts, arguments.output, arguments.sign)
    except (BundleError, OSError) as problem:
        sys.exit(f"bundle: {problem}")
    size = arguments.output.stat().st_size / 1e6
    print(f"{arguments.output}: {size:.0f} MB, SHA-256 {digest}")
    print(f"Unpack it where there is no network, and run {NAME}/install.sh there.")


if __name__ == "__main__":
    main()
