"""Which tasks this worker has taken from Redis, written down in Redis until they are done.

Each worker has a list per queue, `celery-metal.held:<node>:<queue>`, into which a task is moved
as it leaves its queue, and which it leaves when it is acknowledged: at no moment is it nowhere.
What is in the list of a worker that has died goes back to the front of its queue: by its successor
of the same name when that starts, or by any other worker when the list's owner has been silent
for LEASE_SECONDS. Celery's own way would be to wait for the visibility timeout, hours at best.

Time is only ever compared with the same process's monotonic clock: no clock of a host matters.
"""

import json
import os
import traceback
from collections import Counter
from itertools import count
from secrets import token_hex
from time import monotonic
from typing import Any, NamedTuple

from celery.exceptions import WorkerLostError
from celery.worker import state as worker_state
from celery.worker.request import Request
from kombu.utils.json import dumps
from redis import Redis, RedisError
from redis.exceptions import ResponseError

from celery_metal_runtime.broker import client_of, is_wrong_type
from celery_metal_runtime.messages import RefusedError, crashes_of, name_of, parse, printable
from celery_metal_runtime.notify import line, say, unpatched
from celery_metal_runtime.questions import load_scripts

NODES = "celery-metal.nodes"
BEAT_SECONDS = 5.0
SWEEP_BEATS = 3
LEASE_SECONDS = 90.0
# How long nothing in this worker knows of a claim before it goes back to its queue.
SUSPECT_SECONDS = 2.0
# A task that was running each time its worker or its process died is taken for the cause.
MOST_CRASHES = 10
CRASHES = "celery_metal_crashes"

REASON = "celery_metal_reason"
# Reasons that are logged. A sender can invent new ones without end.
MOST_SAID = 20
# Bytes of what a worker writes down of itself.
LONGEST_LIFE = 65536

# A key of the runtime that is not a list was not written by the runtime: it is replaced.
PUSH = """
local function push(command, key, item)
  local done = redis.pcall(command, key, item)
  if type(done) ~= 'table' or not done.err then return end
  if string.find(done.err, 'WRONGTYPE', 1, true) and string.find(key, 'celery-metal.', 1, true) then
    redis.call('DEL', key)
    redis.call(command, key, item)
    return
  end
  return done
end
"""
# Removing first: a Redis that is full refuses a script that begins with adding.
MOVE = (
    PUSH
    + """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
local failure = push(ARGV[2], KEYS[2], ARGV[3])
if failure then
  push('LPUSH', KEYS[1], ARGV[1])
  return failure
end
return 1
"""
)
# The same: who does not beat is taken for dead, and its tasks run twice.
LIVE = """
local done = redis.pcall('HDEL', KEYS[1], ARGV[1])
if type(done) == 'table' and done.err then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
"""


class Record(NamedTuple):
    """A task that this process has taken: its queue, its bytes, and the channel it came by."""

    queue: str
    item: bytes
    channel: Any


class Change(NamedTuple):
    """What is to become of a task: acknowledged, or (back to) the `push` end of the list `key`.

    Where `key` is not a list, the task goes to the list `dead`.
    """

    push: str = ""
    key: str = ""
    item: bytes = b""
    dead: str = ""


class Ledger:
    """The tasks that one worker process holds.

    No locks: it is used by the consumer's loop, by the pool's threads and by its own thread, and
    each operation on its dictionaries is one step for the interpreter.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self.channel: Any = None
        self.closed = False
        #: How long a channel waits in Redis for a task; None is kombu's second.
        self.wait_seconds: float | None = None
        #: When Redis last failed to answer, in seconds of the monotonic clock, and since when.
        self.failed_at = 0.0
        self.down_since: float | None = None
        self._records: dict[str, Record] = {}
        self._changes: dict[str, Change] = {}
        #: Tags of tasks whose process died, or had to be killed.
        self._lost: set[str] = set()
        #: Tags of what is put aside as soon as it is acknowledged or refused, and why.
        self._refused: dict[str, str] = {}
        #: What Celery is about to take, and whether this worker ends by a failure of its own.
        self._delivered: str | None = None
        self.failed = False
        #: How many messages were put aside or dropped, and what was said of those dropped.
        self.refused = 0
        self._said: set[str] = set()
        #: Tags of claims. No sender can guess one, and settle the claim of another message.
        self._prefix = f"{token_hex(8)}-"
        self._numbers = count(1)
        self._queues: set[str] = set()
        # One for the consumer's process, one for the thread, one for the end.
        self._clients: list[Redis] = []

    def __contains__(self, tag: str) -> bool:
        """Whether the tag is that of a claim of this worker, settled or not."""
        return isinstance(tag, str) and tag.startswith(self._prefix)

    # In the consumer's loop and in the pool

    def open(self, channel: Any, queue: str) -> None:
        """Begin to take tasks from `queue` by `channel`; errors are those of Redis.

        The first time, what a predecessor of the same name has left goes back to the queue; what
        it has left of queues that this worker does not consume, too.
        """
        is_connected_anew = channel is not self.channel
        self.channel = channel
        if not self._clients:
            self._clients = [client_of(channel) for _ in range(3)]
        if is_connected_anew:
            load_scripts(self._clients[0])
        if queue not in self._queues:
            left = [] if self._queues else self._left_queues(self._clients[0])
            for one in dict.fromkeys([queue, *left]):
                moved = self._give_back(self._clients[0], self.node, one)
                if moved:
                    say(f"{moved} tasks of this worker's predecessor are back in {one}")
            self._queues.add(queue)
            self._live(self._clients[0], 0)
            if len(self._queues) == 1:
                # Of the operating system, under gevent too: it beats while a task computes.
                unpatched("_thread", "start_new_thread")(Beat(self).run, ())

    def _left_queues(self, client: Any) -> list[str]:
        """The queues of a predecessor of the same name, which has not told of its end."""
        try:
            return queues_of(client.hget(self._key(NODES), self.node)) or []
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            return []  # and it is replaced by the first beat

    def held_key(self, queue: str, node: str = "") -> str:
        """The list of the tasks that `node`, this one by default, has taken from `queue`."""
        return self._key(f"celery-metal.held:{node or self.node}:{queue}")

    def hold(self, queue: str, item: bytes, channel: Any) -> str:
        """Record a claimed task; return its tag, which no sender can choose."""
        tag = f"{self._prefix}{next(self._numbers)}"
        self._records[tag] = Record(queue, item, channel)
        return tag

    def deliver(self, tag: str | None) -> None:
        """Note which task Celery is taking; None once it has."""
        self._delivered = tag

    def refuse(self, tag: str, reason: str, *, is_task: bool = False) -> None:
        """Make a message a dead letter as soon as it is acknowledged or rejected."""
        if record := self._records.get(tag):
            what = f"cannot run {name_of(record.item)}" if is_task else ""
            self._refused[tag] = self._tell_refused(record.queue, reason, what)
        else:
            self.drop(f"dropped a message without acknowledgement: {reason}")

    def drop(self, what: str) -> None:
        """Count a dropped message; each reason is logged once."""
        self.refused += 1
        if what not in self._said and len(self._said) < MOST_SAID:
            self._said.add(what)
            say(f"{what}. Further ones are only counted, in the status of this worker")

    def settle(self, tag: str) -> None:
        """A task is acknowledged: done, or thrown away."""
        self._lost.discard(tag)
        record = self._records.get(tag)
        if record and (reason := self._refused.pop(tag, None)):
            self._change(tag, Change("LPUSH", self._dead(record.queue), noted(record.item, reason)))
        else:
            self._change(tag, Change())

    def lose(self, tag: str) -> None:
        """The process in which a task ran is no more; what becomes of the task follows."""
        if tag in self._records:
            self._lost.add(tag)

    def requeue(self, tag: str) -> None:
        """A task goes back to its queue, behind those that wait there."""
        crashed = tag in self._lost
        self._lost.discard(tag)
        if record := self._records.get(tag):
            change = self._back("LPUSH", record.queue, record.item, crashed=crashed)
            self._change(tag, change)

    def bury(self, queue: str, item: bytes, reason: str) -> None:
        """Put aside what is no task: read again and again it would stop its queue."""
        change = self._no_task(queue, item, reason)
        self._move(self._clients[0], self.held_key(queue), item, change)

    def close(self) -> None:
        """Give back all that is held; errors are those of Redis.

        For a worker that ends. May be called from any thread.
        """
        if self.closed or not self._clients:
            return
        self.closed, client = True, self._clients[2]
        self.catch_up(client)
        begun = {*_active_tags(), self._delivered} if self.failed else set()
        causes = Counter(one.item for tag, one in list(self._records.items()) if tag in begun)
        for queue in self._queues:
            self._give_back(client, self.node, queue, causes)
        client.hdel(self._key(NODES), self.node)

    def _change(self, tag: str, change: Change) -> None:
        if tag not in self._records:
            return
        self._changes[tag] = change
        # While Redis does not answer, each attempt would stop the loop for COMMAND_SECONDS.
        if self.down_since is None:
            try:
                self._apply(self._clients[0], tag)
            except RedisError as error:
                self.fail(error)

    def _apply(self, client: Any, tag: str) -> None:
        # Taken out first: of two threads one finds it.
        record, change = self._records.get(tag), self._changes.pop(tag, None)
        if record is None or change is None:
            return
        try:
            moved = self._move(client, self.held_key(record.queue), record.item, change)
        except RedisError:
            self._changes.setdefault(tag, change)
            raise
        # Only if it has not been taken anew in the meantime.
        if self._records.get(tag) is record:
            self._records.pop(tag, None)
        if not moved:
            say(
                f"{name_of(record.item)} was not held any more: this worker was silent for more "
                f"than {LEASE_SECONDS:.0f} s, or cut off from Redis, and its task may run twice. "
                "Look at this host's load and network; see 'A task may run twice' in docs/safety.md"
            )

    @staticmethod
    def _move(client: Any, held: str, item: bytes, change: Change) -> int:
        moved: int
        if change.push:
            try:
                moved = client.eval(MOVE, 2, held, change.key, item, change.push, change.item)
            except ResponseError as error:
                if not change.dead or not is_wrong_type(error):
                    raise
                reason = f"{printable(change.key)} in Redis is not a list"
                say(
                    f"{name_of(item)} cannot go back to its queue: {reason}. It is a dead letter "
                    f"now: redis-cli lrange {change.dead} 0 -1. Fix: delete that key"
                )
                dead = (change.dead, item, "LPUSH", noted(item, reason))
                moved = client.eval(MOVE, 2, held, *dead)
        else:
            moved = client.lrem(held, 1, item)
        return moved

    # In the thread of its own, or at the end

    def fail(self, error: Exception) -> None:
        """Redis has not answered; until it does, acknowledgements are kept."""
        self.failed_at = monotonic()
        if self.down_since is None:
            self.down_since = self.failed_at
            say(
                f"Redis does not answer; acknowledgements are kept until it does: {line(error)}. "
                "See celery-redis.service on its host"
            )

    def catch_up(self, client: Any) -> None:
        """Have Redis take what it has not taken in time."""
        for tag in list(self._changes):
            self._apply(client, tag)
        if self.down_since is not None:
            self.down_since = None
            say("Redis answers again; all acknowledgements are in")

    def _give_back(
        self, client: Any, node: str, queue: str, causes: Counter[bytes] | None = None
    ) -> int:
        """Move all that `node` holds to the front of `queue`, in the old order; how many.

        `causes` are those of them that count as there when their worker failed; None: all.
        """
        held, moved = self.held_key(queue, node), 0
        try:
            items = client.lrange(held, 0, -1)
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            client.delete(held)
            say(f"{printable(held)} in Redis was not a list and was deleted")
            return 0
        # The newest is at the left end: put back first, it is the last to be taken.
        for item in items:
            crashed = causes is None or causes[item] > 0
            if causes and crashed:
                causes[item] -= 1
            change = self._back("RPUSH", queue, item, crashed=crashed)
            moved += self._move(client, held, item, change)
        return moved

    def _back(self, push: str, queue: str, item: bytes, *, crashed: bool = False) -> Change:
        """The way back to the queue; after too many crashes, the way out."""
        try:
            parse(item)
            task = json.loads(item)
            headers, properties = task.get("headers") or {}, task["properties"]
            info = properties.get("delivery_info") or {}
            headers["redelivered"] = info["redelivered"] = True
            task["headers"], properties["delivery_info"] = headers, info
            if crashed:
                headers[CRASHES] = crashes = crashes_of(headers.get(CRASHES)) + 1
                if crashes > MOST_CRASHES:
                    dead = self._dead(queue)
                    reason = f"it was there at {crashes} ends of its process or its worker"
                    say(
                        f"task {name_of(item)} was{reason[6:]}: it is kept in the list {dead}. "
                        "Look for the cause (memory, time_limit_seconds), then send it back: see "
                        "'Tasks that were put aside' in docs/safety.md"
                    )
                    return Change("LPUSH", dead, noted(item, reason))
            priority = self.channel._get_message_priority(task, reverse=False)
            key = self._key(self.channel._q_for_pri(queue, priority))
            return Change(push, key, _encoded(task), self._dead(queue))
        except RefusedError as error:
            return self._no_task(queue, item, str(error))

    def _no_task(self, queue: str, item: bytes, reason: str) -> Change:
        """The way out for what is no task."""
        self._tell_refused(queue, reason)
        return Change("LPUSH", self._dead(queue), noted(item, reason))

    def _tell_refused(self, queue: str, reason: str, what: str = "") -> str:
        self.refused += 1
        dead = self._dead(queue)
        what = what or f"refused a message in queue {queue}"
        say(f"{what}: {reason}. It is a dead letter now: redis-cli lrange {dead} 0 -1")
        return reason

    def _dead(self, queue: str) -> str:
        return self._key(f"celery-metal.dead:{queue}")

    def _live(self, client: Any, beat: int) -> None:
        client.eval(LIVE, 1, self._key(NODES), self.node, self._life(beat))

    def _life(self, beat: int) -> str:
        # The process's number: a successor's first beat must differ from its predecessor's last.
        return json.dumps([beat, os.getpid(), sorted(self._queues)])

    def _key(self, name: str) -> str:
        prefix: str = self.channel.global_keyprefix
        return prefix + name


class Beat:
    """The thread that tells that a ledger's owner lives, and looks for tasks that nobody has."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.number = 0
        self.last = monotonic()
        # What nobody seems to have, and since when: only what stays so is given back.
        self.suspects: dict[object, float] = {}
        self.lives: dict[bytes, tuple[bytes, float]] = {}
        self.failure = ""

    def run(self) -> None:
        """Beat until the ledger is closed."""
        ledger, pause = self.ledger, unpatched("time", "sleep")
        client = ledger._clients[1]
        while not ledger.closed:
            pause(BEAT_SECONDS)
            if ledger.closed:
                return
            now = monotonic()
            if now - self.last > 3 * BEAT_SECONDS:
                self.lives.clear()  # this process has stood still, and maybe the others as well
            self.last = now
            try:
                self.beat(client, now)
            except RedisError as error:
                # No answer for oneself says nothing about the others.
                self.lives.clear()
                ledger.fail(error)
            except Exception as error:  # noqa: BLE001 - others run the tasks of who beats no more
                self._tell(error)

    def _tell(self, error: Exception) -> None:
        """Say what has failed, once."""
        failure = f"{type(error).__name__}: {line(error)}"
        if failure != self.failure:
            self.failure = failure
            say(
                f"a beat of this worker has failed: {failure}. The worker goes on, and beats on. "
                "This is a mistake in celery-metal: report it with its traceback, which follows.\n"
                + traceback.format_exc().rstrip()
            )

    def beat(self, client: Any, now: float) -> None:
        """One beat at `now`, in seconds of the monotonic clock; errors are those of Redis."""
        ledger = self.ledger
        self.number += 1
        ledger._live(client, self.number)
        ledger.catch_up(client)
        self._reconcile(client, now)
        if self.number % SWEEP_BEATS == 0:
            self._sweep(client, now)

    def _reconcile(self, client: Any, now: float) -> None:
        """Give back what this worker holds without any part of it knowing about it."""
        ledger, before, self.suspects = self.ledger, self.suspects, {}
        active = _active_tags()
        for tag, record in list(ledger._records.items()):
            # Celery forgets what has not begun when it loses the connection that it came by.
            if record.channel is not ledger.channel and tag not in active:
                # One that has just ended is acknowledged a turn of the loop later.
                since = before.get(tag, now)
                if now - since >= SUSPECT_SECONDS:
                    change = ledger._back("RPUSH", record.queue, record.item)
                    ledger._changes.setdefault(tag, change)
                    ledger._apply(client, tag)
                else:
                    self.suspects[tag] = since
        for queue in list(ledger._queues):
            self._find_orphans(client, queue, before, now)

    def _find_orphans(
        self, client: Any, queue: str, before: dict[object, float], now: float
    ) -> None:
        """Look for tasks that were moved to the list while their reply was lost."""
        ledger, held = self.ledger, self.ledger.held_key(queue)
        known = {record.item for record in list(ledger._records.values())}
        if client.llen(held) <= sum(r.queue == queue for r in list(ledger._records.values())):
            return
        items = client.lrange(held, 0, -1)
        known |= {record.item for record in list(ledger._records.values())}
        for item in items:
            if item in known:
                continue
            since = before.get((queue, item), now)
            # The reply to a request that is older than the suspicion may still be unread.
            if since < now and not ledger.channel.may_be_claiming_since(since):
                ledger._move(client, held, item, ledger._back("RPUSH", queue, item))
            else:
                self.suspects[queue, item] = since

    def _sweep(self, client: Any, now: float) -> None:
        """Give back what silent workers hold."""
        nodes, me = self.ledger._key(NODES), self.ledger.node.encode()
        before, self.lives = self.lives, {}
        for node, life in client.hgetall(nodes).items():
            if node != me:
                last, since = before.get(node, (b"", now))
                self.lives[node] = (life, since if last == life else now)
        for node, (life, since) in self.lives.items():
            if now - since > LEASE_SECONDS:
                self._take_over(client, node.decode(errors="replace"), life, now - since)
                client.hdel(nodes, node)

    def _take_over(self, client: Any, node: str, life: bytes, silence: float) -> None:
        """Give back what a silent worker holds."""
        name = printable(node)
        if (queues := queues_of(life)) is None:
            # Not written by a worker of this kit: it must not keep the others from their turn.
            say(
                f"{name} is silent for {silence:.0f} s, and its line in {NODES} cannot be read: "
                f"it is removed. If celery-metal.held:{name}:* has tasks, start that worker: it "
                "gives them back"
            )
            return
        moved = sum(self.ledger._give_back(client, node, queue) for queue in queues)
        say(
            f"{name} is silent for {silence:.0f} s: {moved} tasks back to the queue; look at its "
            "host, and at that worker's journal"
        )


def queues_of(life: bytes | None) -> list[str] | None:
    """The queues in a worker's note; None when the note is not valid."""
    try:
        if life is None or len(life) > LONGEST_LIFE:
            return None
        _, _, queues = json.loads(life)
        return queues if all(type(one) is str for one in queues) else None
    except (ValueError, TypeError, RecursionError):
        return None


def _encoded(task: Any) -> bytes:
    """JSON that is no longer than that of any producer."""
    try:
        return json.dumps(task, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a pair
        return json.dumps(task, separators=(",", ":")).encode()


def noted(item: bytes, reason: str) -> bytes:
    """The message with the reason in its headers, where it has headers."""
    try:
        message = parse(item)
        message["headers"][REASON] = reason
        kept: bytes = dumps(message).encode()
        return kept
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is kept as it is
        return item


def count_losses(ledger: Ledger) -> None:
    """Have Celery tell the ledger of tasks whose process died, or was killed at its time limit.

    From its side of the transport a task that asks to be requeued looks the same.
    """
    on_failure, on_timeout = Request.on_failure, Request.on_timeout

    def failed(self: Request, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        error = getattr(exc_info.exception, "exc", exc_info.exception)  # as Celery unwraps it
        # A SystemExit is a process that has ended, too.
        if isinstance(error, (WorkerLostError, SystemExit)):
            ledger.lose(self._message.delivery_tag)
        return on_failure(self, exc_info, *args, **kwargs)

    def timed_out(self: Request, soft: bool, timeout: float) -> Any:
        if not soft:
            ledger.lose(self._message.delivery_tag)
        return on_timeout(self, soft, timeout)

    Request.on_failure, Request.on_timeout = failed, timed_out


def _active_tags() -> set[str]:
    """The delivery tags of all tasks that run in this worker."""
    for _ in range(10):
        try:
            return {request._message.delivery_tag for request in worker_state.active_requests}
        except RuntimeError:  # the set has changed under the iteration
            continue
    return {request._message.delivery_tag for request in list(worker_state.active_requests)}
