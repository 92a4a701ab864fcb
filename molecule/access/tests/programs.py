"""A program outside the kit that sends tasks all the time, and what the tests share."""

import re
import threading
import time
from uuid import uuid4

import effects
from celery import signature
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

BROKER, WORKER = "broker", "worker"
ROTATE = "playbooks/rotate-secrets.yml"
USERS = ("admin", "monitor", "producer", "worker")
PATIENCE = 30


def add(app, *numbers, **options):
    return signature("metal_sample.tasks.add", args=numbers, app=app, queue="add_queue", **options)


class Load(threading.Thread):
    """Sends a task again and again until it is told to end; and all of them arrive or are said."""

    def __init__(self, app):
        super().__init__()
        self.app, self.run_id, self.begun = app, str(uuid4()), time.monotonic()
        self.ids = []
        self.enough = threading.Event()
        self.failure = None

    def run(self):
        try:
            while not self.enough.wait(0.05):
                number = len(self.ids)
                queue, seconds = (("add_queue", 0.1), ("long", 3.0))[number % 40 == 0]
                sent = self.app.send_task(
                    "metal_sample.tasks.record",
                    (self.run_id, number, seconds),
                    queue=queue,
                    ignore_result=True,
                    # As a program does that waits for a Redis that restarts.
                    retry_policy={"max_retries": 300, "interval_start": 0.1, "interval_max": 0.1},
                )
                self.ids.append(sent.id)
        except OperationalError as failure:
            self.failure = failure

    def end(self, kit, lab):
        """What was counted, when all is done."""
        self.enough.set()
        self.join()
        assert self.failure is None
        key = f"metal_sample.record:{self.run_id}"

        def counted():
            lines = kit.redis(BROKER, "smembers", key).splitlines()
            return effects.count(lines, len(self.ids), range(0), self.begun)

        lab.wait_for(
            lambda: counted().lost == 0,
            60,
            "all tasks are done",
            host=WORKER,
            unit="celery-*",
        )
        found = counted()
        assert found.duplicates == 0, self.story(
            lab, kit.redis(BROKER, "smembers", key).splitlines()
        )
        return found

    def story(self, lab, lines):
        """When each task that ran twice was done, and what the journals have of it and else."""
        times = {}
        for number, moment, _ in map(str.split, lines):
            times.setdefault(int(number), []).append(float(moment) - self.begun)
        twice = {number: sorted(found) for number, found in times.items() if len(found) > 1}
        ids = [self.ids[number] for number in twice]
        usual = re.compile(r"\] (received|succeeded)")
        log = lab.journal(WORKER, "celery-*", 20000).splitlines()
        its = [line for line in log if any(one in line for one in ids)]
        others = [line for line in log if not usual.search(line)][-150:]
        return "\n".join([f"ran twice: {twice}", *its, "else:", *others])


class Pusher(threading.Thread):
    """Sends messages without a pause, each again until Redis has answered, as kombu does.

    :param client: a connection that sends nothing again by itself.
    :param name: what its messages begin with.
    """

    def __init__(self, client, key, name):
        super().__init__()
        self.client, self.key, self.name = client, key, name
        self.sent, self.again = 0, 0
        self.enough = threading.Event()

    def run(self):
        while not self.enough.is_set():
            try:
                self.client.lpush(self.key, f"{self.name}-{self.sent}")
                self.sent += 1
            except RedisError:
                self.again += 1
                self.enough.wait(0.05)
