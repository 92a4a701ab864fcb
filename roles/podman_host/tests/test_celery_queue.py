"""celery_queue: tasks that wait, and pauses, in a real Redis."""

import hashlib
import json
from types import SimpleNamespace

import celery_queue
import pytest
from ansible.module_utils import celery_dead_letters, celery_moves, celery_pauses
from ansible.module_utils.celery_redis import RedisError
from test_celery_dead import all_of, letter

HIGH = "emials\x06\x169"


def run(client, action="list", *, admin=True, check=False, queues=(), prefixes=(), **chosen):
    params = {"queue": "", "to": "", "by": "", "reason": "", "seconds": 0}
    params |= {**chosen, "action": action}
    params |= {"queues": list(queues), "prefixes": list(prefixes)}
    return celery_queue.run(client, params, admin=admin, check=check)


@pytest.fixture
def send(client):
    """Send tasks to a list, the first one first."""

    def push(*numbers, key="emials"):
        items = [letter(number, reason="") for number in numbers]
        client.ask(*(("LPUSH", key, item) for item in items))
        return items

    client.errors = "surrogateescape"
    return push


def order(client, key):
    """The numbers of the tasks of a list, in the order in which workers take them."""
    found = [json.loads(one)["headers"]["id"] for one in reversed(all_of(client, key))]
    return [int(one.removeprefix("id-")) for one in found]


def test_queues_are_counted_with_all_their_priorities(client, send):
    send(1, 2)
    send(3, key=HIGH)
    send(4, key="shop:mail")
    client.ask(("LPUSH", "no-tasks", "x"), ("LPUSH", "celery-metal.dead:x", letter(5)))
    found = run(client)
    assert (found["waiting"], found["is_complete"]) == ({"emials": 3, "shop:mail": 1}, True)
    found = run(client, admin=False, queues=["emials", "mail"], prefixes=["shop:"])
    assert (found["waiting"], found["is_complete"]) == ({"emials": 3, "shop:mail": 1}, False)


def test_tasks_are_moved_in_their_order_behind_those_that_wait(client, send):
    send(1, 2, key="emails")
    sent = send(*range(3, 60))
    send(60, key=HIGH)
    assert run(client, "move", queue="emials", to="emails", check=True)["done"] == 58
    found = run(client, "move", queue="emials", to="emails")
    assert (found["done"], found["gone"], found["refused"]) == (58, 0, 0)
    assert order(client, "emails") == list(range(1, 60))
    assert order(client, "emails\x06\x169") == [60]
    assert client.ask(("EXISTS", "emials", HIGH)) == [0]
    # A retry goes where its first try was taken from.
    moved, before = json.loads(all_of(client, "emails")[0]), json.loads(sent[-1])
    info = {"exchange": "", "routing_key": "emails"}
    assert moved["properties"].pop("delivery_info") == info
    assert moved == before


def test_the_prefix_of_an_app_is_no_part_of_a_name_for_celery(client, send):
    send(1, key="shop:emials")
    run(client, "move", queue="shop:emials", to="shop:emails", prefixes=["shop:"])
    (moved,) = map(json.loads, all_of(client, "shop:emails"))
    assert moved["properties"]["delivery_info"]["routing_key"] == "emails"


def test_what_is_no_task_is_moved_as_it_is_and_what_is_too_large_stays(client, send, monkeypatch):
    send(1)
    client.ask(("LPUSH", "emials", "\udcff no task"), ("LPUSH", "emials", "x" * 5000))
    send(2)
    monkeypatch.setattr(celery_dead_letters, "LARGEST", 4000)
    found = run(client, "move", queue="emials", to="emails")
    assert (found["done"], found["refused"]) == (3, 1)
    assert all_of(client, "emials") == ["x" * 5000]
    assert all_of(client, "emails")[1] == "\udcff no task"


def test_tasks_that_come_meanwhile_stay(client, send, monkeypatch):
    send(1, 2)
    real = celery_moves.read

    def read(*arguments):
        found = real(*arguments)
        send(9)
        return found

    monkeypatch.setattr(celery_moves, "read", read)
    assert run(client, "move", queue="emials", to="emails")["done"] == 2
    assert order(client, "emails") == [1, 2]
    assert set(order(client, "emials")) == {9}


def test_a_task_that_a_worker_takes_meanwhile_is_not_moved(client, send, monkeypatch):
    send(*range(1, 40))
    real, seen = celery_moves.read, []

    def read(*arguments):
        found = real(*arguments)
        if not seen:
            seen.append(client.ask(("RPOP", "emials")))
        return found

    monkeypatch.setattr(celery_moves, "read", read)
    found = run(client, "move", queue="emials", to="emails")
    assert found["gone"] == 1
    assert order(client, "emails") + order(client, "emials") == list(range(2, 40))


def test_nothing_is_lost_where_the_target_is_no_list(client, send):
    send(1, 2)
    client.ask(("SET", "emails", "text"))
    with pytest.raises(RedisError, match="WRONGTYPE"):
        run(client, "move", queue="emials", to="emails")
    assert order(client, "emials") == [1, 2]


def test_a_queue_is_deleted_with_its_priorities_and_no_other(client, send):
    send(1, 2)
    send(3, key=HIGH)
    send(4, key="emails")
    assert run(client, "purge", queue="emials", check=True)["done"] == 3
    assert run(client)["waiting"] == {"emails": 1, "emials": 3}
    assert run(client, "purge", queue="emials")["done"] == 3
    assert run(client, "purge", queue="emials")["done"] == 0
    assert run(client)["waiting"] == {"emails": 1}


def test_more_than_one_answer_holds_are_moved(client, send):
    send(*range(500))
    assert run(client, "move", queue="emials", to="emails")["done"] == 500
    assert order(client, "emails") == list(range(500))


def life_of(client, node, *queues, prefix="", age=0):
    (clock,) = client.ask(("TIME",))
    life = json.dumps([1, [1, "a", "boot", int(clock[0]) - age], [*queues]])
    client.ask(("HSET", f"{prefix}celery-metal.nodes", node, life))


def confirm(client, node, queue, ahead=0, prefix="", value=None):
    (said,) = client.ask(("HGET", f"{prefix}celery-metal.paused", queue))
    known = hashlib.sha256((said if value is None else value).encode()).hexdigest()[:16]
    text = json.dumps({queue: [known, ahead]})
    client.ask(("HSET", f"{prefix}celery-metal.pausing", node, text))


MAIL = {"queue": "shop:mail", "queues": ["mail"], "prefixes": ["shop:"]}


def test_a_queue_is_paused_once_its_workers_have_confirmed(client, send):
    send(1, 2, key="shop:mail")
    life_of(client, "mail-1@a", "mail", prefix="shop:")
    life_of(client, "other-1@a", "other", prefix="shop:")
    life_of(client, "mail-1@b", "mail")  # of another app
    asked = {**MAIL, "by": "ops@ctl", "reason": "é", "seconds": 0}
    found = run(client, "pause", check=True, **asked)
    assert (found["done"], found["workers"], found["waiting"]) == (1, 1, {"shop:mail": 2})
    assert client.ask(("EXISTS", "shop:celery-metal.paused")) == [0]
    found = run(client, "pause", **asked)
    assert (found["done"], found["workers"], found["is_kept"]) == (1, 1, True)
    (pause,) = found["paused"]
    assert (pause["name"], pause["by"], pause["reason"]) == ("shop:mail", "ops@ctl", "é")
    left = {"node": "mail-1@a", "ahead": None, "silent_seconds": None}
    assert found["unconfirmed"] == [left]
    # Of an earlier pause.
    confirm(client, "mail-1@a", "mail", prefix="shop:", value="x")
    assert run(client, "pause", **asked)["unconfirmed"] == [left]
    confirm(client, "mail-1@a", "mail", ahead=3, prefix="shop:")
    assert run(client, "pause", **asked)["unconfirmed"] == [{**left, "ahead": 3}]
    confirm(client, "mail-1@a", "mail", prefix="shop:")
    client.ask(("LPUSH", "shop:celery-metal.held:mail-1@a:mail", "x"))
    found = run(client, "pause", **{**asked, "by": "another"})
    assert (found["done"], found["unconfirmed"], found["claimed"]) == (0, [], 1)
    # Who paused it first, and since when, stays.
    assert found["paused"] == [pause]
    assert run(client, **MAIL)["paused"] == [pause]


def test_a_pause_that_a_power_cut_may_undo_is_reported(client):
    # This Redis has no append-only file, or is older than WAITAOF; so it is also when asked again.
    words = "Redis keeps no append-only file", "this Redis cannot confirm what is on its disk"
    assert run(client, "pause", check=True, **MAIL)["unsaved"] == ""
    for action in ("pause", "pause", "resume"):
        assert run(client, action, **MAIL)["unsaved"].startswith(words)
    assert run(client, "resume", **MAIL)["unsaved"] == ""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1, 0], ""),
        ([0, 0], "Redis has not confirmed within 4 s that it is on the disk"),
        (RedisError("NOPERM User w has no permissions to run the 'waitaof'"), "the user in Redis"),
        (
            RedisError("ERR unknown command 'WAITAOF', with args"),
            "this Redis cannot",
        ),
        (
            RedisError(
                "ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled."
            ),
            "Redis keeps no append-only file",
        ),
        (RedisError("LOADING"), "LOADING"),
        ("odd", "Redis has not confirmed"),
    ],
)
def test_what_is_on_the_disk_is_asked_after_it_is_written(answer, said):
    asked = []
    client = SimpleNamespace(try_all=lambda *commands: asked.extend(commands) or [answer])
    found = celery_pauses.unsaved(client)
    assert (found.startswith(said), bool(found)) == (True, bool(said))
    assert asked == [("WAITAOF", "1", "0", "4000")]


def test_a_queue_is_resumed(client, send):
    send(1, key="shop:mail")
    run(client, "pause", **MAIL)
    run(client, "pause", queue="mail", queues=["mail"])
    assert [one["name"] for one in run(client, **MAIL)["paused"]] == ["mail", "shop:mail"]
    assert run(client, "resume", check=True, **MAIL)["done"] == 1
    assert run(client, "resume", **MAIL)["done"] == 1
    assert run(client, "resume", **MAIL)["done"] == 0
    assert client.ask(("HKEYS", "celery-metal.paused")) == [["mail"]]
    client.ask(("HSET", "shop:celery-metal.pausing", "gone-1@a", "{}"))
    run(client, "pause", **MAIL)
    run(client, "resume", **MAIL)
    assert client.ask(("EXISTS", "shop:celery-metal.pausing")) == [0]


def test_a_worker_without_a_sign_of_life_is_reported(client):
    life_of(client, "mail-1@a", "mail", age=60)
    (left,) = run(client, "pause", queue="mail", queues=["mail"], seconds=1)["unconfirmed"]
    assert 60 <= left["silent_seconds"] < 70


def test_a_pause_that_ends_meanwhile_is_not_confirmed(client, monkeypatch):
    life_of(client, "mail-1@a", "mail")
    monkeypatch.setattr(
        celery_pauses.time, "sleep", lambda _: client.ask(("DEL", "celery-metal.paused"))
    )
    found = run(client, "pause", queue="mail", queues=["mail"], seconds=30)
    assert found["is_kept"] is False


@pytest.mark.parametrize("value", ["", "[", "[1]", '{"at": "x", "by": 3}', "x" * 5000, "\udcff"])
def test_a_pause_that_says_nothing_valid_is_shown_and_replaced(client, value):
    client.ask(("HSET", "celery-metal.paused", "mail", value))
    (pause,) = run(client, queues=["mail"])["paused"]
    assert (pause["name"], pause["at"], pause["by"], pause["reason"]) == ("mail", None, "", "")
    assert run(client, "pause", queue="mail", queues=["mail"], by="me")["done"] == 1
    (pause,) = run(client, queues=["mail"])["paused"]
    assert pause["by"] == "me"


@pytest.mark.parametrize("kind", [("SET",), ("LPUSH",), ("SADD",)])
def test_a_key_of_another_type_is_replaced(client, kind):
    client.ask((*kind, "celery-metal.paused", "mail"))
    assert run(client, queues=["mail"])["paused"] == []
    assert run(client, "resume", queue="mail", queues=["mail"])["done"] == 0
    assert run(client, "pause", queue="mail", queues=["mail"])["done"] == 1
    assert len(run(client, queues=["mail"])["paused"]) == 1


def test_very_many_pauses_hide_none_of_a_declared_queue(client):
    fields = [word for number in range(2000) for word in (f"a{number}", "{}")]
    client.ask(("HSET", "celery-metal.paused", *fields, "mail", "{}"))
    found = run(client, queues=["mail"])["paused"]
    assert (len(found), found[0]["name"]) == (celery_pauses.MOST, "mail")
