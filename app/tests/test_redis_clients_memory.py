"""No client takes Redis's room from tasks, by answers that it leaves unread or by what it sends."""

import re
import socket
from pathlib import Path

import pytest
from redis import Redis as Client
from runtime_lab import PASSWORD, Redis, wait_until

TEMPLATE = Path(__file__).parents[2] / "roles/redis/templates/etc/celery-metal/redis.conf.j2"
MAXMEMORY_MB = 64
MB = 1024 * 1024


@pytest.fixture
def redis(tmp_path):
    """With the limits of memory that the role writes, for a small Redis."""
    import jinja2  # not installed with the oldest versions

    plan = {"maxmemory_mb": MAXMEMORY_MB, "reasons": {}}
    text = jinja2.Template(TEMPLATE.read_text()).render(redis_plan=plan, redis_extra_config={})
    limits = re.findall(r"^(?:maxmemory|client-).*\n", text, re.M)
    server = Redis(tmp_path / "redis", more="".join(limits))
    yield server
    server.stop()


def client_of(redis, user):
    return Client(unix_socket_path=str(redis.path), username=user, password=PASSWORD)


class Silent:
    """A client that logs in, sends, and reads no answer."""

    def __init__(self, redis, user):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(redis.path))
        self.send("AUTH", user, PASSWORD)
        assert self.socket.recv(100) == b"+OK\r\n"
        self.socket.setblocking(False)

    def send(self, *words):
        packed = [one.encode() for one in words]
        self.socket.sendall(
            b"*%d\r\n" % len(packed) + b"".join(b"$%d\r\n%s\r\n" % (len(o), o) for o in packed)
        )

    def is_cut_off(self):
        """Without reading what waits there."""
        try:
            self.send("PING")
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False


def send_tasks(redis):
    """A task is taken, and stays for its worker."""
    with client_of(redis, "producer") as producer, client_of(redis, "worker") as worker:
        producer.lpush("mail", "task")
        assert worker.rpop("mail") == b"task"


def test_a_monitor_that_reads_no_answer_is_cut_off_and_tasks_flow_on(redis):
    with client_of(redis, "worker") as worker:
        worker.hset("celery-metal.nodes", "a", "x" * MB)
    silent = [Silent(redis, "monitor") for _ in range(4)]
    for _ in range(MAXMEMORY_MB):
        for one in silent:
            if not one.is_cut_off():
                one.send("HGETALL", "celery-metal.nodes")
        send_tasks(redis)
    assert any(one.is_cut_off() for one in silent)
    assert redis.client.info("memory")["used_memory"] < MAXMEMORY_MB * MB / 2


def test_a_monitor_that_reads_no_event_is_cut_off_and_tasks_flow_on(redis):
    silent = [Silent(redis, "monitor") for _ in range(4)]
    for one in silent:
        one.send("PSUBSCRIBE", "/0.celeryev/*")
    with client_of(redis, "worker") as worker:
        wait_until(lambda: worker.publish("/0.celeryev/x", "x") == len(silent), "all subscribe")
        for _ in range(MAXMEMORY_MB):
            worker.publish("/0.celeryev/x", "x" * MB)
            send_tasks(redis)
    assert any(one.is_cut_off() for one in silent)
    assert redis.client.info("memory")["used_memory"] < MAXMEMORY_MB * MB / 2


def test_a_large_task_passes(redis):
    large = "x" * (MAXMEMORY_MB // 16 * MB)
    with client_of(redis, "producer") as producer, client_of(redis, "worker") as worker:
        producer.lpush("mail", large)
        moved = worker.blmove("mail", "celery-metal.held:mail-1@a:mail", 1, "RIGHT", "LEFT")
        assert len(moved) == len(large)
        assert len(worker.lrange("celery-metal.held:mail-1@a:mail", 0, -1)[0]) == len(large)
        assert redis.client.info("stats")["evicted_clients"] == 0
