"""Questions to workers, by an exchange that carries nothing else.

On the exchange of remote control, Redis cannot tell a question from a command. So each worker also
listens on a second one, on the same channel. From there it takes commands that only read. The user
`monitor` may publish to the second exchange alone.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any

from celery.worker.control import Panel
from kombu.transport import redis as kombu_redis
from redis import Redis, ResponseError
from redis.lock import Lock

from celery_metal_runtime.broker import QUESTIONS
from celery_metal_runtime.messages import RefusedError

if TYPE_CHECKING:
    from celery.worker.pidbox import Pidbox

#: What Celery registers as a question although it changes the worker: revoked tasks (hello), its
#: memory (memsample, memdump), its files (objgraph).
NOT_READING = ("hello", "memdump", "memsample", "objgraph")
# Scripts that kombu 5.7 and redis-py run as a client that asks. The client may have other versions.
REFRESH_BINDING = """
redis.call('SADD', KEYS[1], ARGV[1])
local now = redis.call('TIME')
local ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
redis.call('ZADD', KEYS[2], 'GT', ms + tonumber(ARGV[3]), ARGV[2])
"""
SWEEP_BINDINGS = """
local now = redis.call('TIME')
local ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local overdue = redis.call(
    'ZRANGEBYSCORE', KEYS[1], '-inf', ms, 'LIMIT', 0, tonumber(ARGV[3]))
for _, exchange in ipairs(overdue) do
    if redis.call('EXISTS', ARGV[2] .. exchange) == 0 then
        redis.call('DEL', ARGV[1] .. exchange)
    end
    redis.call('ZREM', KEYS[1], exchange)
end
return #overdue
"""


def questions() -> dict[str, Callable[..., Any]]:
    """Commands that only read, by name: Celery's, and those that the app registers as such."""
    reading = {
        Panel.data[name]
        for name, meta in Panel.meta.items()
        if meta.type == "inspect" and name not in NOT_READING and name in Panel.data
    }
    return {name: command for name, command in Panel.data.items() if command in reading}


def check_question(body: Mapping[str, Any]) -> None:
    """RefusedError for arguments by which a question shows more than its answer."""
    names = (body.get("arguments") or {}).get("taskinfoitems")
    names = names if isinstance(names, (list, tuple)) else [names]
    if any(type(name) is not str or name.startswith("_") for name in names if name is not None):
        raise RefusedError("invalid taskinfoitems")


def listen_too(pidbox: "Pidbox", on_message: Callable[[Any, Any], None]) -> Any:
    """Have `pidbox` listen on the exchange of questions whenever it listens; return that node.

    `on_message` gets each message from there.
    """
    mailbox = copy(pidbox.c.app.control.mailbox)
    mailbox.namespace = QUESTIONS
    mailbox.exchange = mailbox._get_exchange(QUESTIONS, mailbox.type)
    mailbox.reply_exchange = mailbox._get_reply_exchange(QUESTIONS)
    node = mailbox.Node(pidbox.node.hostname, state=pidbox.node.state)
    listen = pidbox.node.listen

    def listen_to_both(*args: Any, **kwargs: Any) -> Any:
        node.channel = pidbox.node.channel
        node.listen(callback=on_message).on_decode_error = pidbox.c.on_decode_error
        return listen(*args, **kwargs)

    pidbox.node.listen = listen_to_both
    return node


def load_scripts(client: Redis) -> None:
    """Load the scripts that clients may run and not load, as after a restart of Redis."""
    own = [getattr(kombu_redis, name, "") for name in ("REFRESH_BINDING", "SWEEP_BINDINGS")]
    texts = [REFRESH_BINDING, SWEEP_BINDINGS, Lock.LUA_RELEASE_SCRIPT, *filter(None, own)]
    with suppress(ResponseError):  # of a Redis of somebody else, which grants no such right
        for text in dict.fromkeys(texts):
            client.script_load(text)
