"""Whoever waits for results gets them, also over a connection that was lost."""

from celery.backends.redis import ResultConsumer


def install() -> None:
    """Have all who wait in this process look again once they are subscribed again."""
    reconnect = ResultConsumer._reconnect_pubsub
    if getattr(reconnect, "looks_again", False):
        return

    def reconnect_and_look(self: ResultConsumer) -> None:
        reconnect(self)
        # Celery looks, and then subscribes: it would wait without end for what came in between.
        if keys := list(self.subscribed_to):
            for meta in filter(None, self.backend.client.mget(keys)):
                self.on_state_change(self._decode_result(meta), None)

    reconnect_and_look.looks_again = True
    ResultConsumer._reconnect_pubsub = reconnect_and_look
