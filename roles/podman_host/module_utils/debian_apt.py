"""The distribution's own apt, asked for packages as if a machine had none."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

# Each source of packages of this host: its address, codename, component and key, if it has one.
TARGETS = "$(REPO_URI)|$(CODENAME)|$(COMPONENT)|$(SIGNED_BY)"


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


def sources_of(targets: str, own: str, release: str) -> str:
    """Another release of the distribution from the mirrors and with the keys of this host's own.

    :param targets: what ``apt-get indextargets`` prints in the format TARGETS.
    :param own: codename of the host's release.
    :param release: codename of the other one.
    :returns: the lines of a ``sources.list``, of the component ``main`` alone.

    >>> sources_of("http://m/x/|trixie|main|/k.gpg\\nhttp://y/|noble|main|", "trixie", "sid")
    'deb [signed-by=/k.gpg] http://m/x/ sid main'
    >>> sources_of("http://m/s/|trixie-security|main|$(SIGNED_BY)", "trixie", "sid")
    'deb http://m/s/ sid-security main'
    """
    lines = []
    for target in targets.splitlines():
        where, codename, component, key = target.split("|", 3)
        base, dash, more = codename.partition("-")
        if base == own and component == "main":
            # What a source does not have stays as it was asked for.
            signed = f"[signed-by={key}] " if key and not key.startswith("$(") else ""
            lines.append(f"deb {signed}{where} {release}{dash}{more} {component}")
    return "\n".join(dict.fromkeys(lines))


def codename() -> str:
    """That of the release that runs here; empty where it has none."""
    found = re.search(r'^VERSION_CODENAME="?(\w+)', Path("/etc/os-release").read_text(), re.M)
    return found[1] if found else ""


class Apt:
    """apt-get for a machine with nothing installed, so that it resolves, and checks, everything.

    :param work: a directory of its own; what is there is removed.
    :param release: codename of another release than the host's, from the host's mirrors.
    :raises AptError: when no mirror here has packages of the host's release, or none of that one.
    """

    def __init__(self, work: Path, release: str = "") -> None:
        self.work = work
        self.archives = work / "archives"
        self.options: list[str] = []
        # --print-uris leaves out what is downloaded already, so it must find nothing.
        shutil.rmtree(work, ignore_errors=True)
        (self.archives / "partial").mkdir(parents=True)
        (work / "status").write_text("")
        if release:
            self._use(release)

    def _use(self, release: str) -> None:
        """Read the package lists of another release, which the host itself has not."""
        targets = run("apt-get", "indextargets", "--format", TARGETS, "Created-By: Packages")
        sources = sources_of(targets, codename(), release)
        if not sources:
            raise AptError(
                f"{codename() or 'the release of this host'} is in no source of apt here, so there "
                f"is no mirror for {release}."
            )
        (self.work / "lists/partial").mkdir(parents=True)
        (self.work / "sources.list").write_text(f"{sources}\n")
        self.options = [
            f"Dir::Etc::sourcelist={self.work}/sources.list",
            "Dir::Etc::sourceparts=-",
            f"Dir::State::lists={self.work}/lists",
            f"Dir::Cache={self.work}",
        ]
        self.get("update", "--error-on=any")

    def get(self, *words: str) -> str:
        """What apt-get prints for these words; packages come into `archives`.

        :raises AptError: when it fails.
        """
        options = [
            f"Dir::State::status={self.work}/status",
            *self.options,
            f"Dir::Cache::archives={self.archives}",
            # The work directory is root's alone; apt's own user could not write there.
            "APT::Sandbox::User=root",
        ]
        return run(
            "apt-get",
            "--yes",
            "--no-install-recommends",
            *(word for option in options for word in ("-o", option)),
            *words,
        )
