"""Which tasks this worker has taken from Redis, written down in Redis until they are done.

Each worker has a list per queue, `celery-metal.held:<node>:<queue>`, into which a task is moved
as it leaves its queue, and which it leaves when it is acknowledged: at no moment is it nowhere.
What is in the list of a worker that has died goes back to the front of its queue: by its successor
of the same name when that starts, or by any other worker when the list's owner has been silent
for LEASE_SECONDS. Celery's own way would be to wait for the visibility timeout, hours at best.

Time is only ever compared with the same process's monotonic clock: no clock of a host matters.
"""

import hashlib
import json
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, count
from secrets import token_hex
from time import monotonic, time
from typing import Any, NamedTuple

from billiard.exceptions import Terminated
from celery.exceptions import WorkerLostError
from celery.worker import state as worker_state
from celery.worker.request import Request
from kombu.utils.compat import detect_environment
from redis import Redis, RedisError
from redis.exceptions import ResponseError

from celery_metal_runtime.broker import client_of, is_wrong_type
from celery_metal_runtime.dead import CRASHES, UNTOLD, noted, stub
from celery_metal_runtime.messages import (
    LARGEST,
    RefusedError,
    crashes_of,
    name_of,
    parse,
    printable,
)
from celery_metal_runtime.metrics import METRICS, Metrics
from celery_metal_runtime.notify import line, say, unpatched
from celery_metal_runtime.pauses import Pauses
from celery_metal_runtime.questions import load_scripts
from celery_metal_runtime.sent import SENT
from celery_metal_runtime.twins import Twins
from celery_metal_runtime.wake import Waker

NODES = "celery-metal.nodes"
BEAT_SECONDS = 5.0
SWEEP_BEATS = 3
UNTOLD_BEATS = 3
LEASE_SECONDS = 90.0
# How long nothing in this worker knows of a claim before it goes back to its queue.
SUSPECT_SECONDS = 2.0
# A task that was running each time its worker or its process died is taken for the cause.
MOST_CRASHES = 10
# What a task that was there at a crash before has in its message.
CRASHED = f'"{CRASHES}"'.encode()
# What is written down of it then: that it is being taken, that the pool has it, that it runs.
TAKEN, GIVEN, BEGUN = "taken:", "given:", "begun:"
# Tasks that go back to their queue in one request, and their bytes.
AT_ONCE, MOST_BYTES = 200, 4 << 20
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
if KEYS[3] then push('LPUSH', KEYS[3], ARGV[4] or ARGV[3]) end
return 1
"""
)
# The same for many at once, which go to one list; -1 for each that could not.
MOVE_MANY = (
    PUSH
    + """
local moved = {}
for i = 2, #ARGV, 2 do
  local count = redis.call('LREM', KEYS[1], 1, ARGV[i])
  if count > 0 and push(ARGV[1], KEYS[2], ARGV[i + 1]) then
    push('LPUSH', KEYS[1], ARGV[i])
    count = -1
  end
  moved[#moved + 1] = count
end
return moved
"""
)
# The same: who does not beat is taken for dead, and its tasks run twice.
LIVE = """
local before = redis.pcall('HGET', KEYS[1], ARGV[1])
local done = redis.pcall('HDEL', KEYS[1], ARGV[1])
if type(done) == 'table' and done.err then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return type(before) == 'string' and before
"""


class Record(NamedTuple):
    """A task that this process has taken: its queue, its bytes, and the channel it came by."""

    queue: str
    item: bytes
    channel: Any


class Change(NamedTuple):
    """What is to become of a task: acknowledged, or (back to) the `push` end of the list `key`.

    Where `key` is not a list, the task goes to the list `dead`. What goes to the list `untold` too,
    as `stub` if that is not empty, has failed, and those who wait for its result do not know yet.
    """

    push: str = ""
    key: str = ""
    item: bytes = b""
    dead: str = ""
    untold: str = ""
    stub: bytes = b""

    def arguments(self, held: str, item: bytes) -> list[Any]:
        """The arguments of EVAL for the script MOVE, which takes `item` out of the list `held`."""
        keys = [held, self.key, *([self.untold] if self.untold else [])]
        more = [self.stub] if self.stub else []
        return [MOVE, len(keys), *keys, item, self.push, self.item, *more]


class Ledger:
    """The tasks that one worker process holds.

    No locks: it is used by the consumer's loop, by the pool's threads and by its own thread, and
    each operation on its dictionaries is one step for the interpreter.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self.channel: Any = None
        self.closed = False
        #: How many tasks it may hold; None: any number.
        self.most_claims: int | None = None
        #: No more tasks are taken for now.
        self.paused = False
        #: How many tasks have ended with their process; see `leftovers`.
        self.losses = 0
        #: Has the consumer's loop turn.
        self.waker: Waker | None = None
        #: How long a channel waits in Redis for a task; None is kombu's second.
        self.wait_seconds: float | None = None
        #: When Redis last failed to answer, in seconds of the monotonic clock, and since when.
        self.failed_at = 0.0
        self.down_since: float | None = None
        self._records: dict[str, Record] = {}
        self._changes: dict[str, Change] = {}
        #: Tags of tasks whose process died, or had to be killed.
        self._lost: set[str] = set()
        #: Tags of tasks that run here and were there at a crash before, as written down in Redis.
        self._begun: dict[str, list[str]] = {}
        #: Tags of what is put aside as soon as it is acknowledged or refused, and why.
        self._refused: dict[str, str] = {}
        #: What Celery is about to take, and whether this worker ends by a failure of its own.
        self._delivered: str | None = None
        self.failed = False
        self.twins, self.pauses, self.metrics = Twins(node), Pauses(self), Metrics()
        #: How many messages were put aside or dropped, and what was said of those dropped.
        self.refused = 0
        #: Whether there may be dead letters of which nobody has been told; see `verdict`.
        self.has_untold = True
        self._said: set[str] = set()
        #: Tags of claims. No sender can guess one, and settle the claim of another message.
        self._prefix = f"{token_hex(8)}-"
        self._numbers = count(1)
        self._queues: set[str] = set()
        #: At the end: what was claimed, and so has been parsed already.
        self._parsed: set[bytes] = set()
        self._is_beating = False
        # One for the consumer's process, one for the thread, one for the end.
        self._clients: list[Redis] = []

    def __contains__(self, tag: str) -> bool:
        """Whether the tag is that of a claim of this worker, settled or not."""
        return isinstance(tag, str) and tag.startswith(self._prefix)

    @property
    def is_settled(self) -> bool:
        """Whether Redis knows of all that is done."""
        return self.down_since is None and not self._changes

    # In the consumer's loop and in the pool

    def open(self, channel: Any, queue: str) -> None:
        """Begin to take tasks from `queue` by `channel`; errors are those of Redis.

        The first time, what a predecessor of the same name has left goes back to the queue; what
        it has left of queues that this worker does not consume, too.
        """
        is_connected_anew = channel is not self.channel
        self.channel = channel
        if not self._clients:
            # Under gevent each greenlet acknowledges by itself, else the loop does for all.
            is_green = detect_environment() != "default"
            self._clients = [client_of(channel, is_shared=is_green), client_of(channel)]
            self._clients.append(client_of(channel))
        if is_connected_anew:
            load_scripts(self._clients[0])
        if queue not in self._queues:
            client = self._clients[0]
            if self.twins.token is None:
                read = partial(client.hget, self.key(NODES), self.node)
                self.twins.enter(self, client, read, BEAT_SECONDS)
            left = [] if self._queues else self._left_queues(client)
            for one, moved in self._give_back_all(client, self.node, [queue, *left]).items():
                if moved:
                    say(f"{moved} tasks of this worker's predecessor are back in {one}")
            if not self._queues:
                client.delete(self._begun_key(self.node))
            self._queues.add(queue)
            self._live(client, 0)
            if not self._is_beating:
                self._is_beating = True
                # Of the operating system, under gevent too: it beats while a task computes.
                unpatched("_thread", "start_new_thread")(Beat(self).run, ())

    def _left_queues(self, client: Any) -> list[str]:
        """The queues of a predecessor of the same name, which has not told of its end."""
        try:
            return queues_of(client.hget(self.key(NODES), self.node)) or []
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            return []  # and it is replaced by the first beat

    def untold_key(self, queue: str) -> str:
        """The list of dead letters of which nobody has been told."""
        return self.key(f"{UNTOLD}{queue}")

    def untold_keys(self) -> list[str]:
        """Those of the queues that this worker consumes."""
        return [self.untold_key(queue) for queue in sorted(self._queues)]

    def held_key(self, queue: str, node: str = "") -> str:
        """The list of the tasks that `node`, this one by default, has taken from `queue`."""
        return self.key(f"celery-metal.held:{node or self.node}:{queue}")

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

    def tell_most(self, most: int) -> None:
        """Say, once, that no more tasks are taken."""
        if "most" not in self._said:
            self._said.add("most")
            say(
                f"{most} tasks are held, most of which wait for their ETA: no more are taken until "
                "one is done. Tasks that are due wait behind them in the queue. Fix: send tasks "
                "with a far ETA to a queue of their own, or raise worker_eta_task_limit of the app "
                "or memory, or revoke them and restart this worker: see 'Tasks with a countdown "
                "or an ETA' in docs/queues.md"
            )

    def queue_of(self, tag: str) -> str:
        """The queue of a task that is not settled; empty where that is not known."""
        record = self._records.get(tag)
        return record.queue if record else ""

    def settle(self, tag: str) -> None:
        """A task is acknowledged: done, or thrown away."""
        self._lost.discard(tag)
        record, refused = self._records.get(tag), self._refused.pop(tag, None)
        if record and refused:
            self._change(tag, self._buried(record.queue, record.item, refused))
        else:
            self._change(tag, Change())

    def begin(self, tag: str | None, mark: str = BEGUN) -> None:
        """A task begins. If it was there at a crash before, that is written down in Redis.

        So the next crash counts for tasks that had begun, and not for those that wait. Others
        cost nothing. Other marks: TAKEN, it is about to be read; GIVEN, the pool has it.
        """
        record = self._records.get(tag) if tag else None
        if record is None or CRASHED not in record.item or self.down_since is not None:
            return
        member = mark + digest(record.item)
        self._begun.setdefault(str(tag), []).append(member)
        try:
            self._clients[0].eval(LIVE, 1, self._begun_key(self.node), member, "")
        except RedisError as error:
            say(f"cannot note that {name_of(record.item)} has begun: {line(error)}")

    def taken(self, tag: str) -> None:
        """Celery has taken a task without harm."""
        members = self._begun.get(tag, [])
        for member in [one for one in members if one.startswith(TAKEN)]:
            members.remove(member)
            with suppress(RedisError):
                self._clients[0].hdel(self._begun_key(self.node), member)

    def _begun_key(self, node: str) -> str:
        return self.key(f"celery-metal.begun:{node}")

    def _begun_by(self, client: Any, node: str) -> set[bytes]:
        """Digests of tasks that `node` had begun, of those that were there at a crash before."""
        try:
            found = set(client.hgetall(self._begun_key(node)))
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            client.delete(self._begun_key(node))
            return set()
        return found

    def lose(self, tag: str) -> None:
        """The process in which a task ran is no more; what becomes of the task follows."""
        if tag in self._records:
            self._lost.add(tag)

    def requeue(self, tag: str, push: str = "LPUSH") -> None:
        """A task goes back to its queue, by default behind those that wait there."""
        crashed = tag in self._lost
        self._lost.discard(tag)
        if record := self._records.get(tag):
            change = self._back(push, record.queue, record.item, crashed=crashed, waits_anew=True)
            self._change(tag, change)

    def close(self) -> None:
        """Give back all that is held; errors are those of Redis.

        For a worker that ends. May be called from any thread.
        """
        if self.closed or not self._clients:
            return
        self.closed, client = True, self._clients[2]
        self.catch_up(client)
        begun = {*_active_tags(), self._delivered} if self.failed else set()
        records = list(self._records.items())
        causes = Counter(one.item for tag, one in records if tag in begun)
        self._parsed = {one.item for _, one in records}
        for queue in self._queues:
            self._give_back(client, self.node, queue, partial(_takes, causes))
        client.delete(self._begun_key(self.node))
        client.hdel(self.key(NODES), self.node)
        self.metrics.forget(client, self.key(METRICS), self.node)

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
        if members := self._begun.pop(tag, None):
            # What is left there has another digest than any task that comes.
            with suppress(RedisError):
                client.hdel(self._begun_key(self.node), *members)
        if not moved:
            say(
                f"{name_of(record.item)} was not held any more: this worker was silent for more "
                f"than {LEASE_SECONDS:.0f} s, or cut off from Redis, and its task may run twice. "
                "Look at this host's load and network; see 'A task may run twice' in docs/safety.md"
            )

    def _move(self, client: Any, held: str, item: bytes, change: Change) -> int:
        moved: int
        if change.push:
            try:
                moved = client.eval(*change.arguments(held, item))
            except ResponseError as error:
                if not change.dead or not is_wrong_type(error):
                    raise
                reason = f"{printable(change.key)} in Redis is not a list"
                say(
                    f"{name_of(item)} cannot go back to its queue: {reason}. It is a dead letter "
                    f"now, in the list {change.dead}. Fix: delete that key, then send it back by "
                    "playbooks/dead.yml"
                )
                untold = change.dead.replace("celery-metal.dead:", UNTOLD, 1)
                kept = self._noted(item, reason)
                dead = Change("LPUSH", change.dead, kept, untold=untold)
                self.has_untold = True
                moved = client.eval(*dead.arguments(held, item))
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

    def _give_back_all(self, client: Any, node: str, queues: list[str]) -> dict[str, int]:
        """Move all that a worker held that was killed to the front of its queues; how many."""
        names = list(dict.fromkeys(queues))
        suspects = Suspects(self._begun_by(client, node))
        for queue in names:
            for items in self._slices(client, self.held_key(queue, node), is_moved=False):
                suspects.look(items)
        return {queue: self._give_back(client, node, queue, suspects.count) for queue in names}

    def _give_back(
        self, client: Any, node: str, queue: str, counts: Callable[[bytes], bool]
    ) -> int:
        """Move all that `node` holds to the front of `queue`, in the old order; how many.

        `counts` says of a task whether a crash counts for it.
        """
        held, moved = self.held_key(queue, node), 0
        # The newest is at the left end: put back first, it is the last to be taken.
        for items in self._slices(client, held, is_moved=True):
            changes = [
                (item, self._back("RPUSH", queue, item, crashed=counts(item))) for item in items
            ]
            moved += self._move_all(client, held, changes)
        return moved

    @staticmethod
    def _slices(client: Any, held: str, *, is_moved: bool) -> Iterator[list[bytes]]:
        """What a list has now, some of it at a time; `is_moved`: each leaves before the next.

        A worker may have held more than fits into memory, or into an answer of Redis.
        """
        left, begin, size = 1, 0, 1
        try:
            left = client.llen(held)
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            client.delete(held)
            say(f"{printable(held)} in Redis was not a list and was deleted")
            return
        while left > 0 and (items := client.lrange(held, begin, begin + min(size, left) - 1)):
            yield items
            left -= len(items)
            begin += 0 if is_moved else len(items)
            longest = max(1, *map(len, items))
            size = max(1, min(2 * size, AT_ONCE, MOST_BYTES // longest))

    def _move_all(self, client: Any, held: str, changes: list[tuple[bytes, Change]]) -> int:
        """Move many by one request for each list; how many were there still."""
        groups: defaultdict[tuple[str, str], list[tuple[bytes, Change]]] = defaultdict(list)
        for item, change in changes:
            groups[change.push, "" if change.untold else change.key].append((item, change))
        moved = 0
        for (push, key), members in groups.items():
            failed = [-1] * len(members)
            pairs = chain.from_iterable((item, change.item) for item, change in members)
            replies = client.eval(MOVE_MANY, 2, held, key, push, *pairs) if key else failed
            for (item, change), reply in zip(members, replies, strict=True):
                # By itself where Redis has refused it, and where it goes to more than one list.
                moved += self._move(client, held, item, change) if reply < 0 else reply
        return moved

    def _back(
        self,
        push: str,
        queue: str,
        item: bytes,
        *,
        crashed: bool = False,
        waits_anew: bool = False,
    ) -> Change:
        """The way back to the queue; after too many crashes, the way out.

        `waits_anew`: it has run, so that it has not waited since it was sent.
        """
        try:
            if item not in self._parsed:
                parse(item)
            task = json.loads(item)
            headers, properties = task.get("headers") or {}, task["properties"]
            info = properties.get("delivery_info") or {}
            headers["redelivered"] = info["redelivered"] = True
            task["headers"], properties["delivery_info"] = headers, info
            if crashed or waits_anew:
                headers.pop(SENT, None)
            if crashed:
                headers[CRASHES] = crashes = crashes_of(headers.get(CRASHES)) + 1
                if crashes > MOST_CRASHES:
                    dead = self._dead(queue)
                    reason = f"it was there at {crashes} ends of its process or its worker"
                    say(
                        f"task {name_of(item)} was{reason[6:]}: it is kept in the list {dead}. "
                        "Look for the cause (memory, time_limit_seconds), then send it back by "
                        "playbooks/dead.yml: see 'Tasks that were put aside' in docs/safety.md"
                    )
                    return self._buried(queue, _encoded(task), reason)
            priority = self.channel._get_message_priority(task, reverse=False)
            key = self.key(self.channel._q_for_pri(queue, priority))
            return Change(push, key, _encoded(task), self._dead(queue))
        except RefusedError as error:
            return self._no_task(queue, item, str(error))

    def _no_task(self, queue: str, item: bytes, reason: str) -> Change:
        """The way out for what is no task."""
        self._tell_refused(queue, reason)
        return self._buried(queue, item, reason)

    def _buried(self, queue: str, item: bytes, reason: str) -> Change:
        """The way out; a worker then fails the task for its callers, see `verdict`."""
        kept, short = self._noted(item, reason), b""
        if kept is item or len(kept) > LARGEST:
            short = stub(item, reason)
            if not short:  # nobody waits for it
                return Change("LPUSH", self._dead(queue), kept)
        self.has_untold = True
        return Change("LPUSH", self._dead(queue), kept, untold=self.untold_key(queue), stub=short)

    def _noted(self, item: bytes, reason: str) -> bytes:
        """A dead letter with what is known of it in its headers, where it has headers."""

        def note(message: dict[str, Any]) -> dict[str, Any]:
            priority = self.channel._get_message_priority(message, reverse=False)
            step = self.channel.priority(priority)
            return {"at": int(time()), "worker": self.node, "priority": step}

        return noted(item, reason, note)

    def _tell_refused(self, queue: str, reason: str, what: str = "") -> str:
        self.refused += 1
        dead = self._dead(queue)
        what = what or f"refused a message in queue {queue}"
        say(
            f"{what}: {reason}. It is a dead letter now, in the list {dead}: look at it by "
            "playbooks/dead.yml"
        )
        return reason

    def _dead(self, queue: str) -> str:
        return self.key(f"celery-metal.dead:{queue}")

    def _live(self, client: Any, beat: int) -> None:
        # Its time says how old the life is. Other workers need only see that it changes.
        try:
            seconds, _ = client.time()
        except ResponseError:  # an external Redis whose user lacks +time
            seconds = None
        before = client.eval(LIVE, 1, self.key(NODES), self.node, self._life(beat, seconds))
        if self.twins.look(before, beat):
            self.closed = True  # the claims are the other one's

    def _life(self, beat: int, seconds: int | None) -> str:
        # A successor's first beat differs from its predecessor's last.
        start = [*(self.twins.token or ()), seconds]
        return json.dumps([beat, start, sorted(self._queues)])

    def key(self, name: str) -> str:
        """A key of the runtime, with the prefix of the app."""
        prefix: str = self.channel.global_keyprefix
        return prefix + name


class Beat:
    """The thread that tells that a ledger's owner lives, and looks for tasks that nobody has."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.number = 0
        self.last = self.lived = monotonic()
        # What nobody seems to have, and since when: only what stays so is given back.
        self.suspects: dict[object, float] = {}
        #: Beats since dead letters were first seen of which nobody has been told.
        self.untold = 0
        self.lives: dict[bytes, tuple[bytes, float]] = {}
        self.failure = ""

    def run(self) -> None:
        """Beat until the ledger is closed."""
        ledger, client = self.ledger, self.ledger._clients[1]
        while not ledger.closed:
            ledger.pauses.rest(client, BEAT_SECONDS)
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
        self._live(client)
        # The other worker of this name has what looks as if nobody had it.
        if ledger.closed or ledger.twins.is_doubtful:
            return
        ledger.catch_up(client)
        ledger.metrics.publish(client, ledger.key(METRICS), ledger.node, list(ledger._queues))
        self._reconcile(client, now)
        # Whoever has buried them tells at once; if that worker has ended, others do.
        self.untold = self.untold + 1 if client.exists(*ledger.untold_keys()) else 0
        ledger.has_untold = ledger.has_untold or self.untold >= UNTOLD_BEATS
        if self.number % SWEEP_BEATS == 0:
            self._sweep(client, now)

    def _live(self, client: Any) -> None:
        self.number += 1
        self.lived = monotonic()
        self.ledger._live(client, self.number)

    def _live_on(self, client: Any) -> None:
        """In the middle of work that may take longer than others wait for a sign of life."""
        if monotonic() - self.lived > BEAT_SECONDS:
            self._live(client)

    def _reconcile(self, client: Any, now: float) -> None:
        """Give back what this worker holds without any part of it knowing about it."""
        ledger, before, self.suspects = self.ledger, self.suspects, {}
        active = _active_tags()
        # The newest is at the left end, where Redis begins to look for it; put back first, it is
        # the last to be taken.
        for tag, record in reversed(list(ledger._records.items())):
            # Celery forgets what has not begun when it loses the connection that it came by.
            if record.channel is not ledger.channel and tag not in active:
                # One that has just ended is acknowledged a turn of the loop later.
                since = before.get(tag, now)
                if now - since >= SUSPECT_SECONDS:
                    change = ledger._back("RPUSH", record.queue, record.item)
                    ledger._changes.setdefault(tag, change)
                    ledger._apply(client, tag)
                    self._live_on(client)
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
        orphans: dict[bytes, None] = {}
        for items in ledger._slices(client, held, is_moved=False):
            known |= {record.item for record in list(ledger._records.values())}
            orphans |= dict.fromkeys(item for item in items if item not in known)
            self._live_on(client)
        for item in orphans:
            since = before.get((queue, item), now)
            # The reply to a request that is older than the suspicion may still be unread.
            if since < now and not ledger.channel.may_be_claiming_since(since):
                ledger._move(client, held, item, ledger._back("RPUSH", queue, item))
            else:
                self.suspects[queue, item] = since

    def _sweep(self, client: Any, now: float) -> None:
        """Give back what silent workers hold."""
        nodes, me = self.ledger.key(NODES), self.ledger.node.encode()
        before, self.lives = self.lives, {}
        for node, life in client.hgetall(nodes).items():
            if node != me:
                last, since = before.get(node, (b"", now))
                self.lives[node] = (life, since if last == life else now)
        for node, (life, since) in self.lives.items():
            if now - since > LEASE_SECONDS:
                self._take_over(client, node.decode(errors="replace"), life, now - since)
                client.hdel(nodes, node)
                self.ledger.metrics.forget(client, self.ledger.key(METRICS), node)

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
        moved = sum(self.ledger._give_back_all(client, node, queues).values())
        client.delete(self.ledger._begun_key(node))
        say(
            f"{name} is silent for {silence:.0f} s: {moved} tasks back to the queue; look at its "
            "host, and at that worker's journal"
        )


def digest(item: bytes) -> str:
    """What a message is known by in the set of those that have begun."""
    return hashlib.sha256(item).hexdigest()


class Suspects:
    """Which tasks of a worker that was killed count as there.

    The first time each one does: which of them had begun was not written down. From then on those
    that had begun; a task may have killed its worker before that was known, so else those that were
    given to the pool; and what was being taken, in any case. Where nothing is written down, none:
    each of these is written down before anything reads the task.
    """

    def __init__(self, begun: set[bytes]) -> None:
        self._begun = begun
        self._mark = ""

    def look(self, items: list[bytes]) -> None:
        """Take note of tasks that were held; all of them, before any is counted."""
        for item in items:
            if self._begun and self._mark != BEGUN and CRASHED in item:
                # One that has begun was given to the pool, too.
                found = (one for one in (BEGUN, GIVEN) if self._is(one, item))
                self._mark = next(found, self._mark)

    def count(self, item: bytes) -> bool:
        """Whether the crash counts for this one."""
        if CRASHED not in item or self._is(TAKEN, item):
            return True
        return bool(self._mark) and self._is(self._mark, item)

    def _is(self, mark: str, item: bytes) -> bool:
        return (mark + digest(item)).encode() in self._begun


def _takes(causes: Counter[bytes], item: bytes) -> bool:
    causes[item] -= 1
    return causes[item] >= 0


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


def count_losses(ledger: Ledger) -> None:
    """Have Celery tell the ledger of tasks whose process died, or was killed at its time limit.

    From its side of the transport a task that asks to be requeued looks the same.
    """
    on_failure, on_timeout = Request.on_failure, Request.on_timeout
    on_accepted = Request.on_accepted

    def failed(self: Request, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        error = getattr(exc_info.exception, "exc", exc_info.exception)  # as Celery unwraps it
        # A SystemExit is a process that has ended, too.
        if isinstance(error, (WorkerLostError, SystemExit)):
            ledger.lose(self._message.delivery_tag)
        if isinstance(error, (WorkerLostError, SystemExit, Terminated)):
            ledger.losses += 1
        return on_failure(self, exc_info, *args, **kwargs)

    def timed_out(self: Request, soft: bool, timeout: float) -> Any:
        if not soft:
            ledger.lose(self._message.delivery_tag)
            ledger.losses += 1
        return on_timeout(self, soft, timeout)

    def accepted(self: Request, *args: Any, **kwargs: Any) -> Any:
        ledger.begin(self._message.delivery_tag)
        return on_accepted(self, *args, **kwargs)

    Request.on_failure, Request.on_timeout = failed, timed_out
    Request.on_accepted = accepted


def _active_tags() -> set[str]:
    """The delivery tags of all tasks that run in this worker."""
    for _ in range(10):
        try:
            return {request._message.delivery_tag for request in worker_state.active_requests}
        except RuntimeError:  # the set has changed under the iteration
            continue
    return {request._message.delivery_tag for request in list(worker_state.active_requests)}
