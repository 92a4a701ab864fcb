"""Beat: of two one schedules, and the state of the schedule outlives each of them."""

import itertools
import json
import signal
import time
from datetime import datetime

import pytest
from celery_metal_runtime import fence
from runtime_lab import HERE, PATIENCE, Worker, wait_until

RUNTIME = HERE.parent / "runtime"
# Above three seconds, for which a holder may stand still on a busy machine.
SHORT = """
fence.LOCK_SECONDS, fence.EXTEND_SECONDS, fence.MARGIN_SECONDS = 4.0, 0.5, 0.5
ours.LOOK_SECONDS, watch.LONGEST_TICK, watch.STATUS_SECONDS = 0.2, 0.2, 0.2
"""
REAL = """
import datetime, os
from celery import Celery, beat
from celery.schedules import crontab
from celery_metal_runtime import beat as ours, fence, watch

app = Celery("tick", broker="redis://nowhere.invalid", backend="redis://nowhere.invalid")

@app.task(name="tick")
def tick(word):
    pass

@app.on_after_configure.connect
def add_one(sender, **_):
    sender.add_periodic_task(3600.0, tick.s("configured"), name="configured")

@app.on_after_finalize.connect
def add_another(sender, **_):
    sender.add_periodic_task(3600.0, tick.s("finalized"), name="finalized")

def entry(schedule, **more):
    return {"task": "tick", "schedule": schedule, "args": ["often"], **more}

app.conf.beat_schedule = {
    "often": entry(float(os.environ.get("SECONDS", 0.3))),
    "daily": entry(crontab(hour=3, minute=7)),
    "weekly": entry(crontab(hour=3, minute=7, day_of_week=0)),
}
"""
APP = REAL + SHORT


class Fleet:
    """Beats of one app and one Redis."""

    def __init__(self, folder, server):
        self.folder, self.server, self.beats = folder, server, []
        self.client = server.client
        self.write(APP)

    def write(self, text):
        (self.folder / "ticking.py").write_text(text)

    def start(self, **environ):
        name = f"beat-{len(self.beats)}"
        given = self.server.environ() | {"CELERY_APP": "ticking:app"} | environ
        path = {"PYTHONPATH": f"{RUNTIME}:{self.folder}"}
        beat = Worker(self.folder / name, given | path, "beat")
        self.beats.append(beat)
        return beat

    def sent(self):
        """The tasks that were sent, the oldest first."""
        return [json.loads(one) for one in reversed(self.client.lrange("celery", 0, -1))]

    def words(self):
        """The argument of each task that was sent, which is that of its entry."""
        return [one["headers"]["argsrepr"] for one in self.sent()]

    def record(self, name):
        return json.loads(self.client.hget(fence.STATE, name) or "{}")

    def once(self):
        """What was written of the frequent entry and what was sent, at one moment."""
        with self.client.pipeline() as both:
            record, number = both.hget(fence.STATE, "often").llen("celery").execute()
        return json.loads(record)["total_run_count"], number

    def more(self, number=1):
        """Wait until so many more tasks are sent."""
        wanted = self.client.llen("celery") + number
        wait_until(lambda: self.client.llen("celery") >= wanted, "tasks are sent")


@pytest.fixture
def fleet(own_redis, tmp_path):
    made = Fleet(tmp_path, own_redis)
    yield made
    for beat in made.beats:
        beat.process.kill()
        beat.process.wait()


@pytest.fixture
def pair(fleet):
    """The one that holds the lock, and the one that stands by."""
    first = fleet.start().ready()
    first.systemd.wait_for("schedule: holds the lock, 5 entries, next often at 20")
    second = fleet.start()
    second.systemd.wait_for("schedule: stands by")
    return first, second


@pytest.mark.versions
def test_one_schedules_and_both_are_ready(fleet, pair):
    for beat in pair:
        assert beat.systemd.lines("READY=1")
    fleet.more(4)
    assert len(set(fleet.once())) == 1
    assert "Sending due task" not in pair[1].log
    # No file is left anywhere.
    assert {path.name for path in pair[0].log_file.parent.iterdir()} == {"log", "notify"}


def test_all_kinds_of_schedules_are_kept(fleet, pair):
    known = fleet.client.hgetall(fence.STATE)
    assert set(known) == {"often", "daily", "weekly", "configured", "finalized"}
    assert all(set(json.loads(one)) == {"last_run_at", "total_run_count"} for one in known.values())


def test_a_planned_stop_moves_it_before_the_lock_is_over(fleet):
    """With the real times: the other one looks each second, and a lock is kept for 30 s."""
    fleet.write(REAL)
    first = fleet.start().ready()
    second = fleet.start()
    second.systemd.wait_for("schedule: stands by")
    fleet.more()
    begun = time.monotonic()
    assert first.stop() == 0
    # Another one may be in place by now.
    wait_until(lambda: fleet.client.pttl(fence.LOCK) > 25_000, "the lock is taken")
    second.systemd.wait_for("schedule: holds the lock", since=begun)
    assert time.monotonic() - begun < 20
    assert fleet.client.pttl(fence.LOCK) <= 30_000
    fleet.more(2)
    assert len(set(fleet.once())) == 1
    assert second.stop() == 0
    assert fleet.client.get(fence.LOCK) is None


def test_one_that_is_killed_is_followed_when_its_lock_is_over(fleet, pair):
    fleet.more()
    pair[0].process.kill()
    pair[0].process.wait()
    sent, begun = fleet.client.llen("celery"), time.monotonic()
    left = fleet.client.pttl(fence.LOCK) / 1000
    assert 2 < left <= 4
    pair[1].systemd.wait_for("schedule: holds the lock", since=begun)
    assert left - 0.1 < time.monotonic() - begun < left + 20
    wait_until(lambda: fleet.client.llen("celery") > sent, "tasks are sent")
    assert len(set(fleet.once())) == 1


@pytest.mark.versions
def test_one_that_was_stopped_for_longer_than_its_lock_sends_nothing(fleet, pair):
    first, second = pair
    fleet.more()
    first.process.send_signal(signal.SIGSTOP)
    second.systemd.wait_for("schedule: holds the lock")
    fleet.more()
    begun = time.monotonic()
    first.process.send_signal(signal.SIGCONT)
    first.systemd.wait_for("schedule: stands by", since=begun)
    fleet.more(2)
    assert len(set(fleet.once())) == 1
    assert first.process.poll() is None


def test_who_has_lost_the_lock_unknowingly_sends_nothing(fleet):
    """It is Redis that refuses; the holder's own clock says that all is well."""
    beat = fleet.start(SECONDS="0.2").ready()
    fleet.more()
    with fleet.client.pipeline() as both:
        other, number = both.set(fence.LOCK, "another's", px=600_000).llen("celery").execute()
    assert other
    beat.systemd.wait_for("schedule: stands by")
    assert fleet.client.llen("celery") == number
    assert fleet.client.get(fence.LOCK) == "another's"
    fleet.client.delete(fence.LOCK)
    fleet.more(2)
    assert len(set(fleet.once())) == 1


@pytest.mark.versions
def test_what_fell_due_while_nobody_ran_is_sent_once(fleet):
    beat = fleet.start(SECONDS="3600").ready()
    assert beat.stop() == 0
    assert fleet.words() == []
    late = {"last_run_at": "2026-01-01T00:00:00+00:00", "total_run_count": 7}
    for name in ("often", "daily"):
        fleet.client.hset(fence.STATE, name, json.dumps(late))
    fleet.start(SECONDS="3600").systemd.wait_for("next")
    wait_until(lambda: fleet.record("daily")["total_run_count"] == 8, "the daily one is sent")
    wait_until(lambda: fleet.record("often")["total_run_count"] == 8, "the other one is sent")
    assert len(fleet.words()) == 2


def test_a_schedule_that_changes_keeps_what_it_keeps(fleet):
    first = fleet.start().ready()
    fleet.more(2)
    first.stop()
    before = fleet.record("often")
    fleet.client.hset(fence.STATE, "daily", "no JSON")
    fleet.write(APP.replace('"weekly":', '"moon":').replace('["often"]', '["changed"]'))
    second = fleet.start(SECONDS="0.5").ready()
    fleet.more(1)
    assert fleet.record("often")["total_run_count"] > before["total_run_count"]
    assert "changed" in fleet.words()[-1]
    known = fleet.client.hgetall(fence.STATE)
    assert set(known) == {"often", "daily", "moon", "configured", "finalized"}
    assert "schedule: daily begins anew" in second.log


@pytest.mark.versions
def test_redis_away_is_waited_for(fleet, pair):
    fleet.more()
    # Nothing is kept on the disk: what was sent before is gone afterwards, and the lock with it.
    begun = time.monotonic()
    fleet.server.stop()
    for beat in pair:
        beat.systemd.wait_for("schedule: waiting for the broker since", since=begun)
    fleet.server.start()
    fleet.more(3)
    assert len(set(fleet.once())) == 1
    assert [beat.process.poll() for beat in pair] == [None, None]

    def one_holds():
        last = [beat.systemd.lines("STATUS=")[-1] for beat in pair]
        return sum("schedule: holds the lock" in one for one in last) == 1

    wait_until(one_holds, "one holds the lock, and the other knows")


def test_a_start_without_redis_waits_for_it(fleet):
    fleet.server.stop()
    beat = fleet.start()
    beat.systemd.wait_for("schedule: waiting for the broker since")
    beat.systemd.wait_for("EXTEND_TIMEOUT_USEC")
    assert not beat.systemd.lines("READY=1")
    fleet.server.start()
    beat.ready()
    fleet.more()


def test_a_task_that_redis_did_not_take_is_due_still(fleet):
    beat = fleet.start(SECONDS="0.5").ready()
    fleet.more()
    fleet.client.config_set("maxmemory", "1mb")
    wait_until(lambda: "is due still" in beat.log, "Redis refuses")
    assert fleet.record("often")["total_run_count"] == fleet.client.llen("celery")
    fleet.client.config_set("maxmemory", "0")
    fleet.more(2)
    assert len(set(fleet.once())) == 1


@pytest.mark.versions
def test_an_entry_that_cannot_be_sent_stops_no_other(fleet):
    fleet.write(
        APP + 'app.conf.beat_schedule["often"]["kwargs"] = {"no": object()}\n'
        'app.conf.beat_schedule["good"] = entry(0.5)\n'
    )
    beat = fleet.start().ready()
    fleet.more(3)
    assert "Message Error" in beat.log
    beat.systemd.wait_for("entries, 1 cannot be sent (often: ")
    assert fleet.record("often")["total_run_count"] >= 1


def test_a_stop_that_comes_in_a_destructor_is_obeyed(fleet):
    """Python ignores an exception there, also that of the signal's handler."""
    fleet.write(
        f"{APP}\nimport signal\n"
        "class Dying:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n\n"
        "class Own(beat.Scheduler):\n    def tick(self):\n        Dying()\n"
        "        return super().tick()\n\n"
        'app.conf.beat_scheduler = "ticking:Own"\n'
    )
    beat = fleet.start()
    assert beat.process.wait(PATIENCE) == 0
    assert fleet.client.get(fence.LOCK) is None


@pytest.mark.versions
@pytest.mark.parametrize("is_held", [False, True])
def test_a_beat_that_cannot_send_fails_its_start(fleet, is_held):
    if is_held:
        fleet.start().ready()
    fleet.write(
        f"{APP}\nfrom kombu.transport.redis import Channel\n"
        "def _q_for_pri(self, queue, pri):\n    raise AttributeError('another kombu')\n\n"
        "Channel._q_for_pri = _q_for_pri\n"
    )
    broken = fleet.start()
    assert broken.process.wait(PATIENCE) == 1
    assert "schedule: this Beat cannot send tasks: AttributeError: another kombu" in broken.log
    assert not broken.systemd.lines("READY=1")


# From when a file is there, nothing can be sent.
BREAKS = """
from pathlib import Path
from kombu.transport.redis import Channel
ours.PROOF_SECONDS = 1.0
whole = Channel._q_for_pri

def fail(*_, **__):
    if Path(os.environ["BROKEN"]).exists():
        raise AttributeError("another kombu")

def _q_for_pri(self, queue, pri):
    fail()
    return whole(self, queue, pri)

"""
HOW = {
    "kombu": "Channel._q_for_pri = _q_for_pri\n",
    "app": "app.conf.task_routes = (fail, {'*': {'exchange': 'other', 'routing_key': 'x'}})\n",
    "scheduler": "Channel._q_for_pri = _q_for_pri\nclass Own(beat.Scheduler):\n    pass\n\n"
    'app.conf.beat_scheduler = "ticking:Own"\n',
}


@pytest.mark.versions
@pytest.mark.parametrize("how", HOW)
def test_a_beat_that_can_send_no_more_ends(fleet, tmp_path, how):
    fleet.write(APP + BREAKS + HOW[how])
    broken = tmp_path / "broken"
    beat = fleet.start(BROKEN=str(broken)).ready()
    wait_until(lambda: beat.log.count("Sending due task") > 4, "tasks are sent")
    assert beat.process.poll() is None
    broken.touch()
    assert beat.process.wait(PATIENCE) == 1
    assert "schedule: this Beat cannot send tasks: AttributeError: another kombu" in beat.log
    assert "cannot be loaded" not in beat.log
    # Another one can follow at once.
    assert fleet.client.get(fence.LOCK) is None


def test_a_beat_of_which_no_entry_can_be_sent_ends(fleet):
    fleet.write(
        APP + "ours.PROOF_SECONDS = 1.0\napp.on_after_configure.disconnect(add_one)\n"
        "app.on_after_finalize.disconnect(add_another)\n"
        'app.conf.beat_schedule = {"one": entry(0.3, kwargs={"no": object()})}\n'
    )
    beat = fleet.start()
    beat.systemd.wait_for("1 entry, 1 cannot be sent (one: ")
    assert beat.process.wait(PATIENCE) == 1
    assert "schedule: this Beat cannot send tasks: no entry can be sent (one: " in beat.log


def test_a_beat_with_nothing_to_send_shows_that_it_could(fleet, tmp_path):
    fleet.write(APP + BREAKS + HOW["kombu"])
    broken = tmp_path / "broken"
    beat = fleet.start(BROKEN=str(broken), SECONDS="3600").ready()
    beat.systemd.wait_for("schedule: holds the lock")
    broken.touch()
    assert beat.process.wait(PATIENCE) == 1
    assert "schedule: this Beat cannot send tasks: AttributeError: another kombu" in beat.log


def test_the_message_that_proves_a_beat_leaves_nothing(fleet):
    fleet.start().ready()
    fleet.more()
    assert fleet.client.keys("*canary*") == []


@pytest.mark.versions
def test_a_scheduler_of_the_app_s_own_runs_under_the_lock(fleet):
    fleet.write(
        APP + 'class Own(beat.Scheduler):\n    pass\n\napp.conf.beat_scheduler = "ticking:Own"\n'
    )
    first = fleet.start()
    first.systemd.wait_for("schedule: holds the lock")
    second = fleet.start()
    second.systemd.wait_for("schedule: stands by")
    fleet.more(2)
    assert fleet.client.hgetall(fence.STATE) == {}
    first.process.send_signal(signal.SIGSTOP)
    fleet.client.delete(fence.LOCK)
    second.systemd.wait_for("schedule: holds the lock")
    number = len(first.log.split("Sending due task"))
    first.process.send_signal(signal.SIGCONT)
    first.systemd.wait_for("schedule: stands by")
    fleet.more(2)
    # What it still tried was refused by Redis: no two follow at less than the interval.
    assert number <= len(first.log.split("Sending due task")) <= number + 1
    ids = [one["headers"]["id"] for one in fleet.sent()]
    tried = sum(len(beat.log.split("Sending due task")) - 1 for beat in (first, second))
    refused = first.log.count("Message Error")
    assert len(ids) == tried - refused


def test_a_mistake_in_the_schedule_is_found_by_who_would_stand_by(fleet):
    fleet.start().ready()
    fleet.write(APP + 'app.conf.beat_schedule["often"]["taks"] = "typo"\n')
    broken = fleet.start()
    assert broken.process.wait(PATIENCE) == 1
    assert "CELERY_APP='ticking:app' cannot be loaded" in broken.log
    assert "taks" in broken.log
    assert not broken.systemd.lines("READY=1")


def test_a_loop_that_hangs_is_ended(fleet):
    fleet.write(
        APP + "class Stuck(beat.Scheduler):\n    def tick(self):\n"
        "        import time\n        time.sleep(3600)\n\n"
        "ours.STUCK_SECONDS = 1\n"
        'app.conf.beat_scheduler = "ticking:Stuck"\n'
    )
    beat = fleet.start(CELERY_METAL_WATCHDOG_SECONDS="3")
    assert beat.process.wait(PATIENCE) == 70
    assert "the schedule's loop has not turned for" in beat.log


def test_it_tells_systemd_that_it_lives(fleet, pair):
    lively = fleet.start(CELERY_METAL_WATCHDOG_SECONDS="2").ready()
    wait_until(lambda: len(lively.systemd.lines("WATCHDOG=1")) > 3, "signs of life")
    assert all(not beat.systemd.lines("WATCHDOG=1") for beat in pair)


def test_without_a_redis_there_is_no_lock(fleet):
    environ = {"CELERY_METAL_BROKER": "", "CELERY_METAL_PASSWORD_FILE": ""}
    fleet.write(APP.replace("redis://nowhere", "amqp://nowhere"))
    beat = fleet.start(**environ)
    assert beat.process.wait(PATIENCE) == 64
    assert "which is no Redis" in beat.log


def test_the_interval_is_kept_over_a_move(fleet, pair):
    """Entries of 0.3 s, by the moments that were written: none comes too early."""
    seen = []

    def look():
        moment = fleet.record("often")["last_run_at"]
        if moment not in seen:
            seen.append(moment)
        return len(seen) >= 8 or (
            len(seen) == 4 and pair[0].process.poll() is None and pair[0].stop() is None
        )

    wait_until(look, "eight moments")
    moments = [datetime.fromisoformat(one).timestamp() for one in seen]
    assert min(later - one for one, later in itertools.pairwise(moments)) > 0.27
