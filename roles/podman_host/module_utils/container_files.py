"""Files that root of the host uses in a directory that a container can write.

Code in the container chooses the names there, and what they are, and may exchange one while root
looks at another. So a directory is opened once and held, a name is bare, and only a regular file
that has one name is opened; what it is, is asked of the open file.

The role redis puts this file beside its programs on a host: there is no Ansible to import.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import stat
from pathlib import Path
from types import TracebackType

# Those of Redis's files: no slash, no leading dot, nothing that a terminal would act on.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ .+@-]{0,127}")
NAMES = 4096
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class RefusedError(Exception):
    """What root does not touch, why, and the remedy; on one line."""

    def __init__(self, path: str, why: str) -> None:
        shown = path if path.isprintable() and path.isascii() else ascii(path)[1:-1]
        super().__init__(
            f"{shown[:300]} {why}, so root leaves it alone. Fix: find out what in the container "
            "wrote it, then remove it."
        )


class Folder:
    """A directory, held open: what takes its place later is not followed.

    :raises RefusedError: when it is no directory; FileNotFoundError when there is nothing.
    """

    def __init__(self, path: str | Path, within: Folder | None = None) -> None:
        self.path: str = f"{within.path}/{path}" if within else str(path)
        if within:
            self.bare(str(path), within.path)
        try:
            self.fd: int = os.open(
                path,
                os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC,
                dir_fd=within.fd if within else None,
            )
        except NotADirectoryError:
            raise RefusedError(self.path, "is no directory") from None

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.fd)

    @staticmethod
    def bare(name: str, place: str) -> str:
        """A name as root takes one.

        :raises RefusedError: when it leads elsewhere, or has other characters.
        """
        if not NAME.fullmatch(name):
            raise RefusedError(f"{place}/{name}", "has a name that Redis gives no file")
        return name

    def names(self) -> list[str]:
        """What there is, sorted; a container may have made more than anybody wants to read."""
        with os.scandir(self.fd) as found:
            return sorted(one.name for one in itertools.islice(found, NAMES))

    def is_folder(self, name: str) -> bool:
        """Whether a name is a directory by itself."""
        try:
            return stat.S_ISDIR(os.lstat(name, dir_fd=self.fd).st_mode)
        except OSError:
            return False

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a regular file that has no other name.

        :raises RefusedError: when it is anything else; FileNotFoundError when there is nothing.
        """
        path = f"{self.path}/{name}"
        self.bare(name, self.path)
        # A handle first: to open a pipe may last, to open a device may do something.
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                kind = KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
                raise RefusedError(path, f"is {kind}")
            if found.st_nlink > 1:
                raise RefusedError(path, f"has {found.st_nlink} names (hard links)")
            return os.open(f"/proc/self/fd/{handle}", flags | os.O_CLOEXEC)
        finally:
            os.close(handle)

    def read(self, name: str, limit: int) -> bytes:
        """All of a file.

        :raises RefusedError: as `open` does, and when it has more than so many bytes.
        """
        with open(self.open(name), "rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise RefusedError(f"{self.path}/{name}", f"has more than {limit} bytes")
        return content

    def text(self, name: str, limit: int) -> str:
        """The same, as text.

        :raises RefusedError: also when it is not UTF-8.
        """
        try:
            return self.read(name, limit).decode()
        except UnicodeDecodeError:
            raise RefusedError(f"{self.path}/{name}", "is not UTF-8") from None

    def write(self, name: str, text: str) -> None:
        """Put a new file in place at once, mode 0600; what has the name now is removed."""
        new = f"{self.bare(name, self.path)}.new"
        self.remove(new)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(new, flags, 0o600, dir_fd=self.fd), "w") as file:
            file.write(text)
        if self.is_folder(name):
            self.remove(name)
        os.rename(new, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove(self, name: str) -> None:
        """Remove a name with all that is in it, and not what it leads to."""
        with contextlib.suppress(FileNotFoundError):
            try:
                os.unlink(self.bare(name, self.path), dir_fd=self.fd)
            except IsADirectoryError:
                shutil.rmtree(name, dir_fd=self.fd)
