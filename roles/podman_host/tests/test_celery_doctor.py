"""celery_doctor: what is asked of a real Redis and read of a host, and that it changes nothing."""

import json
import os
import time
from pathlib import Path

import celery_doctor
import celery_doctor_host
import celery_doctor_redis
import pytest

NOW = 1_795_980_160.0


def message(**headers):
    return json.dumps({"headers": {"task": "a.b", "id": "1", **headers}, "body": "W10="})


def test_results_are_sampled_and_nothing_changes(client):
    client.ask(
        *(("SET", f"celery-task-meta-{number}", "{}") for number in range(300)),
        *(("SET", f"shop:celery-task-meta-{number}", "{}", "EX", "99") for number in range(100)),
        ("RPUSH", "emails", message(expires="2027-01-01T00:00:00Z"), "x", message()),
        ("SET", "celery-metal.x", "1"),
        ("LASTSAVE",),
    )
    before = client.ask(("DBSIZE",), ("INFO", "persistence"))
    (changes,) = [one for one in before[1].splitlines() if one.startswith("rdb_changes")]
    found = celery_doctor_redis.redis_facts(client, ["emails", "reports"], ["shop:"], 0)
    assert found["results"].pop("mean_bytes") > 20
    assert found["results"] == {
        "keys": 402,
        "seen": 402,
        "is_complete": True,
        "count": 400,
        "sampled": 400,
        "endless": 300,
    }
    assert found["queues"] == [
        {"queue": "emails", "node": "", "length": 3, "sampled": 2, "endless": 1, "etas": []}
    ]
    assert found["info"]["aof_enabled"] == "0"
    assert found["info"]["maxmemory_policy"] == "noeviction"
    assert found["info"].keys() <= celery_doctor_redis.INFO
    assert found["workers"] == {}
    (info,) = client.ask(("INFO", "persistence"))
    assert changes in info


def test_a_search_has_an_end(client):
    for start in range(0, 30_000, 5000):
        client.ask(
            *(("SET", f"celery-task-meta-{number}", "{}") for number in range(start, start + 5000))
        )
    found = celery_doctor_redis.results_of(client, 0.0)
    assert not found["is_complete"]
    assert 1000 < found["seen"] < 10_000
    assert found["keys"] == 30_000
    assert found["sampled"] == celery_doctor_redis.MOST_ENDS
    assert found["endless"] == celery_doctor_redis.MOST_ENDS


def test_the_ends_of_a_queue_and_what_workers_hold(client):
    far = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 90_000))
    client.ask(
        ("RPUSH", "emails", *(message() for _ in range(500)), "x" * (1 << 17)),
        ("RPUSH", "celery-metal.held:emails-1@web:emails", message(eta=far)),
        ("HSET", "celery-metal.nodes", "emails-1@web", json.dumps([7, 1, ["emails"]])),
        ("SET", "other", "no list"),
    )
    waiting, held = celery_doctor_redis.queues_of(client, ["emails", "other"], [""])
    # One of the ends is too long to be read.
    assert (waiting["length"], waiting["sampled"], waiting["endless"]) == (501, 19, 19)
    assert (held["node"], held["length"]) == ("emails-1@web", 1)
    assert held["etas"][0] == pytest.approx(90_000, abs=60)


def test_what_a_user_may_not_do_is_not_known(client):
    client.ask(
        ("ACL", "SETUSER", "few", "on", ">a", "~*", "+info", "+select", "+eval", "+llen"),
        ("AUTH", "few", "a"),
    )
    found = celery_doctor_redis.redis_facts(client, ["emails"], [], 0)
    assert found["results"] is None
    assert found["config"] == {}
    assert found["workers"] == {}
    assert found["info"]["role"] == "master"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-29T20:22:40Z", 3600),
        ("2026-11-29T20:22:40", 3600),
        ("2026-11-29T19:00:00+00:00", -1360),
        ("soon", 0),
        (7, 0),
        (None, 0),
        ("9999-12-31T23:59:59-23:59", 0),
    ],
)
def test_how_far_an_eta_is(text, seconds):
    found = celery_doctor_redis._until(text, NOW)
    assert found == seconds or text.startswith("9999")


def test_no_setting_but_those_of_rules_leaves_a_host():
    said = {
        "task_acks_late": True,
        "result_expires": None,
        "result_backend": "redis+socket://worker:p@ss@/run/redis.sock",
        "broker_transport_options": {"visibility_timeout": 7200, "password": "x"},
        "secret_thing": "x",
        "task_default_queue": {"a": 1},
    }
    assert celery_doctor_redis.settings_of(said) == {
        "task_acks_late": True,
        "result_expires": None,
        "result_backend": "redis",
        "visibility_timeout": 7200,
    }
    assert celery_doctor_redis.settings_of("x") == {}


def test_settings_with_a_namespace_and_old_names():
    found = celery_doctor_redis.settings_of(
        {
            "CELERY_TASK_ACKS_LATE": False,
            "task_acks_late": True,
            "CELERYD_PREFETCH_MULTIPLIER": 9,
            "CELERY_TASK_RESULT_EXPIRES": None,
            "CELERY_BROKER_TRANSPORT_OPTIONS": {"visibility_timeout": 7},
            "CELERY_RESULT_BACKEND": "redis://:********@h/0",
        }
    )
    assert found == {
        "task_acks_late": False,
        "worker_prefetch_multiplier": 9,
        "result_expires": None,
        "visibility_timeout": 7,
        "result_backend": "redis",
    }


def test_facts_of_this_machine():
    found = celery_doctor_host.host_facts()
    assert found["memory"]["total"] > found["memory"]["available"] > 0
    (root,) = [one for one in found["disks"] if "the system" in one["holds"]]
    assert root["size"] > root["free"] >= 0
    assert found["limits"]["files_most"] > 0
    assert found["is_synchronised"] in (True, False, None)
    assert found["at"] == pytest.approx(time.time(), abs=60)
    assert len(json.dumps(found)) < 100_000


def test_units_by_their_processes(tmp_path, monkeypatch):
    folder = tmp_path / "celery.slice/celery-emails@1.service/libpod-payload-0"
    folder.mkdir(parents=True)
    other = tmp_path / "celery.slice/celery-egress.service"
    other.mkdir()
    (folder / "cgroup.procs").write_text(f"{os.getpid()}\n999999999\n")
    (folder.parent / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (folder.parent / "memory.max").write_text("max\n")
    (folder.parent / "pids.max").write_text("4096\n")
    monkeypatch.setattr(celery_doctor_host, "CGROUPS", tmp_path)
    (unit,) = celery_doctor_host.units()
    assert unit["unit"] == "celery-emails@1.service"
    assert unit["main_peak"] > 1 << 20
    assert unit["files"] > 2
    assert (unit["oom_kills"], unit["memory_most"], unit["tasks_most"]) == (2, None, 4096)


def test_versions_in_a_container_without_its_links(tmp_path, monkeypatch):
    packages = tmp_path / "7/root/usr/local/lib/python3.13/site-packages"
    packages.mkdir(parents=True)
    for name in ("celery-5.7.0", "kombu-5.7.0", "redis-8.1.0", "celery_app-1.0", "redis-x;y"):
        (packages / f"{name}.dist-info").mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "celery-1.0.dist-info").mkdir()
    links = tmp_path / "8/root/usr/local/lib/python3.13"
    links.mkdir(parents=True)
    (links / "site-packages").symlink_to(outside)
    monkeypatch.setattr(celery_doctor_host, "PROC", tmp_path)
    found = {"celery": "5.7.0", "kombu": "5.7.0", "redis": "8.1.0"}
    assert celery_doctor_host.versions(7) == found
    assert celery_doctor_host.versions(8) == {}


def test_backups_by_their_notes(tmp_path, monkeypatch):
    monkeypatch.setattr(celery_doctor_host, "BACKUPS", tmp_path)
    shown = {
        "celery-redis-backup.timer": "LoadState=loaded\nActiveState=active\nLastTriggerUSec=@77\n",
        "celery-redis-backup.service": "ActiveState=failed\nResult=exit-code\n",
    }
    monkeypatch.setattr(celery_doctor_host, "output", lambda *argv: shown[argv[-1]])
    for name in ("redis-20261125T000312Z.rdb", "redis-20261126T000312Z.rdb"):
        Path(tmp_path, name).write_text("")
    note = Path(tmp_path, "redis-20261125T000312Z.rdb.json")
    note.write_text("{}")
    os.utime(tmp_path / "redis-20261125T000312Z.rdb", (50, 50))
    assert celery_doctor_host.backup() == {
        "timer": "active",
        "triggered": 77,
        "state": "failed",
        "result": "exit-code",
        "ended": 0,
        "count": 1,
        "unproven": 1,
        "newest": 50,
    }
    shown["celery-redis-backup.timer"] = "LoadState=not-found\n"
    assert celery_doctor_host.backup() is None


def test_a_redis_that_does_not_run_is_an_answer(monkeypatch):
    def refuse(user):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(celery_doctor, "client_of", refuse)
    found = celery_doctor.of_redis({"external": None, "database": 0}, "/tmp")
    assert found == {"error": f"{celery_doctor.SOCKET}: Connection refused"}
