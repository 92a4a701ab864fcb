"""The consumer's loop turns as soon as there is something for it to do.

A worker that is full asks Redis for no task, so its loop waits for nothing but its timers:

- Under gevent Celery's `synloop` waits up to 2 s in `drain_events`, and a task that ends does not
  wake it. Before Celery 5.7 the acknowledgement waits there, too.
- With threads Celery's `asynloop` acknowledges what pool threads hand to `Hub.call_soon`, which
  before kombu 5.7 wakes nothing: the loop turns once a second.

Here both wait for a pipe, too, into which a byte is written when a place becomes free. No loop
turns more often than that: a worker that is idle, or full of long tasks, sleeps as before.
"""

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from celery.worker.consumer import Consumer
from kombu.asynchronous.hub import Hub
from kombu.transport.redis import MultiChannelPoller
from kombu.utils.eventio import READ

if TYPE_CHECKING:
    from kombu.transport.redis import Transport
else:
    Transport = object  # mixed into it


class Waker:
    """Ends a wait for file descriptors, from any thread or greenlet."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._is_pending = False
        #: Whether a loop waits for it.
        self.is_used = False
        self._thread = 0

    def fileno(self) -> int:
        """What becomes readable."""
        return self._reader

    def use(self) -> None:
        """A loop of this thread waits for it from now on."""
        self.is_used, self._thread = True, threading.get_ident()

    def wake(self) -> None:
        """Have the loop turn once more; what it shall find must be there already."""
        if not self.is_used or self._is_pending:
            return
        # The loop's own thread, or greenlet, looks before it waits.
        if threading.get_ident() != self._thread:
            self._is_pending = True
            with suppress(BlockingIOError):
                os.write(self._writer, b"\0")

    def drain(self) -> None:
        """The loop turns. What is handed over from now on writes anew."""
        with suppress(BlockingIOError):
            os.read(self._reader, 64)
        self._is_pending = False


class Poller(MultiChannelPoller):
    """Also waits for a waker, when `drain_events` is called instead of a hub that polls."""

    waker: Waker | None = None

    def attach(self, waker: Waker) -> None:
        """Wait for `waker`, too."""
        self.waker = waker
        self.poller.register(waker.fileno(), READ)
        waker.use()

    @property
    def fds(self) -> dict[int, Any]:
        """The file descriptors that are waited for."""
        found: dict[int, Any] = super().fds
        # kombu 5.7 sleeps a second where there is none.
        return found | {self.waker.fileno(): None} if self.waker else found

    def handle_event(self, fileno: int, event: int) -> Any:
        """Whatever is true ends `drain_events`."""
        if self.waker and fileno == self.waker.fileno():
            self.waker.drain()
            return True
        return super().handle_event(fileno, event)


class Waking(Transport):
    """What a transport does differently; mixed into kombu's two kinds."""

    waker: Waker

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()
        self._has_hub = False

    def register_with_event_loop(self, connection: Any, loop: Hub) -> None:
        """Have a hub wait for what kombu waits for, and for the waker where it has none."""
        super().register_with_event_loop(connection, loop)
        self._has_hub = True
        if _is_hub_deaf():
            # Also anew after each lost connection, when the hub forgets all that it reads.
            loop.add_reader(self.waker.fileno(), self.waker.drain)
            self.waker.use()

    def wait_for_places(self) -> None:
        """The consumer's own connection: have its loop woken when a task is acknowledged."""
        if not self._has_hub and self.cycle.waker is None:
            self.cycle.attach(self.waker)


def install() -> Waker:
    """Have what is handed to the consumer's loop wake it; the waker."""
    waker = Waking.waker = Waker()
    consumer_soon, hub_soon = Consumer.call_soon, Hub.call_soon

    def call_soon(self: Consumer, *args: Any, **kwargs: Any) -> Any:
        called = consumer_soon(self, *args, **kwargs)
        if not self.hub:
            waker.wake()
        return called

    def call_soon_in_hub(self: Hub, *args: Any) -> Any:
        called = hub_soon(self, *args)
        waker.wake()
        return called

    Consumer.call_soon = call_soon
    if _is_hub_deaf():
        Hub.call_soon = call_soon_in_hub
    return waker


def _is_hub_deaf() -> bool:
    """Whether other threads cannot wake kombu's hub: before 5.7."""
    return not hasattr(Hub, "_create_waker")
