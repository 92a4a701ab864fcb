"""Waiting for results, and subscriptions, survive a lost connection."""

import threading
from typing import Any

from celery.backends.redis import ResultConsumer
from redis.client import PubSub


def install() -> None:
    """Have all who wait in this process look again once they are subscribed again.

    What they were subscribed by is closed first, else Python closes it when it collects garbage:
    also while redis-py 4 holds the lock of its pool, which it then waits for without end.
    """
    reconnect = ResultConsumer._reconnect_pubsub
    if getattr(reconnect, "looks_again", False):
        return
    _make_subscriptions_reentrant()

    def reconnect_and_look(self: ResultConsumer) -> None:
        if self._pubsub is not None:
            self._pubsub.close()
        reconnect(self)
        # Celery looks, and then subscribes: it would wait without end for what came in between.
        if keys := list(self.subscribed_to):
            for meta in filter(None, self.backend.client.mget(keys)):
                self.on_state_change(self._decode_result(meta), None)

    marked: Any = reconnect_and_look
    marked.looks_again = True
    ResultConsumer._reconnect_pubsub = marked


def _make_subscriptions_reentrant() -> None:
    """Give each PubSub a reentrant lock, as redis-py 8 does.

    In redis-py 6 `subscribe` holds a plain lock while it reconnects. The new connection subscribes
    again, which takes the same lock: a deadlock.
    """
    patched: Any = PubSub
    begin = PubSub.__init__

    def begin_with_rlock(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        if hasattr(self, "_lock"):  # redis-py 4 has none
            self._lock = threading.RLock()

    patched.__init__ = begin_with_rlock
