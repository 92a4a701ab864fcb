"""A revoke outlives every worker that has heard it: Redis keeps it for those that start later.

Celery keeps revokes in each worker's memory. After a restart of all workers, which a deploy is,
revoked tasks would run. Here a worker that gets a revoke first writes it into the sorted set
`celery-metal.revoked`, its time by Redis's clock as the score. Every worker reads the set before it
claims its first task, after each connection, when its subscription to control commands begins, and
every LOOK_SECONDS: a broadcast reaches those who listen at that moment, and no others.

A revoke is kept as long as Celery keeps it, and as many as Celery keeps: see the environment
variables CELERY_WORKER_REVOKE_EXPIRES and CELERY_WORKER_REVOKES_MAX. A task costs nothing.
"""

import json
import threading
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import wraps
from itertools import islice
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeGuard

from celery import bootsteps
from celery.worker import state as worker_state
from celery.worker.pidbox import Pidbox
from redis import RedisError
from redis.exceptions import ResponseError

from celery_metal_runtime.broker import client_of, is_wrong_type
from celery_metal_runtime.guard import BROKER_ERRORS
from celery_metal_runtime.messages import LONGEST_NAME, MOST_CLOCK, RefusedError, check_command
from celery_metal_runtime.notify import line, say

if TYPE_CHECKING:
    from celery import Celery
    from celery.worker.consumer import Consumer

    from celery_metal_runtime.ledger import Ledger

REVOKED = "celery-metal.revoked"
#: Seconds between two looks at what others have heard.
LOOK_SECONDS = 5.0
#: Milliseconds before the last look that the next one reads again: clocks of Redis hosts differ.
SLACK_MS = 10_000
#: Revokes in one request, and bytes of each: a stamp is two names of up to 4 bytes a character.
AT_ONCE, LONGEST = 1000, 8 * LONGEST_NAME + 64
#: Where Celery has no limits: so many, and seconds.
MOST, LONGEST_SECONDS = 50_000, 10 * 365 * 86_400.0
ID, STAMP = "id:", "stamp:"

NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
# Newest first: what is added meanwhile moves none out of the pages that follow. Writes nothing, so
# that it works while Redis refuses to write.
READ = (
    NOW
    + """
local since = math.max(tonumber(ARGV[1]), now - tonumber(ARGV[2]))
local found = redis.call('ZRANGE', KEYS[1], '+inf', since, 'BYSCORE', 'REV',
  'LIMIT', ARGV[3], ARGV[4], 'WITHSCORES')
local reply = {now, #found / 2}
for i = 1, #found, 2 do
  if #found[i] <= tonumber(ARGV[5]) then
    reply[#reply + 1] = found[i]
    reply[#reply + 1] = found[i + 1]
  end
end
return reply
"""
)
# Removing first: a Redis that is full refuses a script that begins with adding.
KEEP = (
    NOW
    + """
local function remove(found)
  for i = 1, #found, 1000 do
    redis.call('ZREM', KEYS[1], unpack(found, i, math.min(i + 999, #found)))
  end
end
local done = redis.pcall('ZREM', KEYS[1], '')
if type(done) == 'table' and done.err then redis.call('DEL', KEYS[1]) end
remove(redis.call('ZRANGE', KEYS[1], '-inf', '(' .. (now - ARGV[1]), 'BYSCORE'))
for i = 3, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], 'GT', now - ARGV[i], ARGV[i + 1])
end
remove(redis.call('ZRANGE', KEYS[1], 0, -1 - ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1
"""
)


class Revokes:
    """What this worker knows to be revoked, and what of it Redis does not have yet.

    Used by the consumer's loop alone; with gevent, by several greenlets of one thread.
    """

    def __init__(self, ledger: "Ledger") -> None:
        self.ledger = ledger
        self._channel: Any = None
        self._client: Any = None
        #: When the last look was, in milliseconds of Redis's clock; 0: all is read anew.
        self._looked = 0
        #: The same moment by the monotonic clock, in seconds.
        self._looked_at = 0.0
        #: What was heard or read, and when, in seconds of the monotonic clock; the same of what
        #: is to be written.
        self._known: dict[str, float] = {}
        self._unwritten: dict[str, float] = {}
        self._failure = ""

    def open(self, channel: Any) -> None:
        """Learn what is revoked before a task comes by a new channel.

        A Redis that does not answer raises an error of redis-py. One that refuses is reported, and
        keeps no worker from its tasks.
        """
        if channel is self._channel:
            return
        if self._client is None:
            self._client = client_of(channel)
        self._looked = 0
        try:
            self._read()
            self._write()
        except ResponseError as error:
            self._report(error)
        self._channel = channel

    def look(self) -> None:
        """Learn what other workers have heard, and write what Redis did not take in time."""
        if self._client is None:
            return
        if self.ledger.down_since is not None:
            self._looked = 0
            return
        try:
            self._read()
            self._write()
        except ResponseError as error:
            self._report(error)
        except RedisError as error:
            self._looked = 0
            self.ledger.fail(error)

    def remember(self, members: Iterable[str]) -> None:
        """Write what is revoked now into Redis; what it does not take is written later."""
        now = monotonic()
        for member in islice(members, _most()):
            self._note(member, now)
            self._unwritten[member] = now
        _cut(self._unwritten)
        if self._client is None or self.ledger.down_since is not None:
            return
        try:
            self._write()
        except ResponseError as error:
            self._report(error)
        except RedisError as error:
            self.ledger.fail(error)

    def _read(self) -> None:
        is_whole, found, looked, begin, more = not self._looked, dict[str, float](), 0, 0, True
        since = max(0, self._looked - SLACK_MS)
        while more and begin < _most():
            try:
                # The time of the first page counts.
                now, count, *page = self._client.eval(
                    READ, 1, self._key(), since, _expires_ms(), begin, AT_ONCE, LONGEST
                )
            except ResponseError as error:
                if not is_wrong_type(error):
                    raise
                self._client.delete(self._key())
                looked = 0  # after some pages, too: all is read, and written, anew
                break
            looked, begin, more = looked or now, begin + AT_ONCE, count == AT_ONCE
            for member, score in zip(page[::2], page[1::2], strict=True):
                if name := _valid(member):
                    found.setdefault(name, max(0.0, (now - float(score)) / 1000))
        at = monotonic()
        _apply({name: at - age for name, age in reversed(found.items())})
        if is_whole:
            # A Redis that was replaced, or has lost its memory, learns from the workers.
            self._unwritten = {**self._known, **self._unwritten}
            for name in found:
                self._unwritten.pop(name, None)
        for name, age in reversed(found.items()):
            self._note(name, at - age)
        # A clock that was set back would hide what comes, and one that was set forward has had
        # Redis forget: the next look is at all, and writes what is missing.
        drift = looked - self._looked - 1000 * (at - self._looked_at) if self._looked else 0
        self._looked, self._looked_at = looked if abs(drift) <= SLACK_MS else 0, at

    def _write(self) -> None:
        while part := dict(islice(self._unwritten.items(), AT_ONCE)):
            now, most_ms = monotonic(), _expires_ms()
            ages = {name: int((now - at) * 1000) for name, at in part.items()}
            pairs = [x for name, age in ages.items() if age < most_ms for x in (age, name)]
            if pairs:
                self._client.eval(KEEP, 1, self._key(), most_ms, _most(), *pairs)
            for name, at in part.items():
                if self._unwritten.get(name) == at:
                    del self._unwritten[name]

    def _note(self, member: str, at: float) -> None:
        """The latest are at the end, and the earliest are forgotten first."""
        self._known[member] = max(at, self._known.pop(member, at))
        _cut(self._known)

    def _report(self, error: Exception) -> None:
        """Log why Redis refused, once."""
        failure = line(error)
        if failure != self._failure:
            self._failure = failure
            say(
                f"Redis does not keep what is revoked: {failure}. Revoked tasks may run after a "
                "restart of this worker. Fix: give the user of workers the rights in "
                "docs/external.md, or look at the journal of Redis"
            )

    def _key(self) -> str:
        return self.ledger.key(REVOKED)


def install(app: "Celery", revokes: Revokes) -> None:
    """Have the worker that `app` is about to start remember what it is sent, and look at times."""
    init = Pidbox.__init__

    class LookStep(bootsteps.StartStopStep):
        """Runs while the consumer has a connection."""

        requires = ("celery.worker.consumer.tasks:Tasks",)
        timer: Any = None

        def start(self, consumer: "Consumer") -> None:
            self.timer = consumer.timer.call_repeatedly(LOOK_SECONDS, revokes.look)

        def stop(self, consumer: "Consumer") -> None:
            if self.timer is not None:
                # See health.end: with gevent the timer gives its first call alone.
                getattr(self.timer, "entry", self.timer).cancel()
                self.timer = None

        def close(self, consumer: "Consumer") -> None:
            # The consumer's loop has ended, and its tasks may go on for long.
            if not app.conf.worker_enable_remote_control:
                return
            threading.Thread(
                target=hear, args=(app, revokes, consumer.hostname), daemon=True
            ).start()

    def init_remembering(self: Pidbox, consumer: "Consumer") -> None:
        init(self, consumer)
        commands = self.node.handlers
        own = {
            name: _remembering(revokes, commands[name], members)
            for name, members in _COMMANDS.items()
            if name in commands
        }
        self.node.handlers = ChainMap(own, commands)

    Pidbox.__init__ = init_remembering
    app.steps["consumer"].add(LookStep)


def hear(app: "Celery", revokes: Revokes, node: str) -> None:
    """Write down what is revoked while this worker drains; for a thread of its own.

    Tasks that run here are left alone.
    """
    mailbox = app.control.mailbox

    def heard(body: Any, message: Any) -> None:
        try:
            check_command(message.headers, body, handlers, mailbox.reply_exchange.name)
            message.headers["clock"] = min(max(message.headers.get("clock") or 0, 0), MOST_CLOCK)
            mine.handle_message(body, message)
        except RefusedError:
            pass
        except BROKER_ERRORS as error:  # of the reply: what was to be kept has been kept
            say(f"a revoke was heard and not answered: {line(error)}")

    def note(members: Callable[[Mapping[str, Any]], Iterator[str]]) -> Callable[..., Any]:
        def run(_: Any, **arguments: Any) -> dict[str, str]:
            revokes.remember(members(arguments))
            return {"ok": "kept for other workers: this one is stopping"}

        return run

    handlers = {name: note(members) for name, members in _COMMANDS.items()}
    mine, failure = mailbox.Node(node, handlers=handlers), ""
    while not revokes.ledger.closed:
        try:
            with app.connection_for_read() as connection:
                mine.channel = connection.channel()
                mine.listen(callback=heard)
                while not revokes.ledger.closed:
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=1.0)
        except Exception as error:  # noqa: BLE001 - the drain goes on
            if line(error) != failure:
                failure = line(error)
                say(f"revokes are not heard while this worker stops: {failure}. It tries again")
            sleep(LOOK_SECONDS)


def members_of_ids(arguments: Mapping[str, Any]) -> Iterator[str]:
    """The members of the set for the IDs of one `revoke`; no task has another kind of ID."""
    ids = arguments.get("task_id")
    for one in ids if isinstance(ids, (list, tuple)) else [ids]:
        if _is_name(one):
            yield ID + one


def members_of_stamps(arguments: Mapping[str, Any]) -> Iterator[str]:
    """The same for `revoke_by_stamped_headers`."""
    headers = arguments.get("headers")
    if isinstance(headers, (list, tuple)):
        pairs: Iterable[tuple[Any, Any]] = (one.split("=")[:2] for one in headers)
    else:
        pairs = headers.items() if isinstance(headers, Mapping) else ()
    for header, stamps in pairs:
        for stamp in stamps if isinstance(stamps, (list, tuple)) else [stamps]:
            if _is_name(header) and _is_name(stamp):
                yield STAMP + json.dumps([header, stamp], ensure_ascii=False)


_COMMANDS = {
    "revoke": members_of_ids,
    "terminate": members_of_ids,
    "revoke_by_stamped_headers": members_of_stamps,
}


def _remembering(
    revokes: Revokes,
    command: Callable[..., Any],
    members: Callable[[Mapping[str, Any]], Iterator[str]],
) -> Callable[..., Any]:
    """A control command that has its revokes written before it acts, and before it is answered."""

    @wraps(command)
    def run(state: Any, **arguments: Any) -> Any:
        revokes.remember(members(arguments))
        return command(state, **arguments)

    return run


def _is_name(value: object) -> TypeGuard[str]:
    return type(value) is str and 0 < len(value) <= LONGEST_NAME and value.isprintable()


def _valid(member: bytes) -> str:
    """A member of the set as text; empty for anything that no worker writes."""
    try:
        text = member.decode()
        if text.startswith(ID):
            return text if _is_name(text.removeprefix(ID)) else ""
        pair = json.loads(text.removeprefix(STAMP)) if text.startswith(STAMP) else None
    except (ValueError, RecursionError):
        return ""
    return text if type(pair) is list and len(pair) == 2 and all(map(_is_name, pair)) else ""


def _apply(found: Mapping[str, float]) -> None:
    """Enter valid members, with their times on the monotonic clock, into Celery's own memory."""
    stamps: dict[str, list[str]] = {}
    for member, at in found.items():
        if member.startswith(ID):
            name = member.removeprefix(ID)
            if name not in worker_state.revoked:
                worker_state.revoked.add(name, now=at)
        else:
            header, stamp = json.loads(member.removeprefix(STAMP))
            stamps.setdefault(header, []).append(stamp)
    for header, new in stamps.items():
        known = worker_state.revoked_stamps.get(header) or []
        known = known if isinstance(known, list) else [known]
        missing = dict.fromkeys(new).keys() - set(known)
        if missing:
            worker_state.revoked_stamps[header] = [*known, *missing]


def _cut(found: dict[str, float]) -> None:
    while len(found) > _most():
        del found[next(iter(found))]


def _most() -> int:
    """How many revokes Celery keeps."""
    return worker_state.revoked.maxlen or MOST


def _expires_ms() -> int:
    """How long Celery keeps a revoke, in milliseconds."""
    seconds = worker_state.revoked.expires
    return int(1000 * (seconds if 0 < seconds < LONGEST_SECONDS else LONGEST_SECONDS))
