"""The end of a run on one screen: what changed and why, what is wrong, what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from run_diff import FileDiff, files_of, listed, words_of

# With its banner and the empty line above that: 24 lines.
MOST_ROWS = 22
#: Playbooks that do nothing when a play of theirs has no host.
NEEDING = (
    *("dead.yml", "doctor.yml", "drain.yml", "logs.yml", "producer.yml"),
    *("queues.yml", "restore.yml", "run.yml", "status.yml", "undrain.yml"),
)
#: Playbooks with a play for each group, of which an inventory may lack all but one.
NEEDING_ANY = ("remove.yml",)
#: In the place of a host, for what concerns all of them.
FLEET = ""
# What is left to failures, and to warnings, where there is more of all.
LEAST_CHANGES, LEAST_NOTES = 6, 4
# Of a long message its first lines and its remedies.
MOST_OF_MESSAGE, MOST_REMEDIES, MOST_OF_LINE = 4, 3, 400
MOST_KEYS, MOST_NAMES = 4, 5
# Where an image is built; what is sent there goes again.
WORK = "/var/lib/celery-metal/image"
# What a module reports of units, images, secrets and packages, a line each.
DONE = re.compile(
    r"(keep secret|remove secret|remove image|start|restart|stop|reload|renew|remove|keep) (.+)"
)
IMAGE = re.compile(r"(Built|Pulled|Loaded) image (\S+)")
IMAGE_VERBS = {"Built": "build", "Pulled": "pull", "Loaded": "load"}
PACKAGES = re.compile(r"NEW packages will be installed:\n((?: .*\n)*)")
FORETOLD = re.compile(r"Say which (image|package)s a run without --check would (\w+)")
# Of a task that another one explains.
EMPTY = re.compile(
    r"(Task failed: )?(Action failed: )?"
    r"(A 'failed_when' expression evaluated to 'True'|One or more items failed|"
    r"Failed to build image )"
)
# Of a unit that failed, up to an empty line.
JOURNAL = re.compile(r"^== .*?(?:\n[ \t]*\n|\Z)", re.M | re.S)
UNIT = re.compile(r"(.+@)[^@]+\.service")
SETTING = re.compile(r"(Environment=)?\"?([A-Za-z_][A-Za-z0-9_.-]*)\s?=\s?(.*?)\"?$")
MARK = re.compile(r"Label=\"?celery-metal\.([a-z-]+)(?:\.([A-Za-z0-9_.-]+))?=")
OWN = "CELERY_METAL_"
# Why a unit is touched that no file of the run explains.
OPEN = "?"
REASONS = {"start": "was not up", "restart": "ran an earlier version"}
# Values that can be no secret.
NUMBER = re.compile(r"\d{1,9}[A-Za-z%]{0,4}")
WORD = re.compile(r"[A-Za-z0-9._%-]{1,24}")


class Change(NamedTuple):
    """What a task did: ``("restart", "celery-mail@1.service", "")``; a task's name has no verb."""

    verb: str
    what: str
    why: str = ""


def changed_settings(before: str, after: str) -> list[str]:
    """Return the settings in which two versions of a unit file differ, with short values.

    Marks of the project count where nothing else differs.

    >>> changed_settings("CPUWeight=1\\nMemoryMax=5M\\n", "CPUWeight=2\\nMemoryMax=5M\\n")
    ['CPUWeight 1 -> 2']
    >>> before = "Environment=CELERY_METAL_PREFETCH=1\\nEnvironment=TOKEN=a\\n"
    >>> changed_settings(before, before.replace("=1", "=2").replace("=a", "=b"))
    ['prefetch 1 -> 2', 'TOKEN']
    """
    old, new = {*before.splitlines()}, {*after.splitlines()}
    marks = {mark.groups() for line in old ^ new if (mark := MARK.match(line))}
    # Key to its values, before and after.
    found: dict[str, tuple[list[str], list[str]]] = {}
    for place, lines in enumerate((old - new, new - old)):
        for line in lines:
            if not MARK.match(line) and (setting := SETTING.match(line)):
                is_variable, key, value = setting.groups()
                values = found.setdefault(key, ([], []))
                values[place].append(_harmless(key, value, is_variable=bool(is_variable)))
    if not found:
        marks.discard(("generation", None))
        return sorted(f"{kind} {name or ''}".strip() for kind, name in marks)
    # Those that a queue has, before what follows from them.
    keys = sorted(found, key=lambda key: (not key.startswith(OWN), key))
    return [_told(key, *found[key]) for key in keys]


def _harmless(key: str, value: str, *, is_variable: bool) -> str:
    """A value that may be shown: a number, a word of the project's own, or an image; or nothing."""
    if key == "Image":
        value = value.rpartition("/")[2]
        return value if re.fullmatch(r"[\w.:@-]{1,80}", value) else ""
    is_own = key.startswith(OWN)
    if is_variable and not is_own:
        return ""
    return value if (WORD if is_own else NUMBER).fullmatch(value) else ""


def _told(key: str, old: Sequence[str], new: Sequence[str]) -> str:
    name = key.removeprefix(OWN).removeprefix("PLAN_").lower() if key.startswith(OWN) else key
    if len(old) == len(new) == 1 and old[0] and new[0]:
        return f"{name} {old[0]} -> {new[0]}"
    return name


def changes(task: str, result: Mapping[str, Any], action: str = "") -> list[Change]:
    """Return what a task has changed, or would change.

    :param task: its name, for a module that does not report its changes.
    :param action: the module's name.
    """
    task = task.rpartition(" : ")[2]
    if is_of_a_build(result):
        return []
    words = words_of(result.get("diff"))
    why = OPEN if action == "celery_services" else ""
    found = [_of_word(one, why) for line in words if (one := DONE.fullmatch(line))]
    found += [_of_file(one) for one in files_of(result.get("diff")) if one.path.startswith("/")]
    found += _of_images_and_packages(task, result)
    is_note = bool(words) and all(line.startswith("write ") for line in words)
    return found or ([] if is_note else [Change("", task)])


def is_of_a_build(result: Mapping[str, Any]) -> bool:
    """Whether a task made or removed what only the build of an image needs."""
    place = str(result.get("path") or result.get("dest") or "")
    return f"{place}/".startswith(f"{WORK}/")


def _of_word(line: re.Match[str], why: str) -> Change:
    return Change(line[1], line[2].partition(", ")[0], why)


def _of_file(file: FileDiff) -> Change:
    keys = changed_settings(file.before, file.after) if file.verb == "change" else []
    return Change(file.verb, file.name, listed(keys, MOST_KEYS))


def _of_images_and_packages(task: str, result: Mapping[str, Any]) -> Iterator[Change]:
    if foretold := FORETOLD.match(task):
        names = str(result.get("msg", "")).removesuffix(", and what they depend on")
        for name in names.split(", "):
            yield Change(f"{foretold[2]} {foretold[1]}", name)
    for verb, name in IMAGE.findall(str(result.get("actions", ""))):
        yield Change(f"{IMAGE_VERBS[verb]} image", name)
    if packages := PACKAGES.search(str(result.get("stdout", ""))):
        for name in packages[1].split():
            yield Change("install package", name)


def with_reasons(done: Sequence[Change]) -> list[Change]:
    """Return the same, with the reason of starts and restarts that no file of the run explains."""
    touched = {_stem(one.what) for one in done if one.verb in ("write", "change")}
    found = []
    for one in done:
        is_explained = touched & {_stem(one.what), _stem(re.sub("@.*", "@", one.what))}
        why = REASONS.get(one.verb, "") if one.why == OPEN and not is_explained else one.why
        found.append(one._replace(why="" if why == OPEN else why))
    return found


def _stem(name: str) -> str:
    return re.sub(r"\.(container|service|target|timer|slice)$", "", name)


def phrases(done: Sequence[Change]) -> list[str]:
    """Return a phrase for each verb and reason; instances of one template are counted.

    >>> phrases([Change("stop", "a@1.service"), Change("stop", "a@2.service"), Change("", "Load")])
    ['stop a@ (2)', 'Load']
    """
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for verb, what, why in done:
        unit = UNIT.fullmatch(what)
        names = groups.setdefault((verb, why), {})
        name = unit[1] if unit else what.removesuffix(".service")
        names[name] = names.get(name, 0) + (1 if unit else 0)
    lines = []
    for (verb, why), names in groups.items():
        shown = [f"{name} ({count})" if count > 1 else name for name, count in names.items()]
        lines.append(f"{verb} {listed(shown, MOST_NAMES)}{f' ({why})' if why else ''}".strip())
    return lines


def shortened(message: str) -> list[str]:
    """Return the first lines of a message without a journal, and its remedies.

    >>> shortened("a\\nb\\nc\\nd\\ne\\nf\\n  Fix: g")
    ['a', 'b', 'c', 'd', '  ...', '  Fix: g']
    >>> shortened("a\\n== a.service: failed\\n12:00 web1 a[7]: x\\n\\nIt is back.\\n  Fix: g")
    ['a', 'It is back.', '  Fix: g']
    """
    lines = [line.rstrip() for line in JOURNAL.sub("", message).splitlines() if line.strip()]
    first, rest = lines[:MOST_OF_MESSAGE], lines[MOST_OF_MESSAGE:]
    remedies = [line for line in rest if _is_remedy(line)]
    hidden = ["  ..."] if len(rest) > len(remedies) else []
    chosen = [line[:MOST_OF_LINE] for line in [*first, *hidden, *remedies[:MOST_REMEDIES]]]
    return ["".join(one if one.isprintable() else "?" for one in line) for line in chosen]


def _is_remedy(line: str) -> bool:
    return line.lstrip().startswith("Fix:")


def by_hosts(lines: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return each line with the hosts that have it."""
    found: dict[str, list[str]] = {}
    for host, ones in lines.items():
        for line in dict.fromkeys(ones):
            found.setdefault(line, []).append(host)
    return found


def named(hosts: Sequence[str]) -> str:
    """Return the names of hosts; of many their number.

    >>> named(["b", "a"]), named(list("abcdefg"))
    ('a, b', 'a, b, c, d and 3 more hosts')
    """
    names = sorted(hosts)
    if len(names) < 6:
        return ", ".join(names)
    return f"{', '.join(names[:4])} and {len(names) - 4} more hosts"


def summary(
    done: Mapping[str, Sequence[Change]],
    failed: Mapping[str, Sequence[str]],
    notes: Mapping[str, Sequence[str]] | None = None,
    *,
    check: bool = False,
    columns: int = 79,
) -> list[str]:
    """Return the lines of a summary: changes, notes, failures; each once for all hosts.

    :param done: host to what was changed on it.
    :param failed: host to the messages of what failed.
    :param notes: host to warnings, and to what a playbook reports.
    :param check: whether the run only foretold changes.
    :param columns: of the screen, on which a long line takes several rows.
    """
    would = "would " if check else ""
    phrased = {host: phrases(with_reasons(ones)) for host, ones in done.items()}
    made = [[f"{named(hosts)}: {would}{one}"] for one, hosts in by_hosts(phrased).items()]
    told = [_message("", one, hosts) for one, hosts in by_hosts(notes or {}).items()]
    reasons = {
        host: [one for one in ones if not EMPTY.match(one)] or ones for host, ones in failed.items()
    }
    wrong = [_message("FAILED ", one, hosts) for one, hosts in by_hosts(reasons).items()]
    last = []
    if not made and not wrong:
        made = [["nothing would change" if check else "nothing changed"]]
    elif check and not wrong:
        last = ["--check changed nothing: the same command without it does this"]

    def rows(blocks: Sequence[Sequence[str]]) -> int:
        return sum(height(line, columns) for block in blocks for line in block)

    left = MOST_ROWS - len(last)
    kept = min(rows(made), LEAST_CHANGES) + min(rows(told), LEAST_NOTES)
    failures = fitted(wrong, left - kept, columns, "failures")
    left -= rows([failures])
    reports = fitted(told, left - min(rows(made), LEAST_CHANGES), columns, "messages")
    left -= rows([reports])
    return [*fitted(made, left, columns, "changes"), *reports, *failures, *last]


def without_hosts(playbook: str, groups: str, limit: str | None, missing: str = "") -> str:
    """Return why a playbook has done nothing, and the remedy.

    :param groups: those of the play without a host.
    :param missing: what the inventory lacks; empty where the limit leaves no host.

    >>> print(without_hosts("queues.yml", "celery", "web9"))
    FAILED playbooks/queues.yml: --limit is "web9", and no host of celery is in this run.
      Fix: run it without --limit, or limit it to a host of celery. Nothing was changed.
    """
    if missing:
        return f"FAILED playbooks/{playbook}: {missing}"
    why = f'--limit is "{limit}", and no host of {groups} is in this run'
    fix = f"run it without --limit, or limit it to a host of {groups}"
    return f"FAILED playbooks/{playbook}: {why}.\n  Fix: {fix}. Nothing was changed."


def title(destination: str) -> str:
    """Return the heading of a summary.

    >>> title("production"), title("")
    ('SUMMARY of production', 'SUMMARY')
    """
    return f"SUMMARY of {destination}" if destination else "SUMMARY"


def _message(kind: str, message: str, hosts: Sequence[str]) -> list[str]:
    first, *rest = shortened(message) or ["no message"]
    is_named = FLEET in hosts or any(
        re.search(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", first) for host in hosts
    )
    return [f"{kind}{first if is_named else f'{named(hosts)}: {first}'}", *rest]


def height(line: str, columns: int) -> int:
    """Return how many rows of a screen a line takes."""
    return max(1, -(-len(line) // columns))


def fitted(blocks: Sequence[Sequence[str]], rows: int, columns: int, kind: str) -> list[str]:
    """Return the blocks that fit into so many rows, and how many more there are.

    >>> fitted([["a"], ["b"], ["c"]], 2, 79, "changes")
    ['a', '... and 2 more changes, see above']
    >>> fitted([["a", "b", "c", "  Fix: d"]], 3, 79, "failures")
    ['a', '  ...', '  Fix: d']
    """
    lines: list[str] = []
    for place, block in enumerate(blocks):
        more = len(blocks) - place
        left = rows - sum(height(line, columns) for line in lines) - (more > 1)
        if lines and sum(height(line, columns) for line in block) > left:
            return [*lines, f"... and {more} more {kind}, see above"]
        lines += block if lines else _cut(block, max(left, 1), columns)
    return lines


def _cut(block: Sequence[str], rows: int, columns: int) -> list[str]:
    """A message in so many rows: its first line and its remedies are the last to go."""
    lines = list(block)

    def total() -> int:
        return sum(height(line, columns) for line in lines)

    if total() <= rows:
        return lines
    middle = [line for line in lines[1:] if not _is_remedy(line) and line.strip() != "..."]
    lines = [line for line in lines if line not in middle]
    if "  ..." not in lines and len(lines) > 1:
        lines.insert(1, "  ...")
    for most in (2 * columns, columns):
        if total() > rows:
            lines = [line if len(line) <= most else f"{line[: most - 3]}..." for line in lines]
    return lines[:rows]
