"""A real Redis with a password, real workers, and the place of systemd."""

import gc
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from celery import Celery
from celery.result import ResultSet
from celery_metal_runtime import configure
from forks import Fork, Server
from processes import children
from redis import Redis as Client
from redis_rules import user_rules

HERE = Path(__file__).parent
USERS = HERE.parents[1] / "roles/redis/files/users.acl"
PASSWORD = "p@ss:/?#%;,+ end"  # all that means something in a URL
# A machine that stands still for a minute and more fails no test.
PATIENCE = 180.0
RUNTIME = "celery_metal_runtime"
# What each worker loads. gevent has to patch before: its workers are no forks.
LOADED = (
    "celery.apps.beat",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.solo",
    "celery.concurrency.thread",
    "celery.worker.autoscale",
    "celery_metal_runtime.beat",
    "celery_metal_runtime.entry",
    "celery_metal_runtime.health",
    "celery_metal_runtime.sentinels",
    "celery_metal_runtime.transport",
)


def wait_until(condition: Callable[[], object], what: object, seconds: float = PATIENCE) -> object:
    """The condition's value once it is true; an assertion error that says what was missing."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(0.02)
    return value


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def acl(control: Iterable[str] = ("producer",), *, replies: bool = False) -> str:
    """The users of users.acl in Redis's own form, all with one password.

    `control`: the users that may control workers; `replies`: they hear replies.
    """
    digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
    text = user_rules(USERS.read_text(), [], control, replies=replies)
    rules = re.sub(r"^\s*#.*$", "", text, flags=re.M)
    users = [one.split() for one in rules.split("\nuser ")[1:]]
    text = "".join(f"user {name} on #{digest} {' '.join(rights)}\n" for name, *rights in users)
    # A Redis before 7.2 does not know these, and no client of these tests sends them.
    return text.replace(" +client|setinfo", "").replace(" +waitaof", "")


def listens(port: int, tls: tuple[Path, Path] | None) -> str:
    """How a Redis or a Sentinel listens there, in the words of its configuration."""
    if not tls:
        return f"port {port}\n"
    ca, own = tls
    files = f"tls-ca-cert-file {ca}\ntls-cert-file {own}\ntls-key-file {own}\n"
    return f"port 0\ntls-port {port}\ntls-replication yes\n{files}"


class Redis:
    """A redis-server on a Unix socket and a free loopback port.

    `tls`: the paths of what others are checked by, and of its own certificate with the key; without
    them it does not encrypt. `more`: lines of its configuration.
    """

    def __init__(self, folder: Path, tls: tuple[Path, Path] | None = None, more: str = "") -> None:
        program = shutil.which("redis-server")
        assert program, "these tests need redis-server: install the package of that name"
        folder.mkdir()
        self.path = folder / "redis.sock"
        self.log_file = folder / "log"
        self.password_file = folder / "password"
        self.password_file.write_text(PASSWORD + "\n")
        self.port = free_port()
        config = folder / "redis.conf"
        users = folder / "users.acl"
        users.write_text(acl())
        config.write_text(
            f'{listens(self.port, tls)}bind 127.0.0.1\nunixsocket {self.path}\nsave ""\n'
            f"aclfile {users}\nacllog-max-len 1000\ndir {folder}\n"
            f"logfile {self.log_file}\n{more}"
        )
        self.command = [program, str(config)]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        wait_until(self._answers, "Redis listens")

    def stop(self) -> None:
        # Before Celery 5.7 the destructor of a result waits up to minutes for a Redis that is gone.
        gc.collect()
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)
        self.process.wait()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.path)) == 0

    @property
    def socket_url(self) -> str:
        return f"redis+socket://worker@{self.path}?virtual_host=0"

    @property
    def tcp_url(self) -> str:
        return f"redis://worker@127.0.0.1:{self.port}/0"

    @property
    def client(self) -> Client:
        return Client(
            unix_socket_path=str(self.path),
            username="admin",
            password=PASSWORD,
            decode_responses=True,
        )

    def refused(self) -> list[str]:
        """What users who had logged in asked for and may not, and why."""
        seen = [one for one in self.client.acl_log() if one["reason"] != "auth"]
        return [f"{one['username']}: {one['object']} ({one['reason']})" for one in seen]

    def refused_as_full(self) -> int:
        """How often it has taken nothing, for its maxmemory was reached."""
        # redis-py takes it apart, or before 5.1 does not.
        seen = str(self.client.info("errorstats").get("errorstat_OOM", ""))
        return int(re.sub(r"\D", "", seen) or 0)

    def environ(self, url: str = "") -> dict[str, str]:
        return {
            "CELERY_METAL_BROKER": url or self.socket_url,
            "CELERY_METAL_PASSWORD_FILE": str(self.password_file),
        }


def shows_no_password(app: Celery) -> None:
    """An assertion error where Celery shows the password in what it says of an app."""
    shown = [
        app.connection_for_read().as_uri(),
        app.backend.as_uri(),
        app.bugreport(),
        str(app.conf.table()),
    ]
    for text in shown:
        assert PASSWORD not in text
        assert "p%40ss" not in text


class _Heard:
    """Put into words only when it is too late: more may be heard until then."""

    def __init__(self, part: str, heard: list) -> None:
        self.part, self.heard = part, heard

    def __str__(self) -> str:
        return f"{self.part!r} among {self.heard[-5:]}"


class Systemd:
    """The receiving end of sd_notify."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.heard: list[tuple[float, int, str]] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            data, extra, *_ = self.socket.recvmsg(4096, 256)
            sender = int.from_bytes(extra[0][2][:4], sys.byteorder)
            for line in data.decode().splitlines():
                self.heard.append((time.monotonic(), sender, line))

    def lines(self, start: str) -> list[str]:
        return [line for _, _, line in self.heard if line.startswith(start)]

    def since(self, begun: float, start: str) -> list[str]:
        return [line for when, _, line in self.heard if when >= begun and line.startswith(start)]

    def wait_for(self, part: str, seconds: float = PATIENCE, since: float = 0.0) -> str:
        """The first line since then that contains `part`."""

        def found() -> str:
            heard = list(self.heard)
            return next((line for when, _, line in heard if when >= since and part in line), "")

        return wait_until(found, _Heard(part, self.heard), seconds)


class Worker:
    """A worker, or a Beat, as in its container, but for the container.

    `fresh`: in a Python of its own, and not in a fork of one that has loaded Celery.
    """

    def __init__(
        self, folder: Path, environ: dict[str, str], *arguments: str, fresh: bool = False
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.log_file = folder / "log"
        address = environ.pop("ADDRESS", str(folder / "notify"))
        self.systemd = Systemd(address)
        self.queue = environ.get("CELERY_METAL_QUEUE", "")
        self.node = f"{self.queue}-1@{socket.gethostname()}"
        self.environ = base_environ() | {"NOTIFY_SOCKET": address} | environ
        self.begun = time.monotonic()
        fresh = fresh or self.environ.get("CELERY_METAL_POOL") == "gevent"
        self.process = start_process(
            RUNTIME, arguments, self.environ, folder, self.log_file, fresh=fresh
        )
        self.pid = self.process.pid

    def ready(self) -> "Worker":
        def told() -> bool:
            assert self.process.poll() is None, self.log
            return bool(self.systemd.lines("READY=1"))

        wait_until(told, "READY")
        self.ready_seconds = time.monotonic() - self.begun
        return self

    def expect(self, part: str, since: float = 0.0) -> None:
        """Wait until systemd hears it; the assertion error shows the end of the log."""
        try:
            self.systemd.wait_for(part, since=since)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-5000:]}") from None

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def says(self, part: str) -> None:
        """Wait until its log has this: what a line speaks of is seen before the line is."""
        wait_until(lambda: part in self.log, f"the log has {part!r}")

    @property
    def children(self) -> list[int]:
        return children(self.pid)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


# What workers in tests have shorter than it is; test_runtime_health has the real values.
CONSTANTS = {
    "health.PROBE_SECONDS": 0.2,
    "watch.LONGEST_TICK": 0.2,
    "watch.STATUS_SECONDS": 0.2,
}


def constants(more: Mapping[str, float] = MappingProxyType({})) -> dict[str, str]:
    """The variable that changes constants of the runtime, as ledger.BEAT_SECONDS, or of kombu."""
    full = {
        name if name.startswith("kombu.") else f"{RUNTIME}.{name}": value
        for name, value in {**CONSTANTS, **more}.items()
    }
    return {"LAB_CONSTANTS": json.dumps(full)}


def base_environ() -> dict[str, str]:
    paths = [HERE.parent / "runtime", HERE.parent / "sample", HERE]
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": ":".join(map(str, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CELERY_APP": "lab_app:app",
    } | constants()


@cache
def forks() -> Server:
    """The server of forks of this session."""
    return Server(base_environ(), LOADED)


def start_process(
    module: str,
    arguments: tuple[str, ...],
    environ: dict[str, str],
    cwd: Path,
    *files: Path,
    fresh: bool = False,
) -> Fork | subprocess.Popen:
    """Run a module; `files`: where its output and its errors go, one file for both or two."""
    out, err = (file.open("ab") for file in (files[0], files[-1]))
    with out, err:
        if not fresh:
            return forks().fork(module, arguments, environ, cwd, out.fileno(), err.fileno())
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(command, env=environ, stdout=out, stderr=err, cwd=cwd)


def run(
    environ: dict[str, str], *arguments: str, module: str = RUNTIME, fresh: bool = False
) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself, the runtime's by default, and how it ended."""
    environ = base_environ() | environ
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "out"), Path(folder, "err")
        process = start_process(module, arguments, environ, Path.cwd(), *files, fresh=fresh)
        try:
            code = process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
        out, err = (file.read_text() for file in files)
    return subprocess.CompletedProcess(arguments, code, out, err)


class Producer:
    """Sends tasks by name, as a program that has nothing but the deployment's broker.

    `monitor` asks workers, and `operator` controls them, as a command in a worker's container.
    """

    def __init__(self, server: Redis) -> None:
        users = ("producer", "monitor", "worker")
        self.app, self.monitor, self.operator = (self._app_of(user, server) for user in users)

    @staticmethod
    def _app_of(user: str, server: Redis) -> Celery:
        app = Celery(user, backend="redis://here", set_as_current=False)
        configure(app, server.environ(server.socket_url.replace("worker@", f"{user}@")))
        # Before Celery 5.7 the end of a result would wait for this Redis, which may be gone.
        app.backend.remove_pending_result = lambda result: result
        return app

    def post(self, worker: Worker, task: str, *arguments: object, times: int = 1) -> None:
        """Send without waiting for a result, which may never come."""
        for _ in range(times):
            self.app.send_task(task, arguments, queue=worker.queue, ignore_result=True)

    def command(self, worker: Worker, name: str, **arguments: object) -> None:
        """Have the worker's loop run a remote control command, which may never answer."""
        # READY is for tasks; commands are heard a moment later.
        control = self.operator.control
        wait_until(lambda: control.ping([worker.node], timeout=0.5), "ping is answered")
        control.broadcast(name, arguments=arguments, destination=[worker.node])

    def answers(self, worker: Worker, task: str, *arguments: object, times: int = 1) -> list:
        sent = [self.app.send_task(task, arguments, queue=worker.queue) for _ in range(times)]
        return ResultSet(sent, app=self.app).join_native(timeout=PATIENCE, interval=0.02)
