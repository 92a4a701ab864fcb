"""What hosts that send tasks, and machines outside, are given, and what is refused."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import producers
import pytest
from test_refusals import QUEUES, Site

GROUPS: dict[str, list[str]] = {"redis": ["r1"], "celery": ["web1"], "celery_producers": ["shop1"]}
LABELS = {
    "celery-redis-producer": {"version": "a1"},
    "celery-redis-ca": {"version": "b1", "authority": "c1"},
    "celery-redis-certificate-producer": {"version": "d1"},
}
ALL = {name: one["version"] for name, one in LABELS.items()}


def fleet(shop: dict[str, Any] | None = None, **redis: Any) -> dict[str, dict[str, Any]]:
    first = {
        "inventory_hostname": "r1",
        "redis_address": "10.0.0.5",
        "podman_host_state": {"secrets": copy.deepcopy(LABELS)},
        **redis,
    }
    return {"r1": first, "web1": {}, "shop1": shop or {}, "shop2": shop or {}}


def test_a_host_gets_an_address_without_a_password_and_each_secret_as_it_is_now() -> None:
    found = producers.options(fleet(), GROUPS, "shop1")
    assert found["url"] == "rediss://producer@10.0.0.5:6379/0"
    assert found["secrets"] == ALL
    assert (found["directory"], found["mode"]) == ("/etc/celery-producer", "0640")
    # What this run has made counts.
    renewed = fleet(__redis_users={"labels": {"celery-redis-producer": {"version": "a2"}}})
    now = producers.options(renewed, GROUPS, "shop1")["secrets"]
    assert now == {**ALL, "celery-redis-producer": "a2"}
    assert producers.lacks({"secrets": now}, {"versions": ALL}) == ["celery-redis-producer"]
    assert producers.lacks({"secrets": now}, {}) == list(now)


def test_without_tls_it_has_no_certificates_and_with_one_of_the_users_none_of_redis() -> None:
    plain = producers.options(fleet(redis_tls=False, redis_port=6380), GROUPS, "shop1")
    assert plain["url"] == "redis://producer@10.0.0.5:6380/0"
    assert plain["secrets"] == {"celery-redis-producer": "a1"}
    own = fleet({"celery_producer_certificate": "/tls/shop.pem"})
    kept = producers.options(own, GROUPS, "shop1")["secrets"]
    assert kept.keys() == {"celery-redis-producer", "celery-redis-ca"}


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        ("app", ""),
        ("redis", "rediss://producer@10.0.0.5:6379/0"),
        ("django-db", ""),
        ("secret:RESULTS", ""),
    ],
)
def test_it_finds_results_where_workers_keep_them(kept: str, found: str) -> None:
    hosts = fleet() | {"web1": {"celery_worker_result_backend": kept}}
    assert producers.options(hosts, GROUPS, "shop1")["results"] == found
    outside = producers.outside(hosts, GROUPS, {"producer_to": "/root/out"})
    assert outside["results"] == found


def test_on_the_host_of_redis_it_uses_the_socket() -> None:
    groups = {**GROUPS, "celery_producers": ["r1"]}
    found = producers.options(fleet(), groups, "r1")
    assert found["url"] == (
        "redis+socket://producer@/run/celery-metal/redis/redis.sock?virtual_host=0"
    )
    assert found["secrets"] == {"celery-redis-producer": "a1"}


def test_sentinels_are_named_and_wait_for_as_many_replicas_as_workers_do() -> None:
    hosts = fleet() | {f"r{n}": {"redis_address": f"10.0.0.{4 + n}"} for n in (2, 3)}
    groups = {**GROUPS, "redis": ["r1", "r2", "r3"], "celery_producers": ["r2"]}
    assert producers.options(hosts, groups, "r2")["url"] == (
        "sentinels://producer@10.0.0.5:26379,10.0.0.6:26379,10.0.0.7:26379/0"
        "?master_name=celery&replicas=1"
    )


def test_under_check_a_new_redis_has_nothing_to_give() -> None:
    hosts = fleet(podman_host_state={"secrets": {}})
    assert producers.options(hosts, GROUPS, "shop1")["secrets"] == {}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"reloads": []}, "celery_producer_reloads is an unknown variable\n  Fix: write celery_produc"),
    ({"files": "no"}, 'celery_producer_files is "no"\n  Fix: write true or false'),
    ({"directory": "/etc"}, 'celery_producer_directory is "/etc"\n  Fix: write a path with two'),
    ({"directory": "/etc/../x"}, "celery_producer_directory is"),
    ({"directory": "/etc/a b"}, "celery_producer_directory is"),
    ({"directory": "/run/shop"}, 'is "/run/shop", and files below /run do not last: a boot or'),
    ({"directory": "/var/tmp/shop"}, "files below /var/tmp do not last"),
    ({"owner": "a b"}, 'celery_producer_owner is "a b"\n  Fix: write the name of a user of'),
    ({"group": 0}, "celery_producer_group is 0"),
    ({"mode": 0o640}, "celery_producer_mode is 416"),
    ({"mode": "0644"}, 'celery_producer_mode is "0644"'),
    ({"broker_variables": "A"}, 'celery_producer_broker_variables is "A"'),
    ({"broker_variables": ["A B"]}, 'celery_producer_broker_variables has "A B"'),
    ({"broker_variables": ["CELERY_METAL_BROKER"]}, "which holds something else"),
    ({"reload": "systemctl reload a"}, "celery_producer_reload is"),
    ({"reload": ["a 'b"]}, "No closing quotation"),
    ({"restart": [["a"]]}, "it is no text"),
    ({"certificate": "/tls/shop.pem"}, "Redis takes certificates of its own authority only"),
]


@pytest.mark.parametrize(("given", "text"), BAD)
def test_what_cannot_work_is_refused(given: dict[str, Any], text: str) -> None:
    shop = {f"celery_producer_{name}": value for name, value in given.items()}
    said = producers.problems(fleet(shop), GROUPS)
    assert said.startswith("shop1: ")
    assert text in said
    assert said.endswith("Nothing was changed.")
    # Hosts with the same mistake are one message.
    groups = {**GROUPS, "celery_producers": ["shop1", "shop2"]}
    assert producers.problems(fleet(shop), groups) == said.replace("shop1:", "shop1, shop2:")


def test_what_can_work_is_not_refused() -> None:
    shop = {
        "celery_producer_owner": "shop",
        "celery_producer_mode": "0400",
        "celery_producer_broker_variables": ["CELERY_BROKER_URL"],
        "celery_producer_reload": ["systemctl reload shop"],
    }
    assert producers.problems(fleet(shop), GROUPS) == ""
    assert producers.problems(fleet(), {"redis": ["r1"], "celery": ["web1"]}) == ""


@pytest.mark.parametrize("text", ["false", "False"])
def test_a_text_of_an_inventory_in_ini_format_counts(text: str) -> None:
    shop = {"celery_producer_files": text, "celery_producer_mode": "0644"}
    assert producers.problems(fleet(shop), GROUPS) == ""
    assert producers.with_files(fleet(shop), GROUPS) == []
    assert producers.found_problems(fleet({**shop}), GROUPS, ["shop1"]) == ""
    assert producers.problems(fleet({"celery_producer_files": "True"}), GROUPS) == ""
    assert producers.with_files(fleet({"celery_producer_files": "True"}), GROUPS) == ["shop1"]


def test_what_depends_on_redis_is_refused(tmp_path: pathlib.Path) -> None:
    elected = {**GROUPS, "redis": ["r1", "r2", "r3"]}
    shop = {"celery_producer_broker_variables": ["CELERY_BROKER_URL"]}
    assert "and no URL holds a Redis that Sentinels elect" in producers.problems(
        fleet(shop), elected
    )
    own = {"redis_tls_files": {"ca": "x"}}
    assert "a producer has no certificate of it" in producers.problems(fleet(**own), GROUPS)
    certificate = tmp_path / "shop.pem"
    named = {"celery_producer_certificate": str(certificate)}
    assert "the controller has no such file" in producers.problems(fleet(named, **own), GROUPS)
    certificate.write_text("")
    assert producers.problems(fleet(named, **own), GROUPS) == ""


def test_a_redis_of_the_users_own_gives_no_password() -> None:
    hosts = {"web1": {"redis_mode": "external"}, "shop1": {}}
    groups = {"celery": ["web1"], "celery_producers": ["shop1"]}
    assert "write celery_producer_files: false" in producers.problems(hosts, groups)
    hosts["shop1"] = {"celery_producer_files": False}
    assert producers.problems(hosts, groups) == ""
    assert producers.found_problems(hosts, groups, ["shop1"]) == ""


def test_a_host_that_does_not_answer_or_has_no_such_user_ends_the_run_early() -> None:
    hosts = fleet()
    hosts["shop1"] = {"__celery_producer_found": {"unreachable": True, "msg": "no route to host"}}
    said = producers.found_problems(hosts, GROUPS, ["shop1", "shop2"])
    assert said == (
        "shop1 cannot be reached: no route to host.\nNothing was changed on any host.\n"
        "To go on without it: --limit 'all:!shop1'."
    )
    # As Ansible registers it with failed_when: false.
    found = {
        "failed": False,
        "failed_when_result": False,
        "msg": 'shop1: celery_producer_owner is "x"',
    }
    hosts["shop1"] = {"__celery_producer_found": found}
    assert producers.found_problems(hosts, GROUPS, ["shop1"]) == (
        'shop1: celery_producer_owner is "x"'
    )
    hosts["shop1"] = {"__celery_producer_found": {"versions": {}}}
    assert producers.found_problems(hosts, GROUPS, ["shop1"]) == ""


def test_producers_keep_their_destination() -> None:
    hosts = fleet({"deploy_destination": "production", "__celery_producer_found": {}})
    assert producers.found_problems(hosts, GROUPS, ["shop1"]) == ""
    assert producers.options(hosts, GROUPS, "shop1")["destination"] == "production"
    assert producers.options(fleet(), GROUPS, "shop1")["destination"] == ""
    found = {"versions": {}, "destination": "staging"}
    hosts["shop1"] = {**hosts["shop1"], "__celery_producer_found": found}
    said = producers.found_problems(hosts, GROUPS, ["shop1"])
    assert said.startswith(
        "shop1: deployed for destination staging (/var/lib/celery-metal/producer.json), and "
        "deploy_destination is production.\n  Fix: take the inventory of staging; -e destination_w"
    )
    hosts["shop1"]["destination_was"] = "staging"
    assert producers.found_problems(hosts, GROUPS, ["shop1"]) == ""
    # Others than site.yml do not move a host.
    assert "site.yml -e destination_was=staging" in producers.moved(hosts, ["shop1"])


def test_with_a_limit_a_host_that_is_not_recorded_is_refused() -> None:
    hosts = fleet()
    given = {"producer": "a1", "certificate": "c1"}
    state = {"secrets": LABELS, "holders": {"hosts": {"shop1": given}, "certificates": {}}}
    hosts["shop1"] = hosts["shop2"] = {"__celery_producer_found": {}, "site_producer_broker": state}
    groups = {**GROUPS, "celery_producers": ["shop1", "shop2"]}
    assert producers.found_problems(hosts, groups, ["shop1"]) == ""
    said = producers.found_problems(hosts, groups, ["shop2"])
    assert "host shop2: it needs what opens Redis, and r1 has not recorded it" in said
    del hosts["r1"]["podman_host_state"]
    assert producers.options(hosts, GROUPS, "shop1", state)["secrets"] == ALL


OUTSIDE: list[tuple[dict[str, Any], str]] = [
    ({}, 'producer_to is ""'),
    ({"producer_to": "/etc/hostname"}, 'producer_to is "/etc/hostname", which is a link or no dir'),
    ({"producer_to": "out", "producer_plase": "x"}, "producer_plase is an unknown variable"),
    ({"producer_to": "out", "producer_place": "etc"}, 'producer_place is "etc"'),
    ({"producer_to": "out", "producer_broker_variables": "A,B-C"}, 'has "B-C", which is no name'),
    ({"producer_to": "out", "producer_certificate": "/x"}, "its own authority only"),
]


@pytest.mark.parametrize(("given", "text"), OUTSIDE)
def test_for_a_machine_outside_what_cannot_work_is_refused(
    given: dict[str, Any], text: str
) -> None:
    said = producers.outside_problems(fleet(), GROUPS, given)
    assert text in said
    assert said.endswith("Nothing was changed.")


def test_a_machine_outside_gets_the_same_with_paths_of_its_own() -> None:
    given = {"producer_to": "/root/out", "producer_broker_variables": "CELERY_BROKER_URL"}
    assert producers.outside_problems(fleet(), GROUPS, given) == ""
    found = producers.outside(fleet(), GROUPS, given)
    assert found["secrets"] == ALL
    assert (found["directory"], found["place"]) == ("/root/out", "/etc/celery-producer")
    assert (found["mode"], found["variables"]) == ("0600", ["CELERY_BROKER_URL"])
    # On the host of Redis alone nothing from outside arrives.
    alone = {"redis": ["r1"], "celery": ["r1"]}
    said = producers.outside_problems(fleet(), alone, given)
    assert "Redis on r1 does not listen on the network" in said
    assert producers.outside_problems(fleet(redis_listen=True), alone, given) == ""


@pytest.fixture
def site(tmp_path: pathlib.Path) -> Site:
    (tmp_path / "site").mkdir()
    site = Site(tmp_path / "site")
    site.hosts(celery=["web1"], redis=["web1"], celery_producers=["shop1"])
    return site


@pytest.mark.playbook
def test_a_rotation_takes_all_producers(site: Site) -> None:
    path = "playbooks/rotate-secrets.yml"
    run = site.run("--limit", "celery:redis", playbook=path)
    assert run.status != 0
    assert "Passwords are the same on all hosts, and shop1 would keep the earlier ones" in run.said
    assert "UNREACHABLE" not in run.said
    # One that only the firewall admits has nothing of it.
    site.variables(QUEUES + "celery_producer_files: false\n")
    assert "would keep" not in site.run("--limit", "celery:redis", playbook=path).said


@pytest.mark.playbook
@pytest.mark.parametrize(
    ("variables", "words", "text"),
    [
        ("celery_producer_mode: '0666'", [], 'shop1: celery_producer_mode is "0666"'),
        ("deploy_destination: a", ["-e", "destination=b"], 'destination is "b", and'),
        ("deploy_destination: a\ndeploy_protected: true", [], "this run changes hosts"),
    ],
)
def test_a_run_of_producers_alone_is_checked(
    site: Site, variables: str, words: list[str], text: str
) -> None:
    site.variables(f"{QUEUES}{variables}\n")
    site.refuses(text, words=["--limit", "shop1", *words])


@pytest.mark.playbook
def test_the_removal_of_producers_alone_names_the_destination(site: Site) -> None:
    site.variables(f"{QUEUES}deploy_destination: a\n")
    words = ["--limit", "shop1", "-e", "remove_confirmed=true"]
    run = site.run(*words, playbook="playbooks/remove.yml")
    assert "playbooks/remove.yml needs its name as a confirmation" in run.said
    assert "UNREACHABLE" not in run.said


@pytest.mark.playbook
def test_for_a_machine_outside_the_record_of_redis_is_looked_at(site: Site) -> None:
    words = ["-e", f"producer_to={site.directory}/out"]
    run = site.run(*words, playbook="playbooks/producer.yml")
    assert "Look for which destination the host was deployed" in run.said
    assert "UNREACHABLE" in run.said
    assert not (site.directory / "out").exists()


def test_programs_with_an_earlier_password_are_named() -> None:
    row = {"user": "producer", "address": "10.0.0.9", "count": 3, "seconds": 7200}
    said = producers.connected({"connections": [row]}, "broker", False)
    title, line, end, fix = said.split("\n")
    assert title == "broker: connections from before the new password:"
    assert line == "  producer from 10.0.0.9: 3, the oldest for 7200 s"
    assert "-e rotate_finish=true" in end
    assert fix.startswith("  Fix: give these programs the new password")
    assert "cannot send tasks now" in producers.connected({"connections": [row]}, "broker", True)
    for nothing in (None, {}, {"connections": []}, {"connections": [None]}, {"connections": "x"}):
        assert producers.connected(nothing, "broker", False) == ""
    odd = producers.connected({"connections": [{"user": "\x1b[2J", "count": -1}]}, "broker", True)
    assert odd.replace("\n", "").isprintable()
