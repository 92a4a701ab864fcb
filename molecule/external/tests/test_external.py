"""A Redis that somebody else runs is the broker; one that is not fit for it is refused."""

import threading
from urllib.parse import quote

import pytest
from celery import Celery

STORE, WORKER, QUEUE = "store", "worker", "add_queue"
CONTAINER = f"celery-{QUEUE}-1"
PASSWORD = "of-the-lab/1"
PORTS = {"redis": 6379, "valkey": 6380}


def cli(lab, *words, server="redis"):
    """What an owner of that Redis would type."""
    command = ["env", "REDISCLI_AUTH=of-the-lab", "redis-cli", "--user", "admin", "--raw"]
    return lab.run(STORE, [*command, "-p", str(PORTS[server]), *words]).strip()


def url(lab, user="worker", port=6379, scheme="redis"):
    return f"{scheme}://{user}@{lab.address(STORE)}:{port}/0"


def ids(lab):
    return lab.invocation_ids(WORKER, "celery-*.service")


@pytest.fixture
def unchanged(lab):
    """Fails when the test has restarted a worker."""
    before = ids(lab)
    assert before
    yield
    assert ids(lab) == before


def flows(kit, count=100):
    report = kit.smoke(WORKER, CONTAINER, QUEUE, count=count)[QUEUE]
    assert report["missing"] == report["wrong"] == 0


def refuses(kit, *texts, **variables):
    played = kit.play(fails=True, **variables)
    said = " ".join(played.output.replace("''", "'").split())
    for text in (*texts, "Nothing was changed."):
        assert text in said, played.output
    assert set(played.changed.values()) == {0}
    return said


def test_tasks_flow_through_it_and_the_kit_runs_no_redis(kit, lab):
    flows(kit)
    clients = cli(lab, "client", "list").splitlines()
    assert any(f"addr={lab.address(WORKER)}:" in one and "user=worker" in one for one in clients)
    for host in (STORE, WORKER):
        assert "celery-redis" not in lab.run(host, "podman ps --all --format '{{.Names}}'")
        assert lab.properties(host, "celery-redis*", "ActiveState") == {}
    assert kit.plan(WORKER)["redis"] is None
    found = kit.status()
    assert found["redis_error"] == ""
    assert found["waiting"] == {QUEUE: 0}


def test_what_cannot_be_used_is_refused(kit, lab, unchanged):
    said = refuses(
        kit, "it does not take the password of the user worker", redis_external_password="hush-hush"
    )
    assert "hush" not in said
    refuses(
        kit,
        f"redis_external_url is {url(lab, port=1)}: - host worker: it cannot be reached: Conn",
        redis_external_url=url(lab, port=1),
    )
    refuses(
        kit,
        f"the user meek may not: BLMOVE {QUEUE}: grant it what docs/external.md lists; or accept",
        redis_external_url=url(lab, "meek"),
        redis_external_password="of-the-lab",
    )
    cli(lab, "replicaof", "127.0.0.1", "1", server="valkey")
    try:
        refuses(kit, "it is a replica: name the primary", redis_external_url=url(lab, port=6380))
    finally:
        cli(lab, "replicaof", "no", "one", server="valkey")


def test_what_is_not_safe_is_refused_unless_it_is_accepted(kit, lab, unchanged):
    cli(lab, "config", "set", "appendonly", "no", "save", "", "maxmemory-policy", "allkeys-lru")
    try:
        unsafe = (
            "its maxmemory-policy is allkeys-lru: when it is full it deletes tasks",
            "it has no append-only file: it makes no snapshots either, and all is lost",
        )
        refuses(kit, *unsafe, "or accept it: redis_external_accept: [eviction].")
        played = kit.play(redis_external_accept=["eviction", "persistence"])
        assert "accepted (eviction): its maxmemory-policy is allkeys-lru" in played.output
        assert set(played.changed.values()) == {0}
    finally:
        cli(lab, "config", "set", "appendonly", "yes", "maxmemory-policy", "noeviction")


def test_what_is_its_owner_s_business_is_refused(kit, unchanged):
    for playbook in ("playbooks/restore.yml", "playbooks/rotate-secrets.yml"):
        refuses(kit, "redis_mode is external: ", playbook=playbook)


@pytest.fixture
def outside(lab):
    """A program that sends tasks."""
    address = url(lab).replace("worker@", f"worker:{quote(PASSWORD, safe='')}@")
    app = Celery("outside", broker=address, backend=address, set_as_current=False)
    app.conf.broker_transport_options = {"socket_timeout": 5}
    yield app
    app.close()


def send(app, number):
    return app.send_task("metal_sample.tasks.add", (number, 1), queue=QUEUE, retry=True).id


def all_done(lab, sent):
    keys = [f"celery-task-meta-{task}" for task in sent]
    done = str(len(sent))
    lab.wait_for(lambda: cli(lab, "exists", *keys) == done, 120, "all tasks are done", host=WORKER)


def test_one_that_is_left_is_empty(kit, lab, outside, tmp_path):
    lab.run(WORKER, f"systemctl stop celery-{QUEUE}@1")
    sent = [send(outside, number) for number in range(3)]
    before = ids(lab)
    there = {"redis_external_url": url(lab, port=6380)}
    refuses(
        kit,
        f"host worker: the broker until now, {url(lab)}, has tasks that no worker would do any "
        "more: 3 in add_queue. Have what sends tasks wait",
        **there,
    )
    assert "They are left there." in kit.play("--check", broker_left=True, **there).output
    # The same Redis by another address.
    ca = tmp_path / "ca.pem"
    ca.write_text(lab.run(STORE, "cat /etc/redis/ca.pem"))
    tls = {"redis_external_url": url(lab, port=6390, scheme="rediss"), "redis_external_ca": str(ca)}
    kit.play("--check", **tls)
    assert ids(lab) == before
    lab.run(WORKER, f"systemctl start celery-{QUEUE}@1")
    all_done(lab, sent)


def test_a_restart_of_it_loses_no_task(lab, outside):
    restart = threading.Thread(target=lab.run, args=(STORE, "systemctl restart redis-server"))
    sent = []
    for number in range(400):
        if number == 200:
            restart.start()
        sent.append(send(outside, number))
    restart.join()
    all_done(lab, sent)


def test_a_new_password_is_taken_and_seen_nowhere(kit, lab):
    before = ids(lab)
    cli(lab, "acl", "setuser", "worker", ">of-the-lab/2")
    kit.play(playbook="playbooks/upgrade.yml", redis_external_password="of-the-lab/2")
    cli(lab, "acl", "setuser", "worker", f"<{PASSWORD}")
    after = ids(lab)
    assert before.keys() == after.keys()
    assert all(before[unit] != after[unit] for unit in before)
    flows(kit)
    seen = lab.run(
        WORKER,
        "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n';"
        "systemctl cat 'celery*'; journalctl --boot; podman inspect $(podman ps -q);"
        "cat /etc/celery-metal/*",
    )
    assert "redis://worker@" in seen
    assert "of-the-lab" not in seen
    kit.play(redis_external_password="of-the-lab/2")
    assert ids(lab) == after
    cli(lab, "acl", "setuser", "worker", f">{PASSWORD}")


def test_with_tls_it_is_checked_and_checks(kit, lab, tmp_path):
    paths = {}
    for name in ("ca", "client"):
        paths[name] = tmp_path / f"{name}.pem"
        paths[name].write_text(lab.run(STORE, f"cat /etc/redis/{name}.pem"))
    tls = {"redis_external_url": url(lab, port=6390, scheme="rediss")}
    before = ids(lab)
    refuses(kit, "its certificate is not accepted: ", **tls)
    cli(lab, "config", "set", "tls-auth-clients", "yes")
    tls["redis_external_ca"] = str(paths["ca"])
    refuses(kit, "give the certificate that it asks for as redis_external_certificate", **tls)
    tls["redis_external_certificate"] = str(paths["client"])
    assert ids(lab) == before
    kit.play(**tls)
    flows(kit)
    assert "rediss://" in kit.environment(WORKER, CONTAINER)["CELERY_METAL_BROKER"]
    status = kit.play(playbook="playbooks/status.yml", **tls)
    assert "gave no answer" not in status.output


SENTINELS = (26379, 26380, 26381)
ELECT = """
set -e
folder=/etc/redis/elected conf=/etc/redis/redis.conf
mkdir -p $folder/replica
printf 'masteruser admin\\nmasterauth of-the-lab\\nrepl-diskless-sync-delay 0\\n' >> $conf
sed "s/^port .*/port 6381/; s,^dir .*,dir $folder/replica,; /^tls-/d" $conf > $folder/redis.conf
echo replicaof ADDRESS 6379 >> $folder/redis.conf
for port in 26379 26380 26381; do
  cat > $folder/$port.conf <<END
port $port
bind 0.0.0.0
protected-mode no
sentinel monitor mine ADDRESS 6379 2
sentinel auth-user mine admin
sentinel auth-pass mine of-the-lab
sentinel down-after-milliseconds mine 5000
sentinel failover-timeout mine 5000
END
done
chown -R redis: $folder
run="systemd-run --uid=redis --property=Restart=on-failure"
$run --unit=elected-redis redis-server $folder/redis.conf --daemonize no
for port in 26379 26380 26381; do
  $run --unit=elected-$port redis-server $folder/$port.conf --sentinel
done
"""


def elected(lab, port=26379):
    """Port of the primary, as a Sentinel has it."""
    words = ["redis-cli", "-p", str(port), "--raw", "sentinel", "get-master-addr-by-name", "mine"]
    return int(lab.run(STORE, words).split()[1])


def followed(lab):
    """Whether the primary has a replica, which a busy machine may elect in its place."""
    primary = {6379: "redis", 6381: "second"}[elected(lab)]
    return "min_slaves_good_slaves:1" in cli(lab, "info", "replication", server=primary)


def known(lab, port):
    """How many others a Sentinel knows, and how many replicas."""
    words = ["redis-cli", "-p", str(port), "--raw", "sentinel", "master", "mine"]
    lines = lab.run(STORE, words).splitlines()
    said = dict(zip(lines[::2], lines[1::2], strict=True))
    return said["num-other-sentinels"], said["num-slaves"]


def test_the_primary_that_sentinels_elect_is_followed(kit, lab):
    address = lab.address(STORE)
    lab.run(STORE, ELECT.replace("ADDRESS", address))
    for port in SENTINELS:
        lab.wait_for(lambda port=port: known(lab, port) == ("2", "1"), 30, "they know one another")
    hosts = ",".join(f"{address}:{port}" for port in SENTINELS)
    there = f"sentinel://worker@{hosts}/0?master_name=mine"
    refuses(kit, "a Sentinel refuses the user worker: ", redis_external_url=there)
    there += "&sentinel_auth=no"
    wrong = there.replace("=mine", "=other")
    refuses(kit, "they watch no Redis of the name other", redis_external_url=wrong)
    refuses(kit, "its min-replicas-to-write is 0", "[replicas]", redis_external_url=there)
    PORTS["second"] = 6381
    for server in ("redis", "second"):
        cli(lab, "config", "set", "min-replicas-to-write", "1", server=server)
    kit.play(redis_external_url=there)
    flows(kit)
    before = ids(lab)
    lab.run(STORE, "systemctl stop redis-server")
    lab.wait_for(lambda: elected(lab) == 6381, 60, "another is elected", host=STORE)
    lab.run(STORE, "systemctl start redis-server")
    lab.wait_for(lambda: followed(lab), 120, "the primary has a replica", host=STORE)
    flows(kit)
    assert ids(lab) == before
    played = kit.play(playbook="playbooks/status.yml", redis_external_url=there)
    assert "gave no answer" not in played.output
    assert kit.play(redis_external_url=there).changed == {WORKER: 0}
    lab.run(STORE, "systemctl stop 'elected-*'")


def test_a_valkey_does_as_well_and_removal_leaves_it(kit, lab):
    there = {"redis_external_url": url(lab, port=6380)}
    kit.play(**there)
    flows(kit)
    assert int(cli(lab, "dbsize", server="valkey")) >= 100
    # Those of TLS are not wanted any more.
    assert lab.run(WORKER, "podman secret ls --noheading --format '{{.Name}}'").split() == [
        "celery-redis-worker"
    ]
    kit.play(playbook="playbooks/remove.yml", remove_confirmed=True, **there)
    assert lab.run(WORKER, "podman secret ls --noheading --format '{{.Name}}'") == ""
    assert lab.properties(WORKER, "celery-*", "ActiveState") == {}
    assert cli(lab, "ping", server="valkey") == "PONG"
