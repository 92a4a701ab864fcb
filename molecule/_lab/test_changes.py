"""What is read out of a run's results, and out of two snapshots of a host."""

import json

import changes
import pytest

UNIT = "/etc/containers/systemd/celery-metal/celery-a@.container"


def output(action, task="role : Task", **result):
    """What the callback prints for one task on the host web, after a warning."""
    hosts = {"web": {"action": action, "changed": True, **result}}
    played = {"plays": [{"tasks": [{"task": {"name": task}, "hosts": hosts}]}]}
    return f"[WARNING]: of anything\n{json.dumps(played, indent=4)}\n"


def snapshot(files=(), units=(), **podman):
    return {
        "files": {
            path: {"is": "-rw-r--r-- 0 0", "content": text, "stamp": stamp}
            for path, text, stamp in files
        },
        "units": {
            name: {"InvocationID": mark, "ActiveState": state, "FragmentPath": f"/run/{name}"}
            for name, mark, state in units
        },
        "packages": {"podman": "5.4.2"},
        "podman": podman,
    }


def test_what_a_task_changes_is_known_or_an_error():
    with pytest.raises(AssertionError, match="what does new_module change"):
        changes.said(output("new_module"), "web")
    with pytest.raises(AssertionError, match="/etc/other"):
        changes.said(output("ansible.builtin.copy", dest="/etc/other"), "web")
    assert changes.said(output("new_module"), "other") == changes.nothing()
    assert changes.said(output("new_module", changed=False), "web") == changes.nothing()


def test_differences_and_lines_are_read():
    file = {"before_header": UNIT, "after_header": UNIT, "before": "a", "after": "b"}
    gone = {"before_header": "/gone", "after_header": "/dev/null", "before": "a", "after": ""}
    lines = (
        "restart a@1.service, a@surge1.service beside it\nremove image here/app:1\nstop b.target\n"
    )
    found = changes.said(output("celery_units", diff=[file, gone, {"prepared": lines}]), "web")
    assert found == changes.nothing() | {
        "files": {UNIT: "b", "/gone": None},
        "restart": {"a@1.service"},
        "remove image": {"here/app:1"},
        "stop": {"b.target"},
    }
    with pytest.raises(KeyError):
        changes.said(output("celery_units", diff={"prepared": "twist a@1.service\n"}), "web")


def test_what_is_said_twice_is_an_error():
    file = {"before_header": UNIT, "after_header": UNIT, "before": "a", "after": "b"}
    for diff in ([file, file], {"prepared": "keep secret A\nkeep secret A\n"}):
        with pytest.raises(AssertionError, match="once more"):
            changes.said(output("celery_units", diff=diff), "web")


def test_random_marks_are_left_out_only_with_new_secrets():
    text = 'Label=celery-metal.secret.A=12ab\nImage=a\n  "worker": "0123456789ab",\n  "a": "b"\n'
    found = changes.nothing() | {"files": {UNIT: text, "/gone": None}}
    assert changes.unmarked(found) == found
    kept = changes.unmarked(found | {"keep secret": {"A"}})["files"]
    rest = 'Label=celery-metal.secret.A=\nImage=a\n  "worker": "\n  "a": "b"\n'
    assert kept == {UNIT: rest, "/gone": None}


def test_what_differs_between_two_snapshots_has_changed():
    notes = "/var/lib/celery-metal/redis.json"
    before = snapshot(
        [(UNIT, "a", 1), ("/gone", "", 1), (notes, "", 1), ("/as-it-was", "", 1)],
        [("a.service", "1", "active"), ("b.service", "1", "active"), ("c.service", "1", "failed")],
        secrets={"A": 1, "B": 1},
    )
    after = snapshot(
        [(UNIT, "b", 2), (notes, "", 2), ("/as-it-was", "", 2), ("/var/log/any", "x", 2)],
        [("a.service", "2", "active"), ("b.service", "", "inactive"), ("c.service", "2", "active")],
        secrets={"A": 2},
        images={"here/app:1": "x"},
    )
    assert changes.done(before, after) == changes.nothing() | {
        "files": {UNIT: "b", "/gone": None, notes: changes.NOTES},
        "restart": {"a.service"},
        "stop": {"b.service"},
        "start": {"c.service"},
        "keep secret": {"A"},
        "remove secret": {"B"},
        "bring image": {"here/app:1"},
    }
    assert changes.done(after, after) == changes.nothing()
    assert "files: /as-it-was" in changes.touched(before, after)
    assert changes.touched(before, before) == []
