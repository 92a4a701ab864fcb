"""What the modules of the kit share; Ansible sends it to the host along with each of them."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

from ansible.module_utils.basic import AnsibleModule

LOCK = "/run/celery-metal.lock"
# A run whose connection was cut goes on by itself, and may wait for workers that drain.
LOCK_SECONDS = 900
# Open, and so locked, until the process ends.
_held: list[IO[str]] = []


class HostError(Exception):
    """Something the operator can act on: what happened, what was done about it, and the remedy."""


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with these variables besides the environment."""
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def output(*argv: str) -> str:
    """What a command prints.

    :raises HostError: when it fails: no answer must not be taken for "nothing is there".
    """
    done = run(*argv)
    if done.returncode:
        raise HostError(
            f"'{' '.join(argv[:3])}' failed: {done.stderr.strip()}. Nothing was changed in this "
            "step. Run it there and mend what it says ('df -h' shows free space), then run again."
        )
    return done.stdout


def write_durably(path: Path, text: str) -> None:
    """Keep a file, with its directory, over a power cut; a reader never sees a half of it."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def template_of(unit: str) -> str:
    """The template of an instance: ``a@1.service`` gives ``a@.service``; others are their own."""
    return re.sub(r"@.+\.service$", "@.service", unit)


def keep_others_out(name: str, path: str, seconds: float = LOCK_SECONDS) -> None:
    """Wait until no other run changes this host, and let none begin before this process ends.

    :param name: what the others are told is at work.
    :raises HostError: when the other one has not ended after so many seconds.
    """
    file = open(path, "a+")  # noqa: SIM115 - for as long as this process lives
    _held.append(file)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.seek(0)
                raise HostError(
                    f"another run is at work here: {file.read().strip()}. Its connection may have "
                    "been cut; it goes on by itself, and may wait for workers that drain: see "
                    "'systemctl list-jobs'. Nothing was changed in this step. When it is over, run "
                    "the same playbook again."
                ) from None
        time.sleep(0.2)
    file.truncate(0)
    file.write(f"{name}, process {os.getpid()}, since {time.strftime('%F %T')}\n")
    file.flush()


def conclude(
    module: AnsibleModule, work: Callable[[], dict[str, Any]], *, changes: bool, warned: str = ""
) -> NoReturn:
    """End a module with what its work returns; errors begin with the name of the host.

    :param changes: it changes the host, so no other such module may run there at the same time.
    :param warned: key of the result with texts that are warnings, too.
    """
    host = socket.gethostname()
    try:
        if changes and not module.check_mode:
            keep_others_out(module._name, LOCK)
        result = work()
    except HostError as problem:
        module.fail_json(msg=f"{host}: {problem}")
    except OSError as problem:
        module.fail_json(
            msg=f"{host}: {problem.filename or 'a command'}: {problem.strerror or problem}. Not "
            "all of this step was done. Mend what is named ('df -h' shows free space), then run "
            "the same playbook again: it completes what is left."
        )
    for text in result.get(warned, []):
        module.warn(text)
    module.exit_json(**result)
