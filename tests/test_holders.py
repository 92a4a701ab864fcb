"""Which hosts have what opens Redis: what is recorded, what a rotation ends, what is reported."""

from __future__ import annotations

import json
from typing import Any

import holders
import pytest
from hypothesis import given
from hypothesis import strategies as st

GROUPS = {"redis": ["r1"], "celery": ["web1", "web2"], "celery_producers": ["shop1"]}
END = 2110752000  # 2036-11-20
NOW = 1795000000.0


def labels(version: str = "a1", authority: str = "c1", **ca: str) -> dict[str, dict[str, str]]:
    """Those of the secrets on the host of Redis."""
    users = ("acl", "admin", "monitor", "producer", "worker")
    found = {f"celery-redis-{user}": {"version": version} for user in users}
    end = str(END)
    found["celery-redis-ca"] = {"authority": authority, "until": end, "version": "e1", **ca}
    found["celery-redis-authority"] = {"version": authority, "until": end}
    found["celery-redis-certificate-worker"] = {"until": end, "authority": authority}
    found["celery-redis-certificate-server"] = {"until": str(END - 86400)}
    return found


def site(
    kept: Any = None,
    secrets: Any = None,
    played: tuple[str, ...] = ("r1", "web1", "web2"),
    **r1: Any,
) -> dict[str, dict[str, Any]]:
    """Hostvars of a run with these hosts, in which the host of Redis keeps this record."""
    state = {"holders": kept, "secrets": labels() if secrets is None else secrets, **r1}
    hosts: dict[str, dict[str, Any]] = {
        host: {"podman_host_state": {"secrets": {}}} if host in played else {}
        for host in ("r1", "web1", "web2", "shop1")
    }
    if "r1" in played:
        hosts["r1"] = {"podman_host_state": state}
    return hosts


def made(*arguments: Any, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(holders.record(*arguments, **options))
    return found


def said(
    kept: Any, secrets: Any = None, groups: Any = GROUPS, days: int = 0, now: float = NOW, **r1: Any
) -> list[str]:
    hosts = site(kept, secrets)
    hosts["r1"] |= r1
    state = {"holders": kept, "secrets": secrets or labels()}
    return holders.reports(hosts, groups, state, days, now)


def record(version: str = "a1", authority: str = "c1", **more: Any) -> dict[str, Any]:
    """One in which web9 was given what a worker needs."""
    hosts = {"web9": {"worker": version, "certificate": authority}, **more}
    return {"hosts": hosts, "certificates": {authority: END}}


def test_each_host_of_a_run_is_recorded_with_what_it_needs() -> None:
    found = made(site({"hosts": {}, "certificates": {}}, played=("r1", "web1")), GROUPS)
    assert found["hosts"]["web1"] == {"worker": "a1", "certificate": "c1"}
    assert found["hosts"]["shop1"] == {"producer": "a1", "certificate": "c1"}
    assert found["hosts"]["r1"].keys() == holders.KINDS - {"replica", "sentinel"}
    assert found["certificates"] == {"c1": END}
    # web2 was never part of a run.
    assert "web2" not in found["hosts"]


def test_what_this_run_makes_is_recorded_before_anybody_is_given_it() -> None:
    hosts = site(record(), labels("a1"))
    new = {f"celery-redis-{user}": {"version": "a2"} for user in ("worker", "producer")}
    hosts["r1"]["__redis_users"] = {"labels": new}
    found = made(hosts, GROUPS)
    assert found["hosts"]["web1"]["worker"] == "a2"
    assert found["hosts"]["web9"] == {"worker": "a1", "certificate": "c1"}


def test_hosts_outside_of_a_limit_stay_recorded() -> None:
    kept = record(web2={"worker": "a1"})
    found = made(site(kept, played=("r1", "web1")), GROUPS)
    assert found["hosts"].keys() == {"r1", "shop1", "web1", "web2", "web9"}


def test_nothing_to_do_is_the_same_text() -> None:
    text = holders.record(site(record()), GROUPS)
    assert holders.record(site(json.loads(text)), GROUPS) == text


def test_without_a_record_all_that_may_have_something_have_it() -> None:
    """A deployment of a version before the record; its firewall knew the hosts."""
    found = made(site(admitted_hosts=["web1", "web9"], played=("r1",)), GROUPS)
    assert found["hosts"]["web9"] == {"worker": "a1", "certificate": "c1"}
    assert found["hosts"]["web2"] == {"worker": "a1", "certificate": "c1"}
    assert "web9" not in made(site(admitted_hosts=None), GROUPS)["hosts"]
    # A new deployment.
    assert made(site(secrets={}), GROUPS) == {"hosts": {}, "certificates": {}}


def test_another_first_host_of_several_knows_what_the_others_do() -> None:
    groups = {"redis": ["r1", "r2"], "celery": ["web1"]}
    hosts = site(None)
    hosts["r2"] = {"podman_host_state": {"secrets": labels(), "holders": record()}}
    assert "web9" in made(hosts, groups)["hosts"]
    # One that was left behind by a rotation brings nothing back.
    hosts["r1"]["podman_host_state"]["holders"] = {"hosts": {}, "certificates": {}}
    assert "web9" not in made(hosts, groups)["hosts"]


WORKERS = ["admin", "monitor", "worker"]


@pytest.mark.parametrize(
    ("kept", "secrets", "retired", "left"),
    [
        # Its end is what counts: the run before has only made new ones.
        (record(), labels("a2", "c2", before="c1"), None, {"worker": "a1", "certificate": "c1"}),
        (record(), labels("a2", "c1"), WORKERS, {"certificate": "c1"}),
        (record(), labels("a2", "c2", before="c1"), WORKERS, {"certificate": "c1"}),
        (record(), labels("a2", "c2"), WORKERS, None),
        # A rotation that had begun before it left: it was given what is new.
        (
            record("a2", "c2"),
            labels("a2", "c2", before="c1"),
            WORKERS,
            {"worker": "a2", "certificate": "c2"},
        ),
        (record("a2", "c2"), labels("a3", "c2"), WORKERS, {"certificate": "c2"}),
        (record(web9={"producer": "a1"}), labels("a2"), WORKERS, {"producer": "a1"}),
        (record(web9={"producer": "a1"}), labels("a2"), [*WORKERS, "producer"], None),
    ],
)
def test_only_a_rotation_ends_an_entry(kept: Any, secrets: Any, retired: Any, left: Any) -> None:
    assert made(site(kept, secrets), GROUPS, retired)["hosts"].get("web9") == left


def test_a_certificate_counts_again_when_tls_is_back() -> None:
    plain = {name: one for name, one in labels("a2").items() if "c" not in one.get("authority", "")}
    kept = made(site(record(), plain), GROUPS, WORKERS)
    assert kept["hosts"]["web9"] == {"certificate": "c1"}
    assert said(kept, redis_tls=False) == []
    assert "a certificate until 2036-11-20" in said(kept)[0]


FIRST = "ansible-playbook playbooks/rotate-secrets.yml"
BOTH = f"{FIRST} -e rotate_certificates=true, then the same with -e rotate_finish=true."


def test_a_host_that_left_is_reported_with_what_ends_its_access() -> None:
    (line,) = said(record())
    assert line == (
        "web9: has left the inventory and still has the password of worker and a certificate until "
        "2036-11-20\n  Redis accepts this until it is rotated.\n"
        f"  Fix: {BOTH} See docs/access.md#a-host-leaves"
    )
    (line,) = said(record(web8={"worker": "a1", "certificate": "c1"}))
    assert line.startswith("web8, web9: have left the inventory and still have the password of")


@pytest.mark.parametrize(
    ("entry", "secrets", "fix"),
    [
        ({"worker": "a1"}, labels(), f"{FIRST}."),
        # A rotation broke off, and the earlier one is still valid.
        ({"worker": "a1"}, labels("a2"), f"{FIRST}."),
        ({"producer": "a1"}, labels(), f"{FIRST}, then the same with -e rotate_finish=true."),
        ({"producer": "a1"}, labels("a2"), f"{FIRST} -e rotate_finish=true."),
        ({"certificate": "c1"}, labels("a2", "c2", before="c1"), f"{FIRST} -e rotate_finish=true."),
        (
            {"certificate": "c2"},
            labels("a2", "c2", before="c1"),
            f"{FIRST} -e rotate_finish=true, then the same with -e rotate_certificates=true, "
            "then the same with -e rotate_finish=true.",
        ),
        ({"authority": "c1"}, labels(), BOTH),
    ],
)
def test_the_fix_is_what_is_left_to_do(entry: Any, secrets: Any, fix: str) -> None:
    (line,) = said({"hosts": {"web9": entry}, "certificates": {}}, secrets)
    assert f"  Fix: {fix} See" in line


def test_a_host_in_another_group_is_reported_with_what_it_needs_no_more() -> None:
    groups = {**GROUPS, "celery": ["web1"], "celery_producers": ["web2"]}
    entry = {"worker": "a1", "producer": "a1", "certificate": "c1"}
    (line,) = said({"hosts": {"web2": entry}, "certificates": {}}, groups=groups)
    assert line.startswith(
        "web2: has left its group of the inventory and still has the password of"
    )
    assert "certificate" not in line.splitlines()[0]
    entry = {"admin": "a1", "worker": "a1", "certificate": "c1", "authority": "c1"}
    (line,) = said({"hosts": {"web1": entry}, "certificates": {}})
    assert "still has the password of admin and the key of the authority" in line


def test_hosts_of_the_inventory_are_not_reported() -> None:
    assert said(made(site({"hosts": {}, "certificates": {}}), GROUPS)) == []
    assert holders.reports({}, {"celery": ["web1"]}, {}) == []
    assert holders.reports(site(), GROUPS, {}) == []


DAMAGE: list[Any] = [
    [],
    "x",
    7,
    {},
    {"hosts": {}},
    {"error": "it is not JSON"},
    {"error": "\x1b[2J" * 1000},
    {"hosts": [], "certificates": {}},
    {"hosts": {"a\nb": {}}, "certificates": {}},
    {"hosts": {"\x1b[31mweb": {}}, "certificates": {}},
    {"hosts": {"\u202eweb": {}}, "certificates": {}},
    {"hosts": {"w" * 254: {}}, "certificates": {}},
    {"hosts": {"": {}}, "certificates": {}},
    {"hosts": {7: {}}, "certificates": {}},
    {"hosts": {"web9": []}, "certificates": {}},
    {"hosts": {"web9": {"root": "a1"}}, "certificates": {}},
    {"hosts": {"web9": {"worker": 7}}, "certificates": {}},
    {"hosts": {"web9": {"worker": "; rm -rf /"}}, "certificates": {}},
    {"hosts": {"web9": {"worker": "a" * 65}}, "certificates": {}},
    {"hosts": {}, "certificates": {"c1": "soon"}},
    {"hosts": {}, "certificates": {"c1": True}},
    {"hosts": {}, "certificates": {"c1": 10**30}},
    {"hosts": {}, "certificates": {"c1": -1}},
    {"hosts": {f"w{n}": {} for n in range(5000)}, "certificates": {}},
]


@pytest.mark.parametrize("raw", DAMAGE)
def test_a_record_that_no_run_has_written_is_reported_and_written_anew(raw: Any) -> None:
    with pytest.raises(holders.RecordError):
        holders.checked(raw)
    (line,) = said(raw)
    assert line.startswith("host r1: /etc/celery-metal/holders.json cannot be read: ")
    assert len(line) < 600
    assert all(one.isprintable() for one in line.split("\n"))
    assert line.count("\n") == 2
    # The run goes on, with what the inventory and the firewall know.
    found = made(site(raw, admitted_hosts=["web9", "\x1b", 7]), GROUPS)
    assert "web9" in found["hosts"]
    after = holders.left_by_run(site(raw), GROUPS)
    assert holders.reports(site(raw), GROUPS, after, now=NOW) == [line]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    JSON
    | st.fixed_dictionaries(
        {
            "hosts": st.dictionaries(
                st.sampled_from(["web9", "x\x1b"]) | st.text(),
                st.dictionaries(st.sampled_from(sorted(holders.KINDS)) | st.text(), JSON),
            ),
            "certificates": st.dictionaries(st.text(alphabet="abc1"), JSON),
        }
    )
)
def test_whatever_a_host_reports_is_a_record_or_refused(raw: Any) -> None:
    lines = said(raw)
    assert all(one.isprintable() for line in lines for one in line.split("\n"))
    json.loads(holders.record(site(raw), GROUPS))


def test_labels_that_are_none_are_reported_and_nothing_else() -> None:
    odd = {**labels(), "celery-redis-worker": {"version": "\x1b[2J"}}
    (line,) = said(record(), odd)
    assert "has characters that no label of ours has" in line
    assert "\x1b" not in line


def test_a_host_is_given_nothing_before_it_is_recorded() -> None:
    groups = {"redis": ["r1", "r2"], "celery": ["web1", "web9"]}

    def refused(state: Any, own: Any = ()) -> str:
        state = {"secrets": labels(), **state}
        return holders.unrecorded(state, "web9", groups, {name: {} for name in own})

    assert refused({"holders": record()}) == ""
    # It left, and came back after a rotation: what it is given now is not in the record.
    assert "r1 has not recorded it" in refused({"holders": record(version="a0")})
    assert "r1 has not recorded it" in refused({"holders": record(authority="c0")})
    # As a producer it had another user's.
    producer = {"web9": {"producer": "a1", "certificate": "c1"}}
    assert "r1 has not recorded it" in refused({"holders": record(**producer)})
    assert refused({"holders": {"hosts": {}, "certificates": {}}}).splitlines() == [
        "host web9: it needs what opens Redis, and r1 has not recorded it",
        "  Redis's host records each host first, to report it when it leaves the inventory.",
        "  Fix: let the run go to both: --limit 'web9,r1,r2'. Nothing was changed.",
    ]
    # Before the first record: the firewall's hosts, or those that have it.
    assert refused({"holders": None, "admitted_hosts": ["web9"]}) == ""
    assert refused({"holders": None, "admitted_hosts": []}, ["celery-redis-worker"]) != ""
    assert refused({"holders": None, "admitted_hosts": None}, ["celery-redis-worker"]) == ""
    assert refused({"holders": None, "admitted_hosts": None}) != ""
    assert refused({"holders": {"error": "x"}, "admitted_hosts": ["web9"]}) == ""


DAY = 86400.0


@pytest.mark.parametrize(
    ("before_end", "days", "is_reported"),
    [(366, 0, False), (364, 0, True), (364, 90, False), (89, 90, True)],
)
def test_an_authority_that_ends_is_reported(before_end: int, days: int, is_reported: bool) -> None:
    lines = said(None, days=days, now=END - before_end * DAY)
    assert bool(lines) == is_reported
    assert said(None, days=days, now=END - before_end * DAY, redis_tls=False) == []
    if lines:
        assert "each client's certificate, ends at 2036-11-20\n" in lines[0]
        assert f"  Fix: {BOTH} See docs/tls.md" in lines[0]


def test_certificates_of_the_user_s_own_are_reported_a_month_before() -> None:
    own = labels()
    del own["celery-redis-authority"], own["celery-redis-ca"]["authority"]
    assert said(None, own, now=END - 40 * DAY) == []
    (line,) = said(None, own, now=END - 30 * DAY)
    assert "a certificate of redis_tls_files ends at 2036-11-19" in line
    # No rotation of ours ends them.
    assert said(record(), own, now=NOW)[0].count("rotate_certificates") == 0


def test_a_certificate_that_the_timer_has_not_renewed_is_reported() -> None:
    late = labels()
    late["celery-redis-certificate-server"] = {"until": str(int(NOW + 10 * DAY))}
    (line,) = said(None, late)
    assert "Redis's own certificate ends at 2026-11-28" in line or "ends at 2026-" in line
    assert "run site.yml, which renews it" in line


@pytest.mark.parametrize("state", [{"unreachable": True}, {"msg": "podman fails", "failed": False}])
def test_a_host_of_redis_that_does_not_answer_is_named(state: dict[str, Any]) -> None:
    groups = {"redis": ["r1", "r2", "r3"], "celery": ["w1"]}
    hosts: dict[str, Any] = {name: {} for name in ("r1", "r2", "r3", "w1")}
    (line,) = holders.reports(hosts, groups, state)
    assert line.startswith("host r1: it did not answer, so hosts that left")
    assert holders.reports(hosts, groups, {}) == []
