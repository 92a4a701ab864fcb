"""The app of a program outside the kit: it has a URL, and nothing of the runtime."""

import os

from celery import Celery

app = Celery("stock", broker=os.environ["LAB_URL"])
if "LAB_EXCHANGE" in os.environ:
    app.conf.control_exchange = os.environ["LAB_EXCHANGE"]
