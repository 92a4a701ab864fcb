"""How long tasks of each queue wait, against its objective: the rows of status.yml."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import fleet_queues
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fleet import BACKLOG, DB, ESCAPE, worker

HOSTS = {"web1": {"workers": [worker("mail"), worker("reports")]}}
COUNTED = {
    "bounds_ms": [1000, 10000],
    "wait": [90, 8, 2],
    "per_hour": {"succeeded": 600, "failed": 90},
    "seconds": 300,
}
WAITS = {
    "error": "",
    "waiting": {"mail": 7, "reports": 0},
    "dead": {},
    "held": [],
    "counted": {"mail": COUNTED, "unknown": COUNTED},
    "oldest": {"mail": 45},
}


def wrong(fleet: ModuleType, backlog: Any, **objectives: int) -> list[str]:
    found = fleet.fleet(HOSTS, backlog, DB, True, None, objectives)["wrong"]
    return [one["what"] for one in found if "objective" in one["what"]]


def test_a_row_tells_how_long_tasks_wait_and_how_they_end(fleet: ModuleType) -> None:
    text = fleet.fleet_text(HOSTS, WAITS, DB, objectives={"mail": 30}).splitlines()
    begin = next(n for n, line in enumerate(text) if line.startswith("per queue"))
    assert text[begin] == "per queue, in seconds and tasks a minute, of the last 300 s:"
    assert [line.split() for line in text[begin + 2 :]] == [
        ["mail", "7", "45", "0.56", "6.62", "30", "10", "1.5", "0"]
    ]
    said = json.loads(fleet.fleet_text(HOSTS, WAITS, DB, "json", objectives={"mail": 30}))
    assert [one["queue"] for one in said["queues"]] == ["mail", "reports"]
    assert said["queues"][0] == {
        "queue": "mail",
        "objective": 30,
        "waiting": 7,
        "oldest": 45,
        "seconds": 300,
        "started": 100,
        "half": 0.56,
        "most": 6.62,
        "late_percent": 0.0,
        "per_hour": {"succeeded": 600, "failed": 90},
    }


def test_a_missed_objective_is_wrong(fleet: ModuleType) -> None:
    assert wrong(fleet, WAITS, mail=30, reports=1) == [
        "mail misses its objective of 30 s: the next task has waited for 45 s"
    ]
    assert wrong(fleet, WAITS, mail=50) == []
    assert wrong(fleet, WAITS) == []
    assert wrong(fleet, WAITS, mail=1) == [
        "mail misses its objective of 1 s: the next task has waited for 45 s, and 10 % of those "
        "that began in the last 300 s had waited for longer"
    ]
    pause = {"queue": "mail", "name": "mail", "by": "me", "at": 1, "reason": ""}
    assert wrong(fleet, {**WAITS, "paused": [pause]}, mail=1) == []
    # All but two of a hundred may have begun in time.
    assert wrong(fleet, WAITS, mail=9)[0].endswith("has waited for 45 s")
    # One that none waits in any more.
    assert wrong(fleet, {**WAITS, "waiting": {"mail": 0}}, mail=30) == []


def test_without_counts_there_are_no_rows(fleet: ModuleType) -> None:
    assert "per queue" not in fleet.fleet_text(HOSTS, BACKLOG, DB)


def test_the_objective_of_a_queue_is_the_shortest_of_all_hosts() -> None:
    hosts: dict[str, dict[str, Any]] = {
        "web1": {"celery_queues": [{"name": "a", "latency_objective_seconds": 9}, {"name": "b"}]},
        "web2": {
            "celery_queues": [
                {"name": "a", "latency_objective_seconds": 5},
                {"name": "c", "queues": ["x", "y"], "latency_objective_seconds": 7},
                {"name": "d", "latency_objective_seconds": "7"},
            ]
        },
        # Refused by others.
        "web3": {"celery_queues": "a"},
        "web4": {},
    }
    assert fleet_queues.objectives(hosts, list(hosts)) == {"a": 5, "x": 7, "y": 7}


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=3), st.floats(0.01, 1))
def test_a_quantile_is_where_so_many_are_not_above_it(wait: list[int], share: float) -> None:
    one: Any = {**COUNTED, "wait": wait}
    found = fleet_queues.quantile(one, share)
    if found is None:
        assert not any(wait)
    elif found < 10:
        # To a hundredth of a second, of which there are 100 in the narrowest bucket.
        assert fleet_queues.above(one, found) <= 1 - share + 0.011
    else:
        assert fleet_queues.above(one, 10) >= 1 - share - 0.011


@pytest.mark.parametrize(
    "changed",
    [
        {"counted": {ESCAPE: COUNTED}},
        {"counted": {"mail": ESCAPE}},
        {"counted": {"mail": {**COUNTED, "wait": [ESCAPE]}}},
        {"counted": {"mail": {**COUNTED, "wait": [1]}}},
        {"counted": {"mail": {**COUNTED, "bounds_ms": [5, 5]}}},
        {"counted": {"mail": {**COUNTED, "per_hour": {"succeeded": -1}}}},
        {"counted": [ESCAPE]},
        {"oldest": {"mail": ESCAPE}},
        {"oldest": ESCAPE},
    ],
)
def test_redis_writes_nothing_to_the_terminal(fleet: ModuleType, changed: Any) -> None:
    text = fleet.fleet_text(HOSTS, {**WAITS, **changed}, DB, objectives={"mail": 1})
    assert all(one.isprintable() for line in text.split("\n") for one in line)
    assert sum(line.startswith("web1") for line in text.split("\n")) == 2
