"""A worker's defaults, and which settings of an app they give way to."""

import pytest
from celery import VERSION, Celery
from celery_metal_runtime.safety import make_safe
from celery_metal_runtime.settings import UsageError

pytestmark = pytest.mark.versions


def app_with(**settings):
    app = Celery("user", broker="redis://here/0", set_as_current=False)
    app.conf.update(settings)
    return app


def test_without_a_word_tasks_are_safe():
    app = app_with()
    environ = {
        "CELERY_METAL_MAX_MEMORY_PER_CHILD_MB": "150",
        "CELERY_METAL_VISIBILITY_SECONDS": "7200",
    }
    assert make_safe(app, environ, "prefork") == []
    assert app.conf.task_acks_late is True
    assert app.conf.task_reject_on_worker_lost is True
    assert app.conf.result_backend_always_retry is True
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.worker_max_memory_per_child == 150 * 1024
    assert app.conf.broker_transport_options["visibility_timeout"] == 7200


def test_a_queue_may_choose_otherwise():
    app = app_with()
    make_safe(app, {"CELERY_METAL_ACKS_LATE": "false", "CELERY_METAL_PREFETCH": "4"}, "threads")
    assert app.conf.task_acks_late is False
    assert app.conf.task_reject_on_worker_lost is False
    assert app.conf.worker_prefetch_multiplier == 4


def test_a_time_limit_is_that_of_the_queue():
    app = app_with()
    make_safe(app, {"CELERY_METAL_TIME_LIMIT_SECONDS": "90"}, "prefork")
    name = "timeout" if VERSION >= (5, 7) else "failure_or_timeout"
    assert (app.conf.task_time_limit, app.conf[f"task_acks_on_{name}"]) == (90, False)
    threads = app_with()
    make_safe(threads, {"CELERY_METAL_TIME_LIMIT_SECONDS": "90"}, "threads")
    assert threads.conf.task_time_limit is None


@pytest.mark.parametrize("order", ["round_robin", "priority"])
def test_several_queues_have_an_order(order):
    environ = {"CELERY_METAL_QUEUE_ORDER": order}
    app, one = app_with(), app_with()
    assert make_safe(app, environ, "prefork", ["a", "b"]) == []
    assert app.conf.broker_transport_options["queue_order_strategy"] == order
    assert make_safe(one, environ, "prefork", ["a"]) == []
    assert "queue_order_strategy" not in one.conf.broker_transport_options
    own = app_with(broker_transport_options={"queue_order_strategy": "sorted"})
    told = f"queue_order_strategy stays sorted, as the app sets it; the queue's: {order}"
    assert make_safe(own, environ, "prefork", ["a", "b"]) == [told]


def test_a_process_may_be_replaced_after_so_many_tasks():
    environ = {"CELERY_METAL_MAX_TASKS_PER_CHILD": "500"}
    app, threads, own = app_with(), app_with(), app_with(worker_max_tasks_per_child=9)
    assert make_safe(app, environ, "prefork") == []
    assert app.conf.worker_max_tasks_per_child == 500
    assert make_safe(threads, environ, "threads") == []
    assert threads.conf.worker_max_tasks_per_child is None
    told = "worker_max_tasks_per_child stays 9, as the app sets it; the queue's: 500"
    assert make_safe(own, environ, "prefork") == [told]
    assert own.conf.worker_max_tasks_per_child == 9


@pytest.mark.parametrize("environ", [{}, {"CELERY_METAL_MAX_TASKS_PER_CHILD": "0"}])
def test_without_a_number_a_process_is_not_replaced_for_its_tasks(environ):
    app, own = app_with(), app_with(worker_max_tasks_per_child=9)
    assert make_safe(app, environ, "prefork") == make_safe(own, environ, "prefork") == []
    assert app.conf.worker_max_tasks_per_child is None
    assert own.conf.worker_max_tasks_per_child == 9


@pytest.mark.parametrize("value", ["-1", "many", "1.5"])
def test_a_number_of_tasks_must_be_one(value):
    told = f"MAX_TASKS_PER_CHILD='{value}' is not a whole number: set it to 0 or more"
    with pytest.raises(UsageError, match=told):
        make_safe(app_with(), {"CELERY_METAL_MAX_TASKS_PER_CHILD": value}, "threads")


def test_what_the_app_sets_itself_stays_and_is_said():
    app = app_with(task_acks_late=False, worker_prefetch_multiplier=8)
    lines = make_safe(app, {}, "prefork")
    assert app.conf.task_acks_late is False
    assert app.conf.worker_prefetch_multiplier == 8
    assert [line.split()[0] for line in lines] == ["task_acks_late", "worker_prefetch_multiplier"]


@pytest.mark.parametrize(("own", "kept"), [(60, 3600), (9999, 9999)])
def test_a_visibility_timeout_below_a_task_is_raised(own, kept):
    app = app_with(broker_transport_options={"visibility_timeout": own, "sep": ":"})
    lines = make_safe(app, {"CELERY_METAL_VISIBILITY_SECONDS": "3600"}, "prefork")
    assert app.conf.broker_transport_options == {"visibility_timeout": kept, "sep": ":"}
    assert len(lines) == (own != kept)


def test_it_is_raised_as_well_where_an_app_sets_it_with_a_prefix():
    app = Celery("django", set_as_current=False)
    source = {"MY_BROKER_URL": "redis://here/0", "MY_BROKER_TRANSPORT_OPTIONS": {}}
    source["MY_BROKER_TRANSPORT_OPTIONS"]["visibility_timeout"] = 60
    app.config_from_object(source, namespace="MY")
    assert len(make_safe(app, {"CELERY_METAL_VISIBILITY_SECONDS": "3600"}, "prefork")) == 1
    assert app.conf.broker_transport_options == {"visibility_timeout": 3600}


@pytest.mark.parametrize(
    "settings",
    [
        {"accept_content": ["json", "pickle"]},
        {"accept_content": ["application/x-python-serialize"]},
        {"task_serializer": "pickle"},
        {"result_serializer": "pickle"},
    ],
)
def test_pickle_is_refused(settings):
    with pytest.raises(UsageError, match=f"{next(iter(settings))}=.*set it to json"):
        make_safe(app_with(**settings), {}, "prefork")
