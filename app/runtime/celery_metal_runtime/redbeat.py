"""RedBeat, where an app has it: its entries are in the broker's Redis, without an address there.

RedBeat makes a client of `broker_url`, and knows no Unix socket there and not these Sentinels. It
also keeps a lock of its own for 25 minutes by default, for which a Beat that follows a killed one
would wait; a Beat here has `fence`.
"""

from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any

from celery_metal_runtime import broker
from celery_metal_runtime.versions import is_set, put

if TYPE_CHECKING:
    from celery import Celery


class Client:
    """The client of the broker's Redis, made when it is first used."""

    def __init__(self, app: "Celery") -> None:
        self._app = app
        self._client: Any = None
        self._lock = Lock()

    def __getattr__(self, name: str) -> Any:
        with self._lock:
            if self._client is None:
                with self._app.connection_for_write() as connection:
                    self._client = broker.client_of(connection.channel(), decodes=True)
        return getattr(self._client, name)


def lend(app: "Celery", url: str) -> None:
    """Have RedBeat use the broker's Redis, in any process of an app that names no other for it.

    :param url: the broker's, without a password: RedBeat shows it.
    """
    if find_spec("redbeat") and not (
        is_set(app, "redbeat_redis_url") and app.conf.redbeat_redis_url
    ):
        # Of options, as of an address, RedBeat says that it will not take the broker's any more.
        put(app, redbeat_redis_url=url, redbeat_redis_options={})
        app.redbeat_redis = Client(app)


def unlock(app: "Celery") -> None:
    """Have RedBeat take no lock of its own."""
    if find_spec("redbeat"):
        put(app, redbeat_lock_key=None)
