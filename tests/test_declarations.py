"""The check of the kit's variables: types, ranges, choices, and names close to ours."""

from __future__ import annotations

import pathlib
import subprocess
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import StrictUndefined

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPECS = [path.read_text() for path in sorted(ROOT.glob("roles/*/meta/argument_specs.yml"))]
OPTIONS = {
    name: option
    for spec in SPECS
    for name, option in yaml.safe_load(spec)["argument_specs"]["main"]["options"].items()
}


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("The TCP port, 1 to 65535.", (1, 65535)),
        (["First line.", "After 10 to 3600 seconds."], (10, 3600)),
        ("As many as you like.", None),
        ("Version 2 too.", None),
    ],
)
def test_bounds(
    declarations: ModuleType, description: str | list[str], expected: tuple[int, int] | None
) -> None:
    assert declarations.bounds(description) == expected


INT = {"type": "int", "description": "From 1 to 9."}
STR: dict[str, Any] = {"type": "str"}


@pytest.mark.parametrize(
    ("value", "option", "text"),
    [
        (5, INT, ""),
        (0, INT, "x is 0: it must be a whole number, 1 to 9"),
        (10, INT, "x is 10: it must be a whole number, 1 to 9"),
        (True, INT, "x is True: it must be a whole number, 1 to 9"),
        (5.0, INT, "x is 5.0: it must be a whole number"),
        (None, INT, "x is None: it must be a whole number"),
        ("5", INT, 'x is "5": it must be a whole number, 1 to 9, without quotes'),
        (-1, {"type": "int"}, ""),
        (False, {"type": "bool"}, ""),
        (0, {"type": "bool"}, "x is 0: it must be true or false"),
        ("true", {"type": "bool"}, 'x is "true": it must be true or false, without quotes'),
        ("", STR, ""),
        (5, STR, "x is 5: it must be text"),
        (5, {}, "x is 5: it must be text"),
        (None, {"type": "path"}, "x is None: it must be text"),
        ("b", {"choices": ["a", "b"]}, ""),
        ("c", {"choices": ["a", "b"]}, 'x is "c": it must be one of a, b'),
        ({}, {"type": "dict"}, ""),
        ([], {"type": "dict"}, "x is []: it must be a mapping"),
        (["a", "b"], {"type": "list", "elements": "str"}, ""),
        (["a", 1, 2], {"type": "list", "elements": "str"}, "x[1] is 1: it must be text; x[2] is 2"),
        ("a", {"type": "list", "elements": "str"}, 'x is "a": it must be a list'),
        # A number or a word; the role that owns it knows more.
        (5, {"type": "raw"}, ""),
        ("auto", {"type": "raw"}, ""),
        (StrictUndefined(name="y"), STR, "x names something that is not defined: 'y' is undefined"),
    ],
)
def test_problem(declarations: ModuleType, value: Any, option: dict[str, Any], text: str) -> None:
    found = declarations.problem("x", value, option)
    assert found.startswith(text)
    assert bool(found) == bool(text)


def check(declarations: ModuleType, variables: dict[str, Any], **words: Any) -> str:
    return declarations.declaration_problems(variables, SPECS, "web1", **words)


def test_all_problems_of_a_host_one_to_a_line(declarations: ModuleType) -> None:
    said = check(declarations, {"redis_port": 0, "redis_adress": "x", "image_source": "build"})
    assert said.splitlines() == [
        "host web1:",
        "- redis_adress is no variable of the kit: did you mean redis_address?",
        "- redis_port is 0: it must be a whole number, 1 to 65535",
        "Nothing was changed.",
    ]


@pytest.mark.parametrize(
    "name",
    # Of other roles and of users: nothing of theirs is ours to judge.
    [
        "redis_exporter_version",
        "redis_cluster",
        "redis_host",
        "celery_flower_port",
        "image_registry",
        "nginx_port",
        "ansible_host",
        "podman_version",
    ],
)
def test_what_is_not_ours_is_let_pass(declarations: ModuleType, name: str) -> None:
    assert check(declarations, {name: object()}) == ""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("celery_queue", "celery_queues"),
        ("celery_apps", "celery_app"),
        ("capacity_reserv_mb", "capacity_reserve_mb"),
        ("podman_host_package", "podman_host_packages"),
        ("image_app_sources", "image_app_source"),
    ],
)
def test_a_misspelt_name_is_told(declarations: ModuleType, name: str, meant: str) -> None:
    assert f"did you mean {meant}?" in check(declarations, {name: 1})


def test_an_archive_of_packages_that_is_not_there_is_told(
    declarations: ModuleType, tmp_path: pathlib.Path
) -> None:
    archive = tmp_path / "packages.tar"
    said = check(declarations, {"podman_host_packages_archive": str(archive)})
    assert f"podman_host_packages_archive names {archive}, which is no file on the contr" in said
    archive.touch()
    assert check(declarations, {"podman_host_packages_archive": str(archive)}) == ""


@pytest.mark.parametrize("serial", [1, "2", "99999", "1%", "25%", "100%"])
def test_an_upgrade_takes_a_number_of_hosts_or_a_share(
    declarations: ModuleType, serial: int | str
) -> None:
    assert check(declarations, {"upgrade_serial": serial}) == ""


@pytest.mark.parametrize("serial", [0, -1, "0", "0%", "101%", "two", "", True, 0.5, [1], None])
def test_an_upgrade_takes_no_other_number_for_all_hosts_at_once(
    declarations: ModuleType, serial: Any
) -> None:
    assert f"upgrade_serial is {declarations.shown(serial)}: write" in check(
        declarations, {"upgrade_serial": serial}
    )


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ({"image_app_python": "3.13"}, ""),
        ({"image_app_python": "3.12"}, 'is "3.13" here, and "3.12" on web0, but all hosts get th'),
        ({}, 'image_app_python is "3.13" here, and not set on web0, but all hosts get the same'),
        # What cannot be read there is said of that host.
        ({"image_app_python": StrictUndefined()}, ""),
    ],
)
def test_images_are_those_of_the_first_host(
    declarations: ModuleType, first: dict[str, Any], said: str
) -> None:
    own = {"image_app_python": "3.13", "image_registry_auth_file": "/root/auth.json"}
    found = check(declarations, own, first={"inventory_hostname": "web0", **first})
    assert (said in found) if said else found == ""


def test_the_environment_of_a_build_is_not_shown(declarations: ModuleType) -> None:
    build = {"image_build_environment": {"PIP_INDEX_URL": "hush"}}
    found = check(declarations, build, first={"inventory_hostname": "web0"})
    assert "image_build_environment is another one on web0, but all hosts" in found
    assert "hush" not in found


def test_a_name_of_before_is_told_the_new_one(declarations: ModuleType) -> None:
    said = check(declarations, {"celery_worker_app": "shop.celery:app"})
    assert "celery_worker_app has another name now: write celery_app" in said


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (["a", "c"], "celery_beat_hosts names c, which is no host of the group celery: write "),
        (
            [],
            "celery_beat_hosts is empty, so that no host would schedule: name some (the group cel",
        ),
    ],
)
def test_beat_runs_on_hosts_that_have_the_app(
    declarations: ModuleType, chosen: list[str], words: str
) -> None:
    known = {"groups": {"celery": ["a", "b"], "redis": ["c"]}}
    (said,) = declarations.beat_problems({**known, "celery_beat_hosts": chosen})
    assert words in said
    assert declarations.beat_problems({**known, "celery_beat_hosts": ["b"]}) == []
    assert declarations.beat_problems(known) == []


APP = {
    "celery_worker_environment": {"LEVEL": "1"},
    "celery_worker_secrets": {"DATABASE_URL": "hush-hush", "key.pem": "hush-hush"},
    "celery_worker_secrets_exported": ["DATABASE_URL"],
    "celery_queues": [{"name": "a", "environment": {"LEVEL": "2"}, "secrets": ["key.pem"]}],
}


def test_an_app_may_have_an_environment_and_secrets(declarations: ModuleType) -> None:
    assert declarations.app_problems(APP) == []
    assert declarations.app_problems({}) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"celery_worker_environment": {"A B": "1"}}, 'names "A B", which is no name of a vari'),
        ({"celery_worker_environment": {"CELERY_METAL_POOL": "solo"}}, "a variable of the roles"),
        (
            {"celery_worker_environment": {"CELERY_BROKER_URL": "x"}},
            "write celery_worker_broker_variables: [CELERY_BROKER_URL]",
        ),
        (
            {"celery_worker_environment": {"CELERY_RESULT_BACKEND": "x"}},
            "write celery_worker_result_backend, or celery_worker_broker_variables: [CELERY_RESULT",
        ),
        ({"celery_worker_environment": {"CELERY_APP": "x"}}, "write celery_app"),
        ({"celery_worker_broker_variables": ["A B"]}, 'names "A B", which is no name of a vari'),
        ({"celery_worker_broker_variables": ["CELERY_METAL_POOL"]}, "holds something else: remove"),
        ({"celery_worker_broker_variables": ["CELERY_APP"]}, "names CELERY_APP, which holds"),
        (
            {"celery_worker_broker_variables": ["DATABASE_URL"]},
            "names DATABASE_URL, which celery_worker_secrets_exported has as well: keep one",
        ),
        ({"celery_worker_broker_variables": ["LEVEL"]}, "LEVEL, which an environment has as well"),
        ({"celery_worker_result_backend": "secret:RESULTS"}, 'names the secret "RESULTS", which'),
        ({"celery_worker_result_backend": "redis://10.0.0.7/1"}, "result_backend: redis"),
        ({"celery_worker_result_backend": "redis+socket://:hush@/x"}, "result_backend: redis"),
        ({"celery_worker_result_backend": "db+postgresql://a:hush@b/c"}, '"secret:RESULTS"'),
        ({"celery_worker_result_backend": "mongodb://b/?Password=hush"}, '"secret:RESULTS"'),
        (
            {"celery_worker_result_backend": "azureblockblob://AccountName=a;AccountKey=hush"},
            '"secret:RESULTS"',
        ),
        ({"celery_worker_result_backend": "reids"}, 'is "reids", which is no backend: write app'),
        ({"celery_worker_result_backend": "file:///a b"}, "which is no backend: write app"),
        (
            {
                "celery_worker_secrets": {"DATABASE_URL": "rediss://:hush@r1", "key.pem": "x"},
                "celery_worker_result_backend": "secret:DATABASE_URL",
            },
            'is "secret:DATABASE_URL", the address of a Redis: ',
        ),
        ({"celery_worker_environment": {"A": False}}, "has A as False, which is no text"),
        ({"celery_worker_environment": {"A": 8}}, "has A as 8, which is no text"),
        ({"celery_worker_environment": {"A": None}}, "has A as None, which is no text"),
        ({"celery_worker_environment": {"A": "1\n[Service]"}}, "make it a secret"),
        ({"celery_worker_environment": {"DATABASE_URL": "x"}}, "exported names as well"),
        ({"celery_queues": [{"name": "a", "environment": {"A": 1}}]}, 'celery_queues ("a"): envir'),
        ({"celery_queues": [{"name": "a", "secrets": ["key"]}]}, "it has DATABASE_URL, key.pem"),
        ({"celery_worker_secrets_exported": ["OTHER"]}, 'names "OTHER", which is none of'),
        ({"celery_worker_secrets_exported": ["key.pem"]}, "is no name of a variable"),
        ({"celery_worker_secrets": {"DATABASE_URL": "", "key.pem": "x"}}, "[DATABASE_URL] is emp"),
        ({"celery_worker_secrets": {"DATABASE_URL": 8, "key.pem": "x"}}, "[DATABASE_URL] is no t"),
        (
            {"celery_worker_secrets": {**APP["celery_worker_secrets"], "a/b": "hush-hush"}},
            'the name "a/b"',
        ),
        (
            {
                "celery_worker_secrets": {
                    "DATABASE_URL": StrictUndefined(name="vault_url"),
                    "key.pem": "hush-hush",
                }
            },
            "'vault_url' is undefined",
        ),
    ],
)
def test_what_an_app_may_not_have_is_told_without_a_secret(
    declarations: ModuleType, changed: dict[str, Any], words: str
) -> None:
    (problem,) = declarations.app_problems({**APP, **changed})
    assert words in problem
    assert "hush" not in problem


@pytest.mark.parametrize(
    "value",
    [
        *("app", "redis", "django-db", "django-cache", "rpc://", "disabled", "file:///srv/results"),
        *("db+postgresql+psycopg://shop@db.example:5432/shop?sslmode=require", "secret:key.pem"),
        *("cache+memcached://10.0.0.7:11211;10.0.0.8:11211/", "cassandra://c1?keyspace=shop"),
        *(
            "shop.backends:Own",
            "shop.backends.Own+https://results.example/",
            "mongodb://[fd00::1]/x",
        ),
    ],
)
def test_results_go_to_what_celery_takes(declarations: ModuleType, value: str) -> None:
    assert declarations.app_problems({**APP, "celery_worker_result_backend": value}) == []


def test_sentinels_have_no_address_for_an_app(declarations: ModuleType) -> None:
    named = {"celery_worker_broker_variables": ["CELERY_BROKER_URL", "REDIS_URL"]}
    several = {"groups": {"redis": ["r1", "r2", "r3"]}}
    external = {"redis_mode": "external", "redis_external_url": "redis://r1"}
    sentinels = {**external, "redis_external_url": "sentinels://r1?master_name=m"}
    for fine in ({}, {"groups": {"redis": ["r1"]}}, {**several, **external}):
        assert declarations.app_problems({**APP, **named, **fine}) == []
    for refused in (several, sentinels):
        (problem,) = declarations.app_problems({**APP, **named, **refused})
        assert "Sentinels elect: remove it" in problem
        assert declarations.app_problems({**APP, **refused}) == []


def test_what_waits_for_facts_is_checked_with_them(declarations: ModuleType) -> None:
    variables = {"redis_address": StrictUndefined(obj={}, name="noeth")}
    assert check(declarations, variables) == ""
    assert "redis_address names something that is not" in check(
        declarations, variables, facts_known=True
    )


@pytest.mark.parametrize("network", ["host", "none"])
def test_ports_need_a_network_of_the_container_s_own(
    declarations: ModuleType, network: str
) -> None:
    queues = {"celery_queues": [{"name": "a", "ports": ["80:80"]}, {"name": "b"}]}
    assert declarations.app_problems(queues) == []
    (problem,) = declarations.app_problems({**queues, "celery_worker_network": network})
    assert problem.startswith(
        f'celery_queues ("a") has ports, and celery_worker_network is {network}'
    )


def test_queues_are_left_to_their_own_check(declarations: ModuleType) -> None:
    assert check(declarations, {"celery_queues": 5}) == ""


def test_the_defaults_of_all_roles_pass(declarations: ModuleType) -> None:
    defaults = {
        name: option["default"]
        for name, option in OPTIONS.items()
        if "default" in option
        and "{{" not in str(option["default"])
        and "given by the playbook" not in str(option["description"])
    }
    assert check(declarations, defaults) == ""


def test_certificates_are_looked_for_where_ansible_does(
    declarations: ModuleType, tmp_path: pathlib.Path
) -> None:
    role, playbooks = tmp_path / "role", tmp_path / "playbooks"
    for path in (role / "files" / "a.pem", playbooks / "sub" / "b.crt"):
        path.parent.mkdir(parents=True)
        path.write_text("")
    places = [str(role), str(playbooks)]
    paths = ["a.pem", "sub/b.crt", str(role / "files" / "a.pem")]
    assert declarations.certificate_problems(paths[:2], places) == []
    (same,) = declarations.certificate_problems(paths, places)
    assert same.endswith("a.pem, which would both be a.crt on the host: rename one")
    missing = declarations.certificate_problems(["files", "~nobody-there/x.pem"], [str(role)])
    assert [text.split(":")[0] for text in missing] == [
        "podman_host_ca_certificates names files, which is no file on the controller",
        "podman_host_ca_certificates names ~nobody-there/x.pem, which is no file on the controller",
    ]


def test_redis_needs_an_address_where_it_listens(declarations: ModuleType) -> None:
    assert check(declarations, {}, facts_known=True, address=None) == ""
    assert check(declarations, {}, facts_known=True, address="10.0.0.5") == ""
    said = check(declarations, {}, facts_known=True, address="").splitlines()
    assert said[1] == "- redis_address is not set, and the host has no IPv4 address on a network"
    assert said[3].startswith("  Fix: write redis_address: ")
    assert said[4] == "Nothing was changed."


def test_what_a_host_needs_of_a_redis_that_is_not_part_of_the_run(
    declarations: ModuleType,
) -> None:
    state: dict[str, Any] = {"secrets": {"celery-redis-worker": {}}, "admitted": None}

    def problem(state: dict[str, Any], source: str = "", **redis: Any) -> str:
        hosts = {"r1": {"redis_address": "10.0.0.5", "redis_tls": False, **redis}}
        found: str = declarations.broker_problem(state, hosts, "web1", "r1", source)
        return found

    assert problem(state) == ""
    assert problem({"secrets": {}}, redis_address="") == (
        "web1 needs Redis, and r1 has no password for it yet. Nothing was changed. "
        "Run site.yml without --limit."
    )
    assert problem(state, redis_address="").startswith("host r1: redis_address is not set")
    # One of a version that did not encrypt.
    assert problem(state, redis_tls=True) == (
        "web1 needs Redis, and r1 has no certificate for it yet. Nothing was changed. "
        "Run site.yml without --limit."
    )
    state["admitted"] = ["10.0.0.8", "10.1.0.0/16", "fd00::/64"]
    for source in ("10.0.0.8", "10.1.2.3", "fd00::1"):
        assert problem(state, source) == ""
    assert problem(state, "10.0.0.9") == (
        "web1 comes to Redis from 10.0.0.9, which r1 does not admit yet. Nothing was changed. Let "
        "the run go to both: --limit 'web1,r1'."
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("10.0.0.7", ""),
        ("10.1.0.0/16", ""),
        ("fd00::7", ""),
        ("0.0.0.0/0", ""),
        ("shop.example", "which is no address and no network: write such as 10.0.0.7"),
        ("10.0.0.7/33", "which is no address and no network"),
        ("fe80::1%eth0", "which is no address and no network"),
        ("", "which is no address and no network"),
        ("10.1.2.3/16", "which is an address in the network 10.1.0.0/16: write one of the two"),
    ],
)
def test_sources_that_redis_shall_admit(declarations: ModuleType, source: str, text: str) -> None:
    for name in ("redis_allowed_sources", "celery_worker_egress"):
        said = declarations.network_problems({name: [source]}, name)
        where = f'{name}[0] is "{source}", '
        assert (said == []) if not text else said[0].startswith(where + text)


def test_workers_may_connect_to_any(declarations: ModuleType) -> None:
    values = {"celery_worker_egress": ["any", "10.0.0.7", "all"]}
    (said,) = declarations.network_problems(values, "celery_worker_egress", ("any",))
    assert said.startswith('celery_worker_egress[2] is "all", which is no address and no network')
    assert said.endswith("fd00::/64, or any")


@pytest.mark.parametrize(
    ("subnet", "right"),
    [
        ("10.87.0.0/24", True),
        ("100.64.1.0/28", True),
        ("10.0.0.0/8", False),
        ("10.87.0.0/29", False),
        ("10.87.0.1/24", False),
        ("192.0.2.0/24", False),
        ("127.1.0.0/24", False),
        ("fd00::/64", False),
        ("10.87.0.0/24 drop", False),
        ("", False),
    ],
)
def test_the_network_of_workers_is_a_private_one(
    declarations: ModuleType, subnet: str, right: bool
) -> None:
    said = declarations.subnet_problems(subnet)
    assert (said == []) == right
    assert not said or said[0].startswith(
        f'celery_worker_subnet is "{subnet}", which is no private'
    )


def test_no_app_has_a_certificate_s_secret_for_its_password(declarations: ModuleType) -> None:
    assert declarations.redis_app_problems({"certificates": "c:"}) == []
    assert declarations.redis_app_problems({"certificate": "c:"}) == [
        "redis_apps[certificate] is a name of celery-metal's own secrets: choose another"
    ]


def test_apps_of_their_own_need_one_redis(declarations: ModuleType) -> None:
    apps = {"shop": "shop:"}
    assert declarations.redis_app_problems(apps, ["r1"]) == []
    assert declarations.redis_app_problems({}, ["r1", "r2", "r3"]) == []
    (said,) = declarations.redis_app_problems(apps, ["r1", "r2", "r3"])
    assert said == (
        "redis_apps is {'shop': 'shop:'}, and the group redis has 3 hosts, whose Sentinels do not "
        "know the users of apps: remove redis_apps, or take one host of Redis"
    )


@pytest.mark.parametrize(
    ("network", "right"),
    [
        ("bridge", True),
        ("host", True),
        ("none", True),
        ("podman", True),
        ("mine:ip=10.1.0.9", True),
        ("celery-metal2", True),
        ("bridges", True),
        ("celery-metal", False),
        ("celery-metal:ip=10.87.0.9", False),
        ("bridge:ip=10.88.0.9", False),
    ],
)
def test_no_name_of_a_network_leaves_out_the_rules(
    declarations: ModuleType, network: str, right: bool
) -> None:
    said = declarations.text_problem("celery_worker_network", network)
    assert (said == "") == right
    assert right or said.endswith("write bridge, host, none, or a Podman network of yours")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("", ""),
        ("web2", ""),
        ("r1", "names r1, where Redis itself is: name another host"),
        (
            "web9",
            "names web9, which is no host of the inventory: add it there, or take one of r1, ",
        ),
    ],
)
def test_backups_are_shipped_to_another_host(
    declarations: ModuleType, target: str, text: str
) -> None:
    groups = {"all": ["r1", "web1", "web2"], "redis": ["r1"]}
    said = "".join(declarations.ship_problems(target, groups))
    assert text in said
    assert bool(text) == bool(said)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(SCALARS, SCALARS, max_size=2)


@given(name=st.sampled_from(sorted(OPTIONS)), value=ANYTHING)
def test_any_value_is_accepted_or_refused_in_words(
    declarations: ModuleType, name: str, value: Any
) -> None:
    said = check(declarations, {name: value})
    assert said == "" or said.startswith("host web1:\n- ")


@pytest.fixture
def issued(tmp_path: pathlib.Path) -> dict[str, str]:
    """Files with an authority and certificates for a server and a worker, made with openssl."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "server", "worker")}

    def make(name: str, *words: str) -> None:
        made = ["openssl", "req", "-x509", *key, "-subj", f"/CN={name}", "-days", "9", *words]
        made += ["-keyout", f"{files[name]}.key", "-out", files[name]]
        subprocess.run(made, check=True, capture_output=True, cwd=tmp_path)
        if name != "ca":
            text = (
                pathlib.Path(files[name]).read_text()
                + pathlib.Path(f"{files[name]}.key").read_text()
            )
            pathlib.Path(files[name]).write_text(text)

    make("ca", "-addext", "basicConstraints=critical,CA:TRUE")
    by = ["-CA", files["ca"], "-CAkey", f"{files['ca']}.key"]
    make("server", *by, "-addext", "subjectAltName=IP:10.0.0.5,DNS:*.example")
    make("worker", *by)
    return files


def test_certificates_of_the_user_are_looked_at(
    declarations: ModuleType, issued: dict[str, str], tmp_path: pathlib.Path
) -> None:
    problems = declarations.tls_problems
    assert problems({}, ["10.0.0.5"]) == []
    assert problems(issued, ["10.0.0.5", "redis.example"]) == []
    (said,) = problems(issued, ["10.0.0.6"])
    assert "is for *.example, 10.0.0.5, and not for 10.0.0.6" in said
    (said,) = problems({"ca": issued["ca"]}, [])
    assert said.startswith("redis_tls_files has ca: write ca, server, worker")
    (said,) = problems({**issued, "worker": "tls/worker.pem"}, [])
    assert '"tls/worker.pem", which is no file on the controller: write its whole path' in said
    (said,) = problems({**issued, "worker": issued["ca"]}, [])
    assert "it holds no key" in said
    mixed = tmp_path / "mixed.pem"
    key = pathlib.Path(f"{issued['worker']}.key").read_text()
    mixed.write_text(
        pathlib.Path(f"{issued['server']}").read_text().partition("-----BEGIN PRI")[0] + key
    )
    (said,) = problems({**issued, "server": str(mixed)}, [])
    assert "its key is not that of its certificate" in said
    said = problems({**issued, "ca": issued["server"]}, [])
    assert [one.split(":")[0] for one in said] == [
        "redis_tls_files[server] is not issued by redis_tls_files[ca]",
        "redis_tls_files[worker] is not issued by redis_tls_files[ca]",
    ]
    mixed.write_text("$ANSIBLE_VAULT;1.1;AES256")
    assert problems({**issued, "server": str(mixed)}, ["10.0.0.6"]) == []


EXTERNAL = {"redis_mode": "external", "redis_external_url": "redis://worker@10.0.0.5:6379/0"}


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({}, ""),
        ({"redis_external_url": "rediss://redis.example"}, ""),
        ({"redis_external_url": "redis://[fd00::5]:6379/3"}, ""),
        ({"redis_external_url": "sentinel://w@a,b:26380,[fd00::5]:1/3?master_name=m"}, ""),
        ({"redis_external_url": "sentinels://a/0?master_name=m&sentinel_auth=no"}, ""),
        ({"redis_external_url": "sentinel://a,b/0"}, "which is no address of a Redis"),
        ({"redis_external_url": "sentinel://a,b:70000/0?master_name=m"}, "which is no address"),
        ({"redis_external_url": "sentinel://w:hush@a/0?master_name=m"}, "with a password in it"),
        ({"redis_external_url": "redis://a,b/0"}, "which is no address of a Redis"),
        (
            {"redis_external_url": ""},
            "redis_external_url is not set: write such as redis://worker@",
        ),
        ({"redis_external_url": "redis://w:hush@r/0"}, "with a password in it: remove it there"),
        ({"redis_external_url": "redis://:hush@r/0"}, "with a password in it: remove it there"),
        ({"redis_external_url": "http://r"}, 'is "http://r", which is no address of a Redis'),
        ({"redis_external_url": "redis://r:70000"}, "which is no address of a Redis"),
        ({"redis_external_url": "rediss://r?ssl_cert_reqs=none"}, "which is no address of a Redis"),
        ({"redis_external_url": "redis://w:hush@r\n"}, "it holds a control character"),
        ({"redis_external_url": ["redis://w:hush@r"]}, "it must be text"),
        ({"redis_mode": "deploy"}, "and redis_mode is deploy: write redis_mode: external, or"),
        (
            {"redis_external_password": "hush\n"},
            "redis_external_password holds a control character",
        ),
        (
            {"redis_external_password": ["hush"]},
            "redis_external_password is no text: put its value",
        ),
        ({"redis_external_accept": ["persistance"]}, "write some of appendfsync, authentication"),
        ({"redis_external_ca": "ca.pem"}, "redis_external_url is without TLS: write rediss://"),
        ({"redis_external_certificate": "a.pem"}, '"{{ inventory_dir }}/tls/certificate.pem"'),
        ({"celery_worker_network": "none"}, "take bridge or host"),
    ],
)
def test_a_redis_of_the_user_s_own(
    declarations: ModuleType, changed: dict[str, Any], text: str
) -> None:
    said = check(declarations, {**EXTERNAL, **changed})
    assert text in said
    assert bool(text) == bool(said)
    assert "hush" not in said


def test_files_for_a_redis_of_the_user_s_own(
    declarations: ModuleType, issued: dict[str, str]
) -> None:
    known = {"redis_mode": "external", "redis_external_url": "rediss://worker@10.0.0.5:6379/0"}
    known |= {"redis_external_ca": issued["ca"], "redis_external_certificate": issued["worker"]}
    assert check(declarations, known) == ""
    said = check(declarations, {**known, "redis_external_certificate": issued["ca"]})
    assert f'redis_external_certificate is "{issued["ca"]}"'[:60] in said
    assert "it holds no key that can be read" in said


@pytest.mark.parametrize(
    ("apps", "said"),
    [
        ({"shop": "shop*"}, 'redis_apps[shop] is "shop*": write the global_keyprefix of the'),
        ({"shop": "a:", "mail": "a:"}, 'redis_apps[mail] is "a:", with which another begins'),
    ],
)
def test_a_prefix_of_an_app_belongs_to_it_alone(
    declarations: ModuleType, apps: dict[str, str], said: str
) -> None:
    (problem,) = declarations.redis_app_problems(apps)
    assert problem.startswith(said)
