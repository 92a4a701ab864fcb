"""What a worker tells about its connection holds no secret.

`inspect stats` answers with all that kombu knows of the connection but the password. For a Unix
socket the host name is the whole URL, and with Sentinels the options hold a password of their own.
"""

from typing import Any
from urllib.parse import parse_qs, unquote

from celery.worker.consumer.connection import Connection

# What is shown of it; whatever kombu adds later is not.
FIELDS = (
    "hostname",
    "userid",
    "virtual_host",
    "port",
    "insist",
    "transport",
    "connect_timeout",
    "uri_prefix",
    "heartbeat",
)
# Options that are text and shown; of the others numbers and switches are.
OPTIONS = ("global_keyprefix", "master_name", "queue_order_strategy")
UNKNOWN = "N/A"


def install() -> None:
    """Have this worker answer so."""
    Connection.info = shown_connection


def shown_connection(_: Connection, consumer: Any) -> dict[str, Any]:
    """What `inspect stats` tells about the broker, in place of Celery's."""
    return {"broker": shown(consumer.connection.info()) if consumer.connection else UNKNOWN}


def shown(info: dict[str, Any]) -> dict[str, Any]:
    """What may be shown of kombu's `Connection.info()`."""
    options = info.get("transport_options") or {}
    return {
        **{name: info[name] for name in FIELDS if name in info},
        "ssl": bool(info.get("ssl")),
        "transport_options": {
            name: value
            for name, value in options.items()
            if isinstance(value, (bool, int, float)) or name in OPTIONS
        },
        **_parts(str(info.get("hostname") or "")),
    }


def _parts(hostname: str) -> dict[str, Any]:
    """The path, user and database where the host name is a whole URL.

    >>> _parts("redis+socket://worker:a%40b@/run/redis.sock?virtual_host=2")
    {'hostname': '/run/redis.sock', 'userid': 'worker', 'virtual_host': '2'}
    >>> _parts("localhost")
    {}
    """
    _, is_url, rest = hostname.partition("://")
    login, is_login, rest = rest.rpartition("@")
    if not is_url and not is_login:
        return {}
    place, _, query = rest.partition("?")
    return {
        "hostname": place or UNKNOWN,
        "userid": unquote(login.partition(":")[0]) or None,
        "virtual_host": parse_qs(query).get("virtual_host", [None])[0],
    }
