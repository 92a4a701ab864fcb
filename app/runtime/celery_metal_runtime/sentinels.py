"""Which Redis is the primary, as a majority of the Sentinels has it.

redis-py believes the first Sentinel that answers, and stays with a primary that has lost its
replicas. Behind a network that is cut in two, the primary of the smaller part refuses all that is
written, and its Sentinel goes on naming it: whoever reaches both parts would be kept there.
"""

from typing import Any, ClassVar

from celery.app import utils
from kombu.exceptions import OperationalError
from kombu.transport.redis import SentinelChannel
from kombu.utils.json import dumps
from redis import Redis, sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from celery_metal_runtime.confirm import Confirmations

# What a Redis says that is no primary, or no longer: it has not done what it was told.
NO_PRIMARY = ("NOREPLICAS", "MASTERDOWN")


class Sentinel(sentinel.Sentinel):
    """Sentinels of which a majority is asked."""

    def __init__(self, sentinels: Any, *, sentinel_kwargs: Any = None, **options: Any) -> None:
        # redis-py 8 would ask one that is down ten times, before it asks the next.
        once = {**(sentinel_kwargs or {}), "retry": Retry(NoBackoff(), 0)}
        super().__init__(sentinels, sentinel_kwargs=once, **options)
        #: What these Sentinels are known by in this process.
        self.site = tuple(sorted(map(_address, self.sentinels)))

    #: Those that gave no answer the last time, to any client of this process.
    silent: ClassVar[set[tuple[str, int]]] = set()
    #: How many replicas there are, also those that are down: by the site and the primary's name.
    replicas: ClassVar[dict[tuple[Any, str], int]] = {}

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """The address of the primary that was elected last; MasterNotFoundError if there is none.

        Those who do not answer are asked last the next time.
        """
        enough = len(self.sentinels) // 2 + 1
        known: list[dict[str, Any] | None] = []
        reasons: list[str] = []
        for one in sorted(self.sentinels, key=lambda one: _address(one) in self.silent):
            if len(known) == enough:
                break
            try:
                masters: Any = one.sentinel_masters()
                known.append(masters.get(service_name))
                self.silent.discard(_address(one))
            except (RedisConnectionError, RedisTimeoutError) as error:
                self.silent.add(_address(one))
                reasons.append(str(error))
        states = [state for state in known if state]
        newest = max((state["config-epoch"] for state in states), default=0)
        for state in states:
            if state["config-epoch"] == newest and self.check_master_state(state, service_name):
                self.replicas[self.site, service_name] = max(
                    state["num-slaves"] for state in states
                )
                return state["ip"], state["port"]
        why = "; ".join(reasons) or "it is down, and none is elected yet"
        raise sentinel.MasterNotFoundError(f"no primary of {service_name!r}: {why}")


def _address(one: Redis) -> tuple[str, int]:
    options = one.connection_pool.connection_kwargs
    return options["host"], options["port"]


def install() -> None:
    """Have all clients that this process makes from now on find their primary so."""
    if sentinel.Sentinel is Sentinel:
        return
    patched: Any = sentinel
    _mask_each_address()
    read = sentinel.SentinelManagedConnection.read_response

    def read_or_leave(self: sentinel.SentinelManagedConnection, *args: Any, **options: Any) -> Any:
        try:
            return read(self, *args, **options)
        except ResponseError as error:
            if not (self.connection_pool.is_master and str(error).startswith(NO_PRIMARY)):
                raise
            self.disconnect()
            raise RedisConnectionError(f"this Redis is not the primary now: {error}") from error

    confirmations = Confirmations()
    put, can_batch = SentinelChannel._put, getattr(SentinelChannel, "supports_batch_publish", None)

    def put_and_confirm(self: Any, queue: str, message: Any, **options: Any) -> None:
        if not self.replicas or queue in (getattr(self, "_expires", None) or ()):
            put(self, queue, message, **options)
            return
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            if self.pool.master_address is None:
                client.ping()  # by connecting it learns which it is, and how many replicas it has
            site = self.pool.sentinel_manager.site, self.master_name
            known = Sentinel.replicas.get(site, 0)
            confirmation = confirmations.of(site, self.pool.master_address, self.replicas, known)
            pipe.lpush(key, dumps(message))
            for replicas, milliseconds in confirmation.waits(self.replicas, known):
                pipe.execute_command("WAIT", replicas, milliseconds)
            pushed, *answers = pipe.execute(raise_on_error=False)
        confirmed = [0 if isinstance(one, Exception) else one for one in answers]
        is_sent = confirmation.is_sent(self.replicas, known, confirmed)
        for answer in (pushed, *answers):
            if isinstance(answer, Exception):
                raise answer
        if not is_sent:
            # No error that kombu would send it again for: it may be there.
            raise OperationalError(
                f"the task is in {queue} of this primary, and {confirmed[-1]} of {self.replicas} "
                "replicas have it: it is lost if another is elected now"
            )

    SentinelChannel.replicas = 0
    SentinelChannel.from_transport_options = (*SentinelChannel.from_transport_options, "replicas")
    SentinelChannel._put = put_and_confirm
    if can_batch:
        SentinelChannel.supports_batch_publish = property(
            lambda self: not self.replicas and can_batch.fget(self)
        )
    patched.SentinelManagedConnection.read_response = read_or_leave
    # Both kombu and Celery look for it there.
    patched.Sentinel = Sentinel


def _mask_each_address() -> None:
    """Have Celery's reports mask all passwords: before 5.7 they show those after the first."""
    shown: Any = utils
    if not (mask_one := getattr(utils, "maybe_sanitize_url", None)):
        return

    def mask_each(url: Any, **options: Any) -> Any:
        if not isinstance(url, str):
            return mask_one(url, **options)
        return ";".join(mask_one(one, **options) for one in url.split(";"))

    shown.maybe_sanitize_url = mask_each
