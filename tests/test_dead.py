"""playbooks/dead.yml: nonsense is refused before any host is contacted; what a terminal shows."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import dead
import pytest
from test_refusals import GOOD_VARIABLES, LOCAL, QUEUES, Site, site  # noqa: F401 - the fixture

LIST = {
    "total": 30,
    "is_complete": True,
    "all_queues": True,
    "lists": {"mail": 28, "shop:gone": 2},
    "rows": [
        {
            "task": "shop.bill",
            "id": "5f0c6a1e-0000-4000-8000-000000000001",
            "queue": "mail",
            "at": 1764000000,
            "crashes": 11,
            "worker": "mail-1@a",
            "reason": "it was there at 11 ends of its process or its worker",
            "arguments": "(1,)",
            "size": 300,
        },
        {"task": "", "id": "", "queue": "shop:gone", "at": None, "crashes": None, "worker": ""}
        | {"reason": "not valid\x1b[2J JSON", "arguments": "", "size": 7},
    ],
    "whole": {},
    "text": "",
    "done": 0,
    "gone": 0,
    "refused": 0,
}


def test_the_list_is_a_table_with_a_count_of_the_rest():
    lines = dead.text(LIST, "list", "", False).split("\n")
    assert [" ".join(one.split()) for one in lines] == [
        "task id queue when (UTC) crashes worker reason arguments",
        "shop.bill 5f0c6a1e-0000-4000-8000-000000000001 mail 2025-11-24 16:00 11 mail-1@a "
        "it was there at 11 ends of its process or its worker (1,)",
        "- - shop:gone - - - not valid?[2J JSON -",
        "",
        "30 dead letters: mail 28, shop:gone 2; 28 of them are not shown",
    ]
    nothing = {**LIST, "total": 0, "lists": {}, "rows": []}
    assert dead.text(nothing, "list", "", False) == "no dead letter"
    said = dead.text({**nothing, "is_complete": False}, "list", "", False)
    assert said.endswith("not all of Redis was read in time. Name a queue: dead_queue")
    said = dead.text({**nothing, "all_queues": False}, "list", "", False)
    assert "neither declared nor consumed are not looked for" in said


def test_what_was_done_is_counted_and_what_could_not_be_is_named():
    done = {**LIST, "done": 2, "gone": 1, "refused": 1, "rows": LIST["rows"][1:], "lists": {"m": 2}}
    lines = dead.text(done, "send", "", False).split("\n")
    assert lines[0] == "2 dead letters sent back: m 2"
    assert lines[1] == "1 changed meanwhile and was left alone: run this again"
    assert "not valid?[2J JSON" in lines[4]
    assert lines[6].startswith("1 dead letter cannot be sent back: not a task")
    assert dead.text({**done, "gone": 0, "refused": 0}, "delete", "", True) == (
        "2 dead letters would be deleted: m 2"
    )
    assert dead.text(LIST, "export", "/tmp/x", False) == "30 dead letters are in /tmp/x"


HOSTILE = "".join(map(chr, [*range(32), *range(0x7F, 0xA0), 0x202E, 0x2028, 0xE0001]))


@pytest.mark.parametrize("action", dead.ACTIONS)
def test_nothing_from_a_letter_or_a_host_reaches_a_terminal_as_it_is(action):
    row = dict.fromkeys(LIST["rows"][0], HOSTILE)
    found: dict[str, Any] = {"rows": [row] * 1000, "whole": {HOSTILE: [HOSTILE]}, "total": 2}
    found |= {"lists": {f"{HOSTILE}{n}": HOSTILE for n in range(50)}, "refused": 1, "done": HOSTILE}
    said = dead.text(found, action, HOSTILE, False)
    assert all(one.isprintable() or one == "\n" for one in said)
    assert len(said.split("\n")) < 60
    for odd in ({}, {"rows": 5, "lists": [], "whole": 7}, {"rows": [5, None], "whole": [HOSTILE]}):
        assert all(one.isprintable() or one == "\n" for one in dead.text(odd, action, "", False))


def test_a_whole_letter_is_json_and_a_long_one_is_cut():
    letter = {"headers": {"id": "1"}, "body": ["ä", "\x9b2J", "\U000e0001"]}
    lines = dead.text({**LIST, "whole": letter, "total": 1}, "show", "", False)
    assert json.loads(lines) == letter
    assert "ä" in lines
    letter["body"] = ["x" * 100_000]
    said = dead.text({**LIST, "whole": letter, "total": 2}, "show", "", False).split("\n")
    assert said[-2].endswith("more characters: dead_action=export has all of it")
    assert said[-1] == "It is the oldest of 2: dead_action=export has all of them"
    assert sum(map(len, said)) < 70_000


ALL = {"dead_all": True}
WRONG = [
    ({"dead_action": "sned"}, 'dead_action is "sned"', "write one of list, show, send, delete"),
    ({"dead_action": ["send"]}, "dead_action is \"['send']\"", "write one of list"),
    ({"dead_ids": "x"}, "dead_ids is an unknown variable", "write dead_id"),
    ({"dead_id": ""}, 'dead_id is ""', "write 1 to 1024 printable characters"),
    ({"dead_queue": 5}, 'dead_queue is "5"', "write 1 to 1024"),
    ({"dead_task": "a\x1bb"}, 'dead_task is "a?b"', "write 1 to 1024"),
    ({"dead_reason": None}, 'dead_reason is "None"', "write 1 to 1024"),
    ({"dead_action": "send", "dead_all": "maybe"}, 'dead_all is "maybe"', "write true or false"),
    ({"dead_action": "show"}, "dead_action is show, of no letter", "write dead_id=ID"),
    ({"dead_action": "send"}, "dead_action is send, of no letter", "or write dead_all=true"),
    ({"dead_action": "send", "dead_all": "no"}, "dead_action is send, of no letter", "choose"),
    (
        {"dead_action": "send", "dead_id": "x", **ALL},
        "dead_all is true, and dead_id is set",
        "write one of them",
    ),
    (
        {"dead_action": "delete", **ALL},
        "dead_action is delete, and dead_confirmed is False",
        "then write dead_confirmed=true",
    ),
    ({"dead_action": "export", **ALL}, "dead_action is export, without dead_file", "write dead_fi"),
    ({"dead_file": "/tmp/x"}, "dead_file is set, and dead_action is list", "dead_action=export"),
    (
        {"dead_action": "export", "dead_file": "x", **ALL},
        'dead_file is "x"',
        "write the absolute path",
    ),
    (
        {"dead_action": "export", "dead_file": __file__, **ALL},
        "which exists",
        "name a new file",
    ),
    (
        {"dead_action": "export", "dead_file": "/nowhere/x", **ALL},
        'dead_file is "/nowhere/x", in a directory that does not exist',
        "make /nowhere",
    ),
]


@pytest.mark.parametrize(("variables", "what", "remedy"), WRONG)
def test_nonsense_is_named_with_its_value_and_a_remedy(variables, what, remedy):
    said = dead.problems({"celery_queues": [], **variables}, False)
    assert what in said.split("\n")[0]
    assert remedy in said.split("\n")[1]
    assert said.endswith("Nothing was changed.")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"dead_queue": "mail"},
        {"dead_action": "show", "dead_id": "x"},
        {"dead_action": "send", "dead_reason": "ends"},
        {"dead_action": "send", "dead_all": "yes"},
        {"dead_action": "delete", "dead_all": True, "dead_confirmed": "true"},
        {"dead_action": "export", "dead_all": True, "dead_file": "/tmp/no-such-file-of-ours"},
    ],
)
def test_sense_is_taken(variables):
    assert dead.problems(variables, False) == ""


def test_a_check_of_a_deletion_needs_no_confirmation():
    assert dead.problems({"dead_action": "delete", **ALL}, True) == ""


@pytest.mark.playbook
@pytest.mark.parametrize("number", [0, 2, 9, 12])
def test_no_host_is_contacted_for_nonsense(site: Site, number: int) -> None:  # noqa: F811
    variables, what, remedy = WRONG[number]
    run = site.run("-e", json.dumps(variables), playbook="playbooks/dead.yml")
    assert run.status != 0
    assert what in run.said
    assert remedy in run.said
    assert "UNREACHABLE" not in run.said
    assert "changed=1" not in run.said


@pytest.mark.playbook
def test_sense_gets_as_far_as_the_host_of_redis(site: Site, tmp_path: pathlib.Path) -> None:  # noqa: F811
    site.hosts(celery=["web1", "web2"], redis=["web2"])
    site.variables(QUEUES + GOOD_VARIABLES)
    run = site.run(playbook="playbooks/dead.yml")
    assert run.status != 0
    assert "[web1 -> web2]: UNREACHABLE!" in run.said
    # No Redis runs there.
    site.hosts(LOCAL, celery=["web1"], redis=["web1"])
    run = site.run("-e", "ansible_become=false", playbook="playbooks/dead.yml")
    assert run.status != 0
    assert "Letters are in one list at any time. Fix: " in run.said, run.said
