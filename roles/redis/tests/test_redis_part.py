"""Who is taken out of those that elect a primary: real ones, on addresses of the loopback."""

import hashlib
import shutil
import socket
import subprocess
import time
from types import SimpleNamespace

import pytest
import redis_part
from ansible.module_utils.celery_metal import HostError
from ansible.module_utils.celery_redis import Client
from ansible.module_utils.podman_store import Kept

PASSWORD = "secret"
STAY, LEAVES = ["127.0.0.1", "127.0.0.2"], "127.0.0.3"
ALL = [*STAY, LEAVES]


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Hosts:
    """A Redis and a Sentinel on each of three addresses; the first is the primary."""

    def __init__(self, folder):
        self.folder, self.processes = folder, []
        self.port, self.sentinel_port = self.free_port(), self.free_port()
        digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
        self.users = f"user default off\nuser admin on #{digest} ~* &* +@all\n"
        login = f"sentinel auth-user celery admin\nsentinel auth-pass celery {PASSWORD}\n"
        for address in ALL:
            follows = "" if address == STAY[0] else f"replicaof {STAY[0]} {self.port}\n"
            self.start(
                f"{address}-redis",
                f"bind {address}\nport {self.port}\nreplica-announce-ip {address}\n{follows}"
                f'masteruser admin\nmasterauth {PASSWORD}\nsave ""\nrepl-diskless-sync-delay 0\n',
            )
        for address in ALL:
            self.start(
                f"{address}-sentinel",
                f"bind {address}\nport {self.sentinel_port}\nsentinel announce-ip {address}\n"
                f"sentinel sentinel-user admin\nsentinel sentinel-pass {PASSWORD}\n"
                f"sentinel monitor celery {STAY[0]} {self.port} 2\n{login}",
                "--sentinel",
            )

    @staticmethod
    def free_port():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    def start(self, name, text, *words):
        program = shutil.which("redis-server")
        assert program, "these tests need redis-server: install the package of that name"
        (self.folder / name).mkdir()
        path = self.folder / name / "conf"
        path.write_text(f"dir {path.parent}\n{text}{self.users}")
        self.processes.append(
            subprocess.Popen([program, str(path), *words], stdout=subprocess.DEVNULL)
        )

    def stop(self, *processes):
        for process in processes or self.processes:
            process.kill()
            process.wait()

    def ask(self, address, port, *words):
        client = Client((address, port), 5)
        try:
            return client.ask(("AUTH", "admin", PASSWORD), words)[1]
        finally:
            client.close()

    def look_every(self, milliseconds):
        """Have each Sentinel look at all Redis so often: by itself it does so every 10 s."""
        for address in ALL:
            period = ("info-period", str(milliseconds))
            self.ask(address, self.sentinel_port, "SENTINEL", "DEBUG", *period)

    def known(self, address):
        """What the Sentinel of an address knows: the other Sentinels, and the replicas."""
        found = []
        for kind in ("SENTINELS", "REPLICAS"):
            said = self.ask(address, self.sentinel_port, "SENTINEL", kind, "celery")
            found.append(sorted(one["ip"] for one in redis_part.others(said)))
        return found

    def is_complete(self):
        try:
            self.look_every(100)
            return all(
                self.known(address) == [[one for one in ALL if one != address], ALL[1:]]
                for address in ALL
            )
        except OSError:
            return False

    def followers(self):
        info = self.ask(STAY[0], self.port, "INFO", "replication")
        return [one for one in ALL if f"ip={one},port={self.port},state=online" in info]

    def part(self, *addresses, check_mode=False):
        params = {
            "addresses": list(addresses),
            "members": STAY,
            "port": self.port,
            "sentinel_port": self.sentinel_port,
            "tls": False,
        }
        return redis_part.work(SimpleNamespace(params=params, check_mode=check_mode))


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    store = {"celery-redis-admin": Kept(PASSWORD, {})}
    monkeypatch.setattr(redis_part, "kept", lambda _: store)
    one = Hosts(tmp_path)
    try:
        wait_for(one.is_complete)
        yield one
    finally:
        one.stop()


def test_it_neither_votes_nor_is_elected_nor_comes_again(hosts):
    assert hosts.part(LEAVES, check_mode=True)["left"] == [LEAVES]
    assert hosts.followers() == ALL[1:]
    assert hosts.part(LEAVES)["left"] == [LEAVES]
    wait_for(lambda: hosts.followers() == ALL[1:2])
    assert hosts.ask(LEAVES, hosts.sentinel_port, "SENTINEL", "MASTERS") == []
    # Whoever has it follow gets nothing of it.
    hosts.ask(LEAVES, hosts.port, "REPLICAOF", STAY[0], str(hosts.port))
    # The others forget it when they start anew, or are told to, and do not find it again.
    for address in STAY:
        hosts.ask(address, hosts.sentinel_port, "SENTINEL", "RESET", "celery")
    for address, other in zip(STAY, reversed(STAY), strict=True):
        wait_for(lambda address=address, other=other: hosts.known(address) == [[other], STAY[1:]])
    assert hosts.followers() == ALL[1:2]
    # Again, as after a run that was cut.
    assert hosts.part(LEAVES)["left"] == [LEAVES]


def test_the_primary_is_not_left_out_and_one_that_is_gone_is(hosts, monkeypatch):
    with pytest.raises(HostError, match=r"127\.0\.0\.1 .* has become the primary"):
        hosts.part(STAY[0])
    assert hosts.followers() == ALL[1:]
    # Now they do not see within an instant that it is no candidate any more.
    hosts.look_every(10_000)
    monkeypatch.setattr(redis_part, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(HostError, match=r"would still elect 127\.0\.0\.3"):
        hosts.part(LEAVES)
    hosts.stop(hosts.processes[2], hosts.processes[5])
    assert not hosts.part(LEAVES)["changed"]
