"""celery_dead: dead letters in a real Redis, as the worker's runtime leaves them."""

import base64
import importlib
import json
import pathlib
import threading
import time

import celery_dead
import pytest
from ansible.module_utils import celery_dead_letters
from ansible.module_utils.celery_dead_letters import Filter, Place, places_of, read, take
from ansible.module_utils.celery_redis import Client, RedisError

DEAD = "celery-metal.dead:mail"
ESCAPE = "\x1b[2J"


def letter(number, task="shop.bill", reason="it was there at 11 ends", priority=0, **headers):
    body = base64.b64encode(json.dumps([[number], {}, {}]).encode()).decode()
    note = {"at": 1764000000, "worker": "mail-1@a", "crashes": 11, "priority": priority}
    own = {"celery_metal_reason": reason, "celery_metal_dead": note} if reason else {}
    return json.dumps(
        {
            "body": body,
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": task, "id": f"id-{number}", "redelivered": True, **own, **headers},
            "properties": {"body_encoding": "base64", "priority": priority, "delivery_tag": "x"},
        }
    )


@pytest.fixture
def bury(client):
    """Put letters into a list, the first one first."""

    def push(*items, key=DEAD):
        client.ask(*(("LPUSH", key, item) for item in items))

    client.errors = "surrogateescape"
    return push


def run(client, action="list", *, admin=True, check=False, queues=(), prefixes=(), **chosen):
    params = {"id": "", "queue": "", "task": "", "reason": "", **chosen}
    params |= {"action": action, "queues": list(queues), "prefixes": list(prefixes)}
    return celery_dead.run(client, params, admin=admin, check=check)


def all_of(client, key):
    return client.ask(("LRANGE", key, "0", "-1"))[0]


def test_the_list_tells_what_a_letter_tells(client, bury):
    bury(letter(1, argsrepr="(1,)", kwargsrepr="{'a': 2}"), letter(2, reason=""), "no task")
    found, changed = run(client)
    assert not changed
    assert (found["total"], found["lists"], found["is_complete"]) == (3, {"mail": 3}, True)
    first, second, third = found["rows"]
    assert first == {
        "task": "shop.bill",
        "id": "id-1",
        "queue": "mail",
        "at": 1764000000,
        "crashes": 11,
        "worker": "mail-1@a",
        "reason": "it was there at 11 ends",
        "arguments": "(1,) {'a': 2}",
        "size": len(letter(1, argsrepr="(1,)", kwargsrepr="{'a': 2}")),
    }
    # One of a runtime before these notes, and what has no headers.
    assert (second["at"], second["crashes"], second["worker"]) == (None, None, "")
    assert (second["reason"], second["arguments"]) == ("", "[2]")
    assert (third["task"], third["reason"]) == ("", "not valid JSON")


def test_the_first_version_of_the_protocol_is_a_task(client, bury):
    body = json.dumps({"task": "shop.bill", "id": "old", "args": [5], "kwargs": {}})
    bury(json.dumps({"body": body, "headers": {}, "properties": {}}))
    ((row,), _) = run(client)[0]["rows"], None
    assert (row["task"], row["id"], row["arguments"]) == ("shop.bill", "old", "[5]")
    assert run(client, "send", id="old")[0]["done"] == 1
    assert json.loads(all_of(client, "mail")[0])["body"] == body


def test_letters_of_queues_that_are_gone_and_under_every_prefix_are_found(client, bury):
    bury(letter(1), key="celery-metal.dead:gone")
    bury(letter(2), key="shop:celery-metal.dead:mail")
    bury(letter(3), key="undeclared:celery-metal.dead:x")
    bury("claimed", key="celery-metal.held:a@b:celery-metal.dead:x")
    client.ask(("SET", "celery-metal.dead:text", "x"))
    assert run(client)[0]["lists"] == {"gone": 1, "shop:mail": 1, "undeclared:x": 1}
    assert run(client, queue="mail")[0]["lists"] == {"shop:mail": 1}
    assert run(client, queue="shop:mail")[0]["lists"] == {"shop:mail": 1}
    # Without the right to look for keys: declared queues, those of workers, and the one asked for.
    assert run(client, admin=False)[0]["lists"] == {}
    seen = run(client, admin=False, queues=["mail"], prefixes=["shop:"])[0]
    assert seen["lists"] == {"shop:mail": 1}
    assert run(client, admin=False, queue="gone")[0]["lists"] == {"gone": 1}
    client.ask(("HSET", "celery-metal.nodes", "gone-1@a", json.dumps([7, 1, ["gone"]])))
    assert run(client, admin=False)[0]["lists"] == {"gone": 1}
    assert run(client, "send", queue="shop:mail")[0]["done"] == 1
    assert client.ask(("LLEN", "shop:mail"), ("LLEN", "mail")) == [1, 0]


def test_a_long_list_is_counted_and_its_oldest_are_shown(client, bury):
    bury(*(letter(number) for number in range(300)))
    found = run(client)[0]
    assert (found["total"], found["lists"]) == (300, {"mail": 300})
    assert [one["id"] for one in found["rows"]] == [f"id-{number}" for number in range(24)]
    found = run(client, id="id-299")[0]
    assert (found["total"], found["rows"][0]["id"]) == (1, "id-299")


@pytest.mark.parametrize(
    ("chosen", "numbers"),
    [
        ({"id": "id-1"}, [1]),
        ({"task": "shop.bill"}, [0, 2]),
        ({"reason": "11 ends"}, [0, 1]),
        ({"reason": "11 ends", "task": "shop.bill"}, [0]),
        ({"queue": "mail"}, [0, 1, 2]),
        ({"task": "shop"}, []),
        ({"queue": "mai"}, []),
    ],
)
def test_filters_are_exact_but_for_the_reason(client, bury, chosen, numbers):
    all_three = [letter(0), letter(1, task="shop.mail"), letter(2, reason="not defined")]
    bury(*all_three)
    found, changed = run(client, "send", **chosen)
    assert (found["done"], changed) == (len(numbers), bool(numbers))
    back = [json.loads(one)["headers"]["id"] for one in reversed(all_of(client, "mail"))]
    assert back == [f"id-{number}" for number in numbers]
    kept = [one for number, one in enumerate(all_three) if number not in numbers]
    assert list(reversed(all_of(client, DEAD))) == kept


def test_what_is_sent_back_begins_anew_behind_those_that_wait(client, bury):
    bury(letter(1, celery_metal_crashes=7, celery_metal_tries=2), letter(2))
    client.ask(("LPUSH", "mail", "waits"))
    untold = all_of(client, DEAD)[1]
    client.ask(("LPUSH", "celery-metal.untold:mail", untold, "another"))
    found, changed = run(client, "send", id="id-1")
    assert (found["done"], found["lists"], changed) == (1, {"mail": 1}, True)
    new, waits = all_of(client, "mail")
    assert waits == "waits"
    assert new == json.dumps(json.loads(letter(1, reason="")), separators=(",", ":"))
    assert len(all_of(client, DEAD)) == 1
    # Nobody is to learn that it has failed.
    assert all_of(client, "celery-metal.untold:mail") == ["another"]


@pytest.mark.parametrize(
    ("priority", "noted", "key"),
    [
        (0, None, "mail"),
        (5, None, "mail\x06\x163"),
        (9, None, "mail\x06\x169"),
        (77, None, "mail\x06\x169"),
        ("4", None, "mail\x06\x163"),
        (None, None, "mail"),
        (5, 5, "mail\x06\x165"),  # of an app with steps of its own
        (5, 0, "mail"),
        (5, "x", "mail\x06\x163"),
    ],
)
def test_it_goes_to_the_list_of_its_priority(client, bury, priority, noted, key):
    message = json.loads(letter(1, priority=priority))
    message["headers"]["celery_metal_dead"]["priority"] = noted
    bury(json.dumps(message))
    assert run(client, "send", queue="mail")[0]["done"] == 1
    assert client.ask(("LLEN", key)) == [1]


NO_TASKS = [
    "no JSON",
    "[]",
    '{"properties": {}, "headers": [], "body": ""}',
    '{"properties": {}, "headers": {"task": "a", "id": "1"}, "body": 5}',
    '{"properties": {}, "headers": {"task": "a\\u001b", "id": "1"}, "body": ""}',
    '{"properties": {}, "headers": {"task": "a"}, "body": ""}',
    '{"properties": {}, "headers": {}, "body": "%s"}' % ("[" * 100_000),
    "[" * 100_000,
    "[" + "1," * 1_000_001 + "1]",
    b"\xff\x1b".decode(errors="surrogateescape"),
    '{"properties": {}, "headers": {"task": "a", "id": "%s"}, "body": ""}' % ("x" * 2000),
]


def test_what_is_no_task_stays_and_is_named_and_can_be_deleted(client, bury):
    bury(*NO_TASKS, letter(1))
    found, changed = run(client, "send", queue="mail")
    assert (found["done"], found["refused"], changed) == (1, len(NO_TASKS), True)
    assert len(found["rows"]) == len(NO_TASKS)
    assert all(one["reason"] for one in found["rows"])
    assert found["rows"][5]["reason"] == "no valid task ID"
    assert list(reversed(all_of(client, DEAD))) == NO_TASKS
    again, changed = run(client, "send", queue="mail")
    assert (again["done"], again["refused"], changed) == (0, len(NO_TASKS), False)
    found, changed = run(client, "delete", queue="mail")
    assert (found["done"], changed) == (len(NO_TASKS), True)
    assert client.ask(("EXISTS", DEAD)) == [0]


def test_what_is_no_task_is_chosen_by_what_is_wrong_with_it(client, bury):
    bury("no JSON", "[]", letter(1))
    assert run(client, "delete", reason="not valid JSON")[0]["done"] == 1
    assert run(client, "show", reason="no prop")[0]["whole"]["text"] == "[]"
    assert len(all_of(client, DEAD)) == 2


def test_check_changes_nothing_and_says_the_same(client, bury):
    bury(letter(1), "no task", letter(2, task="shop.mail"))
    before = all_of(client, DEAD)
    for action, chosen in (("send", {}), ("delete", {"task": "shop.mail"})):
        said, changed = run(client, action, check=True, **chosen)
        assert changed
        assert all_of(client, DEAD) == before
        assert client.ask(("LLEN", "mail")) == [0]
        done, _ = run(client, action, **chosen)
        assert done == said
        client.ask(("DEL", DEAD, "mail"))
        for item in reversed(before):
            client.ask(("LPUSH", DEAD, item))


def test_one_is_shown_whole_with_its_body(client, bury):
    bury(letter(1), letter(1, task="shop.mail"), letter(2))
    found, _ = run(client, "show", id="id-1")
    assert (found["total"], found["whole"]["body"]) == (2, [[1], {}, {}])
    assert found["whole"]["headers"]["task"] == "shop.bill"
    bury(ESCAPE, key="celery-metal.dead:odd")
    assert run(client, "show", queue="odd")[0]["whole"]["text"] == ESCAPE
    bury(letter(3, argsrepr="x" * (1 << 18)), key="celery-metal.dead:long")
    whole = run(client, "show", queue="long")[0]["whole"]
    assert (whole["id"], len(whole["text"])) == ("id-3", 1 << 16)


def test_what_ansible_gets_is_text(client, bury):
    odd = "\ud800"
    bury(letter(1, reason=odd, argsrepr=odd, **{odd: [odd]}), *NO_TASKS)
    bury("no task", key=b"celery-metal.dead:\xff".decode(errors="surrogateescape"))
    for action in ("list", "show", "export"):
        found = celery_dead.clean(run(client, action)[0])
        assert json.dumps(found, ensure_ascii=False).encode()
    assert found["lists"]["?"] == 1
    assert run(client, "delete", task="shop.bill")[0]["done"] == 1


def test_an_export_has_the_bytes_of_each(client, bury):
    items = [letter(1), ESCAPE, b"\xff\x00".decode(errors="surrogateescape")]
    bury(*items)
    found, _ = run(client, "export")
    lines = [json.loads(one) for one in found["text"].splitlines()]
    assert [one.get("message") for one in lines] == [items[0], ESCAPE, None]
    assert base64.b64decode(lines[2]["message_base64"]) == b"\xff\x00"
    assert found["total"] == 3
    assert found["text"].isascii()
    assert len(all_of(client, DEAD)) == 3


def test_large_letters_are_read_one_by_one_and_too_large_ones_not_at_all(client, bury, monkeypatch):
    big = letter(1, argsrepr="x" * 3_000_000)
    bury(letter(0), *[big] * 3, letter(2))
    assert [len(read(client, Place("", "mail"), offset, 9)) for offset in (0, 1, 4)] == [2, 1, 1]
    monkeypatch.setattr(celery_dead_letters, "LARGEST", 1 << 20)
    found, _ = run(client)
    assert [one["task"] for one in found["rows"]] == ["shop.bill", "", "", "", "shop.bill"]
    assert found["rows"][1]["size"] == len(big)
    assert found["rows"][1]["reason"] == f"its size is {len(big)} bytes; the limit is {1 << 20}"
    assert run(client, "send")[0]["done"] == 2
    with pytest.raises(celery_dead.TooMuchError, match=f"its size is {len(big)} bytes"):
        run(client, "export")
    assert run(client, "delete")[0]["done"] == 3
    monkeypatch.setattr(celery_dead, "MOST_TEXT", 1 << 10)
    bury(*[letter(0)] * 3)
    with pytest.raises(celery_dead.TooMuchError, match="more than the limit"):
        run(client, "export")


def test_a_queue_that_is_no_list_loses_nothing(client, bury):
    bury(letter(1))
    client.ask(("SET", "mail", "text"))
    with pytest.raises(RedisError, match="WRONGTYPE"):
        run(client, "send")
    assert all_of(client, DEAD) == [letter(1)]


def test_a_full_redis_takes_them_back(client, bury):
    bury(*(letter(number) for number in range(50)))
    client.ask(("CONFIG", "SET", "maxmemory", "1"))
    with pytest.raises(RedisError, match="OOM"):
        client.ask(("LPUSH", "other", "x"))
    assert run(client, "send")[0]["done"] == 50
    assert client.ask(("LLEN", "mail"), ("LLEN", DEAD)) == [50, 0]


# The rights of the user worker that are used: roles/redis/files/users.acl.
WORKER = "+select ~* +lpush +rpush +lrem +lrange +llen +eval (~*celery-metal.* +hgetall)"


def test_the_rights_of_a_worker_do_and_a_lost_one_loses_no_letter(client, bury):
    bury(*(letter(number) for number in range(3)))
    client.ask(("ACL", "SETUSER", "worker", "on", "nopass", *WORKER.split(" (")[0].split()))
    client.ask(("ACL", "SETUSER", "worker", "(~*celery-metal.* +hgetall)"))
    client.ask(("AUTH", "worker", ""))
    assert run(client, "send", admin=False, queue="mail", id="id-0")[0]["done"] == 1
    assert run(client, "delete", admin=False, queue="mail", id="id-1")[0]["done"] == 1
    for command in ("lpush", "lrem", "eval"):
        client.ask(("AUTH", "default", ""), ("ACL", "SETUSER", "worker", f"-{command}"))
        client.ask(("AUTH", "worker", ""))
        with pytest.raises(RedisError) as refused:
            run(client, "send", admin=False, queue="mail")
        assert any(one in str(refused.value) for one in celery_dead.REFUSALS), refused.value
        client.ask(("AUTH", "default", ""), ("ACL", "SETUSER", "worker", f"+{command}"))
        assert client.ask(("LLEN", "mail"), ("LLEN", DEAD)) == [1, 1]


def test_the_user_of_one_app_sees_its_own(client, bury):
    bury(letter(1))
    bury(letter(2), key="shop:celery-metal.dead:mail")
    client.ask(("ACL", "SETUSER", "shop", "on", "nopass", "+llen", "+eval", "+lrange", "~shop:*"))
    client.ask(("AUTH", "shop", ""))
    found, _ = run(client, admin=False, queues=["mail"], prefixes=["shop:"])
    assert found["lists"] == {"shop:mail": 1}
    with pytest.raises(RedisError, match="NOPERM"):
        run(client, admin=False, queues=["mail"])


def test_runs_beside_each_other_and_new_letters_do_no_harm(client, bury):
    """Each is sent once; what comes meanwhile stays."""
    bury(*(letter(number) for number in range(400)))
    path, done = client.where, []

    def send():
        other = Client(path, 5)
        other.errors = "surrogateescape"
        done.append(run(other, "send")[0]["done"])
        other.close()

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        client.ask(("LPUSH", DEAD, letter("new", task="shop.new")))
    for thread in threads:
        thread.join()
    run(client, "send")
    ids = [json.loads(one)["headers"]["id"] for one in all_of(client, "mail")]
    old = [one for one in ids if one != "id-new"]
    assert sorted(old) == sorted(f"id-{number}" for number in range(400))
    assert client.ask(("LLEN", DEAD)) == [0]


def test_a_letter_that_comes_back_at_once_is_not_sent_again(client, bury):
    """As of a task that still fails: a run ends."""
    bury(*(letter(number) for number in range(5)))
    ask = client.ask

    def dies_again(*commands):
        answers = ask(*commands)
        if commands[0][0] == "EVAL" and commands[0][1] == celery_dead_letters.TAKE:
            ask(("LPUSH", DEAD, letter("again")))
        return answers

    client.ask = dies_again
    assert run(client, "send")[0]["done"] == 5
    assert ask(("LLEN", DEAD), ("LLEN", "mail")) == [5, 5]


def test_a_run_that_is_cut_is_completed_by_the_next(client, bury):
    bury(*(letter(number) for number in range(10)))
    ask, left = client.ask, [6]

    def cut(*commands):
        left[0] -= 1
        if not left[0]:
            raise ConnectionResetError
        return ask(*commands)

    client.ask = cut
    with pytest.raises(ConnectionResetError):
        run(client, "send")
    client.ask = ask
    there, dead = client.ask(("LLEN", "mail"), ("LLEN", DEAD))
    assert 0 < there < 10
    assert there + dead == 10
    assert run(client, "send")[0]["done"] == dead
    ids = [json.loads(one)["headers"]["id"] for one in reversed(all_of(client, "mail"))]
    assert ids == [f"id-{number}" for number in range(10)]


def test_the_time_for_a_look_is_limited(client, bury, monkeypatch):
    bury(*(letter(number) for number in range(100)))
    monkeypatch.setattr(celery_dead, "LOOK_SECONDS", -1.0)
    assert run(client, id="id-99")[0]["is_complete"] is False


@pytest.mark.parametrize("text", ['{"a": "' + '\\"' * 400_000 + "[" * 300, '"' * 400_001])
def test_text_without_an_end_takes_no_time(text):
    begin = time.monotonic()
    celery_dead_letters.parsed(text + "[" * 300)
    assert time.monotonic() - begin < 20


def test_headers_and_limits_are_those_of_the_runtime(monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[3] / "app/runtime")
    dead, messages, verdict, sent = (
        importlib.import_module(f"celery_metal_runtime.{name}")
        for name in ("dead", "messages", "verdict", "sent")
    )
    own = (dead.REASON, dead.DEAD, dead.CRASHES, verdict.TRIES, sent.SENT)
    assert own == celery_dead_letters.OWN
    for name in ("LARGEST", "MOST_VALUES", "DEEPEST", "LONGEST_NAME"):
        assert getattr(celery_dead_letters, name) == getattr(messages, name)


def test_places_are_not_those_of_another_queue(client, bury):
    bury(letter(1), key="celery-metal.dead:celery-metal.dead:x")
    places, _ = places_of(client, [], [], Filter(), admin=True)
    assert places == {Place("", "celery-metal.dead:x"): 1}
    done = take(client, places, Filter(), back=True, check=False, rows=1)
    assert done.done == 1
    assert client.ask(("LLEN", "celery-metal.dead:x")) == [1]
