"""playbooks/doctor.yml: each rule fires for its cause alone, and says nothing of a healthy site."""

import json
import re
from pathlib import Path

import doctor
import findings
import pytest
from healthy import (
    GIB,
    MANY_RESULTS,
    MIB,
    NOW,
    RESULTS,
    WAITING,
    Fleet,
    answer,
    disk,
    worker,
)
from hypothesis import given
from hypothesis import strategies as st
from test_refusals import Site

PAUSE = {
    "queue": "emails",
    "name": "shop:emails",
    "by": "ann@desk",
    "at": int(NOW) - 7200,
    "reason": "",
}
PAGE = Path(__file__).parents[1] / "docs/doctor.md"


def change(path, value, host="web1"):
    return lambda fleet: fleet.set(path, value, host)


def state(name, value, host="web1"):
    return lambda fleet: fleet.hosts[host]["state"].update({name: value})


def backlog(**changes):
    return lambda fleet: fleet.backlog.update(changes)


def settings(**changes):
    return lambda fleet: fleet.answer(**changes)


def status(**changes):
    return lambda fleet: fleet.status.update(web2={"workers": [worker(**changes)], "beat": ""})


def info(name, value):
    return change(f"redis.info.{name}", value)


def several(*changes):
    def apply(fleet):
        for one in changes:
            one(fleet)

    return apply


def busy(fleet):
    fleet.answer(worker_prefetch_multiplier=4)
    fleet.facts()["plan"]["queues"][0]["prefetch"] = 4
    fleet.facts("web2")["plan"]["queues"][0]["prefetch"] = 4
    fleet.facts()["redis"]["workers"]["emails-1@web2"] = answer(worker_prefetch_multiplier=4)
    fleet.facts()["redis"]["workers"]["emails-1@web1"] |= {"running": 2, "longest": 90}
    held = {"node": "emails-1@web1", "queue": "emails", "tasks": 8, "beats": True}
    fleet.backlog["held"] = [held]


def without_workers(fleet):
    """A run with --limit to the host of Redis: what waits was not asked."""
    fleet.status, fleet.backlog, fleet.whole = {}, {}, False


def drained(fleet):
    one = worker(state="drained", version=None)
    fleet.status = {name: {"workers": [one], "beat": ""} for name in fleet.hosts}


REPORT = "host web1: a certificate ends at 2026-12-01\n  Then no worker gets in.\n  Fix: rotate"
# Rule, its cause, and what is in its evidence.
CAUSES = [
    ("host-silent", lambda fleet: fleet.hosts["web2"].update(doctor={"msg": "no\x1b"}), "no?"),
    ("host-silent", change("format", 2, "web2"), "its report is invalid"),
    ("host-silent", lambda fleet: fleet.hosts["web2"].update(state={"msg": "podman"}), "podman"),
    (
        "host-silent",
        lambda fleet: fleet.status.update(web2={"unreachable": True, "msg": "timed out"}),
        "timed out",
    ),
    ("clock-skew", change("at", NOW + 65, "web2"), "at least 65 s ahead of the controller's"),
    ("clock-skew", change("at", NOW - 63, "web2"), "at least 60 s behind the controller's"),
    ("clock-free", change("is_synchronised", False), "unsynchronised"),
    ("disk-full", change("disks.0", disk(free=4 * GIB)), "/, ext4: 4.0 GB of 100.0 GB free"),
    ("disk-full", change("disks.0", disk(size=8 * GIB, free=GIB - 1)), "1023 MB of 8.0 GB"),
    ("disk-low", change("disks.0", disk(free=8 * GIB)), "8.0 GB of 100.0 GB free"),
    ("disk-inodes", change("disks.0", disk(inodes_free=40_000)), "40000 of 1000000 inodes"),
    ("disk-network", change("disks.0", disk(type="nfs4")), "/, nfs4"),
    ("disk-volatile", change("disks.0", disk(type="tmpfs")), "/, tmpfs"),
    (
        "disk-rewrite",
        several(change("disks.0", disk(free=30 * GIB)), info("used_memory", str(11 * GIB))),
        "30.0 GB free, and Redis has 11.0 GB",
    ),
    ("memory-missing", change("memory.available", 900 * MIB), "the plan takes 1.6 GB"),
    ("memory-killed", change("units.0.oom_kills", 2), "celery-emails@1.service: 2 since"),
    ("memory-near", change("units.1.anonymous", 260 * MIB), "260 MB of 278 MB"),
    ("memory-process", change("units.0.child_peak", 212 * MIB), "one had 212 MB (VmHWM)"),
    (
        "memory-process",
        several(
            change("plan.queues.0.pool", "threads"),
            change("units.0.main_peak", 160 * MIB),
            settings(worker_max_memory_per_child=None),
        ),
        "one had 160 MB",
    ),
    ("swap-used", change("units.1.swap", 40 * MIB), "celery-redis.service: 40 MB in swap"),
    ("limit-files", change("units.1.files", 16000), "16000 of 20000 in one process"),
    ("limit-files-host", change("limits.files", 2_400_000), "2400000 of 2466170"),
    ("limit-tasks", change("units.0.tasks", 4000), "4000 of 4096"),
    ("limit-tasks", change("units.0.tasks_denied", 3), "3 were refused"),
    ("limit-overcommit", state("overcommit_memory", {"value": 0}), "overcommit_memory is 0"),
    ("limit-huge-pages", change("redis.config.disable-thp", "no"), "disable-thp is no"),
    ("backup-timer", change("backup.timer", "inactive"), "timer is inactive"),
    (
        "backup-failed",
        several(change("backup.state", "failed"), change("backup.result", "exit-code")),
        "exit-code; the newest is 60 min old",
    ),
    ("backup-old", change("backup.newest", int(NOW) - 90_000), "and the newest is 25 h old"),
    (
        "backup-old",
        several(change("backup.newest", 0), change("backup.triggered", int(NOW) - 8000)),
        "and there is none",
    ),
    ("backup-unproven", change("backup.unproven", 2), "2 without a note, beside 3 proven"),
    ("firewall-rules", state("firewall", ""), "no table inet celery_metal"),
    ("firewall-off", state("admitted", None), "port 6379, bind 10.0.0.1, and no rules"),
    ("firewall-egress", state("egress", "", "web2"), "no table inet celery_egress"),
    ("firewall-egress", state("podman_rules", False, "web2"), "Podman's rules are gone"),
    ("redis-plain", change("redis.config.port", "6379"), "port 6379, bind 10.0.0.1"),
    ("deploy-unfinished", state("hooks_left", "app:2"), "hooks of app:2 are left"),
    ("hosts-kernel", change("kernel", "6.1.0", "web2"), "kernel 6.1.0; most hosts have 6.12.48"),
    ("hosts-system", change("architecture", "aarch64", "web2"), "(trixie) aarch64"),
    ("hosts-podman", state("podman", "5.0.1", "web2"), "Podman 5.0.1; most hosts have 5.4.2"),
    ("redis-silent", backlog(error="LOADING"), "LOADING"),
    (
        "redis-silent",
        lambda fleet: fleet.facts("web2").update(redis={"error": "refused"}),
        "refused",
    ),
    ("redis-save", info("aof_last_write_status", "err"), "aof_last_write_status is err"),
    ("redis-save", info("rdb_last_bgsave_status", "err"), "rdb_last_bgsave_status is err"),
    ("redis-volatile", info("aof_enabled", "0"), "aof_enabled is 0"),
    ("redis-rewrites", info("aof_rewrites", "9"), "9 rewrites in 62 min"),
    ("redis-evicts", info("maxmemory_policy", "allkeys-lru"), "maxmemory_policy is allkeys-lru"),
    ("redis-evicts", info("evicted_keys", "3"), "evicted_keys 3"),
    ("redis-unbounded", info("maxmemory", "0"), "maxmemory is 0"),
    ("redis-full", backlog(memory={"used": 450 * MIB, "limit": 491 * MIB}), "91 %"),
    ("redis-clients", info("connected_clients", "9000"), "9000 of 10000 clients"),
    ("redis-clients", info("rejected_connections", "4"), "4 turned away"),
    ("redis-disk-slow", info("aof_delayed_fsync", "80"), "80 writes waited"),
    ("redis-fork-slow", info("latest_fork_usec", "900000"), "took 900 ms"),
    (
        "redis-replicas",
        several(
            backlog(replication={"primary": "10.0.0.1:6379", "replicas": [], "count": 0}),
            lambda fleet: fleet.redis.update(
                names={"10.0.0.1": "web1", "10.0.0.2": "web2"}, replicas_required=1
            ),
        ),
        "replicas that keep up with the primary: 0, required: 1; web2 neither",
    ),
    ("access", lambda fleet: fleet.redis.update(reports=[REPORT]), "no worker gets in"),
    (
        "results-endless",
        change("redis.results.endless", 380),
        "380 of 400 sampled results have no expiry; 400 results of 300 bytes",
    ),
    (
        "results-large",
        change("redis.results", {**RESULTS, **MANY_RESULTS}),
        "about 400000 results of 400 bytes on average (SCAN of 500 of 500000 keys), about 152 MB",
    ),
    ("queue-stale", change("redis.queues.0.length", 5000), "5000 tasks wait, and none of 20"),
    (
        "eta-far",
        change("redis.queues.0", {**WAITING, "node": "emails-1@web1", "etas": [60, 90_000]}),
        "1 of 20 sampled, held by emails-1@web1, the farthest in 25 h; the visibility timeout is",
    ),
    ("queue-unserved", drained, "queue emails: 40 wait"),
    ("worker-down", status(state="failed", version=None), "celery-emails@1 is failed"),
    ("worker-restarts", status(restarts=7), "7 restarts by systemd"),
    ("queue-unserved", backlog(waiting={"emails": 1, "reports": 9}), "queue reports: 9 wait"),
    ("queue-unserved", backlog(unconsumed={"emials": 12}), "queue emials: 12 wait"),
    (
        "queue-paused",
        backlog(waiting={"emails": 1, "reports": 0}, paused=[PAUSE, {**PAUSE, "queue": "reports"}]),
        "queue shop:emails: 1 wait, for 2 h; paused by ann@desk, reason: not known",
    ),
    (
        "claims-left",
        backlog(held=[{"node": "a-1@old", "queue": "a", "tasks": 3, "beats": False}]),
        "a-1@old holds 3 of a",
    ),
    ("dead-letters", backlog(dead={"emails": 2}), "queue emails: 2"),
    ("versions-unsupported", change("units.0.versions.redis", "5.0.1"), "kombu 5.7.0 needs"),
    ("versions-differ", change("units.0.versions.celery", "5.6.2", "web2"), "celery 5.7.0"),
    ("image-differs", status(version="9e00"), "queue emails: "),
    ("setting-differs", settings(task_acks_late=False), "task_acks_late is False, and the queue"),
    ("setting-differs", settings(worker_prefetch_multiplier=4), "is 4, and the queue has 1"),
    ("prefetch-unlimited", settings(worker_prefetch_multiplier=0), "multiplier is 0"),
    ("prefetch-long", busy, "6 wait in it, one has run for 90 s"),
    ("result-expires", settings(result_expires=None), "result_expires is None"),
    ("time-limit", settings(task_time_limit=600), "task_time_limit is 600 s, drain_seconds 60 s"),
    ("default-queue", settings(task_default_queue="celery"), "task_default_queue is celery"),
    ("tasks-eager", settings(task_always_eager=True), "task_always_eager is True"),
]
# What has a second name for the same cause.
COMPANIONS = {
    "prefetch-unlimited": {"setting-differs"},
    "versions-unsupported": {"versions-differ"},
}


def test_a_healthy_site_has_no_finding():
    assert Fleet().examined() == []
    assert doctor.report.unknown(Fleet().site()) == []


@pytest.mark.parametrize(("name", "cause", "measured"), CAUSES)
def test_a_rule_fires_for_its_cause_alone(name, cause, measured):
    fleet = Fleet()
    cause(fleet)
    found = fleet.found()
    assert name in found
    assert found.keys() - COMPANIONS.get(name, set()) == {name}
    said = [one.measured for one in found[name].seen]
    assert any(measured in one for one in said), said
    assert all(one.isprintable() for one in said)


def test_each_rule_has_a_cause_here_and_a_row_in_the_page():
    assert {name for name, *_ in CAUSES} == doctor.RULES.keys()
    row = r"^\| `([a-z-]+)` \| (\w+) \| (.+?) \| (.+?) \| (.+?) \|$"
    rows = re.findall(row, PAGE.read_text(), re.M)
    wanted = [
        (one.name, one.severity, one.title, one.risk, one.fix.replace("|", "\\|"))
        for severity in findings.SEVERITIES
        for one in doctor.RULES.values()
        if one.severity == severity
    ]
    assert rows == wanted


@pytest.mark.parametrize(
    ("cause", "why"),
    [
        (change("at", NOW - 4, "web2"), "a second before it was asked: clocks are read by turns"),
        (change("is_synchronised", None), "the kernel did not say"),
        (change("disks.0", disk(size=2000 * GIB, free=150 * GIB)), "8 %, which is much"),
        (change("disks.0", disk(inodes=0, inodes_free=0)), "btrfs counts none"),
        (change("units.0.memory_most", None), "no limit, or no controller"),
        (change("units.1.swap", MIB), "what is never used may be in swap"),
        (change("backup", None), "redis_backup is false"),
        (several(change("backup.newest", 0), change("backup.triggered", 0)), "a fresh host"),
        (several(change("backup.state", "activating"), change("backup.unproven", 1)), "at work"),
        (state("overcommit_memory", {"value": 0}, "web2"), "no Redis there"),
        (state("egress", None), "no such rules there"),
        (
            several(state("admitted", None), change("redis.config.tls-port", "0")),
            "nothing listens on the network",
        ),
        (change("redis.info.aof_rewrites", "4"), "few"),
        (several(info("aof_rewrites", "40"), info("uptime_in_seconds", "90000")), "in a day"),
        (change("redis.results.endless", 20), "few of few"),
        (change("redis.results", None), "no right to search"),
        (change("redis.queues.0", {**WAITING, "length": 5000, "endless": 19}), "some expire"),
        (change("redis.queues.0", {**WAITING, "etas": [3000]}), "within the visibility timeout"),
        (change("redis.workers", {}), "no answer"),
        (settings(task_default_queue="emails"), "a queue of the plan"),
        (settings(result_expires=3600), "an end"),
        (settings(result_expires=None, result_backend="django-db"), "not in Redis"),
        (settings(task_time_limit=30), "shorter than a drain"),
        (backlog(held=[{"node": "a", "queue": "a", "tasks": 1, "beats": True}]), "it lives"),
        (status(state="drained", version=None), "an operator's own"),
        (status(restarts=1), "once"),
        (without_workers, "not asked is not silent"),
    ],
)
def test_what_is_no_cause(cause, why):
    fleet = Fleet()
    cause(fleet)
    assert fleet.found() == {}, why


def test_what_is_the_same_on_many_hosts_is_one_finding():
    fleet = Fleet()
    for host in fleet.hosts:
        fleet.set("is_synchronised", False, host)
    (found,) = fleet.examined()
    assert found.where == ["web1", "web2"]
    assert fleet.examined("clock-free") == []


def shown(fleet, **variables):
    status_ = [fleet.status, fleet.backlog, fleet.redis, fleet.whole]
    return doctor.examined(fleet.hosts, status_, ["web1"], variables, NOW)


def test_the_worst_comes_first_and_the_summary_fits_a_screen():
    fleet = Fleet()
    for name, cause, _ in CAUSES:
        if name not in ("host-silent", "prefetch-long"):
            cause(fleet)
    text = shown(fleet)["text"]
    order = [word.lower() for word in re.findall(r"^(HIGH|MEDIUM|LOW)  ", text, re.M)]
    assert order == sorted(order, key=findings.SEVERITIES.index)
    assert len(order) > 40
    last = text.rpartition("\n\n")[2].split("\n")
    assert len(last) <= 24
    assert last[-1].endswith("2 hosts; 2026-11-29 19:22:40 UTC")
    assert f"and {len(order) - 16} more, above" in last


def test_a_finding_has_evidence_risk_and_remedy():
    fleet = Fleet()
    fleet.set("is_synchronised", False, "web2")
    assert shown(fleet)["text"].split("\n") == [
        "MEDIUM  clock-free: a clock is not synchronised",
        "  Measured: web2: the kernel's clock is unsynchronised (adjtimex)",
        "  Risk: It drifts: eta, expires and certificates depend on it.",
        "  Fix: install chrony or systemd-timesyncd there; 'timedatectl' shows the state",
        "",
        "medium  clock-free  web2: a clock is not synchronised",
        "1 finding: 1 medium; 2 hosts; 2026-11-29 19:22:40 UTC",
    ]
    found = json.loads(shown(fleet, doctor_format="json")["text"])
    assert [one["rule"] for one in found["findings"]] == ["clock-free"]
    assert found["findings"][0]["measured"][0]["host"] == "web2"


def test_a_strict_run_fails_for_a_finding_that_is_not_accepted():
    fleet = Fleet()
    assert shown(fleet, doctor_strict=True)["failure"] == ""
    fleet.set("is_synchronised", False, "web2")
    assert shown(fleet)["failure"] == ""
    assert "1 finding: 1 medium" in shown(fleet, doctor_strict="yes")["failure"]
    accepted = {"doctor_strict": True, "doctor_accept": "clock-free, hosts-kernel"}
    found = shown(fleet, **accepted)
    assert found["failure"] == ""
    assert found["text"].endswith("UTC; not looked at: clock-free, hosts-kernel")


@pytest.mark.parametrize(
    ("variables", "said", "remedy"),
    [
        ({"doctor_formt": "json"}, "doctor_formt is an unknown variable", "write doctor_format"),
        ({"doctor_format": "yaml"}, 'doctor_format is "yaml"', "table, json"),
        ({"doctor_strict": "maybe"}, 'doctor_strict is "maybe"', "true or false"),
        ({"doctor_accept": ["clock-fre"]}, 'doctor_accept has "clock-fre"', "write clock-free"),
        ({"doctor_accept": "\x1b, a"}, "doctor_accept has", "docs/doctor.md"),
        ({"doctor_accept": {"a": 1}}, "which is no finding", "docs/doctor.md"),
    ],
)
def test_nonsense_is_refused_with_a_remedy(variables, said, remedy):
    first, _, fix = doctor.problems(variables).partition(".\n  Fix: ")
    assert said in first
    assert remedy in fix
    assert first.isprintable()


def test_what_can_be_asked_for():
    for variables in ({}, {"doctor_accept": "clock-free"}, {"doctor_strict": True, "x": 1}):
        assert doctor.problems(variables) == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
PATHS = [
    *("at", "asked", "memory", "disks", "disks.0", "disks.0.free", "disks.0.holds", "units"),
    *("units.0", "units.0.unit", "units.0.versions", "units.0.versions.redis", "plan", "backup"),
    *("plan.queues", "plan.queues.0", "plan.queues.0.name", "redis", "redis.info", "redis.config"),
    *("redis.info.aof_rewrites", "redis.results", "redis.results.count", "redis.queues"),
    *("redis.queues.0", "redis.queues.0.etas", "redis.workers", "redis.workers.emails-1@web1"),
    *("redis.workers.emails-1@web1.settings", "limits", "kernel", "format"),
]


@given(st.sampled_from(PATHS), JSON)
def test_a_host_may_report_anything(path, value):
    fleet = Fleet()
    fleet.set(path, value)
    text = shown(fleet)["text"]
    assert all(one.isprintable() or one == "\n" for one in text)
    assert len(text) < 100_000
    json.loads(shown(fleet, doctor_format="json")["text"])


@pytest.mark.playbook
def test_nonsense_is_refused_and_silent_hosts_are_findings(tmp_path):
    site = Site(tmp_path)
    run = site.run("-e", "doctor_accept=clok-free", playbook="playbooks/doctor.yml")
    assert 'doctor_accept has "clok-free"' in run.said
    assert "UNREACHABLE" not in run.said
    run = site.run(playbook="playbooks/doctor.yml")
    assert "HIGH host-silent: a host gave no valid answer" in run.said
