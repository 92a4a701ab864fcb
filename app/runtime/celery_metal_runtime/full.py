"""What a worker does while Redis is full: it goes on within the room that its tasks leave.

A result is kept although Redis takes nothing more if it is no longer than the message that goes
when its task is acknowledged. A longer one waits until there is room, as Celery has it wait while
Redis is away; its task is held until then. One that can never fit fails its task (see `unfit`).
The end of a header task is counted in its chord alike: Celery gives up at the first error, and the
chord never ends. A task that asks to run again, and that Redis does not take, goes back to its
queue as it is: Celery would drop it.
"""

import time
from typing import Any

from celery import Task, current_task, states
from celery.backends.redis import RedisBackend
from celery.exceptions import BackendStoreError, Reject
from celery.utils.time import get_exponential_backoff_interval
from kombu.exceptions import OperationalError
from kombu.messaging import Producer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from celery_metal_runtime.unfit import LARGE, Refusals

# Until a task that went back may run again.
PAUSE_SECONDS = 1
# A message of Celery's is longer than this without its arguments.
BARE = 512
# Removing first: a Redis that is full refuses a script that begins with adding.
KEEP = """
redis.call('DEL', KEYS[1])
if ARGV[2] == '0' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
"""


def is_full(error: BaseException) -> bool:
    """Whether Redis has refused because its maxmemory is reached; redis-py 8 cuts off the OOM."""
    return isinstance(error, ResponseError) and "used memory > 'maxmemory'" in str(error)


def install() -> None:
    """Have this process keep its results, and tasks that run again, in a Redis that is full."""
    keep, is_safe = RedisBackend._set, RedisBackend.exception_safe_to_retry
    retry, publish = Task.retry, Producer._publish
    count = RedisBackend.on_chord_part_return
    refusals = Refusals()

    def keep_in_room(self: RedisBackend, key: Any, value: Any, *expires: Any) -> None:
        # The size of a chord is a number, before Celery 5.7.
        size = len(value) if isinstance(value, str | bytes) else 0
        is_large = size > LARGE
        if is_large:
            refusals.check(self.client, key, size, was_cut_off=False)
        try:
            keep(self, key, value, *expires)
            if is_large:
                refusals.forget(key)
        except RedisConnectionError:
            if is_large:
                refusals.check(self.client, key, size, was_cut_off=True)
            raise
        except ResponseError as error:
            if not is_full(error) or size > _room():
                raise
            seconds = self.expires if expires in ((), (None,)) else expires[0]
            self.client.eval(KEEP, 1, key, value, int(seconds or 0))

    def count_in_room(
        self: RedisBackend, request: Any, state: str, result: Any, *args: Any, **kwargs: Any
    ) -> Any:
        retries = 0
        while True:
            try:
                return count(self, request, state, result, *args, **kwargs)
            except Exception as error:
                # A header task counts once, however often it is tried.
                if not self.exception_safe_to_retry(error):
                    raise
                try:
                    size = len(
                        self.encode([1, request.id, state, self.encode_result(result, state)])
                    )
                    if size > LARGE:
                        was_cut_off = isinstance(error, RedisConnectionError)
                        refusals.check(self.client, request.id, size, was_cut_off=was_cut_off)
                except BackendStoreError as never:
                    state, result = states.FAILURE, never
                    continue
                self._sleep(_pause(self, retries))
                retries += 1

    def is_safe_or_full(self: RedisBackend, error: Exception) -> bool:
        return is_full(error) or is_safe(self, error)

    def retry_or_go_back(self: Task, *args: Any, **kwargs: Any) -> Any:
        try:
            return retry(self, *args, **kwargs)
        except Reject as reject:
            # Celery's own, of a message that could not be sent.
            if not isinstance(reject.reason, OperationalError):
                raise
            time.sleep(PAUSE_SECONDS)
            raise Reject(reject.reason, requeue=True) from None

    def publish_or_reconnect(self: Producer, *args: Any, **kwargs: Any) -> Any:
        try:
            return publish(self, *args, **kwargs)
        except AttributeError:
            # kombu has replaced the connection to declare the queue, and goes on with what it has
            # closed; of this error it knows that it has to try again.
            if self.channel.connection is not None:
                raise
            raise RedisConnectionError("the connection was replaced") from None

    RedisBackend._set, RedisBackend.exception_safe_to_retry = keep_in_room, is_safe_or_full
    RedisBackend.on_chord_part_return = count_in_room
    Task.retry, Producer._publish = retry_or_go_back, publish_or_reconnect


def _pause(backend: RedisBackend, retries: int) -> float:
    """Seconds until Redis is asked again, as Celery has them for results."""
    base, most = backend.base_sleep_between_retries_ms, backend.max_sleep_between_retries_ms
    milliseconds: int = get_exponential_backoff_interval(base, retries, most, full_jitter=True)
    return milliseconds / 1000


def _room() -> int:
    """At most what the message of the task that runs here takes in Redis."""
    if not current_task:
        return BARE
    request = current_task.request
    return BARE + len(repr(request.args)) + len(repr(request.kwargs))
