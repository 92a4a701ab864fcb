"""celery_units: what a set of files means for the units of a host, without a host."""

import fnmatch
import re
import subprocess

import celery_units
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

CONTAINER = "# header\n[Unit]\nDescription=x\n\n[Container]\nImage=a\n\n[Service]\nRestart=always\n"
QUADLETS = "/etc/containers/systemd/celery-metal"
UNITS = "/etc/systemd/system"


# What units need, and what is said of those that are refused


def test_a_path_that_is_missing_is_told_with_who_needs_it(tmp_path):
    celery_units.require({str(tmp_path): "volumes of queue a"})
    with pytest.raises(celery_units.HostError) as caught:
        celery_units.require({str(tmp_path): "volumes of queue a", "/no/x": "volumes of queue b"})
    assert "Nothing was written, and what runs goes on." in str(caught.value)
    assert "Not on this host: /no/x (volumes of queue b). Make the directory" in str(caught.value)


def test_what_checks_the_files_must_be_there(monkeypatch):
    there = {celery_units.QUADLET, "systemd-analyze"}
    monkeypatch.setattr(celery_units.shutil, "which", lambda name: name if name in there else None)
    assert celery_units.missing_programs(["/etc/a.conf"]) == []
    assert celery_units.missing_programs(["/etc/a.nft"]) == ["nft"]
    with pytest.raises(celery_units.HostError) as caught:
        celery_units.check({"/etc/a.nft": ""}, {})
    assert str(caught.value) == (
        "Nothing was written: nft is missing. Install nftables from the distribution, then run "
        "again."
    )


def test_rules_that_nft_refuses_are_told(monkeypatch):
    asked = []

    def run(*argv, **_):
        asked.append(argv)
        text = f"{argv[-1]}:1:1-3: Error: syntax error\n"
        return subprocess.CompletedProcess(argv, 1, "", text)

    monkeypatch.setattr(celery_units, "run", run)
    with pytest.raises(celery_units.InvalidUnitsError) as caught:
        celery_units.validate({"/etc/celery-metal/a.nft": "no rules"}, {})
    assert str(caught.value) == "nft refuses: a.nft:1:1-3: Error: syntax error\n"
    assert asked[0][:3] == ("nft", "--check", "--file")


def test_a_refusal_tells_what_the_files_that_it_names_are():
    files = {
        f"{QUADLETS}/celery-a_2fb@.container": "[Unit]\nDescription=Queue a/b, worker %i\n",
        f"{QUADLETS}/celery-b@.container": "[Unit]\nDescription=Queue b, worker %i\n",
    }
    quadlet = "converting \"celery-a_2fb@.container\": unsupported key 'Foo' in group 'Container'"
    told = "celery-a_2fb@.container is: Queue a/b, worker %i\n"
    assert celery_units.described(files, quadlet) == told
    systemd = "celery-a_2fb@1.service:40: Unknown key 'Blub' in section [Service], ignoring."
    assert celery_units.described(files, systemd) == told


# Generations


def test_a_container_is_labelled_once_with_its_own_hash():
    marked = celery_units.with_generation(CONTAINER)
    mark = celery_units.generation(marked)
    assert re.fullmatch(r"[0-9a-f]{12}", mark)
    assert marked.replace(f"Label=celery-metal.generation={mark}\n", "") == CONTAINER
    assert marked.splitlines()[5] == f"Label=celery-metal.generation={mark}"


def test_a_unit_without_a_label_has_no_generation():
    assert celery_units.generation(CONTAINER) == ""
    assert celery_units.generation("# Label=celery-metal.generation=1\n") == ""


def mark_of(text):
    return celery_units.generation(celery_units.with_generation(f"[Container]\n{text}"))


LINES = st.lists(st.text("ab=[]#%$ ", min_size=1), max_size=4)


@given(LINES, LINES)
@example(["Image=a"], ["# a reason", "Image=a", "#another"])
@example(["Image=a"], ["Image=a#"])
def test_what_is_no_comment_makes_the_generation(one, other):
    told = [[line for line in lines if not line.startswith("#")] for lines in (one, other)]
    assert (mark_of("\n".join(one)) == mark_of("\n".join(other))) == (told[0] == told[1])


# Names


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        (f"{QUADLETS}/celery-redis.container", "celery-redis.service"),
        (f"{QUADLETS}/celery-mail@.container", "celery-mail@.service"),
        (f"{QUADLETS}/celery-mail@3.container", "celery-mail@3.service"),
        (f"{QUADLETS}/celery-a.container@.container", "celery-a.container@.service"),
        (f"{UNITS}/celery.target", "celery.target"),
        (f"{UNITS}/celery.slice", "celery.slice"),
    ],
)
def test_unit_of(path, unit):
    assert celery_units.unit_of(path) == unit


@pytest.mark.parametrize(
    ("unit", "template"),
    [
        ("a@1.service", "a@.service"),
        ("a@x.y.service", "a@.service"),
        ("a@.service", "a@.service"),
        ("a.service", "a.service"),
        ("celery-a.target", "celery-a.target"),
    ],
)
def test_template_of(unit, template):
    assert celery_units.template_of(unit) == template


def test_runnable_are_instances_services_and_targets():
    paths = [
        f"{QUADLETS}/celery-redis.container",
        f"{QUADLETS}/celery-mail@.container",
        f"{QUADLETS}/celery-mail@1.container",
        f"{UNITS}/celery-mail.target",
        f"{UNITS}/celery.target.wants/celery-mail.target",
        f"{UNITS}/celery.slice",
        "/etc/celery-metal/redis.conf",
        "/etc/sysctl.d/60-celery-metal.conf",
    ]
    assert celery_units.runnable(paths) == {
        "celery-redis.service",
        "celery-mail@1.service",
        "celery-mail.target",
    }


def test_a_template_that_is_gone_takes_all_its_instances_along():
    gone = [
        f"{QUADLETS}/celery-mail@.container",
        f"{QUADLETS}/celery-mail@1.container",
        f"{UNITS}/celery-mail.target",
        "/etc/celery-metal/plan.json",
    ]
    patterns = celery_units.gone_patterns(gone)
    assert patterns == ["celery-mail.target", "celery-mail@*.service", "celery-mail@1.service"]
    assert not any(fnmatch.fnmatchcase("celery-mail2@1.service", one) for one in patterns)
    assert not any(fnmatch.fnmatchcase("celery-redis.service", one) for one in patterns)


def test_files_that_make_no_unit_need_no_podman(monkeypatch):
    monkeypatch.setattr(celery_units.shutil, "which", lambda _: None)
    celery_units.check({"/usr/local/lib/celery-metal/redis_backup.py": ""}, {})
    with pytest.raises(celery_units.HostError, match="is missing"):
        celery_units.check({f"{UNITS}/a.timer": ""}, {})


def test_a_timer_and_its_service_that_are_gone_are_stopped():
    gone = [f"{UNITS}/celery-backup.{kind}" for kind in ("service", "timer")]
    patterns = celery_units.gone_patterns(["/etc/celery-metal/backup.json", *gone])
    states = {"celery-backup.timer": "active", "celery-backup.service": "activating"}
    assert celery_units.actions(set(), {}, patterns, states, {})["stop"] == sorted(states)


def test_a_service_that_is_gone_is_stopped_and_a_drop_in_is_none():
    gone = [f"{UNITS}/celery-firewall.service", f"{UNITS}/nftables.service.d/celery-firewall.conf"]
    assert celery_units.gone_patterns(gone) == ["celery-firewall.service"]


def test_one_instance_that_is_gone_is_that_one_only():
    assert celery_units.gone_patterns([f"{QUADLETS}/celery-mail@2.container"]) == [
        "celery-mail@2.service"
    ]


# Actions

WANTED = {"celery-a@1.service", "celery-a@2.service", "celery-a.target"}
GENERATIONS = {"celery-a@.service": "new"}


def act(states, running, patterns=(), wanted=WANTED, generations=GENERATIONS):
    return celery_units.actions(set(wanted), generations, list(patterns), states, running)


def test_on_a_new_host_all_is_started():
    assert act({}, {}) == {"start": sorted(WANTED), "restart": [], "stop": [], "leftover": []}


def test_a_no_op_is_a_no_op():
    running = dict.fromkeys(["celery-a@1.service", "celery-a@2.service"], "new")
    assert act(dict.fromkeys(WANTED, "active"), running) == {
        "start": [],
        "restart": [],
        "stop": [],
        "leftover": [],
    }


def test_another_generation_restarts_that_unit_only():
    states = dict.fromkeys(WANTED, "active")
    running = {"celery-a@1.service": "old", "celery-a@2.service": "new"}
    assert act(states, running)["restart"] == ["celery-a@1.service"]


def test_a_service_whose_container_is_not_ours_restarts():
    states = dict.fromkeys(WANTED, "active")
    assert act(states, {})["restart"] == ["celery-a@1.service", "celery-a@2.service"]


def test_an_instance_started_by_hand_follows_its_template():
    states = dict.fromkeys([*WANTED, "celery-a@9.service"], "active")
    running = dict.fromkeys(states, "new") | {"celery-a@9.service": "old"}
    assert act(states, running) == {
        "start": [],
        "restart": ["celery-a@9.service"],
        "stop": [],
        "leftover": [],
    }
    assert act(states, dict.fromkeys(states, "new"))["restart"] == []


def test_what_an_interrupted_run_left_beside_others_is_named_and_not_restarted():
    states = {**dict.fromkeys(WANTED, "active"), "celery-a@surge1.service": "active"}
    running = dict.fromkeys(states, "old")
    needed = act(states, running)
    assert needed["leftover"] == ["celery-a@surge1.service"]
    assert "celery-a@1.service" in needed["restart"]
    assert "celery-a@surge1.service" not in needed["restart"] + needed["start"] + needed["stop"]


def test_an_instance_started_by_hand_goes_with_its_queue():
    states = {"celery-a@9.service": "active"}
    needed = act(states, {}, ["celery-a@*.service"], wanted=(), generations={})
    assert needed == {"start": [], "restart": [], "stop": ["celery-a@9.service"], "leftover": []}


@pytest.mark.parametrize("state", ["deactivating", "reloading", "failed", "inactive"])
def test_what_is_not_up_is_started_and_not_restarted(state):
    states = dict.fromkeys(WANTED, "active") | {"celery-a@1.service": state}
    running = {"celery-a@1.service": "old", "celery-a@2.service": "new"}
    assert act(states, running) == {
        "start": ["celery-a@1.service"],
        "restart": [],
        "stop": [],
        "leftover": [],
    }


@pytest.mark.parametrize(
    ("running", "verb"),
    [({"celery-a@1.service": "old"}, "restart"), ({"celery-a@1.service": "new"}, "start"),
     ({}, "start")],
)  # fmt: skip
def test_what_is_starting_as_it_was_before_is_restarted(running, verb):
    states = dict.fromkeys(WANTED, "active") | {"celery-a@1.service": "activating"}
    needed = act(states, {"celery-a@2.service": "new"} | running)
    assert {name: units for name, units in needed.items() if units} == {
        verb: ["celery-a@1.service"]
    }


@pytest.mark.parametrize("state", ["failed", "inactive"])
def test_what_is_down_is_not_stopped_again(state):
    assert act({"celery-b@1.service": state}, {}, ["celery-b@*.service"])["stop"] == []


QUEUES = st.sampled_from(["a", "b", "c", "a-b"])
OURS = st.builds("celery-{}@{}.service".format, QUEUES, st.integers(1, 3))
TARGETS = st.builds("celery-{}.target".format, QUEUES)
FOREIGN = st.sampled_from(["nginx.service", "celery.service", "celeryd@1.service", "a@1.service"])
STATES = st.sampled_from(["active", "activating", "deactivating", "reloading", "failed"])


@given(
    queues=st.sets(QUEUES),
    wanted_instances=st.sets(OURS),
    gone=st.sets(QUEUES),
    states=st.dictionaries(OURS | TARGETS | FOREIGN, STATES),
    running=st.dictionaries(OURS | FOREIGN, st.sampled_from(["new", "old"])),
)
def test_promises(queues, wanted_instances, gone, states, running):
    wanted = {one for one in wanted_instances if one[len("celery-") : one.index("@")] in queues}
    wanted |= {f"celery-{queue}.target" for queue in queues}
    generations = {f"celery-{queue}@.service": "new" for queue in queues}
    paths = [f"{QUADLETS}/celery-{queue}@.container" for queue in gone - queues]
    paths += [f"{UNITS}/celery-{queue}.target" for queue in gone - queues]
    patterns = celery_units.gone_patterns(paths)
    needed = celery_units.actions(wanted, generations, patterns, states, running)

    every = [unit for units in needed.values() for unit in units]
    assert len(every) == len(set(every))
    assert all(units == sorted(units) for units in needed.values())
    assert not any(unit in every for unit in states if not unit.startswith("celery-"))
    for unit in wanted:
        up = states.get(unit) == "active"
        assert (unit in needed["start"]) == (not up and unit not in needed["restart"])
        if up and (unit.endswith(".target") or running.get(unit) == "new"):
            assert unit not in every
    for unit in needed["stop"]:
        assert unit not in wanted
        assert any(fnmatch.fnmatchcase(unit, pattern) for pattern in patterns)
    for unit in needed["restart"]:
        assert states[unit] == "active" or (states[unit] == "activating" and unit in running)
        assert celery_units.template_of(unit) in generations
        assert running.get(unit) != "new"


# Files


def test_write_and_present(tmp_path):
    file, link = tmp_path / "a" / "b.container", tmp_path / "a" / "b@1.container"
    assert celery_units.present(str(file)) is None
    celery_units.write(str(file), "text\n", None)
    celery_units.write(str(link), None, "b.container")
    celery_units.write(str(link), None, "b.container")
    assert celery_units.present(str(file)) == "text\n"
    assert celery_units.present(str(link)) == "-> b.container"
    assert file.stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "b.container",
        "b@1.container",
    ]


def test_a_dangling_link_is_still_there(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    assert celery_units.present(str(tmp_path / "link")) == "-> nowhere"


# What is kept out


def test_a_file_that_is_there_closes_the_units_that_say_so(tmp_path):
    marker = tmp_path / "drained"
    closed = f"[Unit]\nConditionPathExists=!{marker}\n\n[Container]\nImage=a\n"
    files = {
        f"{QUADLETS}/celery-mail@.container": closed,
        f"{QUADLETS}/celery-redis.container": CONTAINER,
        f"{QUADLETS}/celery-x@.container": closed.replace("Condition", "# Condition"),
        f"{QUADLETS}/celery-y@.container": closed.replace("=!", "="),
    }
    assert celery_units.closed_units(files) == set()
    marker.write_text("")
    assert celery_units.closed_units(files) == {"celery-mail@.service"}
