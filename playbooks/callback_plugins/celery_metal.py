"""Ansible's own output with a summary at its end; of a report as JSON nothing else on stdout."""

from __future__ import annotations

import atexit
import os
import pathlib
import re
import sys
from typing import Any, TextIO

from ansible import context
from ansible.constants import (
    COLOR_DIFF_ADD,
    COLOR_DIFF_LINES,
    COLOR_DIFF_REMOVE,
    COLOR_ERROR,
)
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils.color import stringc
from ansible.utils.vars import load_extra_vars

# Ansible takes each file in this directory for such a plugin.
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "filter_plugins"))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "declared"))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "output"))
import groups
import pauses
import run_diff
import run_hooks
import run_summary

DOCUMENTATION = """
    name: celery_metal
    type: stdout
    short_description: Ansible's default output, short differences, and a summary
    description:
      - Below the recap, what was changed and why, what is wrong and its remedy, on one screen.
      - C(--diff) shows the lines that change, and files that change alike once; with C(-v) all.
      - With C(-e status_format=json), C(playbooks/status.yml) prints the JSON on stdout, and all
        else on stderr; so does C(playbooks/doctor.yml) with C(-e doctor_format=json).
    extends_documentation_fragment:
      - default_callback
      - result_format_callback
"""

# Characters for private use; emoji are above U+FFFF.
MOST_WIDE = 0xF8FF - 0xE000
# What an assertion returns besides its message.
NOISE = ("assertion", "evaluated_to")
OWN = re.compile(r"ansible\.builtin\.(assert|fail)|(celery|debian|redis)_[a-z_]+")
MODULE = re.compile(r"(celery|debian|redis)_[a-z_]+")
# Tasks that tell the operator something.
TELLS = re.compile(r"(Report|Say) ")
DEBUG = "ansible.builtin.debug"
# Its answer has the paused queues, too.
LIVES = "celery_lives"
#: Playbooks whose end is a report of their own, and the variable for its form.
REPORTS = {"doctor.yml": "doctor_format", "status.yml": "status_format"}
#: Tells the action plugin celery_run that this run has a terminal.
TERMINAL = "CELERY_METAL_TERMINAL"
#: Ansible's exit status when a host has failed.
FAILED = 2
COLORS = {"+": COLOR_DIFF_ADD, "-": COLOR_DIFF_REMOVE, "@": COLOR_DIFF_LINES}


def colored(line: str) -> str:
    """Return a line of a difference in Ansible's colour for it."""
    color = COLORS.get(line[:1])
    return str(stringc(line, color)) if color else line


def pass_on(status: int) -> None:
    """Have this process end with another exit status than Ansible's, which has few."""

    def leave() -> None:
        # What others have registered for the end is done before, as without this.
        atexit.unregister(leave)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status & 0xFF or 1)

    atexit.register(leave)


class CallbackModule(Default):  # type: ignore[misc]
    """Ansible's default output and a summary, but for a report as JSON."""

    CALLBACK_NAME = "celery_metal"
    #: What stdout was, where a report is to be JSON.
    pipe: TextIO | None = None

    def __init__(self) -> None:
        super().__init__()
        #: Whether a playbook is to end with a summary.
        self.sums_up = True
        #: Whether this run ends with the status of the command that it ran.
        self.passes_on = False
        #: That of this run; empty without one.
        self.destination = ""
        #: The playbook, the groups of the play, and those of a play that had no host.
        self.name = self.groups = self.unmatched = ""
        #: Whether a play had a host, and the inventory's groups.
        self.has_begun = False
        self.inventory: dict[str, list[str]] = {}
        self.done: dict[str, list[run_summary.Change]] = {}
        self.failed: dict[str, list[str]] = {}
        self.notes: dict[str, list[str]] = {}
        #: Commands for when the run fails, and their environment.
        self.on_failure: list[list[str]] = []
        self.environment: dict[str, str] = {}
        #: Task and difference to the first host that it was shown for.
        self.differences: dict[tuple[str, str], str] = {}

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Have all but the JSON on stderr, where it is asked for."""
        variables = load_extra_vars(playbook._loader)
        name = self.name = pathlib.Path(playbook._file_name).name
        self.sums_up = name not in ("logs.yml", *REPORTS)
        self.passes_on = name == "run.yml"
        # What runs a task has none of these, but inherits the environment.
        if sys.stdin.isatty() and sys.stdout.isatty():
            os.environ[TERMINAL] = "1"
        if name in REPORTS and variables.get(REPORTS[name]) == "json":
            sys.stdout.flush()
            self.pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
            os.dup2(2, 1)
        super().v2_playbook_on_start(playbook)

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Print its name, and keep its groups."""
        hosts = play.hosts
        self.groups = hosts if isinstance(hosts, str) else ":".join(map(str, hosts))
        self.inventory = play.get_variable_manager()._inventory.get_groups_dict()
        super().v2_playbook_on_play_start(play)

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """Print that a play is skipped; without it some playbooks do nothing, and fail."""
        if self.name in (*run_summary.NEEDING, *run_summary.NEEDING_ANY):
            self.unmatched = self.unmatched or self.groups
        super().v2_playbook_on_no_hosts_matched()

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Print its name; a play without hosts has none."""
        self.has_begun = True
        super().v2_playbook_on_task_start(task, is_conditional)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Print what a task has returned; of the one that shows a report its text alone."""
        host, task = result.host.get_name(), result.task.get_name()
        self._keep_destination(result)
        if result.task.action == "celery_run" and "on_failure" in result.result:
            self.on_failure = [one["command"] for one in result.result["on_failure"]]
            self.environment = result.result["environment"]
        if result.is_changed():
            for one in result.result.get("results", [result.result]):
                if one.get("changed"):
                    found = run_summary.changes(task, one, result.task.action)
                    self.done.setdefault(host, []).extend(found)
        elif result.task.action == DEBUG and TELLS.match(task.rpartition(" : ")[2]):
            text = result.result.get("msg", "")
            lines = text if isinstance(text, list) else [text]
            self.notes.setdefault(host, []).append("\n".join(map(str, lines)))
        if MODULE.fullmatch(result.task.action):
            warnings = result.result.get("warnings") or []
            self.notes.setdefault(host, []).extend(f"WARNING {one}" for one in warnings)
        if self.pipe is not None and result.task.action == DEBUG:
            print(result.result["msg"], file=self.pipe, flush=True)
        else:
            super().v2_runner_on_ok(result)
        if result.task.action == LIVES and (lines := pauses.reminders(result.result)):
            self.notes.setdefault(run_summary.FLEET, []).extend(lines)
            # The summary may have room for some of them alone.
            self._display.display("\n".join(lines))

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Print why a task has failed, and keep it for the summary."""
        self._keep_destination(result)
        if not ignore_errors:
            self._keep(result)
            is_command = self.passes_on and result.task.action == "celery_run"
            if is_command and result.result.get("status"):
                pass_on(int(result.result["status"]))
        super().v2_runner_on_failed(result, ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Print which host does not answer, and keep it for the summary."""
        if not result.task.ignore_unreachable:
            self._keep(result)
        super().v2_runner_on_unreachable(result)

    def v2_on_file_diff(self, result: Any) -> None:
        """Print what a task has changed in files, and the same on more hosts in a line."""
        if self._display.verbosity:
            super().v2_on_file_diff(result)
            return
        parts = [
            part
            for one in result.result.get("results", [result.result])
            if one.get("changed") and not run_summary.is_of_a_build(one)
            for part in run_diff.parts(one.get("diff"))
        ]
        lines = run_diff.shown(parts)
        if not lines:
            return
        host = result.host.get_name()
        first = self.differences.setdefault((result.task._uuid, "\n".join(lines)), host)
        if self._last_task_banner != result.task._uuid:
            self._print_task_banner(result.task)
        if first != host:
            lines = [f"{host}: the same as on {first}"]
        self._display.display("\n".join(map(colored, lines)))

    def _dump_results(self, result: Any, *args: Any, **options: Any) -> Any:
        # Of a text with one character above U+FFFF libyaml makes a single line of escapes.
        result = {key: one for key, one in result.items() if key not in NOISE}
        text = result.get("msg")
        wide = sorted({one for one in text if one > "\uffff"}) if isinstance(text, str) else []
        if not wide or len(wide) > MOST_WIDE or self.get_option("result_format") != "yaml":
            return super()._dump_results(result, *args, **options)
        stand_ins = {ord(one): 0xE000 + place for place, one in enumerate(wide)}
        dumped = super()._dump_results(
            {**result, "msg": text.translate(stand_ins)}, *args, **options
        )
        return dumped.translate({there: one for one, there in stand_ins.items()})

    def _handle_warnings_and_exception(self, result: Any) -> None:
        # The message of a check or a module of the project is all that there is to know.
        if OWN.fullmatch(result.task.action) and "module_stdout" not in result.result:
            self._handle_warnings(result.result)
        else:
            super()._handle_warnings_and_exception(result)

    def _keep_destination(self, result: Any) -> None:
        # With a step it is the word of a host.
        if result.task.action == "celery_destination" and "step" not in result.task.args:
            self.destination = self.destination or str(result.result.get("destination", ""))

    def _keep(self, result: Any) -> None:
        said = str(result.result.get("msg") or result.result.get("censored") or "")
        # Of a module that did not even start, such as for sudo.
        if errors := str(result.result.get("module_stderr", "")).strip().splitlines():
            said += f": {errors[-1]}"
        self.failed.setdefault(result.host.get_name(), []).append(said)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print Ansible's recap, and below it the summary."""
        super().v2_playbook_on_stats(stats)
        is_any = self.name in run_summary.NEEDING_ANY
        if self.unmatched and not self.failed and not (is_any and self.has_begun):
            is_limited = any(map(self.inventory.get, self.unmatched.split(":")))
            needs = groups.ANY if is_any else groups.USE
            missing = "" if is_limited else groups.problem(self.inventory, needs)
            limit = context.CLIARGS["subset"]
            nothing = run_summary.without_hosts(self.name, self.unmatched, limit, missing)
            self._display.display(nothing, color=COLOR_ERROR)
            pass_on(FAILED)
            return
        if not self.sums_up or self.pipe is not None:
            return
        # What a rescue has mended is in the recap.
        over = {
            host: said
            for host, said in self.failed.items()
            if (counts := stats.summarize(host))["failures"] or counts["unreachable"]
        }
        lines = run_summary.summary(
            self.done,
            over,
            self.notes,
            check=bool(context.CLIARGS["check"]),
            columns=self._display.columns,
        )
        self._display.banner(run_summary.title(self.destination))
        for line in lines:
            self._display.display(line, color=COLOR_ERROR if over else None)
        for command in self.on_failure if over else []:
            self._display.display(f"controller: {run_hooks.words(command)}")
            if said := run_hooks.run_here(command, self.environment).get("msg"):
                self._display.display(said, color=COLOR_ERROR)
