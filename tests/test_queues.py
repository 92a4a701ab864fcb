"""playbooks/queues.yml: nonsense is refused before any host is contacted; what a terminal shows."""

import moves
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_refusals import Site

DECLARED, PREFIXES = ["emails", "a b"], ["shop:"]
MOVE = {"queues_action": "move", "queues_from": "emials", "queues_to": "emails"}
PURGE = {"queues_action": "purge", "queues_from": "emials"}


def problem(variables, *, check=False):
    return moves.problems(variables, DECLARED, PREFIXES, check)


@pytest.mark.parametrize(
    ("variables", "said", "remedy"),
    [
        ({"queue_form": "a", "queues_form": "a"}, "queues_form is an unknown", "write queues_from"),
        ({"queues_action": "copy"}, 'queues_action is "copy"', "list, move, purge"),
        ({"queues_action": ["move"]}, "queues_action is ['move']", "list, move, purge"),
        ({"queues_from": "a"}, "queues_from is set, and queues_action is list", "remove"),
        ({**PURGE, "queues_to": "a"}, "queues_to is set, and queues_action is purge", "remove"),
        ({"queues_action": "move"}, "queues_action is move, without queues_from", "write"),
        ({**MOVE, "queues_from": ""}, 'queues_from is ""', "write the name of a queue"),
        ({**MOVE, "queues_from": "a\n"}, 'queues_from is "a\\n"', "write the name of a queue"),
        ({**MOVE, "queues_from": "celery-metal.held:x"}, "which is none", "the name of a queue"),
        ({**PURGE, "queues_from": "shop:celery-metal.x"}, "which is none", "the name of a queue"),
        ({**MOVE, "queues_to": "emials"}, "as queues_from", "write another queue"),
        ({**MOVE, "queues_to": "mail"}, "which no worker consumes", '"emails", "a b"'),
        ({**MOVE, "queues_to": "other:emails"}, "which no worker consumes", '"emails"'),
        (PURGE, "queues_confirmed is false", "--check counts the tasks"),
        ({**PURGE, "queues_confirmed": "no"}, "queues_confirmed is no", "--check counts"),
        ({**PURGE, "queues_confirmed": "si"}, 'queues_confirmed is "si"', "write true or false"),
    ],
)
def test_nonsense_is_refused_with_a_remedy(variables, said, remedy):
    first, _, fix = problem(variables).partition(".\n  Fix: ")
    assert said in first
    assert remedy in fix
    assert fix.endswith("Nothing was changed.")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"queues_left": True, "queues_of_ours": 7},
        MOVE,
        {**MOVE, "queues_from": "shop:emails", "queues_to": "shop:a b"},
        {**PURGE, "queues_confirmed": "True"},
    ],
)
def test_what_can_be_done_is_not_refused(variables):
    assert problem(variables) == ""


def test_a_look_needs_no_confirmation():
    assert problem(PURGE, check=True) == ""


@given(st.dictionaries(st.sampled_from(moves.KNOWN), st.one_of(st.text(), st.integers())))
def test_no_value_ends_the_check_or_reaches_the_terminal(variables):
    said = problem(variables)
    assert all(one.isprintable() or one == "\n" for one in said)


def test_what_is_shown():
    found = {"waiting": {"b": 12, "a\x1b[2J": 3}, "is_complete": True}
    assert moves.text(found, "list", {}, False).split("\n") == [
        "queue  waiting",
        "a?[2J        3",
        "b           12",
    ]
    assert moves.text({"waiting": {}, "is_complete": True}, "list", {}, False) == "no task waits"
    said = moves.text({"waiting": {}, "is_complete": False}, "list", {}, False)
    assert "There may be more" in said
    done = {"done": 1, "gone": 2, "refused": 3}
    assert moves.text(done, "move", MOVE, False).split("\n") == [
        "1 task moved from emials to emails",
        "2 changed meanwhile and stayed: run this again",
        "3 stayed: larger than workers take",
    ]
    assert moves.text({"done": 2}, "purge", PURGE, True) == "2 tasks of emials would be deleted"


@pytest.mark.parametrize("waiting", [None, [], {"a": "x", "b": -1}, {"a": 1 << 80}])
def test_a_host_may_say_anything(waiting):
    assert moves.text({"waiting": waiting}, "list", {}, False)


@pytest.mark.playbook
def test_nonsense_is_refused_before_a_host_is_contacted(tmp_path):
    site = Site(tmp_path)
    words = ["-e", "queues_action=move queues_from=emials queues_to=mail"]
    run = site.run(*words, playbook="playbooks/queues.yml")
    assert 'queues_to is "mail", which no worker consumes' in run.said
    assert 'Fix: write one of celery_queues: "emails", "reports"' in run.said
    assert "UNREACHABLE" not in run.said
    assert "UNREACHABLE" in site.run(playbook="playbooks/queues.yml").said
