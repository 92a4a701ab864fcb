"""Channels of the runtime's own, for all connections that this process makes to a Redis."""

from functools import partial
from typing import TYPE_CHECKING, Any

from kombu import transport as kombu_transport
from kombu.transport import redis
from kombu.utils.encoding import bytes_to_str
from redis import Redis

if TYPE_CHECKING:
    from kombu.transport.redis import Channel
else:
    Channel = object  # mixed into it

OWN = "celery-metal."
#: How the exchanges of remote control end, and the one of events.
PIDBOX, EVENTS = ".pidbox", "celeryev"
#: A worker's first task goes by a queue of this name.
CANARY = "celery-metal.canary:"
#: How long a reply to a remote control command waits for its reader, in seconds.
REPLY_SECONDS = 60
#: Characters of the ID of a client, with which kombu begins the name of its queue for replies.
LENGTH_OF_ID = 36


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
        if is_reply(queue[LENGTH_OF_ID + 1 :]):
            # The client may be gone. Not by a command to which kombu adds its prefix or not.
            client = Redis(connection_pool=self.pool)
            client.pexpire(f"{self.global_keyprefix}{queue}", REPLY_SECONDS * 1000)

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        # Where a reply goes follows from its names. Every client can write into the table of
        # bindings, and as much as it likes.
        if is_reply(exchange):
            return [f"{routing_key}.{exchange}"]
        found: list[str] = super()._lookup(exchange, routing_key, default)
        return found

    def sweep_bindings(self, limit: int = 100) -> int:
        """Delete tables of bindings that no client refreshes, of exchanges that need none.

        Every client can write the deadlines. kombu would also delete a table by which tasks go.
        """
        client, prefix = Redis(connection_pool=self.pool), self.global_keyprefix
        deadlines = f"{prefix}{self.keyprefix_binding_deadlines}"
        seconds, microseconds = client.time()
        now = seconds * 1000 + microseconds // 1000
        overdue = [*map(bytes_to_str, client.zrangebyscore(deadlines, "-inf", now, 0, limit))]
        tables = [one for one in overdue if one == EVENTS or one.endswith(PIDBOX)]
        if tables:
            client.delete(*(f"{prefix}{self.keyprefix_queue % one}" for one in tables))
        if overdue:
            client.zrem(deadlines, *overdue)
        return len(overdue)


def is_reply(exchange: str) -> bool:
    """Whether an exchange is one for replies to remote control commands."""
    return exchange.startswith("reply.") and exchange.endswith(PIDBOX)


def is_own(queue: str) -> bool:
    """Whether a list of this name belongs to the runtime."""
    return OWN in queue and not queue.startswith(CANARY)


def install(mixin: type, *transports: type) -> None:
    """Mix classes into kombu's channels and transports, from the next connection on.

    Those of redis:// and rediss://, also on a Unix socket, and of sentinel://.
    """
    for base, schemes in (
        (redis.Transport, ("redis", "rediss")),
        (redis.SentinelTransport, ("sentinel",)),
    ):
        channel = type(base.Channel.__name__, (mixin, base.Channel), {})
        transport = type(base.__name__, (*transports, base), {"Channel": channel})
        for scheme in schemes:
            # kombu calls what it finds there, and takes a class for one that it was told.
            kombu_transport.TRANSPORT_ALIASES[scheme] = partial(_same, transport)


def _same(one: type) -> type:
    return one
