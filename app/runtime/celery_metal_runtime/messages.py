"""Which messages reach Celery: an allow-list of shapes, types and sizes.

Every producer can write any bytes into a queue. A message that Celery did not create can end a
worker, fail again at each start, or block a slot of the pool. So each message is checked as a
whole: shape, types, numbers, depth, size, and size after decompression. A task checks its own
arguments.
"""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from math import isfinite
from typing import TYPE_CHECKING, Any, NoReturn

from celery.app.task import Context
from celery.utils.time import maybe_iso8601
from kombu import compression
from kombu.utils.json import loads

from celery_metal_runtime.channels import is_own

if TYPE_CHECKING:
    from kombu.message import Message

MIB = 1 << 20
YAML = "application/x-yaml"
#: Bytes of a message as it is in Redis, and of its body when it is expanded.
LARGEST, LARGEST_BODY = 16 * MIB, 16 * MIB
#: The same by type, where few bytes make many objects, or take long to read.
LARGEST_OF_TYPE = {
    "application/json": LARGEST_BODY,
    "application/x-msgpack": 4 * MIB,
    YAML: MIB // 32,
}
LARGEST_OTHER = MIB
#: Numbers, texts, lists and so on in one message, each some 100 bytes of memory; lists in lists.
MOST_VALUES, DEEPEST = 1_000_000, 200
#: Characters of a task's name, its ID, and the like: each ends in a line of the journal.
LONGEST_NAME = 1024
MOST_RETRIES = 1_000_000
# Celery's poll for chords without a backend that counts; it sends itself again and again.
POLL, POLL_SECONDS, MOST_POLLS = "celery.chord_unlock", 0.1, 1_000_000
LONGEST_PATTERN = 256
#: Streams in one compressed body; bytes of memory that xz may use, which preset 9 needs.
STREAMS, XZ_MEMORY = 1000, 80 * MIB
#: The highest logical clock that a control command can set.
MOST_CLOCK = 1 << 52

# A text without an end matches, too: else each quote in it would be the begin of another search.
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

_NONE = type(None)
_TEXT, _WHOLE, _LIST, _MAP = (str, _NONE), (int, _NONE), (list, tuple, _NONE), (dict, _NONE)
_EMBEDDED = frozenset(("callbacks", "errbacks", "chain", "chord"))
#: Celery's own fields of a task, by their types. Others are the app's.
_FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("task", "id"), (str,)),
    **dict.fromkeys(("root_id", "parent_id", "group", "taskset", "shadow"), _TEXT),
    **dict.fromkeys(("reply_to", "correlation_id", "eta", "expires"), _TEXT),
    **dict.fromkeys(("lang", "meth", "origin", "argsrepr", "kwargsrepr", "compression"), _TEXT),
    **dict.fromkeys(("retries", "group_index", "replaced_task_nesting"), _WHOLE),
    **dict.fromkeys(("utc", "ignore_result"), (bool, int, _NONE)),
    **dict.fromkeys(("timelimit", "stamped_headers", "groups"), _LIST),
    **dict.fromkeys(("callbacks", "errbacks", "chain"), _LIST),
    **dict.fromkeys(("stamps", "chord", "delivery_info", "properties", "headers"), _MAP),
}
#: Of these the type alone says enough.
_BY_TYPE = _FIELDS.keys() - {
    *("task", "id", "root_id", "parent_id", "group", "taskset", "shadow"),
    *("reply_to", "correlation_id", "eta", "expires", "retries", "timelimit", "stamped_headers"),
    *_EMBEDDED,
}
# A field of such a name would take the place of what Celery calls.
_METHODS = frozenset(name for name in dir(Context) if callable(getattr(Context, name)))
_COMMAND = {
    *("method", "arguments", "destination", "pattern", "matcher", "reply_to", "ticket"),
}
_CONTROL_NAMES = ("exchange", "exchange_type", "routing_key", "task_name", "signal")
_CONTROL_SWITCHES = ("durable", "auto_delete", "exclusive", "terminate", "connected")
_CONTROL_NUMBERS = ("n", "max", "min", "hard", "soft")
_PARTS: dict[str, tuple[type, ...]] = {
    "headers": _MAP,
    "body": _TEXT,
    "content-type": _TEXT,
    "content-encoding": _TEXT,
}
_PROPERTIES: dict[str, tuple[type, ...]] = {
    "delivery_info": _MAP,
    "body_encoding": _TEXT,
    "reply_to": _TEXT,
    "correlation_id": _TEXT,
    "priority": (int, float, bool, str, _NONE),
}


class RefusedError(Exception):
    """The worker does not accept a message; the text is the reason, in a few words."""


def parse(item: bytes) -> dict[str, Any]:
    """Parse a message as kombu does; RefusedError for anything else."""
    if len(item) > LARGEST:
        raise RefusedError(f"its size is {len(item)} bytes; the limit is {LARGEST}")
    _measure(item)
    try:
        message: Any = loads(item.decode())
    except Exception as error:  # noqa: BLE001 - of decoding, and of kombu's types in JSON
        raise RefusedError(f"not valid JSON: {brief(error)}") from None
    if type(message) is not dict or type(message.get("properties")) is not dict:
        raise RefusedError("no properties")
    for name, types in _PARTS.items():
        if type(message.get(name)) not in types:
            _refuse_type(name, message[name])
    properties = message["properties"]
    for name, types in _PROPERTIES.items():
        if type(properties.get(name)) not in types:
            _refuse_type(name, properties[name])
    priority = properties.get("priority")
    if type(priority) is str:
        is_number = priority.isdecimal() and len(priority) < 3
    else:
        is_number = type(priority) is not float or isfinite(priority)
    if not is_number:
        raise RefusedError(f"invalid priority: {_show(priority)}")
    if (encoding := properties.get("body_encoding")) not in (None, "", "base64", "utf-8"):
        raise RefusedError(f"invalid body_encoding: {_show(encoding)}")
    for name, value in (properties.get("delivery_info") or {}).items():
        if type(value) is str:
            _check_name(name, value)
    return message


def check_task(message: "Message", shortest_poll: float = POLL_SECONDS) -> None:
    """RefusedError for a message, parsed by kombu, that is not a valid task.

    `shortest_poll` is the minimum interval of celery.chord_unlock, in seconds.
    """
    if message.errors:
        raise RefusedError(f"cannot decode the body: {brief(message.errors[0][1])}")
    body = message.body
    if not body:
        raise RefusedError("no body")
    kind = message.content_type or ""
    most = LARGEST_OF_TYPE.get(kind, LARGEST_OTHER)
    if len(body) > most:
        raise RefusedError(f"its body has {len(body)} bytes; the limit for {_show(kind)} is {most}")
    is_json = kind == "application/json"
    if is_json:
        _measure(body)
    elif kind == YAML:
        _refuse_aliases(body)
    try:
        payload = message.payload
    except Exception as error:  # noqa: BLE001 - of whatever serializer the app accepts
        raise RefusedError(f"cannot decode the body: {brief(error)}") from None
    if not is_json:
        _walk(payload)
    headers = message.headers
    if "task" in headers and type(payload) in (list, tuple):
        _check_fields(headers)
        if len(payload) != 3:
            raise RefusedError(f"its body has {len(payload)} parts instead of 3")
        fields, args, kwargs = headers, payload[0], payload[1]
        _check_embedded(payload[2])
    elif type(payload) is dict:  # the first version of Celery's messages, with or without headers
        fields = payload | headers
        _check_fields(payload, is_whole=False)
        _check_fields(fields)
        args, kwargs = payload.get("args", ()), payload.get("kwargs", {})
    else:
        raise RefusedError("no task name")
    if type(args) not in (list, tuple):
        _refuse_type("args", args)
    if type(kwargs) is not dict or not all(type(key) is str for key in kwargs):
        _refuse_type("kwargs", kwargs)
    if fields["task"] == POLL:
        _check_poll(fields, args, kwargs, shortest_poll)


def check_command(
    headers: Mapping[str, Any], body: object, commands: Container[str], replies: str
) -> None:
    """RefusedError for anything but a valid control command out of `commands`.

    `replies` is the exchange for replies. A reply to another exchange could reach any queue.
    """
    if type(body) is not dict:
        raise RefusedError("not a control command")
    if unknown := body.keys() - _COMMAND:
        raise RefusedError(f"unknown part of a control command: {_show(min(map(str, unknown)))}")
    clock = headers.get("clock")
    if type(clock) not in _WHOLE:
        raise RefusedError(f"invalid clock: {_show(clock)}")
    if type(body.get("method")) is not str or body["method"] not in commands:
        raise RefusedError(f"unknown control command {_show(body.get('method'))}")
    arguments = body.get("arguments")
    if type(arguments) not in _MAP or not all(type(key) is str for key in arguments or ()):
        _refuse_type("arguments", arguments)
    for name, value in (arguments or {}).items():
        _check_argument(name, value)
    destination = body.get("destination")
    if type(destination) not in _LIST or not all(type(name) is str for name in destination or ()):
        _refuse_type("destination", destination)
    pattern, matcher = body.get("pattern"), body.get("matcher")
    if type(pattern) not in _TEXT or len(pattern or "") > LONGEST_PATTERN:
        _refuse_type("pattern", pattern)
    # A pcre pattern can take forever to match.
    if matcher not in (None, "glob"):
        raise RefusedError(f"invalid matcher: {_show(matcher)}; only glob is supported")
    if type(body.get("ticket")) not in _TEXT:
        _refuse_type("ticket", body["ticket"])
    if (to := body.get("reply_to")) is None:
        return
    key, exchange = (to.get("routing_key"), to.get("exchange")) if type(to) is dict else (to, to)
    if exchange != replies:
        raise RefusedError(f"invalid exchange in reply_to: {_show(exchange)}")
    if type(key) is not str or not re.fullmatch(r"[0-9a-f-]{36}", key):
        raise RefusedError(f"invalid routing_key in reply_to: {_show(key)}")


def limit_expansion() -> None:
    """Have kombu expand no body beyond LARGEST_BODY, and none by what knows no limit."""
    decoders = compression._decoders
    for kind in list(decoders):
        decoders[kind] = _DECODERS.get(kind, _no_decoder)


def crashes_of(value: object) -> int:
    """The count of crashes that a message brings along; 0 for what is no such count."""
    return value if type(value) is int and 0 < value < MOST_RETRIES else 0


def name_of(item: bytes) -> str:
    """A message's task and ID, for a line of the journal."""
    with suppress(Exception):
        headers = loads(item.decode())["headers"]
        return f"{_show(headers['task'])[1:-1]}[{_show(headers['id'])[1:-1]}]"
    return "a message"


def printable(text: str, longest: int = 200) -> str:
    """What somebody else has written, for the middle of a line of the journal."""
    return "".join(one if one.isprintable() else "?" for one in text[:longest])


def brief(error: BaseException) -> str:
    """An error's kind and text, in a few printable characters."""
    text = printable(str(error).partition("\n")[0], 120)
    return f"{type(error).__name__}: {text}".rstrip(": ")


def _check_argument(name: str, value: Any) -> None:
    """Arguments of control commands that take effect later, when an error would end the worker."""
    if name == "queue":
        is_valid = type(value) is str and value.isprintable() and not is_own(value)
    elif name in _CONTROL_NAMES:
        is_valid = type(value) in _TEXT
    elif name in _CONTROL_SWITCHES:
        is_valid = type(value) is bool
    elif name in _CONTROL_NUMBERS:
        is_valid = _is_limit(value)
    elif name == "headers":  # of revoke_by_stamped_headers; a list comes from the command line
        stamps = value.values() if type(value) is dict else [value]
        is_valid = type(value) in (dict, list) and all(
            type(one) is str and (type(value) is dict or "=" in one)
            for stamp in stamps
            for one in (stamp if type(stamp) is list else [stamp])
        )
    else:
        return
    if not is_valid:
        _refuse_type(name, value)


def _check_fields(fields: Mapping[str, Any], *, is_whole: bool = True) -> None:
    """Refuse Celery's own fields of a task where one has not its type."""
    if is_whole and ("task" not in fields or "id" not in fields):
        raise RefusedError(f"no task {'ID' if 'task' in fields else 'name'}")
    if not _METHODS.isdisjoint(fields):
        raise RefusedError(f"reserved header {_show(min(_METHODS.intersection(fields)))}")
    for name, value in fields.items():
        types = _FIELDS.get(name)
        if types is None:
            if type(name) is not str:
                raise RefusedError(f"invalid header name: {_show(name)}")
            continue
        if type(value) not in types:
            _refuse_type(name, value)
        if value is not None and name not in _BY_TYPE:
            _check_value(name, value)


def _check_value(name: str, value: Any) -> None:
    if type(value) is str:
        if name in ("eta", "expires"):
            _check_time(name, value)
        else:
            _check_name(name, value)
    elif name == "retries":
        if not 0 <= value <= MOST_RETRIES:
            raise RefusedError(f"invalid retries: {_show(value)}")
    elif name == "timelimit":
        if value and not (len(value) == 2 and all(map(_is_limit, value))):
            _refuse_type(name, value)
    elif name in ("callbacks", "errbacks", "chain"):
        for one in value:
            _check_signature(name, one)
    elif name == "chord":
        _check_signature(name, value)
    elif name == "stamped_headers" and not all(type(one) is str for one in value):
        _refuse_type(name, value)


def _check_name(name: str, value: str) -> None:
    """What has a line of its own in no journal, and is a key in Redis."""
    if len(value) > LONGEST_NAME or not value.isprintable():
        raise RefusedError(f"invalid {_show(name)[1:-1]}: {_show(value)}")


def _check_time(name: str, value: str) -> None:
    try:
        moment = maybe_iso8601(value)
        # The year 1 is before all time in some zones, and the year 9999 after it in others.
        if name == "eta":
            if not 1970 <= moment.year < 9000:
                raise ValueError("nobody can wait for this year")
            moment.timestamp()
    except (ValueError, TypeError, AttributeError, OverflowError, OSError) as error:
        raise RefusedError(f"invalid {name}: {_show(value)}: {brief(error)}") from None


def _check_embedded(embedded: Any) -> None:
    if embedded is None:
        return
    if type(embedded) is not dict:
        _refuse_type("embed", embedded)
    for name, value in embedded.items():
        if name not in _EMBEDDED:
            raise RefusedError(f"unknown part of the body: {_show(name)}")
        if value is not None:
            if type(value) not in _FIELDS[name]:
                _refuse_type(name, value)
            _check_value(name, value)


def _check_signature(name: str, value: Any) -> None:
    """What follows a task is a task, too."""
    fields = value if type(value) is dict else {}
    args, *maps = (fields.get(part) for part in ("args", "kwargs", "options"))
    if (
        type(fields.get("task")) is not str
        or type(args) not in _LIST
        or any(type(one) not in _MAP for one in maps)
        or any(type(key) is not str for one in maps for key in one or ())
    ):
        raise RefusedError(f"invalid task in {name}: {_show(value)}")


def _check_poll(
    fields: Mapping[str, Any], args: Any, kwargs: Mapping[str, Any], shortest: float
) -> None:
    """Refuse a poll that sends itself again without a pause, or without an end."""
    interval = kwargs.get("interval", args[2] if len(args) > 2 else None)
    if interval is not None and not (_is_limit(interval) and interval >= shortest):
        raise RefusedError(f"interval {_show(interval)} is below the minimum of {shortest} s")
    if (fields.get("retries") or 0) >= MOST_POLLS:
        raise RefusedError(f"retried {fields['retries']} times")


def _is_limit(value: object) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value < 1e9)  # type: ignore[operator]


def _measure(text: bytes) -> None:
    """Refuse JSON that is too deep, or has too many values, before it is read."""
    opened = text.count(b"[") + text.count(b"{")
    if opened <= DEEPEST and (len(text) <= MOST_VALUES or opened + text.count(b",") <= MOST_VALUES):
        return
    bare = _STRINGS.sub(b"", text)
    values = 1 + bare.count(b"[") + bare.count(b"{") + bare.count(b",")
    if values > MOST_VALUES:
        raise RefusedError(f"{values} values; the limit is {MOST_VALUES}")
    depth = 0
    for bracket in bare.translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > DEEPEST:
            raise RefusedError(f"nested deeper than {DEEPEST} levels")


def _refuse_aliases(body: bytes) -> None:
    """Refuse YAML with aliases: a few of them make a document that fits into no memory."""
    try:
        yaml = import_module("yaml")
        has_alias = any(isinstance(one, yaml.AliasEvent) for one in yaml.parse(body))
    except Exception as error:  # noqa: BLE001 - of a body that kombu could not read either
        raise RefusedError(f"cannot decode the body: {brief(error)}") from None
    if has_alias:
        raise RefusedError("YAML with aliases")


def _walk(payload: object) -> None:
    """Refuse what is too deep, or has too many values, after it was read."""
    count, level, depth = 0, [payload], 0
    while level:
        count += len(level)
        if count > MOST_VALUES or depth > DEEPEST:
            raise RefusedError(
                f"more than {MOST_VALUES} values, or nested deeper than {DEEPEST} levels"
            )
        deeper: list[object] = []
        for one in level:
            if isinstance(one, Mapping):
                deeper += [*one.keys(), *one.values()]
            elif isinstance(one, (list, tuple, set, frozenset)):
                deeper += one
            # One list may be in another many times.
            if len(deeper) > MOST_VALUES:
                break
        level, depth = deeper, depth + 1


def _expand(create: Callable[[], Any], data: bytes, *, most_streams: int = 1) -> bytes:
    """Decompress with one of the standard library's decompressors, which all take a limit."""
    expanded = b""
    for number in range(most_streams):
        one = create()
        try:
            expanded += one.decompress(data, LARGEST_BODY + 1 - len(expanded))
        except (OSError, lzma.LZMAError):
            if number:  # what follows the last stream is ignored, as bz2 and lzma do
                break
            raise
        if len(expanded) > LARGEST_BODY:
            raise ValueError(f"it expands to more than {LARGEST_BODY} bytes")
        if not one.eof:
            raise ValueError("compressed data is truncated")
        data = one.unused_data
        if not data:
            break
    return expanded


def _expand_zstd(data: bytes) -> bytes:
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            return _expand(import_module(name).ZstdDecompressor, data, most_streams=STREAMS)
    return _no_decoder(data)


def _no_decoder(_: bytes) -> NoReturn:
    raise ValueError("unsupported compression: use gzip, bzip2 or xz")


_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "application/x-gzip": partial(_expand, zlib.decompressobj),
    "application/x-bz2": partial(_expand, bz2.BZ2Decompressor, most_streams=STREAMS),
    "application/x-lzma": partial(
        _expand, partial(lzma.LZMADecompressor, memlimit=XZ_MEMORY), most_streams=STREAMS
    ),
    "application/zstd": _expand_zstd,
}


def _refuse_type(name: str, value: object) -> NoReturn:
    raise RefusedError(f"invalid {name}: {_show(value)}")


def _show(value: object) -> str:
    """A value of whoever wrote it, in a few printable characters."""
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        size: Iterable[object] = value
        return f"a {type(value).__name__} of {len(list(size))}"
    text = ascii(value) if type(value) in (str, int, float, bool, bytes, _NONE) else type(value)
    text = str(text)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1:]}"
