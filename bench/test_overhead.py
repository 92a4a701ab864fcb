"""The parts of overhead.py that need no workers."""

from __future__ import annotations

import base64
import json

import overhead
import pytest

STAT = "7 (a (b) c) S 1 7 7 0 -1 4194560 100 0 0 0 {} {} {} {} 20 0 1 0 5 0 0"


def turns(*pairs: tuple[float, float]) -> list[overhead.Turn]:
    return [overhead.Turn(other, this) for other, this in pairs]


def test_a_message_is_a_task():
    message = json.loads(overhead.message("5"))
    assert message["headers"]["task"] == overhead.TASK
    assert json.loads(base64.b64decode(message["body"]))[0] == [1, 2]


def test_cpu_time_is_that_of_a_process_and_of_its_children_that_ended():
    assert overhead.cpu_ticks(STAT.format(1, 20, 300, 4000)) == 4321


def test_the_median_of_ratios_counts():
    measured = {
        "solo": turns((1, 1), (1, 1.03), (1, 9)),
        "threads": turns((1, 1.1), (1, 1.1), (1, 0.1)),
    }
    assert overhead.missed(measured) == ["threads"]
    lines = overhead.table(measured, "v1").splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["solo", "1.000", "ms", "1.030", "ms", "1.03", "1.00", "..", "9.00"]


def test_a_commit_that_is_not_there_is_named(tmp_path):
    with pytest.raises(overhead.OverheadError, match="no-such-commit"):
        overhead.checked_out("no-such-commit", tmp_path / "other")


def test_no_turn_is_refused(capsys):
    with pytest.raises(SystemExit):
        overhead.main(["HEAD", "--repeat", "0"])
    assert "--repeat and --tasks must be 1 or more" in capsys.readouterr().err
