"""Runs commands on a host, one after the other, and shows what they write as it comes.

The module of this name starts a command and follows it. With a terminal SSH takes its place, for
no module has one.
"""

from __future__ import annotations

import os
import pathlib
import secrets
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

# Ansible takes each file in this directory for such a plugin.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "output"))
from run_hooks import run_here, visible, words

MODULE = "celery_run"
#: What Podman and a shell say by a status.
STATUSES = {
    125: "perhaps Podman did not start the container; why is above",
    126: "perhaps it, or its container, cannot be executed; why is above",
    127: "perhaps the image has no such program",
    137: "it was killed, perhaps by its limit of {memory_mb} MB: give it more memory",
}
#: Set by the callback plugin where the run has a terminal.
TERMINAL = "CELERY_METAL_TERMINAL"
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
COMMON = ("units", "queues", "image", "free_mb")
OWN = ("command", "queue", "memory_mb", "seconds")


class ActionModule(ActionBase):  # type: ignore[misc]
    """Starts each of ``commands``, follows it to its end, and fails with the first that fails."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the commands.

        ``commands`` is a list of what the module takes for one; ``host`` the host's name, which
        stands before each line of ``prefixed`` output; ``terminal`` whether to give it one: true,
        false, or auto for where the run has one. A command with ``where: controller`` runs here,
        with ``environment``. When all have ended well, ``left`` is the image of a deploy with hooks
        that are left to be run, or empty where none are; ``note`` follows the reason of a failure.
        With ``on_failure`` nothing runs: these are kept for when the run fails.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        if "step" in arguments:
            return {**result, **self._module(arguments, task_vars)}
        if "on_failure" in arguments:
            # The callback plugin runs them where the run fails.
            kept = {name: arguments[name] for name in ("on_failure", "environment")}
            return {**result, **kept}
        host = arguments["host"]
        try:
            terminal = self._has_terminal(str(arguments.get("terminal", "false")).lower())
        except ValueError as error:
            return {**result, "failed": True, "msg": f"{host}: {error}"}
        common = {name: arguments[name] for name in COMMON if name in arguments}
        for one in arguments["commands"]:
            own = {name: one[name] for name in OWN if name in one}
            if self._task.check_mode:
                Display().display(f"{host}: would run {words(own['command'])}")
                continue
            given = {**common, **own, "id": secrets.token_hex(4)}
            if one.get("where") == "controller":
                failed = self._on_controller(one, arguments["environment"])
            elif terminal:
                failed = self._in_terminal(given, host, task_vars)
            else:
                prefixed = bool(arguments.get("prefixed"))
                failed = self._followed(given, host, task_vars, prefixed=prefixed)
            if failed:
                note = f"\n{arguments['note']}" if "note" in arguments else ""
                return {**result, **failed, "msg": f"{failed.get('msg')}{note}"}
        if "left" in arguments and not self._task.check_mode:
            left = self._module({"step": "leave", "image": arguments["left"]}, task_vars)
            if left.get("failed"):
                return {**result, **left}
        return {**result, "changed": bool(arguments["commands"])}

    def _on_controller(
        self, one: Mapping[str, Any], environment: Mapping[str, str]
    ) -> dict[str, Any]:
        """Run one command where this playbook runs; empty when it ended with status 0."""
        Display().display(f"controller: {words(one['command'])}")
        return run_here(one["command"], environment, one.get("seconds") or None)

    def _has_terminal(self, wanted: str) -> bool:
        """Whether commands run in the terminal.

        :param wanted: true, false, or another text for where that can be done.
        :raises ValueError: when it is wanted, and cannot be done.
        """
        method = getattr(self._connection.become, "name", "") if self._task.become else ""
        lacks = ""
        if os.environ.get(TERMINAL) != "1":
            lacks = "ansible-playbook has no terminal"
        elif self._connection.transport not in ("ssh", "ansible.builtin.ssh"):
            lacks = f"ansible_connection is {self._connection.transport}, and not ssh"
        elif method not in ("", "sudo", "ansible.builtin.sudo"):
            lacks = f"ansible_become_method is {method}, and not sudo"
        if lacks and wanted in TRUE:
            raise ValueError(
                f"run_terminal is true, and {lacks}\n  Fix: leave run_terminal out. "
                "Nothing was run."
            )
        return wanted not in FALSE and not lacks

    def _module(self, arguments: Mapping[str, Any], task_vars: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._execute_module(
            module_name=MODULE, module_args=dict(arguments), task_vars=task_vars
        )
        return answer

    def _followed(
        self, given: dict[str, Any], host: str, task_vars: Any, *, prefixed: bool
    ) -> dict[str, Any]:
        """Run one command; what is empty when it ended with status 0, and else a failure."""
        started = self._module({"step": "start", **given}, task_vars)
        if started.get("failed"):
            return started
        # Nothing that the host names itself reaches the terminal.
        Display().display(f"{host}: {words(given['command'])}  (celery-run-{given['id']}.service)")
        cursor = ""
        while True:
            said = self._module({"step": "follow", "id": given["id"], "cursor": cursor}, task_vars)
            if said.get("failed"):
                return said
            lines = [visible(str(line)) for line in said["lines"]]
            if lines:
                before = f"{host} | " if prefixed else ""
                Display().display("\n".join(f"{before}{line}" for line in lines))
            cursor = str(said["cursor"])
            if said["ended"]:
                break
        return self._verdict(given, host, int(said["status"]), str(said["result"]), started)

    def _verdict(
        self,
        given: Mapping[str, Any],
        host: str,
        status: int,
        how: str,
        started: Mapping[str, Any],
    ) -> dict[str, Any]:
        if status == 0 and how == "success":
            return {}
        why = STATUSES.get(status, "").format(memory_mb=started.get("memory_mb"))
        if how == "timeout":
            status = 124  # as timeout(1)
            why = f"it was ended after {given.get('seconds')} s"
        elif how == "oom-kill":
            why = STATUSES[137].format(memory_mb=started.get("memory_mb"))
        reason = f": {why}" if why else ""
        return {
            "failed": True,
            "msg": f"{host}: {words(given['command'])} ended with status {status}{reason}.",
            "status": status,
        }

    def _in_terminal(self, given: dict[str, Any], host: str, task_vars: Any) -> dict[str, Any]:
        """Run one command in the terminal of the run, which nothing else uses meanwhile."""
        made = self._module({"step": "prepare", **given}, task_vars)
        if made.get("failed"):
            return made
        line = shlex.join(map(str, made["argv"]))
        if self._task.become and self._connection.get_option("remote_user") != "root":
            # It asks for a password by itself.
            line = f"sudo -H -- {line}"
        connection = self._connection
        argv = connection._build_command(
            connection.get_option("ssh_executable"),
            "ssh",
            "-tt",
            "-oLogLevel=ERROR",
            connection.host,
            line,
        )
        begun = time.monotonic()
        with open("/dev/tty", "r+b", buffering=0) as terminal:
            former = os.tcgetpgrp(terminal.fileno())
            # A process in the background is stopped when it touches the terminal.
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(terminal.fileno(), os.getpgrp())
            try:
                done = subprocess.run(
                    argv, stdin=terminal, stdout=terminal, stderr=terminal, check=False
                )
            finally:
                os.tcsetpgrp(terminal.fileno(), former)
        lasted = time.monotonic() - begun
        is_late = bool(done.returncode and given.get("seconds") and lasted >= given["seconds"])
        how = "timeout" if is_late else "success"
        return self._verdict(given, host, done.returncode, how, made)
