"""A new version under load: no queue pauses, no task is lost; a broken one goes back."""

import itertools
import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

FIRST, SECOND = "first", "second"
HOSTS = (FIRST, SECOND)
ADD_QUEUE = {"name": "add_queue", "concurrency": 1}
SAMPLE = Path(__file__).resolve().parents[3] / "app/sample"
SEND = """
from celery_metal_runtime import configure
from metal_sample.celery import app
from metal_sample.tasks import wait

configure(app)
with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:
    for number in range({count}):
        wait.apply_async(({seconds},), queue={queue!r}, producer=producer)
"""
# Tasks that wait for their time, and one that is never revoked; their IDs. Celery looks at stamps
# when a task is due.
SEND_LATER = """
from celery_metal_runtime import configure
from metal_sample.celery import app
from metal_sample.tasks import wait

configure(app)
for batch in ("", "", "", {batch!r}, "another"):
    seconds = 15 if batch == {batch!r} else 36000
    task = wait.signature((0,), queue="add_queue", countdown=seconds)
    if batch:
        task.stamp(batch=batch)
    print(task.apply_async().id)
"""
REVOKE = """
import sys
from celery_metal_runtime import configure
from metal_sample.celery import app

configure(app)
app.control.revoke(sys.argv[2:])
app.control.revoke_by_stamped_headers({"batch": sys.argv[1]})
"""
# Of each task that is done: when, and who asked for how long.
DONE = """
local lines = {}
for _, key in ipairs(redis.call('KEYS', 'celery-task-meta-*')) do
  local meta = cjson.decode(redis.call('GET', key))
  table.insert(lines, meta.status .. ' ' .. meta.result .. ' ' .. meta.date_done)
end
return lines
"""
TAKE_BACK = """
local count = redis.call('LLEN', KEYS[1])
redis.call('DEL', KEYS[1])
return count
"""


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    """Makes sources of the sample app that differ from it: by a line at the end of a file."""

    def make(name, file, line):
        folder = tmp_path_factory.mktemp(name) / "app"
        shutil.copytree(SAMPLE, folder)
        with (folder / file).open("a") as changed:
            changed.write(f"\n{line}\n")
        return str(folder)

    return make


@pytest.fixture
def send(kit, lab):
    def send(queue, seconds, count):
        text = SEND.format(queue=queue, seconds=seconds, count=count)
        lab.run(FIRST, ["podman", "exec", "celery-reports-1", "python", "-c", text])

    return send


@pytest.fixture(scope="module")
def large(kit):
    """A queue whose worker does not fit beside itself on the second host; one of add_queue does.

    It runs nowhere yet.
    """
    kit.ensure(celery_queues=[ADD_QUEUE])
    free = kit.plan(SECOND)["totals"]["free_mb"]
    return {"name": "large", "concurrency": 1, "memory_per_process_mb": free - 450}


@pytest.fixture
def images(lab):
    def images():
        shown = (
            "podman ps --filter name=celery-add --filter name=celery-reports --format '{{.Image}}'"
        )
        return {host: set(lab.run(host, shown).split()) for host in HOSTS}

    return images


def done(kit):
    """Seconds to the sorted moments at which tasks of that duration were done."""
    found = {}
    for line in kit.redis(FIRST, "eval", DONE, "0").splitlines():
        status, seconds, moment = line.split()
        assert status == "SUCCESS"
        found.setdefault(float(seconds), []).append(datetime.fromisoformat(moment).timestamp())
    return {seconds: sorted(moments) for seconds, moments in found.items()}


def state(kit, task):
    """What Redis knows of a task: its state, or nothing while it waits."""
    found = kit.redis(FIRST, "get", f"celery-task-meta-{task}").strip()
    return json.loads(found)["status"] if found else ""


def test_an_upgrade_pauses_no_queue_and_finishes_what_runs(kit, lab, version, send, images):
    before = images()
    assert before[FIRST] == before[SECOND]
    # Enough for the whole upgrade, at 20 a second of each worker.
    send("add_queue", 0.05, 6000)
    send("reports", 30, 2)  # one for each host: longer than its upgrade takes
    setting = "app.conf.broker_transport_options = {'visibility_timeout': 60}"
    source = version("better", "metal_sample/celery.py", setting)
    hooks = {"before_workers": ["echo BEFORE"], "after_workers": ["echo AFTER"]}
    played = kit.play(playbook="playbooks/upgrade.yml", image_app_source=source, deploy_hooks=hooks)
    # Once for the fleet: before the first worker, and after the last.
    told = re.findall(r"^(?:BEFORE|AFTER|TASK .*Replace the workers)", played.output, re.M)
    assert [one[:6].strip() for one in told] == ["BEFORE", "TASK [", "TASK [", "AFTER"]
    assert int(kit.redis(FIRST, "llen", "add_queue")) > 100, (
        "the load has ended before the upgrade: nothing was measured"
    )
    # What the app sets and does not get is a warning, once for the fleet, and in the summary.
    raised = "visibility_timeout 60 of the app is raised to "
    assert played.said.count(raised) == 2
    assert " ".join(played.stdout.partition("SUMMARY ***")[2].split()).count(raised) == 1
    assert "would be run twice (workers of add_queue, reports)" in played.said
    now = images()
    assert now[FIRST] == now[SECOND] != before[FIRST]
    for host in HOSTS:
        assert kit.services(host) >= {"celery-add_queue@1.service", "celery-reports@1.service"}
        assert not [unit for unit in kit.services(host) if "surge" in unit]
        assert played.changed[host]
    finished = done(kit)
    assert len(finished[30.0]) == 2
    moments = finished[0.05]
    pause = max(later - one for one, later in itertools.pairwise(moments))
    # Measured beside it, for a busy machine: how long one worker takes to start.
    begun = time.monotonic()
    lab.run(SECOND, ["systemctl", "restart", "celery-add_queue@1.service"], timeout=120)
    start = time.monotonic() - begun
    assert pause < max(2, start), f"{pause:.1f} s, and a worker starts in {start:.1f} s"
    # What was sent is done, or still waits: the rest of the load is taken back.
    waiting = int(kit.redis(FIRST, "eval", TAKE_BACK, "1", "add_queue"))
    lab.wait_for(lambda: len(done(kit)[0.05]) == 6000 - waiting, 120, "the others are done")
    for host in HOSTS:
        assert lab.show(host, "celery-add_queue@1.service", "NRestarts") == "0"


def test_a_broken_version_goes_back_and_later_hosts_are_untouched(kit, lab, version, images):
    before, units = images(), {}
    for host in HOSTS:
        units[host] = lab.invocation_ids(host, "celery-*@1.service")
    source = version("broken", "metal_sample/tasks.py", "raise SystemError('a broken version')")
    played = kit.play(playbook="playbooks/upgrade.yml", fails=True, image_app_source=source)
    assert "a broken version" in played.output, "the journal of what failed"
    assert (
        "The previous version is back, its unit files too, and all units are up." in played.output
    )
    assert "first: systemctl start failed for celery-" in played.output
    assert images() == before
    for host in HOSTS:
        # Not even restarted: the broken instances ran beside them.
        assert lab.invocation_ids(host, "celery-*@1.service") == units[host]
        assert "surge" not in lab.run(host, "systemctl list-units --all --plain 'celery-*'")
        assert lab.run(host, "systemctl list-units --failed --no-legend 'celery*'") == ""
        image = next(iter(before[host]))
        shown = lab.run(host, "cat /etc/containers/systemd/celery-metal/*@.container")
        assert shown.count(f"Image={image}\n") == 2


def test_rollback_goes_to_a_kept_version_only(kit, lab, version, images):
    def kept_on(host):
        return json.loads(lab.run(host, "cat /var/lib/celery-metal/workers.json"))["images"]

    if len(kept_on(SECOND)) == 1:  # no test before has upgraded
        source = version("other", "metal_sample/tasks.py", "OTHER = 1")
        kit.play(playbook="playbooks/upgrade.yml", image_app_source=source)
    kept = kept_on(SECOND)
    assert len(kept) == 2
    assert images()[FIRST] == {kept[-1]}
    listed = kit.play(playbook="playbooks/rollback.yml")
    assert set(listed.changed.values()) == {0}
    for image in kept:
        assert f"- {image.rpartition(':')[2]} (built 20" in listed.said
    played = kit.play(playbook="playbooks/rollback.yml", fails=True, rollback_version="no-such")
    assert "rollback_version is no-such" in played.said
    assert kept[0].rpartition(":")[2] in played.output
    # As "podman system prune -a" leaves one of the hosts.
    tag = kept[0].rpartition(":")[2]
    lab.run(SECOND, f"podman tag {kept[0]} other:1 && podman untag {kept[0]} {kept[0]}")
    before = images()
    played = kit.play(playbook="playbooks/rollback.yml", fails=True, rollback_version=tag)
    assert f"{SECOND}: rollback_version is {tag}, and its image was removed" in played.said
    assert f"the newest last: - {kept[1].rpartition(':')[2]} (built 20" in played.said
    assert images() == before
    lab.run(SECOND, f"podman tag other:1 {kept[0]} && podman untag other:1 other:1")
    kit.play(playbook="playbooks/rollback.yml", rollback_version=tag)
    assert images() == {host: {kept[0]} for host in HOSTS}
    report = kit.smoke(FIRST, "celery-add_queue-1", "add_queue", count=20)["add_queue"]
    assert report["done"] == report["sent"]


def test_what_was_revoked_does_not_run_whatever_restarts_the_fleet(kit, lab, version):
    def everywhere(command):
        with ThreadPoolExecutor() as pool:
            list(pool.map(command, HOSTS))

    def count(*words):
        return int(kit.redis(FIRST, *words))

    def is_heard(number):
        return count("zcard", "celery-metal.revoked") == number

    def are_revoked(tasks):
        return {state(kit, one) for one in tasks} == {"REVOKED"}

    source = version("next", "metal_sample/tasks.py", "NEXT = 1")
    events = {
        "restart": lambda: everywhere(
            lambda host: lab.run(host, "systemctl restart celery.target")
        ),
        "upgrade": lambda: kit.play(playbook="playbooks/upgrade.yml", image_app_source=source),
        "rotation": lambda: kit.play(playbook="playbooks/rotate-secrets.yml"),
        "boot": lambda: everywhere(lab.reboot),
    }
    inside = ["podman", "exec", "celery-add_queue-1", "python", "-c"]
    for number, (name, happens) in enumerate(events.items(), 1):
        *sent, other = lab.run(FIRST, [*inside, SEND_LATER.format(batch=name)]).split()
        lab.wait_for(lambda: count("llen", "add_queue") == 0, 60, "workers have them")
        lab.run(FIRST, [*inside, REVOKE, name, *sent[:3]])
        lab.wait_for(partial(is_heard, 4 * number), 60, "the revokes were heard")
        happens()
        lab.wait_for(partial(are_revoked, sent), 120, f"{name}: they are revoked")
        assert state(kit, other) == ""


def test_a_redis_that_does_not_come_up_goes_back(kit, lab):
    played = kit.play(fails=True, redis_extra_config={"no-such-directive": "1"})
    said = played.said
    assert "first: systemctl restart failed for celery-redis.service" in said
    assert "no-such-directive" in said, "the journal of what failed"
    assert "The previous version is back, its unit files too, and all units are up." in said
    assert lab.show(FIRST, "celery-redis.service", "ActiveState") == "active"
    report = kit.smoke(FIRST, "celery-add_queue-1", "add_queue", count=20)["add_queue"]
    assert report["done"] == report["sent"]
    # The next run finds nothing of it.
    assert set(kit.play("--check").changed.values()) == {0}


def test_new_workers_that_cannot_reach_redis_are_given_up_and_nothing_is_removed(kit, lab):
    units = lab.invocation_ids(SECOND, "celery-*@1.service")
    removed = "celery-reports@1.service"
    of_first = lab.invocation_ids(FIRST, removed)
    without = {"celery_queues": [ADD_QUEUE]}
    level = {"celery_worker_log_level": "warning"}
    with lab.cut_off(SECOND, FIRST, 6379):
        played = kit.play(fails=True, **without, **level)
    said = played.said
    told = "second: systemctl start: Redis does not answer celery-add_queue@surge1"
    assert told in said, played.output
    assert "firewall" in said
    # The old ones were not touched, and work on.
    assert lab.invocation_ids(SECOND, "celery-*@1.service") == units
    assert not [unit for unit in kit.services(SECOND) if "surge" in unit]
    report = kit.smoke(SECOND, "celery-add_queue-1", "add_queue", count=20)["add_queue"]
    assert report["done"] == report["sent"]
    # Where the new ones work the removed queue's are there until they do everywhere.
    assert lab.invocation_ids(FIRST, removed) == of_first
    assert len(of_first) == 1
    # And come back at a boot.
    assert lab.run(FIRST, f"systemctl is-enabled {removed}").strip() == "generated"
    report = kit.smoke(FIRST, "celery-reports-1", "reports", count=5)["reports"]
    assert report["done"] == report["sent"]
    kit.play(**without)
    for host in HOSTS:
        assert kit.services(host) & {removed, "celery-add_queue@1.service"} == {
            "celery-add_queue@1.service"
        }
        assert lab.run(host, "find /etc /run/systemd -name '*celery-reports*'") == ""


def test_what_does_not_fit_beside_the_old_rolls_alone(kit, lab, large):
    kit.play(celery_queues=[ADD_QUEUE, large])
    played = kit.play(celery_queues=[ADD_QUEUE, large | {"prefetch": 7}])
    assert "with no new worker beside the old one: large" in played.said
    for host, beside in ((FIRST, True), (SECOND, False)):
        log = lab.run(host, "journalctl --no-pager -o cat -u 'celery-large@surge1.service'")
        assert ("ready" in log) == beside
        assert "celery-large@1.service" in kit.services(host)


def test_what_made_room_works_again_when_another_host_fails(kit, lab, large):
    kit.ensure(celery_queues=[ADD_QUEUE, large | {"prefetch": 7}])  # as the test above ends
    unit, new = "celery-large@1.service", "celery-other@1.service"
    before = lab.invocation_ids(FIRST, unit)
    # Not beside large, which is removed.
    size = kit.plan(FIRST)["totals"]["free_mb"]
    other = {"name": "other", "concurrency": 1, "memory_per_process_mb": size, "hosts": [FIRST]}
    folder = "/etc/containers/systemd/celery-add_queue@.container.d"
    broken = "[Container]\nEnvironment=PYTHONHOME=/nowhere\n"
    lab.run(SECOND, f"mkdir -p {folder} && cat > {folder}/broken.conf", stdin=broken)
    played = kit.play(
        fails=True,
        celery_queues=[ADD_QUEUE, other],
        celery_worker_log_level="warning",
    )
    lab.run(SECOND, f"rm -r {folder} && systemctl daemon-reload")
    assert f"{unit} had made room for workers of this run, which has failed" in played.said
    assert "FAILED second: systemctl start failed for celery-add_queue@surge1" in played.said
    assert new in lab.run(FIRST, "journalctl --no-pager -o cat -b _PID=1 | grep celery-other")
    after = lab.invocation_ids(FIRST, unit)
    assert after.keys() == before.keys() == {unit}
    assert after != before
    assert lab.run(FIRST, "find /etc /run/systemd -name '*celery-other*'") == ""
    for host in HOSTS:
        assert new not in kit.services(host)
        assert unit in kit.services(host)
    report = kit.smoke(FIRST, "celery-large-1", "large", count=20)["large"]
    assert report["done"] == report["sent"]
