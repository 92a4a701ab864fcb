"""kombu's Redis transport, but for one thing: a task that is taken is never nowhere.

kombu takes a task by BRPOP and then writes it down as unacknowledged: what it took for a connection
that had just died, or in a process that was killed in between, is lost. And it leaves what a dead
worker held to the visibility timeout, which also runs a task twice that takes longer.

Here a task is moved from its queue to the worker's own list (see `ledger`) in one step. Producers
do not notice, nor do consumers that take no acknowledgement; and workers without this transport can
consume from the same queues.
"""

from collections.abc import Callable
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import Any, NamedTuple

from kombu import common
from kombu.transport import redis, virtual

from celery_metal_runtime import (
    ahead,
    backports,
    channels,
    full,
    guard,
    metrics,
    pauses,
    replies,
    wake,
)
from celery_metal_runtime.broker import is_wrong_type
from celery_metal_runtime.ledger import PUSH, TAKEN, Ledger, count_losses
from celery_metal_runtime.messages import RefusedError, brief, parse
from celery_metal_runtime.notify import line, say
from celery_metal_runtime.pauses import ASK_SECONDS, PAUSED
from celery_metal_runtime.revokes import Revokes

REFUSED_SECONDS = 1.0
# Requests that are kept as bytes: one for each order of the queues.
MOST_REQUESTS = 256
# How long a worker of several queues waits for a task of one of them before it looks at all.
SEVERAL_SECONDS = 0.1
# Neither a queue key that is not a list nor a paused queue stops the other queues. Without a task
# the reply is 0 and the first place of each paused one.
# Taking first: a Redis that is full refuses a script that begins with adding, and BLMOVE.
CLAIM = (
    PUSH
    + """
local count, wrong, paused, known = (#KEYS - 1) / 2, false, {0}, {['']=false}
for i = 1, count do
  local queue = ARGV[i]
  if known[queue] == nil then
    known[queue] = type(redis.pcall('HGET', KEYS[#KEYS], queue)) == 'string'
    if known[queue] then paused[#paused + 1] = i end
  end
  local item = not known[queue] and redis.pcall('RPOP', KEYS[i])
  if type(item) == 'table' then
    wrong = item
  elseif item then
    local failure = push('LPUSH', KEYS[count + i], item)
    if failure then
      redis.call('RPUSH', KEYS[i], item)
      return failure
    end
    return {i, item}
  end
end
return wrong or paused[2] and paused
"""
)


class Asked(NamedTuple):
    """A request for a task that is on its way; replies name a queue by its place in `queues`."""

    command: str
    queues: list[str]


class QoS(redis.QoS):
    """Acknowledges in the worker's ledger what was taken by it."""

    def can_consume(self) -> bool:
        """Whether another task may be taken: there is a place, and the limit of `ahead` is kept."""
        if not super().can_consume():
            return False
        if self.channel.ledger.paused:
            return False
        most = self.channel.ledger.most_claims
        if most is None or len(self._delivered) - len(self._dirty) < most:
            return True
        self.channel.ledger.tell_most(most)
        return False

    def append(self, message: Any, delivery_tag: str) -> None:
        """The message is delivered."""
        if delivery_tag in self.channel.ledger:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """The message is done with."""
        if delivery_tag in self.channel.ledger:
            self.channel.ledger.settle(delivery_tag)
            self._free(delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """The message is refused, and goes back to its queue or not."""
        if delivery_tag not in self.channel.ledger:
            super().reject(delivery_tag, requeue)
            return
        if requeue:
            self.channel.ledger.requeue(delivery_tag)
        else:
            self.channel.ledger.settle(delivery_tag)
        self._free(delivery_tag)

    def _free(self, delivery_tag: str) -> None:
        """Its place is free; a loop that had none, and so no request for a task, asks for one."""
        waker = self.channel.waker
        was_full = waker.is_used and (not self.channel._in_poll or not self.can_consume())
        virtual.QoS.ack(self, delivery_tag)
        if was_full:
            waker.wake()

    def give_back(self, delivery_tag: str) -> None:
        """The message, a claim of this worker, goes back to the front of its queue."""
        self.channel.ledger.requeue(delivery_tag, "RPUSH")
        self._free(delivery_tag)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """What workers without this transport have left; nothing while Redis refuses to write."""
        with suppress(self.channel.ResponseError):
            super().restore_visible(*args, **kwargs)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """The channel closes: kombu would also give back what still runs."""
        for tag in list(self._delivered):
            if tag in self.channel.ledger:
                self._delivered.pop(tag, None)
        super().restore_unacked_once(stderr)


class Claiming(channels.Careful):
    """What a channel does differently; mixed into kombu's two kinds."""

    QoS = QoS
    ledger: Ledger
    waker: wake.Waker
    revokes: Revokes
    # Every client that waits for replies takes kombu's own, and could hold it for ever.
    unacked_mutex_key = f"{channels.OWN}unacked_mutex"
    # Kombu sets the one itself from 5.6, and the other from 5.7.
    brpop_timeout = 1
    _brpop_sent_at: float | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._asked: Asked | None = None
        self._requests: dict[tuple[float | str | None, ...], tuple[Asked, Any]] = {}
        self._claimed: set[str] = set()
        self._is_empty = self._is_refused = False
        self._pause_until = 0.0
        super().__init__(*args, **kwargs)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Consume from `queue`, by the ledger where messages are acknowledged."""
        if not no_ack and queue not in self._fanout_queues:
            self.ledger.open(self, queue)
            self.revokes.open(self)
            self._claimed.add(queue)
            self._is_empty = False  # of this one it is not known whether it is paused
            self.connection.wait_for_places()
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def may_be_claiming_since(self, since: float) -> bool:
        """Whether a request made before that time of the monotonic clock may still be answered."""
        # None: before kombu 5.7 its own requests, which claim nothing, leave no time.
        sent = self._brpop_sent_at
        return bool(self._in_poll) and sent is not None and sent <= since

    def _brpop_start(self, timeout: float | None = None) -> None:
        if not self._claimed.issuperset(self.active_queues):
            super()._brpop_start(timeout or self.brpop_timeout)
            return
        if monotonic() < self._pause_until:
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        wait: float | None = None
        paused = self.ledger.pauses.found
        if self._is_empty and (some := [one for one in queues if one not in paused]):
            queues = some
            several = SEVERAL_SECONDS if len(queues) > 1 else None
            wait = self.ledger.wait_seconds or several or timeout or self.brpop_timeout or 0
        # The same again for each task.
        order = (wait, *queues)
        if order not in self._requests:
            if len(self._requests) >= MOST_REQUESTS:
                self._requests.clear()
            self._requests[order] = self._request(queues, wait)
        self._asked, packed = self._requests[order]
        self.client.connection.send_packed_command(packed)

    def _request(self, queues: list[str], wait: float | None) -> tuple[Asked, Any]:
        """A request for a task: of the first queue, for `wait` seconds, or of any at once."""
        prefix, held = self.global_keyprefix, self.ledger.held_key
        if wait is not None:
            asked = Asked("BLMOVE", queues[:1])
            arguments = (prefix + queues[0], held(queues[0]), "RIGHT", "LEFT", wait)
        else:
            pairs = self._in_order(queues)
            asked = Asked("EVAL", [queue for queue, _ in pairs])
            keys = [prefix + self._q_for_pri(queue, pri) for queue, pri in pairs]
            keys += [*(held(queue) for queue, _ in pairs), self.ledger.key(PAUSED)]
            # A worker's first task cannot be paused.
            names = ("" if queue.startswith(channels.OWN) else queue for queue in asked.queues)
            arguments = (CLAIM, len(keys), *keys, *names)
        return asked, self.client.connection.pack_command(asked.command, *arguments)

    def _in_order(self, queues: list[str]) -> list[tuple[str, int]]:
        """Each queue with each priority, in the order in which tasks are taken.

        A strict order is one of queues: kombu's would put a task without a priority of the last
        queue, which has the highest in Redis, before one with any other of the first.
        """
        if self.queue_order_strategy == "priority":
            return [(queue, pri) for queue in queues for pri in self.priority_steps]
        return [(queue, pri) for pri in self.priority_steps for queue in queues]

    def _brpop_read(self, **options: Any) -> bool:
        asked, self._asked = self._asked, None
        if asked is None:
            is_delivered: bool = self._guarded(super()._brpop_read, **options)
            return is_delivered
        try:
            queue, item = self._read_claim(asked)
        finally:
            self._in_poll = None
            if hasattr(self, "_flush_brpop_reauth"):  # from kombu 5.7
                self._flush_brpop_reauth()
        self._queue_cycle.rotate(queue)
        tag = self.ledger.hold(queue, item, self)
        self.ledger.begin(tag, TAKEN)
        try:
            message = parse(item)
        except RefusedError as error:
            # Read again and again it would stop its queue.
            self.ledger.refuse(tag, str(error))
            self.ledger.settle(tag)
            raise Empty from None
        message["properties"]["delivery_tag"] = tag
        try:
            self.connection._deliver(message, queue)
        except guard.BROKER_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001 - else it would end the worker
            self.ledger.refuse(tag, f"kombu fails on it: {brief(error)}")
            self.qos.reject(tag)
        return True

    def _size(self, queue: str) -> int:
        try:
            size: int = super()._size(queue)
        except self.ResponseError as error:
            if not is_wrong_type(error):
                raise
            self.ledger.drop(
                f"queue {queue} in Redis is not a list, so no task can wait there: delete that key"
            )
            return 0
        return size

    def _receive_one(self, client: Any) -> Any:
        return self._guarded(super()._receive_one, client)

    def _handle_message(self, client: Any, response: Any) -> Any:
        payload = super()._handle_message(client, response)
        if payload["type"] == b"psubscribe":  # what was sent before has not come this way
            self.revokes.look()
        if isinstance(payload["data"], bytes):
            try:
                parse(payload["data"])
            except RefusedError as error:
                self.ledger.drop(f"dropped a broadcast: {error}")
                payload["data"] = None
        return payload

    def _guarded(self, receive: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Receive as kombu does; a message that fails is dropped."""
        try:
            return receive(*arguments, **options)
        except (Empty, *guard.BROKER_ERRORS):
            raise
        except Exception as error:  # noqa: BLE001 - else it would end the worker
            self.ledger.drop(f"dropped a message without acknowledgement: {brief(error)}")
            raise Empty from None

    def _read_claim(self, asked: Asked) -> tuple[str, bytes]:
        try:
            reply = self.client.parse_response(self.client.connection, asked.command)
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        except self.ResponseError as error:
            self._refuse(error)
            raise Empty from None
        if self._is_refused:
            self._is_refused = False
            say("Redis gives tasks again")
        # All queues at once first, then what comes into the one, then all again.
        self._is_empty = False
        if asked.command != "EVAL":
            if not reply:
                raise Empty
            return asked.queues[0], reply
        number, *rest = reply or (0,)
        if number:
            self.ledger.pauses.seen([asked.queues[number - 1]], ())
            return asked.queues[number - 1], rest[0]
        paused = {asked.queues[place - 1] for place in rest}
        self.ledger.pauses.seen(asked.queues, paused)
        self._is_empty = not paused.issuperset(asked.queues)
        if not self._is_empty:
            self._pause_until = monotonic() + ASK_SECONDS
        raise Empty

    def _refuse(self, error: Exception) -> None:
        """Redis is full, cannot write to its disk, or is a replica: ask again a little later."""
        self._is_empty = False
        self._pause_until = (self._brpop_sent_at or monotonic()) + REFUSED_SECONDS
        # BLMOVE needs memory; what waits is taken all the same.
        if not self._is_refused and not full.is_full(error):
            self._is_refused = True
            say(
                f"Redis gives no tasks, asked each second: {line(error)}. Look at the disk and at "
                "the journal of celery-redis.service on its host"
            )


def install(node: str) -> Ledger:
    """Have all connections to a Redis that this process makes from now on use this transport."""
    backports.install()
    full.install()
    replies.install()
    common.PREFETCH_COUNT_MAX = ahead.MOST_PREFETCH
    Claiming.ledger = Ledger(node)
    Claiming.revokes = Revokes(Claiming.ledger)
    guard.install(Claiming.ledger)
    count_losses(Claiming.ledger)
    metrics.count(Claiming.ledger)
    pauses.install(Claiming.ledger.pauses)
    Claiming.waker = Claiming.ledger.waker = wake.install()
    channels.install(Claiming, wake.Waking)
    return Claiming.ledger
