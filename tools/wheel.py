#!/usr/bin/env python3
"""Write celery_metal_runtime as a wheel, for programs that send tasks and pip.

    wheel.py DIRECTORY    writes the file there and prints its path; makes the directory

The same sources give the same file. Nothing is built, and the checkout stays as it is.
"""

from __future__ import annotations

import base64
import hashlib
import pathlib
import sys
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUNTIME = ROOT / "app" / "runtime"
NAME = "celery_metal_runtime"
TIME = (1980, 1, 1, 0, 0, 0)


def files() -> dict[str, bytes]:
    """Path in the wheel to content, without its list of files."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = {
        path.relative_to(RUNTIME).as_posix(): path.read_bytes()
        for path in sorted((RUNTIME / NAME).rglob("*.py"))
    }
    total = hashlib.sha256(b"".join(name.encode() + text for name, text in sources.items()))
    version = f"{metadata['version']}+{total.hexdigest()[:12]}"
    about = f"{NAME}-{version}"
    return {
        **sources,
        f"{about}.data/scripts/celery-metal-run": (RUNTIME / "bin/celery-metal-run")
        .read_bytes()
        .replace(b"#!/usr/bin/env python\n", b"#!python\n", 1),
        f"{about}.dist-info/METADATA": (
            f"Metadata-Version: 2.1\nName: {NAME.replace('_', '-')}\nVersion: {version}\n"
            "Summary: The broker of celery-metal for Celery apps\nRequires-Python: >=3.11\n"
            "Requires-Dist: celery>=5.4\nRequires-Dist: redis\n"
        ).encode(),
        f"{about}.dist-info/WHEEL": (
            b"Wheel-Version: 1.0\nGenerator: celery-metal\nRoot-Is-Purelib: true\n"
            b"Tag: py3-none-any\n"
        ),
    }


def write(directory: pathlib.Path) -> pathlib.Path:
    """Write the wheel into a directory; its path."""
    found = files()
    about = next(name for name in found if name.endswith("/METADATA")).split(".dist-info")[0]
    record = f"{about}.dist-info/RECORD"
    lines = [f"{name},sha256={_sum(text)},{len(text)}" for name, text in found.items()]
    found[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    path = directory / f"{about}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in found.items():
            entry = zipfile.ZipInfo(name, TIME)
            entry.external_attr = (0o100755 if "/scripts/" in name else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, text)
    return path


def _sum(text: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: wheel.py DIRECTORY", file=sys.stderr)
        return 2
    directory = pathlib.Path(sys.argv[1])
    try:
        directory.mkdir(parents=True, exist_ok=True)
        print(write(directory))
    except OSError as error:
        print(f"{directory}: {error.strerror}\n  Fix: name another directory.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
