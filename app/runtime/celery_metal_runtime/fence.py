"""Of all Beats one schedules, who holds a lock in Redis; the others stand by.

The lock is redis-py's own, with a timeout that its holder extends. No clock decides what is sent:
a task is pushed by a script that first compares the lock's token, so that who was paused or cut off
for however long sends nothing when it goes on. The same step writes when the task's entry last
ran: it is sent and written down, or neither.
"""

import threading
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from kombu import Queue
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps
from redis import RedisError
from redis.exceptions import LockError, ResponseError
from redis.lock import Lock

from celery_metal_runtime import canary, channels
from celery_metal_runtime.broker import client_of, is_wrong_type
from celery_metal_runtime.notify import line, say

if TYPE_CHECKING:
    from celery import Celery
    from redis import Redis

LOCK = "celery-metal.beat.lock"
STATE = "celery-metal.beat"
LOCK_SECONDS = 30.0
EXTEND_SECONDS = 5.0
# The holder stops so long before the others can begin.
MARGIN_SECONDS = 2.0
# A queue without consumers: its messages show that this Beat can send. Redis deletes them at once.
PROOF = channels.CANARY + "beat"
PROOF_EXPIRES_MS = 1

# A value that is not a hash was not written by Beat: it is replaced.
NOTE = """
local function note(key, name, record)
  local done = redis.pcall('HSET', key, name, record)
  if type(done) == 'table' and done.err then
    redis.call('DEL', key)
    redis.call('HSET', key, name, record)
  end
end
"""
# Adding first: a Redis that is full refuses it before anything is written.
PUSH = (
    NOTE
    + """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[2])
if ARGV[3] ~= '' then redis.call('PEXPIRE', KEYS[2], ARGV[3]) end
if #KEYS > 2 then note(KEYS[3], ARGV[4], ARGV[5]) end
return 1
"""
)
# The token, how many names and records follow, these in pairs, and the names that are to go.
SAVE = (
    NOTE
    + """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local last = 2 + 2 * tonumber(ARGV[2])
for i = 3, last, 2 do note(KEYS[2], ARGV[i], ARGV[i + 1]) end
for i = last + 1, #ARGV do redis.pcall('HDEL', KEYS[2], ARGV[i]) end
return 1
"""
)


class NotHeldError(Exception):
    """The lock is not this Beat's any more; nothing was sent, nothing written."""


#: No answer from Redis, or none for who does not hold the lock: what was asked for is not done.
UNANSWERED = (RedisError, OperationalError, NotHeldError)


class Fence:
    """The lock, and what only its holder may write; times are of the monotonic clock."""

    def __init__(self, app: "Celery") -> None:
        self.app = app
        #: When Redis last failed to answer, and since when.
        self.failed_at = 0.0
        self.down_since: float | None = None
        self.error = ""
        #: When something was last sent.
        self.sent_at = 0.0
        #: Entry and record to write with the next push.
        self.pending: tuple[str, str] | None = None
        #: From the lock's taking to the end of all that was done under it, lost or not.
        self.token: bytes | None = None
        self._held_until = self._extend_due = 0.0
        self._client: Redis | None = None
        self._lock: Lock | None = None
        self._prefix = ""
        self._is_proving = False
        # The loop takes and releases, the watching thread extends.
        self._mutex = threading.Lock()

    def is_held(self) -> bool:
        """Whether the lock is this Beat's for certain, if Redis keeps it for as long as it says."""
        return monotonic() < self._held_until

    def take(self) -> bool:
        """Take the lock if it is free, or still held; errors are those of Redis."""
        with self._mutex:
            began = monotonic()
            if self.is_held() and self._extend(began):
                return True
            self.token = None
            lock = self._connect() if self._lock is None else self._lock
            if not lock.acquire():
                self._drop_if_no_lock()
                return False
            self.token = lock.local.token
            self._hold(began)
            return True

    def _drop_if_no_lock(self) -> None:
        """Delete a lock without a timeout: no Beat wrote it."""
        key = self._key(LOCK)
        if self._redis().pttl(key) == -1 and self._redis().delete(key):
            say(f"schedule: {key} in Redis had no timeout, so no Beat wrote it: deleted")

    def extend(self, now: float) -> None:
        """Extend the lock when it is time to; called again and again while it is held."""
        if not self.token or now < self._extend_due:
            return
        with self._mutex:
            if not self.token or not self.is_held():
                return
            try:
                self._extend(monotonic())
            except UNANSWERED as error:
                self.fail(error)

    def release(self) -> None:
        """Let another Beat take the lock at once; without Redis, when its timeout is over."""
        with self._mutex:
            held, self._held_until, self.token = self.token, 0.0, None
            if held and self._lock:
                try:
                    self._lock.release()
                except UNANSWERED as error:
                    say(f"schedule: the lock was not given back: {line(error)}")

    def fail(self, error: Exception) -> None:
        """Redis has not answered."""
        self.failed_at, self.error = monotonic(), line(error)
        if self.down_since is None:
            self.down_since = self.failed_at
            say(
                "schedule: Redis does not answer, and nothing is sent until it does: "
                f"{self.error}. See celery-redis.service on its host"
            )

    def answered(self) -> None:
        """Redis has answered."""
        if self.down_since is not None:
            self.down_since = None
            say("schedule: Redis answers again")

    def push(self, key: str, item: str, expires_ms: int | None) -> None:
        """Add a task to the list `key`, and write what is pending.

        NotHeldError when the lock is another's; else errors are those of Redis, and what was done
        is known only by what is there.
        """
        keys, arguments = [self._key(LOCK), key], [self.token, item, expires_ms or ""]
        if self.pending:
            keys.append(self._key(STATE))
            arguments += self.pending
        self._run(PUSH, keys, arguments)
        self.pending = None
        self.sent_at = monotonic()

    def prove(self) -> None:
        """Send a message as a due task is sent, to show that this Beat can.

        Without the lock, all is done up to the script in Redis. Errors are those of Redis; any
        other one means that this Beat can send nothing.
        """
        self._is_proving = True
        try:
            # Not of a pool, whose connections an app may have made while it was loaded.
            with self.app.connection_for_write() as connection:
                self.app.send_task(
                    canary.TASK,
                    queue=Queue(PROOF, exchange="", routing_key=PROOF),
                    exchange="",  # whatever the app's task_routes say
                    connection=connection,
                    retry=False,
                    ignore_result=True,
                )
        except NotHeldError:
            if self.is_held():
                raise
        finally:
            self._is_proving = False

    def fences(self) -> bool:
        """Whether what is sent now goes by the lock: all but what an app sends as it is loaded."""
        return self.token is not None or self._is_proving

    def read(self) -> dict[str, bytes]:
        """Name of each entry to what was written of it; errors are those of Redis."""
        try:
            # Of kombu's client, which decodes nothing.
            found = cast("dict[bytes, bytes]", self._redis().hgetall(self._key(STATE)))
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            return {}  # and it is replaced by the next record
        return {name.decode(errors="replace"): record for name, record in found.items()}

    def save(self, records: Mapping[str, str], gone: Iterable[str] = ()) -> None:
        """Write records of entries, and remove those that are gone; errors as of `push`."""
        pairs = [word for pair in records.items() for word in pair]
        arguments = [self.token, len(records), *pairs, *gone]
        if len(arguments) > 2:
            self._run(SAVE, [self._key(LOCK), self._key(STATE)], arguments)

    def _run(self, script: str, keys: list[str], arguments: list[Any]) -> None:
        if not self.is_held() or not self._redis().eval(script, len(keys), *keys, *arguments):
            self._held_until = 0.0
            raise NotHeldError("another Beat holds the lock")

    def _redis(self) -> "Redis":
        if self._client is None:
            raise NotHeldError("the lock was never taken")
        return self._client

    def _connect(self) -> Lock:
        with self.app.connection_for_write() as connection:
            channel = connection.channel()
            self._client, self._prefix = client_of(channel), channel.global_keyprefix
        # Not of one thread: the watching one extends what the loop has taken.
        self._lock = Lock(
            self._redis(),
            self._key(LOCK),
            timeout=LOCK_SECONDS,
            blocking=False,
            thread_local=False,
        )
        return self._lock

    def _extend(self, began: float) -> bool:
        if self._lock is None:
            return False
        try:
            self._lock.extend(LOCK_SECONDS, replace_ttl=True)
        except LockError:
            say("schedule: the lock is not this Beat's any more")
            self._held_until = 0.0
            return False
        self._hold(began)
        return True

    def _hold(self, began: float) -> None:
        self._held_until = began + LOCK_SECONDS - MARGIN_SECONDS
        self._extend_due = began + EXTEND_SECONDS
        self.answered()

    def _key(self, name: str) -> str:
        return self._prefix + name


class Fenced(channels.Careful):
    """What a channel does differently while a Beat schedules; mixed into kombu's two kinds."""

    fence: Fence
    # Each task is pushed by itself.
    supports_batch_publish = False

    def _put(self, queue: str, message: Any, **kwargs: Any) -> None:
        if not self.fence.fences():
            super()._put(queue, message, **kwargs)
            return
        priority = self._get_message_priority(message, reverse=False)
        key = self.global_keyprefix + self._q_for_pri(queue, priority)
        # Before kombu 5.7 queues on Redis do not expire.
        expires = PROOF_EXPIRES_MS if queue == PROOF else getattr(self, "_expires", {}).get(queue)
        self.fence.push(key, dumps(message), expires)


def install(app: "Celery") -> Fence:
    """Have all that this process sends go through a fence."""
    Fenced.fence = Fence(app)
    channels.install(Fenced)
    return Fenced.fence
