"""Redis, asked with nothing but the standard library: on this host, or over the network.

The role redis puts this file on the hosts of Redis, too, for redis_elected.py and redis_memory.py:
there is no Ansible to import.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

SOCKET = "/run/celery-metal/redis/redis.sock"
SECONDS = 5
# kombu gives each priority but 0 a list of its own, with this before its number.
PRIORITIES = ["", *(f"\x06\x16{number}" for number in range(1, 10))]


class RedisError(Exception):
    """Redis or Podman answered with an error; the text is theirs."""


class ClosedError(RedisError):
    """The connection ended before the answer did."""


def secrets(*names: str) -> list[str]:
    """Those of Redis in Podman's store; they stay in this process.

    :raises RedisError: when one of them is not there.
    """
    full = [f"celery-redis-{name}" for name in names]
    done = subprocess.run(
        ["podman", "secret", "inspect", "--showsecret", *full],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RedisError(f"{done.stderr.strip()}; site.yml brings it")
    values = {
        one["Spec"]["Name"]: one["SecretData"].rstrip("\n") for one in json.loads(done.stdout)
    }
    return [values[name] for name in full]


def encoded(words: tuple[str, ...]) -> bytes:
    """A command in Redis's protocol.

    >>> encoded(("LLEN", "é"))
    b'*2\\r\\n$4\\r\\nLLEN\\r\\n$2\\r\\n\\xc3\\xa9\\r\\n'
    """
    parts = [word.encode(errors="surrogateescape") for word in words]
    body = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"*%d\r\n%b" % (len(parts), body)


def answer(stream: BinaryIO, errors: str = "replace") -> Any:
    """The next answer: text, a number, a list of answers, or None.

    :param errors: what becomes of bytes that are not UTF-8, as for bytes.decode.
    :raises RedisError: when it is an error.
    :raises ClosedError: when it ends before its time.
    """
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ClosedError("the connection was closed")
    kind, rest = line[:1], line[1:-2].decode(errors="replace")
    if kind == b"-":
        raise RedisError(rest)
    if kind == b":":
        return int(rest)
    if kind == b"*":
        return [answer(stream, errors) for _ in range(int(rest))]
    if kind == b"$":
        return None if rest == "-1" else stream.read(int(rest) + 2)[:-2].decode(errors=errors)
    return rest


class Client:
    """A connection to Redis.

    :param where: the path of a Unix socket, or an address and a port.
    :param tls: how the server is checked; only over the network, and without it as plain text.
    """

    def __init__(
        self, where: str | tuple[str, int], seconds: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self.where = where
        #: What becomes of bytes that are not UTF-8; "surrogateescape" keeps them.
        self.errors = "replace"
        if isinstance(where, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(seconds)
            self.socket.connect(where)
        else:
            self.socket = socket.create_connection(where, seconds)
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket, server_hostname=where[0])
        self.stream = self.socket.makefile("rb")

    def close(self) -> None:
        self.stream.close()
        self.socket.close()

    def ask(self, *commands: tuple[str, ...]) -> list[Any]:
        """The answers to commands that are sent together."""
        self.socket.sendall(b"".join(map(encoded, commands)))
        return [answer(self.stream, self.errors) for _ in commands]

    def try_all(self, *commands: tuple[str, ...]) -> list[Any]:
        """The same, with an error of Redis's in the place of the answer."""
        self.socket.sendall(b"".join(map(encoded, commands)))
        answers: list[Any] = []
        for _ in commands:
            try:
                answers.append(answer(self.stream, self.errors))
            except RedisError as problem:
                answers.append(problem)
        return answers


def fields(text: str) -> dict[str, str]:
    """The answer to INFO.

    >>> fields("# Memory\\r\\nused_memory:7\\r\\n")
    {'used_memory': '7'}
    """
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def queues_of(life: str) -> list[str]:
    """The queues that a worker tells of; none where it is not understood.

    Without those of the runtime itself, such as the one for a worker's first task.

    >>> queues_of('[7, 1, ["mail", "celery-metal.canary:x"]]'), queues_of("[]"), queues_of("?")
    (['mail'], [], [])
    """
    try:
        queues = [str(queue) for queue in json.loads(life)[2]]
    except (ValueError, TypeError, LookupError):
        return []
    return [queue for queue in queues if not queue.startswith("celery-metal.")]


def lives_of(client: Client, prefixes: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Prefix and node name of each worker to the queues that it consumes."""
    beats = client.try_all(*(("HGETALL", f"{prefix}celery-metal.nodes") for prefix in prefixes))
    return {
        (prefix, node): queues_of(life)
        for prefix, said in zip(prefixes, beats, strict=True)
        if isinstance(said, list)  # what the user may not read holds none of its app
        for node, life in zip(said[::2], said[1::2], strict=True)
    }


def tls_context(ca: str, certificate: str, directory: str) -> ssl.SSLContext:
    """What checks a server by its name, and shows it a certificate.

    :param ca: PEM text of the authority's certificate; empty for those that the system trusts.
    :param certificate: PEM text of the client's certificate and its key; empty for none.
    :param directory: where it is written for a moment, as Python takes it from a file alone.
    :raises ssl.SSLError: when one of them is none.
    """
    context = ssl.create_default_context(cadata=ca or None)
    if certificate:
        with tempfile.NamedTemporaryFile("w", dir=directory) as file:  # root's alone
            file.write(certificate)
            file.flush()
            context.load_cert_chain(file.name)
    return context


class Primary(NamedTuple):
    """The Redis that Sentinels have elected last, and what kept others from saying so.

    ``silent`` is each Sentinel that gave no answer, with the reason.
    """

    where: tuple[str, int]
    silent: dict[str, str]


def watched(client: Client, master_name: str, login: tuple[str, ...]) -> list[dict[str, str]]:
    """What a Sentinel knows of the Redis of that name, if it watches one; the connection ends.

    :param login: a user and its password, or the password alone, or nothing.
    :raises RedisError: when it refuses the login.
    """
    commands = [*([("AUTH", *login)] if login else []), ("SENTINEL", "MASTERS")]
    try:
        *_, masters = client.ask(*commands)
    finally:
        client.close()
    known = [dict(zip(one[::2], one[1::2], strict=True)) for one in masters]
    return [one for one in known if one["name"] == master_name]


def primary_of(
    sentinels: Sequence[Sequence[str | int]],
    master_name: str,
    login: tuple[str, ...],
    tls: ssl.SSLContext | None,
) -> Primary:
    """Ask all Sentinels for the primary: one behind a cut network would name an earlier one.

    :param sentinels: host and port of each.
    :param login: as for watched.
    :raises RedisError: when none knows it, or one refuses the login; or it is down.
    :raises OSError: when none can be reached.
    """
    states, silent, failure = [], {}, OSError("no Sentinel is named")
    for host, port in sentinels:
        try:
            client = Client((str(host), int(port)), SECONDS, tls)
        except OSError as problem:
            silent[f"{host}:{port}"] = str(problem.strerror or problem)
            failure = problem
            continue
        states += watched(client, master_name, login)
    if len(silent) == len(sentinels):
        raise failure
    if not states:
        raise RedisError(f"they watch no Redis of the name {master_name}")
    newest = max(states, key=lambda one: int(one["config-epoch"]))
    if "down" in newest["flags"]:
        raise RedisError(f"the primary {newest['ip']}:{newest['port']} is down")
    return Primary((newest["ip"], int(newest["port"])), silent)
