"""celery_logs: what journalctl prints, and which lines belong to a failure."""

import json

import celery_logs
import pytest
from ansible.module_utils import celery_entries
from ansible.module_utils.celery_entries import Entry, entry, traceback

BELOW = """\
Traceback (most recent call last):
  File "/app/a.py", line 28, in add
    return x + y

KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/app/a.py", line 30, in add
ValueError: y
""".splitlines()


def as_entries(lines):
    return iter(
        [Entry(at, "q@1", line, "celery-q@1.service", str(at)) for at, line in enumerate(lines)]
    )


@pytest.mark.parametrize(
    "after", [[], ["[2026-11-29 19:40:28,181: INFO/MainProcess] Task a[1] received"]]
)
def test_a_traceback_is_followed_to_its_end(after):
    assert [one.line for one in traceback(as_entries([*BELOW, *after]))] == BELOW


def test_without_a_traceback_nothing_is_followed():
    assert list(traceback(as_entries(["a", *BELOW]))) == []


def test_one_without_an_end_is_cut():
    lines = [BELOW[0], *(["  x"] * 1000)]
    assert len(list(traceback(as_entries(lines)))) == celery_entries.MOST_FOLLOWING


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"MESSAGE": "a\n", "_SYSTEMD_UNIT": "celery-q@1.service"}, ("q@1", "a")),
        ({"MESSAGE": [65, 255, 66], "UNIT": "celery-redis.service"}, ("redis", "A\ufffdB")),
        ({"MESSAGE": None, "_SYSTEMD_UNIT": ["celery-q@1.service", "b"]}, ("q@1", "")),
        ({"MESSAGE": "x" * 9999, "UNIT": "celery-q@1.service"}, ("q@1", "x" * 4000)),
    ],
)
def test_fields_of_an_entry(fields, expected):
    found = entry(json.dumps({"__REALTIME_TIMESTAMP": "7", **fields}))
    assert (found.source, found.line) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"UNIT": "ssh.service"},
        {"_SYSTEMD_UNIT": "celery-a/b.service"},
        {"UNIT": "celery-q@1.service", "__REALTIME_TIMESTAMP": "x"},
        {"UNIT": {}},
    ],
)
def test_what_is_no_line_of_a_unit_is_left_out(fields):
    assert entry(json.dumps({"__REALTIME_TIMESTAMP": "7", **fields})) is None


@pytest.mark.parametrize("line", ["[1, 2]", "no", "[" * 9000, ""])
def test_what_is_no_answer_of_journalctl_is_an_error(line):
    with pytest.raises(celery_entries.ReadError, match=r"no JSON: .*\n  Fix: run"):
        entry(line)


def test_units_of_a_queue():
    planned = [
        {"name": "a", "unit": "a", "queues": ["a"]},
        {"name": "b", "unit": "b_2f", "queues": ["b", "a"]},
    ]
    both = ["celery-a@*.service", "celery-b_2f@*.service"]
    assert celery_logs.patterns(planned, "a", "") == both
    assert celery_logs.patterns(planned, "c", "") == []
    assert celery_logs.patterns(planned, "", "redis") == ["celery-redis.service"]
    assert celery_logs.patterns(planned, "", "") == ["celery-*.service"]
    assert celery_entries.entries([], (0.0, None), "", 5) == ([], False)


def test_a_journal_that_cannot_be_read_is_an_error(monkeypatch):
    command = ("sh", "-c", "echo Failed to open the journal >&2; exit 1")
    monkeypatch.setattr(celery_entries, "COMMAND", command)
    with pytest.raises(celery_entries.ReadError, match=r"(?s)failed: Failed to open.*Fix: run"):
        celery_entries.entries(["celery-a.service"], (0.0, None), "", 5)


def test_a_search_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(celery_entries, "COMMAND", ("sh", "-c", "exec sleep 60"))
    monkeypatch.setattr(celery_entries, "SECONDS", 0.1)
    with pytest.raises(celery_entries.ReadError, match="write a later logs_since"):
        celery_entries.entries(["celery-a.service"], (0.0, None), "a", 5)


def test_an_answer_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(celery_entries, "COMMAND", ("sh", "-c", "exec yes {}"))
    monkeypatch.setattr(celery_entries, "BYTES", 4096)
    with pytest.raises(celery_entries.ReadError, match="fewer logs_lines"):
        celery_entries.entries(["celery-a.service"], (0.0, None), "a", 5)
