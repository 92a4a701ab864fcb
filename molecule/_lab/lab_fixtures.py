"""Fixtures for the tests of all scenarios; Molecule loads this file as a pytest plugin.

Tests ask a host of the lab by its name, over the lab's own SSH, and wait for conditions instead of
sleeping. testinfra's `host` works beside it.
"""

from __future__ import annotations

import faulthandler
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import lab as machinery
import pytest

pytest_plugins = ["kit_fixtures"]

T = TypeVar("T")
CUT = """
nft add table inet cut
for hook in input forward output; do
  nft add chain inet cut $hook "{{ type filter hook $hook priority -300 ; }}"
  nft add rule inet cut $hook ip daddr {address} tcp dport {port} drop
  nft add rule inet cut $hook ip saddr {address} tcp sport {port} drop
done
"""


# What follows the last test takes no longer.
END_SECONDS = 60


class CommandError(AssertionError):
    """A command on a host has failed; `status` is its exit status, `output` all that it said."""

    def __init__(self, host: str, command: str, status: int, output: str) -> None:
        super().__init__(f"{host}: {command}: status {status}\n{output}")
        self.status = status
        self.output = output


class LabUnderTest:
    """The hosts of the scenario under test."""

    def __init__(self, name: str) -> None:
        self.lab = machinery.load_or_fail(name)

    @property
    def hosts(self) -> list[str]:
        """Names of all hosts, in the order of the scenario's platforms."""
        return [host.name for host in self.lab.hosts]

    def group(self, name: str) -> list[str]:
        """Names of the hosts in an inventory group; KeyError if there is no such group."""
        return machinery.groups_of(self.lab)[name]

    def address(self, host: str) -> str:
        """IPv4 address of a host."""
        return self.lab.host(host).address

    def run(
        self, host: str, command: str | list[str], *, timeout: float = 60, stdin: str = ""
    ) -> str:
        """Run a shell command (or a list of words) on a host as root and return its stdout.

        Raises CommandError if it fails or is not done after `timeout` seconds.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        try:
            done = subprocess.run(
                [*machinery.ssh(self.lab, self.lab.host(host), *machinery.shared(self.lab)), line],
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CommandError(host, line, -1, f"not done after {timeout:.0f} s") from None
        if done.returncode:
            raise CommandError(host, line, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def send(self, source: pathlib.Path, host: str, target: str) -> None:
        """Copy a file of this machine to a host."""
        with source.open("rb") as file:
            subprocess.run(
                [*machinery.ssh(self.lab, self.lab.host(host)), f"cat > {shlex.quote(target)}"],
                stdin=file,
                check=True,
            )

    def succeeds(self, host: str, command: str | list[str], *, timeout: float = 60) -> bool:
        """Tell whether a command on a host exits with 0. An unreachable host is an error."""
        try:
            self.run(host, command, timeout=timeout)
        except CommandError as error:
            if error.status in (-1, 255):  # our own timeout, and ssh's word for "no connection"
                raise
            return False
        return True

    def wait_for(
        self,
        condition: Callable[[], T],
        timeout: float,
        what: str,
        *,
        host: str | None = None,
        unit: str = "",
        every: float = 0.2,
    ) -> T:
        """Call `condition` until it returns something true, and return that.

        After `timeout` seconds an AssertionError says `what` did not happen, with the error or the
        value that `condition` gave last, and the last lines of the journal of `unit` (a pattern;
        empty: of the whole system) on `host` (None: on every host).
        """
        deadline = time.monotonic() + timeout
        last: object = None
        while time.monotonic() < deadline:
            try:
                value = condition()
                if value:
                    return value
                last = value
            except CommandError as error:
                last = error
            time.sleep(every)
        journals = [self.journal(name, unit) for name in ([host] if host else self.hosts)]
        raise AssertionError(
            f"{what}: not within {timeout:.0f} s; last: {last}\n" + "\n".join(journals)
        )

    def journal(self, host: str, unit: str = "", lines: int = 60) -> str:
        """Return the last lines of a host's journal, of one unit (or pattern) or of all."""
        words = ["journalctl", "--no-pager", "--boot", f"--lines={lines}"]
        try:
            text = self.run(host, [*words, f"--unit={unit}"] if unit else words)
        except CommandError as error:
            text = str(error)  # a dead host must not hide what was being waited for
        return f"--- journal of {unit or 'everything'} on {host}\n{text}"

    def show(self, host: str, unit: str, prop: str) -> str:
        """Return one property of a unit as `systemctl show` prints it; empty if it is unset."""
        return self.run(host, ["systemctl", "show", f"--property={prop}", "--value", unit]).strip()

    def properties(self, host: str, pattern: str, prop: str) -> dict[str, str]:
        """Return {unit: property} of all loaded units that match a pattern such as `celery-*`."""
        text = self.run(host, ["systemctl", "show", f"--property=Id,{prop}", pattern])
        found = {}
        for block in text.strip().split("\n\n"):
            values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
            if "Id" in values:
                found[values["Id"]] = values.get(prop, "")
        return found

    def invocation_ids(self, host: str, pattern: str) -> dict[str, str]:
        """Return {unit: InvocationID}: a unit that has restarted has another one."""
        found = self.properties(host, pattern, "InvocationID")
        # A timer starts that of the alarm each minute, whatever a run does.
        found.pop("celery-redis-memory.service", None)
        # They have no process, and go on while workers are replaced.
        for unit in ("celery-egress.service", "celery-network.service"):
            found.pop(unit, None)
        return found

    def disconnect(self) -> None:
        """End all connections that Ansible has to the hosts, in the middle of whatever they do."""
        machinery.close_connections(self.lab.name, pattern=machinery.ANSIBLES)

    def reboot(self, host: str) -> None:
        """Reboot a host from inside and return when it has booted again."""
        machinery.reboot(self.lab, self.lab.host(host))

    def cut_power(self, host: str) -> None:
        """End all processes of a host at once."""
        machinery.kill(self.lab.host(host))

    @contextmanager
    def cut_off(self, host: str, other: str, port: int) -> Iterator[None]:
        """Drop all that goes between a host, its containers too, and a port of another host."""
        self.run(host, CUT.format(address=self.address(other), port=port))
        try:
            yield
        finally:
            self.run(host, "nft delete table inet cut")

    def start(self, host: str) -> None:
        """Boot a host that is down and return when it has booted."""
        machinery.start(self.lab, self.lab.host(host))

    def limited_memory(self, host: str, unit: str, mb: int) -> AbstractContextManager[None]:
        """Hold what now runs in a unit to so much memory, as its MemoryMax does elsewhere."""
        return machinery.limited_memory(self.lab.host(host), unit, mb)


@pytest.fixture(scope="session")
def lab() -> LabUnderTest:
    """The lab of the scenario that Molecule is verifying."""
    return LabUnderTest(machinery.full_name("@" + os.environ["MOLECULE_SCENARIO_NAME"]))


def pytest_unconfigure() -> None:
    """Have a process that does not end, for one of its threads does not, say where it hangs."""
    assert sys.__stderr__
    faulthandler.dump_traceback_later(END_SECONDS, exit=True, file=sys.__stderr__)
