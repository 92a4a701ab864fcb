"""Removal takes everything but the data, says so, and touches nothing that is not the kit's."""

import json

HOST = "metal"
OVERCOMMIT = "/proc/sys/vm/overcommit_memory"
REMOVE = "playbooks/remove.yml"
SEND = (
    "from metal_sample.tasks import add; from metal_sample.celery import app;"
    "from celery_metal_runtime import configure; configure(app);"
    "print(add.apply_async((40, 2), queue='later').id)"
)
OLD = "localhost/celery-metal/app:old"
# Of a build that is killed at a step, Podman leaves the containers of its stages.
INTERRUPTED_BUILD = """
mkdir /run/build
printf 'FROM %s\\nENV left=behind\\nRUN ["/usr/bin/busybox", "sleep", "600"]\\n' \
    {image} > /run/build/Containerfile
podman build --network=host /run/build > /run/build/log 2>&1 < /dev/null & build=$!
for _ in $(seq 600); do pgrep -f '^/usr/bin/busybox sleep 600' > /dev/null && break; sleep 0.1; done
kill -KILL $build; wait $build
pkill -KILL -f '^/usr/bin/busybox sleep 600'
rm -r /run/build
"""


def interrupt_a_build(lab, image):
    lab.run(HOST, INTERRUPTED_BUILD.replace("{image}", image))
    assert "buildah" in lab.run(HOST, "podman ps --all --external")


def test_removal_asks_first(kit, lab):
    before = lab.invocation_ids(HOST, "celery*")
    played = kit.play(playbook=REMOVE, fails=True)
    assert "remove_confirmed=true" in played.output
    assert "remove_confirmed is False. Nothing was changed" in played.said
    assert lab.invocation_ids(HOST, "celery*") == before


def test_a_host_keeps_its_destination(kit, lab, tmp_path):
    inventories = {}
    for name in ("production", "staging"):
        inventories[name] = kit.inventory_with_redis(tmp_path / name, HOST)
        (tmp_path / name / "group_vars/celery.yml").write_text(f"deploy_destination: {name}\n")
    before = lab.invocation_ids(HOST, "celery*")
    played = kit.play(inventory=inventories["production"])
    assert "destination production" in played.output
    assert "SUMMARY of production" in played.output
    assert lab.invocation_ids(HOST, "celery*") == before
    recorded = f"{HOST}: deployed for destination production"
    for playbook in ("playbooks/drain.yml", "site.yml"):
        played = kit.play(
            "-e",
            "destination=staging",
            playbook=playbook,
            inventory=inventories["staging"],
            fails=True,
            drain_all=True,
        )
        assert f"{recorded} (/var/lib/celery-metal/destination.json)" in played.said
        assert played.changed == {HOST: 0}
    # Without a destination, too; and back, for the tests below.
    assert kit.status()["destinations"] == {HOST: "production"}
    kit.play(destination_was="production")
    assert kit.status()["destinations"] == {}
    assert lab.invocation_ids(HOST, "celery*") == before


def test_a_drain_leaves_redis_alone(kit, lab):
    before = lab.invocation_ids(HOST, "celery-redis.service")
    # The only host is every host.
    played = kit.play("--limit", HOST, playbook="playbooks/drain.yml", fails=True)
    assert "drain_all is False. Nothing was changed." in played.said
    assert len(kit.services(HOST)) > 1
    kit.play(playbook="playbooks/drain.yml", drain_all=True)
    assert kit.services(HOST) == {"celery-redis.service"}
    assert lab.invocation_ids(HOST, "celery-redis.service") == before
    played = kit.play()
    assert played.changed == {HOST: 0}
    assert f"{HOST} is drained" in played.output
    kit.play(playbook="playbooks/undrain.yml")
    assert len(kit.services(HOST)) > 1


def test_images_that_were_pruned_have_a_remedy(kit, lab):
    image = lab.run(HOST, "podman images --format '{{.Repository}}:{{.Tag}}' | grep /app:").strip()
    kit.play(playbook="playbooks/drain.yml", drain_all=True)
    # As "podman system prune -a" does on a drained host; what the image is built on takes a minute.
    lab.run(HOST, ["podman", "rmi", image])
    played = kit.play(playbook="playbooks/undrain.yml", fails=True)
    assert f"the workers need {image}, which this host does not have any more" in played.said
    assert "Fix: run ansible-playbook site.yml" in played.said
    assert lab.succeeds(HOST, "test -e /etc/celery-metal/drained")
    # By hand, and without a look first.
    lab.run(HOST, "rm /etc/celery-metal/drained; systemctl start --no-block celery-add_queue@1")
    reason = f"The image {image} is not on this host any more. Fix: ansible-playbook site"
    lab.wait_for(
        lambda: reason in lab.journal(HOST, "celery-add_queue@1", 20), 60, "the journal says why"
    )
    kit.play()
    assert "celery-add_queue@1.service" in kit.services(HOST)


def test_an_image_that_a_power_cut_has_emptied_is_named_and_brought_again(kit, lab):
    def images():
        listed = json.loads(lab.run(HOST, "podman images --format json"))
        return {name: one["Id"] for one in listed for name in one.get("Names") or []}

    def on_disk():
        return set(json.loads(lab.run(HOST, "cat /var/lib/celery-metal/images.json"))["images"])

    before = images()
    app = next(one for one in before if "/app:" in one)
    # Those that this host had before the first run are not brought again, and on record.
    assert on_disk() == set(before.values())
    layer = lab.run(HOST, ["podman", "inspect", "-f", "{{.GraphDriver.Data.UpperDir}}", app])
    layer = layer.strip().removesuffix("/diff")
    lab.run(HOST, f"find {layer} -type f -exec truncate --size 0 {{}} +")
    lab.run(HOST, "systemctl restart --no-block celery-add_queue@1")
    reason = f"Podman did not start {app}: see above. Fix: ansible-playbook site.yml brings"
    lab.wait_for(
        lambda: reason in lab.journal(HOST, "celery-add_queue@1", 20), 60, "the journal says why"
    )
    played = kit.play(playbook="playbooks/rollback.yml", fails=True, rollback_version="any")
    named = f"the image of {app.rpartition(':')[2]} is damaged: {layer}/link is empty"
    assert named in played.said
    played = kit.play()
    assert f"{app}: damaged, as a power cut" in played.said
    now = images()
    assert now[app] != before[app]
    assert on_disk() == set(now.values())
    report = kit.smoke(HOST, "celery-add_queue-1", "add_queue", count=20)["add_queue"]
    assert report["done"] == report["sent"]


def test_removal_leaves_the_data_and_what_is_not_ours(kit, lab):
    lab.run(HOST, ["podman", "exec", "celery-add_queue-1", "python", "-c", SEND])
    assert kit.redis(HOST, "llen", "later") == "1"
    lab.run(HOST, "echo secret | podman secret create other -")
    lab.run(HOST, "podman tag $(podman images -q localhost/celery-metal/redis | head -n 1) other:1")
    lab.run(
        HOST,
        "cat > /etc/containers/systemd/other.container",
        stdin="[Container]\nImage=localhost/other:1\n",
    )
    # The kernel's own is that of the machine that runs the tests, and read-only.
    lab.run(HOST, f"echo 0 > /run/setting && mount --bind /run/setting {OVERCOMMIT}")
    # Of no version that is kept, and what an interrupted build has left still uses it.
    app = lab.run(HOST, "podman images --format '{{.Repository}}:{{.Tag}}' | grep /app:").strip()
    lab.run(HOST, f"podman build --tag {OLD} -", stdin=f"FROM {app}\nENV is=old\n")
    interrupt_a_build(lab, OLD)
    assert f"remove image {OLD}" in kit.play("--diff", celery_worker_secrets={"TOKEN": "x"}).output
    assert not lab.succeeds(HOST, ["podman", "image", "exists", OLD])
    assert "buildah" not in lab.run(HOST, "podman ps --all --external")
    assert lab.run(HOST, f"cat {OVERCOMMIT}") == "1\n"
    assert "celery-app-TOKEN" in lab.run(HOST, "podman secret ls --format '{{.Name}}'")
    # A host may be drained when it is removed.
    lab.run(HOST, "touch /etc/celery-metal/drained")
    # So may Redis be full, and its alarm raised.
    kit.redis(HOST, "config", "set", "maxmemory", "1")
    assert not lab.succeeds(HOST, "systemctl start celery-redis-memory.service")
    interrupt_a_build(lab, app)
    played = kit.play(playbook=REMOVE, remove_confirmed=True)
    assert "/var/lib/celery-metal/redis" in played.output
    assert lab.run(HOST, "systemctl list-units --all --plain --no-legend 'celery*'") == ""
    assert lab.run(HOST, "podman ps --all --external --quiet") == ""
    assert lab.run(HOST, "podman secret ls --format '{{.Name}}'").split() == ["other"]
    names = lab.run(HOST, "podman images --format '{{.Repository}}:{{.Tag}}'").split()
    assert names == ["localhost/other:1"]
    assert lab.run(HOST, "podman network ls -q").split() == ["podman"]
    assert "celery" not in lab.run(HOST, "nft list tables")
    assert lab.run(HOST, f"cat {OVERCOMMIT}") == "0\n"
    lab.run(HOST, f"umount {OVERCOMMIT}")
    left = "find /etc /run /var/lib /usr/local -xdev -name '*celery*'"
    assert lab.run(HOST, left).split() == ["/var/lib/celery-metal"]
    assert lab.run(HOST, "ls /var/lib/celery-metal").split() == ["redis"]
    assert lab.succeeds(HOST, "test -e /etc/containers/systemd/other.container")


def test_removal_twice_is_no_error(kit):
    kit.play(playbook=REMOVE, remove_confirmed=True)


def test_a_new_deployment_takes_the_waiting_task_up(kit, lab):
    kit.play(celery_queues=[{"name": "add_queue"}, {"name": "later"}])
    lab.wait_for(lambda: kit.redis(HOST, "llen", "later") == "0", 30, "task taken", host=HOST)
    log = "journalctl --no-pager -o cat -u celery-later@1.service"
    lab.wait_for(
        lambda: "succeeded" in lab.run(HOST, log) and " 42" in lab.run(HOST, log),
        30,
        "answer of the waiting task",
        host=HOST,
        unit="celery-later@1.service",
    )


def test_a_redis_that_was_left_for_another_goes_with_the_workers(kit, lab, tmp_path):
    other = kit.inventory_with_redis(tmp_path / "other")
    variables = {"redis_mode": "external", "redis_external_url": "redis://worker@10.0.0.5:6379/0"}
    kit.play(playbook=REMOVE, inventory=other, remove_confirmed=True, **variables)
    assert lab.run(HOST, "systemctl list-units --all --plain --no-legend 'celery*'") == ""
    assert lab.run(HOST, "podman ps --all --external --quiet") == ""
    assert lab.run(HOST, "podman secret ls --format '{{.Name}}'").split() == ["other"]
    assert lab.run(HOST, "ls /var/lib/celery-metal").split() == ["redis"]
