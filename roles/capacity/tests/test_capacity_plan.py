"""The planner: its promises for any host and any queues, its numbers for some, and its words."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import capacity
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FILTERS = Path(capacity.__file__)


def limits(**changed):
    base = {
        "reserve_mb": "auto",
        "process_factor": 4,
        "threads_per_vcpu": 10,
        "greenlets_per_vcpu": 100,
        "main_process_mb": 64,
        "beat_mb": 0,
        "beat": capacity.limits_from_settings({})["beat"],
        "sentinel_mb": 0,
        "redis": None,
    }
    return base | changed


def host(vcpus, memory_mb, numa_nodes=1):
    return {"name": "web1", "vcpus": vcpus, "memory_mb": memory_mb, "numa_nodes": numa_nodes}


def queues(*changes):
    return capacity.validate_queues(
        [{"name": f"q{i}"} | change for i, change in enumerate(changes)]
    )


def sizes(plan):
    return [queue["concurrency"] for queue in plan["queues"]]


def refusal(*args):
    with pytest.raises(capacity.PlanError) as caught:
        capacity.plan(*args)
    return str(caught.value)


AUTO = {"redis": {"memory_mb": "auto"}}

AUTOMATIC = st.fixed_dictionaries(
    {
        "workload": st.sampled_from(["cpu", "io"]),
        "weight": st.integers(1, 9) | st.integers(1, 1000),
        "instances": st.sampled_from([1, 1, 2, 3, 5]),
        "memory_per_process_mb": st.integers(16, 400),
        "tmp_mb": st.sampled_from(["auto", "auto", 4, 40]),
    }
)
OTHER = st.fixed_dictionaries(
    {
        "workload": st.sampled_from(["cpu", "io"]),
        "pool": st.sampled_from(["prefork", "threads", "gevent"]),
        "concurrency": st.integers(1, 6) | st.just("auto"),
        "instances": st.integers(1, 3),
        "memory_per_process_mb": st.integers(16, 400),
        "tmp_mb": st.sampled_from(["auto", "auto", 4, 40]),
    }
)
SCALED = st.just({"concurrency": {"min": 1, "max": 3}}) | st.just({"pool": "solo"})
QUEUES = st.lists(AUTOMATIC | AUTOMATIC | OTHER | SCALED, min_size=1, max_size=6).map(
    lambda changes: queues(*changes)
)
LIMITS = st.builds(
    limits,
    reserve_mb=st.just("auto") | st.integers(0, 2000),
    process_factor=st.integers(1, 5),
    main_process_mb=st.integers(16, 100),
    beat_mb=st.just(0) | st.integers(64, 300),
    sentinel_mb=st.sampled_from([0, capacity.SENTINEL_MB]),
    redis=st.none() | st.builds(dict, memory_mb=st.just("auto") | st.integers(64, 1000)),
)
VCPUS = st.integers(1, 24)
MEMORY = st.integers(300, 12000)


def plan_or_none(*args):
    try:
        return capacity.plan(*args)
    except capacity.PlanError:
        return None


# What holds for every plan


@given(QUEUES, LIMITS, VCPUS, MEMORY)
def test_never_more_than_there_is(queue_list, limit, vcpus, memory):
    plan = plan_or_none(host(vcpus, memory), queue_list, limit)
    if plan is None:
        return
    totals, rows = plan["totals"], plan["queues"]
    processes = sum(row["processes"] * row["instances"] for row in rows)
    workers = sum(row["memory_mb"] * row["instances"] for row in rows)
    assert processes == totals["processes"] <= totals["process_cap"]
    instances = sum(row["instances"] for row in rows)
    assert totals["process_cap"] == max(vcpus * limit["process_factor"], instances)
    assert totals["workers_mb"] == workers
    taken = workers + totals["redis_mb"] + totals["reserve_mb"]
    for part in ("beat", "sentinel"):
        planned = (plan[part] or {"memory_mb": 0})["memory_mb"]
        assert totals[f"{part}_mb"] == limit[f"{part}_mb"] == planned
        taken += planned
    assert taken + totals["free_mb"] == totals["memory_mb"] == memory
    assert totals["free_mb"] >= 0
    for row in rows:
        assert row["concurrency"] >= 1
        assert row["processes"] == (row["concurrency"] if row["pool"] == "prefork" else 1)
        own = limit["main_process_mb"] if row["pool"] == "prefork" else 0
        tasks = row["processes"] * row["memory_per_process_mb"]
        assert row["memory_mb"] == own + tasks + row["tmp_mb"]
        assert 4 <= row["tmp_mb"] <= 64
        assert 1 <= row["cpu_weight"] <= 10000
        assert all(row["reasons"].values())


@given(QUEUES, LIMITS, VCPUS, MEMORY)
def test_cpu_queues_stay_on_the_usable_vcpus(queue_list, limit, vcpus, memory):
    plan = plan_or_none(host(vcpus, memory), queue_list, limit)
    if plan is None:
        return
    cpu = [row for row in plan["queues"] if row["workload"] == "cpu"]
    usable = vcpus - 1 if limit["redis"] and vcpus >= 4 else vcpus
    if sum(row["processes"] * row["instances"] for row in cpu) > usable:
        for row, queue in zip(plan["queues"], queue_list, strict=True):
            if (row["workload"], row["pool"], queue["concurrency"]) == ("cpu", "prefork", "auto"):
                assert row["concurrency"] == 1


@given(QUEUES, LIMITS, VCPUS, MEMORY)
def test_explicit_numbers_are_kept(queue_list, limit, vcpus, memory):
    plan = plan_or_none(host(vcpus, memory), queue_list, limit)
    for row, queue in zip(plan["queues"] if plan else [], queue_list, strict=False):
        wanted = queue["concurrency"]
        if isinstance(wanted, dict):
            assert (row["autoscale"], row["concurrency"]) == (wanted, wanted["max"])
        elif wanted != "auto":
            assert (row["autoscale"], row["concurrency"]) == (None, wanted)
        if wanted != "auto":
            assert row["reasons"]["concurrency"].startswith("explicit")


@settings(max_examples=300)
@given(QUEUES, LIMITS, VCPUS, MEMORY)
def test_weights_are_respected_within_rounding(queue_list, limit, vcpus, memory):
    """Webster: no automatic queue holds a seat that another of its kind had the better claim to.

    Strict order makes it hold for several instances and on a host short of memory, too.
    """
    plan = plan_or_none(host(vcpus, memory), queue_list, limit)
    if plan is None:
        return
    rows = [
        row
        for row, queue in zip(plan["queues"], queue_list, strict=True)
        if row["pool"] == "prefork" and queue["concurrency"] == "auto"
    ]
    for one in rows:
        for other in rows:
            if one["workload"] == other["workload"] and one["concurrency"] > 1:
                last = one["instances"] * (2 * one["concurrency"] - 1)
                following = other["instances"] * (2 * other["concurrency"] + 1)
                assert one["weight"] * following >= other["weight"] * last


@pytest.mark.parametrize("kind", ["cpu", "io"])
@pytest.mark.parametrize(
    ("weights", "seats", "expected"),
    [
        ((1, 2, 3), 6, [1, 2, 3]),
        ((53, 24, 23), 7, [3, 2, 2]),
        ((5, 1), 9, [8, 1]),
        ((100, 9, 1), 20, [17, 2, 1]),
    ],
)
def test_shares_are_webster_s(kind, weights, seats, expected):
    queue_list = queues(*({"workload": kind, "weight": weight} for weight in weights))
    plan = capacity.plan(host(seats, 64000), queue_list, limits(process_factor=1))
    assert sizes(plan) == expected


def test_the_last_megabyte_counts():
    queue_list = queues({"memory_per_process_mb": 100})
    exact = 256 + 64 + 100 + 64
    assert capacity.plan(host(1, exact), queue_list, limits())["totals"]["free_mb"] == 0
    # Less than by default for /tmp is no reason to refuse it.
    least = exact - 64 + 16
    assert capacity.plan(host(1, least), queue_list, limits())["queues"][0]["tmp_mb"] == 16
    assert "1 MB more than" in refusal(host(1, least - 1), queue_list, limits())
    assert sizes(capacity.plan(host(2, exact + 100), queue_list, limits())) == [2]
    assert sizes(capacity.plan(host(2, exact + 99), queue_list, limits())) == [1]


@settings(max_examples=600, deadline=None)
@given(QUEUES, LIMITS, VCPUS, MEMORY, st.integers(0, 6), st.integers(0, 40) | st.integers(0, 4000))
def test_a_larger_host_never_gives_less(queue_list, limit, vcpus, memory, more_vcpus, more_memory):
    small = plan_or_none(host(vcpus, memory), queue_list, limit)
    if small is None:
        return
    large = capacity.plan(host(vcpus + more_vcpus, memory + more_memory), queue_list, limit)
    assert all(a <= b for a, b in zip(sizes(small), sizes(large), strict=True))
    assert large["totals"]["reserve_mb"] >= small["totals"]["reserve_mb"]
    if small["redis"]:
        assert large["redis"]["memory_mb"] >= small["redis"]["memory_mb"]
        assert large["redis"]["maxmemory_mb"] >= small["redis"]["maxmemory_mb"]


@pytest.mark.parametrize("redis", [None, {"memory_mb": "auto"}])
def test_what_is_left_for_workers_never_falls(redis):
    left = [
        capacity._divide_memory(host(4, memory), True, limits(redis=redis)).workers
        for memory in range(1, 20000)
    ]
    assert left == sorted(left)


@given(QUEUES, LIMITS, VCPUS, MEMORY)
def test_the_same_input_gives_the_same_plan_and_leaves_it_alone(queue_list, limit, vcpus, memory):
    before = json.dumps([queue_list, limit])
    first = plan_or_none(host(vcpus, memory), queue_list, limit)
    assert first == plan_or_none(host(vcpus, memory), queue_list, limit)
    assert json.dumps([queue_list, limit]) == before
    assert json.loads(json.dumps(first)) == first


@given(QUEUES, LIMITS, VCPUS, MEMORY)
def test_the_table_fits_the_terminal(queue_list, limit, vcpus, memory):
    plan = plan_or_none(host(vcpus, memory, 2), queue_list, limit)
    if plan:
        lines = capacity.plan_table(plan).splitlines()
        assert all(len(line) <= 110 and line == line.rstrip() for line in lines)


# Numbers


@pytest.mark.parametrize(
    ("changes", "vcpus", "memory", "changed", "expected"),
    [
        ([{}], 4, 4096, {}, [4]),
        ([{}, {}], 4, 4096, {}, [2, 2]),
        ([{}, {"weight": 3}], 4, 4096, {}, [1, 3]),
        ([{}], 4, 4096, AUTO, [3]),
        ([{}], 3, 4096, AUTO, [3]),
        ([{}], 5, 4096, AUTO, [4]),
        ([{"workload": "io", "concurrency": 7}, {}], 2, 8192, {}, [7, 1]),
        ([{}, {"workload": "io"}], 2, 4096, {}, [2, 6]),
        ([{"workload": "io"}, {"workload": "io", "weight": 2}], 3, 8192, {}, [4, 8]),
        ([{}] * 10, 2, 8192, {}, [1] * 10),
        ([{"instances": 2}], 5, 4096, {}, [2]),
        ([{"concurrency": 3}, {}], 8, 8192, {}, [3, 5]),
        ([{"concurrency": {"min": 1, "max": 6}}, {}], 8, 8192, {}, [6, 2]),
        ([{"pool": "threads"}, {"pool": "threads", "workload": "io"}], 4, 4096, {}, [4, 40]),
        ([{"pool": "gevent"}, {"pool": "gevent", "workload": "io"}], 4, 4096, {}, [4, 400]),
        ([{"pool": "solo"}], 4, 4096, {}, [1]),
        ([{}], 8, 1024, {}, [4]),
        # A wide cpu queue gets its seat in the end: io queues leave free what it waits for.
        ([{"instances": 3}, {"workload": "io"}], 6, 9999, {"process_factor": 2}, [2, 6]),
    ],
)
def test_sizes(changes, vcpus, memory, changed, expected):
    assert (
        sizes(capacity.plan(host(vcpus, memory), queues(*changes), limits(**changed))) == expected
    )


@pytest.mark.parametrize(
    ("memory", "changed", "workers", "expected"),
    [
        (4096, AUTO, True, (409, 737)),
        (1000, AUTO, True, (256, 148)),
        (600, AUTO, True, (256, 96)),
        (4096, AUTO, False, (409, 2580)),
        (4096, {"reserve_mb": 0}, True, (0, 0)),
        (4096, {"reserve_mb": 100, "redis": {"memory_mb": 500}}, True, (100, 500)),
    ],
)
def test_reserve_and_redis(memory, changed, workers, expected):
    queue_list = queues({"memory_per_process_mb": 16}) if workers else []
    plan = capacity.plan(host(2, memory), queue_list, limits(**changed))
    assert (plan["totals"]["reserve_mb"], plan["totals"]["redis_mb"]) == expected
    if plan["redis"]:
        assert plan["redis"]["maxmemory_mb"] == expected[1] * 2 // 3
        assert all(plan["redis"]["reasons"].values())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{}], [100]),
        ([{"weight": 2}, {"weight": 3, "instances": 2}], [200, 150]),
        ([{"instances": 100}], [1]),
        ([{"weight": 1000}, {"weight": 10}], [10000, 100]),
        ([{"weight": 1000}, {"weight": 1, "instances": 100}], [10000, 1]),
    ],
)
def test_cpu_weights(changes, expected):
    plan = capacity.plan(host(64, 64000), queues(*changes), limits())
    assert [row["cpu_weight"] for row in plan["queues"]] == expected


@given(QUEUES, QUEUES, st.integers(1, 16))
def test_redis_does_not_depend_on_the_queues(some, others, vcpus):
    plans = [plan_or_none(host(vcpus, 64000), one, limits(**AUTO)) for one in (some, others)]
    shares = [plan["redis"] for plan in plans if plan and plan["queues"]]
    assert all(share == shares[0] for share in shares)


# Words


def reason(changes, vcpus, memory, which=0, nodes=1, **changed):
    plan = capacity.plan(host(vcpus, memory, nodes), queues(*changes), limits(**changed))
    return plan["queues"][which]["reasons"]["concurrency"]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (([{}, {}], 4, 4096), "2 of 4 usable vCPUs, weight 1 of 2"),
        (([{}], 1, 4096), "1 of 1 usable vCPU, weight 1 of 1"),
        (([{}, {"workload": "io"}], 2, 4096, 1), "6 of at most 8 processes, weight 1 of 1"),
        (([{}] * 3, 2, 4096), "the least: 3 cpu processes on 2 usable vCPUs"),
        (([{"concurrency": 2}], 2, 4096), "explicit"),
        (
            ([{"concurrency": {"min": 1, "max": 2}}], 2, 4096, 0, 2),
            "explicit, autoscale 1 to 2; 2 NUMA nodes, not pinned",
        ),
        (([{"pool": "solo"}], 2, 4096), "solo runs one task at a time"),
        (
            ([{"pool": "threads", "workload": "io"}], 2, 4096, 0, 2),
            "10 threads per vCPU, 2 vCPUs; 2 NUMA nodes, not pinned",
        ),
        (([{"pool": "gevent"}], 1, 4096), "1 greenlet per vCPU, 1 vCPU"),
        (
            ([{}], 8, 1024),
            "shrunk from 8 to 4: the next process of 150 MB does not fit in 40 MB",
        ),
        (
            ([{}, {"memory_per_process_mb": 500}], 8, 1600),
            'shrunk from 4 to 2: the next process of 500 MB, for "q1", does not fit in 288 MB',
        ),
        (
            ([{"instances": 2}], 8, 1200),
            "shrunk from 4 to 2: the next 2 processes of 150 MB do not fit in 88 MB",
        ),
    ],
)
def test_reasons(args, text):
    assert reason(*args) == text


def test_too_many_explicit_processes():
    said = refusal(host(2, 9999), queues({"concurrency": 9}, {}), limits())
    assert said == (
        'host web1: queue "q0": concurrency 9 with instances 1 needs 9 processes, and the host may '
        "run 2 vCPUs x capacity_process_factor 4 = 8 processes: lower concurrency or instances, "
        "write concurrency: auto, or raise capacity_process_factor"
    )


def test_all_queues_with_too_many_processes_are_named():
    said = refusal(host(2, 9999), queues({"concurrency": 9}, {"concurrency": 10}), limits())
    assert said.startswith("2 problems:\n- host web1: ")
    assert '"q1": concurrency 10' in said


def test_too_many_processes_together():
    said = refusal(host(2, 9999), queues({"concurrency": 5}, {"concurrency": 3}, {}), limits())
    assert said.splitlines() == [
        "host web1: celery_queues needs 9 processes, and the host may run 8 "
        "(2 vCPUs x capacity_process_factor 4 = 8 processes):",
        '  queue "q0"  1 x 5  5',
        '  queue "q1"  1 x 3  3',
        '  queue "q2"  1 x 1  1',
        "  sum                9",
        "lower concurrency or instances, write concurrency: auto, or raise capacity_process_factor",
    ]


def test_memory_refusal_shows_the_sum():
    said = refusal(host(4, 2000), queues({"concurrency": 8}, {"pool": "solo"}, {}), limits(**AUTO))
    assert said.splitlines() == [
        "host web1: celery_queues needs 2280 MB, 280 MB more than the 2000 MB that the host has:",
        "  reserve     capacity_reserve_mb: auto                                         256 MB",
        "  Redis       capacity_redis_memory_mb: auto                                    348 MB",
        '  queue "q0"  1 x (main process 64 + 8 x 150 + /tmp 16 MB)                     1280 MB',
        '  queue "q1"  1 x (1 x 150 + /tmp 16 MB)                                        166 MB',
        '  queue "q2"  1 x (main process 64 + 1 x 150 + /tmp 16 MB), auto at its least   230 MB',
        "  sum                                                                          2280 MB",
        "lower concurrency, instances, memory_per_process_mb or tmp_mb, move a queue to another "
        "host, or add memory",
    ]


@pytest.mark.parametrize(
    ("changes", "memory", "sizes", "reason"),
    [
        ([{}], 4096, [64], "auto: as a process, 64 MB at most"),
        ([{"memory_per_process_mb": 20}], 4096, [20], "auto: as a process, 64 MB at most"),
        ([{"tmp_mb": 64}], 4096, [64], "explicit"),
        ([{"tmp_mb": 1500}], 4096, [1500], "explicit"),
        # What is left is shared alike, by instances; explicit sizes stay.
        (
            [{"instances": 2}, {"tmp_mb": 70}, {"memory_per_process_mb": 20}],
            256 + 3 * 214 + 84 + 70 + 2 * 30 + 20 + 1,
            [30, 70, 20],
            "shrunk from 64 MB: that is what memory is left for",
        ),
    ],
)
def test_the_size_of_tmp(changes, memory, sizes, reason):
    plan = capacity.plan(host(8, memory), queues(*changes), limits())
    rows = plan["queues"]
    assert [row["tmp_mb"] for row in rows] == sizes
    assert rows[0]["reasons"]["tmp_mb"] == reason
    table = " ".join(capacity.plan_table(plan).split())
    assert ("/tmp shrunk from 64 MB" in table) == reason.startswith("shrunk")


@given(QUEUES, LIMITS, VCPUS, MEMORY)
def test_no_default_of_tmp_refuses_more_than_its_least_does(queue_list, limit, vcpus, memory):
    least = [queue | {"tmp_mb": 16} for queue in queue_list if queue["tmp_mb"] == "auto"]
    if len(least) == len(queue_list):
        plans = [plan_or_none(host(vcpus, memory), one, limit) for one in (queue_list, least)]
        assert (plans[0] is None) == (plans[1] is None)


def test_beat_is_in_the_sum_and_in_the_table():
    settings = {"capacity_runs_beat": True, "capacity_beat_memory_mb": 200}
    with_beat = capacity.limits_from_settings(settings)
    # It has no tmp_mb: Podman's own is there, or one of the user's.
    tmpfs = {"celery_beat_quadlet": {"Container": {"Tmpfs": "/tmp:size=1g"}}}
    assert capacity.setting_problems(tmpfs) == []
    table = capacity.plan_table(capacity.plan(host(2, 2000), queues({"concurrency": 1}), with_beat))
    _, _, _, row, *_, total = table.splitlines()
    assert row.split()[:4] == ["Beat", "1", "1", "200"]
    assert total.startswith("workers 278 + Beat 200 + reserve 256 = 734 of 2000 MB")
    said = refusal(host(2, 600), queues({}), with_beat)
    assert "  Beat        capacity_beat_memory_mb" in said
    assert capacity.limits_from_settings({"capacity_beat_memory_mb": 200})["beat_mb"] == 0


def test_a_sentinel_is_in_the_sum_and_in_the_table():
    settings = {"capacity_redis_host": True, "capacity_redis_sentinel": True}
    elects = capacity.limits_from_settings(settings)
    plan = capacity.plan(host(4, 4096), [], elects)
    # Of what else is free: Redis's own share is that of a single one.
    assert plan["redis"] == capacity.plan(host(4, 4096), [], limits(**AUTO))["redis"]
    *_, row, total = capacity.plan_table(plan).splitlines()
    assert row.split()[:4] == ["Sentinel", "1", "32", "1000"]
    assert total == "Redis 2580 + Sentinel 32 + reserve 409 = 3021 of 4096 MB"
    said = refusal(host(4, 2000), [], elects | {"redis": {"memory_mb": 1744}})
    assert "host web1: Redis needs 2032 MB, 32 MB more than the 2000 MB" in said
    assert re.search(r"\n  Sentinel  beside a Redis of several hosts +32 MB\n", said)
    assert capacity.limits_from_settings({"capacity_redis_sentinel": True})["sentinel_mb"] == 0


def test_redis_alone_that_does_not_fit():
    said = refusal(host(4, 2000), [], limits(redis={"memory_mb": 1900}))
    assert "host web1: Redis needs 2156 MB, 156 MB more than the 2000 MB that the host has" in said
    assert said.endswith("lower capacity_redis_memory_mb or capacity_reserve_mb, or add memory")


TABLE = Path(__file__).with_name("plan_table.txt").read_text()


def test_table():
    queue_list = capacity.validate_queues(
        [
            {"name": "add_queue"},
            {"name": "multiply_queue", "workload": "io", "weight": 2},
            {"name": "mail", "pool": "gevent", "workload": "io"},
            {"name": "a_name_longer_than_its_column", "concurrency": {"min": 1, "max": 2}},
        ]
    )
    assert (
        capacity.plan_table(capacity.plan(host(4, 4096), queue_list, limits(**AUTO))) + "\n"
        == TABLE
    )


def test_table_of_a_pure_redis_host():
    table = capacity.plan_table(capacity.plan(host(4, 4096), [], limits(**AUTO)))
    assert table.splitlines()[-1] == "Redis 2580 + reserve 409 = 2989 of 4096 MB"


# Ansible's side

FACTS = {"processor_nproc": 4, "processor_vcpus": 8, "memtotal_mb": 4096}


def test_affinity_wins_over_all_vcpus():
    assert capacity.host_from_facts(FACTS, "web1", 1) == host(4, 4096)
    assert capacity.host_from_facts(FACTS | {"processor_nproc": None}, "web1", 2) == host(
        8, 4096, 2
    )


@pytest.mark.parametrize(
    ("planned", "taken"),
    [(0, 4096), (4096, 4096), (4087, 4087), (4136, 4136), (4055, 4096), (4138, 4096)],
)
def test_a_plan_stays_while_the_memory_is_about_the_same(planned, taken):
    assert capacity.host_from_facts(FACTS, "web1", 1, planned) == host(4, taken)


@given(st.integers(1, 1 << 30), st.integers(0, 1 << 30))
def test_a_plan_is_never_for_much_more_than_there_is(memory, planned):
    taken = capacity.same_memory_mb(memory, planned)
    assert taken in (memory, planned)
    assert abs(taken - memory) <= max(1, taken) / 100


def test_missing_facts_are_named():
    said = capacity.plan_or_error([{"name": "a"}], {}, "web1", {})["error"]
    assert said.startswith(
        "host web1: ansible_facts has no processor_nproc and no memtotal_mb: gather"
    )


def test_plan_or_error():
    good = capacity.plan_or_error([{"name": "a"}], FACTS, "web1", {"capacity_redis_host": True})
    assert sizes(good) == [3]
    assert capacity.table_or_error(good) == capacity.plan_table(good)
    bad = capacity.plan_or_error([{"name": "a", "weight": 0}], FACTS, "web1", {})
    assert capacity.table_or_error(bad).startswith(
        'host web1: celery_queues item 1 ("a"): weight is 0'
    )
    huge = capacity.plan_or_error([{"name": "a", "instances": 100}], FACTS, "web1", {})
    assert "celery_queues needs" in huge["error"]
    no_workers = {"capacity_runs_workers": False, "capacity_redis_host": True}
    assert capacity.plan_or_error(None, FACTS, "web1", no_workers)["queues"] == []


def test_filters_raise_one_clean_error():
    filters = capacity.FilterModule().filters()
    valid = filters["celery_queues_valid"]([{"name": "a"}])
    assert filters["celery_plan"](valid, host(2, 2048), limits())["queues"][0]["concurrency"] == 2
    with pytest.raises(capacity.AnsibleFilterError, match="celery_queues is not set"):
        filters["celery_queues_valid"](None)
    with pytest.raises(capacity.AnsibleFilterError, match="host web1: celery_queues needs"):
        filters["celery_plan"](valid, host(2, 100), limits())


def test_importable_without_ansible():
    code = (
        "import sys; sys.modules['ansible'] = None; sys.path.insert(0, sys.argv[1]); "
        "import capacity; capacity.validate_queues([{'name': 'a'}])"
    )
    subprocess.run([sys.executable, "-c", code, str(FILTERS.parent)], check=True)


def test_a_hundred_queues_on_a_large_host_take_no_time():
    queue_list = queues(*({"workload": ("cpu", "io")[i % 2], "weight": 1 + i} for i in range(100)))
    start = time.process_time()
    capacity.plan(host(128, 512000), queue_list, limits(**AUTO))
    assert time.process_time() - start < 0.25
