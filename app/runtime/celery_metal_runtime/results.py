"""Whoever waits for results, or for messages to all, gets them over a connection that was lost."""

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
    _let_subscriptions_return()

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


def _let_subscriptions_return() -> None:
    """Have a subscription that finds its connection lost subscribe again, as redis-py 8 does.

    With the lock of redis-py 6 it waits for itself without end: it holds it, connects, and so
    subscribes to what it was subscribed to before.
    """
    patched: Any = PubSub
    begin = PubSub.__init__

    def begin_with_rlock(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        if hasattr(self, "_lock"):  # redis-py 4 has none
            self._lock = threading.RLock()

    patched.__init__ = begin_with_rlock
