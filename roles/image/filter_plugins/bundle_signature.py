"""Whether the archives of a bundle are those that somebody has signed whom the operator trusts."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

VARIABLE = "image_bundle_allowed_signers"
# tools/bundle.py signs with the same: a signature for anything else is none for this.
NAMESPACE = "celery-metal-bundle"
SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
# Each variable that names an archive of a bundle to the one that says so; or it does so by itself.
ARCHIVES = {
    "image_app": "image_source",
    "image_redis": "image_redis_source",
    "podman_host_packages_archive": "",
}
MAX_BYTES = 16 << 20
SECONDS = 60
NOTHING = "Nothing was changed on any host."


class BundleError(ValueError):
    """What is wrong with a bundle, why, and the remedy."""


def refuse(variable: str, value: Any, why: str, reason: str, fix: str) -> NoReturn:
    raise BundleError(f'{variable} "{value}": {why}\n  {reason}\n  Fix: {fix}. {NOTHING}')


def used(hosts: Mapping[str, Mapping[str, Any]], played: Iterable[str]) -> dict[Path, str]:
    """Each archive that a run may use, to the variable that names it.

    :param hosts: Ansible's hostvars.
    """
    found: dict[Path, str] = {}
    for host in played:
        variables = hosts[host]
        source = variables.get("image_source", "build")
        for name, by in ARCHIVES.items():
            value = variables.get(name, "")
            # Redis's own says so only where it differs.
            if value and (not by or variables.get(by, source) == "archive"):
                found.setdefault(Path(value).expanduser(), name)
    return found


def ssh_keygen(*words: str, text: bytes = b"") -> str:
    """What ssh-keygen prints; empty when it refuses."""
    done = subprocess.run(
        ("ssh-keygen", *words), input=text, capture_output=True, check=False, timeout=SECONDS
    )
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def signed(sums: bytes, signature: Path, signers: Path) -> bool:
    """Whether one of the allowed signers has signed this text."""
    words = ("-n", NAMESPACE, "-f", str(signers), "-s", str(signature))
    found = ssh_keygen("-Y", "find-principals", *words, text=sums)
    # A line of the file may name several.
    names = [name for line in found.splitlines() for name in line.split(",")]
    return any(ssh_keygen("-Y", "verify", "-I", one, *words, text=sums) for one in names)


def listed(sums: bytes) -> dict[str, str]:
    """Path to its checksum, as ``sha256sum`` lists them."""
    pairs = re.findall(r"^([0-9a-f]{64})  (.+)$", sums.decode(errors="replace"), re.M)
    return {path: digest for digest, path in pairs}


def read(path: Path, variable: str) -> bytes:
    """A small file of a bundle."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as problem:
        why = f"{path.name} cannot be read there: {problem.strerror}"
        reason = f"{VARIABLE} is set, so that only a signed bundle is used."
        fix = "unpack a bundle that was made with bundle_signing_key, and take its bundle.yml"
        refuse(variable, path.parent, why, reason, f"{fix}; see docs/offline.md#sign-it")
    if len(content) > MAX_BYTES:
        refuse(variable, path, "it is too large", "No bundle has such a file.", "copy it again")
    return content


def check(archives: Mapping[Path, str], signers: str) -> None:
    """Check the signature, and then each archive.

    :raises BundleError: when one of them is not as an allowed signer has made it.
    """
    trusted = Path(signers).expanduser()
    if not trusted.is_file():
        reason = "ssh-keygen needs a file of allowed signers."
        refuse(VARIABLE, signers, "it is no file on the controller", reason, "write its path")
    roots: dict[Path, dict[str, str]] = {}
    for archive, variable in archives.items():
        if not archive.is_absolute():
            reason = "The bundle of a relative path is not known."
            refuse(variable, archive, "it is no absolute path", reason, "take that of bundle.yml")
        # images/app.tar, packages.tar
        root = archive.parent.parent if archive.parent.name == "images" else archive.parent
        if root not in roots:
            sums = read(root / SUMS, variable)
            read(root / SIGNATURE, variable)
            if not signed(sums, root / SIGNATURE, trusted):
                reason = f"{SIGNATURE} is of no signer in {trusted}, or {SUMS} was changed."
                fix = "make the bundle anew with bundle_signing_key, or add its signer's public key"
                refuse(variable, root, "its signature is not valid", reason, fix)
            roots[root] = listed(sums)
        wanted = roots[root].get(str(archive.relative_to(root)))
        try:
            with archive.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as problem:
            found = str(problem.strerror)
        if wanted is None or found != wanted:
            reason = f"{SUMS}, which is signed, has {wanted or 'no such file'}; it is {found}."
            fix = "copy the bundle here again, and unpack it into an empty directory"
            refuse(variable, archive, "it is not the file that was signed", reason, fix)


def bundle_problem(
    hosts: Mapping[str, Mapping[str, Any]], played: Iterable[str], signers: str
) -> dict[str, str]:
    """``problem``, when a bundle must not be used; nothing where no signature is asked for."""
    if not signers:
        return {}
    try:
        check(used(hosts, played), signers)
    except BundleError as problem:
        return {"problem": str(problem)}
    except (OSError, subprocess.TimeoutExpired) as problem:
        fix = f"  Fix: install OpenSSH on the controller, and look at the bundle. {NOTHING}"
        return {"problem": f'{VARIABLE} "{signers}": {problem}\n{fix}'}
    return {}


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"image_bundle_problem": bundle_problem}
