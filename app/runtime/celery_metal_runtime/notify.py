"""sd_notify(3) in plain Python, and words for the journal."""

import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from importlib import import_module
from typing import Any

VARIABLE = "NOTIFY_SOCKET"
SEND_SECONDS = 1.0
EX_TEMPFAIL = 75
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
    """Tells systemd how this process is; silent without NOTIFY_SOCKET and in forked children.

    It connects once: the unit closes the socket's path as soon as the worker is ready, so that only
    this process can speak for the worker. SystemExit where the path is closed already.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        # Taken out, so that neither pool children nor what tasks start can speak for the worker.
        self._given = environ.pop(VARIABLE, "")
        if not self._given:
            return
        # A leading @ means Linux's abstract namespace, which the kernel marks by a zero byte.
        address = "\0" + self._given[1:] if self._given.startswith("@") else self._given
        family, kind = unpatched("socket", "AF_UNIX"), unpatched("socket", "SOCK_DGRAM")
        self._socket = unpatched("socket", "socket")(family, kind)
        self._socket.settimeout(SEND_SECONDS)
        try:
            self._socket.connect(address)
        except PermissionError:
            # SIGHUP, in a container that was ready before.
            say("restarted in place, it cannot report to systemd: it ends, and another is started")
            raise SystemExit(EX_TEMPFAIL) from None
        except OSError:  # nobody listens
            self._socket.close()
        os.register_at_fork(after_in_child=self._socket.close)

    def send(self, *lines: str) -> None:
        """Send assignments such as READY=1 as one message; a lost one is no error."""
        if not self._given:
            return
        with suppress(OSError):
            self._socket.send("\n".join(lines).encode())

    def give_back(self, environ: MutableMapping[str, str]) -> None:
        """Restore the variable, for the Celery that SIGHUP executes in this one's place."""
        if self._given:
            environ[VARIABLE] = self._given
