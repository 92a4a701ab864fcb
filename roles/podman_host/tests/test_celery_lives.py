"""celery_lives: which workers leave no sign of life in Redis."""

import json

import celery_lives
import pytest
from ansible.module_utils.celery_signs import FRESH_SECONDS, silent
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_800_000_000
MAIL = "mail-1@web1"


def life(age=0, queues=("mail",), beat=7):
    return json.dumps([beat, [1, "a1", "boot", NOW - age], list(queues)])


@pytest.mark.parametrize(
    ("left", "found"),
    [
        (life(), None),
        (life(FRESH_SECONDS), None),
        (life(queues=["celery-metal.canary:x", "mail", "more"]), None),
        (life(FRESH_SECONDS + 1), {"seconds": FRESH_SECONDS + 1, "missing": []}),
        (life(-600), {"seconds": None, "missing": []}),
        (life(queues=["more"]), {"seconds": None, "missing": ["mail"]}),
        ("", {"seconds": None, "missing": []}),
        ('[1, [2, "a", "b", null], 3]', {"seconds": None, "missing": []}),
        ("[" * 100_000, {"seconds": None, "missing": []}),
    ],
)
def test_a_sign_of_life(left, found):
    expected = {} if found is None else {MAIL: found}
    assert silent({MAIL: ["mail"]}, {MAIL: left}, {}, NOW) == expected


@given(st.text() | st.recursive(st.integers() | st.text(), st.lists).map(json.dumps))
def test_whatever_is_left_there_ends_no_run(left):
    silent({MAIL: ["mail"]}, {MAIL: left}, {}, NOW)


def test_a_runtime_of_before_has_to_beat_between_two_looks():
    before, after = '[7, 1, ["mail"]]', '[8, 1, ["mail"]]'
    assert silent({MAIL: ["mail"]}, {MAIL: before}, {MAIL: before}, NOW)
    assert not silent({MAIL: ["mail"]}, {MAIL: after}, {MAIL: before}, NOW)


class Redis:
    """Looks at it, one after the other; the last one stays."""

    def __init__(self, *looks):
        self.looks, self.trips, self.keys = list(looks), 0, set()

    def ask(self, *commands):
        self.trips += 1
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        assert commands[0] == ("TIME",)
        self.keys |= {words[1] for words in commands[1:]}
        hashes = [found.get(words[1], {}) for words in commands[1:]]
        return [[str(NOW), "0"], *([*sum(one.items(), ())] for one in hashes)]


def test_one_trip_where_all_are_fresh():
    redis = Redis({"celery-metal.nodes": {MAIL: life()}})
    assert celery_lives.watch(redis, {MAIL: ["mail"]}, [], 30) == {}
    assert redis.trips == 1


def test_one_that_is_late_is_waited_for(monkeypatch):
    monkeypatch.setattr(celery_lives, "PAUSE_SECONDS", 0)
    redis = Redis(
        {"celery-metal.nodes": {MAIL: life(20)}}, {"shop:celery-metal.nodes": {MAIL: life()}}
    )
    assert celery_lives.watch(redis, {MAIL: ["mail"]}, ["shop:"], 60) == {}
    assert redis.keys == {"celery-metal.nodes", "shop:celery-metal.nodes"}


def test_one_that_stays_silent_is_named():
    redis = Redis({"celery-metal.nodes": {MAIL: life(60)}})
    found = celery_lives.watch(redis, {MAIL: ["mail"]}, [], 0)
    assert found == {MAIL: {"seconds": 60, "missing": []}}
