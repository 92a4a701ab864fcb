"""playbooks/queues.yml: nonsense is refused before any host is contacted; what a terminal shows."""

import moves
import pauses
import pytest
import run_summary
from hypothesis import given
from hypothesis import strategies as st
from test_refusals import Site

DECLARED, PREFIXES = ["emails", "a b"], ["shop:"]
MOVE = {"queues_action": "move", "queues_from": "emials", "queues_to": "emails"}
PURGE = {"queues_action": "purge", "queues_from": "emials"}
PAUSE = {"queues_action": "pause", "queues_from": "emails"}
RESUME = {"queues_action": "resume", "queues_from": "emails"}


def problem(variables, *, check=False):
    return moves.problems(variables, DECLARED, PREFIXES, check)


@pytest.mark.parametrize(
    ("variables", "said", "remedy"),
    [
        ({"queue_form": "a", "queues_form": "a"}, "queues_form is an unknown", "write queues_from"),
        ({"queue_action": "pause"}, "queue_action is an unknown", "write queues_action"),
        ({**MOVE, "_raw_params": "of b"}, 'ends before "of b"', "in quotes of its own"),
        ({"queues_action": "copy"}, 'queues_action is "copy"', "list, move, purge, pause, resume"),
        ({"queues_action": ["move"]}, "queues_action is ['move']", "list, move, purge"),
        ({"queues_action": "pause"}, "queues_action is pause, without queues_from", "write"),
        ({**PAUSE, "queues_from": "mail"}, "which no worker consumes", '"emails", "a b"'),
        ({**PAUSE, "queues_from": "other:emails"}, "which no worker consumes", '"emails"'),
        ({**PAUSE, "queues_from": "celery-metal.canary:x"}, "which is none", "name of a queue"),
        ({**PAUSE, "queues_to": "a b"}, "queues_to is set, and queues_action is pause", "remove"),
        ({**PAUSE, "queues_reason": "a\x1b[2J"}, 'queues_reason is "a\\u001b[2J"', "one line"),
        ({**PAUSE, "queues_reason": "x" * 201}, "queues_reason is", "at most 200 characters"),
        ({**PAUSE, "queues_reason": 3}, "queues_reason is 3", "one line"),
        ({**PAUSE, "queues_reasons": "a"}, "queues_reasons is an unknown", "write queues_reason"),
        ({**RESUME, "queues_reason": "a"}, "queues_reason is set", "remove queues_reason"),
        ({"queues_action": "resume"}, "queues_action is resume, without queues_from", "write"),
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
        PAUSE,
        {**PAUSE, "queues_from": "shop:a b", "queues_reason": "é: 'x'"},
        RESUME,
        # Of a queue that was removed while it was paused.
        {**RESUME, "queues_from": "gone"},
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


PAUSED = {
    "done": 1,
    "workers": 2,
    "claimed": 3,
    "waiting": {"emails": 310},
    "paused": [{"name": "emails", "at": 1700000000, "by": "ops@ctl", "reason": "mail is down"}],
}


def test_what_is_shown_of_a_pause():
    assert moves.text(PAUSED, "pause", PAUSE, True) == (
        "emails would be paused: 310 tasks wait, 2 workers"
    )
    since = "paused since 2023-11-14 22:13 UTC by ops@ctl: mail is down"
    assert moves.text(PAUSED, "pause", PAUSE, False).split("\n") == [
        f"emails is {since}",
        "310 tasks wait; workers that have confirmed: 2 of 2",
        "3 tasks claimed before: running tasks finish, tasks with an ETA go back when they are due",
    ]
    assert moves.text({**PAUSED, "done": 0}, "pause", PAUSE, True).startswith("emails is paused al")
    assert moves.text(PAUSED, "resume", RESUME, True).startswith("emails would be resumed: 310")
    alone = moves.text({**PAUSED, "workers": 0}, "pause", PAUSE, False)
    assert "no worker with a sign of life consumes it" in alone
    said = moves.text({**PAUSED, "waiting": {"emails": 1}, "workers": 1}, "resume", RESUME, False)
    assert said == "emails is resumed: 1 task waits, 1 worker"
    assert moves.text({**PAUSED, "done": 0}, "resume", RESUME, False) == "emails is not paused"
    found = {**PAUSED, "is_complete": True}
    assert moves.text(found, "list", {}, False).split("\n")[-1] == f"emails is {since}"


@pytest.mark.parametrize(
    ("left", "why"),
    [
        ({"node": "a-1@b", "ahead": None, "silent_seconds": None}, "it has not confirmed"),
        (
            {"node": "a-1@b", "ahead": 2, "silent_seconds": None},
            "its pool has 2 tasks not started yet",
        ),
        ({"node": "a-1@b", "ahead": 2, "silent_seconds": 40}, "no sign of life for 40 s"),
    ],
)
def test_a_worker_that_may_still_start_tasks_fails_the_run(left, why):
    first, second, fix = pauses.problem({"unconfirmed": [left]}, "emails").split("\n")
    assert first == "emails is paused, but 1 worker may still start its tasks:"
    assert second == f"  a-1@b: {why}"
    assert fix.startswith("  Fix: ")


def test_a_name_that_is_neither_declared_nor_paused_is_not_resumed():
    found = {"done": 0, "unconfirmed": []}
    said = pauses.problem(found, "emials", "resume", DECLARED, PREFIXES)
    assert said.startswith("emials is not paused, and celery_queues has no queue of this name\n")
    for name in ("emails", "shop:a b"):
        assert pauses.problem(found, name, "resume", DECLARED, PREFIXES) == ""
    # One that was removed while it was paused.
    assert pauses.problem({"done": 1}, "gone", "resume", DECLARED, PREFIXES) == ""


def test_a_pause_that_another_run_ended_fails_the_run():
    assert "was resumed" in pauses.problem({"is_kept": False, "unconfirmed": []}, "emails")
    assert pauses.problem({"is_kept": True, "unconfirmed": []}, "emails") == ""


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_what_a_power_cut_may_undo_is_in_the_report(action):
    found = {"done": 1, "unsaved": "appendonly no"}
    said = moves.text(found, action, PAUSE, False).split("\n")
    assert said[-1] == f"a power cut of Redis may undo the {action}: appendonly no"
    assert "power cut" not in moves.text({"done": 1, "unsaved": ""}, action, PAUSE, False)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(), one, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("done", "workers", "claimed", "waiting", "is_kept", "unsaved"), ANYTHING
        )
        | dict.fromkeys(
            ("paused", "unconfirmed"),
            st.lists(
                st.dictionaries(
                    st.sampled_from(["name", "at", "by", "reason", "node", "ahead"]), ANYTHING
                )
            ),
        ),
    ),
    st.sampled_from(["pause", "resume", "list"]),
    st.booleans(),
)
def test_no_answer_of_a_host_ends_the_report_or_reaches_the_terminal(found, action, check):
    said = moves.text(found, action, PAUSE, check) + pauses.problem(found, "emails")
    assert all(one.isprintable() or one == "\n" for one in said)


COMMAND = "ansible-playbook playbooks/queues.yml"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("emails", f"{COMMAND} -e queues_action=resume -e queues_from=emails"),
        ("shop:größe", f"{COMMAND} -e queues_action=resume -e queues_from=shop:größe"),
        ("a b", f"""{COMMAND} -e queues_action=resume -e '{{"queues_from": "a b"}}'"""),
        # What a shell or Ansible would take for something else stands in no command.
        *((name, f"{COMMAND} lists it") for name in ("{{ x }}", "a'b", "$(x)", "", "a" * 99, 7)),
    ],
)
def test_a_deploy_ends_with_each_paused_queue_and_how_to_resume_it(name, command):
    (line,) = pauses.reminders({"paused": [{"name": name, "at": 1700000000, "by": "ops@ctl"}]})
    assert " is paused since 2023-11-14 22:13 UTC by ops@ctl: its tasks wait. To r" in line
    assert line.endswith(f"To resume it: {command}")
    summary = run_summary.summary({}, {}, {run_summary.FLEET: [line], "web1": ["web1 is up"]})
    assert summary == ["nothing changed", line, "web1 is up"]


def test_a_deploy_reports_pauses_that_cannot_be_read():
    (line,) = pauses.reminders({"paused": [], "paused_error": "ERR\x1b no"})
    assert line == "the paused queues cannot be read: ERR? no"


def test_a_deploy_reports_no_more_pauses_than_somebody_reads():
    paused = [{"name": f"q{number}"} for number in range(25)]
    *lines, last = pauses.reminders({"paused": paused})
    assert len(lines) == pauses.MOST_QUEUES
    assert last == "and 5 more are paused: ansible-playbook playbooks/queues.yml lists them"


@given(st.dictionaries(st.sampled_from(["paused", "paused_error"]), ANYTHING))
def test_no_answer_of_a_host_ends_a_deploy_or_reaches_the_terminal(lives):
    assert all(one.isprintable() for one in pauses.reminders(lives))


def test_who_pauses_is_known(monkeypatch):
    monkeypatch.setenv("SUDO_USER", "ops")
    assert pauses.by().startswith("ops@")


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
    words = ["-e", "queues_action=pause queues_from=mail"]
    run = site.run(*words, playbook="playbooks/queues.yml")
    assert 'queues_from is "mail", which no worker consumes' in run.said
    assert "UNREACHABLE" not in run.said
    assert "UNREACHABLE" in site.run(playbook="playbooks/queues.yml").said
