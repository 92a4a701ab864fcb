"""Ansible's own output with a summary at its end; of a status as JSON nothing else on stdout."""

from __future__ import annotations

import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from ansible.constants import COLOR_ERROR
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils.vars import load_extra_vars

DOCUMENTATION = """
    name: celery_metal
    type: stdout
    short_description: Ansible's default output, and a summary; a status as JSON can be piped
    description:
      - Below the recap, what was changed and why, or what failed and its remedy, on one screen.
      - With C(-e status_format=json), C(playbooks/status.yml) prints the JSON on stdout, and all
        else on stderr.
    extends_documentation_fragment:
      - default_callback
      - result_format_callback
"""

# A summary fits on a screen, and of a long message its first lines and its remedy.
MOST_LINES, MOST_FAILURES, MOST_OF_MESSAGE, MOST_OF_LINE = 16, 8, 4, 400
# Characters for private use; emoji are above U+FFFF.
MOST_WIDE = 0xF8FF - 0xE000
# What an assertion returns besides its message.
NOISE = ("assertion", "evaluated_to")
OWN = re.compile(r"ansible\.builtin\.(assert|fail)|(celery|debian|redis)_[a-z_]+")
# What a module says of units, images, secrets and packages, a line each.
DONE = re.compile(r"(start|restart|stop|reload|keep|remove|install|bring|renew) (.+)")
# Of a unit that failed, up to an empty line.
JOURNAL = re.compile(r"^== .*?(?:\n[ \t]*\n|\Z)", re.M | re.S)
UNIT = re.compile(r"(.+@)[^@]+\.service")
KEY = re.compile(r"(?:Environment=\"?)?([A-Za-z_][A-Za-z0-9_.-]*)\s?=")
MARK = re.compile(r"Label=\"?celery-metal\.([a-z-]+)")


def changed_keys(before: str, after: str) -> list[str]:
    """Return the settings in which two versions of a unit file differ.

    Marks of the project count where nothing else differs.

    >>> changed_keys("CPUWeight=1\\nMemoryMax=5\\n", "CPUWeight=2\\nMemoryMax=5\\n")
    ['CPUWeight']
    """
    lines = {*before.splitlines()} ^ {*after.splitlines()}
    marks = {mark[1] for line in lines if (mark := MARK.match(line))} - {"generation"}
    keys = {key[1] for line in lines if not MARK.match(line) and (key := KEY.match(line))}
    return sorted(keys) or sorted(marks)


def changes(task: str, result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a task has changed: a verb and an object.

    :param task: its name, for a module that does not report its changes.
    """
    diff = result.get("diff") or []
    parts = [one for one in (diff if isinstance(diff, list) else [diff]) if isinstance(one, dict)]
    found: list[tuple[str, str]] = []
    for part in parts:
        for line in str(part.get("prepared", "")).splitlines():
            if done := DONE.fullmatch(line):
                found.append((done[1], done[2].split(", ")[0]))
        path = pathlib.PurePath(str(part.get("before_header", "")))
        if "after" in part and path.is_absolute():
            is_gone = part.get("after_header") == "/dev/null"
            verb = "remove" if is_gone else "change" if part.get("before") else "write"
            keys = changed_keys(str(part["before"]), str(part["after"]))
            is_why = verb == "change" and keys
            found.append((verb, f"{path.name} ({', '.join(keys[:4])})" if is_why else path.name))
    yield from found or [("", task)]


def phrases(done: Sequence[tuple[str, str]]) -> list[str]:
    """Return a phrase for each verb; instances of one template are counted.

    >>> phrases([("start", "a@1.service"), ("start", "a@2.service"), ("", "Load it")])
    ['start a@ (2)', 'Load it']
    """
    verbs: dict[str, dict[str, int]] = {}
    for verb, what in done:
        unit = UNIT.fullmatch(what)
        names = verbs.setdefault(verb, {})
        name = unit[1] if unit else what.removesuffix(".service")
        names[name] = names.get(name, 0) + 1
    lines = []
    for verb, names in verbs.items():
        shown = [f"{name} ({count})" if count > 1 else name for name, count in names.items()]
        more = [f"{len(shown) - 8} more"] if len(shown) > 9 else []
        lines.append(f"{verb} {', '.join([*(shown[:8] if more else shown), *more])}".strip())
    return lines


def shortened(message: str) -> list[str]:
    """Return the first lines of a message without a journal, and its remedy.

    >>> shortened("a\\nb\\nc\\nd\\ne\\nf\\n  Fix: g")
    ['a', 'b', 'c', 'd', '  ...', '  Fix: g']
    >>> shortened("a\\n== a.service: failed\\n12:00 web1 a[7]: x\\n\\nIt is back.\\n  Fix: g")
    ['a', 'It is back.', '  Fix: g']
    """
    lines = [line.rstrip() for line in JOURNAL.sub("", message).splitlines() if line.strip()]
    first, rest = lines[:MOST_OF_MESSAGE], lines[MOST_OF_MESSAGE:]
    remedies = [line for line in rest if line.lstrip().startswith("Fix:")]
    hidden = ["  ..."] if len(rest) > len(remedies) else []
    chosen = [line[:MOST_OF_LINE] for line in [*first, *hidden, *remedies[:3]]]
    return ["".join(one if one.isprintable() else "?" for one in line) for line in chosen]


def by_hosts(lines: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return each line with the hosts that have it."""
    found: dict[str, list[str]] = {}
    for host, ones in lines.items():
        for line in dict.fromkeys(ones):
            found.setdefault(line, []).append(host)
    return found


def summary(
    done: Mapping[str, list[tuple[str, str]]], failed: Mapping[str, list[str]]
) -> list[str]:
    """Return the lines of a summary: what was changed, then what failed; each once for all hosts.

    :param done: host to what was changed on it, as ``changes`` yields it.
    :param failed: host to the messages of what failed.
    """
    lines = [
        f"{named(hosts)}: {line}"
        for line, hosts in by_hosts({host: phrases(ones) for host, ones in done.items()}).items()
    ]
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"... and {len(lines) - MOST_LINES} more changes, see above"]
    if not lines and not failed:
        lines = ["nothing changed"]
    reasons = by_hosts(failed)
    for message, hosts in list(reasons.items())[:MOST_FAILURES]:
        first, *rest = shortened(message) or ["no message"]
        is_named = any(
            re.search(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", first) for host in hosts
        )
        lines += [f"FAILED {first if is_named else f'{named(hosts)}: {first}'}", *rest]
    if len(reasons) > MOST_FAILURES:
        lines.append(f"... and {len(reasons) - MOST_FAILURES} more failures, see above")
    return lines


def named(hosts: Sequence[str]) -> str:
    """Return the names of hosts; of many their number.

    >>> named(["b", "a"]), named(list("abcdefg"))
    ('a, b', 'a, b, c, d and 3 more hosts')
    """
    names = sorted(hosts)
    if len(names) < 6:
        return ", ".join(names)
    return f"{', '.join(names[:4])} and {len(names) - 4} more hosts"


class CallbackModule(Default):  # type: ignore[misc]
    """Ansible's default output and a summary, but for a status as JSON."""

    CALLBACK_NAME = "celery_metal"
    #: What stdout was, where a status is to be JSON.
    pipe: TextIO | None = None

    def __init__(self) -> None:
        super().__init__()
        #: Whether a playbook is to end with a summary.
        self.sums_up = True
        self.done: dict[str, list[tuple[str, str]]] = {}
        self.failed: dict[str, list[str]] = {}

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Have all but the JSON on stderr, where it is asked for."""
        variables = load_extra_vars(playbook._loader)
        name = pathlib.Path(playbook._file_name).name
        self.sums_up = name != "status.yml"
        if name == "status.yml" and variables.get("status_format") == "json":
            sys.stdout.flush()
            self.pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
            os.dup2(2, 1)
        super().v2_playbook_on_start(playbook)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Print what a task has returned; of the one that shows the status its text alone."""
        if result.is_changed():
            of_host = self.done.setdefault(result.host.get_name(), [])
            of_host += changes(result.task.get_name(), result.result)
        if self.pipe is not None and result.task.action == "ansible.builtin.debug":
            print(result.result["msg"], file=self.pipe, flush=True)
        else:
            super().v2_runner_on_ok(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Print why a task has failed, and keep it for the summary."""
        if not ignore_errors:
            self._keep(result)
        super().v2_runner_on_failed(result, ignore_errors)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Print which host does not answer, and keep it for the summary."""
        if not result.task.ignore_unreachable:
            self._keep(result)
        super().v2_runner_on_unreachable(result)

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

    def _keep(self, result: Any) -> None:
        said = str(result.result.get("msg") or result.result.get("censored") or "")
        # Of a module that did not even start, such as for sudo.
        if errors := str(result.result.get("module_stderr", "")).strip().splitlines():
            said += f": {errors[-1]}"
        self.failed.setdefault(result.host.get_name(), []).append(said)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Print Ansible's recap, and below it the summary."""
        super().v2_playbook_on_stats(stats)
        if not self.sums_up or self.pipe is not None:
            return
        # What a rescue has mended is in the recap.
        over = {
            host: said
            for host, said in self.failed.items()
            if (counts := stats.summarize(host))["failures"] or counts["unreachable"]
        }
        self._display.banner("SUMMARY")
        for line in summary(self.done, over):
            self._display.display(line, color=COLOR_ERROR if over else None)
