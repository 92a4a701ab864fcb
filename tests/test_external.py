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
