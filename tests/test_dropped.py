"""A queue with tasks is not removed by accident."""

from __future__ import annotations

from typing import Any

import dropped
import pytest

CELERY = ["web1", "web2"]


def hosts(declared: list[Any], **deployed: Any) -> dict[str, dict[str, Any]]:
    held = {"node": "mail-1@web1", "queue": "mail", "tasks": 2, "beats": True}
    said = {"error": "", "waiting": {"mail": 12, "empty": 0}, "held": [held], "dead": {"empty": 3}}
    return {
        host: {
            "celery_queues": declared,
            "podman_host_state": {"queues": deployed.get(host, [])},
            "check_left": said,
        }
        for host in CELERY
    }


def test_what_is_deployed_and_declared_nowhere_is_dropped() -> None:
    found = hosts([{"name": "kept"}], web1=["empty", "kept", "mail"])
    assert dropped.dropped(found, "web1", CELERY) == ["empty", "mail"]
    assert dropped.dropped(found, "web2", CELERY) == []
    both = hosts([{"name": "one", "queues": ["mail", "empty"]}], web1=["empty", "mail"])
    assert dropped.dropped(both, "web1", CELERY) == []
    # Moved to another host.
    found["web2"]["celery_queues"] = [{"name": "mail"}]
    assert dropped.dropped(found, "web1", CELERY) == ["empty"]


@pytest.mark.parametrize("report", [None, {}, "mail", 7, [7, None, ["mail"]]])
def test_an_invalid_report_drops_nothing(report: Any) -> None:
    assert dropped.dropped(hosts([], web1=report), "web1", CELERY) == []
    assert dropped.dropped({"web1": {}}, "web1", ["web1"]) == []


def test_tasks_are_named_once_with_the_remedy() -> None:
    found = hosts([], web1=["empty", "mail"], web2=["mail"])
    assert dropped.dropped_text(found, "web1", CELERY, CELERY, False) == {
        "problems": "queue mail of web1, web2: this run removes its workers, and it has 12 waiting "
        "and 2 claimed tasks\n"
        "  Fix: stop the producers and let the workers finish (playbooks/status.yml shows what is "
        "left), or declare the queue again.\n"
        "  To leave the tasks in Redis: -e queues_left=true. Nothing was changed.",
        "notes": "",
    }
    nothing = {"problems": "", "notes": ""}
    assert dropped.dropped_text(found, "web2", CELERY, CELERY, False) == nothing
    accepted = dropped.dropped_text(found, "web1", CELERY, CELERY, True)
    assert accepted["problems"] == ""
    assert accepted["notes"].endswith("12 waiting and 2 claimed tasks\n  They stay in Redis.")


def test_without_an_answer_of_redis_every_queue_may_have_tasks() -> None:
    found = hosts([], web1=["empty"])
    silent = {"error": "No such\nfile", "waiting": {}, "held": [], "dead": {}}
    found["web1"]["check_left"] = silent
    assert dropped.dropped_text(found, "web1", CELERY, CELERY, False) == {
        "problems": "queue empty of web1: this run removes its workers, and it has tasks that "
        "could not be counted\n"
        "  Redis does not answer: No such file\n"
        "  Fix: run site.yml with the queue declared, which starts Redis; then without it.\n"
        "  To leave the tasks uncounted in Redis: -e queues_left=true. Nothing was changed.",
        "notes": "",
    }
    accepted = dropped.dropped_text(found, "web1", CELERY, CELERY, True)
    assert accepted["problems"] == ""
    assert accepted["notes"].endswith("not answer: No such file\n  They stay in Redis.")


def test_an_empty_queue_goes_without_a_word() -> None:
    found = hosts([], web1=["empty"])
    nothing = {"problems": "", "notes": ""}
    assert dropped.dropped_text(found, "web1", CELERY, CELERY, False) == nothing


def test_a_name_that_a_host_reports_is_one_line() -> None:
    name = "a\n\x1b[2Jok: all is well" + "x" * 500
    found = hosts([], web1=[name])
    found["web1"]["check_left"]["waiting"] = {name: 1}
    text = dropped.dropped_text(found, "web1", CELERY, CELERY, False)["problems"]
    assert len(text.splitlines()) == 3
    assert len(text.splitlines()[0]) < 200
    assert "\x1b" not in text
