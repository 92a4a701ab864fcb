"""ansible-playbook as an operator runs it, but that it begins with Ansible loaded.

Of a run with nothing to change, loading Ansible and packing its modules takes a third of the
controller's CPU time. Here the runs of a session that have the same settings of Ansible share both.
"""

from __future__ import annotations

import functools
import pathlib
import subprocess
import tempfile
from collections.abc import Iterable, Mapping

from forks import Fork, Server

HERE = pathlib.Path(__file__).parent
# All but ansible.cli.playbook itself, which runs.
LOADED = (
    "ansible.cli",
    "ansible.executor.playbook_executor",
    "ansible.executor.task_queue_manager",
    "ansible.plugins.action",
    "ansible.plugins.connection.ssh",
    "ansible.plugins.strategy.linear",
)


@functools.cache
def _server(environ: frozenset[tuple[str, str]]) -> Server:
    """Return the server of one environment: Ansible reads most settings when it is loaded."""
    return Server(dict(environ), LOADED)


def start(
    words: Iterable[str], cwd: pathlib.Path, environ: Mapping[str, str], out: int, err: int
) -> Fork:
    """Run ansible-playbook with these words; its output and its errors go to open files."""
    # pytest's own name of the test that runs is another one each time.
    environ = {name: value for name, value in environ.items() if name != "PYTEST_CURRENT_TEST"}
    environ["PYTHONPATH"] = ":".join(filter(None, (str(HERE), environ.get("PYTHONPATH"))))
    server = _server(frozenset(environ.items()))
    return server.fork("ansible_fork", words, environ, cwd, out, err)


def run(
    words: Iterable[str], cwd: pathlib.Path, environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook with these words to its end, and return how it ended."""
    words = [*words]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = start(words, cwd, environ, out.fileno(), err.fileno())
        try:
            status = process.wait()
        finally:
            process.kill()
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(words, status, out.read(), err.read())
