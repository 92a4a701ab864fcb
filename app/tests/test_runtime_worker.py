"""Real workers against a real Redis."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from processes import has_ended
from runtime_lab import PASSWORD, PATIENCE, Producer, base_environ, constants, run, wait_until

GIVE_UP = 70


COUNT, WORK, INSIDE, TOUCH = (f"lab_app.{name}" for name in ("count", "work", "inside", "touch"))


def wait_for_beats(worker, number, since):
    wait_until(lambda: len(worker.systemd.since(since, "WATCHDOG=1")) >= number, "it lives")


POOLS = {
    "prefork": (3, "3 processes"),
    "threads": (3, "3 threads"),
    "gevent": (20, "20 greenlets"),
    "solo": (1, "1 process"),
}


@pytest.mark.versions
def test_each_pool_becomes_ready_and_really_runs_its_size(start, producer, tmp_path):
    workers = {
        pool: start(
            CELERY_METAL_POOL=pool,
            CONCURRENCY=str(size),
            ADDRESS=f"@celery-metal-test-{os.getpid()}-{pool}",
        )
        for pool, (size, _) in POOLS.items()
    }
    for pool, (size, status) in POOLS.items():
        worker = workers[pool].ready()
        told = worker.systemd.lines(f"STATUS={worker.queue}: {size}")
        assert told[0] == f"STATUS={worker.queue}: {status}, 0 busy, 0 done"
        assert f"{worker.queue}: concurrency {size}: " in worker.log
        folder = tmp_path / f"{pool}-gathers"
        folder.mkdir()
        wanted = ("lab_app.gather", str(folder), size)
        assert_pool(pool, size, worker, producer.answers(worker, *wanted, times=2 * size))
    for pool, (size, status) in POOLS.items():
        workers[pool].systemd.wait_for(f"{status}, 0 busy, {2 * size} done")
        # Nobody but the worker itself has spoken for it.
        senders = {sender for _, sender, _ in workers[pool].systemd.heard}
        assert senders == {workers[pool].pid}


def assert_pool(pool, size, worker, answers):
    pids = {answer["pid"] for answer in answers}
    threads = {answer["thread"] for answer in answers}
    peak = max(answer["peak"] for answer in answers)
    if pool == "prefork":
        assert len(worker.children) == size
        assert pids == set(worker.children)
        assert peak == 1
    else:
        assert pids == {worker.pid}
        assert len(threads) == (size if pool == "threads" else 1)
        assert peak == size


def test_the_kernel_would_end_a_process_of_the_pool_first(start, producer):
    def score(pid):
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    worker = start().ready()
    assert {score(pid) for pid in worker.children} == {500}
    assert score(worker.pid) < 500
    # A process that takes another's place, too.
    killed = worker.children[0]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(worker.children) == 2 and killed not in worker.children, "another runs")
    wait_until(lambda: [score(pid) for pid in worker.children] == [500, 500], "its score is set")
    assert producer.answers(worker, WORK, 0) == [None]


def test_processes_beyond_the_cap_are_not_started(start):
    worker = start(CONCURRENCY="9", CPU_COUNT="1", CELERY_METAL_PROCESS_FACTOR="2").ready()
    assert len(worker.children) == 2
    assert "clamped to 2 = 1 CPUs x 2" in worker.log


def test_the_plans_autoscale_grows_and_the_sample_tells_its_workers_size(start, producer):
    worker = start(CONCURRENCY="", CELERY_METAL_PLAN_AUTOSCALE="3,1").ready()
    assert len(worker.children) == 1
    answers = producer.answers(worker, "metal_sample.tasks.whoami", 0.3, times=9)
    assert len({answer["pid"] for answer in answers}) == 3
    assert answers[0]["autoscale"] == [3, 1]


@pytest.mark.versions
def test_without_numbers_celery_counts_the_cpus(start):
    one = sorted(os.sched_getaffinity(0))[0]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {one})
    try:
        worker = start(fresh=True, CONCURRENCY="").ready()
    finally:
        os.sched_setaffinity(0, before)
    assert len(worker.children) == 1
    assert "concurrency 1: the CPUs that this container may use" in worker.log


def test_children_have_neither_the_watch_nor_the_way_to_systemd(start, producer):
    worker = start(
        CELERY_METAL_WATCHDOG_SECONDS="30", CELERY_BROKER_URL="redis://no.invalid"
    ).ready()
    seen = producer.answers(worker, INSIDE)[0]
    assert seen["pid"] in worker.children
    assert seen["NOTIFY_SOCKET"] is None
    assert seen["CELERY_BROKER_URL"] is None
    assert seen["threads"] == 1
    assert len(os.listdir(f"/proc/{worker.pid}/task")) > 1


@pytest.mark.versions
def test_a_worker_whose_socket_is_closed_speaks_on_and_its_tasks_do_not(start, producer):
    """As the unit closes it, once the worker is ready."""
    worker = start(fresh=True, LAB_WITHOUT_CAPABILITIES="1").ready()
    path = worker.environ["NOTIFY_SOCKET"]
    forged = ("lab_app.notify", path, "STOPPING=1")
    assert producer.answers(worker, *forged) == [None]
    worker.expect("STOPPING=1")
    begun = time.monotonic()
    Path(path).chmod(0)
    assert producer.answers(worker, *forged, times=9) == ["PermissionError"] * 9
    worker.systemd.wait_for("0 busy, 10 done", since=begun)
    assert worker.systemd.since(begun, "STOPPING=1") == []
    # Restarted in place, it cannot connect; systemd starts another.
    worker.process.send_signal(signal.SIGHUP)
    assert worker.process.wait(PATIENCE) == 75
    assert "restarted in place, it cannot report to systemd" in worker.log


def test_a_busy_worker_keeps_its_watchdog(start, producer):
    watched = {"CELERY_METAL_WATCHDOG_SECONDS": "2"}
    prefork, solo = start(**watched), start(CELERY_METAL_POOL="solo", CONCURRENCY="1", **watched)
    marks = {prefork: prefork.log_file.with_name("mark"), solo: solo.log_file.with_name("mark")}
    for worker, size in ((prefork.ready(), 2), (solo.ready(), 1)):
        producer.post(worker, TOUCH, str(marks[worker]), times=size)
    for worker, mark in marks.items():
        wait_until(mark.exists, "a task runs")
        # Three of them fit into the watchdog's time.
        wait_for_beats(worker, 4, since=time.monotonic())
        mark.with_name("mark.go").touch()
    for worker, size in ((prefork, 2), (solo, 1)):
        worker.systemd.wait_for(f"0 busy, {size} done")
        assert worker.systemd.lines(f"STATUS={worker.queue}: {size} process")
        assert worker.stop() == 0


@pytest.mark.versions
def test_a_blocked_loop_ends_the_worker_and_its_pool(start, producer):
    pools = ("prefork", "threads", "gevent")
    watched = {"CELERY_METAL_WATCHDOG_SECONDS": "3"}
    workers = {pool: start(CELERY_METAL_POOL=pool, **watched) for pool in pools}
    for worker in workers.values():
        producer.post(worker.ready(), WORK, 60, times=2)
    for worker in workers.values():
        worker.systemd.wait_for("2 busy")
    children = {pool: worker.children for pool, worker in workers.items()}
    assert [len(children[pool]) for pool in pools] == [2, 0, 0]
    for worker in workers.values():
        producer.command(worker, "block", seconds=60)
    assert workers["prefork"].process.wait(PATIENCE) == GIVE_UP
    # Before systemd's own watchdog would have struck.
    beats = [when for when, _, line in workers["prefork"].systemd.heard if line == "WATCHDOG=1"]
    assert time.monotonic() - max(beats) < 3
    for worker in workers.values():
        assert worker.process.wait(PATIENCE) == GIVE_UP
        assert "the consumer's loop has not turned for" in worker.log
        assert "s: this worker ends, systemd starts another" in worker.log
        assert "in block" in worker.log  # the stack that names the culprit
    wait_until(lambda: all(map(has_ended, children["prefork"])), "no child is left")


def test_a_held_lock_or_a_loop_that_asks_for_no_tasks_ends_the_worker_too(start, producer):
    # Redis answers within a second, kombu repairs a silent connection within three.
    answered = constants({"health.ANSWER_SECONDS": 2.0})
    deaf = start(CELERY_METAL_WATCHDOG_SECONDS="3", **answered).ready()
    held = start(CELERY_METAL_WATCHDOG_SECONDS="2").ready()
    producer.command(deaf, "deafen")
    children = held.children
    producer.command(held, "block", seconds=60, hold_lock=True)
    assert held.process.wait(PATIENCE) == 1
    assert "Timeout" in held.log
    assert "in block" in held.log
    wait_until(lambda: all(map(has_ended, children)), "no child is left")
    assert deaf.process.wait(PATIENCE) == GIVE_UP
    assert "the consumer has got no answer from the broker" in deaf.log


def test_a_pool_that_takes_no_task_ends_the_worker(start, producer, tmp_path):
    worker = start(CELERY_METAL_WATCHDOG_SECONDS="3").ready()
    children = worker.children
    os.kill(children[0], signal.SIGSTOP)
    # So long that the other process does not take both.
    producer.post(worker, COUNT, str(tmp_path / "one"), 1)
    producer.post(worker, COUNT, str(tmp_path / "two"), 1)
    assert worker.process.wait(PATIENCE) == GIVE_UP
    # Two thirds of the watchdog's time, and at most two looks more.
    assert re.search(r"no process of the pool takes the task \S+ for [23] s: ", worker.log)
    wait_until(lambda: all(map(has_ended, children)), "no child is left")
    start(CELERY_METAL_QUEUE=worker.queue).ready()
    wait_until((tmp_path / "one").exists, "the successor does it")
    wait_until((tmp_path / "two").exists, "the successor does it")


def test_a_frozen_worker_is_not_stuck(start, producer, tmp_path):
    # Also a frozen process ends at the last resort: far away here, for the machine may be busy.
    late = constants({"watch.LAST_RESORT": 60.0})
    worker = start(CELERY_METAL_WATCHDOG_SECONDS="6", **late).ready()
    # The watching thread looks before the loop has turned again.
    held_up = tmp_path / "held-up"
    producer.command(worker, "hold_up", path=str(held_up))
    wait_until(held_up.exists, "the loop is held up")
    worker.process.send_signal(signal.SIGSTOP)
    # Longer than the limit of 4 s; there is nothing to wait for while all stands still.
    time.sleep(4.5)
    thawed = time.monotonic()
    worker.process.send_signal(signal.SIGCONT)
    worker.expect("WATCHDOG=1", since=thawed)
    held_up.unlink()
    assert producer.answers(worker, WORK, 0)
    assert worker.stop() == 0


def test_a_broker_that_goes_is_waited_for(start, own_redis):
    producer = Producer(own_redis)
    watched = {"server": own_redis, "CELERY_METAL_WATCHDOG_SECONDS": "2"}
    workers = [start(CELERY_METAL_POOL=pool, **watched) for pool in ("prefork", "gevent")]
    for worker in workers:
        worker.ready()
    # Greenlets run on while the consumer pauses between two attempts to connect.
    ticks = workers[1].log_file.with_name("ticks")
    producer.post(workers[1], "lab_app.tick", str(ticks))
    wait_until(ticks.exists, "the greenlet runs")
    own_redis.stop()
    begun = time.monotonic()
    for worker in workers:
        # With the reason, which the probe has found.
        worker.systemd.wait_for("s (Error", since=begun)
    for worker in workers:
        # Three of them fit into the watchdog's time: longer than the limit.
        wait_for_beats(worker, 4, since=begun)
        assert worker.systemd.since(begun, f"STATUS={worker.queue}: waiting for the broker since ")
        assert worker.process.poll() is None
    # By now a pause takes a second: ten ticks, or one where it stops all greenlets.
    pauses, before = workers[1].log.count("Trying again in"), len(ticks.read_text())
    wait_until(lambda: workers[1].log.count("Trying again in") >= pauses + 3, "it tries again")
    assert len(ticks.read_text()) - before > 3 * 3
    ticks.with_name("ticks.stop").touch()
    own_redis.start()
    for worker in workers:
        assert len(producer.answers(worker, WORK, 0, times=4)) == 4
        assert worker.stop() == 0


def test_greenlets_that_look_for_the_first_task_end_with_it(start):
    worker = start(CELERY_METAL_POOL="gevent", CELERY_METAL_WATCHDOG_SECONDS="2").ready()
    # They look many times as often.
    worker.systemd.wait_for("WATCHDOG=1", since=time.monotonic())
    assert "Traceback" not in worker.log
    assert worker.stop() == 0


def test_a_broker_that_is_not_there_yet_is_waited_for(start, own_redis, tmp_path):
    own_redis.stop()
    (tmp_path / "wrong").write_text("wrong")
    refused = start(CELERY_METAL_PASSWORD_FILE=str(tmp_path / "wrong"))
    worker = start(server=own_redis, CELERY_METAL_WATCHDOG_SECONDS="2")
    worker.systemd.wait_for("waiting for the broker since")
    worker.systemd.wait_for("EXTEND_TIMEOUT_USEC=60000000")
    assert not worker.systemd.lines("READY=1")
    # Its drain has no limit: it would wait as long as Redis is away.
    assert worker.stop() == 0
    refused.systemd.wait_for("invalid username-password pair")
    assert not refused.systemd.lines("READY=1")
    own_redis.start()


def test_a_connection_that_is_lost_at_once_is_one_outage(start, tmp_path):
    flaky = tmp_path / "flaky"
    flaky.touch()
    worker = start(LAB_FLAKY=str(flaky), CELERY_METAL_WATCHDOG_SECONDS="2")
    told = re.compile(r"waiting for the broker since (\d+) s")
    wait_until(
        lambda: any(int(n) >= 2 for n in told.findall("".join(worker.systemd.lines("STATUS=")))),
        "an outage of 2 s is reported",
    )
    # Each of them takes a fraction of that.
    assert worker.log.count("lost at once") > 3
    assert "Error on" not in worker.log  # Celery's words for a bootstep that fails to stop
    flaky.unlink()
    worker.ready()
    assert worker.stop() == 0


def busy_in_each_pool(start, producer, folder, **environ):
    """A worker of each pool, running a task that leaves its mark in `folder`."""
    workers = {pool: start(CELERY_METAL_POOL=pool, CONCURRENCY="1", **environ) for pool in POOLS}
    # All are ready first, so that all tasks begin at about the same time.
    for worker in workers.values():
        worker.ready()
    for pool, worker in workers.items():
        producer.post(worker, TOUCH, str(folder / pool))
    for pool in workers:
        wait_until((folder / pool).exists, "the task runs")
    return workers


def test_sigterm_finishes_what_runs(start, producer, tmp_path):
    watched = {"CELERY_METAL_WATCHDOG_SECONDS": "2"}
    workers = busy_in_each_pool(start, producer, tmp_path, **watched)
    begun = time.monotonic()
    for worker in workers.values():
        worker.process.send_signal(signal.SIGTERM)
    for pool, worker in workers.items():
        # Nor does the watchdog strike a worker that takes longer than its limit to finish.
        worker.systemd.wait_for("WATCHDOG=1", since=begun + 2)
        assert worker.process.poll() is None
        (tmp_path / f"{pool}.go").touch()
    for pool, worker in workers.items():
        assert worker.process.wait(PATIENCE) == 0
        assert (tmp_path / pool).read_text() == "done"
        assert worker.systemd.since(begun, "STOPPING=1")
        assert worker.systemd.since(begun, f"STATUS={worker.queue}: draining, 1 busy")


REAL = {
    "beat.LOOK_SECONDS": 1.0,
    "beat.STUCK_SECONDS": 60.0,
    "broker.COMMAND_SECONDS": 5,
    "fence.EXTEND_SECONDS": 5.0,
    "fence.LOCK_SECONDS": 30.0,
    "fence.MARGIN_SECONDS": 2.0,
    "health.ANSWER_SECONDS": 3.0,
    "health.PROBE_SECONDS": 2.0,
    "ledger.BEAT_SECONDS": 5.0,
    "ledger.LEASE_SECONDS": 90.0,
    "watch.LONGEST_TICK": 1.0,
    "watch.STATUS_SECONDS": 2.0,
}


def test_a_worker_that_no_test_hurries_has_the_real_values(start, producer):
    """And beats at them; see `constants` of the lab for what the other tests have."""
    worker = start(fresh=True, LAB_CONSTANTS="", CELERY_METAL_WATCHDOG_SECONDS="45").ready()
    assert producer.answers(worker, "lab_app.constants", list(REAL)) == [list(REAL.values())]
    worker.systemd.wait_for("2 processes, 0 busy, 1 done")
    assert worker.systemd.lines("WATCHDOG=1")
    assert worker.stop() == 0


def test_sighup_restarts_the_worker_in_place(start, producer):
    worker = start(fresh=True).ready()
    begun = time.monotonic()
    worker.process.send_signal(signal.SIGHUP)
    worker.systemd.wait_for("READY=1", since=begun)
    assert producer.answers(worker, WORK, 0)
    assert worker.stop() == 0


@pytest.mark.versions
def test_the_password_is_nowhere_to_be_read(start, redis, producer):
    verbose = {"CELERY_METAL_LOGLEVEL": "debug"}
    for url in (redis.socket_url, redis.tcp_url):
        worker = start(fresh=True, CELERY_METAL_BROKER=url, **verbose).ready()
        assert producer.answers(worker, WORK, 0)
        for pid in [worker.pid, *worker.children]:
            for name in ("environ", "cmdline"):
                assert_secret(Path(f"/proc/{pid}/{name}").read_text())
        assert worker.stop() == 0
        assert_secret(worker.log)
        assert ":**@" in worker.log  # the banner did show the address


def test_errors_of_the_connection_keep_the_password(start, own_redis):
    worker = start(server=own_redis, CELERY_METAL_LOGLEVEL="debug").ready()
    own_redis.stop()
    wait_until(lambda: "Cannot connect to" in worker.log, "the log tells of the outage")
    assert_secret(worker.log + "\n".join(worker.systemd.lines("")))
    own_redis.start()


def assert_secret(text):
    assert PASSWORD not in text
    assert "p%40ss" not in text


def test_smoke_checks_each_answer_of_both_queues(start, redis):
    for queue in ("add_queue", "multiply_queue"):
        start(CELERY_METAL_QUEUE=queue, CELERY_APP="metal_sample.celery:app").ready()
    done = smoke(redis, "--count", "50", "--json")
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert set(reports) == {"add_queue", "multiply_queue"}
    for report in reports.values():
        assert report["sent"] == report["done"] == 82
        assert report["wrong"] == report["missing"] == 0
        assert set(report["workers"].values()) == {2}
        assert len(report["pids"]) == 2
        assert report["seconds"] > 0


def test_smoke_fails_where_answers_are_missing(redis):
    done = smoke(redis, "--count", "3", "--queue", "nobody_consumes", "--timeout", "1")
    assert done.returncode == 1
    row = done.stdout.splitlines()[1].split()
    assert row[:5] == ["nobody_consumes", "6", "0", "0", "6"]


def test_smoke_fails_where_an_answer_is_wrong(start, redis, tmp_path):
    wrong = tmp_path / "wrong_app.py"
    wrong.write_text(
        "from metal_sample.celery import app\n"
        "import metal_sample.tasks\n"
        "del app.tasks['metal_sample.tasks.add']\n"
        "@app.task(name='metal_sample.tasks.add')\n"
        "def add(x, y):\n"
        "    return x + y + (x == 2)\n"
    )
    path = f"{tmp_path}:{base_environ()['PYTHONPATH']}"
    worker = start(CELERY_APP="wrong_app:app", PYTHONPATH=path).ready()
    done = smoke(redis, "--count", "5", "--json", "--queue", worker.queue)
    assert done.returncode == 1
    assert json.loads(done.stdout)[worker.queue]["wrong"] == 1


def smoke(server, *arguments):
    return run(server.environ(), *arguments, module="metal_sample.smoke")


def waiting(producer, worker):
    with producer.app.connection_for_write() as connection:
        return connection.default_channel.client.llen(worker.queue)


@pytest.mark.versions
def test_what_outlasts_the_drain_goes_back_to_the_queue_at_once(start, producer, tmp_path):
    drained = {"CELERY_METAL_DRAIN_SECONDS": "1"}
    workers = busy_in_each_pool(start, producer, tmp_path, **drained)
    for worker in workers.values():
        worker.process.send_signal(signal.SIGTERM)
    for pool, worker in workers.items():
        assert worker.process.wait(PATIENCE) == 0, (pool, worker.log)
        assert "drain_seconds are over and 1 tasks still run: they are" in worker.log
        assert waiting(producer, worker) == 1, (pool, worker.log)
        assert (tmp_path / pool).read_text() == "begun"


@pytest.mark.versions
def test_a_task_whose_process_is_killed_runs_again(start, producer, tmp_path):
    worker = start(CONCURRENCY="1").ready()
    mark = tmp_path / "mark"
    producer.post(worker, TOUCH, str(mark))
    wait_until(mark.exists, "the task runs")
    child = worker.children[0]
    mark.unlink()
    os.kill(child, signal.SIGKILL)
    mark.with_name("mark.go").touch()
    wait_until(lambda: mark.exists() and mark.read_text() == "done", "it runs again, to its end")
    assert worker.process.poll() is None
    assert worker.children != [child]


@pytest.mark.versions
def test_a_process_that_hangs_is_killed_and_its_task_runs_again(start, producer, tmp_path):
    worker = start(CONCURRENCY="1", CELERY_METAL_TIME_LIMIT_SECONDS="2").ready()
    mark = tmp_path / "mark"
    producer.post(worker, TOUCH, str(mark))
    wait_until(mark.exists, "the task runs")
    os.kill(worker.children[0], signal.SIGSTOP)
    mark.with_name("mark.go").touch()
    wait_until(lambda: mark.read_text() == "done", "it runs again, to its end")
    assert worker.process.poll() is None


def test_a_process_that_has_grown_is_replaced_after_its_task(start, producer):
    grown = start(CONCURRENCY="1", CELERY_METAL_MAX_MEMORY_PER_CHILD_MB="16").ready()
    before = producer.answers(grown, INSIDE)[0]["pid"]
    assert producer.answers(grown, INSIDE)[0]["pid"] != before


def test_a_process_is_replaced_after_its_number_of_tasks(start, producer):
    worker = start(CONCURRENCY="1", CELERY_METAL_MAX_TASKS_PER_CHILD="2").ready()
    pids = [producer.answers(worker, INSIDE)[0]["pid"] for _ in range(5)]
    # The worker's own first task was the first process's first.
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [1, 2, 2]


@pytest.mark.versions
def test_ready_means_that_tasks_run(start, redis, producer):
    # Looked at so rarely, the task has failed its eleven times before, and is a dead letter.
    rare = constants({"health.CHECK_SECONDS": 1.0})
    broken = start(LAB_BROKEN="1", CELERY_METAL_WATCHDOG_SECONDS="30", **rare)
    assert broken.process.wait(PATIENCE) == GIVE_UP
    told = "the worker's first task (celery_metal.canary) has failed; its own error is in the lines"
    assert "WorkerLostError" in broken.log.partition(told)[0]
    assert told in broken.log
    assert not broken.systemd.lines("READY=1")
    worker = start().ready()
    assert producer.answers(worker, WORK, 0)
    worker.systemd.wait_for("0 busy, 1 done")
    # Nothing of the first task stays in Redis.
    assert [key for key in redis.client.keys("*canary*") if worker.node in key] == []
