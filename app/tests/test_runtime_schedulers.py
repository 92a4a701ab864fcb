"""Schedulers that apps bring along: RedBeat, and django-celery-beat's with SQLite."""

import contextlib
import json
import sqlite3
from collections import Counter
from types import MappingProxyType

import pytest
from celery import Celery
from celery.schedules import schedule
from celery_metal_runtime import configure, fence
from runtime_lab import HERE, PATIENCE, Redis, run, wait_until
from test_runtime_beat import SHORT, Fleet

BEAT_PAGE = HERE.parents[1] / "docs/beat.md"
# What the page has users write into redis_user_rules.
RIGHTS = "(~redbeat:* +hget +hset +hsetnx +zadd +zrem +zrank +zrangebyscore +sadd +srem +smembers)"
APP = """
from celery import Celery
from celery_metal_runtime import beat as ours, fence, watch

app = Celery("tick", broker="redis://nowhere.invalid", backend="redis://nowhere.invalid")

@app.task(name="tick")
def tick(word):
    pass

app.conf.beat_max_loop_interval = 0.2
app.conf.beat_schedule = {"static": {"task": "tick", "schedule": 1.0, "args": ["static"]}}
"""
REDBEAT = f"{APP}app.conf.beat_scheduler = 'redbeat.RedBeatScheduler'\n{SHORT}"
DJANGO = (
    f"{APP}app.conf.beat_scheduler = 'django_celery_beat.schedulers:DatabaseScheduler'\n{SHORT}"
)
# Sending takes until somebody allows it to go on: before Redis has the task, and after.
SLOW = """
import pathlib, time
from celery import signals

here = pathlib.Path(__file__).parent

def hold(**_):
    (here / "sending").touch()
    while not (here / "go").exists():
        time.sleep(0.01)

signals.{}.connect(hold, sender="tick")
"""
SETTINGS = """
SECRET_KEY = "of a test"
INSTALLED_APPS = ["django_celery_beat"]
USE_TZ = True
DATABASES = {{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "{}"}}}}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""
ADD = """
from django_celery_beat.models import IntervalSchedule, PeriodicTask
every = IntervalSchedule.objects.create(every=1, period="seconds")
PeriodicTask.objects.create(name="late", task="tick", interval=every, args='["late"]')
"""


@contextlib.contextmanager
def beats(folder, server, text, **environ):
    """Beats of one app, which end with it."""
    made = Fleet(folder, server)
    made.write(text)
    start = made.start
    made.start = lambda: start(**environ)
    try:
        yield made
    finally:
        for beat in made.beats:
            beat.process.kill()
            beat.process.wait()


def counts(fleet):
    """How often each entry was sent."""
    return Counter(word.strip("[']") for word in fleet.words())


def allow(server):
    for user in ("worker", "producer"):
        server.client.execute_command("ACL", "SETUSER", user, RIGHTS)
    assert f"worker: {RIGHTS}" in BEAT_PAGE.read_text()


def redbeat_counts(fleet):
    known = {key: fleet.client.hget(key, "meta") for key in fleet.client.keys("redbeat:[a-z]*")}
    found = {key.removeprefix("redbeat:"): json.loads(meta) for key, meta in known.items()}
    return {name: one["total_run_count"] for name, one in found.items() if one["last_run_at"]}


def add_entry(environ):
    """As a task of the app does, or a program that sends tasks."""
    from redbeat import RedBeatSchedulerEntry

    app = Celery("shop", set_as_current=False)
    configure(app, environ)
    entry = RedBeatSchedulerEntry("late", "tick", schedule(0.5, app=app), ["late"], app=app)
    entry.save()


def kill(fleet, beat, recorded):
    """End the only Beat that sends; returns what was sent and is not written down."""
    beat.process.kill()
    beat.process.wait()
    return counts(fleet) - Counter(recorded(fleet))


def goes_on(fleet, recorded, before_it=MappingProxyType({})):
    """Both entries are sent again, and as often as is written down once Beat has ended.

    `before_it`: what another one has sent and not written down.
    """
    before = counts(fleet)
    wait_until(
        lambda: all(counts(fleet)[name] > before[name] + 1 for name in ("static", "late")),
        "both entries are sent",
    )
    assert fleet.beats[-1].stop() == 0
    assert recorded(fleet) == counts(fleet) - Counter(before_it)


def test_redbeat_has_its_entries_in_the_broker_s_redis(own_redis, tmp_path):
    """By a Unix socket, which RedBeat's own client does not know."""
    allow(own_redis)
    with beats(tmp_path, own_redis, REDBEAT) as fleet:
        first = fleet.start().ready()
        first.systemd.wait_for("schedule: holds the lock, RedBeatScheduler")
        fleet.start().systemd.wait_for("schedule: stands by")
        add_entry(own_redis.environ(own_redis.socket_url.replace("worker@", "producer@")))
        wait_until(lambda: counts(fleet)["late"] > 1, "what was added is sent")
        # RedBeat's own lock would keep the next one out for as long as this one.
        assert fleet.client.keys("redbeat*lock*") == []
        sent = kill(fleet, first, redbeat_counts)
        fleet.beats[1].systemd.wait_for("schedule: holds the lock")
        goes_on(fleet, redbeat_counts, sent)
        assert "stop falling back" not in first.log
    assert own_redis.refused() == []


def test_redbeat_by_tls(authority, tmp_path):
    server = Redis(tmp_path / "redis", (authority.ca, authority.server("127.0.0.1")))
    try:
        allow(server)
        url = server.tcp_url.replace("redis://", "rediss://")
        environ = server.environ(url) | authority.environ()
        with beats(tmp_path, server, REDBEAT, **environ) as fleet:
            fleet.start().ready()
            add_entry(environ)
            goes_on(fleet, redbeat_counts)
    finally:
        server.stop()


@pytest.mark.parametrize("moment", ["before_task_publish", "after_task_publish"])
def test_what_is_being_sent_at_a_stop_is_sent_and_written_down(own_redis, tmp_path, moment):
    """RedBeat writes down first: cut off, it would not send at all, or never again."""
    allow(own_redis)
    with beats(tmp_path, own_redis, REDBEAT + SLOW.format(moment)) as fleet:
        beat = fleet.start()
        wait_until((tmp_path / "sending").exists, "a task is being sent")
        beat.process.terminate()
        beat.systemd.wait_for("STOPPING=1")
        (tmp_path / "go").touch()
        assert beat.process.wait(PATIENCE) == 0
        assert redbeat_counts(fleet) == counts(fleet) == {"static": 1}
        assert fleet.client.get(fence.LOCK) is None


def test_what_never_ends_is_cut_off_at_a_stop(own_redis, tmp_path):
    allow(own_redis)
    text = f"{REDBEAT}ours.STOP_SECONDS = 0.2\n{SLOW.format('before_task_publish')}"
    with beats(tmp_path, own_redis, text) as fleet:
        beat = fleet.start()
        wait_until((tmp_path / "sending").exists, "a task is being sent")
        assert beat.stop() == 0
        assert counts(fleet) == {}
        assert fleet.client.get(fence.LOCK) is None


def test_redbeat_without_rights_to_its_keys_fails_its_start(own_redis, tmp_path):
    """It would wait for a Redis that answers, and a run of site.yml with it."""
    with beats(tmp_path, own_redis, REDBEAT) as fleet:
        beat = fleet.start()
        assert beat.process.wait(PATIENCE) == 1
        assert "schedule: redbeat.RedBeatScheduler may not use its keys in Redis: " in beat.log
        assert "Fix: give the user worker rights to them in redis_user_rules" in beat.log
        assert not beat.systemd.lines("READY=1")
        assert fleet.client.get(fence.LOCK) is None


def test_an_address_that_an_app_gives_redbeat_stays(redis):
    own = "redis://of-the-app:6379/7"
    app = Celery("shop", set_as_current=False)
    app.conf.redbeat_redis_url = own
    configure(app, redis.environ())
    assert app.conf.redbeat_redis_url == own
    assert not hasattr(app, "redbeat_redis")
    app = Celery("shop", set_as_current=False)
    configure(app, redis.environ())
    assert app.conf.redbeat_redis_url == redis.socket_url  # without the password
    assert app.redbeat_redis.ping()


def test_the_database_scheduler_with_sqlite(own_redis, tmp_path):
    database = tmp_path / "schedule.sqlite3"
    (tmp_path / "lab_settings.py").write_text(SETTINGS.format(database))
    variables = {"DJANGO_SETTINGS_MODULE": "lab_settings"}

    def django(*words):
        done = run({**variables, "PYTHONPATH": str(tmp_path)}, *words, module="django")
        assert done.returncode == 0, done.stderr

    def recorded(_):
        with contextlib.closing(sqlite3.connect(database)) as connection:
            rows = connection.execute(
                "SELECT name, total_run_count FROM django_celery_beat_periodictask"
            ).fetchall()
        return {name: number for name, number in rows if number}

    with beats(tmp_path, own_redis, DJANGO, **variables) as fleet:
        # One that stands by finds that there are no tables yet.
        own_redis.client.set(fence.LOCK, "another's", px=600_000)
        broken = fleet.start()
        assert broken.process.wait(PATIENCE) == 1
        assert (
            "DatabaseScheduler cannot read its entries: OperationalError: no such t" in broken.log
        )
        assert not broken.systemd.lines("READY=1")
        own_redis.client.delete(fence.LOCK)
        django("migrate", "--verbosity=0")
        first = fleet.start().ready()
        first.systemd.wait_for("schedule: holds the lock, 2 entries, next static at 20")
        django("shell", "--verbosity=0", "--command", ADD)
        wait_until(lambda: counts(fleet)["late"] > 1, "what was added is sent")
        # What was sent is in the database at once: who follows a killed one does not send it again.
        wait_until(lambda: recorded(fleet) == counts(fleet), "all is written down")
        sent = kill(fleet, first, recorded)
        fleet.start().systemd.wait_for("schedule: holds the lock")
        goes_on(fleet, recorded, sent)
    assert own_redis.refused() == []
