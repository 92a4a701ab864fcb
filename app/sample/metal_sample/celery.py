"""The app: two queues, by routes."""

from celery import Celery

app = Celery(
    "metal_sample",
    broker="redis://localhost:6379/0",
    backend="redis://localhost:6379/0",
    include=["metal_sample.tasks"],
)
app.conf.task_routes = {
    "metal_sample.tasks.add": {"queue": "add_queue"},
    "metal_sample.tasks.multiply": {"queue": "multiply_queue"},
}
