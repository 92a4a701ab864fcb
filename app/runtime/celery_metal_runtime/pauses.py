"""A queue that is paused: no worker of the fleet begins one of its tasks, until it is resumed.

`playbooks/queues.yml` writes a field for each paused queue into the hash `celery-metal.paused`. The
field counts, whatever its value is.

- A claim looks there in the step in which it takes a task: see CLAIM in `transport`. So it does not
  matter when a worker starts, connects or learns of it.
- What a worker has claimed before, and not given to its pool, goes back to the front of its queue
  when its turn comes: the ETA, the rate limit, a free process.
- What its pool has is finished. How much of that has not begun yet each worker writes into the hash
  `celery-metal.pausing`, with the pause that it speaks of; the playbook waits for 0 of each.
"""

import hashlib
import json
from collections.abc import Collection
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from celery.worker import WorkController
from celery.worker import state as worker_state
from redis import RedisError

from celery_metal_runtime.channels import OWN
from celery_metal_runtime.messages import printable
from celery_metal_runtime.notify import line, say, unpatched

if TYPE_CHECKING:
    from celery.worker.request import Request

    from celery_metal_runtime.ledger import Ledger

PAUSED, PAUSING = "celery-metal.paused", "celery-metal.pausing"
#: Until a pause is confirmed, it is looked at so often.
STEP_SECONDS = 0.5
#: A worker whose queues are all paused asks so often for a task.
ASK_SECONDS = 1.0
#: Bytes of a value that is read: it only tells one pause from another.
LONGEST = 4096
LONGEST_ID = 16
# A key that is not a hash pauses nothing: the playbook replaces it.
READ = """
local found = {}
for i = 2, #ARGV do
  local value = redis.pcall('HGET', KEYS[1], ARGV[i])
  if type(value) == 'string' and #value > tonumber(ARGV[1]) then value = '' end
  found[#found + 1] = type(value) == 'string' and value
end
return found
"""
# Taken out first, as a Redis that is full refuses a script that begins with adding.
CONFIRM = """
local done = redis.pcall('HDEL', KEYS[1], ARGV[1])
if type(done) == 'table' and done.err then redis.call('DEL', KEYS[1]) end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
"""


class Pauses:
    """What a worker knows of paused queues. Used by the consumer's loop and the ledger's thread."""

    def __init__(self, ledger: "Ledger") -> None:
        self.ledger = ledger
        #: Each paused queue that this worker consumes, and by what its pause is known, if it is.
        self.found: dict[str, str] = {}
        #: Since when it is known, in seconds of the monotonic clock.
        self._since: dict[str, float] = {}
        #: Whether the next look is not to wait for the next beat.
        self.is_due = False
        self._given: WeakSet[Request] = WeakSet()
        self._reported: Collection[str] = ()
        #: At first a predecessor of the same name may have.
        self._has_confirmed = True
        self._failure = ""

    @property
    def status(self) -> str:
        """What the status line of a worker has of it."""
        paused, all_ = len(self.found), len(self._queues())
        if not paused:
            return ""
        return ", paused" if paused >= all_ else f", paused: {paused} of {all_} queues"

    def _queues(self) -> list[str]:
        return sorted(queue for queue in {*self.ledger._queues} if not queue.startswith(OWN))

    def seen(self, queues: Collection[str], paused: Collection[str]) -> None:
        """What a claim has found, in one step, of these queues."""
        before = self.found
        if before or paused:
            others = {queue: known for queue, known in before.items() if queue not in queues}
            self.found = others | {queue: before.get(queue, "") for queue in paused}
            self.is_due = self.is_due or self.found.keys() != before.keys()

    def rest(self, client: Any, seconds: float) -> None:
        """Sleep until the next beat, and look at pauses at its end, and before if one is due."""
        pause, end = unpatched("time", "sleep"), monotonic() + seconds
        while not self.ledger.closed and (left := end - monotonic()) > 0:
            pause(min(left, STEP_SECONDS))
            if self.is_due or end - monotonic() <= 0:
                self._try(client)

    def _try(self, client: Any) -> None:
        try:
            if not self.ledger.closed:
                self.look(client)
        except RedisError:
            pass  # the beat that follows says so
        except Exception as error:  # noqa: BLE001 - the thread must go on to beat
            if line(error) != self._failure:
                self._failure = line(error)
                say(f"cannot look for paused queues: {self._failure}")

    def look(self, client: Any) -> None:
        """Read what is paused, and confirm it; errors are those of Redis."""
        queues, self.is_due = self._queues(), False
        values = client.eval(READ, 1, self.ledger.key(PAUSED), LONGEST, *queues) if queues else []
        before, found = self.found, {}
        for queue, value in zip(queues, values, strict=True):
            if value is not None:
                found[queue] = hashlib.sha256(value).hexdigest()[:LONGEST_ID]
        self.found = found
        now, same = monotonic(), (queue for queue in found if before.get(queue) == found[queue])
        self._since = dict.fromkeys(found, now) | {one: self._since.get(one, now) for one in same}
        ahead = self._ahead()
        # The answer to a claim from before may be a task, and unread.
        for queue, since in self._since.items():
            if self.ledger.channel.may_be_claiming_since(since):
                ahead.pop(queue)
                self.is_due = True
        self.is_due = self.is_due or any(ahead.values())
        if found or self._has_confirmed:
            said = {queue: [found[queue], count] for queue, count in ahead.items()}
            text = json.dumps(said) if said else ""
            client.eval(CONFIRM, 1, self.ledger.key(PAUSING), self.ledger.node, text)
            self._has_confirmed = bool(said)
        self._report()

    def _report(self) -> None:
        before, self._reported = self._reported, self.found.keys()
        for queue in self._reported - {*before}:
            say(
                f"{printable(queue)} is paused: this worker begins none of its tasks until "
                "playbooks/queues.yml resumes it"
            )
        for queue in {*before} - self._reported:
            say(f"{printable(queue)} is resumed")

    def _ahead(self) -> dict[str, int]:
        """For each paused queue the tasks that the pool has, and has not begun."""
        count = dict.fromkeys(self._since, 0)
        for request in _copy(self._given) if count else ():
            record = self.ledger._records.get(request._message.delivery_tag)
            has_begun = request in worker_state.active_requests
            if record and record.queue in count and not has_begun:
                count[record.queue] += 1
        return count

    def takes_back(self, request: "Request") -> bool:
        """Whether a task that the pool is about to get goes back to its queue instead."""
        # Before the look at what is paused: a look of the other thread either counts this one, or
        # was made before, and is seen here.
        self._given.add(request)
        if not self.found:
            return False
        message = request._message
        record = self.ledger._records.get(message.delivery_tag)
        if record is None or record.queue not in self.found:
            return False
        self._given.discard(request)
        worker_state.task_ready(request)
        message.channel.qos.give_back(message.delivery_tag)
        message._state = "REQUEUED"
        request.acknowledged = True
        request.send_event("task-rejected", requeue=True)
        return True


def install(pauses: Pauses) -> None:
    """Have a worker give no task of a paused queue to its pool."""
    process = WorkController._process_task

    def process_unless_paused(self: WorkController, request: "Request") -> None:
        if not pauses.takes_back(request):
            process(self, request)
        elif hub := getattr(self, "hub", None):
            # Not here: what waits for the place would come back here, and be one frame deeper.
            with suppress(AttributeError):
                hub.call_soon(self._quick_release)

    WorkController._process_task = process_unless_paused


def _copy(some: WeakSet[Any]) -> list[Any]:
    for _ in range(10):
        try:
            return list(some)
        except RuntimeError:  # it has changed under the iteration
            continue
    return list(some)
