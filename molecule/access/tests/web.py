"""A web process on a host of celery_producers, and somebody who asks it to send tasks."""

import threading
import time
import urllib.request
from pathlib import Path
from uuid import uuid4

import effects
from programs import BROKER, WORKER

PORT = 8123
SERVER = Path(__file__).with_name("web_server.py")
# As docs/producers.md has it, with the image of the app in the place of a virtual environment.
UNIT = """[Service]
Environment=PORT={port}
EnvironmentFile=/etc/celery-producer/environment
ExecStart=podman run --rm --name shop-web --network host --user 0 \
 --env-file /etc/celery-producer/environment --env PORT \
 -v /etc/celery-producer:/etc/celery-producer:ro -v /root/web_server.py:/web_server.py:ro \
 {image} run python /web_server.py
ExecReload=podman kill --signal HUP shop-web
ExecStop=podman stop shop-web
"""


class Web(threading.Thread):
    """Asks for a task again and again until its end is set."""

    def __init__(self, lab):
        super().__init__()
        self.lab, self.run_id, self.begun = lab, str(uuid4()), time.monotonic()
        self.sent, self.errors, self.number = [], [], 0
        self.enough = threading.Event()

    def install(self):
        image = self.lab.run(WORKER, "podman inspect -f '{{.ImageName}}' celery-add_queue-1")
        self.lab.run(WORKER, f"cat > /root/web_server.py <<'E'\n{SERVER.read_text()}\nE")
        unit = UNIT.format(port=PORT, image=image.strip())
        self.lab.run(WORKER, f"cat > /run/systemd/system/shop-web.service <<'E'\n{unit}\nE")
        self.lab.run(WORKER, "systemctl daemon-reload; systemctl start shop-web")
        self.lab.wait_for(self.answers, 30, "the web process answers", host=WORKER, unit="shop-web")

    def remove(self):
        self.lab.run(WORKER, "systemctl stop shop-web; rm /run/systemd/system/shop-web.service")
        self.lab.run(WORKER, "rm /root/web_server.py; systemctl daemon-reload")

    def answers(self):
        """Whether one more task was sent."""
        url = f"http://{self.lab.address(WORKER)}:{PORT}/{self.run_id}/{self.number}"
        self.number += 1
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                self.sent.append(self.number - 1)
                self.process = answer.read().decode()
        except OSError as error:
            self.errors.append(f"{time.monotonic() - self.begun:.1f} s: {error}")
            return False
        return True

    def run(self):
        self.errors.clear()
        while not self.enough.wait(0.2):
            self.answers()

    def end(self, kit):
        """What was counted, when all that was acknowledged is done."""
        self.enough.set()
        self.join()
        key = f"metal_sample.record:{self.run_id}"

        def done():
            lines = kit.redis(BROKER, "smembers", key).splitlines()
            return effects.count(lines, self.number, range(0), self.begun)

        expected = set(self.sent)

        def all_done():
            lines = kit.redis(BROKER, "smembers", key).splitlines()
            return expected <= {int(line.split()[0]) for line in lines}

        self.lab.wait_for(all_done, 60, "all tasks are done", host=WORKER, unit="celery-*")
        return done()
