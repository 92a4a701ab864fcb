"""What is reported of hosts that do not answer."""

from __future__ import annotations

from typing import Any

import contact
import pytest

LOST = {"unreachable": True, "msg": "Task failed: no route to host\n"}


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        ({"r1": {}, "web1": {"ansible_facts": {}}}, ""),
        (
            {"r1": {}, "web1": LOST, "web2": {"failed": True, "msg": "no Python."}},
            "web1 cannot be reached: no route to host.\nweb2 gives no facts: no Python.\n"
            "Nothing was changed on any host.\n"
            "To go on without them: --limit 'all:!web1:!web2'.",
        ),
        (
            {"r1": LOST, "web1": {}},
            "r1 cannot be reached: no route to host.\nNothing was changed on any host.\n"
            "All workers need r1, for it runs Redis: mend that, then run again.",
        ),
        (
            {"web1": LOST},
            "web1 cannot be reached: no route to host.\nNothing was changed on any host.\n"
            "Mend the way to the hosts, then run again.",
        ),
    ],
)
def test_hosts_that_do_not_answer(hosts: dict[str, Any], text: str) -> None:
    assert contact.contact_problems(hosts, "r1") == text


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            {
                "unreachable": True,
                "msg": "Task failed: Timeout (12s) waiting for privilege escalation prompt:",
            },
            "Timeout (12s) waiting for privilege escalation prompt",
        ),
        (
            {
                "failed": True,
                "msg": "Module result deserialization failed: No start of json char found",
                "module_stderr": "Warning: a\x1b line\nsudo-rs: authentication is required\n",
            },
            "sudo-rs: authentication is required",
        ),
        (
            {"failed": True, "msg": "Task failed: Incorrect sudo password"},
            "Incorrect sudo password",
        ),
    ],
)
def test_a_host_where_sudo_refuses_is_not_called_unreachable(
    said: dict[str, Any], why: str
) -> None:
    first, *rest = contact.contact_problems({"web1": said, "r1": {}}, "r1").splitlines()
    assert first == f"web1 answers, and Ansible does not become root there: {why}."
    assert rest[0].startswith("  Fix: give the right password (--ask-become-pass).")


def test_what_a_host_writes_is_shortened_to_a_line() -> None:
    said = {"failed": True, "msg": "", "module_stderr": "x\x1b[2J" * 500}
    lines = contact.contact_problems({"web1": said, "r1": {}}, "r1").splitlines()
    assert len(lines[0]) < 400
    assert lines[0].isprintable()
