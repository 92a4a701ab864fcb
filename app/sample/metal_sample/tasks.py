"""The tasks. Each also runs on any other queue: `add.apply_async((1, 2), queue="my_queue")`."""

import os
import time
from typing import Any

from celery import signals

from metal_sample.celery import app

_running: dict[str, Any] = {}


@signals.celeryd_after_setup.connect
def _remember_worker(instance: Any, **_: Any) -> None:
    """Keep the running worker, before its pool forks: only it knows its effective size."""
    _running["worker"] = instance


@app.task
def add(x: float, y: float) -> float:
    """x + y."""
    return x + y


@app.task
def multiply(x: float, y: float) -> float:
    """x times y."""
    return x * y


@app.task
def wait(seconds: float) -> float:
    """Do nothing for so many seconds, and return them."""
    time.sleep(seconds)
    return seconds


@app.task(bind=True)
def whoami(self: Any, seconds: float = 0.0) -> dict[str, Any]:
    """Where this task ran, after waiting so many seconds.

    `concurrency` and `pool` are those of the running worker; `autoscale` is [max, min] or None.
    """
    time.sleep(seconds)
    worker = _running["worker"]
    return {
        "pid": os.getpid(),
        "worker": self.request.hostname,
        "queue": (self.request.delivery_info or {}).get("routing_key"),
        "concurrency": worker.concurrency,
        "autoscale": worker.autoscale,
        "pool": worker.pool_cls.__module__.rpartition(".")[2],
    }
