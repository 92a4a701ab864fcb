"""Lists of Redis that hold tasks of undeclared queues.

The role redis puts this file beside redis_memory.py on a host: there is no Ansible to import.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ansible.module_utils.celery_redis import Client

# Keys for one request, a few milliseconds of Redis's time each.
AT_ONCE = 5000
# How long to look, and at how many lists: results are keys, too, and can be very many.
LOOK_SECONDS, MOST_LISTS = 10.0, 10_000
# Of a message that is longer the end is read, where kombu writes its headers; and how many at once.
LONGEST, SOME = 1 << 16, 100
LAST = """
local message = redis.call('LINDEX', KEYS[1], -1) or ''
return string.sub(message, -tonumber(ARGV[1]))
"""
RUNTIME = "celery-metal."
# kombu's mark between a queue and a priority.
PRIORITY = re.compile("\x06\x16[1-9]$")


class Stray(NamedTuple):
    """Tasks outside of known queues.

    ``waiting`` and ``dead``: queue to tasks. ``held``: node and queue to claims. ``is_complete``:
    whether the search reached all keys.
    """

    waiting: dict[str, int]
    dead: dict[str, int]
    held: dict[tuple[str, str], int]
    is_complete: bool


def is_task(message: Any) -> bool:
    """Whether it is a task of Celery's, by either version of its protocol, or the end of one.

    Replies to control commands and events are messages, too.

    >>> is_task('{"headers": {"task": "a.b", "id": "1"}, "body": "W10="}')
    True
    >>> is_task('{"headers": {}, "body": "eyJ0YXNrIjogImEuYiIsICJpZCI6ICIxIn0="}')
    True
    >>> is_task('{"headers": {}, "body": "e30="}'), is_task("[]"), is_task("at 10:00")
    (False, False, False)
    """
    if not isinstance(message, str):  # an error of Redis's
        return False
    try:
        if len(message.encode()) >= LONGEST:
            return '"task"' in message and '"delivery_tag"' in message
        said = json.loads(message)
        if not isinstance(said, dict) or not isinstance(said.get("headers"), dict):
            return False
        if "task" in said["headers"]:
            return True
        body = json.loads(base64.b64decode(str(said.get("body"))))
        return isinstance(body, dict) and "task" in body and "id" in body
    except (ValueError, RecursionError):
        return False


def lists_of(
    client: Client, seconds: float = LOOK_SECONDS, match: str = "*"
) -> tuple[list[str], bool]:
    """The names of all lists, and whether all keys were looked at.

    :param seconds: how long to look at most.
    :param match: a pattern of Redis's for the names.
    :raises RedisError: when the user may not ask.
    """
    until, cursor, found = time.monotonic() + seconds, "0", []
    while True:
        (answer,) = client.ask(
            ("SCAN", cursor, "MATCH", match, "COUNT", str(AT_ONCE), "TYPE", "list")
        )
        cursor, keys = answer
        # A key may come twice.
        found += keys
        if cursor == "0" or len(found) > MOST_LISTS or time.monotonic() > until:
            return sorted({*found})[:MOST_LISTS], cursor == "0" and len(found) <= MOST_LISTS


def held_by(rest: str) -> tuple[str, str]:
    """The node and the queue in the name of a list of what a worker holds.

    A node name ends in an "@" and its host, in which there is no colon.

    >>> held_by("a:b-1@web1:a:b"), held_by("?")
    (('a:b-1@web1', 'a:b'), ('?', ''))
    """
    node, at, host = rest.partition("@")
    host, _, queue = host.partition(":")
    return node + at + host, queue


def stray(client: Client, known: Collection[str], prefixes: Sequence[str] = ()) -> Stray:
    """What is in lists that are not those of these queues.

    :param known: queues whose lists are counted elsewhere.
    :param prefixes: each ``global_keyprefix`` of an app; its queues are named with it.
    :raises RedisError: when the user may not look for keys.
    """
    keys, is_complete = lists_of(client)
    kinds: list[tuple[str, str, Any]] = []
    for key in keys:
        prefix = next((one for one in prefixes if one and key.startswith(one + RUNTIME)), "")
        own = key.removeprefix(prefix)
        if own.startswith(f"{RUNTIME}dead:"):
            kinds.append(("dead", key, prefix + own.removeprefix(f"{RUNTIME}dead:")))
        elif own.startswith(f"{RUNTIME}held:"):
            node, queue = held_by(own.removeprefix(f"{RUNTIME}held:"))
            kinds.append(("held", key, (node, prefix + queue)))
        elif not own.startswith(RUNTIME) and (queue := PRIORITY.sub("", key)) not in known:
            kinds.append(("waiting", key, queue))
    counts: dict[str, dict[Any, int]] = {"waiting": {}, "dead": {}, "held": {}}
    for start in range(0, len(kinds), SOME):
        some = kinds[start : start + SOME]
        lengths = client.try_all(*(("LLEN", key) for _, key, _ in some))
        unknown = [key for kind, key, _ in some if kind == "waiting"]
        last = client.try_all(*(("EVAL", LAST, "1", key, str(LONGEST)) for key in unknown))
        tasks = {key for key, text in zip(unknown, last, strict=True) if is_task(text)}
        for (kind, key, name), number in zip(some, lengths, strict=True):
            if type(number) is int and number and (kind != "waiting" or key in tasks):
                counts[kind][name] = counts[kind].get(name, 0) + number
    return Stray(counts["waiting"], counts["dead"], counts["held"], is_complete)
