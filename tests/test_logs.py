"""playbooks/logs.yml: nonsense is refused before any host is contacted; what a terminal shows."""

import time

import logs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_refusals import Site

DECLARED = ["emails", "a b"]
SECOND = 1795980962_000_000


@pytest.mark.parametrize(
    ("variables", "said", "remedy"),
    [
        ({"_raw_params": "20:35"}, 'ends before "20:35"', "in quotes of its own"),
        ({"logs_line": 5}, "logs_line is an unknown variable", "write logs_lines"),
        ({"logs_queue": "emials"}, 'logs_queue is "emials", which', '"emails", "a b"; logs_unit'),
        ({"logs_queue": ["emails"]}, "logs_queue is ['emails']", "printable characters"),
        ({"logs_text": "a\n"}, 'logs_text is "a\\n"', "printable characters"),
        ({"logs_text": ""}, 'logs_text is ""', "1 to 1024 printable"),
        ({"logs_task": "a", "logs_text": "b"}, "logs_task and logs_text are set", "one of them"),
        ({"logs_queue": "a b", "logs_unit": "b"}, "logs_queue and logs_unit are set", "one of"),
        ({"logs_unit": "*/../x"}, 'logs_unit is "*/../x"', "between celery- and .service"),
        ({"logs_since": "yesterday"}, 'logs_since is "yesterday"', "such as 90s, 10min"),
        ({"logs_since": "2026-13-01"}, 'logs_since is "2026-13-01"', "2026-11-29 14:00"),
        ({"logs_until": "1969-12-31"}, 'logs_until is "1969-12-31"', "such as 90s"),
        ({"logs_until": "2h"}, 'logs_since is "1h", not before logs_until, "2h"', "an earlier"),
        ({"logs_lines": 0}, "logs_lines is 0", "a number, 1 to 5000"),
        ({"logs_lines": "9" * 30}, 'logs_lines is "999', "a number, 1 to 5000"),
        ({"logs_lines": True}, "logs_lines is True", "a number, 1 to 5000"),
    ],
)
def test_nonsense_is_refused_with_a_remedy(variables, said, remedy):
    first, _, fix = logs.problems(variables, DECLARED).partition(".\n  Fix: ")
    assert said in first
    assert remedy in fix


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"logs_of_ours": 7},
        {"logs_queue": "a b", "logs_task": 12, "logs_since": "7 d", "logs_until": "10min ago"},
        {"logs_unit": "emails@1", "logs_text": "\\E|'", "logs_lines": "5000"},
        {"logs_since": "2026-11-29 14:00:01", "logs_until": "2026-11-29T16:00:02+02:00"},
    ],
)
def test_what_can_be_done_is_not_refused(variables):
    assert logs.problems(variables, DECLARED) == ""


@given(
    st.dictionaries(
        st.sampled_from(logs.KNOWN), st.one_of(st.text(), st.integers(), st.lists(st.text()))
    )
)
def test_no_value_ends_the_check_or_reaches_the_terminal(variables):
    said = logs.problems(variables, DECLARED)
    assert all(one.isprintable() or one == "\n" for one in said)


def test_how_long_ago_and_times():
    assert 7195 < time.time() - logs.seconds_of("2h") < 7205
    assert logs.seconds_of("2026-11-29 14:00+02:00") == logs.seconds_of("2026-11-29T12:00")
    assert logs.seconds_of("999999d", 5.0) == 0.0


def test_lines_of_all_hosts_are_in_order_of_time():
    hosts = {
        "web1": {
            "entries": [
                [SECOND + 1_500, "emails@1", "[2026-11-29 19:36:02,001: INFO/MainProcess] b"],
                [SECOND + 3_000, "emails@1", "second of one time"],
                [SECOND + 3_000, "emails@1", "a third\x1b[2J"],
            ]
        },
        "long-name": {"entries": [[SECOND, "redis", "a"], [SECOND + 2_000, "redis", "c"]]},
    }
    assert logs.text(hosts, {}).split("\n") == [
        "2026-11-29 19:36:02.000  long-name  redis     a",
        "2026-11-29 19:36:02.001  web1       emails@1  INFO/MainProcess b",
        "2026-11-29 19:36:02.002  long-name  redis     c",
        "2026-11-29 19:36:02.003  web1       emails@1  second of one time",
        "2026-11-29 19:36:02.003  web1       emails@1  a third?[2J",
    ]
    last = logs.text(hosts, {"logs_lines": "2"}).split("\n")
    assert [line.split("  ")[-1] for line in last[:2]] == ["second of one time", "a third?[2J"]
    assert last[2:] == ["", "there are older lines: write logs_lines or logs_until to see them"]
    # What comes with a line that was found is not cut off.
    assert len(logs.text(hosts, {"logs_lines": 2, "logs_text": "b"}).split("\n")) == 5


def test_what_is_missing_is_reported():
    hosts = {
        "web1": {"entries": [], "has_queue": False, "dropped": ["Suppressed 9 messages"]},
        "web2": {"unreachable": True, "msg": "no\nroute"},
        "web3": {"failed": True},
        "web4": {"failed": True, "module_stderr": "Traceback\nKeyError: 1\n"},
    }
    said = logs.text(hosts, {"logs_queue": "emails", "logs_since": "2026-11-29"}).split("\n")
    assert said[:2] == ["no line since 2026-11-29 00:00:00.000 UTC", ""]
    assert sorted(said[2:]) == [
        "no host here has workers of emails",
        "web1: lines are missing: systemd-journald: Suppressed 9 messages",
        "web2: not read: no route",
        "web3: not read: no answer",
        "web4: not read: Traceback KeyError: 1",
    ]


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(["entries", "dropped", "has_queue", "is_cut"]), ODD))
def test_a_host_may_say_anything(said):
    shown = logs.text({"web1": said}, {"logs_queue": "emails"})
    assert all(one.isprintable() or one == "\n" for one in shown)


@pytest.mark.playbook
def test_nonsense_is_refused_before_a_host_is_contacted(tmp_path):
    site = Site(tmp_path)
    run = site.run("-e", "logs_queue=mail", playbook="playbooks/logs.yml")
    assert 'Fix: write one of "emails", "reports"' in run.said
    assert "UNREACHABLE" not in run.said
    run = site.run(playbook="playbooks/logs.yml")
    assert "web1: not read:" in run.said
    assert "web2: not read:" in run.said
    assert "no journal was read" in run.said
    assert "no line since" not in run.said
    assert run.status != 0
