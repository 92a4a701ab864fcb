"""Volumes, ports, devices, GPUs and extra unit keys of a queue: what is taken, and what is not."""

import re
from pathlib import Path

import capacity
import pytest
from hypothesis import given
from hypothesis import strategies as st

TEMPLATE = (
    Path(__file__).parents[2]
    / "celery_worker/templates/etc/containers/systemd/celery-metal/of-the-app.container.j2"
)


def problems(**keys):
    return capacity.queue_problems([{"name": "a", **keys}])


@pytest.mark.parametrize(
    "keys",
    [
        {"volumes": ["/srv/media:/media", "/etc/a%h.conf:/etc/\u00e9.conf:ro,idmap"]},
        {"volumes": ["/x:/y:idmap=uids=@1000-999-1;gids=@1000-999-1"]},
        {"ports": ["8080:80", "127.0.0.1:8081:80/tcp", "[::1]:53:53/udp"]},
        {"devices": ["/dev/fuse", "/dev/bus/usb/001/002:/dev/meter:rw", "/dev/net/tun:r"]},
        {"gpus": ["nvidia.com/gpu=all", "amd.com/gpu=0:1"]},
        {"quadlet": {}},
        {"quadlet": {"Container": {"ShmSize": "1g", "Sysctl": ["net.a=1", "net.b=2"]}}},
        {"quadlet": {"Container": {"ReadOnlyTmpfs": False}, "Service": {"Nice": 5}}},
        {"quadlet": {"Container": {"AddHost": 'db:10.0.0.5 "%h"'}}},
        {"quadlet": {"Container": {"Tmpfs": ["/scratch:size=1g", "/tmp/x", "/var"]}}},
        {"volumes": ["/srv/tmp:/tmp"]},
        {"instances": 2, "ports": []},
    ],
)
def test_taken(keys):
    assert problems(**keys) == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("volumes", "/a:/b", 'volumes is "/a:/b": write a list, each HOST:CONTAINER or'),
        ("volumes", [{"host": "/a"}], "write HOST:CONTAINER or HOST:CONTAINER:OPTIONS"),
        ("volumes", ["data:/data"], 'volumes has "data:/data": write HOST:CONTAINER'),
        ("volumes", ["/a:b"], "with whole paths, as in /srv/media:/media:ro"),
        ("volumes", ["/a b:/c"], "no blanks, quotes, backslashes or $ in them"),
        ("volumes", ["/a\n:/c"], "no blanks"),
        ("volumes", ['/a":/c'], "no blanks"),
        ("volumes", ["/a:/c:ro:rw"], "write HOST:CONTAINER"),
        ("volumes", ["/a:/c", "/a:/c"], 'volumes has "/a:/c" twice: keep one'),
        ("volumes", ["/a:/c:ro,U"], "one worker's own IDs, and the next one has others; use idmap"),
        ("volumes", ["/a:/c:O"], "O is an overlay that is gone with the container"),
        ("volumes", ["/a:/run/secrets/x"], "has this path in the container: choose another"),
        ("volumes", ["/a/../b:/c"], "write the paths without .."),
        ("ports", [8080], "ports has 8080: write PORT:PORT or ADDRESS:PORT:PORT with the host's"),
        ("ports", ["8080"], 'in quotes, as in "8080:80"'),
        ("ports", ["0:80"], "a port is a number from 1 to 65535"),
        ("ports", ["80:65536"], "a port is a number from 1 to 65535"),
        ("ports", ["80:80/icmp"], "write PORT:PORT"),
        ("devices", ["/etc/passwd"], "write a device of the host, as in /dev/ttyUSB0"),
        ("devices", ["/dev/a:x"], "write a device of the host"),
        ("gpus", ["all"], "write a CDI name, as in nvidia.com/gpu=all"),
        ("gpus", "all", 'gpus is "all": write a list, each a CDI name'),
        ("gpus", None, "gpus is empty"),
        ("quadlet", ["ShmSize=1g"], "write a mapping such as {Container: {ShmSize: 256m}}"),
        ("quadlet", {"ShmSize": "1g"}, 'the section "ShmSize": there are Container and Service'),
        ("quadlet", {"Container": "x"}, 'quadlet.Container is "x": write a mapping'),
        ("quadlet", {"Container": {"User": "0"}}, "User is not taken: the sandbox of all workers"),
        ("quadlet", {"Container": {"Image": "x"}}, "Image is not taken: use image_source"),
        ("quadlet", {"Container": {"Volume": "x"}}, "Volume is not taken: use the key volumes"),
        ("quadlet", {"Container": {"PodmanArgs": "x"}}, "PodmanArgs is not taken: it could undo"),
        ("quadlet", {"Container": {"StopTimeout": 9}}, "no task is lost at a stop stands on it"),
        ("quadlet", {"Service": {"MemoryMax": "1G"}}, "MemoryMax is not taken: the plan sets it"),
        ("quadlet", {"Service": {"ExecStartPre": "x"}}, "ExecStartPre is not taken: the kit"),
        ("quadlet", {"Service": {"nice": 5}}, '"nice" is no key of a unit file'),
        ("quadlet", {"Service": {"Nice=5\nUser": 5}}, "is no key of a unit file"),
        ("quadlet", {"Container": {"ShmSize": "1g\nUser=0"}}, "no place for control characters"),
        ("quadlet", {"Container": {"AddHost": "a\\"}}, "would join the next line"),
        ("quadlet", {"Container": {"Label": ""}}, 'Label is "": write text, a number, or a list'),
        ("quadlet", {"Container": {"Label": "celery-metal.password=x"}}, "are the kit's own"),
        ("quadlet", {"Container": {"Sysctl": [None]}}, "write text, a number, or a list of them"),
        ("quadlet", {"Container": {"Tmpfs": "/tmp:size=1g"}}, "/tmp and /var/tmp is the key tmp_"),
        ("quadlet", {"Container": {"Tmpfs": ["/x", " //var/./tmp/"]}}, "/var/tmp is the key tmp"),
    ],
)
def test_refused(key, value, words):
    (problem,) = problems(**{key: value})
    assert problem.startswith('celery_queues item 1 ("a")')
    assert words in problem


def test_a_port_is_bound_by_one_instance():
    (problem,) = problems(ports=["8080:80"], instances=2)
    assert 'ports is ["8080:80"] with instances 2, and only one of them could bind' in problem


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("80:1", "80:2", True),
        ("80:1", "127.0.0.1:80:2", True),
        ("127.0.0.1:80:1", "127.0.0.1:80:2", True),
        ("127.0.0.1:80:1", "127.0.0.2:80:1", False),
        ("80:1", "81:1", False),
        ("80:1", "80:1/udp", False),
        ("080:1", "80:1/tcp", True),
    ],
)
def test_two_queues_of_a_host_have_ports_of_their_own(one, other, clash):
    queues = [{"name": "a", "ports": [one]}, {"name": "b", "ports": [other]}]
    said = capacity.refusal_text(queues, {}, "web1")
    assert ('ports of "a" and "b" both have the host\'s port' in said) == clash
    elsewhere = [queues[0], {**queues[1], "hosts": ["web2"]}]
    assert capacity.refusal_text(elsewhere, {}, "web1") == ""


def test_the_plan_says_which_queues_pause_for_their_port():
    facts = {"processor_nproc": 8, "memtotal_mb": 16000}
    queues = [{"name": "a", "ports": ["80:80"]}, {"name": "b"}]
    table = capacity.plan_table(capacity.plan_or_error(queues, facts, "web1", {}))
    assert table.splitlines()[-1] == "at a change these pause, for a port is bound once: a"


def test_all_that_the_template_sets_is_kept_from_users():
    """But for keys that may stand several times, each with a meaning of its own, and TasksMax."""
    section, unkept = "", []
    for line in TEMPLATE.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        found = re.match(r"([A-Z][A-Za-z]+)=", line)
        if found and section in capacity.QUADLET_SECTIONS:
            key = found.group(1)
            if key not in capacity.QUADLET_SECTIONS[section] and not key.startswith("Exec"):
                unkept.append(f"{section}.{key}")
    assert sorted(set(unkept)) == [
        "Container.Label",
        "Service.IPAddressDeny",
        "Service.TasksMax",
    ]


ANY = st.none() | st.booleans() | st.integers() | st.text(max_size=6)
KEYS = st.sampled_from(["volumes", "ports", "devices", "gpus", "quadlet", "instances"])
TEXTS = st.lists(ANY | st.text('/a:%,-=.0 \n\\"$', max_size=8), max_size=3)
SECTIONS = st.dictionaries(
    st.sampled_from(["Container", "Service"]) | ANY,
    ANY | st.dictionaries(st.sampled_from(["ShmSize", "User", "Label"]) | ANY, ANY | TEXTS),
)


@given(st.dictionaries(KEYS, ANY | TEXTS | SECTIONS, max_size=3))
def test_anything_is_taken_or_refused_in_words(keys):
    assert all(line.startswith("celery_queues item 1") for line in problems(**keys))
    assert capacity.refusal_text([{"name": "a", **keys}], {}, "web1") is not None
