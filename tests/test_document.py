"""The tables of variables in docs/: what they say, and that they are up to date."""

from __future__ import annotations

import functools
import pathlib
import re
import subprocess
import sys
from types import ModuleType

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
OPTIONS = {
    "x_port": {"type": "int", "default": 5, "description": ["The port of C(x)|y.", "Not I(z)."]},
    "x_list": {
        "type": "list",
        "elements": "dict",
        "description": "Things.",
        "options": {
            "name": {"type": "str", "required": True, "description": "A name."},
            "kind": {"type": "str", "choices": ["a", "b"], "default": "", "description": "Kind."},
        },
    },
}
TABLES = """\
| Variable | Type | Default | Description |
|---|---|---|---|
| `x_port` | number | `5` | The port of `x`\\|y. Not `z`. |
| `x_list` | list of mappings | none | Things. |

Keys of an item of `x_list`:

| Key | Type | Default | Description |
|---|---|---|---|
| `name` | text | required | A name. |
| `kind` | text | `""` | Kind. One of `a`, `b`. |"""


def test_tables(document: ModuleType) -> None:
    assert document.tables(OPTIONS) == TABLES


def test_only_what_is_between_the_markers_changes(document: ModuleType) -> None:
    begin, end = document.BEGIN, document.END
    text = f"# Title\n\n{begin}\nold\n{end}\n\nMore.\n"
    once = document.page(text, OPTIONS, "x.md")
    assert once == f"# Title\n\n{begin}\n{TABLES}\n{end}\n\nMore.\n"
    assert document.page(once, OPTIONS, "x.md") == once


@pytest.mark.parametrize("text", ["", "{begin}\n", "{end}\n{begin}\n", "{begin}\n{end}\n{end}\n"])
def test_a_page_without_its_markers_is_named(document: ModuleType, text: str) -> None:
    filled = text.format(begin=document.BEGIN, end=document.END)
    with pytest.raises(document.PageError, match=r"x\.md needs one line"):
        document.page(filled, OPTIONS, "x.md")


def test_all_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "document.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


# Messages and comments have "see 'Title' in docs/page.md" or "docs/page.md#anchor".
SOURCES = sorted(
    path
    for place in ("app/runtime", "playbooks", "roles")
    for path in (ROOT / place).rglob("*")
    if path.suffix in (".py", ".yml", ".j2") and "tests" not in path.parts
)


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it.

    >>> anchor("### `tmp_mb`, [and](x.md) more")
    'tmp_mb-and-more'
    """
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.lstrip("#").strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def prose(page: pathlib.Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


@functools.cache
def anchors(page: pathlib.Path) -> set[str]:
    return {anchor(one) for one in re.findall(r"^#+ .*$", prose(page), re.M)}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_between_pages_lead_somewhere(page: pathlib.Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        name, _, place = link.partition("#")
        target = page.parent / name if name else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (place and place not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_places_in_the_pages_that_messages_name_are_there() -> None:
    named = []
    for path in SOURCES:
        # A text that goes on in the next line.
        text = re.sub(r'"\s*\n\s*f?"', "", path.read_text())
        found = re.findall(r"'([A-Z][^'\n]{2,80})' in (docs/[\w/-]+\.md)", text)
        named += [(page, anchor(title)) for title, page in found]
        named += re.findall(r"(docs/[\w/-]+\.md)#([\w-]+)", text)
    assert len(named) > 10
    assert [one for one in named if one[1] not in anchors(ROOT / one[0])] == []


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language; "" is plain text."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
    return [text for kind, text in found if kind == language]


def test_the_plan_that_the_page_shows_is_the_planner_s(capacity: ModuleType) -> None:
    queues = yaml.safe_load(blocks("docs/queues.md", "yaml")[0])["celery_queues"]
    facts = {"processor_nproc": 8, "memtotal_mb": 16000}
    plan = capacity.plan_or_error(queues, facts, "web1", {"capacity_redis_host": True})
    assert blocks("docs/queues.md", "")[0] == capacity.plan_table(plan) + "\n"


def test_the_plan_that_the_first_page_shows_is_the_planner_s(capacity: ModuleType) -> None:
    queues = yaml.safe_load(blocks("README.md", "yaml")[0])["celery_queues"]
    facts = {"processor_nproc": 2, "memtotal_mb": 4096}
    plan = capacity.plan_or_error(queues, facts, "metal", {"capacity_redis_host": True})
    assert capacity.plan_table(plan) in blocks("README.md", "")[0]


def test_the_refusals_that_the_page_shows_are_the_planner_s(capacity: ModuleType) -> None:
    mistake, too_much = blocks("docs/roles/capacity.md", "")
    assert mistake == capacity.refusal_text([{"name": "emails", "wieght": 2}], {}, "web1") + "\n"
    queues = [{"name": "emails", "workload": "io"}, {"name": "reports", "concurrency": 20}]
    facts = {"processor_nproc": 8, "memtotal_mb": 3000}
    plan = capacity.plan_or_error(queues, facts, "web1", {"capacity_redis_host": True})
    assert too_much == plan["error"] + "\n"
