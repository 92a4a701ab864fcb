"""What is declared reaches the worker's process byte for byte, through systemd and Podman."""

import base64
import json
import pathlib
import random
import string

import capacity
import celery_worker
import yaml
from of_the_app import environment_problems

HOST = "metal"
ROOT = pathlib.Path(__file__).parents[3]
SEED = 20261124
PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " "
OTHERS = "äßΩЖ日本語महि😀\u00a0\u0085\u2028\u200d\ufeff"
HARD = [
    PRINTABLE,
    OTHERS,
    "",
    " ",
    "  two blanks around  ",
    "back\\",
    "\\\\ \\n \\x41 \\u0041 \\s",
    "'single' \"double\" `back`",
    '"',
    "'",
    "%i %H %% %n % %%%",
    "$HOME ${HOME} $(id) $$ $ ${",
    "# no comment",
    "; none either",
    "-v /:/host",
    "A=B=C",
    "{{ 7 * 7 }} {% raw %} {# #} {{ '{{' }}",
    "é NFC, e\u0301 NFD",
    "x" * 65536,
]
NAMES = [PRINTABLE.replace(",", "").strip(), "日本語 \\é '\"\\"]

# Stands for podman: keeps the words with which systemd has called it.
KEEP = """#!/usr/bin/python3
import json, pathlib, sys
name = sys.argv[sys.argv.index("--name") + 1]
pathlib.Path("/run/trial/words", name).write_text(json.dumps(sys.argv[1:]))
"""
# Has Podman's generator make units of container files, and systemd run their command lines.
TRIAL = r"""
import json, os, pathlib, re, shutil, subprocess, sys

given = json.load(sys.stdin)
top, systemd = pathlib.Path("/run/trial"), pathlib.Path("/run/systemd/system")
for name in ("quadlets", "words"):
    (top / name).mkdir(parents=True)
(top / "podman").write_text(given["keep"])
(top / "podman").chmod(0o755)
for name, text in given["files"].items():
    (top / "quadlets" / name).write_text(text)
dry = subprocess.run(
    ["/usr/libexec/podman/quadlet", "-dryrun"],
    env={**os.environ, "QUADLET_UNIT_DIRS": str(top / "quadlets")},
    capture_output=True, text=True,
)
assert dry.returncode == 0, dry.stderr
written = []
for name, text in re.findall(r"^---(\S+)---\n(.*?)(?=^---\S+---\n|\Z)", dry.stdout, re.M | re.S):
    description = re.search(r"^Description=.*$", text, re.M)[0]
    command = re.search(r"^ExecStart=/usr/bin/podman (.*)$", text, re.M)[1]
    written.append(systemd / name)
    written[-1].write_text(
        f"[Unit]\n{description}\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        f"ExecStart=/run/trial/podman {command}\n"
    )
units = [path.name.replace("@.", "@1.") for path in written]
try:
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["systemctl", "start", *units], check=True)
    show = ["systemctl", "show", "--value", "-p", "Description"]
    shown = {
        unit: subprocess.run([*show, unit], check=True, capture_output=True).stdout.decode()
        for unit in units
    }
    words = {path.name: json.loads(path.read_text()) for path in (top / "words").iterdir()}
    print(json.dumps({"words": words, "shown": shown}))
finally:
    subprocess.run(["systemctl", "stop", *units])
    for path in written:
        path.unlink()
    shutil.rmtree(top)
    subprocess.run(["systemctl", "daemon-reload"])
"""


class Unsafe(str):
    """Text of which Ansible makes no template."""


def as_it_is(text):
    # Only where needed: of !unsafe "" and !unsafe "8" Ansible makes no text.
    return Unsafe(text) if "{" in text else text


class Dumper(yaml.SafeDumper):
    """YAML with !unsafe, in which every character that could be taken for another is escaped."""


Dumper.add_representer(
    Unsafe, lambda dumper, text: dumper.represent_scalar("!unsafe", str(text), style='"')
)


def process_environment(lab, container):
    """The environment of a container's first process, read as bytes."""
    pid = lab.run(HOST, f"podman inspect -f '{{{{.State.Pid}}}}' {container}").strip()
    raw = base64.b64decode(lab.run(HOST, f"base64 /proc/{pid}/environ"))
    return dict(one.split("=", 1) for one in raw.decode().split("\0") if one)


def test_every_character_reaches_the_worker_and_is_shown_as_it_is(kit, lab, tmp_path):
    environment = {f"HARD_{number}": value for number, value in enumerate(HARD)}
    queues = [
        {"name": as_it_is(name), "concurrency": 1, "environment": {"OF": as_it_is(name)}}
        for name in NAMES
    ]
    declared = {
        "celery_worker_environment": {key: as_it_is(value) for key, value in environment.items()},
        "celery_queues": queues,
    }
    path = tmp_path / "declared.yml"
    path.write_text(yaml.dump(declared, Dumper=Dumper))
    kit.play("-e", f"@{path}")
    services = sorted(kit.services(HOST) - {"celery-redis.service"})
    assert len(services) == len(NAMES)
    found = {}
    for service in services:
        container = service.removesuffix(".service").replace("@", "-")
        own = process_environment(lab, container)
        found[own["CELERY_METAL_QUEUE"]] = own
        inspected = json.loads(lab.run(HOST, ["podman", "inspect", container]))[0]["Config"]["Env"]
        inspected = dict(one.split("=", 1) for one in inspected)
        for key, value in {**environment, "OF": own["CELERY_METAL_QUEUE"]}.items():
            assert own[key] == value
            assert inspected[key] == value
        shown = lab.run(HOST, ["systemctl", "show", "--value", "-p", "Description", service])
        assert shown == f"Queue {own['CELERY_METAL_QUEUE']}, Celery worker 1\n"
    assert set(found) == set(NAMES)
    assert kit.play("-e", f"@{path}").changed == {HOST: 0}


def test_hundreds_of_values_come_back_through_quadlet_and_systemd(lab):
    rng = random.Random(SEED)
    letters = [*PRINTABLE, *OTHERS, *map(chr, rng.sample(range(0xA0, 0xD7FF), 200)), *'%$"\\' * 12]

    def text():
        return "".join(rng.choices(letters, k=rng.randint(1, 60)))

    queues = []
    while len(queues) < 40:
        queue = {"name": text(), "environment": {f"V{number}": text() for number in range(20)}}
        refused = capacity.queue_problems([*queues, queue]) or environment_problems(
            "", queue["environment"], []
        )
        if not refused:
            queues.append(queue)
    host = {"name": HOST, "vcpus": 64, "memory_mb": 512000, "numa_nodes": 1}
    plan = capacity.plan(host, capacity.validate_queues(queues), capacity.limits_from_settings({}))
    app = text()
    units = celery_worker.worker_units(
        plan,
        str(ROOT / "roles" / "celery_worker" / "templates"),
        image="localhost/celery-metal/app:0123456789abcdef",
        app=app,
        broker_is_local=True,
        broker_url="redis+socket:///run/redis/redis.sock?virtual_host=0",
        result_backend="",
        network="none",
        egress=["any"],
        subnet="10.87.0.0/24",
        broker_port=6379,
        log_level="info",
        process_factor=4,
        watchdog_seconds=45,
        visibility_seconds=3600,
        broker_secrets={"celery-redis-worker": "mark"},
        environment={},
        secrets={},
        secrets_exported=[],
        broker_variables=[],
    )
    files = {
        pathlib.Path(path).name: content
        for path, content in units["files"].items()
        if path.endswith(".container")
    }
    said = json.loads(
        lab.run(
            HOST,
            ["python3", "-c", TRIAL],
            stdin=json.dumps({"keep": KEEP, "files": files}),
            timeout=300,
        )
    )
    assert len(said["words"]) == len(queues)
    for queue in plan["queues"]:
        words = said["words"][f"celery-{queue['unit']}-1"]
        given = dict(
            words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "--env"
        )
        assert {name: given[name] for name in queue["environment"]} == queue["environment"]
        assert given["CELERY_METAL_QUEUE"] == queue["name"]
        assert given["CELERY_APP"] == app
        assert said["shown"][f"celery-{queue['unit']}@1.service"] == (
            f"Queue {queue['name']}, Celery worker 1\n"
        )
