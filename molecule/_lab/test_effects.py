"""The arithmetic of the faults' table."""

import effects
import pytest


def test_what_is_missing_is_lost_and_what_is_there_twice_is_a_duplicate():
    lines = ["0 10.0 a", "1 10.5 b", "1 13.5 c", "3 14.0 d"]
    found = effects.count(lines, sent=5, measured=range(5), begun=9.0)
    assert (found.sent, found.done, found.lost, found.duplicates) == (5, 3, 2, 1)
    assert found.pause == 3.0


def test_pauses_are_those_of_the_measured_tasks_and_begin_with_the_load():
    lines = ["0 10.0 a", "1 12.0 b", "7 11.0 c"]
    assert effects.count(lines, sent=8, measured=range(2), begun=5.0).pause == 5.0
    assert effects.count(lines, sent=8, measured=range(2), begun=9.5).pause == 2.0


def test_the_effect_of_a_task_that_was_not_sent_is_an_error():
    with pytest.raises(ValueError, match="not sent: \\[9\\]"):
        effects.count(["9 1.0 a"], sent=5, measured=range(5), begun=0.0)


def test_a_row_of_the_table():
    one = effects.Counted(sent=500, done=499, duplicates=2, pause=1.26, restarted=3)
    assert effects.table({"a fault": (True, one)})[2] == (
        "| a fault | yes | 500 | 499 | 1 | 2 | 1.3 | 3 |"
    )


def test_runs_together_have_the_tasks_of_all_and_the_worst_pause():
    runs = [effects.Counted(500, 499, 0, 1.2, 3), effects.Counted(500, 500, 2, 0.7, 4)]
    found = effects.together(runs)
    assert found == effects.Counted(1000, 999, 2, 1.2, 4)
    assert found.lost == 1
