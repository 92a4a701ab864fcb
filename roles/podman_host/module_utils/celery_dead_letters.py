"""Dead letters in Redis: found, read, sent back and deleted.

Whoever can send tasks can write any bytes into them, and there can be very many. So they are read a
few at a time, each is checked, and none is taken for a task that workers would refuse at once.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ansible.module_utils.celery_lists import lists_of
from ansible.module_utils.celery_redis import RedisError, lives_of

if TYPE_CHECKING:
    from ansible.module_utils.celery_redis import Client
    from celery_metal_types import DeadLetter

RUNTIME, DEAD, UNTOLD = "celery-metal.", "celery-metal.dead:", "celery-metal.untold:"
# Headers of the runtime: of ledger.py, verdict.py, sent.py. What is sent back has none of them.
REASON, NOTE = "celery_metal_reason", "celery_metal_dead"
OWN = (REASON, NOTE, "celery_metal_crashes", "celery_metal_tries", "celery_metal_sent")
# What workers take, as in messages.py.
LARGEST, MOST_VALUES, DEEPEST, LONGEST_NAME = 16 << 20, 1_000_000, 200, 1024
# A text without an end matches, too: else each quote in it would be the begin of another search.
STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
# kombu's priorities where the letter names none, and its mark before the number of one.
STEPS, MARK = (0, 3, 6, 9), "\x06\x16"
# Letters in one answer of Redis, and their bytes. Redis copies as many at once.
AT_ONCE, MOST_BYTES = 16, 4 << 20
# Of a text from a letter so much is shown, and of a body decoded for it; a letter that is
# longer is not shown whole.
SHOWN, DECODED, WHOLE = 200, 1 << 16, 1 << 18

# Some letters before an index, the oldest first: size, bytes; of one that is too large its digest.
READ = """
local items, found, bytes = redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2]), {}, 0
for place = #items, 1, -1 do
  local item = items[place]
  bytes = bytes + #item
  if place < #items and bytes > tonumber(ARGV[3]) then break end
  if #item > tonumber(ARGV[4]) then
    found[#found + 1] = {#item, '', redis.sha1hex(item)}
  else
    found[#found + 1] = {#item, item, ''}
  end
end
return found
"""
# In one step: a letter leaves its list, and is in its queue. Removing first: a Redis that is full
# refuses a script that begins with adding. Those who wait for it are no longer to learn that it
# has failed.
TAKE = """
local item = redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not item or redis.sha1hex(item) ~= ARGV[2] then return 0 end
if KEYS[2] then
  local there = redis.pcall('LLEN', KEYS[2])
  if type(there) == 'table' and there.err then return there end
end
redis.call('LREM', KEYS[1], -1, item)
if not KEYS[2] then return 1 end
local done = redis.pcall('LPUSH', KEYS[2], ARGV[3])
if type(done) == 'table' and done.err then
  redis.call('RPUSH', KEYS[1], item)
  return done
end
redis.pcall('LREM', KEYS[3], 1, item)
return 1
"""


class Place(NamedTuple):
    """Where dead letters of a queue are: the ``global_keyprefix`` of its app, and the queue."""

    prefix: str
    queue: str

    @property
    def name(self) -> str:
        return self.prefix + self.queue

    @property
    def key(self) -> str:
        return f"{self.prefix}{DEAD}{self.queue}"

    @property
    def untold(self) -> str:
        return f"{self.prefix}{UNTOLD}{self.queue}"


class Filter(NamedTuple):
    """What letters must be; an empty text is any. The reason may be a part of it."""

    id: str = ""
    queue: str = ""
    task: str = ""
    reason: str = ""

    def takes_place(self, place: Place) -> bool:
        return self.queue in ("", place.queue, place.name)

    def takes(self, letter: Letter) -> bool:
        return (
            self.id in ("", letter.id)
            and self.task in ("", letter.task)
            and self.reason in letter.reason
        )

    @property
    def is_of_letters(self) -> bool:
        """Whether each letter must be read for it."""
        return bool(self.id or self.task or self.reason)


class Letter:
    """One dead letter, as far as it can be understood.

    :param raw: its text; bytes that are not UTF-8 as surrogates. Empty when it is too large.
    :param digest: SHA-1 of its bytes; empty where it is that of ``raw``.
    """

    def __init__(self, size: int, raw: str, digest: str = "") -> None:
        self.size, self.raw = size, raw
        data = raw.encode(errors="surrogateescape")
        self.digest = digest or hashlib.sha1(data, usedforsecurity=False).hexdigest()
        self.message: dict[str, Any] = {}
        #: Why it cannot be sent back.
        self.problem = f"its size is {size} bytes; the limit is {LARGEST}"
        if size <= LARGEST:
            self.message, self.problem = parsed(raw)
        self.headers: dict[str, Any] = self.message.get("headers") or {}
        self.body: Any = {}
        if not self.problem and "task" not in self.headers:  # the first version of the protocol
            self.body = self.decoded(LARGEST)
        fields = self.headers if "task" in self.headers else self.body
        known = fields if isinstance(fields, dict) else {}
        self.task, self.id = (self._name(known.get(key)) for key in ("task", "id"))
        if not self.problem and not (self.task and self.id):
            self.problem = f"no valid task {'ID' if self.task else 'name'}"
        reason = self.headers.get(REASON)
        self.reason = reason if isinstance(reason, str) else self.problem
        note = self.headers.get(NOTE)
        self.note: dict[str, Any] = note if isinstance(note, dict) else {}

    @staticmethod
    def _name(value: Any) -> str:
        is_name = isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable()
        return value if is_name else ""

    def decoded(self, most: int) -> Any:
        """Its body, where that is JSON of so many characters at most; else None."""
        body = self.message.get("body")
        if not isinstance(body, str) or len(body) > most:
            return None
        try:
            if self.message["properties"].get("body_encoding") == "base64":
                body = base64.b64decode(body).decode()
            return None if excess(body) else json.loads(body)
        except (ValueError, RecursionError, binascii.Error):
            return None

    @property
    def arguments(self) -> str:
        """Its arguments, shortened: as their sender has written them down, or from the body."""
        said = [self.headers.get(key) for key in ("argsrepr", "kwargsrepr")]
        if not isinstance(said[0], str):
            body = self.body or self.decoded(DECODED)
            if isinstance(body, dict):
                said = [body.get("args"), body.get("kwargs")]
            elif isinstance(body, list) and len(body) == 3:
                said = body[:2]
            else:
                return ""
        texts = [one if isinstance(one, str) else _short(one) for one in said]
        return " ".join(one[:SHOWN] for one in texts if one not in ("", "{}", "null"))[:SHOWN]

    def row(self, place: Place) -> DeadLetter:
        """What a list shows of it."""
        worker = self.note.get("worker")
        return {
            "task": self.task[:SHOWN],
            "id": self.id[:SHOWN],
            "queue": place.name[:SHOWN],
            "at": _count(self.note.get("at")),
            "crashes": _count(self.note.get("crashes")),
            "worker": worker[:SHOWN] if isinstance(worker, str) else "",
            "reason": self.reason[:SHOWN],
            "arguments": self.arguments,
            "size": self.size,
        }

    def whole(self, place: Place) -> dict[str, Any]:
        """All of it, with its body decoded where that is JSON; of a long one its beginning."""
        if not self.message or self.size > WHOLE:
            return {**self.row(place), "text": self.raw[:DECODED]}
        body = self.decoded(WHOLE)
        decoded = {} if body is None else {"body": body}
        return {"queue": place.name, "list": place.key, **self.message, **decoded}

    def sent(self) -> str:
        """The message without the runtime's headers: its count of crashes begins anew."""
        headers = {key: one for key, one in self.headers.items() if key not in OWN}
        return text_of({**self.message, "headers": headers})

    def list_of(self, place: Place) -> str:
        """The list of its queue that it goes back to, by its priority."""
        step = _count(self.note.get("priority"))
        if step is None or step > 9:
            try:
                number = max(0, min(9, int(self.message["properties"]["priority"])))
            except (TypeError, ValueError, KeyError, OverflowError):
                number = 0
            step = max(one for one in STEPS if one <= number)
        return place.name + (f"{MARK}{step}" if step else "")


def text_of(message: Mapping[str, Any]) -> str:
    """A message as JSON, in UTF-8 where that can hold it.

    >>> text_of({"a": "é"}), text_of({"a": chr(0xD800)})
    ('{"a":"é"}', '{"a":"\\\\ud800"}')
    """
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(message, separators=(",", ":"))
    return text


def clean(value: Any) -> Any:
    """A copy without halves of surrogate pairs, which Ansible refuses.

    >>> clean({"a": ["x\\udcff", 1]})
    {'a': ['x?', 1]}
    """
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {clean(key): clean(one) for key, one in value.items()}
    return [clean(one) for one in value] if isinstance(value, list) else value


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 40 else None


def _short(value: Any) -> str:
    """The beginning of a value as JSON."""
    parts: list[str] = []
    for part in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        parts.append(part[:SHOWN])
        if len(parts) > SHOWN:
            break
    return "".join(parts)[:SHOWN]


def excess(text: str) -> str:
    """What JSON has more of than workers take; memory and stack are limited.

    >>> excess("[1, 2]"), excess("[" * 201), excess("," * 1_000_001)
    ('', 'nested deeper than 200 levels', 'more than 1000000 values')
    """
    opened = text.count("[") + text.count("{")
    if opened <= DEEPEST and opened + text.count(",") <= MOST_VALUES:
        return ""
    bare = STRINGS.sub("", text)
    if sum(map(bare.count, "[{,")) > MOST_VALUES:
        return f"more than {MOST_VALUES} values"
    depth = 0
    for bracket in re.findall(r"[][{}]", bare):
        depth += 1 if bracket in "[{" else -1
        if depth > DEEPEST:
            return f"nested deeper than {DEEPEST} levels"
    return ""


def parsed(raw: str) -> tuple[dict[str, Any], str]:
    """A message, and why it is no task; without a message where it has not even its shape.

    >>> parsed("[]")[1], parsed("no JSON")[1], parsed('{"properties": {}, "body": 1}')[1]
    ('no properties', 'not valid JSON', 'invalid body')
    """
    try:
        raw.encode()
        if problem := excess(raw):
            return {}, problem
        message = json.loads(raw)
    except (ValueError, RecursionError):
        return {}, "not valid JSON"
    if not isinstance(message, dict) or not isinstance(message.get("properties"), dict):
        return {}, "no properties"
    if not isinstance(message.get("headers"), (dict, type(None))):
        return {}, "invalid headers"
    return message, "" if isinstance(message.get("body"), str) else "invalid body"


def places_of(
    client: Client, queues: Sequence[str], prefixes: Sequence[str], wanted: Filter, *, admin: bool
) -> tuple[dict[Place, int], bool]:
    """Lists with dead letters and how many each has, and whether all keys were looked at.

    :param queues: those that are declared. Those that workers consume are added, and the one that
        the filter names; the user admin finds those of all others, too.
    :raises RedisError: when Redis does not answer, or refuses.
    """
    under = list(dict.fromkeys(["", *prefixes]))
    names = [*queues, *(one for held in lives_of(client, under).values() for one in held)]
    names += [wanted.queue] if wanted.queue else []
    found = {Place(prefix, queue) for queue in names for prefix in under}
    is_complete = True
    if admin:
        keys, is_complete = lists_of(client, match=f"*{DEAD}*")
        found |= {Place(*key.split(DEAD, 1)) for key in keys}
    chosen = sorted(p for p in found if RUNTIME not in p.prefix and wanted.takes_place(p))
    lengths = client.try_all(*(("LLEN", place.key) for place in chosen))
    problems = [one for one in lengths if isinstance(one, RedisError)]
    for problem in problems:
        # The user of one app may not look at the lists of others.
        is_refused = str(problem).startswith("NOPERM") and len(problems) < len(lengths)
        if not is_refused and not str(problem).startswith("WRONGTYPE"):
            raise problem
    pairs = zip(chosen, lengths, strict=True)
    return {place: n for place, n in pairs if type(n) is int and n}, is_complete


def read(client: Client, place: Place, offset: int, size: int) -> list[Letter]:
    """Some letters of a list, the oldest first, after so many; none at the end.

    :raises RedisError: when Redis does not answer, or refuses.
    """
    limits = (str(-offset - size), str(-offset - 1), str(MOST_BYTES), str(LARGEST))
    (found,) = client.ask(("EVAL", READ, "1", place.key, *limits))
    return [Letter(*one) for one in found]


def letters(client: Client, place: Place, most: int, until: float) -> Iterator[tuple[int, Letter]]:
    """Letters of a list with their index from its end, the oldest first, which changes nothing.

    :param most: how many.
    :param until: the monotonic time at which it ends early.
    """
    offset, size = 0, 1
    while offset < most and time.monotonic() < until:
        some = read(client, place, offset, min(size, most - offset))
        if not some:
            return
        for number, letter in enumerate(some):
            yield offset + number, letter
        offset += len(some)
        size = _next(size, some)


def _next(size: int, some: Sequence[Letter]) -> int:
    """How many to read next, after these."""
    return max(1, min(2 * size, AT_ONCE, MOST_BYTES // max(1, *(one.size for one in some))))


class Result(NamedTuple):
    """How many letters were sent back or deleted, and which could not be."""

    done: int
    gone: int
    refused: list[DeadLetter]
    refused_count: int
    by_queue: dict[str, int]


def take(
    client: Client,
    places: Mapping[Place, int],
    wanted: Filter,
    *,
    back: bool,
    check: bool,
    rows: int,
) -> Result:
    """Send letters back to their queues, or delete them; the oldest first, each in one step.

    A letter that comes while this runs, such as one that was just sent back, is left alone.

    :param places: lists to how many letters each may have taken.
    :param back: whether they are sent back.
    :param check: whether it is only to find out.
    :param rows: how many of those that cannot be sent back are returned.
    :raises RedisError: when Redis does not answer, or refuses; what was done until then stays done.
    """
    done, gone, count = 0, 0, 0
    refused: list[DeadLetter] = []
    by_queue: dict[str, int] = {}
    for place, length in places.items():
        # Letters at the end of the list that stay there; letters that were looked at.
        kept, seen, size = 0, 0, 1
        while seen < length and (some := read(client, place, kept, min(size, length - seen))):
            size = _next(size, some)
            for letter in some:
                seen += 1
                if not wanted.takes(letter):
                    kept += 1
                    continue
                if back and letter.problem:
                    kept, count = kept + 1, count + 1
                    if len(refused) < rows:
                        refused.append({**letter.row(place), "reason": letter.problem})
                    continue
                if check:
                    kept += 1
                elif not _take(client, place, kept, letter, back=back):
                    # Somebody else has taken letters: what is where is read anew.
                    gone += 1
                    break
                done += 1
                by_queue[place.name] = by_queue.get(place.name, 0) + 1
    return Result(done, gone, refused, count, by_queue)


def _take(client: Client, place: Place, index: int, letter: Letter, *, back: bool) -> bool:
    keys, more = [place.key], [str(-index - 1), letter.digest]
    if back:
        keys += [letter.list_of(place), place.untold]
        more.append(letter.sent())
    (taken,) = client.ask(("EVAL", TAKE, str(len(keys)), *keys, *more))
    return bool(taken)
