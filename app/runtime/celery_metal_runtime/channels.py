"""Channels of the runtime's own, for all connections that this process makes to a Redis."""

from functools import partial

from kombu import transport as kombu_transport
from kombu.transport import redis


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
