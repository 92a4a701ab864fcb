"""Two workers with one node name, and a worker that only follows one."""

import json
from types import SimpleNamespace

import pytest
from runtime_lab import PATIENCE, constants, wait_until

QUICK = constants({"ledger.BEAT_SECONDS": 0.2})
NODES = "celery-metal.nodes"
COUNT, LATER = "lab_app.count", "lab_app.count_later"

pytestmark = pytest.mark.versions


@pytest.fixture
def twins(start, tmp_path):
    """Starts workers of one name; of one machine, or as of several."""

    def begin(boot="", **environ):
        environ |= {"CELERY_METAL_QUEUE": f"twins-{tmp_path.name}", "CELERY_METAL_BOOT": boot}
        return start(**QUICK, **environ)

    return SimpleNamespace(begin=begin)


def ends(worker):
    assert worker.process.wait(PATIENCE) == 70
    return worker.log


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent", "solo"])
def test_a_worker_whose_name_another_one_has_takes_no_task_and_ends(
    twins, redis, producer, tmp_path, pool
):
    one = twins.begin("a", CELERY_METAL_POOL=pool).ready()
    mark, go = tmp_path / "mark", tmp_path / "go"
    producer.post(one, LATER, str(mark), str(go))
    held = f"celery-metal.held:{one.node}:{one.queue}"
    wait_until(lambda: redis.client.llen(held), "it is claimed")
    other = twins.begin("b", CELERY_METAL_POOL=pool)
    log = ends(other)
    assert f"another worker has the node name {one.node} on this Redis" in log
    assert "Fix: " in log
    assert "are back in" not in log
    # What it has sent may still be unread here.
    wait_until(
        lambda: other.systemd.lines(f"STATUS={one.queue}: another worker has the node name"),
        "its status says so",
    )
    assert not other.systemd.lines("READY")
    go.touch()
    producer.post(one, COUNT, str(mark), 0)
    wait_until(lambda: mark.exists() and mark.read_text() == "done\n" * 2, "each ran once")
    assert one.process.poll() is None


def test_of_two_on_one_machine_the_one_that_started_later_ends(twins, redis, producer, tmp_path):
    one = twins.begin().ready()
    other = twins.begin()
    assert f"another worker has the node name {one.node}" in ends(other)
    mark = tmp_path / "mark"
    producer.post(one, COUNT, str(mark), 0)
    wait_until(mark.exists, "the first one goes on")
    assert one.process.poll() is None


@pytest.mark.parametrize("boot", ["a", "b"])
def test_a_successor_is_no_twin(twins, redis, producer, tmp_path, boot):
    killed = twins.begin("a").ready()
    mark, go = tmp_path / "mark", tmp_path / "go"
    producer.post(killed, LATER, str(mark), str(go))
    wait_until(lambda: redis.client.llen(f"celery-metal.held:{killed.node}:{killed.queue}"), "held")
    killed.process.kill()
    killed.process.wait()
    go.touch()
    successor = twins.begin(boot).ready()
    wait_until(mark.exists, "its predecessor's task is done")
    beat = json.loads(redis.client.hget(NODES, successor.node))[0]
    wait_until(
        lambda: json.loads(redis.client.hget(NODES, successor.node))[0] > beat + 10, "it beats on"
    )
    assert successor.process.poll() is None
    assert "another worker" not in successor.log


@pytest.mark.parametrize(
    "life",
    [
        "",
        "x",
        "[1, 2]",
        '[1, 7, ["q"]]',
        "[1, [1, 2, 3, 4], []]",
        "[" * 9000,
        '[1, ["1", "a", "b", 1], []]',
    ],
)
def test_a_record_that_no_worker_wrote_keeps_none_from_its_tasks(twins, redis, life):
    first = twins.begin("a")
    redis.client.hset(NODES, first.node, life)
    first.ready()


def test_an_old_record_that_comes_back_once_ends_no_worker(twins, redis):
    one = twins.begin("a").ready()
    life = redis.client.hget(NODES, one.node)
    _, (started, number, _, seconds), queues = json.loads(life)
    earlier = json.dumps([7, [started - 1, number, "b", seconds], queues])
    redis.client.hset(NODES, one.node, earlier)
    wait_until(lambda: redis.client.hget(NODES, one.node) != earlier, "it is replaced")
    beat = json.loads(redis.client.hget(NODES, one.node))[0]
    wait_until(lambda: json.loads(redis.client.hget(NODES, one.node))[0] > beat + 6, "it beats on")
    assert one.process.poll() is None
