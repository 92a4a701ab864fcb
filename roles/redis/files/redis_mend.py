"""Take from Redis's append-only file what a power cut has left at its end: zeros.

    redis_mend.py DIRECTORY         the data directory of Redis; before it starts

A file system may know of a file's new length and not have its new bytes. Redis reads on where a
file merely ends too early, but does not start where it ends in zeros (redis/redis#5177). A whole
append-only file never ends in one; and what Redis had brought to the disk is before them.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

BLOCK = 65536


def last_file(manifest: str) -> str:
    """The file that Redis was writing, from a manifest; empty where there is none.

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


def mend(path: Path) -> int:
    """Cut the zeros off the end of a file; how many there were."""
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - BLOCK)
            file.seek(begin)
            rest = file.read(end - begin).rstrip(b"\0")
            end = begin + len(rest)
            if rest:
                break
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
    return size - end


def main(directory: str) -> None:
    for manifest in Path(directory).glob("*/*.manifest"):
        name = last_file(manifest.read_text())
        path = manifest.parent / name
        if name and path.is_file() and (zeros := mend(path)):
            print(
                f"{path} ended in {zeros} zeros, as a power cut leaves them: they are cut off. "
                "What Redis had brought to the disk is there; see docs/durability.md.",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1])
