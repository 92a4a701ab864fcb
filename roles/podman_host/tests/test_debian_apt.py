"""apt's errors are what a user reads."""

import pytest
from ansible.module_utils import debian_apt


def test_a_failed_command_is_named_with_its_error():
    with pytest.raises(debian_apt.AptError, match=r"sh -c \.\.\.: no such mirror"):
        debian_apt.run("sh", "-c", "echo no such mirror >&2; exit 100")
    assert debian_apt.run("echo", "text") == "text\n"
    with pytest.raises(
        debian_apt.AptError, match=r"there is no no-such-apt: this is done on Debian"
    ):
        debian_apt.run("no-such-apt", "install")
