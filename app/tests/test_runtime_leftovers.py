"""Files of killed tasks in a worker's memory: which they are, and that it is replaced for them."""

import json
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery.worker import state
from celery_metal_runtime import leftovers
from celery_metal_runtime.ledger import Ledger
from runtime_lab import constants, wait_until

MB = 1 << 20
NOW = 10_000.0
# Of a worker in these tests, in a directory of a large tmpfs.
HURRIED = {
    "leftovers.LOOK_SECONDS": 0.2,
    "leftovers.QUIET_SECONDS": 0.5,
    "leftovers.CLAIM_SECONDS": 0.5,
    "leftovers.SHARE": 0,
}


class Request:
    """What Celery keeps of a running task; its sets hold weak references."""


@pytest.fixture
def memory():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def busy():
    """Has a task run that began so many seconds ago."""
    requests = []

    def begin(seconds):
        request = Request()
        request.time_start = time.time() - seconds
        state.active_requests.add(request)
        requests.append(request)
        return request

    yield begin
    for request in requests:
        state.active_requests.discard(request)


@pytest.fixture
def look(memory, monkeypatch):
    """A worker that is ready; whether it ends when it looks so many seconds later."""
    for name, value in {"SHARE": 0, "QUIET_SECONDS": 0, **CLOCK}.items():
        monkeypatch.setattr(leftovers, name, value)
    ledger = Ledger("q-1@here")
    found = leftovers.Leftovers([str(memory)], ledger, 60)

    def seconds_later(seconds):
        return found.look(NOW + seconds)

    def begin():
        found.begin(NOW)
        wait_for_a_tick()

    return SimpleNamespace(at=seconds_later, begin=begin, ledger=ledger)


CLOCK = {"LOOK_SECONDS": 10, "REST_SECONDS": 600, "CLAIM_SECONDS": 2}


def wait_for_a_tick():
    """The kernel's time of files is some milliseconds behind the clock."""
    time.sleep(0.02)


def fill(path, megabytes=4):
    path.write_bytes(bytes(megabytes * MB))
    wait_for_a_tick()


def test_a_worker_ends_for_what_a_killed_task_has_left_once_none_runs(look, memory, busy, capfd):
    look.begin()
    fill(memory / "left")
    assert not look.at(20)
    assert not look.ledger.paused
    look.ledger.losses = 1
    task = busy(0)
    assert not look.at(31)
    assert look.ledger.paused
    said = capfd.readouterr().err
    assert f"of {memory} are files that no running task has made (tasks killed here: 1)" in said
    assert not look.at(50)
    state.active_requests.discard(task)
    # What is done and cannot be acknowledged now would run twice.
    look.ledger.down_since = NOW
    assert not look.at(51)
    look.ledger.down_since = None
    assert look.at(52)
    # Once.
    assert not look.at(53)


def test_files_of_a_running_task_are_no_leftovers(look, memory, busy):
    look.ledger.losses = 1
    look.begin()
    fill(memory / "mine")
    task = busy(100)
    assert not look.at(20)
    assert not look.ledger.paused
    state.active_requests.discard(task)
    assert not look.at(31)
    assert look.ledger.paused


def test_what_the_app_has_when_it_starts_is_no_leftover_and_is_said_once(look, memory, capfd):
    fill(memory / "cache")
    look.begin()
    look.ledger.losses = 1
    for seconds in range(0, 2000, 10):
        assert not look.at(seconds)
    assert not look.ledger.paused
    assert capfd.readouterr().err.count(f"MB in {memory} when it starts") == 1


def test_without_a_killed_task_a_worker_is_replaced_seldom(look, memory):
    look.begin()
    fill(memory / "kept")
    assert not look.at(590)
    assert not look.ledger.paused
    assert not look.at(601)
    assert look.at(604)


def test_a_worker_whose_tasks_outlast_the_drain_goes_on(look, memory, busy, capfd):
    look.ledger.losses = 1
    look.begin()
    fill(memory / "left")
    task = busy(0)
    assert not look.at(20)
    assert look.ledger.paused
    assert not look.at(81)
    assert not look.ledger.paused
    assert "goes on, and tries to end again in 600 s" in capfd.readouterr().err
    state.active_requests.discard(task)
    assert not look.at(600)
    assert not look.ledger.paused
    assert not look.at(682)
    assert look.at(685)


def test_each_file_counts_once_and_none_elsewhere(memory, tmp_path):
    fill(tmp_path / "big", 8)
    fill(memory / "one", 2)
    (memory / "two").hardlink_to(memory / "one")
    (memory / "link").symlink_to(tmp_path / "big")
    (memory / "round").symlink_to(memory)
    (memory / "folder").mkdir()
    fill(memory / "folder/three", 1)
    os.mkfifo(memory / "pipe")
    sizes = sorted(one.st_blocks * 512 for one in leftovers.files(str(memory)))
    assert sizes[-2:] == [MB, 2 * MB]
    assert sum(sizes) < 3.1 * MB
    assert list(leftovers.files(str(memory / "gone"))) == []


def test_a_tree_without_end_is_not_walked_to_its_end(memory, monkeypatch):
    deep = memory
    for _ in range(60):
        deep /= "d"
    deep.mkdir(parents=True)
    monkeypatch.setattr(leftovers, "MOST_FILES", 50)
    assert len(list(leftovers.files(str(memory)))) == 50


def test_a_path_that_is_not_there_is_not_looked_at(memory):
    assert leftovers.of(f"{memory},,/no/where") == [str(memory)]
    assert leftovers.usage("/no/where") == (0, 0)


@pytest.mark.versions
def test_a_worker_ends_drained_for_leftovers_and_no_task_is_lost_or_runs_twice(
    start, producer, redis, memory, tmp_path
):
    more = {"CELERY_METAL_TMPFS": str(memory), **constants(HURRIED)}
    worker = start(**more).ready()
    producer.post(worker, "lab_app.touch", str(tmp_path / "first"))
    wait_until((tmp_path / "first").exists, "a task runs")
    producer.post(worker, "lab_app.litter", str(memory / "left"), 8)
    producer.post(worker, "lab_app.touch", str(tmp_path / "long"))
    wait_until((tmp_path / "long").exists, "the killed task has run again, and another one runs")
    # Until then the file may be the first task's.
    (tmp_path / "first.go").touch()
    worker.says("finishes those that run (1) and ends")
    for _ in range(3):
        producer.post(worker, "lab_app.count", str(tmp_path / "count"), 0)
    (tmp_path / "long.go").touch()
    assert worker.process.wait() == 0, worker.log
    assert (tmp_path / "long").read_text() == "done"
    waiting = [json.loads(one) for one in redis.client.lrange(worker.queue, 0, -1)]
    assert len(waiting) == 3
    # None counts as there at a crash.
    assert not any("celery_metal_crashes" in one["headers"] for one in waiting)
    assert redis.client.keys(f"celery-metal.held:{worker.node}*") == []
    # As in a new container.
    (memory / "left").unlink()
    again = start(**more, CELERY_METAL_QUEUE=worker.queue).ready()
    wait_until(lambda: redis.client.llen(worker.queue) == 0, "all are taken")
    again.systemd.wait_for(" 0 busy, 3 done")
    assert (tmp_path / "count").read_text() == "done\n" * 3
    assert "takes no more tasks" not in again.log
    assert again.stop() == 0


def test_workers_of_one_process_end_for_what_their_tasks_leave(start, producer, memory):
    """Where no task is killed without its worker, and so without its container."""
    rest = constants({**HURRIED, "leftovers.REST_SECONDS": 1})
    workers = {
        pool: start(CELERY_METAL_POOL=pool, CELERY_METAL_TMPFS=str(folder), **rest)
        for pool in ("threads", "gevent", "solo")
        if (folder := memory / pool).mkdir() is None
    }
    for pool, worker in workers.items():
        worker.ready()
        fill_it = f"head -c {8 * MB} /dev/zero > {memory / pool}/left"
        assert producer.answers(worker, "lab_app.shell", fill_it) == [0]
    for worker in workers.values():
        worker.says("(tasks killed here: 0)")
        assert worker.process.wait() == 0, worker.log
