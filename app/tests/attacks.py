"""Messages and values that no client of Celery's writes, made from one seed."""

import base64
import json
import random
import zlib
from collections.abc import Iterator
from typing import Any
from uuid import UUID

from celery_metal_runtime.messages import LARGEST_BODY

DEEP = "[" * 5000 + "]" * 5000
#: In the place of what a field should be.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0),
    *(float("nan"), float("inf"), float("-inf")),
    *("", "x", "0", "a" * 5000, "\0", "\ud800", "a\nb: forged", "\N{FAMILY}" * 3, "../../x"),
    *([], [[]], [None], [None] * 3, [1, 2], [-1, 0], [float("nan")] * 2, ["x", "y"], [{}]),
    *({}, {"a": {}}, {"": 1}, {"task": "lab_app.total"}, {"task": 5, "args": 1}),
    *({"__type__": "datetime", "__value__": 5}, {"__type__": "bytes", "__value__": "%"}),
    *({"queue": "celery-metal.nodes"}, {"exchange": "", "routing_key": "celery-metal.nodes"}),
    *("celery-metal.nodes", "celery-metal.beat", "9999-12-31T23:59:59.999999", "2026-13-45"),
    *("0001-01-01T00:00:00+14:00", "2000-01-01T00:00:00", "P1D", "gzip", "zstd", "pcre", "base64"),
)
HEADERS = (
    *("task", "id", "root_id", "parent_id", "group", "shadow", "retries", "timelimit", "eta"),
    *("expires", "argsrepr", "kwargsrepr", "origin", "lang", "meth", "group_index", "stamps"),
    *("stamped_headers", "replaced_task_nesting", "ignore_result", "compression", "callbacks"),
    *("errbacks", "chain", "chord", "get", "update", "delivery_info", "properties", "headers"),
    *("celery_metal_crashes", "clock", "utc", "reply_to", "args", "kwargs", "is_eager", "groups"),
)
PROPERTIES = (
    *("priority", "delivery_info", "delivery_tag", "delivery_mode", "body_encoding"),
    *("correlation_id", "reply_to"),
)
ARGUMENTS = ("queue", "exchange_type", "exchange", "n", "hard", "soft", "headers", "task_name", "x")
#: In the place of an argument that would be obeyed.
WRONG = (float("nan"), -1, [], [None], {"a": None}, {"a": {}}, "celery-metal.held:a:b", "\0", True)
TASKS = (
    *("lab_app.total", "lab_app.nothing", "celery.chord_unlock", "celery.map", "celery.starmap"),
    *("celery.chunks", "celery.group", "celery.chain", "celery.chord", "celery.accumulate"),
)


def task(number: Any, name: str = "lab_app.total", body: Any = None, **headers: Any) -> dict:
    """A message as Celery 5 makes it."""
    number = str(UUID(int=number)) if isinstance(number, int) else number
    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return {
        "body": _encoded([[[1, 2]], {}, embedded] if body is None else body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": name,
            "id": number,
            "root_id": number,
            "parent_id": None,
            "group": None,
            "eta": None,
            "expires": None,
            "retries": 0,
            "timelimit": [None, None],
            "argsrepr": "([1, 2],)",
            "kwargsrepr": "{}",
            "origin": "gen1@attack",
            "ignore_result": False,
            **headers,
        },
        "properties": {
            "correlation_id": number,
            "reply_to": number,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "x"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": number,
        },
    }


def bomb() -> bytes:
    """A task of a few hundred kilobytes, of which the body is beyond all that is allowed."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(b"0" * (1 << 20)) for _ in range(12 * LARGEST_BODY // (1 << 20))]
    packed = b"".join([*parts, packer.flush()])
    message = task(1, compression="application/x-gzip")
    return json.dumps(message | {"body": base64.b64encode(packed).decode()}).encode()


def messages(seed: int, count: int) -> Iterator[bytes]:
    """`count` messages for a queue of tasks; of each kind some are tasks all the same."""
    rng = random.Random(seed)
    kinds = (_bytes, _envelope, _envelope, _header, _header, _header, _body, _body, _old, _named)
    for number in range(count):
        item = rng.choice(kinds)(rng, seed << 64 | number)
        yield item if isinstance(item, bytes) else _dumped(item)


def commands(seed: int, count: int) -> Iterator[bytes]:
    """`count` messages for the channel of remote control; none is a command that may be obeyed."""
    rng = random.Random(seed)
    for number in range(count):
        if rng.random() < 0.2:
            item = _bytes(rng, number)
            yield item if isinstance(item, bytes) else _dumped(item)
            continue
        methods = ("ping", "active", "query_task", "rate_limit", "time_limit", "add_consumer")
        body = {
            "method": rng.choice((*methods, "nothing", "pool_grow", "revoke_by_stamped_headers")),
            "arguments": {
                rng.choice(ARGUMENTS): rng.choice(WRONG) for _ in range(rng.randrange(3))
            },
            "destination": None,
            "pattern": None,
            "matcher": None,
        }
        # A field that is not there, or another type: what is right would be a command.
        field = rng.choice(("method", "arguments", "destination", "pattern", "reply_to", "ticket"))
        body[field] = rng.choice(VALUES)
        message = task(number, body=body)
        message["headers"] = {"clock": 1, "expires": None}
        if rng.random() < 0.5:
            where = rng.choice(("headers", "properties", "body", "content-type"))
            message[where] = rng.choice(VALUES)
        elif rng.random() < 0.5:
            message["headers"]["clock"] = rng.choice(VALUES)
        elif rng.random() < 0.2:
            message["body"] = _encoded(rng.choice(VALUES))
        yield _dumped(message)


def values(seed: int, count: int) -> Iterator[bytes]:
    """`count` values for a key in Redis."""
    rng = random.Random(seed)
    for number in range(count):
        shape = rng.randrange(4)
        if shape == 0:
            yield bytes(rng.randrange(256) for _ in range(rng.randrange(50)))
        elif shape == 1:
            yield _dumped(rng.choice(VALUES))
        elif shape == 2:
            yield _dumped([rng.choice(VALUES) for _ in range(rng.randrange(5))])
        else:
            yield next(messages(seed << 32 | number, 1))


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _encoded(body: Any) -> str:
    return base64.b64encode(_dumped(body)).decode()


def _bytes(rng: random.Random, number: int) -> Any:
    whole = _dumped(task(number))
    return rng.choice(
        (
            lambda: bytes(rng.randrange(256) for _ in range(rng.randrange(200))),
            lambda: whole[: rng.randrange(len(whole))],
            lambda: whole.decode().encode("utf-16"),
            lambda: b"null",
            DEEP.encode,
            lambda: b'{"a":' * 3000 + b"1" + b"}" * 3000,
            lambda: whole.replace(b"base64", rng.choice((b"utf-8", b"BASE64", b"rot13", b""))),
            lambda: rng.choice(VALUES),
            lambda: [rng.choice(VALUES)],
            lambda: {rng.choice(("properties", "headers", "body")): rng.choice(VALUES)},
        )
    )()


def _envelope(rng: random.Random, number: int) -> Any:
    message = task(number)
    for _ in range(rng.randint(1, 2)):
        if rng.random() < 0.4:
            name = rng.choice(tuple(message))
            message[name] = rng.choice(VALUES)
        elif isinstance(message.get("properties"), dict):
            message["properties"][rng.choice(PROPERTIES)] = rng.choice(VALUES)
    if rng.random() < 0.3:
        message.pop(rng.choice(tuple(message)))
    return message


def _header(rng: random.Random, number: int) -> Any:
    headers = {rng.choice(HEADERS): rng.choice(VALUES) for _ in range(rng.randint(1, 2))}
    message = task(number)
    message["headers"] |= {"ignore_result": rng.random() < 0.5} | headers
    if rng.random() < 0.2:
        message["headers"].pop(rng.choice(tuple(message["headers"])))
    return message


def _body(rng: random.Random, number: int) -> Any:
    embedded: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    body: Any = [[[1, 2]], {}, embedded]
    shape = rng.randrange(6)
    if shape == 0:
        body[rng.randrange(3)] = rng.choice(VALUES)
    elif shape == 1:
        body = rng.choice(VALUES)
    elif shape == 2:
        body[0] = [
            json.loads(DEEP[:900] + DEEP[-900:]) if rng.random() < 0.3 else rng.choice(VALUES)
        ]
    elif shape == 3:
        embedded[rng.choice((*embedded, "id", "args", "x"))] = rng.choice(VALUES)
    elif shape == 4:
        after = {"task": "lab_app.total", "args": [[3]], "kwargs": {}, "options": {}}
        after[rng.choice((*after, "subtask_type", "immutable", "chord_size"))] = rng.choice(VALUES)
        embedded[rng.choice(("callbacks", "errbacks", "chain"))] = [after]
        embedded["chord"] = rng.choice((None, None, after))
    else:
        body = body[: rng.randrange(3)]
    message = task(number, body=body)
    if rng.random() < 0.2:
        message["headers"]["compression"] = rng.choice(VALUES)
    if rng.random() < 0.1:
        message["content-type"] = rng.choice(("application/x-yaml", "text/plain", "x", "pickle"))
    return message


def _old(rng: random.Random, number: int) -> Any:
    """Of the first version: all of it in the body."""
    body = {
        "task": "lab_app.total",
        "id": str(UUID(int=number)),
        "args": [[1, 2]],
        "kwargs": {},
        "retries": 0,
        "eta": None,
        "expires": None,
        "utc": True,
    }
    for _ in range(rng.randint(0, 2)):
        body[rng.choice((*body, *HEADERS))] = rng.choice(VALUES)
    message = task(number, body=body)
    message["headers"] = rng.choice(({}, None, message["headers"], {"id": 5}))
    return message


def _named(rng: random.Random, number: int) -> Any:
    """A task of Celery's own with arguments that are not."""
    args = [rng.choice(VALUES) for _ in range(rng.randrange(4))]
    names = ("interval", "max_retries", "result", "task", "it", "group_id", "callback")
    kwargs = {rng.choice(names): rng.choice(VALUES) for _ in range(rng.randrange(3))}
    return task(number, rng.choice(TASKS), body=[args, kwargs, None])
