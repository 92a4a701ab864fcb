"""The distribution's own apt, asked for packages as if a machine had none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


class AptError(Exception):
    """apt or dpkg-deb is missing, or ended with an error; the text is then theirs."""


def run(*argv: str) -> str:
    """What a command prints.

    :raises AptError: when it is missing, or fails.
    """
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise AptError(f"there is no {argv[0]}: this is done on Debian only.") from None
    if done.returncode:
        raise AptError(f"{' '.join(argv[:2])} ...: {done.stderr.strip()}")
    return done.stdout


class Apt:
    """apt-get for a machine with nothing installed, so that it resolves, and checks, everything.

    :param work: a directory of its own; what is there is removed.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.archives = work / "archives"
        # --print-uris leaves out what is downloaded already, so it must find nothing.
        shutil.rmtree(work, ignore_errors=True)
        (self.archives / "partial").mkdir(parents=True)
        (work / "status").write_text("")

    def get(self, *words: str) -> str:
        """What apt-get prints for these words; packages come into `archives`.

        :raises AptError: when it fails.
        """
        return run(
            "apt-get",
            "--yes",
            "--no-install-recommends",
            "-o",
            f"Dir::State::status={self.work}/status",
            "-o",
            f"Dir::Cache::archives={self.archives}",
            # The work directory is root's alone; apt's own user could not write there.
            "-o",
            "APT::Sandbox::User=root",
            *words,
        )
