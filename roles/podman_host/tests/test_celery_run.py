"""A command finds its queue and its memory, or is refused."""

import json
import subprocess

import celery_run
import pytest
from ansible.module_utils.celery_metal import HostError

QUEUES = {"mail": "mail", "a/b": "a_2fb"}


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with a plan and the units of one queue of two."""
    monkeypatch.setattr(celery_run, "QUADLETS", tmp_path)
    monkeypatch.setattr(celery_run, "PLAN", tmp_path / "plan.json")
    rows = [{"name": name, "unit": unit} for name, unit in QUEUES.items()]
    plan = {"queues": rows, "totals": {"free_mb": 700}}
    celery_run.PLAN.write_text(json.dumps(plan))
    (tmp_path / "celery-mail@.container").write_text("[Container]\n")
    monkeypatch.setattr(celery_run, "LOCK", str(tmp_path / "lock"))
    return tmp_path


def test_the_first_queue_is_taken_or_the_one_that_is_named(host):
    # The other one's unit is not written yet.
    assert celery_run.queues_here() == ({"mail": "mail"}, 700)
    assert celery_run.unit_of("", QUEUES, {}) == ("celery-mail@.container", "[Container]\n")
    units = {f"{host}/celery-a_2fb@.container": "new"}
    assert celery_run.unit_of("a/b", QUEUES, units) == ("celery-a_2fb@.container", "new")


@pytest.mark.parametrize(
    ("queue", "queues", "units", "said"),
    [
        ("gone", QUEUES, {}, "this host has no queue gone; it has mail, a/b"),
        # In the plan, but a first deployment did not get so far.
        ("a/b", QUEUES, {}, "this host has no queue a/b"),
        # Those of the host are of the previous version.
        ("mail", QUEUES, {"/other": ""}, "this host has no queue mail"),
        ("", {}, {}, "this host has no workers\n  Fix: "),
    ],
)
def test_a_queue_that_is_not_there_is_refused(host, queue, queues, units, said):
    with pytest.raises(HostError) as error:
        celery_run.unit_of(queue, queues, units)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"queues": [{}]}'])
def test_a_host_without_a_plan_has_no_queue(host, text):
    celery_run.PLAN.write_text(text)
    assert celery_run.queues_here() == ({}, 0)


@pytest.mark.parametrize(
    ("wanted", "free", "others", "found"),
    [(0, 4000, [], 512), (0, 700, [512], 188), (700, 700, [], 700), (0, 64, [], 64)],
)
def test_a_command_has_what_the_plan_leaves(monkeypatch, wanted, free, others, found):
    monkeypatch.setattr(celery_run, "others_mb", lambda: others)
    assert celery_run.room(wanted, free) == found


@pytest.mark.parametrize(
    ("wanted", "free", "others", "said"),
    [
        (701, 700, [], "701 MB are asked for, and the plan of this host leaves 700 MB free\n"),
        (0, 63, [], "a command needs 64 MB, and the plan of this host leaves 63 MB free\n"),
        (0, 700, [640], "700 MB free, and other commands (celery-run-*.service) may use 640 MB\n"),
    ],
)
def test_too_little_memory_is_refused(monkeypatch, wanted, free, others, said):
    monkeypatch.setattr(celery_run, "others_mb", lambda: others)
    with pytest.raises(HostError) as error:
        celery_run.room(wanted, free)
    assert said in str(error.value)


def test_no_hook_begins_beside_one_of_an_earlier_run(monkeypatch):
    rows = [{"Id": "celery-run-1.service", "Description": "A hook as queue a has it"}]
    monkeypatch.setattr(celery_run, "commands_here", lambda: rows)
    rows[0]["SubState"] = "exited"
    celery_run.refuse_beside_a_hook()
    rows[0]["SubState"] = "running"
    with pytest.raises(HostError, match=r"still runs: celery-run-1\.service\n  Fix: wait"):
        celery_run.refuse_beside_a_hook()


def test_a_long_line_is_cut_and_its_rest_is_counted():
    assert celery_run.shown_line("x" * 8192) == "x" * 8192
    assert celery_run.shown_line("x" * 8200) == "x" * 8192 + "... (8 more characters)"


def test_only_commands_that_run_use_memory(monkeypatch):
    shown = [
        "Id=celery-run-00000001.service\nSubState=running\nMemoryMax=536870912",
        "Id=celery-run-00000002.service\nSubState=exited\nMemoryMax=536870912",
        "Id=celery-run-00000003.service\nSubState=start\nMemoryMax=67108864",
        "Id=celery-run-00000004.service\nSubState=running\nMemoryMax=infinity",
        # A command in a terminal and its reservation; and one that is only reserved.
        "Id=celery-run-00000005.service\nSubState=start-post\nMemoryMax=134217728",
        "Id=celery-run-00000005-reserved.service\nSubState=running\nMemoryMax=134217728",
        "Id=celery-run-00000006-reserved.service\nSubState=running\nMemoryMax=268435456",
    ]
    monkeypatch.setattr(celery_run, "output", lambda *_: "\n\n".join(shown) + "\n")
    assert celery_run.others_mb() == [512, 64, 128, 256]


def test_a_command_for_a_terminal_has_its_memory_before_it_starts(host, monkeypatch):
    units = {}

    def systemd(*argv):
        unit = next(one for one in argv if one.startswith("--unit=")).removeprefix("--unit=")
        limit = next(one for one in argv if "MemoryMax=" in one).rpartition("=")[2]
        units[f"{unit}.service"] = int(limit.removesuffix("M")) << 20
        return subprocess.CompletedProcess(argv, 0)

    def shown(*_):
        rows = [f"Id={unit}\nSubState=running\nMemoryMax={size}" for unit, size in units.items()]
        return "\n\n".join(rows)

    monkeypatch.setattr(
        celery_run,
        "run",
        lambda *argv: (
            systemd(*argv) if argv[0] == "systemd-run" else subprocess.CompletedProcess(argv, 0)
        ),
    )
    locks = []
    monkeypatch.setattr(celery_run, "keep_others_out", lambda *argv: locks.append(argv[1]))
    monkeypatch.setattr(celery_run, "output", shown)
    monkeypatch.setattr(celery_run, "translated", lambda *_: "")
    monkeypatch.setattr(celery_run, "podman", lambda *_, **__: (["podman"], "a:1"))
    monkeypatch.setattr(celery_run, "limits", lambda *_: [])
    params = {**dict.fromkeys(("queue", "image"), ""), "units": {}, "seconds": 0, "memory_mb": 400}
    found = celery_run.prepare({**params, "id": "0" * 8, "command": ["true"]})
    assert locks == [celery_run.LOCK]
    assert units == {"celery-run-00000000-reserved.service": 400 << 20}
    assert any(one.endswith("stop celery-run-00000000-reserved") for one in found["argv"])
    with pytest.raises(HostError, match=r"other commands .* may use 400 MB"):
        celery_run.prepare({**params, "id": "1" * 8, "command": ["true"]})
