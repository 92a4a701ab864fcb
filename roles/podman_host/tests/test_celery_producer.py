"""The files of producers: what is written, when a program reads them again, and what is refused."""

import json
import os
import stat
import subprocess
import sys
from types import SimpleNamespace

import celery_producer
import pytest
from ansible.module_utils import celery_producing
from ansible.module_utils.celery_metal import HostError

URL = "rediss://producer@10.0.0.5:6379/0"
NAMES = tuple(celery_producing.FILES.values())


def inspected(**contents):
    """What Podman prints of secrets, each with a version that follows from its content."""
    return json.dumps(
        [
            {"Spec": {"Name": name, "Labels": {"version": f"v-{text}"}}, "SecretData": text}
            for name, text in contents.items()
        ]
    )


@pytest.fixture
def producer(tmp_path):
    """Runs the module on a directory of its own, with these secrets; what it returns."""
    directory, record = tmp_path / "etc" / "producer", tmp_path / "producer.json"
    (tmp_path / "etc").mkdir(mode=0o755)

    def run(password="pw", check_mode=False, **params):
        contents = {NAMES[0]: password, NAMES[1]: "ca", NAMES[2]: "pem"}
        given = {
            "state": "present",
            "directory": str(directory),
            "place": "",
            "owner": None,
            "group": None,
            "mode": "0640",
            "url": URL,
            "results": "",
            "variables": [],
            "secrets": {name: f"v-{text}" for name, text in contents.items()},
            "inspected": inspected(**contents),
            "certificate": "",
            "reload": [],
            "restart": [],
            "destination": "",
            **params,
        }
        module = SimpleNamespace(params=given, check_mode=check_mode)
        return celery_producer.work(module, record)

    run.directory, run.record = directory, record
    return run


def appends(path, word, status=0):
    """A command that writes a word into a file."""
    code = f"open({str(path)!r}, 'a').write({word!r}); raise SystemExit({status})"
    return [sys.executable, "-c", code]


def test_a_program_gets_an_address_and_the_paths_of_its_secrets(producer):
    assert producer()["changed"]
    assert (producer.directory / "password").read_text() == "pw"
    text = (producer.directory / "environment").read_text()
    assert f"CELERY_METAL_BROKER={URL}\n" in text
    for name, variable in celery_producing.VARIABLES.items():
        assert f"{variable}={producer.directory / name}\n" in text
    assert "pw" not in text.replace("/password", "")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in producer.directory.iterdir()}
    assert modes == {0o640}
    again = producer(inspected="")
    assert (again["changed"], again["diff"]["prepared"]) == (False, "")


def test_commands_run_when_something_changed_and_not_the_first_time(producer, tmp_path):
    log = tmp_path / "log"
    commands = {"reload": [appends(log, "reload ")], "restart": [appends(log, "restart ")]}
    producer(**commands)
    assert not log.exists()
    producer(**commands)
    assert not log.exists()
    assert "reload" in producer("new", **commands)["diff"]["prepared"]
    assert (producer.directory / "password").read_text() == "new"
    assert log.read_text() == "reload "
    # A running program has the address that it began with.
    producer("new", **commands, url=URL.replace("5", "6"))
    assert log.read_text() == "reload restart "
    (producer.directory / "ca.pem").write_text("another")
    producer("new", **commands, url=URL.replace("5", "6"))
    assert (producer.directory / "ca.pem").read_text() == "ca"
    assert log.read_text() == "reload restart reload "
    producer("newest", reload=commands["reload"])
    assert log.read_text() == "reload restart reload reload "


def test_a_command_that_fails_is_run_again_until_it_succeeds(producer, tmp_path):
    log = tmp_path / "log"
    producer()
    fails = [appends(log, "a"), appends(log, "b", 3), appends(log, "c")]
    with pytest.raises(HostError, match=r'(?s)^celery_producer_reload: ".*" exits with 3.*Fix: '):
        producer("new", reload=fails)
    assert log.read_text() == "ab"
    assert producer("new", reload=[appends(log, "d")])["changed"]
    assert log.read_text() == "abd"
    assert not producer("new", reload=[appends(log, "e")])["changed"]
    with pytest.raises(HostError, match="cannot run: No such file"):
        producer("newer", reload=[["/nowhere/reload"]])


def test_a_run_that_was_cut_is_completed(producer, tmp_path, monkeypatch):
    log = tmp_path / "log"
    producer()
    with monkeypatch.context() as patch:
        patch.setattr(celery_producer, "write", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            producer("new", reload=[appends(log, "a")])
    assert producer(state="look")["versions"] == {}
    producer("new", reload=[appends(log, "b")])
    assert (producer.directory / "password").read_text() == "new"
    assert log.read_text() == "b"


def test_check_mode_reports_and_changes_nothing(producer, tmp_path):
    found = producer(check_mode=True, inspected="")
    assert found["changed"]
    assert sorted(found["diff"]["prepared"].splitlines()) == sorted(
        f"keep secret {name}" for name in NAMES
    )
    assert not producer.directory.exists()
    producer()
    assert not producer(check_mode=True, inspected="")["changed"]
    before = producer.record.read_text()
    log = tmp_path / "log"
    moved = producer(check_mode=True, inspected="", url=URL + "1", reload=[appends(log, "a")])
    assert f"keep {producer.directory / 'environment'}\nreload" in moved["diff"]["prepared"]
    assert "renew celery-redis-producer" in producer("new", check_mode=True)["diff"]["prepared"]
    assert not log.exists()
    assert producer.record.read_text() == before


def test_look_returns_what_is_whole(producer):
    producer()
    versions = {"celery-redis-producer": "v-pw", NAMES[1]: "v-ca", NAMES[2]: "v-pem"}
    assert producer(state="look")["versions"] == versions
    (producer.directory / "password").unlink()
    del versions["celery-redis-producer"]
    assert producer(state="look")["versions"] == versions
    producer.record.write_text("{}")
    assert producer(state="look")["versions"] == {}
    for text in ('"files": {"../../etc/shadow": ""}', '"earlier": ["/etc/shadow"]'):
        producer.record.write_text(f'{{{text}, "directory": "/etc/x"}}')
        assert not producer(state="absent", check_mode=True)["changed"]


def test_what_the_host_of_redis_gives_is_what_was_asked_for(producer):
    with pytest.raises(HostError, match="gives the secret 'celery-app-key', and was asked for"):
        producer(inspected=inspected(**{"celery-app-key": "x"}))
    with pytest.raises(HostError, match="does not give celery-redis-producer as this run knows"):
        producer(inspected=inspected(**{"celery-redis-producer": "other"}))
    assert not producer.directory.exists()


def test_a_directory_that_others_can_change_is_refused(producer, tmp_path):
    os.chmod(tmp_path / "etc", 0o777)
    with pytest.raises(HostError, match="can be written by others"):
        producer(state="look")
    os.chmod(tmp_path / "etc", 0o755)
    os.symlink(tmp_path, producer.directory)
    with pytest.raises(HostError, match="is a link"):
        producer()
    producer.directory.unlink()
    if os.geteuid() == 0:
        producer.directory.mkdir()
        os.chown(producer.directory, 12345, 0)
        with pytest.raises(HostError, match="belongs to the user 12345"):
            producer()


def test_no_link_is_followed(producer, tmp_path):
    producer()
    other = tmp_path / "other"
    other.write_text("mine")
    (producer.directory / "password").unlink()
    os.symlink(other, producer.directory / "password")
    os.symlink(other, producer.directory / ".password.new")
    producer("new")
    assert other.read_text() == "mine"
    assert not (producer.directory / "password").is_symlink()


@pytest.mark.parametrize("kind", ["owner", "group"])
def test_an_account_that_the_host_does_not_have_is_refused(producer, kind):
    with pytest.raises(HostError, match=f'celery_producer_{kind} is "nobody-here", and this host'):
        producer(state="look", **{kind: "nobody-here"})


def test_what_is_not_wanted_any_more_goes(producer, tmp_path):
    producer()
    other = tmp_path / "etc" / "other"
    plain = {"secrets": {NAMES[0]: "v-pw"}, "inspected": inspected(**{NAMES[0]: "pw"})}
    restart = [appends(tmp_path / "log", "a")]
    producer(directory=str(other), url="redis://producer@h:6379/0", restart=restart, **plain)
    assert sorted(path.name for path in other.iterdir()) == ["environment", "password"]
    assert not producer.directory.exists()
    (other / "mine").write_text("")
    gone = producer(state="absent")
    assert sorted(gone["diff"]["prepared"].splitlines()) == [
        f"remove {other / 'environment'}",
        f"remove {other / 'password'}",
    ]
    assert [path.name for path in other.iterdir()] == ["mine"]
    assert not producer(state="absent")["changed"]


def test_another_directory_needs_a_restart_and_the_earlier_one_lasts_until_then(producer, tmp_path):
    log, other = tmp_path / "log", tmp_path / "etc" / "other"
    producer()
    reload = [appends(log, "reload ")]
    for state in ("look", "present"):
        with pytest.raises(HostError, match="and celery_producer_restart is empty"):
            producer(state=state, directory=str(other), reload=reload)
    assert not other.exists()
    names = sorted(path.name for path in producer.directory.iterdir())
    with pytest.raises(HostError, match="exits with 3"):
        producer(directory=str(other), restart=[appends(log, "failed ", 3)])
    assert sorted(path.name for path in producer.directory.iterdir()) == names
    assert (producer.directory / "password").read_text() == "pw"
    # What is left of it is known, and still needs the restart.
    with pytest.raises(HostError, match="and celery_producer_restart is empty"):
        producer(directory=str(other), reload=reload)
    done = producer(directory=str(other), restart=[appends(log, "restart")], reload=reload)
    assert log.read_text() == "failed restart"
    assert f"remove {producer.directory / 'password'}\n" in done["diff"]["prepared"]
    assert not producer.directory.exists()
    assert sorted(path.name for path in other.iterdir()) == names
    assert not producer(directory=str(other))["changed"]


def test_an_environment_that_only_a_reload_follows_is_reported(producer, tmp_path):
    commands = {"reload": [appends(tmp_path / "log", "a")]}
    assert producer(**commands)["notes"] == []
    assert producer("new", **commands)["notes"] == []
    url = URL.replace("5", "6")
    with pytest.raises(HostError, match="exits with 3"):
        producer("new", url=url, reload=[appends(tmp_path / "log", "b", 3)])
    found = producer("new", url=url, **commands)["notes"]
    assert len(found) == 1
    assert found[0].startswith(f"{producer.directory / 'environment'} has changed, and a reload")
    assert producer("new", url=url, **commands)["notes"] == []


def test_a_first_run_that_was_cut_runs_no_command_when_it_is_completed(
    producer, tmp_path, monkeypatch
):
    log = tmp_path / "log"
    written = celery_producer.write

    def cut(path, *rest, **options):
        if path.name == "password":
            raise ZeroDivisionError
        written(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(celery_producer, "write", cut)
        with pytest.raises(ZeroDivisionError):
            producer(reload=[appends(log, "a")])
    producer(reload=[appends(log, "a")], restart=[appends(log, "b")])
    assert (producer.directory / "password").read_text() == "pw"
    assert not log.exists()
    producer("new", reload=[appends(log, "c")])
    assert log.read_text() == "c"


@pytest.mark.parametrize("mode", ["0644", "0666", "0641", "rw", "0o640", ""])
def test_a_mode_with_a_right_for_others_is_refused(producer, mode):
    for state in ("look", "present"):
        with pytest.raises(HostError, match="celery_producer_mode is"):
            producer(state=state, mode=mode)
    assert not producer.directory.exists()


def test_the_destination_is_on_record(producer):
    assert producer(state="look")["destination"] == ""
    producer(destination="staging")
    assert producer(state="look")["destination"] == "staging"
    assert not producer(destination="production")["changed"]
    assert producer(state="look")["destination"] == "production"


def test_for_another_machine_the_paths_are_its_own_and_nothing_is_recorded(producer, tmp_path):
    log = tmp_path / "log"
    producer(place="/etc/shop/redis", mode="0600", reload=[appends(log, "a")])
    text = (producer.directory / "environment").read_text()
    assert "CELERY_METAL_PASSWORD_FILE=/etc/shop/redis/password\n" in text
    assert stat.S_IMODE(producer.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((producer.directory / "password").stat().st_mode) == 0o600
    assert "RESULT_BACKEND" not in text
    more = {"results": URL, "reload": [appends(log, "a")]}
    producer("new", place="/etc/shop/redis", mode="0600", **more)
    assert (producer.directory / "password").read_text() == "new"
    text = (producer.directory / "environment").read_text()
    assert f"CELERY_METAL_RESULT_BACKEND={URL}\n" in text
    assert not producer.record.exists()
    assert not log.exists()


@pytest.mark.parametrize(
    ("url", "name", "expected"),
    [
        (
            URL,
            "CELERY_BROKER_URL",
            "rediss://producer:p%2Fw@10.0.0.5:6379/0?ssl_cert_reqs=required"
            "&ssl_ca_certs=/p/ca.pem&ssl_certfile=/p/certificate.pem&ssl_keyfile=/p/certificate.pem",
        ),
        (
            "redis+socket://producer@/run/r.sock?virtual_host=2",
            "SHOP_BROKER",
            "redis+socket://producer:p%2Fw@/run/r.sock?virtual_host=2",
        ),
        (
            "redis+socket://producer@/run/r.sock?virtual_host=2",
            "REDIS_URL",
            "unix://producer:p%2Fw@/run/r.sock?db=2",
        ),
    ],
)
def test_variables_of_the_app_hold_an_address_for_who_reads_them(tmp_path, url, name, expected):
    files = {"password": "p/w"}
    if url == URL:
        files |= {"ca.pem": "", "certificate.pem": ""}
    text = celery_producing.environment_text(url, files, celery_producing.Path("/p"), [name])
    path = tmp_path / "environment"
    path.write_text(text)
    # As a shell reads it.
    shell = f'. {path}; printf %s "${name}"'
    assert subprocess.check_output(["sh", "-c", shell], text=True) == expected
    if url == URL:
        connection = pytest.importorskip("kombu").Connection(expected)
        assert connection.password == "p/w"
        assert connection.ssl["ssl_ca_certs"] == "/p/ca.pem"
