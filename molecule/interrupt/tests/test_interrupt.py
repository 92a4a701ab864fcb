"""A run that loses its connection leaves a host that works, and the next run completes it."""

import pytest

HOST = "metal"
QUEUES = ("add_queue", "multiply_queue")
# The beginning of a task's name, and how many seconds later the connection is cut.
FIRST_DEPLOYMENT = (
    ("Look at what the host has", 0.2),
    ("Install the container engine", 3),
    ("Install the container engine", 10),
    ("Give UserNS=auto a range of user IDs", 0.1),
    ("Write celery.target", 0.3),
    ("Unpack the packages of each layer", 2),
    ("Build the images", 1),
    ("Build the images", 5),
    ("Build the image of the app", 0.5),
    ("Keep the users of Redis", 0.3),
    ("Keep the users of Redis", 0.6),
    ("Keep the users of Redis", 0.9),
    ("Write the configuration and the units of Redis", 0.3),
    ("Restart Redis", 0.3),
    ("Check and write the units", 0.4),
    ("Replace the workers", 0.5),
    ("Replace the workers", 1.5),
)
CHANGE = (
    ("Look at what the host has", 0.2),
    ("Write celery.target", 0.3),
    ("Write the configuration and the units of Redis", 0.3),
    ("Restart Redis", 0.1),
    ("Restart Redis", 0.6),
    ("Check and write the units", 0.3),
    ("Check and write the units", 0.6),
    ("Drain and remove the workers", 0.3),
    # In every other turn a queue goes.
    ("Replace the workers", 0.3),
    ("Drain and remove the workers", 0.8),
    # The moments between are those of the next test.
    ("Replace the workers", 1),
    ("Replace the workers", 5),
)


def wanted(turn):
    """Two declarations, in turn: they differ in Redis, in all workers, and in a queue."""
    queues = [{"name": name} for name in QUEUES]
    return {
        "celery_queues": [*queues, {"name": "extra"}] if turn % 2 else queues,
        "celery_worker_log_level": ("info", "warning")[turn % 2],
        "redis_extra_config": {"loglevel": ("notice", "warning")[turn % 2]},
    }


def all_answer(kit, lab):
    """Whether tasks of both queues come back with the right answers."""
    found = kit.smoke(HOST, "celery-add_queue-1", *QUEUES, count=20)
    return all(one["sent"] == one["done"] and not one["wrong"] for one in found.values())


def check_that_it_is(kit, turn):
    names = [queue["name"] for queue in wanted(turn)["celery_queues"]]
    assert kit.services(HOST) == {
        "celery-redis.service",
        *(f"celery-{name}@1.service" for name in names),
    }
    for name in names:
        level = kit.environment(HOST, f"celery-{name}-1")["CELERY_METAL_LOGLEVEL"]
        assert level == wanted(turn)["celery_worker_log_level"], name
    level = kit.redis(HOST, "config", "get", "loglevel").split()[1]
    assert level == wanted(turn)["redis_extra_config"]["loglevel"]


def test_a_first_deployment_is_completed(kit, lab):
    cut = [point for point in FIRST_DEPLOYMENT if kit.cut(*point, **wanted(0))]
    assert len(cut) >= 10, cut
    kit.play(**wanted(0))
    check_that_it_is(kit, 0)
    assert all_answer(kit, lab)
    # Nothing is left of the runs before.
    assert kit.play(**wanted(0)).changed == {HOST: 0}


@pytest.mark.parametrize(("turn", "point"), enumerate(CHANGE, 1))
def test_a_change_is_completed(kit, lab, turn, point):
    assert kit.cut(*point, **wanted(turn)), "the run ended before"
    lab.wait_for(lambda: all_answer(kit, lab), 60, "the host works on")
    kit.play(**wanted(turn))
    check_that_it_is(kit, turn)


@pytest.mark.parametrize(("turn", "seconds"), enumerate((0.3, 2, 3, 4), len(CHANGE) + 1))
def test_the_next_run_waits_for_what_goes_on_without_a_connection(kit, lab, turn, seconds):
    assert kit.cut("Replace the workers", seconds, **wanted(turn))
    kit.play(**wanted(turn))
    check_that_it_is(kit, turn)
    assert all_answer(kit, lab)
