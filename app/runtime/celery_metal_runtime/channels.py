"""Channels of the runtime's own, for all connections that this process makes to a Redis."""

from functools import partial
from typing import TYPE_CHECKING, Any

from kombu import transport as kombu_transport
from kombu.transport import redis

if TYPE_CHECKING:
    from kombu.transport.redis import Channel
else:
    Channel = object  # mixed into it

OWN = "celery-metal."
#: A worker's first task goes by a queue of this name.
CANARY = "celery-metal.canary:"


class Careful(Channel):
    """Never puts a message into a key of the runtime, whatever Redis or a sender says."""

    def get_table(self, exchange: str) -> list[tuple[str, ...]]:
        """The queues of an exchange, without invalid entries."""
        return [
            entry
            for entry in super().get_table(exchange)
            if len(entry) == 3 and not is_own(entry[2])
        ]

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        # The sender of a task chooses where its retry, its callbacks and its reply go.
        if is_own(queue):
            raise ValueError(
                f"{queue[:99]!a} is not a queue: the name is reserved for celery-metal"
            )
        super()._put(queue, message, **kwargs)


def is_own(queue: str) -> bool:
    """Whether a list of this name belongs to the runtime."""
    return OWN in queue and not queue.startswith(CANARY)


def install(mixin: type) -> None:
    """Mix a class into kombu's two kinds of channels, from the next connection on.

    Those of redis:// and rediss://, also on a Unix socket, and of sentinel://.
    """
    for base, schemes in (
        (redis.Transport, ("redis", "rediss")),
        (redis.SentinelTransport, ("sentinel",)),
    ):
        channel = type(base.Channel.__name__, (mixin, base.Channel), {})
        transport = type(base.__name__, (base,), {"Channel": channel})
        for scheme in schemes:
            # kombu calls what it finds there, and takes a class for one that it was told.
            kombu_transport.TRANSPORT_ALIASES[scheme] = partial(_same, transport)


def _same(one: type) -> type:
    return one
