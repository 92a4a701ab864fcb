"""Bad input is refused before any host is contacted.

Each case runs the real site.yml against hosts whose address refuses connections: a run that gets as
far as a connection says UNREACHABLE, and that is what the good inventory must say.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import controller
import pytest

pytestmark = pytest.mark.playbook
ROOT = pathlib.Path(__file__).resolve().parents[1]
DEAF = {"ansible_host": "127.0.0.1", "ansible_port": 1}
LOCAL = {"ansible_connection": "local"}
QUEUES = "celery_queues: [{name: emails}, {name: reports, workload: io}]\n"


@dataclass(frozen=True)
class Run:
    """How a run of site.yml ended; `said` is all it printed, with every run of blanks as one."""

    status: int
    said: str


class Site:
    """An inventory in a directory, and runs of site.yml with it."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        (directory / "group_vars").mkdir()
        self.hosts(celery=["web1", "web2"], redis=["web1"])
        self.variables(QUEUES)

    def hosts(self, connection: dict[str, Any] = DEAF, **groups: list[str]) -> None:
        children = {group: {"hosts": dict.fromkeys(hosts)} for group, hosts in groups.items()}
        inventory = {"all": {"vars": connection, "children": children}}
        (self.directory / "hosts.yml").write_text(json.dumps(inventory))

    def variables(self, yaml: str) -> None:
        (self.directory / "group_vars" / "all.yml").write_text(yaml)

    def run(self, *words: str, playbook: str = "site.yml") -> Run:
        return self.run_with("-i", str(self.directory), *words, playbook=playbook)

    @staticmethod
    def run_with(*words: str, playbook: str = "site.yml") -> Run:
        settings = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        line = [playbook, *words]
        done = controller.run(line, ROOT, {**os.environ, **settings})
        # YAML doubles quotes in quoted text, and wraps it.
        text = (done.stdout + done.stderr).replace("''", "'")
        return Run(done.returncode, re.sub(r"\s+", " ", text))

    def refuses(self, *texts: str, words: Sequence[str] = ()) -> None:
        """Assert that a run is refused with these texts, before any host is contacted."""
        run = self.run(*words)
        assert run.status != 0
        for text in texts:
            assert text in run.said
        assert "UNREACHABLE" not in run.said
        assert "Look at every host" not in run.said
        assert re.findall(r"changed=(\d+)", run.said) != []
        assert set(re.findall(r"changed=(\d+)", run.said)) == {"0"}


@pytest.fixture
def site(tmp_path: pathlib.Path) -> Site:
    return Site(tmp_path)


def test_good_input_gets_as_far_as_the_hosts(site: Site) -> None:
    run = site.run()
    assert run.status != 0
    assert "fatal: [web1]: UNREACHABLE!" in run.said
    assert "fatal: [web2]: UNREACHABLE!" in run.said
    assert "web2 cannot be reached: " in run.said
    assert "Nothing was changed on any host. All workers need web1, for it runs Redis" in run.said


@pytest.mark.parametrize(
    "queues",
    [
        "[{name: emails, concurrency: {min: 1, max: 4}}]",
        "[{name: emails, pool: solo}, {name: 'a/b c', pool: gevent, workload: io}]",
    ],
)
def test_other_good_queues_do_as_well(site: Site, queues: str) -> None:
    site.variables(f"celery_queues: {queues}\n")
    assert "UNREACHABLE" in site.run().said


GOOD_VARIABLES = """
capacity_reserve_mb: 500
capacity_redis_memory_mb: auto
redis_address: "{{ ansible_facts.eth1.ipv4.address }}"
redis_port: "{{ 6000 + 379 }}"
# Somebody else's, and not close to one of ours.
redis_exporter_version: 1.2.3
"""


def test_good_variables_do_as_well(site: Site) -> None:
    site.variables(QUEUES + GOOD_VARIABLES)
    assert "UNREACHABLE" in site.run().said


@pytest.mark.parametrize(
    ("queues", "texts"),
    [
        ("[{name: emails, wieght: 2}]", ['item 1 ("emails")', "wieght is an", "mean weight?"]),
        ("[{name: a}, {nmae: b}]", ["2 problems:", "item 2: nmae is an unknown key", "mean name?"]),
        ('[{name: a, concurrency: "8"}]', ['concurrency is "8", a string', "write 8"]),
        ("[{name: a, weight: 08}]", ['weight is "08" (YAML reads a leading zero', "write 8"]),
        ("[{name: NO}]", ["name is false (YAML reads yes, no, on and off", 'as in name: "no"']),
        ("[{name: a, instances: YES}]", ["instances is true (YAML reads yes, no, on and off"]),
        ("[{name: a}, {name: b}, {name: a}]", ['items 1 and 3 are named "a"', "keep one"]),
        ("[{name: a/}, {name: a_2f}]", ["would share the units celery-a_2f@", "rename one"]),
        (
            "[{name: a, pool: solo, concurrency: 4}]",
            ["concurrency is 4 with pool solo", "main process and ignores concurrency", "remove"],
        ),
        (
            "[{name: a, pool: threads, concurrency: {min: 1, max: 2}}]",
            ["pool threads, which cannot grow or shrink", "write a number"],
        ),
        ("[{name: a, pool: eventlet}]", ['pool is "eventlet": write one of prefork, threads']),
        ("[{name: a, drain_seconds: 0}]", ["drain_seconds is 0: write a whole number from 1 to"]),
        ("[{name: a, volumes: ['data:/x']}]", ['volumes has "data:/x": write HOST:CONTAINER']),
        ("[{name: a, ports: [8080:22]}]", ["ports has 484822: write PORT:PORT", "in quotes, as"]),
        (
            "[{name: a, ports: ['80:80']}, {name: b, ports: ['80:81']}]",
            ["the host's port 80: give"],
        ),
        (
            "[{name: a, quadlet: {Container: {User: '0'}}}]",
            ["quadlet.Container: User is not taken: the sandbox of all workers stands on it"],
        ),
        ("[]", ["celery_queues is an empty list", "[{name: emails}]"]),
        ("{name: a}", ["celery_queues is", "not a list: write a list"]),
    ],
)
def test_bad_queues(site: Site, queues: str, texts: list[str]) -> None:
    site.variables(f"celery_queues: {queues}\n")
    site.refuses(*texts)


def test_no_queues_at_all(site: Site) -> None:
    site.variables("{}\n")
    site.refuses("celery_queues is not set: write a list such as [{name: emails}]")


def test_the_queues_of_one_host_only(site: Site) -> None:
    """The other host's queues are good; any error is fatal for all."""
    (site.directory / "host_vars").mkdir()
    (site.directory / "host_vars" / "web2.yml").write_text("celery_queues: [{name: a, weight: 0}]")
    site.refuses("fatal: [web2]: FAILED!", "weight is 0: write a whole number from 1 to 1000")


@pytest.mark.parametrize(
    ("queues", "texts"),
    [
        (
            "[{name: emails, hosts: [wbe2]}]",
            [
                'hosts web1, web2: celery_queues ("emails"): hosts names "wbe2", which is neither',
                "nor a group of the inventory: did you mean web2?",
            ],
        ),
        (
            "[{name: emails}, {name: reports, hosts: [ungrouped]}]",
            ['queue "reports" of celery_queues would run on no host', "write hosts: [] for a"],
        ),
    ],
)
@pytest.mark.parametrize("words", [[], ["--limit", "web2"]])
def test_a_queue_without_a_host(
    site: Site, queues: str, texts: list[str], words: list[str]
) -> None:
    site.variables(f"celery_queues: {queues}\n")
    site.refuses(*texts, "Nothing was changed.", words=words)


@pytest.mark.parametrize("words", [[], ["--limit", "web2"], ["--check"]])
def test_hosts_without_queues_and_queues_without_workers_are_said(
    site: Site, words: list[str]
) -> None:
    site.variables("celery_queues: [{name: emails, hosts: [web2]}, {name: old, hosts: []}]\n")
    run = site.run(*words)
    assert "UNREACHABLE" in run.said
    assert "No host serves old (hosts: []): their tasks wait." in run.said
    assert "In the group celery, but no queue is placed there: web1." in run.said


def test_a_bad_override(site: Site) -> None:
    (site.directory / "host_vars").mkdir()
    overrides = "celery_queue_overrides: {emials: {instances: 4}, reports: {wieght: 2}}\n"
    (site.directory / "host_vars" / "web2.yml").write_text(overrides)
    site.refuses(
        "fatal: [web2]: FAILED!",
        'celery_queue_overrides ("emials"): celery_queues has no queue of that name: did you mean',
        'celery_queue_overrides ("reports"): wieght is an unknown key: did you mean weight?',
        "Nothing was changed.",
    )


def test_a_volume_and_a_key_that_beat_cannot_have(site: Site) -> None:
    quadlet = "celery_beat_quadlet: {Container: {Environment: A=1}}\n"
    site.variables(f"{QUEUES}celery_beat_volumes: ['schedule:/schedule']\n{quadlet}")
    site.refuses(
        "host web1: ",
        'celery_beat_volumes has "schedule:/schedule": write HOST:CONTAINER',
        "celery_beat_quadlet.Container: Environment is not taken: use celery_beat_environment",
        "Nothing was changed.",
    )


def test_a_bad_environment_of_an_override(site: Site) -> None:
    site.variables(QUEUES + "celery_queue_overrides: {emails: {environment: {DEBUG: no}}}\n")
    site.refuses('celery_queue_overrides ("emails"): environment has DEBUG as False')


def test_a_bad_environment_is_told_and_a_bad_secret_without_its_value(site: Site) -> None:
    site.variables(
        QUEUES
        + "celery_worker_environment: {DEBUG: no, VERSION: 010}\n"
        + "celery_worker_secrets: {TOKEN: {secret: hush-hush}, a/b: hush-hush}\n"
    )
    site.refuses(
        "host web1:",
        "celery_worker_environment has DEBUG as False, which is no text",
        "celery_worker_environment has VERSION as 8",
        "celery_worker_secrets[TOKEN] is no text: put its value in quotes",
        'celery_worker_secrets has the name "a/b"',
        "Nothing was changed.",
    )
    assert "hush" not in site.run("-vvvv").said


@pytest.mark.parametrize(
    ("groups", "texts"),
    [
        ({"celery": ["web1"]}, ["exactly one in the group redis (it has 0)"]),
        ({"celery": ["web1"], "redis": []}, ["exactly one in the group redis (it has 0)"]),
        ({"celery": ["web1"], "redis": ["r1", "r2"]}, ["(it has 2: r1, r2)"]),
        ({"celery": [], "redis": ["r1"]}, ["at least one host in the group celery (it has 0)"]),
        ({"redis": ["r1"]}, ["at least one host in the group celery (it has 0)"]),
    ],
)
def test_bad_groups(site: Site, groups: dict[str, list[str]], texts: list[str]) -> None:
    site.hosts(**groups)
    site.refuses(*texts, "A host may be in both. Nothing was changed.")


@pytest.mark.parametrize("words", [[], ["--limit", "web1"]])
def test_more_replicas_than_there_are(site: Site, words: list[str]) -> None:
    site.hosts(celery=["web1"], redis=["r1", "r2", "r3"])
    site.variables(QUEUES + "redis_replicas_required: 3\n")
    site.refuses(
        "hosts r1, r2, r3: redis_replicas_required is 3, and of 3 hosts in the group redis 2 are",
        "write 1, with which one of them may be away, or 2, with which none may; or add hosts.",
        "Nothing was changed.",
        words=words,
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("2", "UNREACHABLE"),
        ("'3'", 'redis_replicas_required is "3": it must be a whole number, 0 to 9'),
        ("'{{ 1 / 0 }}'", "redis_replicas_required cannot be read: "),
        ("'{{ nowhere }}'", "redis_replicas_required names something that is not defined"),
    ],
)
def test_other_numbers_of_replicas(site: Site, value: str, text: str) -> None:
    site.hosts(celery=["web1"], redis=["r1", "r2", "r3"])
    site.variables(f"{QUEUES}redis_replicas_required: {value}\n")
    assert text in site.run().said


def test_bad_groups_under_a_limit(site: Site) -> None:
    site.hosts(celery=["web1"], redis=["r1", "r2"])
    run = site.run("--limit", "web1")
    assert run.status != 0
    assert "exactly one in the group redis (it has 2: r1, r2), or three and more" in run.said
    assert "UNREACHABLE" not in run.said


def test_an_inventory_without_any_host(site: Site) -> None:
    site.hosts()
    site.refuses("at least one host in the group celery (it has 0)")


# Each with what is said of it; all in one run, which must name them all.
BAD_VARIABLES = {
    "redis_adress: 10.0.0.5": "redis_adress is no variable of the kit: did you mean redis_address?",
    "celery_queue: [{name: a}]": "celery_queue is no variable of the kit: did you mean celery_que",
    'redis_port: "6379"': 'redis_port is "6379": it must be a whole number, 1 to 65535, without',
    "redis_durability: eversec": 'is "eversec": it must be one of always, everysec, none',
    "redis_extra_config: [save]": "redis_extra_config is ['save']: it must be a mapping",
    "redis_user_rules: {worker: '+get >mine'}": (
        'redis_user_rules[worker] is "+get >mine": write rights in the words of Redis'
    ),
    "redis_apps: {Shop: 'shop:'}": "redis_apps[Shop] is no name of an app: write small letters",
    "redis_control_users: [worker]": "write producer, monitor, both, or none of them",
    "redis_key_prefixes: ['shop*']": "write the global_keyprefix of an app, such as shop:",
    "redis_backup_calendar: 100%": 'is "100%", which cannot be used: write it as systemd does',
    "redis_backup_keep_at_least: 0": "redis_backup_keep_at_least is 0: it must be a whole",
    "redis_backup_ship_to: web9": "names web9, which is no host of the inventory: add it there, or",
    "redis_socket_group: Ops!": 'redis_socket_group is "Ops!", which cannot be used: write the na',
    "redis_listen: 'yes'": 'redis_listen is "yes": it must be true or false, without quotes',
    "redis_allowed_sources: [10.0.0.7, web]": 'redis_allowed_sources[1] is "web", which is no addr',
    "celery_worker_egress: [any, db]": 'celery_worker_egress[1] is "db", which is no address',
    "celery_worker_subnet: 10.0.0.0/8": 'celery_worker_subnet is "10.0.0.0/8", which is no private',
    "redis_client_addresses: [a b]": 'redis_client_addresses[0] is "a b", which cannot be used',
    "redis_firewall: 'no'": 'redis_firewall is "no": it must be true or false, without quotes',
    "celery_worker_watchdog_seconds: 9": "is 9: it must be a whole number, 10 to 3600",
    "celery_worker_broker_database: YES": "is True: it must be a whole number, 0 to 15",
    "celery_worker_result_backend: reids": 'is "reids", which is no backend: write app, redis, ',
    "celery_worker_broker_variables: [A B]": 'names "A B", which is no name of a variable: take',
    "celery_worker_log_level: loud": "it must be one of debug, info, warning, error, critical",
    "celery_beat: 'yes'": 'celery_beat is "yes": it must be true or false, without quotes',
    "celery_beat_hosts: [web9]": "names web9, which is no host of the group celery: write others",
    "celery_beat_environment: {DEBUG: no}": "celery_beat_environment has DEBUG as False, which is",
    "celery_beat_secrets: [TOKEN]": (
        'celery_beat_secrets names "TOKEN", which is none of celery_worker_secrets: it has no'
    ),
    "celery_beat_volumes: /a:/b": 'celery_beat_volumes is "/a:/b": it must be a list',
    "celery_beat_quadlet: [ShmSize=1g]": "celery_beat_quadlet is ['ShmSize=1g']: it must be a map",
    "podman_host_packages: podman": 'podman_host_packages is "podman": it must be a list',
    "podman_host_ca_certificates: [1]": "podman_host_ca_certificates[0] is 1: it must be text",
    "upgrade_serial: 0": "upgrade_serial is 0: write how many hosts are upgraded at a time",
    "image_source: dockerhub": 'image_source is "dockerhub": it must be one of build, registry,',
    "image_app_source: 5": "image_app_source is 5: it must be text",
}


def test_bad_variables(site: Site) -> None:
    site.variables(QUEUES + "\n".join(BAD_VARIABLES))
    site.refuses("host web1: - ", "host web2: - ", *BAD_VARIABLES.values(), "Nothing was changed.")


def test_a_producer_with_a_bad_address(site: Site) -> None:
    site.hosts(celery=["web1"], redis=["web1"], celery_producers=["shop1", "shop2"])
    (site.directory / "host_vars").mkdir()
    (site.directory / "host_vars" / "shop1.yml").write_text("redis_client_addresses: 10.0.0.7\n")
    (site.directory / "host_vars" / "shop2.yml").write_text(
        "redis_client_addresses: [a/b]\ncelery_producer_mode: '0644'\n"
    )
    remedy = "write a list of addresses or names, such as [10.0.0.7]"
    site.refuses(
        f"host shop1: redis_client_addresses is '10.0.0.7': {remedy}",
        f"host shop2: redis_client_addresses holds 'a/b', which is neither: {remedy}",
        'shop2: celery_producer_mode is "0644" Fix: write "0640", "0600", "0440" or "0400"',
        "Nothing was changed.",
    )


def test_bad_certificates(site: Site) -> None:
    certificate = site.directory / "root.pem"
    certificate.write_text("")
    paths = [f"{certificate}", "/nowhere/root.crt", "no/such.pem"]
    site.variables(QUEUES + f"podman_host_ca_certificates: {json.dumps(paths)}\n")
    site.refuses(
        "- podman_host_ca_certificates names /nowhere/root.crt, which is no file on the controller",
        f"names {certificate} and /nowhere/root.crt, which would both be root.crt on the host",
        "- podman_host_ca_certificates names no/such.pem, which is no file on the controller",
        "Nothing was changed.",
    )


BAD_LIMITS = {
    "capacity_reserve_mb: '500'": 'capacity_reserve_mb is "500", a string: drop the quotes and',
    "capacity_redis_memory_mb: 63": "capacity_redis_memory_mb is 63: write auto, or a whole number",
}


def test_bad_limits(site: Site) -> None:
    site.variables(QUEUES + "\n".join(BAD_LIMITS))
    site.refuses("host web1: 2 problems:", *BAD_LIMITS.values(), "Nothing was changed.")


def test_a_number_from_the_command_line_is_text(site: Site) -> None:
    run = site.run("-e", "redis_port=6379")
    assert run.status != 0
    assert "use -e '{name: value}'" in run.said
    assert "UNREACHABLE" not in run.said


@pytest.mark.parametrize(
    ("variables", "texts"),
    [
        (
            "{image_source: archive, image_app: /nowhere/app.tar, image_redis: /nowhere/r.tar}",
            ["image_app: /nowhere/app.tar cannot be read as an image archive: [Errno 2] No such"],
        ),
        (
            "{image_source: archive, image_app: /etc/passwd, image_redis: /etc/passwd}",
            ["image_app: /etc/passwd cannot be read as an image archive", "'podman save --format"],
        ),
        (
            "{image_source: archive, image_app: /etc/passwd, image_redis: /etc/passwd, "
            "image_bundle_allowed_signers: /etc/hostname}",
            ['image_app "/etc": SHA256SUMS cannot be read there: No such file', "Fix: unpack a"],
        ),
        (
            "{image_source: archive}",
            ["image_app is empty: with image_source 'archive' it is the path of an image archive"],
        ),
        (
            "{image_source: registry, image_app: registry.example/a, "
            "image_redis: 'registry.example/r:latest'}",
            [
                "image_app ('registry.example/a') names no version",
                "image_redis ('registry.example/r:latest') names no version",
                "Write a version's tag or @sha256:digest.",
            ],
        ),
        (
            "{image_source: registry, image_app: 'app:1', image_redis_source: registry}",
            [
                "image_app ('app:1') is no image with its registry",
                "image_redis is empty: name the image",
            ],
        ),
        (
            "{image_redis: 'registry.example/redis:8'}",
            [
                "image_redis is 'registry.example/redis:8', and image_redis_source is 'build'",
                "write image_redis_source: registry or image_redis_source: archive, or remove",
            ],
        ),
        (
            "{image_app_source: /nowhere/app}",
            ["image_app_source: /nowhere/app is not a directory on the controller, nor a wheel"],
        ),
        (
            "{image_build_host: ci1}",
            ["image_build_host is 'ci1', which is no host of the groups celery and redis: write"],
        ),
        (
            "{image_app_source: /var/empty}",
            ["image_app_source: /var/empty has none of uv.lock, requirements.txt, pypr"],
        ),
    ],
)
def test_bad_images(site: Site, variables: str, texts: list[str]) -> None:
    app = site.directory / "app"
    app.mkdir()
    text = variables.replace("/var/empty", str(app))
    (site.directory / "group_vars" / "celery.yml").write_text(text)
    texts = [text.replace("/var/empty", str(app)) for text in texts]
    site.refuses(*texts, "Nothing was changed on any host.")


def test_other_images_on_one_host(site: Site) -> None:
    site.hosts(DEAF, celery=["web1", "web2"], redis=["web1"])
    (site.directory / "host_vars").mkdir()
    own = json.dumps({"image_app_source": "/srv/other"})
    (site.directory / "host_vars" / "web2.yml").write_text(own)
    site.refuses(
        'host web2: - image_app_source is "/srv/other" here, and not set on web1, but all hosts',
        "Nothing was changed.",
    )


# Beyond what is declared: what only a connection shows. This machine stands for the host, and the
# playbook is the first part of site.yml, which changes nothing whatever it finds.
CHECK = "playbooks/check.yml"


def test_a_variable_made_of_a_missing_fact(site: Site) -> None:
    site.hosts(LOCAL, celery=["web1"], redis=["web1"])
    site.variables(f"{QUEUES}redis_address: '{{{{ ansible_facts.noeth.ipv4.address }}}}'\n")
    run = site.run(playbook=CHECK)
    assert run.status != 0
    assert "host web1: - redis_address names something that is not defined" in run.said


def test_a_host_that_cannot_be_reached_ends_the_run_for_all(site: Site) -> None:
    site.hosts(LOCAL, celery=["web1", "web2"], redis=["web1"])
    (site.directory / "host_vars").mkdir()
    deaf = json.dumps({**DEAF, "ansible_connection": "ssh"})
    (site.directory / "host_vars" / "web2.yml").write_text(deaf)
    run = site.run(playbook=CHECK)
    assert run.status != 0
    assert "web2 cannot be reached: " in run.said
    assert "on any host. To go on without it: --limit 'all:!web2'." in run.said
    assert "Check the host" not in run.said


def test_where_ansible_becomes_root_on_no_host_the_remedy_is_named(site: Site) -> None:
    refuses = {**LOCAL, "ansible_become_user": "nobody", "ansible_become_exe": "/bin/false"}
    site.hosts(refuses, celery=["web1", "web2"], redis=["web1"])
    run = site.run(playbook=CHECK)
    assert run.status != 0
    assert "web1 answers, and Ansible does not become root there: " in run.said
    assert "web2 answers, and Ansible does not become root there: " in run.said
    assert "Fix: give the right password (--ask-become-pass)." in run.said
    assert "Nothing was changed on any host." in run.said
    assert "Check the host" not in run.said


def test_a_host_without_a_version_that_worked_cannot_go_back(site: Site) -> None:
    site.hosts(LOCAL, celery=["web1"], redis=["web1"])
    run = site.run("-e", "rollback_version=1", playbook="playbooks/rollback.yml")
    assert run.status != 0
    assert "web1: no version has worked there yet (/var/lib/celery-metal/workers.json" in run.said
    assert "Fix: leave the host out: --limit 'all:!web1'. Nothing was changed." in run.said
    assert "Check which hosts do what" not in run.said


def test_a_host_without_queues_needs_no_version_to_go_back_to(site: Site) -> None:
    site.hosts(LOCAL, celery=["web1", "web2"], redis=["web1"])
    site.variables("celery_queues: [{name: emails, hosts: [web1]}]\n")
    run = site.run("-e", "rollback_version=1", playbook="playbooks/rollback.yml")
    assert "web1: no version has worked there yet" in run.said
    assert "web2: no version has worked there yet" not in run.said


def test_redis_is_not_removed_under_the_workers_of_others(site: Site) -> None:
    run = site.run("--limit", "web1", playbook="playbooks/remove.yml")
    assert run.status != 0
    assert "Workers on web2 use this Redis and would wait without end: remove them" in run.said
    assert "UNREACHABLE" not in run.said
    run = site.run("-e", "remove_confirmed=no", playbook="playbooks/remove.yml")
    assert "remove_confirmed is no. Nothing was changed; run it again with -e" in run.said


# On a machine that systemd runs there is nothing to refuse; a skipped test would count as failed.
if not pathlib.Path("/run/systemd/system").is_dir():

    def test_a_host_that_systemd_does_not_run(site: Site) -> None:
        site.hosts(LOCAL, celery=["web1"], redis=["web1"])
        run = site.run(playbook=CHECK)
        assert run.status != 0
        assert "web1: systemd is not PID 1 there, so it cannot run units. Nothing was" in run.said
        assert "use the container image directly" in run.said
        assert set(re.findall(r"changed=(\d+)", run.said)) == {"0"}
