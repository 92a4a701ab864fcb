"""No message ends a worker, stops its queue or blocks a slot of its pool.

A message that is not a valid task (see `messages`) becomes a dead letter with the reason. So does a
message on which Celery itself fails. An invalid control command is dropped.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import signals
from celery.concurrency.base import BasePool
from celery.concurrency.prefork import TaskPool as Prefork
from celery.exceptions import TaskRevokedError
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.consumer import Consumer
from celery.worker.pidbox import Pidbox
from celery.worker.request import Request
from kombu.exceptions import InconsistencyError, OperationalError
from redis import exceptions as redis

from celery_metal_runtime.broker import is_wrong_type
from celery_metal_runtime.dead import UNKNOWN
from celery_metal_runtime.ledger import GIVEN, Ledger
from celery_metal_runtime.messages import (
    MOST_CLOCK,
    POLL_SECONDS,
    RefusedError,
    brief,
    check_command,
    check_task,
    limit_expansion,
)
from celery_metal_runtime.questions import check_question, listen_too, questions

#: Errors of the broker: no message's fault. Not kombu's list, which has KeyError in it.
BROKER_ERRORS = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ResponseError,
    redis.AuthenticationError,
    InconsistencyError,
    OperationalError,
    OSError,
)
logger = get_logger(__name__)


def install(ledger: Ledger) -> None:
    """Guard the worker of this process; what it puts aside goes by `ledger`."""
    limit_expansion()
    _guard_consumer(ledger)
    _guard_pools(ledger)
    _guard_remote_control(ledger)


def _guard_consumer(ledger: Ledger) -> None:
    create, unknown = Consumer.create_task_handler, Consumer.on_unknown_task
    add = Consumer.add_task_queue

    def refuse(consumer: Consumer, message: Any, reason: str) -> None:
        ledger.refuse(message.delivery_tag, reason)
        if not message.acknowledged:
            message.reject_log_error(logger, consumer.connection_errors)
        signals.task_rejected.send(sender=consumer, message=message, exc=None)

    def create_guarded(self: Consumer, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = create(self, *args, **kwargs)
        shortest = min(POLL_SECONDS, self.app.conf.result_chord_retry_interval)

        def on_task_received(message: Any) -> None:
            tag = message.delivery_tag
            try:
                check_task(message, shortest)
                ledger.deliver(tag)
                handle(message)
                ledger.deliver(None)
                ledger.taken(tag)
            except RefusedError as error:
                refuse(self, message, str(error))
            except BROKER_ERRORS:
                ledger.deliver(None)
                raise
            except Exception as error:  # noqa: BLE001 - else it would end the worker
                ledger.deliver(None)
                for request in _requests_of(message):
                    worker_state.task_ready(request)
                refuse(self, message, f"Celery fails on it: {brief(error)}")

        return on_task_received

    def add_guarded(self: Consumer, *args: Any, **kwargs: Any) -> None:
        try:
            add(self, *args, **kwargs)
        except BROKER_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001 - else a control command would end the worker
            ledger.drop(f"cannot consume another queue: {brief(error)}")

    def on_decode_error(self: Consumer, message: Any, exc: Exception) -> None:
        refuse(self, message, f"cannot decode the body: {brief(exc)}")

    def on_invalid_task(self: Consumer, body: Any, message: Any, exc: Exception) -> None:
        refuse(self, message, brief(exc))

    def on_unknown_message(self: Consumer, body: Any, message: Any) -> None:
        refuse(self, message, "no task name")

    def on_unknown_task(self: Consumer, body: Any, message: Any, exc: Exception) -> None:
        # Celery stores the failure of the task, as `verdict` does, which also does all else.
        ledger.refuse(message.delivery_tag, UNKNOWN, is_task=True)
        try:
            unknown(self, body, message, exc)
        except redis.ResponseError as error:
            ledger.drop(f"cannot store the failure of an unknown task: {brief(error)}")

    Consumer.create_task_handler, Consumer.on_decode_error = create_guarded, on_decode_error
    Consumer.on_invalid_task, Consumer.on_unknown_message = on_invalid_task, on_unknown_message
    Consumer.on_unknown_task, Consumer.add_task_queue = on_unknown_task, add_guarded


def _requests_of(message: Any) -> list[Request]:
    found = {*worker_state.reserved_requests, *worker_state.active_requests}
    return [request for request in found if request._message is message]


def _guard_pools(ledger: Ledger) -> None:
    apply_async, on_failure = BasePool.apply_async, Request.on_failure

    def put_aside(request: Request, error: Exception) -> None:
        worker_state.task_ready(request)
        ledger.refuse(
            request._message.delivery_tag, f"Celery fails on it: {brief(error)}", is_task=True
        )
        request.reject(requeue=False)

    def guarded(
        request: Request, callback: Callable[..., Any] | None, *args: Any, **kwargs: Any
    ) -> Any:
        try:
            return callback and callback(*args, **kwargs)
        except BROKER_ERRORS as error:
            if not is_wrong_type(error):
                raise
            put_aside(request, error)
        except Exception as error:  # noqa: BLE001 - else its slot is taken for good
            put_aside(request, error)

    def apply_guarded(
        self: BasePool, target: Any, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        request = getattr(options.get("error_callback"), "__self__", None)
        if not isinstance(request, Request):
            return apply_async(self, target, args, kwargs, **options)
        for name in ("accept_callback", "timeout_callback", "callback", "error_callback"):
            options[name] = partial(guarded, request, options.get(name))
        if not isinstance(self, Prefork):  # which itself tells where a target fails
            target, options["callback"] = _failing(target, **options)
        ledger.begin(request._message.delivery_tag, GIVEN)
        try:
            return apply_async(self, target, args, kwargs, **options)
        except BROKER_ERRORS:
            raise
        except Exception as error:
            put_aside(request, error)
            # By this one Celery knows that the slot is free.
            raise TaskRevokedError(request.id) from error

    def on_failure_of_memory(self: Request, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, MemoryError):
            # Of the task's process; Celery would raise it in the main one.
            try:
                raise RuntimeError(f"MemoryError: {error}")
            except RuntimeError:
                exc_info = ExceptionInfo()
        return on_failure(self, exc_info, *args, **kwargs)

    BasePool.apply_async, Request.on_failure = apply_guarded, on_failure_of_memory


def _failing(
    target: Callable[..., Any],
    callback: Callable[..., Any],
    error_callback: Callable[..., Any],
    **_: Any,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`target` and its callback, so that the other one is called where the target fails."""

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return target(*args, **kwargs)
        except Exception:  # noqa: BLE001 - else nobody hears of it
            return ExceptionInfo()

    def finish(value: Any) -> Any:
        return (error_callback if isinstance(value, ExceptionInfo) else callback)(value)

    return run, finish


def _guard_remote_control(ledger: Ledger) -> None:
    init, on_message = Pidbox.__init__, Pidbox.on_message

    def init_with_questions(self: Pidbox, consumer: Consumer) -> None:
        init(self, consumer)
        node = listen_too(self, lambda body, message: on_question(self, node, body, message))

    def check(node: Any, body: Any, message: Any) -> None:
        check_command(message.headers, body, node.handlers, node.mailbox.reply_exchange.name)
        # An invalid clock would spread to every client, and stay.
        clock = message.headers.get("clock") or 0
        message.headers["clock"] = min(max(clock, 0), MOST_CLOCK)

    def on_checked(self: Pidbox, body: Any, message: Any) -> None:
        try:
            check(self.node, body, message)
        except RefusedError as error:
            ledger.drop(f"dropped a control command: {error}")
        else:
            on_message(self, body, message)

    def on_question(self: Pidbox, node: Any, body: Any, message: Any) -> None:
        node.handlers = questions()
        try:
            check(node, body, message)
            check_question(body)
        except RefusedError as error:
            ledger.drop(f"dropped a question: {error}")
            return
        self._forward_clock()
        try:
            node.handle_message(body, message)
        except BROKER_ERRORS as error:  # as Celery does
            ledger.drop(f"cannot reply to a question: {brief(error)}")
            self.reset()
        except Exception as error:  # noqa: BLE001 - else it would end the worker
            ledger.drop(f"cannot answer a question: {brief(error)}")

    Pidbox.__init__, Pidbox.on_message = init_with_questions, on_checked
