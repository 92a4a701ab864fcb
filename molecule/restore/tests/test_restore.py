"""Redis loses all, and every task comes back from a backup that was proven when it was made."""

import json
import uuid

import pytest
from lab_fixtures import CommandError

BROKER, WORKER = "broker", "worker"
RESTORE = "playbooks/restore.yml"
BACKUPS = "/var/lib/celery-metal/backups"
DATA = "/var/lib/celery-metal/redis"
SHIPPED = "/var/lib/celery-backup/backups"
KEYS = "/etc/celery-metal/ship"
PROGRAM = "/usr/local/lib/celery-metal/redis_backup.py"
BACKUP = "celery-redis-backup.service"
TIMER = "celery-redis-backup.timer"
SENDING = (
    "from metal_sample.tasks import record; from metal_sample.celery import app;"
    "from celery_metal_runtime import configure; configure(app);"
)


def send(lab, run, *tasks):
    """Send tasks that leave their number in Redis: (number, queue, seconds, options) each."""
    code = SENDING + "".join(
        f"record.apply_async(({run!r}, {number}, {seconds}), queue={queue!r}, **{options});"
        for number, queue, seconds, options in tasks
    )
    lab.run(WORKER, ["podman", "exec", "celery-add_queue-1", "python", "-c", code])


def done(kit, run):
    """Numbers of the tasks that have left one."""
    members = kit.redis(BROKER, "smembers", f"metal_sample.record:{run}").splitlines()
    return {int(line.split()[0]) for line in members if line}


def held(queue):
    return f"celery-metal.held:{queue}-1@{WORKER}:{queue}"


def length(kit, key):
    return int(kit.redis(BROKER, "llen", key))


def backup(lab):
    """Make a backup as the timer does; its name, and what is written beside it."""
    lab.run(BROKER, f"systemctl start {BACKUP} || (journalctl -n 30 -u {BACKUP}; false)")
    found = json.loads(lab.run(BROKER, f"python3 {PROGRAM} list"))
    return list(found.items())[-1]


def state(lab):
    """What no refusal may change: units of both hosts, and the files of data and backups."""
    find = f"find {BACKUPS} /var/lib/celery-metal/redis* -printf '%p %i\n' | sort"
    return [*(lab.invocation_ids(host, "celery*") for host in lab.hosts), lab.run(BROKER, find)]


def refused(kit, lab, name, *texts, **variables):
    before = state(lab)
    played = kit.play(playbook=RESTORE, fails=True, restore_file=name, **variables)
    said = " ".join(played.output.replace("''", "'").split())
    for text in texts:
        assert text in said, said
    assert state(lab) == before


@pytest.fixture(scope="module")
def made(lab):
    """A backup's name."""
    return backup(lab)[0]


def test_a_timer_waits_for_its_time(lab):
    assert lab.show(BROKER, TIMER, "ActiveState") == "active"
    assert lab.show(BROKER, TIMER, "UnitFileState") == "enabled"
    assert lab.show(BROKER, TIMER, "Persistent") == "yes"
    assert lab.show(BROKER, BACKUP, "Slice") == "celery.slice"


def test_a_backup_is_loaded_and_counted(kit, lab):
    kit.redis(BROKER, "del", "elsewhere")
    kit.redis(BROKER, "rpush", "elsewhere", "a", "b", "c")
    kit.redis(BROKER, "set", "result", "x", "ex", "900")
    name, note = backup(lab)
    (database,) = note["databases"].values()
    assert database["lists"]["elsewhere"] == 3
    assert database["keys"] > database["lasting"] > 0
    assert lab.run(BROKER, f"sha256sum < {BACKUPS}/{name}").split()[0] == note["sha256"]
    assert f"{name} can be used" in lab.run(BROKER, f"python3 {PROGRAM} check {name}")
    assert lab.run(BROKER, f"stat -c %a {BACKUPS} {BACKUPS}/{name}").split() == ["700", "600"]
    # Nothing is left of what it was loaded with, nor of the dump.
    assert lab.run(BROKER, "podman ps -a --format '{{.Names}}'").split() == ["celery-redis"]
    assert lab.run(BROKER, f"ls {DATA}").split() == ["appendonlydir"]
    journal = lab.run(BROKER, f"journalctl -u {BACKUP}")
    assert "elsewhere 3" in journal
    assert kit.password(BROKER, "admin") not in journal


def test_without_a_name_the_backups_are_listed(kit, lab, made):
    before = state(lab)
    played = kit.play(playbook=RESTORE)
    assert made in played.output
    assert f"-e restore_confirmed={BROKER}" in played.said
    assert set(played.changed.values()) == {0}
    assert state(lab) == before


def test_a_restore_asks_first(kit, lab, made):
    refused(kit, lab, made, "restore_confirmed is not given. Nothing was changed; run it again")


def test_a_restore_is_for_all_hosts(kit, lab, made):
    before = state(lab)
    words = {"restore_file": made, "restore_confirmed": BROKER}
    played = kit.play("--limit", BROKER, playbook=RESTORE, fails=True, **words)
    assert f"workers on {WORKER}, or Redis, would go on" in played.said
    assert state(lab) == before


def test_a_damaged_backup_is_refused_before_anything_stops(kit, lab):
    name, note = backup(lab)
    path, place = f"{BACKUPS}/{name}", note["bytes"] // 2
    flip = (
        f"f=open({path!r},'r+b'); f.seek({place}); b=f.read(1); f.seek({place});"
        "f.write(bytes([b[0]^1]))"
    )
    lab.run(BROKER, ["python3", "-c", flip])
    refused(kit, lab, name, f"{name} is damaged", "Nothing was changed", restore_confirmed=BROKER)
    # Also when what is written beside it agrees with it, by loading it.
    agree = (
        f"import json,hashlib; p={path!r}; n=json.load(open(p+'.json'));"
        "raw=open(p,'rb').read(); n['bytes']=len(raw); n['sha256']=hashlib.sha256(raw).hexdigest();"
        "json.dump(n,open(p+'.json','w'))"
    )
    lab.run(BROKER, ["python3", "-c", agree])
    refused(kit, lab, name, "a throwaway Redis could not load it", restore_confirmed=BROKER)
    lab.run(BROKER, f"truncate -s -9 {path}")
    refused(kit, lab, name, f"{name} is damaged", restore_confirmed=BROKER)
    lab.run(BROKER, f"rm {path} {path}.json")


def test_every_task_comes_back_after_all_data_are_lost(kit, lab):
    run = uuid.uuid4().hex
    # One that waits in its worker for its time, one that was there earlier, and is done.
    send(lab, run, (0, "add_queue", 0, {}), (1, "add_queue", 0, {"countdown": 40}))
    lab.wait_for(lambda: length(kit, held("add_queue")) == 1, 10, "a task that waits", host=WORKER)
    lab.wait_for(lambda: done(kit, run) == {0}, 10, "a task that is done", host=WORKER)
    # For as long as a backup takes on a busy machine.
    running = [(2, "add_queue", 15, {}), (3, "add_queue", 15, {}), (4, "multiply_queue", 15, {})]
    send(lab, run, *running)
    lab.wait_for(
        lambda: length(kit, held("add_queue")) == 3 and length(kit, held("multiply_queue")) == 1,
        10,
        "tasks that run",
        host=WORKER,
    )
    plain = [(number, "multiply_queue", 0, {}) for number in range(5, 25)]
    urgent = [(number, "multiply_queue", 0, {"priority": 3}) for number in range(25, 30)]
    send(lab, run, *plain, *urgent)
    name, note = backup(lab)
    lists = note["databases"]["0"]["lists"]
    assert lists[held("add_queue")] == 3
    assert lists[held("multiply_queue")] >= 1
    waiting = {key: size for key, size in lists.items() if key.startswith("multiply_queue")}
    assert sorted(waiting.values()) == [5, 20], lists

    # Redis is killed, and comes back with nothing.
    lab.run(BROKER, f"rm -rf {DATA} && podman kill -s KILL celery-redis")
    lab.wait_for(
        lambda: kit.redis(BROKER, "ping") == "PONG",
        30,
        "an empty Redis",
        unit="celery-redis.service",
    )
    assert length(kit, "multiply_queue") == 0
    kit.redis(BROKER, "set", "since", "then")

    checked = kit.play("--check", playbook=RESTORE, restore_file=name, restore_confirmed=BROKER)
    assert f"{name} can be used" in checked.output
    assert kit.redis(BROKER, "get", "since") == "then"
    played = kit.play(playbook=RESTORE, restore_file=name, restore_confirmed=BROKER)
    said = played.said
    assert f"Redis of {BROKER} has the data of {name}" in said
    lab.wait_for(
        lambda: done(kit, run) == set(range(30)), 90, "every task", host=WORKER, unit="celery-*"
    )
    lab.wait_for(
        lambda: not length(kit, held("add_queue")) + length(kit, held("multiply_queue")),
        15,
        "nothing held",
    )
    assert kit.redis(BROKER, "keys", "celery-metal.dead:*") == ""
    assert kit.redis(BROKER, "get", "since") == ""
    assert kit.services(WORKER) >= {
        f"celery-{queue}@1.service" for queue in ("add_queue", "multiply_queue")
    }
    assert not lab.succeeds(WORKER, "test -e /etc/celery-metal/drained")
    # What was replaced is kept, and whole.
    aside = lab.run(BROKER, "ls -d /var/lib/celery-metal/redis-before-*").split()[-1]
    assert aside in said
    assert "since" in lab.run(BROKER, f"cat {aside}/appendonlydir/*.incr.aof")
    assert set(kit.play().changed.values()) == {0}


def ssh(lab, *words):
    """The first half of a command that uses the key for shipping."""
    command = f"ssh -i {KEYS}/key -o UserKnownHostsFile={KEYS}/known_hosts -o BatchMode=yes"
    return " ".join([command, "-o StrictHostKeyChecking=yes", *words])


def test_a_shipped_backup_comes_back_after_those_here_are_lost(kit, lab):
    run = uuid.uuid4().hex
    lab.run(WORKER, "systemctl stop celery-multiply_queue@1")
    send(lab, run, *((number, "multiply_queue", 0, {}) for number in range(9)))
    name, note = backup(lab)
    assert note["databases"]["0"]["lists"]["multiply_queue"] == 9
    shipped = f"{SHIPPED}/{name}"
    assert lab.run(WORKER, f"sha256sum < {shipped}").split()[0] == note["sha256"]
    assert lab.run(WORKER, f"stat -c '%U %a' {shipped}").split() == ["celery-backup", "600"]
    lab.run(BROKER, f"rm {BACKUPS}/redis-*")
    # Redis does not even start.
    lab.run(
        BROKER,
        "systemctl stop celery-redis && echo no > $(ls -d /var/lib/celery-metal/redis/*/*manifest)",
    )
    listed = kit.play(playbook=RESTORE)
    assert f"{name}  only shipped" in listed.output
    kit.play(playbook=RESTORE, restore_file=name, restore_confirmed=BROKER)
    lab.wait_for(lambda: done(kit, run) == set(range(9)), 30, "every task", host=WORKER)


def test_the_key_for_shipping_may_do_nothing_else(lab):
    for wish in ("id", "'put ../../x'", "'get redis-20200101T000000Z.rdb'", ""):
        with pytest.raises(CommandError, match=r"is not done for this key|no name|is not there"):
            lab.run(BROKER, ssh(lab, f"celery-backup@{lab.address(WORKER)}", wish))
    forward = ssh(lab, "-N -o ExitOnForwardFailure=yes -R 2222:localhost:22")
    with pytest.raises(CommandError):
        lab.run(BROKER, f"timeout 10 {forward} celery-backup@{lab.address(WORKER)}")


def in_redis(lab, code):
    """Run a shell's code in Redis's container, as its user."""
    lab.run(BROKER, ["podman", "exec", "celery-redis", "sh", "-ec", code])


def test_root_follows_no_name_that_the_container_of_redis_wrote(lab):
    lab.run(
        BROKER, "for one in link path; do (echo keep; head -c 4096 /dev/zero) > /root/$one; done"
    )
    before = lab.run(BROKER, "cd /root && sha256sum link path && stat -c '%u %a %i' link path")
    in_redis(
        lab,
        "cd /data && mkdir one two && ln -s /root/link one/a.aof && mkfifo one/b.manifest && "
        "echo 'file a.aof seq 1 type i' > one/a.manifest && "
        "echo 'file ../../../../../root/path seq 1 type i' > two/a.manifest && "
        "ln -s /root/link /run/redis/elected.conf.new",
    )
    try:
        lab.run(BROKER, "systemctl restart celery-redis.service")
        said = lab.journal(BROKER, "celery-redis.service")
        # The dump that a backup copies and deletes.
        in_redis(lab, "ln -sf /root/link /data/dump.rdb")
        lab.run(BROKER, f"systemctl start {BACKUP}")
    finally:
        in_redis(lab, "rm -rf /data/one /data/two /data/dump.rdb /run/redis/elected.conf.new")
    assert before == lab.run(
        BROKER, "cd /root && sha256sum link path && stat -c '%u %a %i' link path"
    )
    assert lab.show(BROKER, "celery-redis.service", "ActiveState") == "active"
    assert f"{DATA}/one/a.aof is a symbolic link, so root leaves it alone. Fix: " in said
    assert f"{DATA}/one/b.manifest is a named pipe, so root leaves it alone. Fix: " in said
    assert f"{DATA}/two/../../../../../root/path has a name that Redis gives no file" in said


LIAR = """#!/bin/sh
"$(readlink -f "$0").real" "$@" | sed 's|"source": "[0-9.]*"|"source": "0.0.0.0/0"|'
"""


def test_what_a_compromised_host_reports_opens_no_firewall(kit, lab):
    python = lab.run(WORKER, "readlink -f /usr/bin/python3").strip()
    rules = lab.run(BROKER, "nft list table inet celery_metal")
    lab.run(
        WORKER, f"mv {python} {python}.real && cat > {python} && chmod 755 {python}", stdin=LIAR
    )
    try:
        said = kit.play(fails=True).said
    finally:
        lab.run(WORKER, f"mv {python}.real {python}")
    assert f"host {WORKER}: it reports source" in said, said
    assert "0.0.0.0/0" in said
    assert "which is no single address" in said
    assert lab.run(BROKER, "nft list table inet celery_metal") == rules
    assert set(kit.play().changed.values()) == {0}


def test_another_host_in_its_place_gets_nothing(lab):
    lab.run(BROKER, f"cp {KEYS}/known_hosts /tmp/known && ssh-keygen -q -t ed25519 -N '' -f /tmp/k")
    lab.run(
        BROKER, f"sed -i \"s# ssh-ed25519 .*# $(cut -d' ' -f1,2 /tmp/k.pub)#\" {KEYS}/known_hosts"
    )
    lab.run(BROKER, f"sed -i '/ecdsa\\|rsa/d' {KEYS}/known_hosts")
    try:
        assert not lab.succeeds(BROKER, f"systemctl start {BACKUP}")
        said = lab.run(BROKER, f"journalctl -n 30 -o cat -u {BACKUP}")
        assert "kept here, but not shipped: worker" in said
        assert "Host key verification failed" in said
    finally:
        lab.run(BROKER, f"cp /tmp/known {KEYS}/known_hosts; rm /tmp/known /tmp/k /tmp/k.pub")
    # It is kept here, and comes along with the next.
    kept = list(json.loads(lab.run(BROKER, f"python3 {PROGRAM} list")))[-1]
    assert not lab.succeeds(WORKER, f"test -e {SHIPPED}/{kept}")
    backup(lab)
    assert lab.succeeds(WORKER, f"test -e {SHIPPED}/{kept}")


def test_a_backup_that_fails_is_loud_and_removes_none(lab):
    before = lab.run(BROKER, f"ls {BACKUPS}")
    lab.run(BROKER, "systemctl stop celery-redis.service")
    try:
        assert not lab.succeeds(BROKER, f"systemctl start {BACKUP}")
        assert BACKUP in lab.run(BROKER, "systemctl --failed --plain --no-legend")
        said = lab.run(BROKER, f"journalctl -n 20 -o cat -u {BACKUP}")
        assert "Redis does not answer" in said
    finally:
        lab.run(BROKER, "systemctl start celery-redis.service")
    assert lab.run(BROKER, f"ls {BACKUPS}") == before
    lab.run(BROKER, f"systemctl start {BACKUP}")
    assert lab.show(BROKER, BACKUP, "Result") == "success"


def test_backups_follow_what_is_declared(kit, lab):
    def next_time():
        return lab.show(BROKER, TIMER, "NextElapseUSecRealtime")

    redis = lab.invocation_ids(BROKER, "celery-redis.service")
    before = next_time()
    declared = {
        "redis_backup_calendar": "2030-01-02 03:04:05",
        "redis_backup_keep_days": 0,
        "redis_backup_keep_at_least": 2,
    }
    kit.play("--limit", BROKER, **declared)
    assert "2030-01-02 03:" in next_time() != before
    names = [backup(lab)[0] for _ in range(3)]
    left = json.loads(lab.run(BROKER, f"python3 {PROGRAM} list"))
    assert list(left) == names[1:]
    kit.play("--limit", BROKER, redis_backup=False)
    assert lab.run(BROKER, f"systemctl list-units --all --plain --no-legend '{TIMER}'") == ""
    assert not lab.succeeds(BROKER, f"systemctl cat {BACKUP}")
    assert lab.invocation_ids(BROKER, "celery-redis.service") == redis


def test_removal_leaves_what_was_saved_and_lets_the_key_in_no_more(kit, lab):
    saved = lab.run(BROKER, f"ls {BACKUPS}"), lab.run(WORKER, f"ls {SHIPPED}")
    played = kit.play(playbook="playbooks/remove.yml", remove_confirmed=True)
    assert BACKUPS in played.output
    assert (lab.run(BROKER, f"ls {BACKUPS}"), lab.run(WORKER, f"ls {SHIPPED}")) == saved
    for host in lab.hosts:
        left = "find /etc /run /usr/local /var/lib/systemd -xdev -name '*celery*'"
        assert lab.run(host, left) == ""
    assert not lab.succeeds(WORKER, "test -e /var/lib/celery-backup/.ssh/authorized_keys")
