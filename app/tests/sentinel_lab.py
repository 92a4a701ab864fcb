"""Three Redis servers with a Sentinel each, which elect a primary."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis import Redis as Client
from redis.exceptions import ResponseError
from runtime_lab import PASSWORD, Redis, free_port, listens, wait_until
from tls_lab import Authority

MASTER = "celery"
# As in a deployment. With 1 a busy machine, on which a Redis stood still for that long, elected a
# second time, and the one elected first took no tasks for a moment.
DOWN_SECONDS = 3
PERIODS = ("PUBLISH-PERIOD", "100", "INFO-PERIOD", "100")
# Redis's own words for what it needs to be one of several.
REPLICATED = f"""
masteruser admin
masterauth "{PASSWORD}"
min-replicas-to-write 1
min-replicas-max-lag 4
repl-ping-replica-period 1
repl-diskless-sync-delay 0
"""
# What workers and producers ask a Sentinel.
RIGHTS = "+ping +auth +client|setname +sentinel|masters"
LOGINS = "".join(
    f'user {name} on ">{PASSWORD}" {RIGHTS}\n' for name in ("worker", "producer", "monitor")
)
USERS = f"""
user default off
{LOGINS}user admin on ">{PASSWORD}" ~* &* +@all
sentinel sentinel-user admin
sentinel sentinel-pass "{PASSWORD}"
"""


class Sentinel:
    """A redis-sentinel that watches a Redis of a name, with a state of its own."""

    def __init__(
        self, folder: Path, watched: int, more: str = "", tls: tuple[Path, Path] | None = None
    ) -> None:
        folder.mkdir()
        self.tls = tls
        self.port, self.log_file = free_port(), folder / "log"
        config = folder / "sentinel.conf"
        config.write_text(
            f"{listens(self.port, tls)}bind 127.0.0.1\ndir {folder}\nlogfile {self.log_file}\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {watched} 2\n"
            f'sentinel auth-user {MASTER} admin\nsentinel auth-pass {MASTER} "{PASSWORD}"\n'
            f"sentinel down-after-milliseconds {MASTER} {DOWN_SECONDS * 1000}\n"
            f"sentinel failover-timeout {MASTER} 3000\n{USERS}{more}"
        )
        program = shutil.which("redis-server")
        assert program, "these tests need redis-server: install the package of that name"
        self.process = subprocess.Popen(
            [program, str(config), "--sentinel"], stdout=subprocess.DEVNULL
        )
        wait_until(lambda: "+monitor" in self.log, "the Sentinel watches")

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def state(self) -> dict:
        return self.ask(lambda client: client.sentinel_masters()[MASTER])

    def hurry(self) -> None:
        """Have it look for the others each tenth of a second; a Sentinel before 7.0 takes 2 s."""
        with suppress(ResponseError):
            self.ask(lambda client: client.execute_command("SENTINEL DEBUG", *PERIODS))

    def ask(self, what: Callable[[Client], Any]) -> Any:
        login = {"username": "admin", "password": PASSWORD}
        if self.tls:
            ca, own = map(str, self.tls)
            files = {"ssl_ca_certs": ca, "ssl_certfile": own, "ssl_keyfile": own}
            login |= {"ssl": True, **files}
        with Client("127.0.0.1", self.port, **login) as client:
            return what(client)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Site:
    """Three servers, and three Sentinels that know one another."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self.servers: list[Redis] = []
        self.authority = authority
        tls = (authority.ca, authority.server("127.0.0.1")) if authority else None
        for number in range(3):
            follows = f"replicaof 127.0.0.1 {self.servers[0].port}\n" if number else ""
            self.servers.append(Redis(folder / f"redis-{number}", tls, REPLICATED + follows))
        first = self.servers[0]
        wait_until(
            lambda: first.client.info("replication")["min_slaves_good_slaves"] == 2, "both follow"
        )
        self.sentinels = [
            Sentinel(folder / f"sentinel-{number}", first.port, tls=tls) for number in range(3)
        ]
        for one in self.sentinels:
            one.hurry()
        wait_until(self.is_complete, "the Sentinels know one another and both replicas")

    def is_complete(self) -> bool:
        states = [one.state() for one in self.sentinels]
        return all(one["num-other-sentinels"] == one["num-slaves"] == 2 for one in states)

    def primary(self) -> Redis:
        """As the Sentinels have it."""
        port = self.sentinels[0].state()["port"]
        return next(one for one in self.servers if one.port == port)

    def url(self, user: str = "worker") -> str:
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        scheme = "sentinels" if self.authority else "sentinel"
        return f"{scheme}://{user}@{hosts}/0?master_name={MASTER}"

    def environ(self, url: str = "") -> dict[str, str]:
        files = self.authority.environ() if self.authority else {}
        return self.servers[0].environ(url or self.url()) | files

    @property
    def socket_url(self) -> str:
        """For producers; see runtime_lab."""
        return self.url()

    def stop(self) -> None:
        for one in self.sentinels:
            one.stop()
        for server in self.servers:
            if server.process.poll() is None:
                os.kill(server.process.pid, signal.SIGKILL)
                server.process.wait()
