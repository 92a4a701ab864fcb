"""Whether all works at the end of site.yml, and what is reported where not."""

from __future__ import annotations

from typing import Any

import pytest
import up

BUSY = "schedule: holds the lock, 3 entries, next a at 2027-01-01 00:00:00 UTC"
IDLE = "schedule: stands by, another Beat holds the lock"


def host(beat: str | None = None, kept_out: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """A host with two workers of one queue, and Beat where it has words."""
    queues = [{"name": "a/b", "unit": "a_2fb", "instances": 2, "queues": ["a/b", "c"]}]
    return {
        "capacity_plan": {"queues": queues, "beat": None if beat is None else {"memory_mb": 1}},
        "__celery_worker_written": {
            "kept_out": list(kept_out),
            "beat": beat or "",
        },
        **more,
    }


FINE: dict[str, Any] = {"error": "", "silent": {}}


def text(lives: dict[str, Any] = FINE, **hosts: dict[str, Any]) -> str:
    return up.problems(hosts, list(hosts), ["web1"], lives, "db")


def test_workers_are_known_by_the_names_that_they_give_themselves() -> None:
    hosts = {"web1": host(), "db": {}, "web2": host(kept_out=("celery-a_2fb@1.service",))}
    assert up.expected(hosts, list(hosts)) == {
        "a=2F=b-1@web1": ["a/b", "c"],
        "a=2F=b-2@web1": ["a/b", "c"],
    }


def test_nothing_is_reported_where_all_works() -> None:
    assert text(web1=host(), db={}) == ""


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"seconds": 43, "missing": []}, "has left no sign of life in Redis for 43 s"),
        ({"seconds": None, "missing": []}, "has left no sign of life in Redis"),
        ({"seconds": None, "missing": ["c\x1b"]}, "does not consume c?"),
        ({"seconds": "x", "missing": 7}, "has left no sign of life in Redis"),
    ],
)
def test_a_worker_that_is_silent_is_named_with_its_host_and_the_remedy(
    said: dict[str, Any], what: str
) -> None:
    lines = text({"error": "", "silent": {"a=2F=b-2@web1": said}}, web1=host()).splitlines()
    assert lines[0] == f"web1: celery-a_2fb@2.service {what}"
    assert lines[1].startswith("  Fix: see 'journalctl -u celery-a_2fb@2.service'")
    assert len(lines) == 2


def test_where_no_worker_was_ever_seen_the_prefix_may_be_the_reason() -> None:
    said = {"seconds": None, "missing": []}
    silent = {f"a=2F=b-{number}@web1": said for number in (1, 2)}
    found = text({"error": "", "silent": silent}, web1=host())
    assert found.startswith("web1: no worker has left a sign of life in the Redis of db\n")
    assert found.count("Fix:") == 1
    assert "redis_key_prefixes" in found


@pytest.mark.parametrize(
    "lives",
    [
        {"error": "timed out", "silent": {}},
        {"unreachable": True, "msg": "timed out"},
        {"error": "timed out", "silent": "?"},
    ],
)
def test_a_redis_without_an_answer_is_one_reason_for_all(lives: dict[str, Any]) -> None:
    found = text(lives, web1=host())
    assert found.startswith("db: Redis does not say which workers live: timed out\n")
    assert found.count("Fix:") == 1


def test_a_beat_without_the_lock_is_lost_until_it_has_it() -> None:
    lost = {"web1": host(IDLE)}
    assert up.beat_is_lost(lost, ["web1"], ["web1"])
    assert "web1: no Beat holds the lock" in text(web1=host(IDLE))
    assert text(web1=host(IDLE, site_beat={"beat": BUSY.removeprefix("schedule: ")})) == ""
    assert "stands by" in text(web1=host(IDLE, site_beat={"beat": IDLE}))


@pytest.mark.parametrize(
    ("beats", "names"),
    [
        ({"web1": BUSY}, ["web1"]),
        ({"web1": IDLE, "web2": BUSY}, ["web1", "web2"]),
        # It was started by this run, and has shown that it can send.
        ({"web1": ""}, ["web1"]),
        # The other one may hold it.
        ({"web1": IDLE, "web2": IDLE}, ["web1"]),
        ({"web1": None}, ["web1"]),
    ],
)
def test_a_beat_is_not_lost(beats: dict[str, str | None], names: list[str]) -> None:
    hosts = {name: host(beat) for name, beat in beats.items()}
    assert not up.beat_is_lost(hosts, names, list(beats))


def test_what_is_no_longer_declared_stays_until_all_workers_work() -> None:
    silent = {"error": "", "silent": {"a=2F=b-2@web1": {"seconds": 43, "missing": []}}}
    hosts = {
        "web1": host(),
        "web2": {"__celery_worker_written": {"kept": ["/q/celery-x@.container"]}},
    }
    assert not up.workers_work(hosts, list(hosts), silent, "db")
    assert up.workers_work(hosts, list(hosts), FINE, "db")
    assert not up.workers_work(hosts, list(hosts), {"msg": "no answer"}, "db")
    assert "web2: what is no longer declared was not removed" in text(silent, **hosts)
    assert text(**hosts) == ""
