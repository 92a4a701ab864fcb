"""Each change reaches the units that it concerns, and no others."""

import copy
import hashlib
import json
import re

import pytest

HOST = "metal"
ADD = {"name": "add_queue", "concurrency": 1}
MULTIPLY = {"name": "multiply_queue", "concurrency": 2, "workload": "io"}
MAIL = {"name": "mail", "concurrency": 1, "tmp_mb": 4}
QUEUES = [ADD, MULTIPLY, MAIL]
SERVICES = {
    "celery-add_queue@1.service",
    "celery-mail@1.service",
    "celery-multiply_queue@1.service",
    "celery-redis.service",
}


@pytest.fixture
def change(kit, lab):
    """A way to change the site that says which units that concerned."""

    def change(queues, **variables):
        before = lab.invocation_ids(HOST, "celery-*.service")
        played = kit.play(celery_queues=queues, **variables)
        after = lab.invocation_ids(HOST, "celery-*.service")
        active = kit.services(HOST)
        return {
            "new": {unit for unit in active if unit not in before},
            "restarted": {u for u in active if u in before and before[u] != after[u]},
            "gone": {unit for unit in before if unit not in active},
            "changed": played.changed[HOST],
        }

    return change


@pytest.fixture
def site(kit, change):
    """The site as it was converged, and a way to change it that says which units that concerned."""
    kit.ensure(celery_queues=copy.deepcopy(QUEUES))
    assert kit.services(HOST) == SERVICES
    return change


def test_nothing_changes_nothing(site):
    assert site(QUEUES) == {"new": set(), "restarted": set(), "gone": set(), "changed": 0}


# One queue is changed, and those are added whose names look alike or are odd.
ALIKE = ["media/thumbs", "media_thumbs"]
ODD = 'mail "50%" of $HOME ${PATH} \\ é;#x \'y'
MORE = [
    ADD,
    {**MULTIPLY, "concurrency": 3},
    MAIL,
    *({"name": name, "concurrency": 1} for name in (*ALIKE, ODD)),
]
# Those go again, a queue has instances, and one grows by itself.
WIDE = [{**ADD, "instances": 3}, {**MULTIPLY, "concurrency": {"min": 1, "max": 4}}, MAIL]
FEWER = [{**ADD, "instances": 2}, *WIDE[1:]]


def test_a_run_restarts_the_queue_that_changed_and_starts_those_that_came(site, kit, lab):
    done = site(MORE)
    assert done["gone"] == set()
    assert done["restarted"] == {"celery-multiply_queue@1.service"}
    assert len(kit.children(HOST, "celery-multiply_queue-1")) == 3
    alike = {"celery-media_2fthumbs@1.service", "celery-media_thumbs@1.service"}
    assert alike <= done["new"]
    (unit,) = done["new"] - alike
    container = unit.removesuffix(".service").replace("@", "-")
    assert kit.environment(HOST, container)["CELERY_METAL_QUEUE"] == ODD
    shown = lab.show(HOST, unit, "Description")
    assert ODD.replace("\\", "") in shown.replace("\\", "")
    reports = kit.smoke(HOST, "celery-add_queue-1", *ALIKE, ODD, count=20)
    for report in reports.values():
        assert report["done"] == report["sent"] >= 20
        assert report["wrong"] == 0
        assert len(report["workers"]) == 1
    assert len({worker for report in reports.values() for worker in report["workers"]}) == 3


def test_instances_come_and_go_alone_and_autoscale_keeps_its_bounds(change, kit, lab):
    kit.ensure(celery_queues=MORE)
    before = kit.services(HOST)
    done = change(WIDE)
    more = {"celery-add_queue@2.service", "celery-add_queue@3.service"}
    assert more <= done["new"]
    assert done["gone"] >= before - SERVICES
    # The share of the CPU of each instance is smaller now, so the first one is set up anew too.
    scaled = "celery-multiply_queue@1.service"
    assert {scaled} <= done["restarted"] <= {scaled, "celery-add_queue@1.service"}
    reports = kit.smoke(HOST, "celery-mail-1", "add_queue", count=200)
    assert set(reports["add_queue"]["workers"]) == {f"add_queue-{n}@{HOST}" for n in (1, 2, 3)}
    idle = len(kit.children(HOST, "celery-multiply_queue-1"))
    assert idle == 1
    task = (
        "from metal_sample.tasks import wait; from metal_sample.celery import app;"
        "from celery_metal_runtime import configure; configure(app);"
        "[wait.apply_async((4,), queue='multiply_queue') for _ in range(12)]"
    )
    lab.run(HOST, ["podman", "exec", "celery-add_queue-1", "python", "-c", task])
    lab.wait_for(
        lambda: len(kit.children(HOST, "celery-multiply_queue-1")) == 4,
        30,
        "growth of the pool",
        host=HOST,
        unit=scaled,
    )
    # Tasks that run: a run has nothing to do with this worker.
    done = change(FEWER)
    assert done["gone"] >= {"celery-add_queue@3.service"}
    assert done["restarted"] <= {"celery-add_queue@1.service", "celery-add_queue@2.service"}


FOREIGN = {
    "/etc/containers/systemd/other.container": "[Container]\nImage=localhost/other:1\n",
    "/etc/containers/systemd/celery-x@.container": "[Container]\nImage=localhost/other:1\n",
    "/etc/systemd/system/my-celery.service": "[Service]\nExecStart=/bin/true\n",
}


@pytest.fixture
def foreign(lab):
    """Files of others, which look like those of celery-metal."""
    for path, text in FOREIGN.items():
        lab.run(HOST, f"cat > {path}", stdin=text)
    yield
    lab.run(HOST, ["rm", *FOREIGN])


def test_dropping_a_queue_drains_it_and_leaves_no_trace_but_what_is_not_ours(
    change, foreign, kit, lab
):
    kit.ensure(celery_queues=FEWER)
    task = (
        "from metal_sample.tasks import wait; from metal_sample.celery import app;"
        "from celery_metal_runtime import configure; configure(app);"
        "print(wait.apply_async((20,), queue='mail').id)"
    )
    task_id = lab.run(HOST, ["podman", "exec", "celery-add_queue-1", "python", "-c", task]).strip()
    lab.wait_for(
        lambda: "1 busy" in lab.show(HOST, "celery-mail@1.service", "StatusText"),
        15,
        "task on its way",
        host=HOST,
        unit="celery-mail@1.service",
    )
    # A task that runs is one that stays, unless it is meant.
    done = change(FEWER[:2], queues_left=True)
    assert done["gone"] == {"celery-mail@1.service"}
    assert (done["new"], done["restarted"]) == (set(), set())
    # The task that ran when its worker was told to go has ended well.
    result = json.loads(kit.redis(HOST, "get", f"celery-task-meta-{task_id}"))
    assert (result["status"], result["result"]) == ("SUCCESS", 20)
    assert lab.run(HOST, "systemctl list-units --all --plain --no-legend 'celery-mail*'") == ""
    assert lab.run(HOST, "find /etc /run/systemd -name '*celery-mail*'") == ""
    assert "celery-mail" not in lab.run(HOST, "podman ps -a --format '{{.Names}}'")
    for path, text in FOREIGN.items():
        assert lab.run(HOST, f"cat {path}") == text
    left = kit.services(HOST)
    # Nor does it come back with the version before, when the next one does not come up.
    broken = {**FEWER[0], "environment": {"PYTHONHOME": "/nowhere"}}
    played = kit.play(fails=True, celery_queues=[broken, FEWER[1]])
    assert "The previous version is back" in played.said, played.output
    assert kit.services(HOST) == left
    assert lab.run(HOST, "find /etc /run/systemd -name '*celery-mail*'") == ""


ORDERS = ("round_robin", "priority")
SEVERAL = [
    ADD,
    # A task of 4 s ends in it, and one of 600 s does not.
    {**MULTIPLY, "drain_seconds": 8},
    MAIL,
    *(
        {
            "name": order,
            "queues": [f"urgent_{order}", f"bulk_{order}"],
            "queue_order": order,
            "concurrency": 1,
        }
        for order in ORDERS
    ),
    {"name": "both", "queues": ["urgent", "bulk"], "concurrency": 2, "drain_seconds": 2},
]


def test_what_outlasts_the_drain_is_in_its_queue_again_when_the_stop_is_over(kit, lab):
    kit.ensure(celery_queues=SEVERAL)
    send = (
        "from metal_sample.tasks import wait; from metal_sample.celery import app;"
        "from celery_metal_runtime import configure; configure(app);"
        "[wait.apply_async((n,), queue='multiply_queue') for n in (4, 600)]"
    )
    lab.run(HOST, ["podman", "exec", "celery-multiply_queue-1", "python", "-c", send])
    unit = "celery-multiply_queue@1.service"
    lab.wait_for(
        lambda: "2 busy" in lab.show(HOST, unit, "StatusText"), 20, "two tasks run", unit=unit
    )
    lab.run(HOST, ["systemctl", "stop", unit])
    assert lab.show(HOST, unit, "Result") == "success", lab.journal(HOST, unit)
    waiting = kit.redis(HOST, "lrange", "multiply_queue", "0", "-1").splitlines()
    assert len(waiting) == 1, lab.journal(HOST, unit)
    assert "600" in json.loads(waiting[0])["headers"]["argsrepr"]
    assert kit.redis(HOST, "keys", "celery-metal.held:multiply_queue-*") == ""
    assert kit.redis(HOST, "del", "multiply_queue") == "1"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        # By priority, 0 being the best, and by turns where both queues have tasks of it.
        ("round_robin", ["urgent0", "bulk0", "bulk0", "urgent6", "bulk6", "urgent9"]),
        # The first queue before all of the second.
        ("priority", ["urgent0", "urgent6", "urgent9", "bulk0", "bulk0", "bulk6"]),
    ],
)
def test_a_worker_of_several_queues_takes_their_tasks_in_order(kit, lab, order, expected):
    kit.ensure(celery_queues=SEVERAL)
    unit = f"celery-{order}@1.service"
    lab.run(HOST, ["systemctl", "stop", unit])
    keys = [f"metal_sample.record:{queue}" for queue in ("urgent", "bulk")]
    kit.redis(HOST, "del", *keys)
    sent = [("bulk", 6), ("urgent", 9), ("bulk", 0), ("bulk", 0), ("urgent", 6), ("urgent", 0)]
    code = (
        "from metal_sample.tasks import record; from metal_sample.celery import app;"
        "from celery_metal_runtime import configure; configure(app);"
        f"[record.apply_async((queue, priority, 0), queue=f'{{queue}}_{order}', priority=priority)"
        f" for queue, priority in {sent}]"
    )
    lab.run(HOST, ["podman", "exec", "celery-mail-1", "python", "-c", code])
    declared = json.dumps({"celery_queues": SEVERAL})
    (row,) = [r for r in kit.status("-e", declared)["workers"] if r["queue"] == order]
    queues = [f"urgent_{order}", f"bulk_{order}"]
    assert (row["queues"], row["state"], row["waiting"]) == (queues, "inactive", 6)
    lab.run(HOST, ["systemctl", "start", unit])

    def effects():
        found = []
        for key in keys:
            for line in kit.redis(HOST, "smembers", key).splitlines():
                priority, moment, _ = line.split()
                found.append((float(moment), f"{key.rpartition(':')[2]}{priority}"))
        return [name for _, name in sorted(found)]

    lab.wait_for(lambda: len(effects()) == len(sent), 30, "all tasks", host=HOST, unit=unit)
    assert effects() == expected
    lab.wait_for(lambda: kit.claimed(HOST) == 0, 60, "all are acknowledged")
    assert not kit.status()["held"]


def test_what_a_worker_of_several_queues_gives_back_is_where_it_was(kit, lab):
    kit.ensure(celery_queues=SEVERAL)
    unit = "celery-both@1.service"
    code = (
        "from metal_sample.tasks import wait; from metal_sample.celery import app;"
        "from celery_metal_runtime import configure; configure(app);"
        "wait.apply_async((600,), queue='urgent');"
        "wait.apply_async((600,), queue='bulk', priority=3)"
    )
    lab.run(HOST, ["podman", "exec", "celery-mail-1", "python", "-c", code])
    lab.wait_for(
        lambda: "2 busy" in lab.show(HOST, unit, "StatusText"), 20, "two tasks run", unit=unit
    )
    held = {one["queue"]: one["tasks"] for one in kit.status()["held"]}
    assert held == {"urgent": 1, "bulk": 1}
    lab.run(HOST, ["systemctl", "stop", unit])
    assert kit.redis(HOST, "keys", "celery-metal.held:both-*") == ""
    lengths = [kit.redis(HOST, "llen", key) for key in ("urgent", "bulk", "bulk\x06\x163")]
    assert lengths == ["1", "0", "1"]
    assert kit.redis(HOST, "del", "urgent", "bulk\x06\x163") == "2"


FILL = """
from celery_metal_runtime import configure
from metal_sample.celery import app
from metal_sample.tasks import append, record

configure(app)
text = "x" * (3 << 20)
append.apply_async(("/tmp/left", text), queue="mail", ignore_result=True)
try:
    append.apply_async(("/tmp/more", text), queue="mail").get(timeout=30)
except OSError as error:
    print(error.strerror)
for number in range(8):
    record.apply_async(("left", number, 3), queue="mail")
"""


def test_a_worker_with_what_killed_tasks_left_in_tmp_is_replaced_and_every_task_done_once(
    site, kit, lab
):
    unit, key = "celery-mail@1.service", "metal_sample.record:left"
    kit.redis(HOST, "del", key)
    lab.run(HOST, ["systemctl", "restart", unit])
    restarts = int(lab.show(HOST, unit, "NRestarts"))
    (child,) = kit.children(HOST, "celery-mail-1")
    fill = ["podman", "exec", "celery-add_queue-1", "python", "-c", FILL]
    # Of 4 MB the second 3 MB are too much: the task learns of it, and no process is killed for it.
    assert lab.run(HOST, fill) == "No space left on device\n"
    lab.wait_for(lambda: "1 busy" in lab.show(HOST, unit, "StatusText"), 20, "a task", unit=unit)
    assert kit.children(HOST, "celery-mail-1") == [child]
    lab.run(HOST, ["kill", "-9", str(child)])
    lab.wait_for(
        lambda: int(lab.show(HOST, unit, "NRestarts")) > restarts, 60, "it is replaced", unit=unit
    )
    lab.wait_for(lambda: unit in kit.services(HOST), 30, "its successor works", unit=unit)
    left = lab.run(HOST, ["podman", "exec", "celery-mail-1", "ls", "/tmp/"]).split()
    assert {"left", "more"}.isdisjoint(left)
    assert "files that no running task has made (tasks killed here: 1)" in lab.journal(HOST, unit)
    lab.wait_for(lambda: kit.redis(HOST, "scard", key) == "8", 60, "all are done", unit=unit)
    lab.wait_for(lambda: kit.claimed(HOST) == 0, 60, "all are acknowledged")
    # An element for each execution.
    numbers = sorted(one.split()[0] for one in kit.redis(HOST, "smembers", key).splitlines())
    assert numbers == [str(number) for number in range(8)]
    assert kit.redis(HOST, "exists", "celery-metal.dead:mail") == "0"


def test_tasks_of_a_queue_that_nobody_consumes_are_moved_and_deleted(site, kit, lab):
    call = "podman exec celery-mail-1 celery-metal-run celery call metal_sample.tasks.add"
    moved = [
        lab.run(HOST, f"{call} --queue emials --args='[{number}, 1]'").strip()
        for number in range(3)
    ]
    tool = "playbooks/queues.yml"
    assert re.search(r"^ +emials +3$", kit.play(playbook=tool).output, re.M)
    names = {"queues_action": "move", "queues_from": "emials"}
    assert (
        "which no worker consumes"
        in kit.play(playbook=tool, fails=True, **names, queues_to="gone").said
    )
    said = kit.play(playbook=tool, **names, queues_to="mail").said
    assert "3 tasks moved from emials to mail" in said
    for number, task in enumerate(moved):
        result = f"podman exec celery-mail-1 celery-metal-run celery result {task}"
        assert lab.run(HOST, result, timeout=60).strip() == str(number + 1)
    lab.run(HOST, f"{call} --queue emials --args='[9, 1]'")
    purge = {"queues_action": "purge", "queues_from": "emials"}
    assert "1 task of emials would be deleted" in kit.play("--check", playbook=tool, **purge).said
    said = kit.play(playbook=tool, **purge, queues_confirmed=True).said
    assert "1 task of emials deleted" in said
    assert "emials" not in kit.play(playbook=tool).output


def test_a_queue_stopped_by_hand_is_started_again(site, kit, lab):
    lab.run(HOST, "systemctl stop celery-mail@1.service")
    done = site(QUEUES)
    assert "celery-mail@1.service" in kit.services(HOST)
    assert done["restarted"] <= {"celery-mail@1.service"}


TWO = [ADD, MULTIPLY, {**MAIL, "concurrency": 2}]


def test_an_interrupted_run_is_completed_by_the_next(site, kit, lab):
    # As if the connection had gone after the files were written: nothing reloaded or restarted.
    unit = "/etc/containers/systemd/celery-metal/celery-mail@.container"
    old = lab.run(HOST, f"cat {unit}")
    kit.play(celery_queues=TWO)
    new = lab.run(HOST, f"cat {unit}")
    again = "systemctl daemon-reload && systemctl restart celery-mail@1"
    lab.run(HOST, f"cat > {unit} && {again}", stdin=old, timeout=120)
    assert len(kit.children(HOST, "celery-mail-1")) == 1
    lab.run(HOST, f"cat > {unit}", stdin=new)
    kit.play(celery_queues=TWO)
    assert len(kit.children(HOST, "celery-mail-1")) == 2


MEDIA = "/var/lib/containers/lab-media"  # of a file system that can map owners; the root's cannot
TUN = {"path": "/dev/net/tun", "fileMode": 0o600}
CDI = {
    "cdiVersion": "0.6.0",
    "kind": "lab.test/gpu",
    "devices": [{"name": "0", "containerEdits": {"deviceNodes": [TUN]}}],
}
NEEDY = {
    "name": "needy",
    "concurrency": 1,
    "volumes": [
        f"{MEDIA}/50%:/media:idmap=uids=@1234-999-1;gids=@1234-999-1",
        "/srv/lab-read:/read:ro",
    ],
    "ports": ["127.0.0.1:8090:8000"],
    "devices": ["/dev/full:/dev/lab-full:rw"],
    "gpus": ["lab.test/gpu=0"],
    "quadlet": {
        "Container": {"ShmSize": "7m", "Sysctl": "net.ipv4.ip_default_ttl=77"},
        "Service": {"Nice": 7},
    },
}


@pytest.fixture
def needs(lab):
    """What the queue needs of its host."""
    lab.run(HOST, ["mkdir", "-p", "/srv/lab-read", f"{MEDIA}/50%", "/etc/cdi"])
    lab.run(HOST, "chown 1234:1234 '/var/lib/containers/lab-media/50%'; echo in > /srv/lab-read/f")
    lab.run(HOST, "cat > /etc/cdi/lab.json", stdin=json.dumps(CDI))
    yield
    lab.run(HOST, ["rm", "-r", "/srv/lab-read", MEDIA, "/etc/cdi/lab.json"])


def test_volumes_ports_devices_and_more_keys_reach_the_app(change, needs, kit, lab):
    kit.ensure(celery_queues=TWO)
    assert change([*TWO, NEEDY])["new"] == {"celery-needy@1.service"}
    ask = (
        "from metal_sample.tasks import append; from metal_sample.celery import app;"
        "from celery_metal_runtime import configure; configure(app);"
        "print(append.apply_async(('/media/log', 'done'), queue='needy').get(timeout=30), end='')"
    )
    for text in ("done\n", "done\ndone\n"):
        assert lab.run(HOST, ["podman", "exec", "celery-mail-1", "python", "-c", ask]) == text
    # The file is its owner's on the host, and not of some number that only Podman knows.
    assert lab.run(HOST, f"stat -c %u:%g '{MEDIA}/50%/log'") == "1234:1234\n"
    inside = ["podman", "exec", "celery-needy-1"]
    assert lab.run(HOST, [*inside, "cat", "/read/f"]) == "in\n"
    assert not lab.succeeds(HOST, [*inside, "sh", "-c", "echo x > /read/f"])
    lab.run(HOST, [*inside[:2], "-d", inside[2], "python", "-m", "http.server", "8000"])
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8090').status)"
    lab.wait_for(
        lambda: lab.succeeds(HOST, ["python3", "-c", fetch]), 15, "an answer at the port", host=HOST
    )
    full = "import errno, os\ntry: os.write(os.open('/dev/lab-full', os.O_WRONLY), b'x')\n"
    full += "except OSError as error: print(errno.errorcode[error.errno])"
    assert lab.run(HOST, [*inside, "python", "-c", full]) == "ENOSPC\n"
    tun = "import os; os.open('/dev/net/tun', os.O_RDWR)"
    lab.run(HOST, [*inside, "python", "-c", tun])
    assert not lab.succeeds(HOST, ["podman", "exec", "celery-mail-1", "python", "-c", tun])
    assert lab.run(HOST, [*inside, "cat", "/proc/sys/net/ipv4/ip_default_ttl"]) == "77\n"
    size = "import os; one = os.statvfs('/dev/shm'); print(one.f_blocks * one.f_frsize >> 20)"
    assert lab.run(HOST, [*inside, "python", "-c", size]) == "7\n"
    main = kit.main_process(HOST, "celery-needy-1")
    assert lab.run(HOST, f"ps -o ni= -p {main}").strip() == "7"
    assert change([*TWO, NEEDY])["changed"] == 0
    # A port is bound once: its worker is replaced without one beside it, and comes up.
    done = change([*TWO, {**NEEDY, "prefetch": 2}])
    assert done["restarted"] == {"celery-needy@1.service"}


def test_a_worker_does_not_run_without_the_disk_of_its_volume(kit, lab):
    path = "/etc/systemd/system/srv-disk.mount"
    good = "[Mount]\nWhere=/srv/disk\nWhat=/srv/store\nType=none\nOptions=bind\n"
    broken = "[Mount]\nWhere=/srv/disk\nWhat=/srv/no-image\nType=ext4\n"
    lab.run(HOST, ["mkdir", "-p", "/srv/store/data"])
    lab.run(HOST, f"cat > {path}; systemctl daemon-reload", stdin=good)
    lab.run(HOST, ["systemctl", "start", "srv-disk.mount"])
    queue = {"name": "disk", "concurrency": 1, "volumes": ["/srv/disk/data:/data"]}
    unit = "celery-disk@1.service"
    kit.play(celery_queues=[*QUEUES, queue])
    assert unit in kit.services(HOST)
    lab.run(HOST, ["systemctl", "stop", "srv-disk.mount"])
    assert lab.show(HOST, unit, "ActiveState") == "inactive"
    # The disk is broken: neither systemd starts the worker, nor does a run.
    lab.run(HOST, f"cat > {path}; systemctl daemon-reload", stdin=broken)
    before = lab.invocation_ids(HOST, "celery-*.service")
    assert not lab.succeeds(HOST, f"systemctl start {unit}")
    played = kit.play(celery_queues=[*QUEUES, queue], fails=True)
    said = played.said
    assert "Not on this host: /srv/disk/data (volumes of queue disk). Make the directory" in said
    assert lab.invocation_ids(HOST, "celery-*.service") == before
    # It is back: the worker brings it along.
    lab.run(HOST, f"cat > {path}; systemctl daemon-reload", stdin=good)
    lab.run(HOST, ["systemctl", "start", unit])
    assert unit in kit.services(HOST)
    assert lab.succeeds(HOST, "mountpoint -q /srv/disk")
    kit.play(celery_queues=QUEUES)
    lab.run(HOST, f"systemctl stop srv-disk.mount; rm -r {path} /srv/disk /srv/store")
    lab.run(HOST, ["systemctl", "daemon-reload"])


def test_what_does_not_fit_is_missing_on_the_host_or_unknown_to_quadlet_changes_nothing(
    site, kit, lab
):
    before = lab.invocation_ids(HOST, "celery*")
    big = [*QUEUES, {"name": "big", "concurrency": 4, "memory_per_process_mb": 4000}]
    played = kit.play(celery_queues=big, fails=True)
    assert "celery_queues needs" in played.output
    assert 'queue "big"' in played.output
    assert lab.invocation_ids(HOST, "celery*") == before
    bad = {**MAIL, "volumes": ["/no/where:/x"], "devices": ["/dev/no-such"]}
    for words in ([], ["--check"]):
        played = kit.play(*words, celery_queues=[ADD, MULTIPLY, bad], fails=True)
        said = played.said
        assert "Not on this host: /no/where (volumes of queue mail), /dev/no-such (devices" in said
    for section, key in (("Container", "ShmSice"), ("Service", "Nise")):
        bad = {**MAIL, "quadlet": {section: {key: "1"}}}
        played = kit.play(celery_queues=[ADD, MULTIPLY, bad], fails=True)
        said = played.said.replace("''", "'")
        assert "Nothing was written, and what runs goes on." in said
        assert f"'{key}' in " in said
        assert "celery-mail@.container is: Queue mail, Celery worker" in said
    assert lab.invocation_ids(HOST, "celery*") == before
    assert kit.services(HOST) == SERVICES


TOKEN = 'hush-hush 50% of "$HOME" \\ é'
APP = {
    "celery_queues": [ADD, MULTIPLY, {**MAIL, "secrets": [], "environment": {"LEVEL": "low"}}],
    "celery_worker_environment": {"LEVEL": TOKEN.replace("hush", "plain")},
    "celery_worker_secrets": {"TOKEN": TOKEN, "key.pem": "hush-hush\nof two lines\n"},
    "celery_worker_secrets_exported": ["TOKEN"],
    "celery_worker_broker_variables": ["REDIS_URL"],
}


def seen(lab, queue, name):
    """The fingerprint of an environment variable, as a task on that queue finds it."""
    ask = (
        "from metal_sample.tasks import fingerprint;"
        f"print(fingerprint.apply_async(({name!r},), queue={queue!r}).get(timeout=30))"
    )
    return in_worker(lab, "python", "-c", ask).strip()


def in_worker(lab, *command):
    """What a command of its own prints, with the environment of a worker."""
    return lab.run(HOST, ["podman", "exec", "celery-add_queue-1", "celery-metal-run", *command])


def fingerprint(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_an_app_s_environment_and_secrets_reach_their_queues_and_nobody_else(kit, lab, tmp_path):
    begun = lab.run(HOST, "date +%s").strip()
    # From a file: what is on its own command line Ansible shows.
    (tmp_path / "app.json").write_text(json.dumps(APP))
    played = kit.play("-vvvv", "--diff", "-e", f"@{tmp_path}/app.json")
    level = APP["celery_worker_environment"]["LEVEL"]
    assert seen(lab, "add_queue", "LEVEL") == fingerprint(level)
    assert seen(lab, "mail", "LEVEL") == fingerprint("low")
    assert seen(lab, "add_queue", "TOKEN") == fingerprint(TOKEN)
    assert seen(lab, "mail", "TOKEN") == "None"
    read = "podman exec celery-{0}-1 cat /run/secrets/key.pem"
    assert in_worker(lab, "sh", "-c", 'echo "$TOKEN"') == f"{TOKEN}\n"
    ping = "import os, redis; print(redis.Redis.from_url(os.environ['REDIS_URL']).ping())"
    assert in_worker(lab, "python", "-c", ping) == "True\n"
    password = in_worker(lab, "cat", "/run/secrets/celery-redis-password").strip()
    url = f"unix://worker:{password}@/run/redis/redis.sock?db=0"
    assert seen(lab, "mail", "REDIS_URL") == fingerprint(url)
    asked = in_worker(lab, "celery", "-A", "metal_sample.celery", "inspect", "ping")
    assert f"mail-1@{HOST}: OK" in asked
    assert lab.run(HOST, read.format("multiply_queue")) == "hush-hush\nof two lines\n"
    assert not lab.succeeds(HOST, read.format("mail"))
    shown = {
        "Ansible": played.output,
        "podman inspect": lab.run(HOST, "podman inspect $(podman ps -q)"),
        "unit files": lab.run(
            HOST, "cat /etc/containers/systemd/celery-metal/*; systemctl cat 'celery-*'"
        ),
        "processes": lab.run(HOST, "ps -eo args; cat /proc/[0-9]*/environ | tr '\\0' '\\n'"),
        "journal": lab.run(HOST, f"journalctl --no-pager --since @{begun}"),
        "state": lab.run(HOST, "cat /var/lib/celery-metal/*.json /etc/celery-metal/*"),
    }
    assert {
        where for where, text in shown.items() if "hush-hush" in text or password in text
    } == set()
    assert kit.play(**APP).changed == {HOST: 0}


def test_another_secret_restarts_those_that_have_it(kit, lab):
    kit.ensure(**APP)
    before = lab.invocation_ids(HOST, "celery-*.service")
    kit.play(**{**APP, "celery_worker_secrets": {"TOKEN": "another", "key.pem": "hush-hush"}})
    after = lab.invocation_ids(HOST, "celery-*.service")
    assert {unit for unit in before if before[unit] != after[unit]} == {
        "celery-add_queue@1.service",
        "celery-multiply_queue@1.service",
    }
    assert seen(lab, "multiply_queue", "TOKEN") == fingerprint("another")
    kit.play(celery_queues=QUEUES)
    assert "celery-app" not in lab.run(HOST, "podman secret ls --format '{{.Name}}'")
    assert seen(lab, "add_queue", "TOKEN") == "None"


def test_as_many_tasks_for_a_hundred_queues(kit):
    def tasks(queues):
        output = kit.play("--check", celery_queues=queues).output
        return [line for line in output.splitlines() if line.startswith("TASK [")]

    few = [{"name": f"q{n}", "pool": "solo", "memory_per_process_mb": 16} for n in range(4)]
    many = [{"name": f"q{n}", "pool": "solo", "memory_per_process_mb": 16} for n in range(100)]
    assert tasks(few) == tasks(many)
