"""sd_notify(3) in plain Python, and words for the journal."""

import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from importlib import import_module
from typing import Any

VARIABLE = "NOTIFY_SOCKET"
SEND_SECONDS = 1.0
STDERR = 2


def unpatched(module: str, name: str) -> Any:
    """The standard library's own `module.name`, also where gevent has replaced it."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original(module, name) if monkey else getattr(import_module(module), name)


def say(text: str) -> None:
    """A line in the journal, from any thread.

    Not by logging, whose locks another thread may hold for ever.
    """
    with suppress(OSError):
        os.write(STDERR, f"celery-metal: {text}\n".encode())


def line(error: Exception) -> str:
    """What an error says, for the middle of a line."""
    return str(error).partition("\n")[0][:200].rstrip(".")


class Notifier:
    """Tells systemd how this process is; silent without NOTIFY_SOCKET and in forked children."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        # Taken out, so that neither pool children nor what tasks start can speak for the worker.
        self._given = environ.pop(VARIABLE, "")
        # A leading @ means Linux's abstract namespace, which the kernel marks by a zero byte.
        self._address = "\0" + self._given[1:] if self._given.startswith("@") else self._given
        self._pid = os.getpid()
        if self._given:
            family, kind = unpatched("socket", "AF_UNIX"), unpatched("socket", "SOCK_DGRAM")
            self._socket = unpatched("socket", "socket")(family, kind)
            self._socket.settimeout(SEND_SECONDS)

    def send(self, *lines: str) -> None:
        """Send assignments such as READY=1 as one message; a lost one is no error."""
        if not self._given or os.getpid() != self._pid:
            return
        with suppress(OSError):
            self._socket.sendto("\n".join(lines).encode(), self._address)

    def give_back(self, environ: MutableMapping[str, str]) -> None:
        """Restore the variable, for the Celery that SIGHUP executes in this one's place."""
        if self._given:
            environ[VARIABLE] = self._given
