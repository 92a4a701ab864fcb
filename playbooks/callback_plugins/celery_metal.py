"""Ansible's own output, and of a status as JSON nothing else on stdout."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any, TextIO

from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils.vars import load_extra_vars

DOCUMENTATION = """
    name: celery_metal
    type: stdout
    short_description: Ansible's default output; a status as JSON can be piped
    description:
      - With C(-e status_format=json), C(playbooks/status.yml) prints the JSON on stdout, and all
        else on stderr.
    extends_documentation_fragment:
      - default_callback
      - result_format_callback
"""


class CallbackModule(Default):  # type: ignore[misc]
    """Ansible's default output, but for a status as JSON."""

    CALLBACK_NAME = "celery_metal"
    #: What stdout was, where a status is to be JSON.
    pipe: TextIO | None = None

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Have all but the JSON on stderr, where it is asked for."""
        variables = load_extra_vars(playbook._loader)
        is_status = pathlib.Path(playbook._file_name).name == "status.yml"
        if is_status and variables.get("status_format") == "json":
            sys.stdout.flush()
            self.pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
            os.dup2(2, 1)
        super().v2_playbook_on_start(playbook)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Print what a task has returned; of the one that shows the status its text alone."""
        if self.pipe is not None and result.task.action == "ansible.builtin.debug":
            print(result.result["msg"], file=self.pipe, flush=True)
        else:
            super().v2_runner_on_ok(result)
