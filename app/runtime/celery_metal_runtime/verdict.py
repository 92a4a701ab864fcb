"""Whoever waits for a task that became a dead letter learns of it, as of a task that has failed.

Its result becomes FAILURE with the reason, its errbacks run, and a chord that it belongs to fails:
what Celery does for a task whose process was lost. A dead letter is pushed into a second list in
the same step. It leaves that list when this is done: a crash in between leaves nobody waiting.
"""

from typing import TYPE_CHECKING, Any

from celery import signals, states
from celery.app.task import Context
from celery.exceptions import InvalidTaskError, WorkerLostError
from kombu.serialization import prepare_accept_content

from celery_metal_runtime.guard import BROKER_ERRORS
from celery_metal_runtime.ledger import REASON, UNTOLD, Ledger
from celery_metal_runtime.messages import (
    LONGEST_NAME,
    RefusedError,
    brief,
    check_task,
    name_of,
    parse,
)
from celery_metal_runtime.notify import say

if TYPE_CHECKING:
    from celery import Celery
    from kombu.message import Message

#: How often a consumer looks, and how many it does at once: each is some requests to the backend.
LOOK_SECONDS = 1.0
AT_ONCE = 30


def tell(app: "Celery", ledger: Ledger) -> None:
    """Store the failures that are due, some at a time; errors of Redis leave them for later."""
    if not ledger.has_untold or ledger.down_since is not None or ledger.channel is None:
        return
    client, key = ledger.client, ledger.untold_key
    try:
        items = client.lrange(key, -AT_ONCE, -1)
        for item in reversed(items):
            _tell_one(app, ledger.channel, item)
            client.lrem(key, -1, item)
    except BROKER_ERRORS as error:
        say(f"the failure of a dead letter is not stored yet: {brief(error)}")
        ledger.has_untold = False  # until the ledger sees after some beats that it is still there
    else:
        ledger.has_untold = len(items) == AT_ONCE


def _tell_one(app: "Celery", channel: Any, item: bytes) -> None:
    try:
        fail(app, channel, item)
    except BROKER_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001 - of a message, a backend or an errback
        say(f"cannot store that {name_of(item)} failed: {brief(error)}")


def fail(app: "Celery", channel: Any, item: bytes) -> None:
    """Mark the task of a dead letter as failed, unless its result is final already.

    Errors are those of the app's result backend. What has no valid ID has nobody who waits.
    """
    try:
        message = parse(item)
    except RefusedError:
        return
    message["properties"]["delivery_tag"] = UNTOLD
    reason = str(message["headers"].get(REASON, "unknown"))
    accept = prepare_accept_content(app.conf.accept_content)
    received = channel.Message(message, channel=channel, accept=accept)
    context, error = _context_of(received, reason)
    if context is None:
        return
    name = received.headers.get("task")
    task = app.tasks.get(name) if isinstance(name, str) else None
    backend = task.backend if task else app.backend
    is_stored = not context.ignore_result or bool(task and task.store_errors_even_if_ignored)
    if is_stored and backend.get_state(context.id) in states.READY_STATES:
        return
    backend.mark_as_failure(context.id, error, request=context, store_result=is_stored)
    if task:
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
    if "task" in message.headers:
        args, kwargs, embedded = body
        fields = {**message.headers, **(embedded or {})}
    else:  # of the first version of the protocol
        args, kwargs, fields = body.get("args"), body.get("kwargs"), dict(body)
    fields |= {"args": args, "kwargs": kwargs, "delivery_info": {}, "called_directly": False}
    return Context(fields), WorkerLostError(f"it is a dead letter: {reason}")
