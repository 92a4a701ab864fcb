"""What the modules share: one run at a time on a host, and errors that name it."""

import fcntl
import json
import os
import socket
from pathlib import Path

import ansible.module_utils.celery_metal as shared
import pytest


def test_who_holds_the_host_is_named(tmp_path):
    path = str(tmp_path / "lock")
    shared.keep_others_out("celery_services", path)
    # Locks are the open file's: this is as good as another process.
    with pytest.raises(shared.HostError) as refused:
        shared.keep_others_out("celery_units", path, seconds=0.3)
    assert f"celery_services, process {os.getpid()}, since 20" in str(refused.value)
    assert "Nothing was changed" in str(refused.value)
    assert "run the same playbook again" in str(refused.value)


def test_a_run_that_has_ended_holds_nothing(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("a longer name than that of the next one, process 1, since then\n")
    shared.keep_others_out("celery_units", str(path), seconds=0)
    assert path.read_text().startswith(f"celery_units, process {os.getpid()}, ")
    assert path.read_text().count("process") == 1


class Module:
    """AnsibleModule, as far as it is needed."""

    check_mode = True
    _name = "celery_units"

    def fail_json(self, msg):
        raise SystemExit(msg)

    def exit_json(self, **result):
        raise SystemExit(json.dumps(result))


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (shared.HostError("no worker came up."), "no worker came up."),
        (OSError(28, "No space left on device", "/etc/x"), "/etc/x: No space left on device. Not"),
    ],
)
def test_errors_begin_with_the_host(problem, words):
    def work():
        raise problem

    with pytest.raises(SystemExit) as ended:
        shared.conclude(Module(), work, changes=True)
    assert str(ended.value).startswith(f"{socket.gethostname()}: {words}")


def test_a_module_ends_with_what_its_work_returns():
    with pytest.raises(SystemExit) as ended:
        shared.conclude(Module(), lambda: {"changed": False}, changes=True)
    assert json.loads(str(ended.value)) == {"changed": False}


def test_a_check_takes_no_lock(monkeypatch, tmp_path):
    monkeypatch.setattr(shared, "LOCK", str(tmp_path / "lock"))
    with pytest.raises(SystemExit):
        shared.conclude(Module(), dict, changes=True)
    assert not Path(shared.LOCK).exists()


def test_a_command_that_fails_is_no_answer():
    with pytest.raises(shared.HostError, match=r"'sh -c exit 3' failed: \. Nothing was changed"):
        shared.output("sh", "-c", "exit 3")
    assert shared.output("echo", "text") == "text\n"
