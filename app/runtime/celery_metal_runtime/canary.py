"""Proof before work: a worker runs a task of its own before it takes one of its queue.

The task goes through Redis, by a queue that only this worker consumes, and through the pool. So
READY=1, and the `systemctl start` that waits for it, mean that tasks run, not that a process does.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery import Task
from celery.worker import state as worker_state
from kombu import Queue

from celery_metal_runtime.channels import CANARY

if TYPE_CHECKING:
    from celery import Celery
    from celery.worker.consumer import Consumer

    from celery_metal_runtime.ledger import Ledger

TASK = "celery_metal.canary"
CHECK_SECONDS = 0.05


class Canary:
    """The first task of the worker of `app` that keeps `ledger`."""

    def __init__(self, app: "Celery", ledger: "Ledger") -> None:
        self.app, self.ledger, self.task_id = app, ledger, str(uuid4())
        # Without a binding in Redis, which would stay there.
        name = f"{CANARY}{ledger.node}"
        self.queue = Queue(name, exchange="", routing_key=name)
        self.proven = self._is_taken = self._is_released = False
        self._waiting: list[str] = []
        # Not the app's own base class, which may want arguments.
        app.task(_run, name=TASK, base=Task, ignore_result=True, shared=False)

    def hold_back(self) -> None:
        """Have the consumer begin with the first task's queue alone."""
        queues = self.app.amqp.queues
        self._waiting = list(queues.consume_from)
        queues.add(self.queue)
        queues.select([self.queue.name])
        # So that none is waited for when there are others to take.
        self.ledger.wait_seconds = CHECK_SECONDS

    def send(self, consumer: "Consumer") -> None:
        """Put the first task into the queue of `consumer`; errors are those of the broker."""
        # A look from time to time can miss it: a task whose process dies goes back to its queue,
        # and is taken again, within milliseconds, until it is a dead letter.
        consumer.on_task_message.add(self._note)
        self._is_taken = False  # by this connection
        with self.app.connection_for_write() as connection:
            self.app.send_task(
                TASK,
                queue=self.queue,
                task_id=self.task_id,
                connection=connection,
                # Also where the app has tasks published again and again: the consumer waits.
                retry=False,
            )

    def _note(self, request: Any) -> None:
        """Celery has taken a task, and entered it in its own list of them."""
        if request.id == self.task_id:
            self._is_taken = True

    def check(self, consumer: "Consumer", ready: Callable[[], None]) -> str:
        """Let the consumer take its queues, then call `ready`; or say why it must not."""
        if self.proven:
            return ""
        # Looked at first: a pool's thread notes a success before the task leaves this list.
        is_over = self._is_taken and self.task_id not in worker_state.requests
        if self.task_id in worker_state.successful_requests:
            consumer.call_soon(self._release, consumer, ready)
        elif is_over:
            return (
                f"the worker's first task ({TASK}) has failed; its own error is in the lines above"
            )
        return ""

    def _release(self, consumer: "Consumer", ready: Callable[[], None]) -> None:
        if self._is_released:  # or about to be, where gevent runs several at once
            return
        self._is_released = True
        consumer.on_task_message.discard(self._note)
        queues = self.app.amqp.queues
        for name in self._waiting:
            queues.select_add(queues[name])  # as add_task_queue does from Celery 5.7
            consumer.add_task_queue(name)
        consumer.cancel_task_queue(self.queue.name)
        # It is none of the tasks that the worker has done.
        worker_state.all_total_count[0] -= worker_state.total_count.pop(TASK, 0)
        self.proven, self.ledger.wait_seconds = True, None
        ready()


def _run(*_: Any) -> None:
    """Show that tasks run."""
