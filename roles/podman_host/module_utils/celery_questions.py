"""Questions to running workers, by the exchange that carries nothing else; see questions.py of the
runtime."""

from __future__ import annotations

import base64
import json
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ansible.module_utils.celery_redis import Client

EXCHANGE = "celery-inspect.pidbox"
#: How long to wait for answers, workers that are heard, and bytes of an answer.
WAIT_SECONDS, MOST_WORKERS, MOST_BYTES = 2.0, 500, 1 << 18


def question(method: str, arguments: Mapping[str, Any], reader: str) -> str:
    """A message as Celery's ``inspect`` sends it.

    :param reader: ID of who waits for answers.
    """
    body = {
        "method": method,
        "arguments": arguments,
        "destination": None,
        "pattern": None,
        "matcher": None,
        "ticket": str(uuid.uuid4()),
        "reply_to": {"exchange": f"reply.{EXCHANGE}", "routing_key": reader},
    }
    message = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 1, "expires": time.time() + WAIT_SECONDS},
        "properties": {
            "delivery_mode": 2,
            "delivery_info": {"exchange": EXCHANGE, "routing_key": ""},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }
    return json.dumps(message)


def answer_of(message: Any) -> dict[str, Any]:
    """Node name to its answer, of one reply; nothing where it is none.

    >>> answer_of('{"body": "eyJhLTFAd2ViIjogW119"}'), answer_of("x"), answer_of('{"body": 1}')
    ({'a-1@web': []}, {}, {})
    """
    if not isinstance(message, str) or len(message) > MOST_BYTES:
        return {}
    try:
        body = json.loads(base64.b64decode(json.loads(message)["body"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def ask(
    client: Client, database: int, prefix: str, method: str, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], int]:
    """Node name to the answer of each worker that gave one in time, and how many were asked.

    Nothing stays in Redis: workers let answers that were not read expire after a minute.

    :param prefix: the ``global_keyprefix`` of an app.
    :raises RedisError: when the user may not ask.
    """
    reader = str(uuid.uuid4())
    channel = f"{prefix}/{database}.{EXCHANGE}"
    (asked,) = client.ask(("PUBLISH", channel, question(method, arguments, reader)))
    key = f"{prefix}{reader}.reply.{EXCHANGE}"
    found: dict[str, Any] = {}
    for message in _replies(client, key, min(asked, MOST_WORKERS)):
        found |= answer_of(message)
    return found, asked


def _replies(client: Client, key: str, most: int) -> Iterator[Any]:
    until = time.monotonic() + WAIT_SECONDS
    for _ in range(most):
        left = until - time.monotonic()
        if left <= 0:
            return
        (said,) = client.ask(("BRPOP", key, f"{left:.2f}"))
        if not said:
            return
        yield said[1]
