"""What playbooks/status.yml prints: what is wrong, a row for each worker, and what no row tells."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest

DB = {"host": "db"}
NEVER: dict[str, Any] = dict.fromkeys(["concurrency", "busy", "done", "version", "since"])


def worker(queue: str, instance: str = "1", **said: Any) -> dict[str, Any]:
    row = {"queue": queue, "queues": [queue], "instance": instance, "state": "active"}
    return {**row, "restarts": 0, **NEVER, **said}


BUSY = {"concurrency": 4, "busy": 2, "done": 1032, "version": "1.2", "since": 1795526058}
HOSTS = {
    "web10": {"workers": [worker("mail", "10"), worker("mail", "9", **BUSY)]},
    "web2": {
        "workers": [
            worker("reports", state="restarting", restarts=9),
            worker("a/b", state="drained", since=1795526000),
        ],
    },
    "web3": {"unreachable": True, "msg": "No route to host\n"},
    "web4": {"workers": []},
    "web5": {"failed": True, "msg": "MODULE FAILURE"},
}
NOTHING = {"error": "", "waiting": {}, "dead": {}, "held": []}
BACKLOG = {
    "error": "",
    "waiting": {"mail": 7, "reports": 0, "old": 3, "empty": 0},
    "dead": {"reports": 1},
    "held": [
        {"node": "mail-9@web10", "queue": "mail", "tasks": 2, "beats": True},
        {"node": "a=2F=b-1@web2", "queue": "a/b", "tasks": 1, "beats": True},
        {"node": "mail-1@gone", "queue": "mail", "tasks": 4, "beats": True},
    ],
}
TABLE = """\
wrong, the worst first:
- web3, unreachable: No route to host
  Fix: see whether it runs; if not, others run its tasks once it was silent for 90 s
- web5, no answer: MODULE FAILURE
  Fix: run site.yml with --limit web5, or look there why the module failed
- tasks wait, and no host that answered runs a worker for them: old 3
  Fix: run site.yml, or undrain.yml, on a host that serves them
- workers, restarting: reports 1 on web2
  Fix: see why: ansible-playbook playbooks/logs.yml -e logs_queue=reports --limit web2
- 4 of mail held by mail-1@gone, which has no row
  Fix: wait: others run them once it was silent for 90 s
- put aside: reports 1
  Fix: see why, and send them back or delete them, by playbooks/dead.yml

host   queue    inst.  state                   conc.  busy  done  waiting  version  since (UTC)
web10  mail     9      active                      4     2  1032        7  1.2      2026-11-24 13:14
web10  mail     10     active                      -     -     -        7  -        -
web2   a/b      1      drained                     -     -     -        -  -        2026-11-24 13:13
web2   reports  1      restarting, 9 restarts      -     -     -        0  -        -
web3                   unreachable
web4                   no workers
web5                   no answer

held by workers: a/b 1, mail 6"""


def wrong(fleet: ModuleType, hosts: Any, backlog: Any, redis: Any, whole: bool = True) -> list[str]:
    """What is wrong, each with its remedy."""
    found = fleet.fleet(hosts, backlog, redis, whole)["wrong"]
    return [f"{one['what']} | {one['fix']}" for one in found]


def table(text: str) -> list[str]:
    """The lines from the table's head on."""
    lines = text.splitlines()
    return lines[next(n for n, one in enumerate(lines) if one.startswith("host ")) :]


def test_the_table(fleet: ModuleType) -> None:
    assert fleet.fleet_text(HOSTS, BACKLOG, DB) == TABLE


def test_a_worker_of_several_queues_shows_them_and_what_waits_in_all(fleet: ModuleType) -> None:
    both = worker("both", queues=["mail", "old"], **BUSY)
    hosts = {"web1": {"workers": [both]}}
    said = table(fleet.fleet_text(hosts, BACKLOG, DB))
    assert said[1].startswith("web1  both (mail, old)  1")
    assert said[1].split()[8:10] == ["1032", "10"]
    assert not [line for line in wrong(fleet, hosts, BACKLOG, DB) if "tasks wait" in line]
    unknown = {"web1": {"workers": [worker("x", queues=["y"])]}}
    assert fleet.fleet(unknown, BACKLOG, DB, True)["workers"][0]["waiting"] is None


PAUSE = {"queue": "mail", "name": "shop:mail", "by": "ops@ctl", "at": 1700000000, "reason": "why"}


def test_a_paused_queue_is_shown_with_since_when_by_whom_and_why(fleet: ModuleType) -> None:
    both = worker("both", queues=["mail", "old"], **BUSY)
    drained = worker("mail", "2", state="drained")
    hosts = {"web1": {"workers": [worker("mail", **BUSY), drained, both]}}
    found = fleet.fleet(hosts, {**BACKLOG, "paused": [PAUSE]}, DB, True)
    # One that has another queue to serve is active.
    states = {(one["queue"], one["instance"]): one["state"] for one in found["workers"]}
    assert states == {("both", "1"): "active", ("mail", "1"): "paused", ("mail", "2"): "drained"}
    assert found["paused"] == [PAUSE]
    said = fleet.fleet_text(hosts, {**BACKLOG, "paused": [PAUSE]}, DB)
    assert "\nshop:mail is paused since 2023-11-14 22:13 UTC by ops@ctl: why\n" in said
    # That its tasks wait is what somebody wants.
    assert "none of its workers" not in said


@pytest.mark.parametrize(
    "paused",
    [{}, ["mail"], [{**PAUSE, "at": "x"}], [{**PAUSE, "queue": None}], [{"queue": "mail"}]],
)
def test_pauses_of_another_shape_are_no_answer(fleet: ModuleType, paused: Any) -> None:
    said = fleet.fleet_text({}, {**BACKLOG, "paused": paused}, DB)
    assert "its report is invalid" in said


def test_a_pause_cannot_forge_lines(fleet: ModuleType) -> None:
    forged = {**PAUSE, "name": "a\nb\x1b[2J", "by": "\n", "at": 1 << 60, "reason": "x\ny" * 500}
    said = fleet.fleet_text({}, {**NOTHING, "paused": [forged]}, DB)
    (line,) = [one for one in said.splitlines() if "is paused" in one]
    assert line.isprintable()
    assert len(line) < 400


def test_redis_is_asked_for_all_queues_that_are_named(fleet: ModuleType) -> None:
    hosts = {
        "web1": {"celery_queues": [{"name": "a"}, {"name": "both", "queues": ["b", "a"]}]},
        "web2": {"celery_queues": [{"name": "c"}, 5, {"weight": 1}]},
        "web3": {"celery_queues": None},
        "web4": {},
    }
    assert fleet.queue_names(hosts, list(hosts)) == ["a", "b", "c"]


def test_who_schedules_is_told(fleet: ModuleType) -> None:
    hosts = {
        "web10": {**HOSTS["web10"], "beat": "holds the lock, 1 entry"},
        "web2": {**HOSTS["web2"], "beat": "drained"},
        "web4": {**HOSTS["web4"], "beat": ""},
    }
    said = fleet.fleet_text(hosts, BACKLOG, DB).splitlines()
    assert [line for line in said if "schedule" in line] == [
        "schedule on web10: holds the lock, 1 entry",
        "schedule on web2: drained",
    ]


def test_where_only_some_hosts_are_looked_at_no_worker_is_missing(fleet: ModuleType) -> None:
    said = fleet.fleet_text({"web10": HOSTS["web10"]}, BACKLOG, DB, "table", False).splitlines()
    assert said[:2] == ["wrong, the worst first:", "- put aside: reports 1"]
    assert said[4].startswith("host ")
    assert said[8:] == ["held by workers: a/b 1, mail 6"]


def test_where_all_is_well_there_is_nothing_but_the_table(fleet: ModuleType) -> None:
    hosts = {"web1": {"workers": [worker("mail", **BUSY)]}}
    backlog = {"error": "", "waiting": {"mail": 0}, "dead": {}, "held": []}
    assert len(fleet.fleet_text(hosts, backlog, DB).splitlines()) == 2


@pytest.mark.parametrize(
    ("backlog", "text"),
    [
        ({"error": "refused", "waiting": {}, "dead": {}, "held": []}, "refused"),
        ({"unreachable": True, "msg": "timed out "}, "timed out"),
        ({}, "no answer"),
    ],
)
def test_a_redis_that_is_silent(fleet: ModuleType, backlog: dict[str, Any], text: str) -> None:
    said = fleet.fleet_text({"web10": HOSTS["web10"]}, backlog, DB)
    assert said.splitlines()[1:3] == [
        f"- Redis on db gave no answer: {text}. Workers wait for it, and keep their tasks",
        "  Fix: see 'systemctl status celery-redis' there; if it runs, run site.yml",
    ]
    assert table(said)[1].split()[4:8] == ["4", "2", "1032", "-"]


GB = 1024**3


@pytest.mark.parametrize(
    ("memory", "alarm", "percent"),
    [
        ({"used": 87 * GB, "limit": 100 * GB}, 80, 87),
        ({"used": 80 * GB + 1, "limit": 100 * GB}, 80, 80),
        ({"used": 80 * GB, "limit": 100 * GB}, 80, None),
        ({"used": 87 * GB, "limit": 100 * GB}, 90, None),
        ({"used": GB, "limit": 0}, 1, None),
        ({}, 1, None),
    ],
)
def test_a_redis_that_fills_up(
    fleet: ModuleType, memory: dict[str, int], alarm: int, percent: int | None
) -> None:
    hosts = {"web1": {"workers": [worker("mail", **BUSY)]}}
    backlog = {"error": "", "waiting": {"mail": 0}, "dead": {}, "held": [], "memory": memory}
    notes = wrong(fleet, hosts, backlog, {**DB, "alarm_percent": alarm})
    told = json.loads(fleet.fleet_text(hosts, backlog, {**DB, "alarm_percent": alarm}, "json"))[
        "redis_memory"
    ]
    if percent is None:
        assert notes == []
        assert not told or not told["alarm"]
    else:
        (note,) = notes
        assert note.startswith(
            f"Redis on db uses {percent} % of its memory; producers get an error"
        )
        assert told == {**memory, "percent": percent, "alarm": True}


ONE, TWO = ({"address": f"10.0.0.{n}:6379", "state": "online", "lag_seconds": 1} for n in (6, 7))
FOLLOWS = {**ONE, "behind_bytes": 0}
COMES = {**TWO, "behind_bytes": 6923, "state": "wait_bgsave", "lag_seconds": 0}
SILENT = {**TWO, "behind_bytes": 923, "lag_seconds": 7}
LONELY = "nobody follows the primary 10.0.0.5:6379"
AFTER = ": if it fails, tasks are lost | see docs/failover.md"


@pytest.mark.parametrize(
    ("replicas", "count", "required", "lines", "missing"),
    [
        (
            [FOLLOWS, COMES],
            1,
            1,
            [
                "the primary is 10.0.0.5:6379; followed by 10.0.0.6:6379 (0 bytes behind), "
                "10.0.0.7:6379 (not online: wait_bgsave)"
            ],
            0,
        ),
        (
            [FOLLOWS, SILENT],
            1,
            2,
            [
                "the primary is 10.0.0.5:6379; followed by 10.0.0.6:6379 (0 bytes behind), "
                "10.0.0.7:6379 (923 bytes behind, silent for 7 s)",
                "the primary takes no tasks, and gives none: redis_replicas_required is 2, and "
                "replicas that keep up: 1 | see 'systemctl status celery-redis' on the other hosts "
                "of the group redis",
            ],
            1,
        ),
        ([], None, 0, [LONELY + AFTER], 0),
        # It asks for none.
        ([], None, 1, [LONELY + AFTER], 0),
        (
            [COMES],
            None,
            0,
            [f"{LONELY}, not even 10.0.0.7:6379 (not online: wait_bgsave){AFTER}"],
            0,
        ),
        (
            [SILENT],
            None,
            0,
            [f"{LONELY}, not even 10.0.0.7:6379 (923 bytes behind, silent for 7 s){AFTER}"],
            0,
        ),
    ],
)
def test_who_is_the_primary_and_who_follows(
    fleet: ModuleType,
    replicas: list[dict[str, Any]],
    count: int | None,
    required: int,
    lines: list[str],
    missing: int,
) -> None:
    said = {"primary": "10.0.0.5:6379", "replicas": replicas, "count": count}
    hosts = {"web1": {"workers": [worker("mail", **BUSY)]}}
    backlog = {**NOTHING, "waiting": {"mail": 0}, "replication": said}
    redis = {**DB, "replicas_required": required}
    shown = table(fleet.fleet_text(hosts, backlog, redis))[3:]
    assert shown + wrong(fleet, hosts, backlog, redis) == [f"Redis: {line}" for line in lines]
    told = json.loads(fleet.fleet_text(hosts, backlog, redis, "json"))
    found = told["redis_replication"]
    assert (found["host"], found["absent"]) == (said["primary"], [])
    assert [{**one, "host": one["address"]} for one in replicas] == found["replicas"]
    assert (found["required"], found["missing"]) == (required, missing)


NAMES = {f"10.0.0.{number}": f"red{number}" for number in (5, 6, 7)}


def test_hosts_of_redis_are_named_as_in_the_inventory(fleet: ModuleType) -> None:
    said = {"primary": "10.0.0.5:6379", "replicas": [FOLLOWS, COMES], "count": 1}
    backlog = {**NOTHING, "memory": {"used": 9, "limit": 10}, "replication": said}
    shown = fleet.fleet_text({}, backlog, {**DB, "names": NAMES})
    assert "\n- Redis on red5 uses 90 % of" in shown
    assert table(shown)[2:] == [
        "Redis: the primary is red5; followed by red6 (0 bytes behind), red7 (not online: "
        "wait_bgsave)"
    ]
    assert "neither" not in shown


@pytest.mark.parametrize(
    ("primary", "absent"),
    [
        ("10.0.0.5:6379", ["red7"]),
        ("10.0.0.7:6379", ["red5"]),
        # Its host is reached by another address: it may be any of them.
        ("10.9.9.9:6379", []),
    ],
)
def test_a_host_of_redis_that_is_not_there_is_named(
    fleet: ModuleType, primary: str, absent: list[str]
) -> None:
    backlog = {
        **NOTHING,
        "replication": {"primary": primary, "replicas": [FOLLOWS], "count": 1},
    }
    redis = {**DB, "names": NAMES}
    shown = "\n".join(wrong(fleet, {}, backlog, redis))
    assert (" neither is the primary nor follows it | see 'systemctl status" in shown) == bool(
        absent
    )
    assert all(f"Redis: {name} neither" in shown for name in absent)
    told = json.loads(fleet.fleet_text({}, backlog, redis, "json"))["redis_replication"]
    assert told["absent"] == absent


def test_json_has_all_of_it(fleet: ModuleType) -> None:
    found = json.loads(fleet.fleet_text(HOSTS, BACKLOG, DB, "json"))
    assert [host["state"] for host in found["hosts"].values()] == [
        "ok",
        "ok",
        "unreachable",
        "ok",
        "no answer",
    ]
    assert found["hosts"]["web3"]["why"] == "No route to host"
    assert found["workers"][0] == {**worker("mail", "9", **BUSY), "host": "web10", "waiting": 7}
    assert [row["queue"] for row in found["workers"]] == ["mail", "mail", "a/b", "reports"]
    assert [one["listed"] for one in found["held"]] == [True, True, False]
    assert found["dead"] == {"reports": 1}
    assert found["redis_replication"] is None
    assert found["waiting"]["old"] == 3


def test_tasks_that_no_worker_would_ever_take_are_said(fleet: ModuleType) -> None:
    gone = {"node": "old-1@web1", "queue": "old", "tasks": 2, "beats": False}
    backlog = {**BACKLOG, "held": [gone], "unconsumed": {"mial": 12, "shop:x": 1}}
    notes = wrong(fleet, HOSTS, {**backlog, "is_complete": True}, DB)
    assert (
        "undeclared queues without a consumer: mial 12, shop:x 1 | declare them in celery_queues, "
        "or move their tasks: see 'Undeclared queues' in docs/operating.md" in notes
    )
    assert (
        "2 of old held by old-1@web1, which has no row | it sends no heartbeat; a worker of "
        "this node name gives them back at its start" in notes
    )
    assert not [one for one in notes if "not complete" in one]
    some = wrong(fleet, HOSTS, {**backlog, "is_complete": False}, DB)
    assert [one for one in some if "the search for undeclared queues is not complete: " in one]
    found = fleet.fleet(HOSTS, {**backlog, "is_complete": False}, DB, True)
    assert (found["unconsumed"], found["is_complete"]) == ({"mial": 12, "shop:x": 1}, False)


def test_who_consumes_an_undeclared_queue_is_named(fleet: ModuleType) -> None:
    nodes = {"old": ["old-1@a", "old-2@a", "old-1@b", "old-1@c"], "empty": ["empty-1@a"]}
    notes = wrong(fleet, HOSTS, {**BACKLOG, "consumers": nodes}, DB)
    assert (
        "waiting in undeclared queues, consumed by workers without a row: old 3 by old-1@a, "
        "old-2@a, old-1@b and 1 more | declare the queues, or look at who runs these workers"
        in notes
    )
    assert not [one for one in notes if "no host runs a worker" in one]
    assert fleet.fleet(HOSTS, {**BACKLOG, "consumers": nodes}, DB, True)["consumers"] == nodes


def test_another_format_is_refused(fleet: ModuleType) -> None:
    with pytest.raises(
        fleet.AnsibleFilterError, match="status_format is 'csv': write one of table, json"
    ):
        fleet.fleet_text(HOSTS, BACKLOG, DB, "csv")


@pytest.mark.parametrize(
    ("states", "fix"),
    [
        (("failed", "drained"), "see why: ansible-playbook playbooks/logs.yml -e logs_queue=mail"),
        (("no broker",), "see why: ansible-playbook playbooks/logs.yml -e logs_queue=mail"),
        (("drained", "inactive"), "run undrain.yml with --limit web0"),
        (("inactive",), "start them: run site.yml"),
        (("inactive", "active"), None),
        (("starting",), None),
    ],
)
def test_a_queue_that_nobody_serves_is_wrong(
    fleet: ModuleType, states: tuple[str, ...], fix: str | None
) -> None:
    hosts = {f"web{n}": {"workers": [worker("mail", state=one)]} for n, one in enumerate(states)}
    said = [one for one in wrong(fleet, hosts, BACKLOG, DB) if one.startswith("mail: 7 tasks wait")]
    if fix is None:
        assert said == []
        return
    each = ", ".join(f"web{n} {one}" for n, one in enumerate(states))
    (line,) = said
    assert line.startswith(f"mail: 7 tasks wait, and none of its workers takes any: {each} | {fix}")
    # Workers of hosts that were not looked at may serve it, and nothing waits in a paused one.
    assert not [one for one in wrong(fleet, hosts, BACKLOG, DB, False) if "none of its" in one]
    paused = {**BACKLOG, "paused": [PAUSE]}
    assert not [one for one in wrong(fleet, hosts, paused, DB) if "none of its" in one]
    quiet = {**BACKLOG, "waiting": {"mail": 0}}
    assert not [one for one in wrong(fleet, hosts, quiet, DB) if "none of its" in one]


@pytest.mark.parametrize(
    ("beats", "text"),
    [
        (["stands by, another Beat holds the lock", "drained"], "no Beat holds the lock"),
        (["failed"], "no Beat holds the lock, so nothing is scheduled (web0: failed)"),
        (["stands by, another Beat holds the lock", "holds the lock, 1 entry, next a at 3"], None),
        (["holds the lock, 2 entries, 1 cannot be sent (a: why), next b at 3"], "cannot be sent"),
        ([], None),
        (["stands by, another Beat holds the lock", None], None),
        (["failed", None], "no Beat of the hosts that answered holds the lock (web0: failed)"),
    ],
)
def test_a_schedule_that_sends_nothing_is_wrong(
    fleet: ModuleType, beats: list[str | None], text: str | None
) -> None:
    away = {"unreachable": True, "msg": "No route"}
    hosts: dict[str, Any] = {
        f"web{n}": away if one is None else {"workers": [], "beat": one}
        for n, one in enumerate(beats)
    }
    said = [one for one in wrong(fleet, hosts, NOTHING, DB) if one.startswith("schedule")]
    assert bool(said) == (text is not None)
    assert not text or text in said[0]


@pytest.mark.parametrize(
    ("row", "command"),
    [
        (worker("mixed", queues=["gone", "mail"]), "logs.yml -e logs_queue=mail --limit web1"),
        # logs.yml refuses an undeclared queue, and a shell must not run what a host reports.
        (worker("removed"), "logs.yml --limit web1"),
        (worker("x;$(id)"), "logs.yml --limit web1"),
        (worker("{{ x }}"), "logs.yml --limit web1"),
        (worker("a b"), 'logs.yml -e \'{"logs_queue": "a b"}\' --limit web1'),
    ],
)
def test_a_command_to_look_at_a_worker_can_be_pasted(
    fleet: ModuleType, row: dict[str, Any], command: str
) -> None:
    waiting = dict.fromkeys(["mail", "x;$(id)", "{{ x }}", "a b"], 0)
    hosts = {"web1": {"workers": [{**row, "state": "failed"}]}}
    (said,) = wrong(fleet, hosts, {**NOTHING, "waiting": waiting}, DB)
    assert said.endswith(f" | see why: ansible-playbook playbooks/{command}")


def test_the_worst_is_first(fleet: ModuleType) -> None:
    hosts = {
        "web1": {"workers": [worker("mail", state="failed")], "beat": "failed"},
        "web2": {"unreachable": True, "msg": "No route"},
    }
    memory = {"used": 99, "limit": 100}
    backlog = {**BACKLOG, "memory": memory, "unconsumed": {"mial": 1}, "error": "gone"}
    said = wrong(fleet, hosts, backlog, {**DB, "reports": ["web9: left\n  Fix: rotate"]})
    begins = [
        "Redis on db gave",
        "Redis on db uses",
        "web2, unreach",
        "mail: 7 tasks wait",
        "tasks wait, and no host that answered",
        "undeclared",
        "workers, failed",
        "schedule",
        "2 of mail held by",
        "1 of a/b held by",
        "4 of mail held by",
        "put aside",
        "web9: left | rotate",
    ]
    assert len(said) == len(begins)
    assert all(one.startswith(start) for one, start in zip(said, begins, strict=True))


def test_what_an_operator_must_do_is_above_the_table_and_in_json(fleet: ModuleType) -> None:
    lines = ["web9: has left the inventory\n  Fix: rotate", "host db: ends soon"]
    found = fleet.fleet({}, NOTHING, {**DB, "reports": lines}, whole=True)
    assert found["redis_reports"] == lines
    assert fleet.table(found).splitlines()[1:5] == [
        "- web9: has left the inventory",
        "  Fix: rotate",
        "- host db: ends soon",
        "",
    ]
    assert fleet.fleet({}, NOTHING, DB, whole=True)["redis_reports"] == []


ESCAPE = "\x1b]0;owned\x07\x1b[2J\n\u202e" + "x" * 5000


@pytest.mark.parametrize(
    "said",
    [
        {"beat": ESCAPE, "workers": [worker(ESCAPE, ESCAPE, state=ESCAPE)]},
        {"workers": [worker("mail", **{**BUSY, "version": ESCAPE})]},
        {"unreachable": True, "msg": ESCAPE},
        {"error": ESCAPE},
        {"failed": True, "msg": [ESCAPE]},
        {"workers": [worker("mail", **{**BUSY, "done": 10**5000})]},
        {"workers": [{}]},
        {"workers": ESCAPE},
        {"workers": [7, None]},
        {"workers": [worker("mail", **{**BUSY, "since": 10**18})]},
        {"workers": [{**worker("mail"), "queues": [{}]}]},
        {"beat": {}, "workers": []},
        [],
        None,
    ],
)
def test_no_host_writes_to_the_operator_s_terminal(fleet: ModuleType, said: Any) -> None:
    text = fleet.fleet_text({"evil": said, **HOSTS}, BACKLOG, DB)
    assert all(one.isprintable() for line in text.split("\n") for one in line)
    assert len(text) < 20_000
    # The others have their rows.
    assert sum(line.startswith("web10") for line in text.split("\n")) == 2
    rows = [line for line in text.split("\n") if line.startswith("evil")]
    assert rows
    json.loads(fleet.fleet_text({"evil": said}, BACKLOG, DB, "json"))


@pytest.mark.parametrize(
    "changed",
    [
        {"error": ESCAPE},
        {"waiting": {ESCAPE: 7}},
        {"waiting": {"a": ESCAPE}},
        {"waiting": [ESCAPE]},
        {"dead": {ESCAPE: 1}},
        {"held": [{"node": ESCAPE, "queue": ESCAPE, "tasks": 1, "beats": True}]},
        {"unconsumed": {ESCAPE: 7}},
        {"unconsumed": {"a": ESCAPE}},
        {"consumers": {"old": [ESCAPE]}},
        {"consumers": {"old": [7]}},
        {"consumers": {"old": ESCAPE}},
        {"is_complete": ESCAPE},
        {"held": [{"node": ESCAPE}]},
        {"held": [7]},
        {"error": 7},
        {"memory": {"used": ESCAPE, "limit": ESCAPE}},
        {"memory": ESCAPE},
        {"replication": {"primary": ESCAPE, "replicas": [], "count": 0}},
        {"replication": {"primary": "a", "replicas": [ESCAPE], "count": 0}},
        {"replication": {"primary": "a", "replicas": [{"address": ESCAPE}], "count": None}},
    ],
)
def test_neither_does_redis(fleet: ModuleType, changed: Any) -> None:
    text = fleet.fleet_text(HOSTS, {**BACKLOG, **changed}, DB)
    assert all(one.isprintable() for line in text.split("\n") for one in line)
    assert sum(line.startswith("web10") for line in text.split("\n")) == 2
