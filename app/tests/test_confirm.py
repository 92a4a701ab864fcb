"""How many replicas have to confirm a task, while all are there and while one is not."""

import pytest
from celery_metal_runtime import confirm
from celery_metal_runtime.confirm import CONFIRM_MILLISECONDS as LONG
from celery_metal_runtime.confirm import LOOK_MILLISECONDS, TIMES, Confirmation, Confirmations


@pytest.fixture
def clock(monkeypatch):
    """The time, which a test moves."""
    now = [1000.0]
    monkeypatch.setattr(confirm, "monotonic", lambda: now[0])
    return now


def test_all_replicas_that_are_known_confirm(clock):
    one = Confirmation()
    assert one.waits(1, 2) == [(2, LONG)] * TIMES
    assert one.is_sent(1, 2, [2, 2, 2, 2])
    # One that is elected right after it has confirmed is no replica any more.
    assert one.is_sent(1, 2, [2, 1, 1, 0])
    assert one.waits(1, 2) == [(2, LONG)] * TIMES


def test_what_no_longer_follows_at_the_end_does_not_count(clock):
    one = Confirmation()
    one.waits(1, 2)
    assert not one.is_sent(1, 2, [1, 1, 0, 0])
    assert one.waits(1, 2) == [(2, LONG)] * TIMES


def test_one_that_is_missing_for_longer_than_an_election_is_not_waited_for_again(clock):
    one = Confirmation()
    one.waits(1, 2)
    assert one.is_sent(1, 2, [1, 1, 1, 1])
    assert one.waits(1, 2) == [(1, LONG)] * TIMES
    clock[0] += 1.1
    assert one.waits(1, 2) == [(2, LOOK_MILLISECONDS), *[(1, LONG)] * TIMES]
    assert one.is_sent(1, 2, [1, 1, 1, 1, 1])
    clock[0] += 1.1
    assert one.is_sent(1, 2, [2, 2, 2, 2, 2])
    assert one.waits(1, 2) == [(2, LONG)] * TIMES


def test_a_sender_without_tasks_waits_for_it_again(clock):
    one = Confirmation()
    one.waits(1, 2)
    assert one.is_sent(1, 2, [1, 1, 1, 1])
    clock[0] += confirm.FORGET_SECONDS + 1
    assert one.waits(1, 2) == [(2, LONG)] * TIMES


def test_one_that_was_elected_does_not_wait_for_the_earlier_primary(clock):
    one = Confirmation(1)
    assert one.waits(1, 2) == [(2, LOOK_MILLISECONDS), *[(1, LONG)] * TIMES]
    assert one.is_sent(1, 2, [2, 2, 2, 2, 2])
    assert one.waits(1, 2) == [(2, LONG)] * TIMES


def test_as_many_as_are_required_are_asked_for_once(clock):
    one = Confirmation()
    assert one.waits(2, 2) == [(2, LONG)]
    assert one.waits(2, 0) == [(2, LONG)]
    assert not one.is_sent(2, 2, [1])
    assert one.is_sent(2, 2, [2])


def test_each_primary_confirms_by_itself(clock):
    all_ = Confirmations()
    first = all_.of("celery", "a", 1, 2)
    assert first.waits(1, 2) == [(2, LONG)] * TIMES
    # Another is elected; a connection to the first one is still there, and does not trust it.
    second = all_.of("celery", "b", 1, 2)
    assert second.waits(1, 2)[-1] == (1, LONG)
    assert all_.of("celery", "a", 1, 2) is first
    assert first.waits(1, 2) == [(2, LONG)] * TIMES
    assert all_.of("celery", "b", 1, 2) is second
    # And back.
    clock[0] += 30
    second.waits(1, 2)
    assert all_.of("celery", "a", 1, 2).waits(1, 2)[-1] == (1, LONG)
    # Those of another name are no earlier primary of this one.
    assert all_.of("other", "c", 1, 2).waits(1, 2) == [(2, LONG)] * TIMES
