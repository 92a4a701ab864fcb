"""The app: two queues, by routes, and a schedule."""

import os

from celery import Celery

app = Celery(
    "metal_sample",
    broker="redis://localhost:6379/0",
    backend="redis://localhost:6379/0",
    include=["metal_sample.tasks"],
)
app.conf.task_routes = {
    "metal_sample.tasks.add": {"queue": "add_queue"},
    "metal_sample.tasks.heartbeat": {"queue": "add_queue"},
    "metal_sample.tasks.multiply": {"queue": "multiply_queue"},
}
app.conf.beat_schedule = {
    "heartbeat": {
        "task": "metal_sample.tasks.heartbeat",
        "schedule": float(os.environ.get("METAL_SAMPLE_HEARTBEAT_SECONDS", "60")),
    },
}
