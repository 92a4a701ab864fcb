"""In which turns workers are replaced, and what of versions is kept."""

from pathlib import Path

import celery_services
import pytest
from ansible.module_utils import celery_journal, celery_kept, celery_up
from ansible.module_utils.celery_kept import kept
from ansible.module_utils.celery_metal import HostError, template_of
from ansible.module_utils.celery_turns import Turn, beside, exclusive, turns, yielding
from celery_services import way_back
from hypothesis import given
from hypothesis import strategies as st

BEAT = celery_up.BEAT
A, B, C = "celery-a@1.service", "celery-a@2.service", "celery-b@1.service"
SIZES = {"celery-a@.service": 300, "celery-b@.service": 700}


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (1300, [Turn([A, B, C], [beside(A), beside(B), beside(C)])]),
        (700, [Turn([A, B], [beside(A), beside(B)]), Turn([C], [beside(C)])]),
        (300, [Turn([A], [beside(A)]), Turn([B], [beside(B)]), Turn([C], [])]),
        (0, [Turn([A], []), Turn([B], []), Turn([C], [])]),
    ],
)
def test_as_many_run_beside_the_old_as_fit(free, expected):
    assert turns([A, B, C], SIZES, free) == expected


def test_what_is_no_worker_has_nothing_beside_it():
    assert turns(["celery-redis.service"], {}, 0) == [Turn(["celery-redis.service"], [])]


@given(
    st.lists(st.sampled_from("abcdef"), unique=True),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 900)),
    st.integers(0, 2000),
)
def test_each_unit_is_taken_once_and_none_beyond_the_memory(names, sizes, free):
    units = [f"celery-{name}@1.service" for name in names]
    surge = {f"celery-{name}@.service": size for name, size in sizes.items()}
    found = turns(units, surge, free)
    assert sorted(unit for turn in found for unit in turn.units) == sorted(units)
    for turn in found:
        assert turn.units
        # All of a turn, or none of it, has one beside it.
        assert len(turn.beside) in (0, len(turn.units))
        needed = [surge[celery_services.template_of(unit)] for unit in turn.units if turn.beside]
        assert sum(needed) <= free


def test_the_last_five_versions_are_kept():
    images = [f"app:{number}" for number in range(5)]
    all_exist = set(images).__contains__
    assert kept(images, "app:5", all_exist) == ["app:1", "app:2", "app:3", "app:4", "app:5"]
    assert kept(images, "app:1", all_exist) == ["app:0", "app:2", "app:3", "app:4", "app:1"]
    assert kept([], "app:1", all_exist) == ["app:1"]


def test_a_version_whose_image_was_removed_takes_no_place_of_one_that_can_come_back():
    images = [f"app:{number}" for number in range(5)]
    here = {"app:0", "app:1", "app:2", "app:4"}
    assert kept(images, "app:5", here.__contains__) == [*sorted(here), "app:5"]
    # Nothing is too many yet: a rollback to it is refused with the reason.
    assert kept(images[1:], "app:5", here.__contains__) == [*images[1:], "app:5"]


def app(number, base):
    labels = {celery_kept.BASE_LABEL: f"here/app_base:{base}"}
    return {"Id": f"app{number}", "Names": [f"here/app:{number}"], "Labels": labels}


LISTED = [
    *(app(1, "a"), app(2, "a"), app(3, "b")),
    *({"Id": one, "Names": [f"here/app_base:{one}"], "Labels": None} for one in "abc"),
    {"Id": "redis", "Names": ["here/redis:1"]},
    {"Id": "layer"},
]


@pytest.mark.parametrize(
    ("images", "held", "expected"),
    [
        # The new one, which is not there yet, is built on c.
        ([1, 2, 3, 4], set(), []),
        ([2, 3, 4], set(), ["here/app:1"]),
        ([2, 4], set(), ["here/app:1", "here/app:3", "here/app_base:b"]),
        # A container that nobody restarts runs it.
        ([2, 4], {"app3"}, ["here/app:1"]),
        ([4], set(), [*(f"here/app:{n}" for n in (1, 2, 3)), "here/app_base:a", "here/app_base:b"]),
    ],
)
def test_what_no_kept_version_needs_is_removed(images, held, expected):
    kept_images = [f"here/app:{number}" for number in images]
    found = celery_kept.unneeded(LISTED, "here/app:4", "here/app_base:c", kept_images, held)
    assert found == expected


def test_units_that_are_no_longer_declared_stop_first_only_for_memory_ports_and_devices():
    sizes = {A: 300, B: 200, C: 100}
    assert yielding(sizes, [], 600) == ([], 0)
    assert yielding(sizes, [], 599) == ([A], 299)
    assert yielding(sizes, [], 0) == ([A, B, C], 0)
    assert yielding(sizes, [C], 500) == ([C], 0)
    assert yielding({A: celery_services.ALL, B: 1}, [], 5) == ([A], 4)
    files = {
        "/q/celery-a@.container": "[Container]\nPublishPort=80:80\n",
        "/q/celery-b@.container": "[Container]\n# PublishPort=80:80\nEnvironment=IP=1\n",
        "/q/celery-beat.container": "[Container]\nAddDevice=/dev/null\n",
    }
    units = [A, B, C, "celery-beat.service"]
    assert exclusive(files, units) == {A, B, "celery-beat.service"}


def test_one_cause_in_many_units_is_told_once_with_one_journal():
    prefix = "2026-11-28T12:00:00+0000 web1"
    trace = f"{prefix} celery-a-1[7]: Traceback (most recent call last):\n"
    trace += f"{prefix} celery-a-1[7]: shop.errors.SettingsError: no DSN\n"
    logs = {unit: trace + f"{prefix} systemd[1]: {unit}: Failed.\n" for unit in (A, B)}
    logs[C] = f"{prefix} celery-b-1[9]: celery-metal: CELERY_APP is wrong\n"
    logs[C] += f"{prefix} celery-b-1[9]: \n{prefix} systemd[1]: {C}: main process exited\n"
    states = {unit: {"Result": "exit-code", "ExecMainStatus": "1"} for unit in logs}
    why, text = celery_journal.described(logs, states)
    assert why == "shop.errors.SettingsError: no DSN; celery-metal: CELERY_APP is wrong"
    assert text.count("Traceback") == 1
    assert f"== {A}, {B}: Result=exit-code, ExecMainStatus=1\n" in text
    assert celery_journal.described({A: ""}, {}) == (
        "it has no journal",
        f"== {A}: Result=None, ExecMainStatus=None\n\n",
    )


def test_each_unit_and_image_is_said():
    params = {
        "leftover": [beside(A)],
        "yielding": [],
        "start": [C],
        "owned": ["/q/*"],
        "state_file": "/s.json",
    }
    params["reload"] = ["rules.service", "other.service"]
    down = ["other.service"]
    said = celery_services.lines_of(params, turns([A, B], SIZES, 400), ["here/app:1"], down)
    assert said.splitlines() == [
        f"stop {beside(A)}",
        f"start {C}",
        f"restart {A}, {beside(A)} beside it",
        f"restart {B}, {beside(B)} beside it",
        "reload rules.service",
        "start other.service",
        "write /s.json",
        "remove image here/app:1",
    ]
    params |= {"leftover": [], "reload": [], "owned": [], "yielding": [B]}
    alone = celery_services.lines_of(params, turns([A], {}, 0), [], [])
    assert alone.splitlines() == [f"stop {B}", f"start {C}", f"restart {A}"]


def test_a_version_is_brought_back_as_it_was(tmp_path):
    patterns = [str(tmp_path / "celery-*")]
    (tmp_path / "celery-a").write_text("one")
    (tmp_path / "celery-b").symlink_to("celery-a")
    (tmp_path / "other").write_text("mine")
    before = celery_kept.snapshot(patterns)
    (tmp_path / "celery-a").write_text("two")
    (tmp_path / "celery-b").unlink()
    (tmp_path / "celery-b").write_text("now a file")
    (tmp_path / "celery-c").symlink_to("celery-a")
    celery_kept.restore(before, patterns)
    assert celery_kept.snapshot(patterns) == before
    assert (tmp_path / "other").read_text() == "mine"


def test_the_state_is_read_as_it_was_written(tmp_path):
    path = str(tmp_path / "folder" / "state.json")
    assert celery_kept.read_state(path) == {"version": None, "images": []}
    celery_kept.forget(path, ["/q/a"])
    assert not Path(path).exists()
    version = {"files": {"/q/a": "x", "/q/b": "y"}, "links": {"/q/a@1": "a"}}
    celery_kept.write_state(path, {"version": version, "images": ["app:1"]})
    assert celery_kept.read_state(path)["images"] == ["app:1"]
    celery_kept.forget(path, ["/q/a", "/q/a@1", "/q/c"])
    assert celery_kept.read_state(path) == {
        "version": {"files": {"/q/b": "y"}, "links": {}},
        "images": ["app:1"],
    }


def test_what_was_started_by_hand_goes_back_with_its_template():
    version = {
        "links": {"/q/celery-a@1.container": "celery-a@.container"},
        "files": {"/q/celery-a@.container": "", "/s/celery-a.target": ""},
    }
    by_hand, new = "celery-a@9.service", "celery-a@2.service"
    assert way_back(version, [new], [new, A, by_hand, C]) == ([new, C], [A, by_hand])


def test_redis_is_a_version_like_any():
    paths = {"/etc/celery-metal/redis.conf": "", "/q/celery-redis.container": ""}
    version = {"links": {}, "files": paths}
    assert celery_kept.units_of(version) == {"celery-redis.service"}


@pytest.mark.parametrize(
    ("state", "text", "expected"),
    [
        ("activating", "a: waiting for the broker since 60 s (refused)", {A}),
        ("activating", "a: waiting for the broker since 59 s", set()),
        ("activating", "a: running its first task", set()),
        # An old worker waits as well; nothing is to be had from it.
        ("active", "a: waiting for the broker since 600 s", set()),
    ],
)
def test_who_only_waits_for_redis(monkeypatch, state, text, expected):
    said = {A: {"ActiveState": state, "StatusText": text}}
    monkeypatch.setattr(celery_services, "shown", lambda units: said)
    assert set(celery_services.waiting_for_redis([A])) == expected


def test_who_has_waited_a_little_less_is_named_too(monkeypatch):
    # They were started together; which came first is chance, and the message shall name all.
    text = "waiting for the broker since {} s"
    said = {
        name: {"ActiveState": "activating", "StatusText": f"{name}: {text.format(seconds)}"}
        for name, seconds in ((A, 58), ("b@1.service", 60))
    }
    monkeypatch.setattr(celery_services, "shown", lambda units: said)
    assert list(celery_services.waiting_for_redis(said)) == [A, "b@1.service"]


def test_what_does_not_come_back_beside_the_new_version_is_restarted_and_waited_for(monkeypatch):
    version = {"links": {"/q/celery-a@1.container": ""}, "files": {"/q/celery-a@.container": ""}}
    version["files"]["/s/rules.service"] = ""
    done, run = [], []

    def fail(*_):
        raise celery_services.ServicesError("nothing starts beside")

    for name in ("restore", "reload", "stop"):
        monkeypatch.setattr(celery_services, name, lambda *_: None)
    monkeypatch.setattr(celery_services, "run", lambda *argv: run.append(argv[1:]))
    monkeypatch.setattr(celery_services, "inactive", lambda units: [])
    monkeypatch.setattr(celery_services, "shown", lambda units: {})
    monkeypatch.setattr(celery_services, "take", fail)
    monkeypatch.setattr(celery_services, "bring", lambda verb, units, _: done.append((verb, units)))
    params = {"start": [], "owned": [], "surge": SIZES, "free_mb": 1000}
    # What has no file in that version cannot be reloaded.
    params["reload"] = ["rules.service", "new.service"]
    assert celery_services.go_back(version, [A], params) == []
    assert done == [("restart", [A])]
    assert run[0] == ("reload-or-restart", "--", "rules.service")


def test_a_version_is_back_when_its_workers_reach_redis(monkeypatch):
    lost = {"ActiveState": "active", "StatusText": "a: waiting for the broker since 2 s (refused)"}
    works, failed = {"ActiveState": "active", "StatusText": "a: 1 process"}, {"ActiveState": "x"}
    looks = iter([{A: lost, B: works}, {A: works, B: works}])
    monkeypatch.setattr(celery_services, "shown", lambda units: next(looks))
    monkeypatch.setattr(celery_services, "LOOK_SECONDS", 0)
    assert celery_services.settle([A, B]) == []
    # One that has waited for so long gets no more time.
    long = {**lost, "StatusText": "a: waiting for the broker since 60 s (refused)"}
    looks = iter([{A: lost, B: long}, {A: long, B: long}])
    assert celery_services.settle([A, B]) == [A, B]
    states = {A: lost, B: works, C: failed}
    monkeypatch.setattr(
        celery_services, "shown", lambda units: {unit: states[unit] for unit in units}
    )
    assert celery_services.settle([A, B, C], 0) == [A, C]
    assert celery_services.way_told([]).endswith("unit files too, and all units are up.")
    assert (
        f"but these do not reach Redis: {A} (a: waiting for the broker since 2 s (refused)). They "
        "look for it where it was before this run."
    ) in celery_services.way_told([A])
    assert f"too, but these are not up: {C}. systemd goes" in celery_services.way_told([A, C])


def test_what_made_room_runs_again_when_the_run_fails_elsewhere(monkeypatch, tmp_path):
    files = {
        tmp_path / "celery-a@.container": "a",
        tmp_path / "celery-b@.container": "of before",
    }
    for path, text in files.items():
        path.write_text(text)
    for name in ("a", "b"):
        (tmp_path / f"celery-{name}@1.container").symlink_to(f"celery-{name}@.container")
    owned, state_file = [f"{tmp_path}/*.container"], str(tmp_path / "state")
    version = celery_kept.snapshot(owned)
    celery_kept.write_state(state_file, {"version": version, "images": ["old"]})
    stopped, shown, run = [], {A}, []
    new = "celery-c@1.service"

    def look(units):
        return {unit: {"ActiveState": "inactive" if unit in shown else "active"} for unit in units}

    monkeypatch.setattr(celery_services, "shown", look)
    monkeypatch.setattr(celery_services, "stop", stopped.append)
    monkeypatch.setattr(celery_services, "run", lambda *argv: run.append(argv[1:]) or shown.clear())
    monkeypatch.setattr(celery_services, "reload", lambda: None)
    monkeypatch.setattr(celery_services, "memory_mb", lambda units: dict.fromkeys(units, 300))
    monkeypatch.setattr(celery_services, "bring", lambda verb, units, _: run.append((verb, units)))
    monkeypatch.setattr(celery_services, "said_since", lambda *_: "")
    params = {"restart": [C], "start": [new], "reload": [], "leftover": [], "retired": [A]}
    params |= {"surge": {}, "free_mb": 100, "owned": owned, "state_file": state_file}
    params |= {"image": "", "base": "", "journal_lines": 0, "waiting": [], "back": False}
    # What celery_units has written before.
    (tmp_path / "celery-b@.container").write_text("new")
    (tmp_path / "celery-c@.container").write_text("c")
    done = celery_services.work(params, check_mode=False)
    assert done["yielded"] == [A]
    assert stopped[0] == [A]
    nothing = {"restart": [], "start": [], "reload": []}
    shown.add(A)
    run.clear()
    taken = celery_services.work({**params, **nothing, "back": True}, check_mode=False)
    assert taken["diff"]["prepared"] == f"stop {new}\nrestart {C}\nstart {A}\n"
    assert taken["told"][0].startswith(f"{A} had made room for workers of this run")
    assert celery_kept.snapshot(owned) == version
    assert ("restart", [C]) in run
    assert ("start", "--no-block", "--", A, C) in run
    assert celery_kept.read_state(state_file) == {"version": version, "images": ["old"]}
    # Once.
    again = celery_services.work({**params, **nothing, "back": True}, check_mode=False)
    assert again == {"changed": False}


def test_what_still_starts_is_restarted_first_with_nothing_beside_it(monkeypatch):
    done = []
    monkeypatch.setattr(celery_services, "inactive", lambda units: [B] if B in units else [])
    monkeypatch.setattr(celery_services, "bring", lambda verb, units, _: done.append((verb, units)))
    for name in ("reload", "stop"):
        monkeypatch.setattr(celery_services, name, lambda *_: None)
    params = {"restart": [BEAT, A, B], "start": ["q.target"], "leftover": [], "yielding": []}
    params |= {
        "surge": {template_of(A): 9},
        "free_mb": 10,
        "owned": [],
        "journal_lines": 0,
    }
    params["reload"] = ["rules.service"]
    planned, _ = celery_services.roll(params)
    surge = beside(A)
    # Beat last: where it fails, the others have come up.
    assert planned == [Turn([B], []), Turn([A], [surge]), Turn([BEAT], [])]
    assert [one for one in done if one[1]] == [
        ("restart", [B]),
        ("start", ["q.target"]),
        ("start", [surge]),
        ("restart", [A]),
        ("restart", [BEAT]),
        # Last: what was restarted may have loaded them itself, between its stop and its start.
        ("reload-or-restart", ["rules.service"]),
    ]


def test_what_the_app_sets_and_does_not_get_is_told_once():
    log = "\n".join(
        [
            "celery-metal: reports: concurrency 2: 2 CPUs",
            "celery-metal: reports: setting: visibility_timeout 60 of the app is raised",
            "[2026-11-25 12:00:00] a task's own words: setting: none",
            "celery-metal: a-b.c: setting: task_acks_late stays False",
            "celery-metal: a-b.c: setting: visibility_timeout 60 of the app is raised",
            "celery-metal: a-b.c: setting: visibility_timeout 60 of the app is raised",
        ]
    )
    assert celery_journal.settings_told(log) == [
        "visibility_timeout 60 of the app is raised (workers of a-b.c, reports)",
        "task_acks_late stays False (workers of a-b.c)",
    ]
    assert celery_journal.settings_told("") == []


def test_a_run_that_only_looks_changes_nothing_and_fails_while_units_are_cut_off(monkeypatch):
    unit, texts = "celery-a@1.service", ["a: waiting for the broker since 9 s", "a: 1 process"]
    looks = iter([*texts, texts[0]])

    def look(units):
        assert units == [unit]
        return celery_up.Looked({}, {unit: next(looks)})

    monkeypatch.setattr(celery_up, "look", look)
    monkeypatch.setattr(celery_services, "LOOK_SECONDS", 0)
    lists = ("restart", "start", "reload", "leftover", "retired", "owned")
    params = {**{name: [] for name in lists}, "waiting": [unit]}
    assert not celery_services.work(params, check_mode=True)["changed"]
    assert not celery_services.work(params, check_mode=False)["changed"]
    monkeypatch.setattr(celery_services, "REDIS_SECONDS", 0)
    with pytest.raises(HostError, match=r"(?s)celery-a@1.*for the broker since 9 s.*Fix: look at"):
        celery_services.work(params, check_mode=False)
