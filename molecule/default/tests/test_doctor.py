"""playbooks/doctor.yml: a fresh host has no finding; causes appear with evidence, and go again."""

import json

HOST = "metal"
# True of the machine that the lab's hosts share a kernel with, and not to be set in one of them.
OF_THE_MACHINE = ("limit-overcommit", "clock-free", "disk-low", "disk-full")
BACKUPS = "/var/lib/celery-metal/backups"
RESULTS = 300


def examined(kit, *words, **variables):
    """The findings by the name of the rule."""
    variables.setdefault("doctor_accept", list(OF_THE_MACHINE))
    played = kit.play(*words, playbook="playbooks/doctor.yml", doctor_format="json", **variables)
    assert played.changed == {HOST: 0}
    found = json.loads(played.stdout)["findings"]
    return {one["rule"]: one["measured"][0]["what"] for one in found}


def state(kit, lab):
    """All that a run of the doctor could change, without what Redis writes all the time."""
    files = lab.run(
        HOST,
        "find /etc /var/lib/celery-metal /usr/local /root -path '*/appendonlydir' -prune -o"
        " -type f -printf '%p %s %T@ %i %m\\n' | sort",
    )
    containers = lab.run(HOST, "podman ps --all --format '{{.ID}} {{.Status}}' | cut -c -15")
    return (
        files,
        containers,
        lab.invocation_ids(HOST, "celery*"),
        sorted(kit.redis(HOST, "keys", "*").splitlines()),
        kit.redis(HOST, "config", "get", "*"),
        lab.run(HOST, "nft list ruleset"),
    )


def test_causes_appear_with_evidence_and_go_again(kit, lab):
    kit.ensure()
    # On a kept host tests have counted something.
    kit.redis(HOST, "config", "resetstat")
    before = state(kit, lab)
    assert examined(kit) == {}
    assert state(kit, lab) == before

    keys = [f"celery-task-meta-{number:08}" for number in range(RESULTS)]
    kit.redis(HOST, "mset", *(word for key in keys for word in (key, "{}")))
    for _ in range(5):
        kit.redis(HOST, "bgrewriteaof")
        lab.wait_for(
            lambda: "aof_rewrite_in_progress:0" in kit.redis(HOST, "info", "persistence"),
            30,
            "end of the rewrite",
            host=HOST,
        )
    full = f"mkdir -p {BACKUPS} && mount -t tmpfs -o size=2g tmpfs {BACKUPS}"
    lab.run(HOST, f"{full} && fallocate -l 1970M {BACKUPS}/full")
    try:
        found = examined(kit, "--check", doctor_accept=[*OF_THE_MACHINE[:3]])
        assert found.keys() == {"results-endless", "redis-rewrites", "disk-full"}
        assert f"{RESULTS} of {RESULTS} sampled results have no expiry" in found["results-endless"]
        assert found["redis-rewrites"].startswith("5 rewrites in ")
        assert f"{BACKUPS}, tmpfs: 78 MB of 2.0 GB free" in found["disk-full"]
        strict = kit.play(
            playbook="playbooks/doctor.yml",
            fails=True,
            doctor_strict=True,
            doctor_accept=list(OF_THE_MACHINE),
        )
        assert "doctor_strict is true, and there is: 2 findings: 2 medium" in strict.said
    finally:
        lab.run(HOST, f"umount {BACKUPS} && rmdir {BACKUPS}")
        kit.redis(HOST, "del", *keys)
        kit.redis(HOST, "config", "resetstat")
    assert examined(kit) == {}
