"""The tasks. Each also runs on any other queue: `add.apply_async((1, 2), queue="my_queue")`."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import signals
from kombu.exceptions import KombuError
from redis import RedisError

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


@app.task(ignore_result=True)
def grow(megabytes: int) -> None:
    """Use so much memory, a little at a time."""
    taken = []
    for _ in range(megabytes):
        taken.append(bytearray(os.urandom(1 << 20)))
        time.sleep(0.001)


@app.task(ignore_result=True)
def record(run: str, number: int, seconds: float) -> None:
    """Work for so many seconds, then leave an effect in Redis: once for each time that this ran.

    An element of the set `metal_sample.record:RUN`: the number, the moment on the host's monotonic
    clock in seconds, and a name of this execution. It waits for a Redis that is away.
    """
    time.sleep(seconds)
    effect = f"{number} {time.monotonic()} {uuid4()}"
    while True:
        try:
            with app.connection_for_write() as connection:
                # Adding it twice, as the first answer got lost, adds it once.
                connection.default_channel.client.sadd(f"metal_sample.record:{run}", effect)
            return
        except (KombuError, RedisError, OSError):
            time.sleep(0.5)


@app.task(bind=True, ignore_result=True)
def heartbeat(self: Any) -> None:
    """Note the moment, in seconds since 1970, and this task's id in a list in Redis.

    The list is `metal_sample.heartbeats`, the newest first, of at most 1000.
    """
    with app.connection_for_write() as connection:
        client = connection.default_channel.client
        client.lpush("metal_sample.heartbeats", f"{time.time()} {self.request.id}")
        client.ltrim("metal_sample.heartbeats", 0, 999)


@app.task
def append(path: str, text: str) -> str:
    """Add a line to a file, and return all that is in it."""
    with Path(path).open("a+") as file:
        file.write(f"{text}\n")
        file.seek(0)
        return file.read()


@app.task
def fingerprint(name: str) -> str | None:
    """The SHA-256 of an environment variable: it shows which value the app sees, without it."""
    value = os.environ.get(name)
    return None if value is None else hashlib.sha256(value.encode()).hexdigest()


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
