"""celery_restore: what an operator is told, and the confirmation that a restore needs."""

import json
import types

import celery_restore
import pytest
from ansible.module_utils import celery_redis_backup as backups

NAME = "redis-20261125T000312Z.rdb"
NOTE = {
    "taken": "2026-11-25T00:03:12+00:00",
    "bytes": 48211,
    "redis_version": "8.0.2",
    "sha256": "",
    "databases": {"0": {"keys": 61, "lasting": 61, "lists": {"emails": 17}, "unacked": 2}},
}


@pytest.fixture
def site(tmp_path, monkeypatch):
    found = backups.Site(backups=tmp_path / "backups", settings=tmp_path / "settings.json")
    found.backups.mkdir()
    found.settings.write_text(json.dumps({"ship": {}}))
    monkeypatch.setattr(backups, "Site", lambda: found)
    return found


def work(check_mode=False, **params):
    given = {"file": "", "host": "broker", "confirmed": "", "step": "stage", **params}
    return celery_restore.work(types.SimpleNamespace(check_mode=check_mode, params=given))


def put(site, name=NAME):
    (site.backups / name).write_text("")
    (site.backups / f"{name}.json").write_text(json.dumps(NOTE))


def test_backups_are_listed_with_the_way_to_bring_the_newest_back(site):
    assert "broker has no backup" in work()["text"]
    put(site)
    put(site, "redis-20261124T000312Z.rdb")
    (site.backups / "redis-20261126T000312Z.rdb").write_text("not proven")
    said = work()
    assert not said["changed"]
    first, older, newer, way = said["text"].splitlines()
    assert first == "The backups of broker, the newest last. Nothing was changed."
    assert older.startswith("redis-20261124T000312Z.rdb")
    assert newer == (
        f"{NAME}  2026-11-25T00:03:12+00:00  48211 bytes of Redis 8.0.2, database 0: 61 keys, "
        "emails 17, unacked 2"
    )
    assert way.endswith(f"-e restore_file={NAME} -e restore_confirmed=broker")


@pytest.mark.parametrize("step", ["stage", "switch"])
@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize(
    ("confirmed", "given"), [("", "not given"), ("worker", "worker"), ("true", "true")]
)
def test_nothing_is_done_without_the_confirmation(site, step, check_mode, confirmed, given):
    put(site)
    with pytest.raises(celery_restore.HostError) as error:
        work(check_mode, file=NAME, confirmed=confirmed, step=step)
    assert f"restore_confirmed is {given}. Nothing was changed; run it again with" in str(
        error.value
    )
    assert sorted(path.name for path in site.backups.iterdir()) == [NAME, f"{NAME}.json"]


def test_a_name_of_no_backup_is_refused(site):
    with pytest.raises(celery_restore.HostError, match="is no name of a backup"):
        work(file="/etc/passwd", confirmed="broker")
    with pytest.raises(celery_restore.HostError, match=r"there is no backup .* There are: none"):
        work(file=NAME, confirmed="broker")


def test_a_target_that_does_not_answer_does_not_hide_what_is_here(site, monkeypatch):
    put(site)

    def deaf(_):
        raise backups.BackupError("other said: no route to host.")

    monkeypatch.setattr(backups, "shipped", deaf)
    text = work()["text"]
    assert NAME in text
    assert "cannot be listed: other said: no route to host." in text
