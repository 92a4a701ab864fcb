"""Which queue runs where: hosts and groups, overrides, and queues and hosts that are left over."""

import capacity
import pytest
from hypothesis import given
from hypothesis import strategies as st

GROUPS = {
    "all": ["db", "web1", "web2", "gpu1", "gpu2"],
    "celery": ["web1", "web2", "gpu1", "gpu2"],
    "gpu": ["gpu1", "gpu2", "spare"],
    "redis": ["db"],
    "old": [],
}
FACTS = {"processor_nproc": 8, "memtotal_mb": 16000}


def placed(*queues, **own):
    """What is said where all hosts have these queues, but for those in `own`."""
    hosts = {host: {"celery_queues": list(queues)} for host in GROUPS["celery"]}
    for host, variables in own.items():
        hosts[host].update(variables)
    return capacity.placement(hosts, GROUPS)


def names(queues, host="web1", groups=(), **settings):
    plan = capacity.plan_or_error(queues, FACTS, host, settings, groups)
    assert "error" not in plan, plan["error"]
    return [queue["name"] for queue in plan["queues"]]


def test_a_queue_runs_on_the_hosts_and_groups_that_it_names():
    queues = [
        {"name": "everywhere"},
        {"name": "one", "hosts": ["web1"]},
        {"name": "group", "hosts": ["gpu", "web2"]},
        {"name": "inventory", "hosts": ["all"]},
        {"name": "nowhere", "hosts": []},
    ]
    assert names(queues) == ["everywhere", "one", "inventory"]
    assert names(queues, "gpu2", ["celery", "gpu"]) == ["everywhere", "group", "inventory"]
    assert names(queues, "web2", ["celery"]) == ["everywhere", "group", "inventory"]


def test_a_host_without_queues_has_a_plan_that_says_so():
    plan = capacity.plan_or_error([{"name": "a", "hosts": ["web1"]}], FACTS, "web2", {})
    assert plan["queues"] == []
    assert capacity.plan_table(plan).endswith(
        "no queue is placed on this host, and no worker runs here"
    )


def test_where_every_queue_has_a_host_nothing_is_said():
    assert placed({"name": "a"}, {"name": "b", "hosts": ["web1", "gpu"]}) == ([], [])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wbe1", "a group of the inventory: did you mean web1?"),
        (
            "gpus",
            "neither a host of the group celery nor a group of the inventory: did you mean gpu?",
        ),
        ("zzz", "there are web1, web2, gpu1, gpu2, all, celery"),
        ("db", "no host of the group celery: add it to the group, or remove it here"),
    ],
)
def test_an_unknown_host_is_a_problem_with_the_nearest(name, words):
    found = placed({"name": "a", "hosts": ["web1", name]})
    (problem,) = found.problems
    assert problem.startswith(
        f'hosts web1, web2, gpu1 and 1 more: celery_queues ("a"): hosts names "{name}", which is '
    )
    assert words in problem


def test_a_problem_of_one_host_names_it():
    own = {"celery_queues": [{"name": "a", "hosts": ["wbe2"]}]}
    (problem,) = placed({"name": "a"}, web2=own).problems
    assert problem.startswith('host web2: celery_queues ("a")')


def test_a_queue_that_no_host_serves_is_a_problem():
    (problem,) = placed({"name": "a"}, {"name": "b", "hosts": ["old", "redis"]}).problems
    assert problem == (
        'queue "b" of celery_queues would run on no host: its hosts are ["old", "redis"], and no '
        "host of the group celery is among them: add one, or write hosts: [] for a queue that "
        "shall have no workers"
    )


def test_a_queue_that_shall_have_no_workers_is_said():
    found = placed({"name": "a"}, {"name": "b", "hosts": []})
    assert found == ([], ["No host serves b (hosts: []): their tasks wait."])


def test_hosts_that_serve_no_queue_are_said():
    found = placed({"name": "a", "hosts": ["gpu"]})
    assert found == ([], ["In the group celery, but no queue is placed there: web1, web2."])


def test_a_list_of_one_host_s_own_counts_there():
    queues = [{"name": "a", "hosts": ["web1"]}]
    assert placed(*queues, web2={"celery_queues": [{"name": "b"}]}).notes == [
        "In the group celery, but no queue is placed there: gpu1, gpu2."
    ]


# Overrides


def test_an_override_is_for_the_keys_that_it_names():
    queues = [{"name": "a", "instances": 2, "weight": 3}, {"name": "b"}]
    settings = {"celery_queue_overrides": {"a": {"instances": 4}, "b": {"hosts": []}}}
    plan = capacity.plan_or_error(queues, FACTS, "web1", settings)
    (row,) = plan["queues"]
    assert (row["name"], row["instances"], row["weight"]) == ("a", 4, 3)
    assert queues[0]["instances"] == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "celery_queue_overrides is []: write a mapping"),
        ({"emial": {}}, '("emial"): celery_queues has no queue of that name: did you mean emails?'),
        (
            {1: {}},
            "celery_queue_overrides (1): celery_queues has no queue of that name: write one of e",
        ),
        ({"emails": 4}, '("emails") is 4: write a mapping such as {instances: 4}'),
        (
            {"emails": {"instnces": 4}},
            '("emails"): instnces is an unknown key: did you mean instan',
        ),
        ({"emails": {"name": "x"}}, '("emails"): name is an unknown key: the keys are workload, '),
        (
            {"emails": {"instances": 0}},
            'with celery_queue_overrides: celery_queues item 1 ("emails"): instances is 0: write a',
        ),
        ({"emails": {"pool": "solo"}}, "concurrency is 4 with pool solo"),
    ],
)
def test_a_bad_override_is_refused(overrides, words):
    queues = [{"name": "emails", "concurrency": 4}]
    settings = {"celery_queue_overrides": overrides}
    assert words in capacity.refusal_text(queues, settings, "web1")
    assert words in capacity.plan_or_error(queues, FACTS, "web1", settings)["error"]


def test_overrides_count_where_the_longest_task_is_looked_for():
    hosts = {
        "web1": {"celery_queues": [{"name": "a", "time_limit_seconds": 5}]},
        "web2": {
            "celery_queues": [{"name": "a", "time_limit_seconds": "auto"}, {"name": "b"}],
            "celery_queue_overrides": {"a": {"drain_seconds": 900}},
        },
        "web3": {},
    }
    assert capacity.longest_seconds(hosts, ["web1", "web2", "web3"]) == [0, 5, 60, 900]


ANY = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=4)
    | st.lists(st.sampled_from(["web1", "gpu", "db", "x", "all"]) | st.integers(), max_size=3)
)
QUEUE = st.dictionaries(st.sampled_from(["name", "hosts", "queues", "weight"]), ANY, max_size=4)
NAMED = st.fixed_dictionaries(
    {"name": st.sampled_from("abc")},
    optional={"hosts": st.lists(st.sampled_from(["web1", "gpu", "old"])) | st.just("all")},
)


@given(
    st.lists(QUEUE | ANY) | ANY,
    st.dictionaries(st.text(max_size=2) | st.integers(), QUEUE | ANY) | ANY,
)
def test_anything_is_placed_or_refused_in_words(queues, overrides):
    hosts = {"web1": {"celery_queues": queues, "celery_queue_overrides": overrides}}
    text = capacity.placement_text(hosts, GROUPS, ["web1"])
    assert set(text) == {"problems", "notes"}
    plan = capacity.plan_or_error(queues, FACTS, "web1", {"celery_queue_overrides": overrides})
    assert "error" in plan or "queues" in plan
    assert capacity.longest_seconds(hosts, ["web1"]) is not None


@given(st.lists(NAMED, min_size=1, max_size=3, unique_by=lambda queue: queue["name"]))
def test_each_queue_runs_somewhere_or_it_is_said(queues):
    found = placed(*queues)
    running = {
        host: names(queues, host, [g for g in GROUPS if host in GROUPS[g] and g != "all"])
        for host in GROUPS["celery"]
    }
    for queue in queues:
        served = any(queue["name"] in run for run in running.values())
        assert served != any(f'queue "{queue["name"]}"' in line for line in found.problems) or (
            not queue.get("hosts", True)
        )
    idle = [host for host, run in running.items() if not run]
    said = [line for line in found.notes if line.startswith("In the group celery")]
    assert said == (
        [f"In the group celery, but no queue is placed there: {', '.join(idle)}."] * bool(idle)
    )


def host(name, **variables):
    groups = {"celery": ["web1", "web2", "web3"], "all": ["web1", "web2", "web3"]}
    known = {"inventory_hostname": name, "group_names": ["celery"], "groups": groups}
    return {**known, "celery_queues": [{"name": "a", "hosts": ["web3"]}], **variables}


def test_beat_runs_on_the_first_two_or_where_it_is_told():
    names = ["web1", "web2", "web3"]
    assert [capacity.runs_beat(host(name)) for name in names] == [False] * 3
    assert [capacity.runs_beat(host(name, celery_beat=True)) for name in names] == [
        True,
        True,
        False,
    ]
    told = {"celery_beat": True, "celery_beat_hosts": ["web3"]}
    assert [capacity.runs_beat(host(name, **told)) for name in names] == [False, False, True]


def test_a_host_needs_the_app_for_its_workers_or_for_beat():
    assert not capacity.runs_app(host("web1"))
    assert capacity.runs_app(host("web1", celery_beat=True))
    assert capacity.runs_app(host("web3"))
