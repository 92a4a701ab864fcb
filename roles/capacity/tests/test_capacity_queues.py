"""celery_queues: what is accepted, what is refused, and what the refusal says."""

import ast
import re
from pathlib import Path

import capacity
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

ROLE = Path(__file__).parents[1]
SPEC = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]
OPTIONS = SPEC["options"]
KINDS = {
    "name": "str",
    "choice": "str",
    "int": "int",
    "auto_int": "raw",
    "concurrency": "raw",
    "bool": "bool",
    "mapping": "dict",
    "names": "raw",
    "queues": "list",
    "texts": "list",
    "sections": "dict",
}


def refusal(queues):
    with pytest.raises(capacity.QueuesError) as caught:
        capacity.validate_queues(queues)
    return str(caught.value)


def test_defaults_are_filled_in_and_order_is_kept():
    valid = capacity.validate_queues([{"name": "b"}, {"name": "a/1", "weight": 3}])
    assert valid[0] == {
        "name": "b",
        "unit": "b",
        "workload": "cpu",
        "pool": "prefork",
        "weight": 1,
        "concurrency": "auto",
        "instances": 1,
        "memory_per_process_mb": 150,
        "tmp_mb": "auto",
        "drain_seconds": 60,
        "acks_late": True,
        "prefetch": 1,
        "time_limit_seconds": 0,
        "max_tasks_per_child": 0,
        "latency_objective_seconds": 0,
        "environment": {},
        "secrets": "all",
        "hosts": "all",
        "queues": ["b"],
        "queue_order": "round_robin",
        "volumes": [],
        "ports": [],
        "devices": [],
        "gpus": [],
        "quadlet": {},
    }
    assert (valid[1]["unit"], valid[1]["weight"]) == ("a_2f1", 3)


def test_input_is_left_alone():
    queues = [{"name": "a", "concurrency": {"max": 8, "min": 2}}]
    valid = capacity.validate_queues(queues)
    valid[0]["concurrency"]["min"] = 7
    assert queues == [{"name": "a", "concurrency": {"max": 8, "min": 2}}]


def test_a_time_limit_may_be_that_of_the_drain():
    queues = [
        {"name": "a", "time_limit_seconds": "auto", "drain_seconds": 90},
        {"name": "b", "time_limit_seconds": "auto"},
        {"name": "c", "time_limit_seconds": 5, "drain_seconds": 90},
    ]
    assert [one["time_limit_seconds"] for one in capacity.validate_queues(queues)] == [90, 60, 5]
    (problem,) = capacity.queue_problems([{"name": "a", "time_limit_seconds": "drain"}])
    assert problem.endswith("write auto, or a whole number from 0 to 604800")


def test_a_time_limit_is_for_prefork_alone():
    queue = {"name": "a", "pool": "threads", "time_limit_seconds": 5}
    with pytest.raises(capacity.QueuesError, match="with pool threads, which cannot end a task"):
        capacity.validate_queues([queue])


def test_a_number_of_tasks_is_for_prefork_alone():
    queue = {"name": "a", "pool": "gevent", "max_tasks_per_child": 5}
    with pytest.raises(capacity.QueuesError, match="is 5 with pool gevent, which has no processes"):
        capacity.validate_queues([queue])
    assert capacity.validate_queues([{**queue, "max_tasks_per_child": 0}])


@pytest.mark.parametrize(
    "queue",
    [
        {"pool": "solo"},
        {"pool": "solo", "concurrency": 1},
        {"pool": "gevent", "workload": "cpu"},
        {"pool": "gevent", "concurrency": {"min": 1, "max": 1}},
        {"concurrency": {"min": 2, "max": 8}},
        {"pool": "threads", "concurrency": 10000},
        *({key: rule.low} for key, rule in capacity.QUEUE_RULES.items() if rule.high),
        *({key: rule.high} for key, rule in capacity.QUEUE_RULES.items() if rule.high),
    ],
)
def test_accepted(queue):
    assert capacity.validate_queues([{"name": "a", **queue}])


@pytest.mark.parametrize(
    ("queues", "text"),
    [
        (None, "celery_queues is not set: write a list such as [{name: emails}]"),
        ([], "celery_queues is an empty list: write a list such as"),
        ({"name": "a"}, 'celery_queues is {"name": "a"}, not a list: write a list such as'),
        (["a"], 'celery_queues item 1 is "a", not a mapping: write {name: ...}'),
        ([{}], "celery_queues item 1: name is missing: every queue needs one"),
        (
            [{"name": "a"}, {"name": "b"}, {"name": "a"}],
            'celery_queues items 1 and 3 are named "a": keep one',
        ),
        (
            [{"name": "a/"}, {"name": "a_2f"}],
            'names "a/" and "a_2f" would share the units celery-a_2f@: rename one',
        ),
    ],
)
def test_refused_list(queues, text):
    assert text in refusal(queues)
    assert "\n" not in refusal(queues)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("name", None, "name is empty: every queue needs a name"),
        ("name", "", "name is empty: every queue needs a name"),
        ("name", False, "name is false (YAML reads yes, no, on and off as booleans): put what"),
        ("name", 12, 'name is 12, not text: put it in quotes, as in name: "12"'),
        ("name", "a,b", 'name is "a,b": Celery\'s -Q splits names at commas'),
        ("name", "a\nb", 'name is "a\\nb": it holds an invisible or control character; remove it'),
        ("name", "a\u200bb", 'name is "a\\u200bb": it holds an invisible'),
        ("name", "\ud800", 'name is "\\ud800": it holds an invisible'),
        ("name", " a", 'name is " a": remove the space at its start or end'),
        ("name", "a" * 201, "201 bytes as a unit's name; shorten it to 200 or fewer"),
        ("name", "é" * 34, "204 bytes as a unit's name; shorten it to 200 or fewer"),
        ("wieght", 1, "wieght is an unknown key: did you mean weight?"),
        ("Pool", "solo", "Pool is an unknown key: did you mean pool?"),
        ("zzz", 1, "zzz is an unknown key: the keys are name, workload, pool, weight, concurrency"),
        ("workload", "IO", 'workload is "IO": write one of cpu, io; did you mean io?'),
        ("workload", True, "workload is true: write one of cpu, io"),
        ("pool", "thread", 'pool is "thread": write one of prefork, threads, gevent, solo; did'),
        ("pool", ["solo"], 'pool is ["solo"]: write one of'),
        ("weight", "8", 'weight is "8", a string: drop the quotes and write 8'),
        ("weight", "08", 'weight is "08" (YAML reads a leading zero as text or octal): write 8'),
        ("weight", True, "weight is true (YAML reads yes, no, on and off as booleans): write a"),
        ("weight", 1.0, "weight is 1.0: write a whole number from 1 to 1000"),
        ("weight", None, "weight is empty: give it a value, or remove the key (default 1)"),
        ("weight", "auto", 'weight is "auto": write a whole number from 1 to 1000'),
        (
            "concurrency",
            "Auto",
            'concurrency is "Auto": write auto, a whole number from 1 to 10000',
        ),
        (
            "concurrency",
            0,
            "concurrency is 0: write auto, a whole number from 1 to 10000, or {min:",
        ),
        ("concurrency", {"min": 1}, "as a mapping it takes exactly the keys min and max"),
        ("concurrency", {"min": 3, "max": 2}, "min is above max; swap them"),
        ("concurrency", {"min": 0, "max": 2}, "concurrency.min is 0: write a whole number from 1"),
        ("concurrency", {"min": 1, "max": "2"}, 'concurrency.max is "2", a string: drop the'),
        ("concurrency", {"min": None, "max": 2}, "concurrency.min is null: write a whole number"),
        *(
            (key, value, f"{key} is {value}: write a")
            for key, rule in capacity.QUEUE_RULES.items()
            if rule.high
            for value in (rule.low - 1, rule.high + 1)
        ),
    ],
)
def test_refused_value(key, value, text):
    said = refusal([{"name": "a"} | {key: value}])
    assert text in said
    assert said.startswith("celery_queues item 1")
    assert "\n" not in said


@pytest.mark.parametrize("size", [2, {"min": 1, "max": 1}])
def test_solo_has_no_concurrency(size):
    assert "runs each task in the worker's main process and ignores concurrency" in refusal(
        [{"name": "a", "pool": "solo", "concurrency": size}]
    )


def test_threads_cannot_autoscale():
    said = refusal([{"name": "a", "pool": "threads", "concurrency": {"min": 1, "max": 2}}])
    assert "pool threads, which cannot grow or shrink while it runs" in said
    assert "choose pool prefork or gevent" in said


def test_all_problems_at_once():
    said = refusal([{"name": "a", "weight": 0, "pool": "x"}, {"nmae": "b"}, 3])
    lines = said.splitlines()
    assert lines[0] == "5 problems:"
    assert len(lines) == 6
    assert all(line.startswith("- celery_queues item ") for line in lines[1:])
    assert 'item 1 ("a")' in lines[1]
    assert lines[-1] == "- celery_queues item 3 is 3, not a mapping: write {name: ...}"


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("a.b-C_9", "a.b-C_9"),
        ("a b", "a_20b"),
        ("é", "_c3_a9"),
        ("%i@x", "_25i_40x"),
        ("\n", "_0a"),
    ],
)
def test_unit_names(name, unit):
    assert capacity.unit_slug(name) == unit


NAMES = st.text(min_size=1, max_size=8) | st.text("a/_2f", min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        ({"environment": ["A=1"]}, 'environment is ["A=1"]: write a mapping'),
        ({"environment": None}, "environment is empty"),
        ({"secrets": "DATABASE_URL"}, 'secrets is "DATABASE_URL": write all, or a list of names'),
        ({"secrets": [1]}, "secrets is [1]: write all, or a list of names"),
        ({"hosts": "web1"}, 'hosts is "web1": write all, or a list of names'),
        ({"queues": "a,b"}, 'queues is "a,b": write a list of names of queues, or remove the key'),
        ({"queues": []}, "queues is []: write a list of names of queues"),
        ({"queues": ["a", "b,c"]}, 'queues, item 2: name is "b,c": Celery\'s -Q splits names at'),
        ({"queues": ["a", True]}, "queues, item 2: name is true (YAML reads"),
        ({"queues": ["a", "b", "a"]}, 'queues names "a" twice: keep one'),
        ({"queue_order": "strict"}, 'queue_order is "strict": write one of round_robin, priority'),
    ],
)
def test_what_is_no_number_has_a_shape(queue, words):
    (problem,) = capacity.queue_problems([{"name": "a", **queue}])
    assert words in problem
    good = {"environment": {"A": "1"}, "secrets": ["B"]}
    assert capacity.validate_queues([{"name": "a", **good}])[0].items() >= good.items()


@given(st.lists(NAMES, min_size=1, max_size=6))
def test_units_differ_or_are_refused(names):
    try:
        valid = capacity.validate_queues([{"name": name} for name in names])
    except capacity.QueuesError:
        return
    units = [queue["unit"] for queue in valid]
    assert len(set(units)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", unit) for unit in units)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([*capacity.QUEUE_RULES, "min"]) | st.text(),
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats()
            | st.text()
            | st.sampled_from(["prefork", "solo", "auto", "io"])
            | st.dictionaries(st.sampled_from(["min", "max"]), st.none() | st.integers(-1, 5)),
        )
    )
    | st.text()
    | st.dictionaries(st.text(), st.integers())
)
def test_anything_is_accepted_or_refused_in_words(queues):
    try:
        assert len(capacity.validate_queues(queues)) == len(queues)
    except capacity.QueuesError as error:
        said = str(error)
        assert "celery_queues" in said


# The schema stands twice, for Ansible's documentation and for these messages: both must agree.


def described(rule, option):
    assert option["type"] == KINDS[rule.kind]
    assert tuple(option.get("choices", ())) == rule.choices
    assert option.get("default") == rule.default
    if rule.high:
        assert f"{rule.low} to {rule.high}" in option["description"]
    assert "\n" not in option["description"]


def test_argument_spec_and_queue_rules_agree():
    options = OPTIONS["celery_queues"]["options"]
    assert list(options) == list(capacity.QUEUE_RULES)
    assert options["name"]["required"] is True
    for key, rule in capacity.QUEUE_RULES.items():
        described(rule, options[key])


def test_argument_spec_and_setting_rules_agree():
    assert list(OPTIONS) == ["celery_queues", *capacity.SETTING_RULES]
    for key, rule in capacity.SETTING_RULES.items():
        # A variable without the role's prefix has its default where it is used.
        own = {} if key.startswith("capacity_") else {"default": rule.default}
        described(rule, OPTIONS[key] | own)


def test_defaults_and_argument_spec_agree():
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    own = {key: option for key, option in OPTIONS.items() if key.startswith("capacity_")}
    assert defaults == {key: option["default"] for key, option in own.items()}


def test_every_setting_reaches_the_filters():
    settings = yaml.safe_load((ROLE / "vars/main.yml").read_text())["__capacity_settings"]
    overrides = {"celery_queue_overrides": "{{ celery_queue_overrides | default({}) }}"}
    for key in capacity.BEAT_KEYS:
        default = repr(capacity.QUEUE_RULES[key].default)
        overrides[f"celery_beat_{key}"] = f"{{{{ celery_beat_{key} | default({default}) }}}}"
    assert settings == {key: f"{{{{ {key} }}}}" for key in capacity.SETTING_RULES} | overrides


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("capacity_process_factor", 33, "is 33: write a whole number from 1 to 32"),
        ("capacity_process_factor", "4", "drop the quotes and write 4 (-e key=value always gives"),
        ("capacity_reserve_mb", -1, "is -1: write auto, or a whole number from 0 to 16777216"),
        ("capacity_redis_memory_mb", 63, "is 63: write auto, or a whole number from 64 to"),
        ("capacity_redis_host", "yes", 'is "yes": write true or false (-e key=value'),
        ("capacity_runs_workers", 1, "is 1: write true or false"),
        ("celery_beat_environment", ["A=1"], "write a mapping such as {NAME: value}"),
        ("celery_beat_secrets", "no", 'is "no": write all, or a list of names'),
        ("celery_beat_volumes", ["data:/data"], 'has "data:/data": write HOST:CONTAINER'),
        ("celery_beat_volumes", ["/a:/c:U"], "and the next one has others; use idmap"),
        ("celery_beat_quadlet", {"Unit": {}}, 'has the section "Unit": there are Container and S'),
        (
            "celery_beat_quadlet",
            {"Container": {"Volume": "/a:/c"}},
            ".Container: Volume is not taken: use celery_beat_volumes",
        ),
        (
            "celery_beat_quadlet",
            {"Service": {"MemoryMax": "1G"}},
            "MemoryMax is not taken: the plan sets it; use capacity_beat_memory_mb",
        ),
        (
            "celery_beat_quadlet",
            {"Container": {"User": 0}},
            "User is not taken: the sandbox of all",
        ),
    ],
)
def test_refused_setting(key, value, text):
    (problem,) = capacity.setting_problems({key: value})
    assert problem.startswith(key)
    assert text in problem


def test_a_refusal_names_the_host_and_says_that_nothing_was_changed():
    assert capacity.refusal_text([{"name": "a"}], {}, "web1") == ""
    said = capacity.refusal_text([{"name": "a", "weight": 0}, 3], {}, "web1").splitlines()
    assert said[0] == "host web1: 2 problems:"
    assert said[-1] == "Nothing was changed."


def test_queues_are_not_needed_without_workers():
    assert capacity.problems_text(None, {"capacity_runs_workers": False}) == ""
    assert "celery_queues is not set" in capacity.problems_text(None, {})


def test_the_type_of_a_queue_has_the_keys_of_its_rules():
    stub = ROLE.parents[1] / "typings/celery_metal_types.pyi"
    classes = {
        node.name: [line.target.id for line in node.body if isinstance(line, ast.AnnAssign)]
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    assert set(classes["Queue"]) == {*capacity.QUEUE_RULES, "unit"}
    (normalised,) = capacity.validate_queues([{"name": "mail"}])
    assert set(normalised) == set(classes["Queue"])
