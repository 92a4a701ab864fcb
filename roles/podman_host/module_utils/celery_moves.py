"""Tasks that wait in Redis: counted, moved to another queue, deleted.

A task is in one list at any time. The user of the workers may do all of it, but not look for lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ansible.module_utils.celery_dead_letters import (
    AT_ONCE,
    MARK,
    TAKE,
    Letter,
    Place,
    read,
    text_of,
)
from ansible.module_utils.celery_lists import stray
from ansible.module_utils.celery_redis import RedisError

if TYPE_CHECKING:
    from ansible.module_utils.celery_redis import Client

# Each priority of a queue has a list; kombu's steps are some of these.
PRIORITIES = range(10)
# In one step: what is deleted was counted.
PURGE = """
local count = 0
for _, key in ipairs(KEYS) do
  count = count + redis.call('LLEN', key)
  redis.call('DEL', key)
end
return count
"""


class Waiting(Place):
    """A list of tasks that wait; its queue is named with the prefix of its app."""

    @property
    def key(self) -> str:
        return self.name

    @property
    def untold(self) -> str:
        """No list: nobody waits to learn that these have failed."""
        return f"{self.prefix}celery-metal.untold:{self.queue}"


class Moved(NamedTuple):
    """How many tasks were moved, how many another program took meanwhile, how many stay."""

    done: int
    gone: int
    refused: int


def lists_of_queue(queue: str) -> list[str]:
    """The lists of a queue, the one without a priority first.

    >>> lists_of_queue("a")[:2]
    ['a', 'a\\x06\\x161']
    """
    return [queue + (f"{MARK}{number}" if number else "") for number in PRIORITIES]


def counts(
    client: Client, queues: Sequence[str], prefixes: Sequence[str], *, admin: bool
) -> tuple[dict[str, int], bool]:
    """Queue to the tasks that wait in it, and whether all lists of Redis were looked at.

    :param queues: those to look at without the right to look for lists.
    :raises RedisError: when Redis does not answer, or refuses.
    """
    if admin:
        found = stray(client, (), prefixes)
        return found.waiting, found.is_complete
    names = [prefix + queue for queue in queues for prefix in dict.fromkeys(["", *prefixes])]
    waiting = {}
    for name in names:
        lengths = client.try_all(*(("LLEN", key) for key in lists_of_queue(name)))
        if all(isinstance(one, RedisError) for one in lengths):
            continue  # the user of one app may not look at the queues of others
        if number := sum(one for one in lengths if type(one) is int):
            waiting[name] = number
    return waiting, False


def length(client: Client, queue: str) -> int:
    """How many tasks wait in a queue.

    :raises RedisError: when Redis does not answer, or refuses.
    """
    return sum(client.ask(*(("LLEN", key) for key in lists_of_queue(queue))))


def purge(client: Client, queue: str) -> int:
    """Delete the tasks that wait in a queue; how many they were.

    :raises RedisError: when Redis does not answer, or refuses.
    """
    keys = lists_of_queue(queue)
    (count,) = client.ask(("EVAL", PURGE, str(len(keys)), *keys))
    return int(count)


def move(client: Client, queue: str, to: str, routing_key: str) -> Moved:
    """Move the tasks that wait in a queue behind those of another, the oldest first.

    Tasks that come meanwhile stay. A message that is no task is moved as it is; one that is larger
    than workers take stays.

    :param to: the other queue, as ``queue`` with the prefix of its app.
    :param routing_key: its name for Celery, without the prefix: a task that is retried is sent
        there.
    :raises RedisError: when Redis does not answer, or refuses; what was moved until then stays so.
    """
    done = gone = refused = 0
    for source, target in zip(lists_of_queue(queue), lists_of_queue(to), strict=True):
        place = Waiting("", source)
        (left,) = client.ask(("LLEN", source))
        kept = 0
        while left > 0 and (some := read(client, place, kept, min(AT_ONCE, left))):
            for letter in some:
                left -= 1
                if letter.size and not letter.raw:
                    kept, refused = kept + 1, refused + 1
                    continue
                text = moved_text(letter, routing_key)
                keys, more = (source, target, place.untold), (str(-kept - 1), letter.digest, text)
                (taken,) = client.ask(("EVAL", TAKE, "3", *keys, *more))
                if not taken:
                    # A worker has taken it: what is where is read anew.
                    gone += 1
                    break
                done += 1
    return Moved(done, gone, refused)


def moved_text(letter: Letter, routing_key: str) -> str:
    """A message with another queue in it, which Celery sends a retry to."""
    if letter.problem:
        return letter.raw
    properties = letter.message["properties"]
    info = {"exchange": "", "routing_key": routing_key}
    return text_of({**letter.message, "properties": {**properties, "delivery_info": info}})
