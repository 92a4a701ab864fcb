"""Whoever waits for a task that became a dead letter learns of it, as of a task that has failed.

Its result becomes FAILURE with the reason, its errbacks run, and a chord that it belongs to fails:
what Celery does for a task whose process was lost. A dead letter is pushed into a second list of
its queue in the same step, and leaves that list when its failure is stored.

A thread of its own does this: a result backend that is away, or an errback that takes its time,
does not hold up the consumer. Of all workers of the queues one at a time does it.
"""

import json
import threading
from secrets import token_hex
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from celery import signals, states
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.exceptions import InvalidTaskError, NotRegistered, WorkerLostError
from kombu.serialization import prepare_accept_content

from celery_metal_runtime.broker import client_of, is_wrong_type
from celery_metal_runtime.dead import REASON, UNKNOWN, UNTOLD
from celery_metal_runtime.ledger import MOVE, Ledger
from celery_metal_runtime.messages import (
    LONGEST_NAME,
    RefusedError,
    brief,
    check_task,
    name_of,
    parse,
)
from celery_metal_runtime.notify import line, say

if TYPE_CHECKING:
    from celery import Celery
    from kombu.message import Message

#: How often a worker looks, how many it does at most then, and how long it waits after a failure.
LOOK_SECONDS, MOST_AT_ONCE, PAUSE_SECONDS = 1.0, 100, 30.0
#: Held by the worker that tells; another one may after this.
LOCK, LOCK_MS = "celery-metal.telling", 60_000
#: After so many failures nobody learns of a dead letter; before, it goes to the end of the list.
MOST_TRIES, TRIES = 20, "celery_metal_tries"


class Verdicts:
    """Stores the failures of dead letters that come by a ledger."""

    def __init__(self, app: "Celery", ledger: Ledger) -> None:
        self.app, self.ledger = app, ledger
        self._client: Any = None
        self._paused_until = 0.0

    def start(self) -> None:
        """Begin; called in the consumer's loop, once it has a channel."""
        if self._client is None:
            self._client = client_of(self.ledger.channel)
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self.ledger.closed:
            sleep(LOOK_SECONDS)
            ledger = self.ledger
            if not ledger.has_untold or ledger.down_since or monotonic() < self._paused_until:
                continue
            # The ledger sees after some beats what is left, or what others have not done.
            ledger.has_untold = False
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - of Redis: later, or by another worker
                self._pause(f"cannot look for dead letters: {line(error)}")

    def look(self) -> None:
        """Store the failures that are due, if no other worker does; errors are those of Redis."""
        lock, token = self.ledger.key(LOCK), token_hex(8)
        if not self._client.set(lock, token, nx=True, px=LOCK_MS):
            return
        try:
            for key in self.ledger.untold_keys():
                for _ in range(MOST_AT_ONCE):
                    if not self._tell_last(key) or self.ledger.closed:
                        break
                    self._client.set(lock, token, px=LOCK_MS)
                else:
                    self.ledger.has_untold = True
        finally:
            self._client.delete(lock)

    def _tell_last(self, key: str) -> bool:
        """Tell of the oldest one of a list; whether there may be another to tell of now."""
        try:
            found = self._client.lrange(key, -1, -1)
        except Exception as error:
            if not is_wrong_type(error):
                raise
            self._client.delete(key)
            found = []
        for item in found:
            try:
                fail(self.app, self.ledger.channel, item)
            except BaseException as error:  # noqa: BLE001 - of a backend, of the app's own code
                self._put_off(key, item, error)
                return False
            self._client.lrem(key, -1, item)
        return bool(found)

    def _put_off(self, key: str, item: bytes, error: BaseException) -> None:
        message = json.loads(item)
        tries = message["headers"].get(TRIES)
        tries = tries + 1 if type(tries) is int and 0 < tries < MOST_TRIES else 1
        what = f"cannot store that {name_of(item)} failed: {brief(error)}"
        if tries == MOST_TRIES:
            self._client.lrem(key, -1, item)
            say(f"{what}. After {tries} tries nobody learns of it")
            return
        message["headers"][TRIES] = tries
        self._client.eval(MOVE, 2, key, key, item, "LPUSH", json.dumps(message))
        self._pause(what)

    def _pause(self, what: str) -> None:
        self._paused_until = monotonic() + PAUSE_SECONDS
        say(f"{what}. It is tried again")


def fail(app: "Celery", channel: Any, item: bytes) -> None:
    """Mark the task of a dead letter as failed, unless it has another final result already.

    Errors are those of the app's result backend. What has no valid ID has nobody who waits.
    """
    try:
        message = parse(item)
    except RefusedError:
        return
    message["properties"]["delivery_tag"] = UNTOLD
    headers = message["headers"] = message.get("headers") or {}
    accept = prepare_accept_content(app.conf.accept_content)
    received = channel.Message(message, channel=channel, accept=accept)
    context, error = _context_of(received, str(headers.get(REASON, "unknown")))
    if context is None:
        return
    name = context.get("task")
    if headers.get(REASON) == UNKNOWN and name:
        error = NotRegistered(name)  # as Celery stores it at once
    task = app.tasks.get(name) if isinstance(name, str) else None
    backend = task.backend if task else app.backend
    is_ignored = context.ignore_result or (task is not None and task.ignore_result)
    is_stored = not is_ignored or bool(task and task.store_errors_even_if_ignored)
    if isinstance(backend, DisabledBackend):
        is_stored = False
    if is_stored:
        known = backend.get_task_meta(context.id)
        is_ours = known["status"] == states.FAILURE and str(known["result"]) == str(error)
        if known["status"] in states.READY_STATES and not is_ours:
            return
    backend.mark_as_failure(
        context.id, error, request=context, store_result=is_stored, call_errbacks=False
    )
    try:
        if context.errbacks:
            backend._call_task_errbacks(context, error, None)
        if task:
            _signal(task, context, error)
    except BaseException as problem:  # noqa: BLE001 - of the app's own code; once is enough
        say(f"an errback of {name_of(item)} has failed: {brief(problem)}")


def _signal(task: Any, context: Context, error: Exception) -> None:
    signals.task_failure.send(
        sender=task,
        task_id=context.id,
        exception=error,
        args=context.args,
        kwargs=context.kwargs,
        traceback=None,
        einfo=None,
    )


def _context_of(message: "Message", reason: str) -> tuple[Context | None, Exception]:
    """What is known of the task; of an invalid one, the ID alone; None without one."""
    try:
        check_task(message)
    except RefusedError:
        number = message.headers.get("id")
        if not isinstance(number, str) or not 0 < len(number) <= LONGEST_NAME:
            return None, InvalidTaskError(reason)
        return Context(id=number, delivery_info={}), InvalidTaskError(reason)
    body = message.payload
    if isinstance(body, dict):  # of the first version of the protocol
        args, kwargs, fields = body.get("args"), body.get("kwargs"), {**body, **message.headers}
    else:
        args, kwargs, embedded = body
        fields = {**message.headers, **(embedded or {})}
    answers = {name: message.properties.get(name) for name in ("reply_to", "correlation_id")}
    fields |= {"args": args, "kwargs": kwargs, "delivery_info": {}, "called_directly": False}
    return Context({**fields, **answers}), WorkerLostError(f"it is a dead letter: {reason}")
