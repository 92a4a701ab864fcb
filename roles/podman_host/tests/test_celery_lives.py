"""celery_lives: which workers leave no sign of life in Redis."""

import json

import celery_lives
import pytest
from ansible.module_utils.celery_redis import RedisError
from ansible.module_utils.celery_signs import FRESH_SECONDS, Clock, silent
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
    assert silent({MAIL: ["mail"]}, {MAIL: left}, {}, Clock(NOW)) == expected


@given(st.text() | st.recursive(st.integers() | st.text(), st.lists).map(json.dumps))
def test_whatever_is_left_there_ends_no_run(left):
    silent({MAIL: ["mail"]}, {MAIL: left}, {}, Clock(NOW))


def test_a_runtime_of_before_has_to_beat_between_two_looks():
    before, after = '[7, 1, ["mail"]]', '[8, 1, ["mail"]]'
    assert silent({MAIL: ["mail"]}, {MAIL: before}, {MAIL: before}, Clock(NOW))
    assert not silent({MAIL: ["mail"]}, {MAIL: after}, {MAIL: before}, Clock(NOW))


class Redis:
    """Looks at it, one after the other; the last one stays."""

    def __init__(self, *looks):
        self.looks, self.trips, self.keys = list(looks), 0, set()
        self.time = [str(NOW), "0"]
        self.info = "# Server\r\nredis_version:8.0.2\r\nuptime_in_seconds:600\r\n"

    def try_all(self, *commands):
        self.trips += 1
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        assert commands[:2] == (("TIME",), ("INFO", "server"))
        self.keys |= {words[1] for words in commands[2:]}
        hashes = [found.get(words[1], {}) for words in commands[2:]]
        answers = [
            one if isinstance(one, RedisError) else [*sum(one.items(), ())] for one in hashes
        ]
        return [self.time, self.info, *answers]


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


def test_a_sign_of_life_from_before_the_start_of_redis_does_not_count(monkeypatch):
    monkeypatch.setattr(celery_lives, "PAUSE_SECONDS", 0)
    key = "celery-metal.nodes"
    for looks, found in (
        ([{key: {MAIL: life(3)}}], {MAIL: {"seconds": 3, "missing": []}}),
        ([{key: {MAIL: life(3)}}, {key: {MAIL: life(1)}}], {}),
    ):
        redis = Redis(*looks)
        redis.info = "uptime_in_seconds:2\r\n"
        assert celery_lives.watch(redis, {MAIL: ["mail"]}, [], 0.2 if found else 60) == found
    # One that does not say when it was started.
    redis = Redis({key: {MAIL: life(3)}})
    redis.info = RedisError("ERR unknown command")
    assert celery_lives.watch(redis, {MAIL: ["mail"]}, [], 0) == {}


def test_one_that_stays_silent_is_named():
    redis = Redis({"celery-metal.nodes": {MAIL: life(60)}})
    found = celery_lives.watch(redis, {MAIL: ["mail"]}, [], 0)
    assert found == {MAIL: {"seconds": 60, "missing": []}}


def test_who_was_seen_once_needs_not_be_seen_again(monkeypatch):
    monkeypatch.setattr(celery_lives, "PAUSE_SECONDS", 0)
    one, other = {"a@x": life(), "b@x": life(20)}, {"a@x": life(20), "b@x": life()}
    redis = Redis({"celery-metal.nodes": one}, {"celery-metal.nodes": other})
    assert celery_lives.watch(redis, {"a@x": ["mail"], "b@x": ["mail"]}, [], 60) == {}


def test_an_old_sign_under_one_prefix_hides_no_new_one_under_another():
    redis = Redis(
        {"celery-metal.nodes": {MAIL: life()}, "shop:celery-metal.nodes": {MAIL: life(900)}}
    )
    assert celery_lives.watch(redis, {MAIL: ["mail"]}, ["shop:"], 0) == {}


NOT_ALLOWED = RedisError("NOPERM No permissions to access one of the keys")


def test_a_user_of_one_app_is_asked_for_its_own_alone():
    redis = Redis({"celery-metal.nodes": NOT_ALLOWED, "shop:celery-metal.nodes": {MAIL: life()}})
    assert celery_lives.watch(redis, {MAIL: ["mail"]}, ["shop:"], 0) == {}
    with pytest.raises(RedisError, match="NOPERM"):
        celery_lives.watch(redis, {MAIL: ["mail"]}, [], 0)


@pytest.mark.parametrize("error", ["WRONGTYPE no hash", "LOADING Redis is loading"])
def test_another_error_is_one(error):
    keys = {"celery-metal.nodes": {MAIL: life()}, "shop:celery-metal.nodes": RedisError(error)}
    with pytest.raises(RedisError, match=error):
        celery_lives.watch(Redis(keys), {MAIL: ["mail"]}, ["shop:"], 0)


def test_without_the_time_a_sign_of_life_must_change(monkeypatch):
    monkeypatch.setattr(celery_lives, "PAUSE_SECONDS", 0)
    key = "celery-metal.nodes"
    for looks, found in (
        ([{key: {MAIL: life(beat=7)}}], {MAIL: {"seconds": None, "missing": []}}),
        ([{key: {MAIL: life(beat=7)}}, {key: {MAIL: life(beat=8)}}], {}),
    ):
        redis = Redis(*looks)
        redis.time = RedisError("NOPERM time")
        assert celery_lives.watch(redis, {MAIL: ["mail"]}, [], 0.2 if found else 60) == found


def test_an_earlier_runtime_has_names_of_its_own():
    node, left = "a=2F=b-1@fd00=3A==3A=1", "a_b-1@fd00::1"
    before, after = {left: '[7, 1, ["a/b"]]'}, {left: '[8, 1, ["a/b"]]'}
    assert not silent({node: ["a/b"]}, after, before, Clock(NOW))
    # Another queue's, by a runtime of today.
    assert silent({node: ["a/b"]}, {left: life(queues=["a/b"])}, {}, Clock(NOW))


class Pausing:
    def __init__(self, said):
        self.said, self.words = said, ()

    def try_all(self, words):
        self.words += words
        return [self.said]


def test_paused_queues_are_read_those_of_the_run_first():
    said = ["mail", json.dumps({"by": "ops", "at": NOW, "reason": "x"})]
    client = Pausing(said)
    (pause,) = celery_lives.paused(client, ["mail"], [])
    assert (pause["name"], pause["by"], pause["at"]) == ("mail", "ops", NOW)
    assert client.words[-1] == "mail"
    # Over the network the user is the same as for signs of life.
    params = {"external": {"host": "r1"}, "expected": {MAIL: ["mail"]}, "prefixes": []}
    assert celery_lives.paused_queues(client, params) == [pause]


def test_pauses_that_cannot_be_read_fail_no_run():
    assert celery_lives.paused(Pausing(RedisError("ERR no EVAL")), [], []) == "ERR no EVAL"
    # A user of an external Redis may lack the right.
    assert celery_lives.paused(Pausing(RedisError("NOPERM no")), [], []) == []
