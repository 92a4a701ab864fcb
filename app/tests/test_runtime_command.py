"""`celery-metal-run`: any command with the environment and the broker of the worker."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery
from celery.loaders.app import AppLoader
from celery_metal_runtime.command import LOADER
from runtime_lab import HERE, PASSWORD, PATIENCE, Redis, base_environ

SCRIPT = HERE.parent / "runtime/bin/celery-metal-run"
# Another app of the same process, and what others see of this one.
SEND = """
import sys
from pathlib import Path
from celery import Celery
import lab_app
assert lab_app.app.conf.task_default_queue
lab_app.app.conf.broker_url = "redis://late.invalid/0"
other = Celery("other", broker="redis://other.invalid/3", set_as_current=False)
assert other.conf.broker_url == "redis://other.invalid/3"
result = lab_app.inside.apply_async(queue=sys.argv[1])
print(result.get(timeout=100)["NOTIFY_SOCKET"])
print(Path("/proc/self/cmdline").read_text(), Path("/proc/self/environ").read_text())
"""


def run(environ, *command):
    """`celery-metal-run COMMAND...`, and how it ended."""
    environ = base_environ() | environ
    environ["PATH"] = f"{Path(sys.executable).parent}:{environ['PATH']}"
    return subprocess.run(
        [SCRIPT, *command],
        env=environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_command_finds_the_exported_secrets_and_keeps_its_exit_code(tmp_path):
    (tmp_path / "TOKEN").write_text("t0ken")
    secrets = {"CELERY_METAL_EXPORT": "TOKEN", "CELERY_METAL_SECRETS_DIRECTORY": str(tmp_path)}
    # SIGPIPE ends it, as any command that a shell starts.
    script = 'echo "$TOKEN $1"; grep SigIgn /proc/self/status; exit 7'
    done = run(secrets | {"CELERY_APP": ""}, "sh", "-c", script, "sh", "a  b")
    assert (done.returncode, done.stderr) == (7, "")
    words, ignored = done.stdout.splitlines()
    assert words == "t0ken a  b"
    assert not int(ignored.split()[1], 16) & 1 << signal.SIGPIPE - 1
    missing = run(secrets | {"CELERY_METAL_EXPORT": "OTHER"}, "true")
    assert (missing.returncode, missing.stdout) == (64, "")
    assert "CELERY_METAL_EXPORT names OTHER" in missing.stderr


def test_a_command_that_cannot_run_is_one_line(tmp_path):
    (tmp_path / "text").write_text("no program")
    for name, code in (("no-such-command", 127), (str(tmp_path / "text"), 126)):
        done = run({}, name)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith(f"celery-metal: run: {name!r}: ")
        assert done.stderr.count("\n") == 1
    for nothing in ((), ("",)):
        done = run({}, *nothing)
        assert done.returncode == 64
        assert "run has no command" in done.stderr


@pytest.mark.versions
def test_commands_and_scripts_use_the_broker_of_the_worker(redis, start):
    worker = start(server=redis).ready()
    environ = redis.environ() | {"CELERY_BROKER_URL": "redis://variable.invalid/0"}
    ping = run(environ, sys.executable, "-m", "celery", "inspect", "ping")
    assert f"{worker.node}: OK" in ping.stdout, ping.stderr
    sent = run(environ, sys.executable, "-c", SEND, worker.queue)
    assert sent.returncode == 0, sent.stderr
    for text in (ping.stdout, sent.stdout, sent.stderr):
        assert PASSWORD not in text
        assert "p%40ss" not in text


def test_they_use_it_by_tls(start, authority, tmp_path):
    server = Redis(tmp_path / "redis", (authority.ca, authority.server("127.0.0.1")))
    try:
        url = server.tcp_url.replace("redis://", "rediss://")
        environ = server.environ(url) | authority.environ()
        worker = start(server=server, **environ).ready()
        sent = run(environ, sys.executable, "-c", SEND, worker.queue)
        assert sent.returncode == 0, sent.stderr
    finally:
        server.stop()


def test_a_command_that_does_not_use_celery_does_not_load_it(redis):
    script = "import sys; print([name for name in sys.modules if 'celery' in name])"
    done = run(redis.environ(), sys.executable, "-c", script)
    assert done.stdout == "[]\n"


def fixup(app):
    """As Celery's for Django: before the app has its signals."""
    assert app.loader


class OwnLoader(AppLoader):
    """An app's own."""


class OwnApp(Celery):
    """Names its loader itself."""

    loader_cls = OwnLoader


@pytest.fixture
def environ(redis, monkeypatch):
    for name, value in (redis.environ(redis.tcp_url) | {"CELERY_LOADER": LOADER}).items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.versions
def test_each_app_keeps_its_own_loader(redis, environ):
    for made, loader in ((Celery, AppLoader), (OwnApp, OwnLoader)):
        own = {"broker": "redis://own.invalid/0", "fixups": [f"{__name__}:fixup"]}
        app = made("shop", set_as_current=False, **own)
        app.config_from_object({"task_default_queue": "shop"})
        assert app.connection_for_write().port == redis.port
        assert isinstance(app.loader, loader)
        assert app.conf.task_default_queue == "shop"
    environ.setenv("CELERY_METAL_LOADER", f"{__name__}:OwnLoader")
    app = Celery("shop", set_as_current=False)
    assert app.connection_for_read().port == redis.port
    assert isinstance(app.loader, OwnLoader)
    # Another configuration, and the same broker.
    app.config_from_object({"broker_url": "redis://own.invalid/0"}, force=True)
    assert app.connection_for_write().port == redis.port


def test_celerys_app_for_scripts_reads_its_configuration(redis, tmp_path):
    (tmp_path / "celeryconfig.py").write_text("broker_url = 'redis://own.invalid'\ntimezone='UTC'")
    script = "from celery import current_app as a; print(a.conf.timezone, a.connection().port)"
    paths = {"PYTHONPATH": f"{tmp_path}:{base_environ()['PYTHONPATH']}"}
    done = run(redis.environ(redis.tcp_url) | paths, sys.executable, "-c", script)
    assert done.stdout == f"UTC {redis.port}\n", done.stderr


def test_an_app_whose_broker_cannot_be_used_goes_to_no_other(environ, capsys):
    environ.setenv("CELERY_METAL_PASSWORD_FILE", "/nowhere/password")
    with pytest.raises(SystemExit) as ended:
        Celery("shop", broker="redis://own.invalid/0", set_as_current=False).connection_for_write()
    assert ended.value.code == 64
    assert "CELERY_METAL_PASSWORD_FILE='/nowhere/password' cannot" in capsys.readouterr().err
