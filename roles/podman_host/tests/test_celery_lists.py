"""celery_lists: tasks in lists that no declared queue has, against a real Redis."""

import json

import pytest
from ansible.module_utils import celery_lists
from ansible.module_utils.celery_redis import RedisError

TASK = json.dumps({"body": "W10=", "headers": {"task": "a.b", "id": "1"}, "properties": {}})
LARGE = json.dumps(
    {
        "body": "x" * 1_000_000,
        "headers": {"task": "a.b", "id": "1"},
        "properties": {"delivery_tag": "1"},
    }
)
REPLY = json.dumps({"body": "e30=", "headers": {}, "properties": {}})


def push(client, *pairs):
    client.ask(*(("LPUSH", key, item) for key, item in pairs))


def test_tasks_are_found_wherever_they_are_and_nothing_else_is(client):
    push(
        client,
        *[("known", TASK), ("known\x06\x163", TASK), ("mial", TASK), ("mial", TASK)],
        *[("mial\x06\x169", TASK), ("shop:x", TASK), ("a:b", TASK)],
        *[("celery-metal.dead:gone", TASK), ("shop:celery-metal.dead:x", "no task")],
        *[("celery-metal.held:gone-1@web1:a:b", TASK), ("celery-metal.untold:gone", TASK)],
        *[("celery-metal.canary:x", TASK), ("1.reply.celery.pidbox", REPLY)],
        *[("app.log", "12:00"), ("app.json", "{}"), ("app.deep", "[" * 100_000)],
        *[("app.headers", '{"headers": 7}'), ("app.large", "x" * 100_000), ("large", LARGE)],
    )
    client.ask(("SET", "text", TASK), ("HSET", "hash", "a", TASK))
    assert celery_lists.stray(client, {"known"}, ["", "shop:"]) == (
        {"mial": 3, "shop:x": 1, "a:b": 1, "large": 1},
        {"gone": 1, "shop:x": 1},
        {("gone-1@web1", "a:b"): 1},
        True,
    )


def test_lists_beyond_those_of_one_request_are_counted(client, monkeypatch):
    monkeypatch.setattr(celery_lists, "SOME", 2)
    push(client, *((f"queue {number}", TASK) for number in range(5)), ("not this", REPLY))
    found = celery_lists.stray(client, set()).waiting
    assert found == {f"queue {number}": 1 for number in range(5)}


def test_a_redis_of_very_many_keys_is_looked_at_in_part(client, monkeypatch):
    push(client, *((f"queue {number}", TASK) for number in range(30)))
    monkeypatch.setattr(celery_lists, "AT_ONCE", 1)
    assert celery_lists.lists_of(client) == (
        sorted(f"queue {number}" for number in range(30)),
        True,
    )
    names, is_complete = celery_lists.lists_of(client, seconds=0)
    assert len(names) < 30
    assert not is_complete
    monkeypatch.setattr(celery_lists, "MOST_LISTS", 20)
    names, is_complete = celery_lists.lists_of(client)
    assert len(names) == 20
    assert not is_complete


def test_a_user_who_may_not_look_for_keys_is_an_error(client):
    client.ask(("ACL", "SETUSER", "some", "on", "nopass", "~*", "+llen"), ("AUTH", "some", "x"))
    with pytest.raises(RedisError, match="NOPERM"):
        celery_lists.stray(client, set())
