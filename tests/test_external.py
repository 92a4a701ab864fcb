"""A Redis of the user's own: which hosts have it, and what they say of it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from jinja2 import Undefined

OWN = {"redis_mode": "external", "redis_external_url": "redis://r"}


@pytest.mark.parametrize(
    ("hosts", "groups", "text"),
    [
        ({"w1": {}, "r1": {}}, {"celery": ["w1"], "redis": ["r1"]}, ""),
        ({"w1": OWN}, {"celery": ["w1"]}, ""),
        ({"w1": OWN}, {"celery": ["w1"], "redis": []}, ""),
        ({}, {}, ""),
        (
            {"w1": OWN, "r1": OWN},
            {"celery": ["w1"], "redis": ["r1"]},
            "the group redis has r1: take the hosts out of the group redis, or write redis_mode: d",
        ),
        (
            {"w1": OWN, "w2": {}},
            {"celery": ["w1", "w2"]},
            "redis_mode is 'external' on w1, and 'deploy' on w2, but all hosts use one broker",
        ),
        (
            {"w1": OWN, "w2": {**OWN, "redis_external_url": "redis://w:hush@s"}},
            {"celery": ["w1", "w2"]},
            "redis_external_url is 'redis://r' on w1, and 'redis://...@s' on w2",
        ),
        # The check of all variables tells.
        ({"w1": {"redis_mode": Undefined()}}, {"celery": ["w1"], "redis": []}, ""),
    ],
)
def test_the_groups_and_hosts_go_together(
    external: ModuleType, hosts: dict[str, Any], groups: dict[str, list[str]], text: str
) -> None:
    said = external.mode_problems(hosts, groups)
    assert text in said
    assert bool(text) == bool(said)
    assert said.endswith("Nothing was changed.") or not said


def test_what_all_hosts_found_is_said_once(external: ModuleType) -> None:
    lost = {"kind": "unreachable", "seen": "no way", "remedy": "mend it"}
    evicts = {"kind": "eviction", "seen": "it evicts", "remedy": "set it"}
    hosts = {
        "w1": {"check_survey": {"findings": [evicts], "notes": ["no maxmemory"]}},
        "w2": {"check_survey": {"findings": [evicts], "notes": ["no maxmemory"]}},
        "w3": {"check_survey": {"findings": [lost], "notes": []}},
        "w4": {"podman_host_state": {"secrets": {"celery-redis-acl": {}}}},
    }
    said = external.survey_text(hosts, hosts, [], "redis://r")
    assert said["problems"].splitlines()[:3] == [
        "redis_external_url is redis://r:",
        "- hosts w1, w2: it evicts: set it; or accept it: redis_external_accept: [eviction].",
        "- host w3: no way: mend it.",
    ]
    assert "- host w4: a Redis that the kit has deployed is still there" in said["problems"]
    assert said["problems"].endswith("Nothing was changed.")
    # What cannot work is not for anybody to accept.
    said = external.survey_text(hosts, ["w1", "w2", "w3"], ["eviction", "unreachable"], "redis://r")
    assert "it evicts" not in said["problems"]
    assert "- host w3: no way: mend it." in said["problems"]
    assert said["notes"].splitlines()[1:] == [
        "- accepted (eviction): it evicts.",
        "- no maxmemory.",
    ]


def test_sentinels_are_what_an_address_says(external: ModuleType) -> None:
    said = external.endpoint(
        "sentinels://worker@a,b:1,[fd00::5]:2/3?master_name=m&sentinel_auth=no"
    )
    assert said == {
        "tls": True,
        "user": "worker",
        "database": 3,
        "host": "",
        "port": 0,
        "sentinels": [["a", 26379], ["b", 1], ["fd00::5", 2]],
        "master_name": "m",
        "sentinel_auth": False,
    }
    assert external.endpoint("sentinel://a?master_name=m")["sentinel_auth"]


LOCAL = "redis+socket://worker@/run/redis/redis.sock?virtual_host=0"
ADDRESSED = {"redis_address": "10.0.0.5"}
FACTS = {"ansible_facts": {"all_ipv4_addresses": ["10.0.0.5", "10.1.0.5"]}}
ELECTED = "sentinels://worker@10.0.0.5:26379,10.0.0.6:26379/0?master_name=celery&replicas=1"
ASKED = "redis://worker@10.0.0.5:6379/0"


@pytest.mark.parametrize(
    ("earlier", "redis", "own", "database", "stays"),
    [
        ("", {"r1": ADDRESSED}, {}, 0, True),
        ("rediss://worker@10.0.0.5:6379/0", {"r1": ADDRESSED}, {}, 0, True),
        ("redis://worker@10.0.0.5:6380/0", {"r1": ADDRESSED}, {}, 0, True),
        ("redis://worker@10.0.0.5:6379/0", {"r1": FACTS}, {}, 0, True),
        ("redis://worker@r1:6379/0", {"r1": {}}, {}, 0, True),
        ("redis://worker@10.0.0.5:6379/0", {"r1": ADDRESSED}, {}, 1, False),
        ("redis://worker@10.0.0.6:6379/0", {"r1": ADDRESSED}, {}, 0, False),
        (ELECTED, {"r1": ADDRESSED}, {}, 0, True),
        (ASKED, {"r1": ADDRESSED, "r2": {}, "r3": {}}, {}, 0, True),
        (ELECTED, {"r1": {"redis_address": "10.0.0.9"}}, {}, 0, False),
        (LOCAL, {"w1": {}}, {}, 0, True),
        (LOCAL, {"w1": {}}, {}, 2, False),
        (LOCAL, {"r1": {}}, {}, 0, False),
        (LOCAL, {"r1": {"redis_address": ""}}, {}, 0, False),
        (LOCAL, {}, OWN, 0, False),
        (ASKED, {}, {**OWN, "redis_external_url": ASKED}, 7, True),
        (ASKED, {}, {**OWN, "redis_external_url": ASKED.replace("worker@", "")}, 0, True),
        (ASKED, {}, {**OWN, "redis_external_url": ASKED.replace("/0", "/1")}, 0, False),
        # Other servers may be there.
        (ASKED, {}, {**OWN, "redis_external_url": ASKED.replace("6379", "6380")}, 0, False),
        (ELECTED, {}, {**OWN, "redis_external_url": ELECTED.replace("0.6:", "0.7:")}, 0, True),
    ],
)
def test_whether_workers_would_get_another_broker(
    external: ModuleType,
    earlier: str,
    redis: dict[str, Any],
    own: dict[str, str],
    database: int,
    stays: bool,
) -> None:
    hosts = {"w1": {**own, "podman_host_state": {"broker": earlier}}}
    hosts = {**redis, "w1": {**redis.get("w1", {}), **hosts["w1"]}}
    groups = {"celery": ["w1"], "redis": list(redis)}
    assert external.left(hosts, "w1", groups, database) == ("" if stays else earlier)


EMPTY = {"error": "", "waiting": {"mail": 0}, "held": [], "dead": {}, "run_id": "a1"}
FULL = {
    **EMPTY,
    "waiting": {"mail": 7, "reports": 0},
    "held": [{"node": f"mail-1@w{n}", "queue": "mail", "tasks": 1} for n in (1, 2)],
    "dead": {"reports": 1},
}
FOUND = (
    f"the broker until now, {ASKED}, has tasks that no worker would do any more: 7 in mail, 2 "
    "held by workers, 1 of reports put aside."
)


@pytest.mark.parametrize(
    ("said", "survey", "accepted", "problems", "notes"),
    [
        (EMPTY, {}, False, "", ""),
        (FULL, {}, False, f"hosts w1, w2: {FOUND} Have what sends", ""),
        (FULL, {}, True, "", f"hosts w1, w2: {FOUND} They are left there."),
        (FULL, {"run_id": "b2", "database": 0}, False, f"hosts w1, w2: {FOUND}", ""),
        (FULL, {"run_id": "a1", "database": 1}, False, f"hosts w1, w2: {FOUND}", ""),
        # The same by another address.
        (FULL, {"run_id": "a1", "database": 0}, False, "", ""),
        (
            {**FULL, "run_id": ""},
            {"run_id": "", "database": 0},
            False,
            f"hosts w1, w2: {FOUND}",
            "",
        ),
        (
            {**EMPTY, "error": "timed out"},
            {},
            False,
            "",
            f"hosts w1, w2: the broker until now, {ASKED}, gives no answer, and keeps what it has",
        ),
    ],
)
def test_no_task_stays_behind_unseen(
    external: ModuleType,
    said: dict[str, Any],
    survey: dict[str, Any],
    accepted: bool,
    problems: str,
    notes: str,
) -> None:
    own = {**OWN, "check_left": said, "check_survey": survey}
    hosts = {host: {**own, "podman_host_state": {"broker": ASKED}} for host in ("w1", "w2")}
    groups = {"celery": ["w1", "w2"]}
    found = external.left_text(hosts, "w1", hosts, groups, 0, accepted)
    for name, text in (("problems", problems), ("notes", notes)):
        assert text in found[name]
        assert bool(text) == bool(found[name])
    # The first has said it for both.
    again = external.left_text(hosts, "w2", hosts, groups, 0, accepted)
    assert again == {"problems": "", "notes": ""}


def test_each_host_tells_of_a_redis_of_its_own(external: ModuleType) -> None:
    state = {"podman_host_state": {"broker": LOCAL}}
    hosts = {host: {**OWN, **state, "check_left": FULL} for host in ("w1", "w2")}
    groups = {"celery": ["w1", "w2"]}
    for host in hosts:
        said = external.left_text(hosts, host, hosts, groups, 0, False)["problems"]
        assert said.startswith(f"host {host}: the broker until now, {LOCAL}, has tasks that no")
    assert external.how_to_ask(LOCAL) == {"database": 0}
    assert external.how_to_ask(ASKED) == {"external": external.endpoint(ASKED)}
