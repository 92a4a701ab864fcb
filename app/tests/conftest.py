"""Fixtures: see runtime_lab for what they are made of."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# None is installed: in the image they are found by PYTHONPATH.
sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("runtime", "sample", "tests")]

from runtime_lab import Producer, Redis, Worker  # noqa: E402
from tls_lab import Authority  # noqa: E402


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("session") / "redis")
    yield server
    refused = server.refused()
    server.stop()
    # All that the runtime, Celery and kombu do in these tests, also what would fail in silence.
    assert refused == []


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Redis]:
    """A Redis that the test may stop."""
    server = Redis(tmp_path / "own-redis")
    yield server
    server.stop()


@pytest.fixture
def start(redis: Redis, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Starts workers, each on a queue of its own, and ends them with the test."""
    workers: list[Worker] = []

    def start_worker(
        *arguments: str, server: Redis = redis, fresh: bool = False, **environ: str
    ) -> Worker:
        name = f"{tmp_path.name}-{len(workers)}"
        defaults = server.environ() | {"CELERY_METAL_QUEUE": name, "CONCURRENCY": "2"}
        worker = Worker(tmp_path / name, defaults | environ, *arguments, fresh=fresh)
        workers.append(worker)
        return worker

    yield start_worker
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture
def producer(redis: Redis) -> Producer:
    return Producer(redis)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Issues certificates of this session."""
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture
def module_utils(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has a test import what modules share: from ansible.module_utils, as on a host.

    Inside of the test: with other versions of Celery these tests run without Ansible.
    """
    import ansible.module_utils as package

    roles = Path(__file__).parents[2] / "roles"
    found = [*package.__path__, *map(str, roles.glob("*/module_utils"))]
    monkeypatch.setattr(package, "__path__", found)
