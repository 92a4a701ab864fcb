"""What Podman is to run for a command, from what Quadlet makes of a worker's unit."""

import pytest
from ansible.module_utils import celery_one_off as one_off
from ansible.module_utils.celery_metal import HostError
from celery_worker import quoted
from hypothesis import given
from hypothesis import strategies as st

SERVICE = """\
[Unit]
Description=Queue a
[X-Container]
Exec=worker
[Service]
CPUWeight=50
IPAddressDeny=fe80::/10
ExecStartPre=/usr/sbin/nft -f /etc/celery-metal/egress.nft
ExecStartPost=-/bin/sh -c 'x'
MemoryMax=218M
TasksMax=384
LimitNOFILE=1024
ExecStart=/usr/bin/podman run --name c --cidfile=%t/%N.cid --env "A=50%% of \\"$$HOME\\"" a/app:1

[Install]
WantedBy=celery-a.target
"""
# As Quadlet takes it: a unit's line.
LINES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40
)


@given(LINES)
def test_a_value_of_a_unit_comes_back_as_it_was_declared(text):
    assert [one_off.expanded(one, {}) for one in one_off.words(f"a {quoted(text)}")] == ["a", text]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (r"a 'b c' d\x20e", ["a", "b c", "d e"]),
        (r'"\u00e9\U0001F600\101\n"', ["é😀A\n"]),
        ('a""b \'\' ""', ["ab", "", ""]),
        ("--env=A=\"b c\"'d e'", ["--env=A=b cd e"]),
        ("", []),
    ],
)
def test_words_are_those_of_systemd(line, words):
    assert one_off.words(line) == words


def test_a_specifier_without_a_value_is_refused_by_its_name():
    with pytest.raises(HostError, match="specifier %q, which"):
        one_off.expanded("/srv/%q", {"i": "1"})
    with pytest.raises(HostError, match="specifier %, which"):
        one_off.expanded("100%", {"i": "1"})


def test_the_command_takes_the_place_of_the_worker():
    argv, image = one_off.podman(SERVICE, "celery-run-1", ["echo", "$A %i"], terminal=False)
    assert image == "a/app:1"
    assert argv == [
        *("/usr/bin/podman", "run", "--log-driver=none", "--name", "c"),
        *("--cidfile=/run/celery-run-1.cid", "--env", 'A=50% of "$HOME"', "a/app:1"),
        *("run", "echo", "$A %i"),
    ]
    argv, _ = one_off.podman(SERVICE, "celery-run-1", ["sh"], terminal=True)
    assert argv[:5] == ["/usr/bin/podman", "run", "--log-driver=none", "-i", "-t"]


def test_it_has_limits_of_the_workers_but_for_their_memory():
    assert one_off.limits(SERVICE, "celery-run-1") == [
        "--property=CPUWeight=50",
        "--property=IPAddressDeny=fe80::/10",
        "--property=ExecStartPre=/usr/sbin/nft -f /etc/celery-metal/egress.nft",
        "--property=TasksMax=384",
        "--property=LimitNOFILE=1024",
    ]
