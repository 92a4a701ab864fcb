"""celery_queue: tasks that wait, in a real Redis."""

import json

import celery_queue
import pytest
from ansible.module_utils import celery_dead_letters, celery_moves
from ansible.module_utils.celery_redis import RedisError
from test_celery_dead import all_of, letter

HIGH = "emials\x06\x169"


def run(client, action="list", *, admin=True, check=False, queues=(), prefixes=(), **chosen):
    params = {"queue": "", "to": "", **chosen, "action": action}
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
