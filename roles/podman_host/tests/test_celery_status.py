"""celery_status: what is read from the words of systemd, Podman and workers."""

import celery_status
import pytest

SHOWN = """\
Id=celery-mail@1.service
LoadState=loaded
ActiveState=active
SubState=running
StatusText=mail: 4 processes, 2 busy, 1032 done
NRestarts=3
StateChangeTimestamp=@1795526058

Id=celery-a_2fb@9.service
LoadState=loaded
ActiveState=inactive
SubState=dead
StatusText=a/b: 1 process, 1 busy, 7 done
NRestarts=0
StateChangeTimestamp=

Id=celery-mail@1.service
ActiveState=active
"""


def test_a_row_of_each_unit():
    consumed = {"mail": {"name": "mail", "queues": ["urgent", "mail"]}, "a_2fb": {"name": "a/b"}}
    versions = {"celery-mail@1.service": "1.2", "celery-a_2fb@9.service": "old"}
    first, second = celery_status.blocks(
        SHOWN.removesuffix("\nId=celery-mail@1.service\nActiveState=active\n")
    )
    assert celery_status.row(first, consumed, versions, None) == {
        "queue": "mail",
        "queues": ["urgent", "mail"],
        "instance": "1",
        "state": "active",
        "restarts": 3,
        "concurrency": 4,
        "busy": 2,
        "done": 1032,
        "version": "1.2",
        "since": 1795526058,
    }
    # What is not running says nothing any more, whatever systemd still remembers.
    assert celery_status.row(second, consumed, versions, 1795520000.5) == {
        "queue": "a/b",
        "queues": ["a/b"],
        "instance": "9",
        "state": "drained",
        "restarts": 0,
        "concurrency": None,
        "busy": None,
        "done": None,
        "version": None,
        "since": 1795520000,
    }


def test_a_status_that_a_task_has_sent_changes_no_row():
    for text in (f": {'9' * 5000} processes, 0 busy, 0 done", f": draining, {'9' * 5000} busy"):
        assert celery_status.numbers(text) == {}
    shown = SHOWN.replace("mail: 4 processes", "\u2028Id=celery-x@1.service\x0bNRestarts=0\r")
    assert [one["Id"] for one in celery_status.blocks(shown)] == [
        "celery-mail@1.service",
        "celery-a_2fb@9.service",
    ]
    unit = {"ActiveState": "active", "StatusText": f"schedule: \x1b[2J{'x' * 900}"}
    assert celery_status.schedule(unit, False) == f"?[2J{'x' * 186}"


def test_a_unit_that_is_asked_for_twice_is_one():
    assert [one["Id"] for one in celery_status.blocks(SHOWN)] == [
        "celery-mail@1.service",
        "celery-a_2fb@9.service",
    ]
    assert celery_status.blocks("") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mail: 1 process, 0 busy, 0 done", {"concurrency": 1, "busy": 0, "done": 0}),
        (
            "a: 2 busy, 3 done: 400 greenlets, 2 busy, 9 done",
            {"concurrency": 400, "busy": 2, "done": 9},
        ),
        ("a: 8 threads, 8 busy, 1 done", {"concurrency": 8, "busy": 8, "done": 1}),
        ("mail: draining, 2 busy", {"busy": 2}),
        ("mail: waiting for the broker since 5 s (refused)", {}),
        ("", {}),
    ],
)
def test_numbers_of_a_status_line(text, found):
    assert celery_status.numbers(text) == found


@pytest.mark.parametrize(
    ("active", "sub", "more", "drained", "text"),
    [
        ("active", "running", {}, False, "active"),
        (
            "active",
            "running",
            {"StatusText": "a: waiting for the broker since 1 s"},
            False,
            "no broker",
        ),
        ("activating", "start", {}, False, "starting"),
        ("activating", "auto-restart", {}, False, "restarting"),
        ("activating", "auto-restart-queued", {}, False, "restarting"),
        ("deactivating", "stop-sigterm", {}, False, "draining"),
        ("failed", "failed", {}, False, "failed"),
        ("failed", "failed", {}, True, "failed"),
        ("inactive", "dead", {}, False, "inactive"),
        ("inactive", "dead", {}, True, "drained"),
        ("inactive", "dead", {"LoadState": "not-found"}, True, "not found"),
    ],
)
def test_state(active, sub, more, drained, text):
    assert celery_status.state({"ActiveState": active, "SubState": sub, **more}, drained) == text


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("localhost/celery-metal/app:4d2af1cb9d7c3dfa", "4d2af1cb9d7c3dfa"),
        ("registry.example:5000/app:1.2", "1.2"),
        ("registry.example:5000/app", "0123456789ab"),
        (f"registry.example/app:1.2@sha256:{'ab' * 32}", "ab" * 6),
        (f"registry.example/app@sha256:{'ab' * 32}", "ab" * 6),
        ("", "0123456789ab"),
    ],
)
def test_version(image, text):
    assert celery_status.version({"Image": image, "ImageID": "0123456789abcdef"}) == text


def test_declared_units_are_asked_for_by_name_and_others_by_template(tmp_path):
    for name in ("celery-mail@.container", "celery-mail@1.container", "celery-redis.container"):
        (tmp_path / name).write_text("")
    assert celery_status.units(tmp_path) == ["celery-mail@*.service", "celery-mail@1.service"]


def test_the_marker_and_the_directory_are_those_of_the_drain():
    import celery_drain

    assert celery_status.MARKER == celery_drain.MARKER
    assert celery_status.QUADLETS == celery_drain.QUADLETS


def test_beat_is_asked_for_where_it_is_declared(tmp_path):
    (tmp_path / "celery-beat@.container").touch()
    assert celery_status.units(tmp_path) == ["celery-beat@*.service"]
    (tmp_path / "celery-beat.container").touch()
    assert celery_status.units(tmp_path) == ["celery-beat@*.service", "celery-beat.service"]


@pytest.mark.parametrize(
    ("active", "text", "drained", "words"),
    [
        ("active", "schedule: stands by, x", False, "stands by, x"),
        ("active", "schedule: waiting for the broker since 4 s", False, "waiting for the broker s"),
        ("active", "", False, "active"),
        ("inactive", "schedule: stands by, x", True, "drained"),
        ("failed", "schedule: holds the lock", False, "failed"),
    ],
)
def test_what_beat_says(active, text, drained, words):
    said = celery_status.schedule({"ActiveState": active, "StatusText": text}, drained)
    assert said.startswith(words)
