"""Over a thousand odd declarations: each deploys exactly what it says, or is refused in words.

Each is a host of one inventory, with variables of its own as YAML text, so that Ansible itself
reads them, templates them and weighs them against the defaults. A few runs of fuzz.yml, which
consists of the checks and templates of site.yml, judge all of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.playbook
ROOT = pathlib.Path(__file__).resolve().parents[1]
SEED = 20261124
# Odd values for each variable and key, of all that there are.
SAMPLE = 4
# The time that Ansible takes for a task of one host grows with the number of hosts.
HOSTS_OF_A_RUN = 60
# Nothing is wrong with no variables: the groups of the run, once all specs are read.
HOSTS = "{{ {} | declaration_problems(__fuzz_specs, 'none') ~ 'celery:redis' }}"
SPECS = {
    path.parents[1].name: yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"]
    for path in sorted(ROOT.glob("roles/*/meta/argument_specs.yml"))
}
OPTIONS = {name: option for options in SPECS.values() for name, option in options.items()}
QUEUE_KEYS = OPTIONS["celery_queues"]["options"]
GIVEN = {
    name
    for name, option in OPTIONS.items()
    if "given by the playbook" in str(option["description"])
}
BROKEN = object()
QUADLET = "celery_beat_quadlet"
# It declares nothing of its own.
PLAIN_HOST = "plain"

# YAML texts, and what they say where that is not what PyYAML reads.
PLAIN = (
    *("no", "yes", "On", "~", "''", "08", "010", "0x1F", "0o17", "1_000", "1e3", "1.10", "-1"),
    *(".nan", ".inf", "-.inf", "0", "99999999999999999999999", "2026-11-24", "12:30:45"),
    *("2026-11-24T10:00:00Z", "!!binary aGVsbG8=", "[]", "{}", "[1]", "[[]]", "{a: 1}"),
    *("[{a: {b: [~]}}]", "[&x 1, *x]", "{<<: {a: 1}, b: 2}", "!!set {a, b}", "'auto'", "'8'"),
    *("'08'", "' x '", r'"a\nb"', r'"a\n[Service]\nExecStartPre=/bin/sh -c id"', r'"a\tb"'),
    *(r'"\0"', r'"\e[31mred"', r'"\x85"', r'"a\u2028b"', r'"\u202Eevil"', r'"\uFEFFx"'),
    *(r'"\uFDD0"', r'"\uFFFF"', r'"\U0001F600 \U0010FFFE"', "'日本語'", "'ΑΩ'", "'ﬁ'"),
    *("'%i %H %% %n'", "'$HOME ${PATH} $(id) `id`'", r'"quote \" and \\ end\\"', '"it\'s"'),
    *("'; rm -rf /'", "'# comment'", "'--help'", "'../../etc/passwd'", "'a,b;c=d'", "'='"),
    *(f"'{'x' * 199}'", f"'{'x' * 100_000}'", "'a b'", "'a:b'", "'name.with:colon'", "host"),
)
ODD: dict[str, Any] = dict.fromkeys(PLAIN) | {
    "!unsafe '{{ 7 * 7 }}'": "{{ 7 * 7 }}",
    "!unsafe '{% raw'": "{% raw",
    "!unsafe '{# no'": "{# no",
    "'{{ 7 * 7 }}'": 49,
    "'{{ [1, 2] }}'": [1, 2],
    "'{{ none }}'": None,
    "'{{ \"a\" ~ 1 }}'": "a1",
    "'{{ nope }}'": BROKEN,
    "['{{ nope }}']": BROKEN,
    "{A: '{{ nope }}'}": BROKEN,
    "'{{ THIS }}'": BROKEN,
    "'{{ 1 / 0 }}'": BROKEN,
    "'{{ 1 | nofilter }}'": BROKEN,
    "'{{ unbalanced'": BROKEN,
    "'{{ lookup(\"nosuch\") }}'": BROKEN,
    "!vault |\n    $ANSIBLE_VAULT;1.1;AES256\n    3333\n": BROKEN,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """The variables of one host, as YAML, and of what a refusal must speak.

    `value` is what the odd place holds, BROKEN if it cannot be read; `secret` whether no word of it
    may be said.
    """

    text: str
    name: str
    value: Any
    secret: bool = False


class Unsafe(str):
    """Text that is no template."""

    __slots__ = ()


class Loader(yaml.CSafeLoader):
    """YAML as Ansible reads it."""

    def unsafe(self, node: yaml.ScalarNode) -> Any:
        """Ansible looks behind the quotes: !unsafe '8' is a number."""
        tag = self.resolve(yaml.ScalarNode, node.value, (True, False))
        if tag == "tag:yaml.org,2002:str":
            return Unsafe(node.value)
        return self.yaml_constructors[tag](self, node)


Loader.add_constructor("!unsafe", Loader.unsafe)

Loader.add_constructor("!vault", lambda loader, node: BROKEN)


def odd(rng: random.Random, name: str, number: int = SAMPLE) -> Iterator[tuple[str, Any]]:
    for text in rng.sample(sorted(ODD), number):
        value = ODD[text]
        if value is None and "none" not in text:
            value = yaml.load(text, Loader)
        yield text.replace("THIS", name), value


def block(text: str) -> str:
    """YAML text that can stand inside [] and {}: a vault's text cannot."""
    return text if "\n" not in text else "'{{ nope }}'"


def of_variables(rng: random.Random) -> Iterator[Case]:
    for name, option in sorted(OPTIONS.items()):
        secret = name in ("celery_worker_secrets", "redis_external_password")
        # All of what a playbook gives is refused alike.
        for text, value in odd(rng, name, 2 if name in GIVEN else SAMPLE):
            yield Case(f"{name}: {text}", name, value, secret)
        if option.get("type") == "list":
            for text, value in odd(rng, name, 4):
                yield Case(f"{name}: [{block(text)}]", name, [value])
        if name == "celery_queue_overrides":
            for text, value in odd(rng, name, SAMPLE):
                yield Case(f"{name}: {{q: {block(text)}}}", name, value)
                yield Case(f"{name}: {{q: {{weight: {block(text)}}}}}", name, value)
        elif option.get("type") == "dict" and name not in GIVEN:
            where = "{Container: {ShmSize: %s}}" if name == QUADLET else "{maxclients: %s}"
            for text, value in odd(rng, name, 2 * SAMPLE):
                yield Case(f"{name}: {where % block(text)}", name, {"k": value}, secret)
                # YAML itself takes keys of at most 1024 characters, and Ansible fills in none.
                if isinstance(value, str) and len(value) < 1000 and "'{{" not in text:
                    yield Case(f"{name}: {{{block(text)}: '1'}}", name, value)


def of_queues(rng: random.Random) -> Iterator[Case]:
    for key in QUEUE_KEYS:
        for text, value in odd(rng, "celery_queues", 2 * SAMPLE):
            item = {"name": f"name: {block(text)}"}.get(key, f"name: q, {key}: {block(text)}")
            yield Case(f"celery_queues: [{{{item}}}]", "celery_queues", value)
        for wrong in (f"{key}s", key[:-1], key.upper(), f"x-{key}"):
            if wrong not in QUEUE_KEYS:
                yield Case(f"celery_queues: [{{name: q, {wrong}: 1}}]", "celery_queues", wrong)
    for text, value in odd(rng, "celery_queues", 2 * SAMPLE):
        yield Case(f"celery_queues: [{{name: q}}, {block(text)}]", "celery_queues", value)
        yield Case(
            f"celery_queues: [{{name: q, environment: {{A: {block(text)}}}}}]",
            "celery_queues",
            value,
        )
        yield Case(
            f"celery_queues: [{{name: q, secrets: [{block(text)}]}}]", "celery_queues", value
        )


NAMES = """
same, same
Same, same
a/, a_2f
é, é
ﬁ, fi
日本語, 日本
-, --
., ..
a@b, a%b
""".strip().splitlines()


def of_names(rng: random.Random) -> Iterator[Case]:
    for line in NAMES:
        one, other = line.split(", ")
        text = f"celery_queues: [{{name: '{one}'}}, {{name: '{other}'}}]"
        yield Case(text, "celery_queues", other)
    letters = [chr(n) for n in range(32, 127)] + list(
        "äßΩЖ日本語م\u0301\u200d\ud7ff😀\x7f\x80\u2029"
    )
    for _ in range(60):
        name = "".join(rng.choices(letters, k=rng.randint(2, 40)))
        text = yaml.safe_dump({"celery_queues": [{"name": name}]}, allow_unicode=True)
        yield Case(text.replace("name: ", "name: !unsafe "), "celery_queues", name)


def of_environments(rng: random.Random) -> Iterator[Case]:
    letters = [chr(n) for n in range(32, 127)] + list("äßΩЖ日本語م😀\x7f\u0085\u2028\t\n")
    for _ in range(60):
        value = "".join(rng.choices(letters[: rng.choice((95, 200))], k=rng.randint(2, 60)))
        quoted = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=9999).strip()
        name = rng.choice(("celery_worker_environment", "celery_beat_environment"))
        yield Case(f"{name}: {{A: !unsafe {quoted}}}", name, {"A": value})


def near(rng: random.Random) -> Iterator[Case]:
    """Names that are one letter off."""
    for name in sorted(OPTIONS):
        place = rng.randrange(len(name) // 2, len(name))
        wrong = name[:place] + name[place + 1 :]
        yield Case(f"{wrong}: 1", wrong, None)


def cases() -> dict[str, Case]:
    rng = random.Random(SEED)
    found: dict[str, Case] = {}
    for kind in (of_variables, of_queues, of_names, of_environments, near):
        for case in kind(rng):
            found.setdefault(case.text, case)
    hosts = {f"h{number}": case for number, case in enumerate(found.values())}
    return {PLAIN_HOST: Case("{}", "celery_queues", None), **hosts}


# ------------------------------------------------------------------------------------------
# The run


def role_defaults() -> dict[str, Any]:
    """What all roles say where an inventory says nothing, with one queue."""
    defaults: dict[str, Any] = {"celery_queues": [{"name": "q"}]}
    for role in SPECS:
        defaults |= yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text())
    return {name: value for name, value in defaults.items() if name not in GIVEN}


def write_inventory(directory: pathlib.Path, declared: Mapping[str, str]) -> None:
    """An inventory in which each host declares its own; below that, the defaults of all roles."""
    groups = {
        "celery": {"hosts": dict.fromkeys(declared)},
        "redis": {"hosts": {next(iter(declared)): None}},
    }
    for name in ("group_vars", "host_vars"):
        (directory / name).mkdir()
    (directory / "group_vars" / "all.yml").write_text(yaml.safe_dump(role_defaults()))
    (directory / "hosts.yml").write_text(json.dumps({"all": {"children": groups}}))
    for host, text in declared.items():
        (directory / "host_vars" / f"{host}.yml").write_text(text + "\n")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a host: why it was refused, or else what would be deployed."""

    refusal: str
    deployed: Mapping[str, Any]


def judge(directory: pathlib.Path) -> dict[str, Verdict]:
    """Run fuzz.yml once, and tell what it says of each host."""
    filters = [ROOT / "playbooks/filter_plugins", *ROOT.glob("roles/*/filter_plugins")]
    done = subprocess.run(
        [
            pathlib.Path(sys.executable).with_name("ansible-playbook"),
            "-i",
            directory,
            "--extra-vars",
            json.dumps({"fuzz_hosts": HOSTS}),
            "tests/fuzz.yml",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_FILTER_PLUGINS": ":".join(map(str, filters)),
            "ANSIBLE_FORKS": "2",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        },
    )
    assert done.stdout.startswith("{"), done.stdout[-2000:] + done.stderr[-2000:]
    refusals: dict[str, str] = {}
    deployed: dict[str, Any] = {}
    for task in json.loads(done.stdout)["plays"][0]["tasks"]:
        for host, result in task["hosts"].items():
            if result.get("failed"):
                refusals[host] = result["msg"]
            elif task["task"]["name"] == "Render what the host would get":
                deployed[host] = result["msg"]
    return {
        host: Verdict(refusals.get(host, ""), deployed.get(host, {}))
        for host in {**refusals, **deployed}
    }


# ------------------------------------------------------------------------------------------
# What a refusal must say

INTERNALS = re.compile(
    r"Traceback|Task failed|Error while|Finalization|unhashable|_Ansible|object at 0x"
    r"|<class|Marker|jinja|marker was tripped|Operation",
    re.IGNORECASE,
)
REMEDY = re.compile(
    r"\b(write|remove|put|take|choose|keep|rename|drop|must be|did you mean|shorten|make it|give"
    r"|define|correct|close|use|swap|lower|takes exactly|every queue needs|the keys are)\b"
)


def forms(value: Any) -> Iterator[str]:
    """The ways in which a message may quote a value or a part of it, each a beginning of it."""
    if value is BROKEN:
        yield from ("not defined", "cannot be read", "cannot be decrypted")
    elif value is None:
        yield from ("None", "null", "is empty", "not set")
    elif isinstance(value, (dict, set)) and value:
        for one in value:
            yield from forms(one)
            yield from forms(value[one] if isinstance(value, dict) else None)
    elif isinstance(value, (list, tuple)) and value:
        for one in value:
            yield from forms(one)
    else:
        seen = json.dumps(value, default=str, ensure_ascii=False)
        seen = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in seen)
        for text in (json.dumps(value, default=str), repr(value), ascii(value), str(value), seen):
            yield text.strip("\"'")[:30]
        if value == {}:
            yield "is missing"  # of what had to be in it
        yield "is empty" if value == "" else json.dumps(value, default=str)[:30]


def words(value: Any) -> Iterator[str]:
    """What is in a value and long enough to be known again, each a beginning of it."""
    if isinstance(value, (dict, list, tuple, set)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from words(one)
    elif value is not BROKEN and len(str(value)) > 7:
        yield str(value)[:30]


def faults_of_refusal(host: str, case: Case, said: str) -> list[str]:
    """What a refusal lacks, or says too much."""
    lines = said.splitlines()
    problems = [line for line in lines if line.startswith("- ")] or [lines[0]]
    faults = {
        "no host": f"host {host}" not in said,
        # What does not fit on the host is said of the queue.
        "no variable": case.name not in said
        and not (case.name == "celery_queues" and 'queue "q": ' in said),
        "no word that nothing was changed": "Nothing was changed." not in said,
        "no remedy": not all(REMEDY.search(line) for line in problems),
        "internals": bool(INTERNALS.search(said)),
        "too long": max(map(len, lines)) > 1000,
        "what a terminal obeys": not all(line.isprintable() for line in lines),
    }
    if case.secret:
        faults["a secret"] = any(word in said for word in words(case.value))
    elif case.value is not None or case.name.startswith("celery_queues"):
        faults["no value"] = not any(form in said for form in forms(case.value))
    return [fault for fault, found in faults.items() if found]


# ------------------------------------------------------------------------------------------
# What is deployed

ENVIRONMENT = "celery_worker_environment"


def resolved(value: Any) -> Any:
    """A declaration with its templates filled in."""
    if isinstance(value, dict):
        return {resolved(key): resolved(one) for key, one in value.items()}
    if isinstance(value, list):
        return [resolved(one) for one in value]
    if isinstance(value, str) and not isinstance(value, Unsafe) and "{{" in value:
        return ODD[f"'{value}'"]
    return str(value) if isinstance(value, Unsafe) else value


def unquoted(word: str) -> str:
    """A value as it is behind Quadlet and systemd: both read quotes, and systemd % and $."""
    if word.startswith('"'):
        assert word.endswith('"'), word
        word = re.sub(r"\\(.)", r"\1", word[1:-1])
    assert not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", word), word
    return word.replace("$$", "$").replace("%%", "%")


def sections(text: str) -> dict[str, list[tuple[str, str]]]:
    """A unit file's sections, each with its keys and values, as systemd splits lines."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in text.split("\n"):
        if line.startswith("["):
            name = line.strip("[]")
            assert name not in found, f"a second [{name}]"
            found[name] = []
        elif line and not line.startswith("#"):
            assert "=" in line, line
            assert not line.endswith("\\"), line
            key, value = line.split("=", 1)
            found[name].append((key, value))
    return found


def worker_of(text: str) -> dict[str, Any]:
    """What one worker's unit says of what is declared."""
    unit = sections(text)
    assert set(unit) == {"Unit", "Container", "Service", "Install"}
    container, service = dict(unit["Container"]), dict(unit["Service"])
    assert "%" not in container["Image"] + container["Network"]
    pairs = [
        unquoted(value).split("=", 1) for key, value in unit["Container"] if key == "Environment"
    ]
    assert [key for key, _ in unit["Service"]].count("ExecStopPost") == 2
    before = [value for key, value in unit["Service"] if key == "ExecStartPre"]
    rules = ["/usr/sbin/nft -f /etc/celery-metal/egress.nft"]
    assert before == (rules if container["Network"] == "celery-metal" else [])
    return {
        "environment": dict(pairs),
        "description": dict(unit["Unit"])["Description"].replace("%%", "%"),
        "network": container["Network"],
        "watchdog": service["WatchdogSec"],
        "memory": service["MemoryMax"],
        "stop": container["StopTimeout"],
        "shm": [value for key, value in unit["Container"] if key == "ShmSize"],
        "secrets": {
            value.split(",")[0].removeprefix("celery-app-")
            for key, value in unit["Container"]
            if key == "Secret" and value.startswith("celery-app-")
        },
    }


def worker_wanted(queue: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """The same, from what is declared; `environment` only as far as it is declared."""
    secrets = queue.get("secrets", "all")
    prefork = queue.get("pool", "prefork") == "prefork"
    limit = queue.get("time_limit_seconds", 0)
    drain = queue.get("drain_seconds", 60)
    environment = {
        **said[ENVIRONMENT],
        **queue.get("environment", {}),
        "CELERY_APP": said.get("celery_app", "metal_sample.celery:app"),
        "CELERY_METAL_QUEUE": queue["name"],
        "CELERY_METAL_POOL": queue.get("pool", "prefork"),
        "CELERY_METAL_ACKS_LATE": str(queue.get("acks_late", True)).lower(),
        "CELERY_METAL_PREFETCH": str(queue.get("prefetch", 1)),
        "CELERY_METAL_DRAIN_SECONDS": str(drain),
        "CELERY_METAL_LOGLEVEL": said["celery_worker_log_level"],
        "CELERY_METAL_BROKER": f"redis{'s' if said['redis_tls'] else ''}://worker@"
        f"{said['redis_address']}:{said['redis_port']}/{said['celery_worker_broker_database']}",
        "CELERY_METAL_PROCESS_FACTOR": str(said["capacity_process_factor"]),
    }
    if prefork:
        each = queue.get("memory_per_process_mb", 150)
        environment["CELERY_METAL_MAX_MEMORY_PER_CHILD_MB"] = str(each)
    if queue.get("max_tasks_per_child", 0):
        environment["CELERY_METAL_MAX_TASKS_PER_CHILD"] = str(queue["max_tasks_per_child"])
    if limit:
        environment["CELERY_METAL_TIME_LIMIT_SECONDS"] = str(drain if limit == "auto" else limit)
    if isinstance(queue.get("concurrency"), int):
        environment["CELERY_METAL_PLAN_CONCURRENCY"] = str(queue["concurrency"])
    return {
        "environment": environment,
        "description": f"Queue {queue['name']}, Celery worker %i",
        # A network of their own, of which a unit has the name.
        "network": {"bridge": "celery-metal"}.get(
            network := said["celery_worker_network"], network
        ),
        "watchdog": str(said["celery_worker_watchdog_seconds"]),
        "stop": str(drain + 10),
        "secrets": set(said["celery_worker_secrets"]) if secrets == "all" else set(secrets),
    }


def faults_of_beat(beat: Mapping[str, Any], said: Mapping[str, Any]) -> list[str]:
    """Where Beat's unit differs from what is declared."""
    wanted = {**said[ENVIRONMENT], **said.get("celery_beat_environment", {})}
    got = {name: value for name, value in beat["environment"].items() if name != "CELERY_APP"}
    got = {name: value for name, value in got.items() if not name.startswith("CELERY_METAL_")}
    chosen = said.get("celery_beat_secrets", "all")
    secrets = set(said["celery_worker_secrets"] if chosen == "all" else chosen)
    faults = [f"Beat's environment: {got}"] if got != wanted else []
    sizes = said.get(QUADLET, {}).get("Container", {}).get("ShmSize", [])
    sizes = [
        str(one).lower() if isinstance(one, bool) else str(one)
        for one in (sizes if isinstance(sizes, list) else [sizes])
    ]
    faults += [f"Beat's ShmSize: {beat['shm']}"] if beat["shm"] != sizes else []
    return [*faults, "Beat's secrets"] if beat["secrets"] != secrets else faults


def directives(deployed: Mapping[str, Any]) -> list[str]:
    """The lines of redis.conf that Redis reads."""
    lines = deployed["redis_conf"].split("\n")
    return [line for line in lines if line and not line.startswith("#")]


def faults_of_deployment(
    case: Case, deployed: Mapping[str, Any], plain: Mapping[str, Any]
) -> list[str]:
    """Where units and configuration differ from what is declared."""
    declared = resolved(yaml.load(case.text, Loader))
    said = {**role_defaults(), "redis_address": "192.0.2.1", **declared}
    said["redis_address"] = said["redis_address"] or "192.0.2.1"
    files, links = deployed["units"]["files"], deployed["units"]["links"]
    units = {p: worker_of(text) for p, text in files.items() if p.endswith(".container")}
    beat = units.pop("/etc/containers/systemd/celery-metal/celery-beat.container")
    workers = list(units.values())
    got = {worker["environment"]["CELERY_METAL_QUEUE"]: worker for worker in workers}
    faults = []
    # On no host by the user's own word, or on this one.
    served = [queue for queue in said["celery_queues"] if queue.get("hosts") != []]
    if sorted(got) != sorted(queue["name"] for queue in served):
        faults.append(f"queues are {list(got)}")
    for queue in served:
        worker = got[queue["name"]]
        wanted = worker_wanted(queue, said)
        environment = wanted.pop("environment")
        differs = {
            name: worker["environment"].get(name)
            for name, value in environment.items()
            if worker["environment"].get(name) != value
        }
        more = [
            n
            for n in worker["environment"]
            if n not in environment and not n.startswith("CELERY_METAL_")
        ]
        faults += [f"environment: {differs} {more}"] if differs or more else []
        faults += [
            f"{key} is {worker[key]!r}" for key, value in wanted.items() if worker[key] != value
        ]
    instances = sum(queue.get("instances", 1) for queue in served)
    # One more brings Podman's rules back, where there are any.
    networks = {worker["network"] for worker in [*workers, beat]} - {"host", "none"}
    if len(links) != instances + len(workers) + len(networks):
        faults.append(f"{len(links)} links")
    faults += faults_of_beat(beat, said)
    conf = directives(deployed)
    extra = [f"{name} {value}" for name, value in sorted(said["redis_extra_config"].items())]
    durability = {"none": "no"}.get(said["redis_durability"], said["redis_durability"])
    for line in (
        f"bind {said['redis_address']}",
        f"{'tls-' if said['redis_tls'] else ''}port {said['redis_port']}",
        f"appendfsync {durability}",
        *extra,
    ):
        if line not in conf:
            faults.append(f"redis.conf has no {line!r}")
    # What only TLS has.
    fewer = 0 if said["redis_tls"] else 5
    if len(conf) != len(directives(plain)) + len(extra) - fewer:
        faults.append(f"redis.conf has {len(conf)} lines")
    totals = deployed["plan"]["totals"]
    if (
        isinstance(said["capacity_reserve_mb"], int)
        and totals["reserve_mb"] != said["capacity_reserve_mb"]
    ):
        faults.append("reserve")
    if (
        isinstance(said["capacity_redis_memory_mb"], int)
        and totals["redis_mb"] != said["capacity_redis_memory_mb"]
    ):
        faults.append("memory of Redis")
    return faults


# ------------------------------------------------------------------------------------------
# The tests

CASES = cases()


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Verdict]:
    """The verdict on each case."""
    found: dict[str, Verdict] = {}
    for batch in itertools.batched(CASES, HOSTS_OF_A_RUN):
        directory = tmp_path_factory.mktemp("fuzz")
        write_inventory(directory, {host: CASES[host].text for host in batch})
        found |= judge(directory)
    return found


def test_there_are_over_a_thousand_and_each_was_judged(verdicts: dict[str, Verdict]) -> None:
    assert len(CASES) > 1000
    assert set(verdicts) == set(CASES)
    refused = sum(bool(verdict.refusal) for verdict in verdicts.values())
    assert 500 < refused < len(CASES) - 100


def test_a_refusal_names_host_variable_value_and_remedy(verdicts: dict[str, Verdict]) -> None:
    faults = {
        (host, CASES[host].text[:200]): (found, verdict.refusal[:400])
        for host, verdict in verdicts.items()
        if verdict.refusal and (found := faults_of_refusal(host, CASES[host], verdict.refusal))
    }
    assert faults == {}


def test_what_is_not_refused_deploys_exactly_what_it_says(verdicts: dict[str, Verdict]) -> None:
    plain = verdicts[PLAIN_HOST].deployed
    faults = {
        (host, CASES[host].text[:200]): found
        for host, verdict in verdicts.items()
        if not verdict.refusal
        and (found := faults_of_deployment(CASES[host], verdict.deployed, plain))
    }
    assert faults == {}
