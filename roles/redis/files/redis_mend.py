"""Take from Redis's append-only file what a power cut has left at its end: zeros.

    redis_mend.py DIRECTORY         the data directory of Redis; before it starts

A file system may know of a file's new length and not have its new bytes. Redis reads on where a
file merely ends too early, but does not start where it ends in zeros (redis/redis#5177). A whole
append-only file never ends in one; and what Redis had brought to the disk is before them.

Root runs this in a directory that Redis's container writes: container_files.py opens what it uses.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

# Under -I Python looks for nothing here; and it shall leave nothing here either.
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

from container_files import Folder, RefusedError  # noqa: E402

BLOCK = 65536
# Redis has one; the directory of a container may have any number.
MANIFESTS = 16
MANIFEST_BYTES = 1 << 20
# More than the kernel keeps unwritten; a sparse file of a container's has as many as it likes.
ZEROS = 4 << 30
# systemd takes the number for the line's priority.
WARNING = "<4>"


def last_file(manifest: str) -> str:
    """The file that Redis was writing, from a manifest; empty where there is none.

    :raises ValueError: when it cannot be read.

    >>> last_file("file a.1.base.rdb seq 1 type b\\nfile a.1.incr.aof seq 1 type i\\n")
    'a.1.incr.aof'
    """
    found = ""
    for line in manifest.splitlines():
        words = shlex.split(line)
        keys = dict(zip(words[::2], words[1::2], strict=False))
        if keys.get("type") == "i":
            found = keys.get("file", "")
    return found


def mend(handle: int, limit: int = ZEROS) -> int:
    """Cut the zeros off the end of an open file, which stays open; how many there were.

    With more zeros than `limit` it stays as it is, and they are counted up to there.
    """
    size = end = os.lseek(handle, 0, os.SEEK_END)
    while end:
        begin = max(0, end - BLOCK)
        rest = os.pread(handle, end - begin, begin).rstrip(b"\0")
        end = begin + len(rest)
        if rest:
            break
        if size - end > limit:
            return size - end
    if end < size:
        os.ftruncate(handle, end)
        os.fsync(handle)
    return size - end


def manifests(data: Folder) -> Iterator[tuple[str, str]]:
    """Each directory with a manifest, and the name of that."""
    found = 0
    for place in data.names():
        if not data.is_folder(place):
            continue
        with Folder(place, data) as folder:
            names = [name for name in folder.names() if name.endswith(".manifest")]
        for name in names:
            found += 1
            if found > MANIFESTS:
                raise RefusedError(data.path, f"has more than {MANIFESTS} manifests")
            yield place, name


def mended(data: Folder, place: str, manifest: str) -> str:
    """Mend what one manifest names; what was done, or nothing.

    :raises RefusedError: when it, or what it names, is not what Redis writes.
    """
    with Folder(place, data) as folder:
        try:
            name = last_file(folder.text(manifest, MANIFEST_BYTES))
        except ValueError:
            raise RefusedError(
                f"{folder.path}/{manifest}", "cannot be read as a manifest"
            ) from None
        if not name:
            return ""
        path = f"{folder.path}/{name}"
        try:
            handle = folder.open(name, os.O_RDWR)
        except FileNotFoundError:
            return ""
        try:
            zeros = mend(handle)
        finally:
            os.close(handle)
        if zeros > ZEROS:
            raise RefusedError(path, f"ends in more than {ZEROS >> 30} GiB of zeros")
    if not zeros:
        return ""
    return (
        f"{path} ended in {zeros} zeros, as a power cut leaves them: they are cut off. "
        "What Redis had brought to the disk is there; see docs/durability.md."
    )


def main(directory: str) -> None:
    """Mend what can be; what cannot is one line each, and Redis starts all the same."""
    try:
        with Folder(directory) as data:
            for place, manifest in manifests(data):
                try:
                    said = mended(data, place, manifest)
                except RefusedError as refused:
                    said = f"{WARNING}{refused} See docs/durability.md."
                if said:
                    print(said, flush=True)
    except RefusedError as refused:
        print(f"{WARNING}{refused} See docs/durability.md.", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
