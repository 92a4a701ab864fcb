"""Redis on this host, asked through its Unix socket with nothing but the standard library."""

from __future__ import annotations

import socket
from typing import Any, BinaryIO

from ansible.module_utils.podman_store import kept

SOCKET = "/run/celery-metal/redis/redis.sock"
SECONDS = 5


class RedisError(Exception):
    """Redis answered with an error; the text is its."""


def encoded(words: tuple[str, ...]) -> bytes:
    """A command in Redis's protocol.

    >>> encoded(("LLEN", "é"))
    b'*2\\r\\n$4\\r\\nLLEN\\r\\n$2\\r\\n\\xc3\\xa9\\r\\n'
    """
    parts = [word.encode() for word in words]
    body = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"*%d\r\n%b" % (len(parts), body)


def answer(stream: BinaryIO) -> Any:
    """The next answer: text, a number, a list of answers, or None.

    :raises RedisError: when it is an error, or ends before its time.
    """
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise RedisError("the connection was closed")
    kind, rest = line[:1], line[1:-2].decode(errors="replace")
    if kind == b"-":
        raise RedisError(rest)
    if kind == b":":
        return int(rest)
    if kind == b"*":
        return [answer(stream) for _ in range(int(rest))]
    if kind == b"$":
        return None if rest == "-1" else stream.read(int(rest) + 2)[:-2].decode(errors="replace")
    return rest


class Client:
    """A connection to Redis."""

    def __init__(self, path: str, seconds: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rb")

    def ask(self, *commands: tuple[str, ...]) -> list[Any]:
        """The answers to commands that are sent together."""
        self.socket.sendall(b"".join(map(encoded, commands)))
        return [answer(self.stream) for _ in commands]


def client_of(user: str) -> Client:
    """A connection as one of the kit's users; the password stays in this process.

    :raises RedisError: when there is no password, or Redis does not take it.
    :raises OSError: when Redis does not run.
    """
    name = f"celery-redis-{user}"
    found = kept(name).get(name)
    if found is None:
        raise RedisError(f"Podman has no secret {name} there; site.yml makes it")
    client = Client(SOCKET, SECONDS)
    client.ask(("AUTH", user, found.value))
    return client
