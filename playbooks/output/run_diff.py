"""What --diff prints of a task: the lines that change, and files that change alike once."""

from __future__ import annotations

import difflib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# Lines of one file, lines of all files of a task, and units or secrets of one verb.
MOST_OF_FILE, MOST_OF_TASK, MOST_OF_VERB = 30, 80, 8
MOST_OF_LINE, MOST_OF_CONTEXT, MOST_NAMES = 500, 96, 8
CONTEXT = 1
# A hash of all other lines of a unit.
GENERATION = re.compile(r"^Label=celery-metal\.generation=.*$", re.M)
NOT_TEXT = {"src_binary", "dst_binary", "src_larger", "dst_larger"}
WHOLE = "-v shows all of it"


class FileDiff(NamedTuple):
    """A file or link before and after a task; empty where it is not there."""

    path: str
    before: str
    after: str
    is_gone: bool
    #: Ansible describes it by values, such as its mode, in JSON.
    has_values: bool = False

    @property
    def verb(self) -> str:
        return "remove" if self.is_gone else "change" if self.before else "write"

    @property
    def name(self) -> str:
        return pathlib.PurePath(self.path).name


def parts(diff: Any) -> list[Mapping[str, Any]]:
    """Return the differences of a task's result, which are one or a list."""
    found = diff if isinstance(diff, list) else [diff]
    return [one for one in found if isinstance(one, Mapping)]


def files_of(diff: Any) -> list[FileDiff]:
    """Return the files, links and directories in the differences of a task's result."""
    return [_file_of(one) for one in parts(diff) if "after" in one]


def _file_of(part: Mapping[str, Any]) -> FileDiff:
    before, after = part.get("before"), part["after"]
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        is_new = before.get("state") == "absent"
        return FileDiff(
            path=str(after.get("path") or ""),
            before="" if is_new else _values(before),
            after=_values(after),
            is_gone=after.get("state") == "absent",
            has_values=True,
        )
    return FileDiff(
        path=str(part.get("before_header") or "").removesuffix(" (content)"),
        before=str(before or ""),
        after=str(after or ""),
        is_gone=part.get("after_header") == "/dev/null",
    )


def _values(found: Mapping[str, Any]) -> str:
    """As JSON, without what a directory contains."""
    return json.dumps(
        {key: one for key, one in found.items() if isinstance(one, str | int | float | None)}
    )


def words_of(diff: Any) -> list[str]:
    """Return what a module reports of units, secrets and images, a line each."""
    text = "\n".join(str(one["prepared"]) for one in parts(diff) if one.get("prepared"))
    return [line for line in text.splitlines() if line]


def shown(diff: Any) -> list[str]:
    """Return the lines to print of a task's differences.

    >>> file = {"before_header": "/a", "after_header": "/a"}
    >>> shown([{**file, "before": "x=1\\ny\\n", "after": "x=2\\ny\\n"}, {"prepared": "start a\\n"}])
    ['change /a', '@@ -1,2 +1,2 @@', '-x=1', '+x=2', ' y', 'start a']
    """
    lines = [*_of_files(files_of(diff)), *_of_words(words_of(diff))]
    if any(one.keys() & NOT_TEXT for one in parts(diff)):
        lines.append("a file that is too large, or no text, is not shown")
    return [_printable(line) for line in lines]


def listed(names: Sequence[str], most: int = MOST_NAMES) -> str:
    """Return names; of many the first, and how many more.

    >>> listed(["a", "b", "c"], 2), listed(["a", "b"], 2)
    ('a, b and 1 more', 'a, b')
    """
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def _of_files(files: Sequence[FileDiff]) -> Iterator[str]:
    alike: dict[tuple[str, ...], tuple[list[str], list[FileDiff]]] = {}
    for one in files:
        if one.verb == "change":
            lines = _changed(one)
            alike.setdefault(_key(one, lines), (lines, []))[1].append(one)
    left = MOST_OF_TASK
    unshown: list[str] = []
    for lines, ones in alike.values():
        text = lines
        if len(lines) > MOST_OF_FILE:
            more = len(lines) - MOST_OF_FILE + 1
            text = [*lines[: MOST_OF_FILE - 1], f"... and {more} more lines; {WHOLE}"]
        if len(text) > left:
            unshown += [one.name for one in ones]
            continue
        left -= len(text)
        yield f"change {ones[0].path}"
        yield from text
        if others := [one.name for one in ones[1:]]:
            yield f"... and {len(others)} more change alike: {listed(others)}"
    if unshown:
        yield f"... and {len(unshown)} more change: {listed(unshown)}; {WHOLE}"
    for verb in ("write", "remove"):
        yield from _by_folder(verb, [one for one in files if one.verb == verb])


def _by_folder(verb: str, files: Sequence[FileDiff]) -> Iterator[str]:
    """New files and those that go: of one its lines are counted, of many the names."""
    folders: dict[str, list[FileDiff]] = {}
    for one in files:
        folders.setdefault(str(pathlib.PurePath(one.path).parent), []).append(one)
    for folder, ones in folders.items():
        if len(ones) == 1:
            count = len((ones[0].before or ones[0].after).splitlines())
            size = "" if ones[0].has_values else f" ({count} line{'' if count == 1 else 's'})"
            yield f"{verb} {ones[0].path}{size}"
        else:
            yield f"{verb} {len(ones)} files in {folder}: {listed([one.name for one in ones])}"


def _of_words(words: Sequence[str]) -> Iterator[str]:
    verbs: dict[str, list[str]] = {}
    for line in words:
        verbs.setdefault(line.partition(" ")[0], []).append(line)
    for verb, lines in verbs.items():
        if len(lines) <= MOST_OF_VERB + 1:
            yield from lines
        else:
            yield from lines[:MOST_OF_VERB]
            yield f"{verb} ... and {len(lines) - MOST_OF_VERB} more; {WHOLE}"


def _changed(file: FileDiff) -> list[str]:
    """The lines that differ, with little around them; of JSON the values, by their names."""
    if file.has_values or file.path.endswith(".json"):
        try:
            old, new = (dict(_leaves(json.loads(text))) for text in (file.before, file.after))
        except (ValueError, RecursionError):
            pass
        else:
            return [*_differing(old, new)] or ["only its layout changes"]
    before, after = file.before, file.after
    mark = GENERATION.search(after)
    if mark and (alike := GENERATION.sub(mark[0], before)) != after:
        before = alike
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=CONTEXT, lineterm="")
    return [*lines][2:] or ["only the end of its last line changes"]


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Each value of a document by the names that lead to it; members of lists by their own."""
    if isinstance(value, Mapping) and value:
        for key, one in value.items():
            yield from _leaves(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value:
        keys: set[str] = set()
        for place, one in enumerate(value):
            key = str(one["name"]) if isinstance(one, Mapping) and "name" in one else str(place)
            key = str(place) if key in keys else key
            keys.add(key)
            yield from _leaves(one, f"{name}.{key}" if name else key)
    else:
        yield name, json.dumps(value)


def _differing(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    for name in [*old, *(one for one in new if one not in old)]:
        if old.get(name) != new.get(name):
            if name in old:
                yield f"-{name}: {old[name]}"
            if name in new:
                yield f"+{name}: {new[name]}"


def _key(file: FileDiff, lines: Sequence[str]) -> tuple[str, ...]:
    """What files that change alike have in common: the lines, but for the name of the queue."""
    name = file.name.partition("@")[0].removeprefix("celery-").partition(".")[0]
    own = re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w.])" if name else r"(?!)")
    return (
        pathlib.PurePath(file.path).suffix,
        *(
            own.sub("QUEUE", line) if len(line) <= MOST_OF_LINE else line
            for line in lines
            if line.startswith(("+", "-"))
        ),
    )


def _printable(line: str) -> str:
    most = MOST_OF_CONTEXT if line.startswith(" ") else MOST_OF_LINE
    line = line.expandtabs(4)
    line = line if len(line) <= most else f"{line[:most]}..."
    return "".join(one if one.isprintable() else "?" for one in line)
