"""The app of a program without the runtime: it has a URL only."""

import os

from celery import Celery

app = Celery("stock", broker=os.environ["LAB_URL"], backend=os.environ["LAB_URL"])
if "LAB_EXCHANGE" in os.environ:
    app.conf.control_exchange = os.environ["LAB_EXCHANGE"]
