"""The order of precedence, the cap on processes, and what is refused."""

import pytest
from celery_metal_runtime.settings import UsageError
from celery_metal_runtime.sizing import PLAN, PLAN_AUTOSCALE, POOLS, size
from hypothesis import given
from hypothesis import strategies as st

CPUS = 2


def sized(environ, pool="prefork"):
    return size(environ, pool, lambda: CPUS)


@pytest.mark.parametrize(
    ("environ", "option", "source"),
    [
        ({"CONCURRENCY": "3", "CPU_COUNT": "5", PLAN: "6"}, "--concurrency=3", "CONCURRENCY"),
        ({"CONCURRENCY": "3", PLAN_AUTOSCALE: "6,2"}, "--concurrency=3", "CONCURRENCY"),
        ({"CPU_COUNT": "5", PLAN: "6"}, "--concurrency=5", "CPU_COUNT"),
        ({"CPU_COUNT": "5", PLAN_AUTOSCALE: "6,2"}, "--concurrency=5", "CPU_COUNT"),
        ({PLAN: "6"}, "--concurrency=6", "the plan"),
        ({PLAN_AUTOSCALE: "6,2"}, "--autoscale=6,2", "the plan"),
        ({PLAN_AUTOSCALE: " 6 , 2 "}, "--autoscale=6,2", "the plan"),
        ({}, "--concurrency=2", "as Celery counts"),
        ({"CONCURRENCY": "", "CPU_COUNT": " ", PLAN: "6"}, "--concurrency=6", "the plan"),
    ],
)
def test_the_first_that_is_set_decides_and_is_named(environ, option, source):
    sizing = sized(environ)
    assert sizing.options == (option,)
    assert source in sizing.lines[0]


@pytest.mark.parametrize(
    ("environ", "option", "cap"),
    [
        ({"CONCURRENCY": "100"}, "--concurrency=8", "8 = 2 CPUs x 4"),
        ({"CONCURRENCY": "100", "CPU_COUNT": "6"}, "--concurrency=24", "24 = 6 CPUs x 4"),
        (
            {"CONCURRENCY": "100", "CELERY_METAL_PROCESS_FACTOR": "10"},
            "--concurrency=20",
            "20 = 2 CPUs x 10",
        ),
        ({PLAN: "9"}, "--concurrency=8", "the plan asks for 9"),
        ({PLAN_AUTOSCALE: "20,2"}, "--autoscale=8,2", "the plan asks for 20"),
        ({PLAN_AUTOSCALE: "20,12"}, "--autoscale=8,8", "the plan asks for 20"),
    ],
)
def test_processes_are_clamped_and_the_line_has_the_remedy(environ, option, cap):
    sizing = sized(environ)
    assert sizing.options == (option,)
    assert cap in sizing.lines[1]
    assert "CELERY_METAL_PROCESS_FACTOR" in sizing.lines[1]


def test_what_fits_exactly_is_not_clamped():
    sizing = sized({"CONCURRENCY": "8"})
    assert sizing.options == ("--concurrency=8",)
    assert len(sizing.lines) == 1


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_threads_and_greenlets_are_not_clamped(pool):
    assert sized({"CONCURRENCY": "500"}, pool).options == ("--concurrency=500",)


def test_greenlets_autoscale_and_threads_do_not():
    assert sized({PLAN_AUTOSCALE: "50,2"}, "gevent").options == ("--autoscale=50,2",)
    sizing = sized({PLAN_AUTOSCALE: "50,2"}, "threads")
    assert sizing.options == ("--concurrency=50",)
    assert "cannot be autoscaled" in sizing.lines[1]


def test_solo_runs_one_and_says_why_it_cannot_give_more():
    assert sized({"CONCURRENCY": "1"}, "solo").options == ("--concurrency=1",)
    assert len(sized({}, "solo").lines) == 1
    sizing = sized({"CONCURRENCY": "4"}, "solo")
    assert sizing.options == ("--concurrency=1",)
    assert "main process" in sizing.lines[1]
    assert "CELERY_METAL_POOL=prefork" in sizing.lines[1]


NUMBERS = ["CONCURRENCY", "CPU_COUNT", PLAN, "CELERY_METAL_PROCESS_FACTOR"]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["0", "-1", "2.5", "two", "+3", "1e3", "٣", "1_000", "0x4"])
def test_a_bad_number_is_refused_by_name_also_where_it_does_not_decide(name, value):
    environ = {"CONCURRENCY": "1", name: value}
    with pytest.raises(UsageError) as error:
        sized(environ)
    assert f"{name}={value!r}" in str(error.value)
    assert "set it to" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["4", "4,2,1", "2,4", "4,0", "4,", ",4", "a,b", "4;2"])
def test_a_bad_autoscale_is_refused(value):
    with pytest.raises(UsageError, match=PLAN_AUTOSCALE):
        sized({PLAN_AUTOSCALE: value})


def test_a_plan_that_says_both_is_refused():
    with pytest.raises(UsageError, match="both set"):
        sized({PLAN: "4", PLAN_AUTOSCALE: "4,2"})


COUNT = st.none() | st.integers(1, 10_000)


@given(st.tuples(COUNT, COUNT, COUNT, COUNT), st.integers(1, 256), st.sampled_from(POOLS))
def test_a_worker_always_has_one_and_processes_never_exceed_the_cap(numbers, cpus, pool):
    environ = {n: str(v) for n, v in zip(NUMBERS, numbers, strict=True) if v is not None}
    options, lines = size(environ, pool, lambda: cpus)
    assert lines
    value = options[0].partition("=")[2]
    if value == "auto":
        assert not environ.keys() & {"CONCURRENCY", "CPU_COUNT", PLAN}
        return
    assert int(value) >= 1
    cap = (numbers[1] or cpus) * (numbers[3] or 4)
    if pool == "prefork":
        assert int(value) <= cap
    if pool == "solo":
        assert int(value) == 1
