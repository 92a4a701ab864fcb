"""What playbooks/doctor.yml asks running workers."""

import pytest
from runtime_lab import PASSWORD

pytestmark = pytest.mark.usefixtures("module_utils")


def test_a_worker_tells_its_settings_and_nothing_stays(start, own_redis):
    from ansible.module_utils.celery_doctor_redis import workers_of
    from ansible.module_utils.celery_questions import ask
    from ansible.module_utils.celery_redis import Client

    worker = start(server=own_redis, CELERY_METAL_PREFETCH="3").ready()
    client = Client(str(own_redis.path), 5)
    client.ask(("AUTH", "admin", PASSWORD))
    before = {*own_redis.client.keys()}
    found, asked = workers_of(client, 0, ["", "none:"])
    assert asked == 1
    (node,) = found
    assert node == worker.node
    settings = found[node].pop("settings")
    assert found[node] == {"running": 0, "longest": 0}
    assert settings["worker_prefetch_multiplier"] == 3
    assert settings["task_acks_late"] is True
    assert settings["result_backend"] == "redis"
    assert PASSWORD not in str(settings)
    assert {*own_redis.client.keys()} <= before | {"celery-metal.nodes"}
    # What is no question is dropped, and no answer is waited for without end.
    assert ask(client, 0, "", "shutdown", {}) == ({}, 1)
    assert worker.process.poll() is None
    client.close()


def test_an_answer_may_be_anything():
    from ansible.module_utils.celery_questions import answer_of

    for said in (None, 7, "", "{}", "[]", '{"body": "x"}', '{"body": "W10="}', "[" * 5000):
        assert answer_of(said) == {}
