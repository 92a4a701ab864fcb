"""The unit files of a host's queues, rendered from a plan of the planner's."""

import json
import re
import time
from pathlib import Path

import capacity
import celery_worker
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

TEMPLATES = str(Path(__file__).parents[1] / "templates")
QUADLETS = "/etc/containers/systemd/celery-metal"
UNITS = "/etc/systemd/system"
CONTEXT = {
    "image": "localhost/celery-metal/app:0123456789abcdef",
    "app": "metal_sample.celery:app",
    "broker_is_local": True,
    "broker_url": "redis+socket:///run/redis/redis.sock?virtual_host=0",
    "result_backend": "",
    "broker_port": 6379,
    "network": "bridge",
    "egress": ["any"],
    "subnet": "10.87.0.0/24",
    "log_level": "info",
    "process_factor": 4,
    "watchdog_seconds": 60,
    "visibility_seconds": 3600,
    "broker_secrets": {"celery-redis-worker": "abc"},
    "environment": {},
    "secrets": {},
    "secrets_exported": [],
    "broker_variables": [],
}


def units(*queues, **context):
    """What is made of these queues, without the network of them all."""
    made = all_units(*queues, **context)
    return {**made, "files": without_network(made["files"]), "links": own_links(made["links"])}


def without_network(files):
    network = celery_worker.EGRESS + celery_worker.RELOADS
    return {path: text for path, text in files.items() if path not in network}


def own_links(links):
    return {path: target for path, target in links.items() if target not in celery_worker.RELOADS}


def all_units(*queues, **context):
    host = {"name": "web1", "vcpus": 64, "memory_mb": 512000, "numa_nodes": 1}
    plan = capacity.plan(
        host, capacity.validate_queues(list(queues)), capacity.limits_from_settings({})
    )
    return celery_worker.worker_units(plan, TEMPLATES, **{**CONTEXT, **context})


def container(queue, **context):
    """The one worker unit of a queue, as lists of (key, value) by section."""
    files = units(queue, **context)["files"]
    return parse(next(text for path, text in files.items() if path.endswith(".container")))


def parse(text):
    """A unit file as systemd reads it: joins lines that end in a backslash, skips comments."""
    sections, current, joined = {}, None, ""
    for line in text.splitlines():
        if not joined and (not line.strip() or line.startswith(("#", ";"))):
            continue
        if line.endswith("\\"):
            joined += line[:-1] + " "
            continue
        whole, joined = joined + line, ""
        if whole.startswith("["):
            current = sections.setdefault(whole.strip("[]"), [])
        else:
            key, found, value = whole.partition("=")
            assert found, whole
            current.append((key, value))
    return sections


def unquoted(word):
    """What a process gets of a word that Quadlet copies into ExecStart= and systemd reads there."""
    assert len(word) >= 2
    assert (word[0], word[-1]) == ('"', '"')
    result, rest = "", word[1:-1]
    while rest:
        if rest[0] == "\\":
            assert rest[1] in '\\"', word
            result, rest = result + rest[1], rest[2:]
        elif rest[0] in "%$":
            assert rest[:2] == rest[0] * 2, word
            result, rest = result + rest[0], rest[2:]
        else:
            assert rest[0] != '"', word
            result, rest = result + rest[0], rest[1:]
    return result


def environment(sections):
    values = [value for key, value in sections["Container"] if key == "Environment"]
    words = [unquoted(value) if value.startswith('"') else value for value in values]
    return dict(word.split("=", 1) for word in words)


def seconds(sections, section, key):
    return int(dict(sections[section])[key])


# Which files and links


def test_files_and_links_of_each_queue():
    made = units({"name": "emails", "instances": 2}, {"name": "a/b"})
    assert set(made["files"]) == {
        f"{QUADLETS}/celery-emails@.container",
        f"{UNITS}/celery-emails.target",
        f"{QUADLETS}/celery-a_2fb@.container",
        f"{UNITS}/celery-a_2fb.target",
    }
    assert made["links"] == {
        f"{UNITS}/celery.target.wants/celery-emails.target": f"{UNITS}/celery-emails.target",
        f"{UNITS}/celery.target.wants/celery-a_2fb.target": f"{UNITS}/celery-a_2fb.target",
        f"{QUADLETS}/celery-emails@1.container": "celery-emails@.container",
        f"{QUADLETS}/celery-emails@2.container": "celery-emails@.container",
        f"{QUADLETS}/celery-a_2fb@1.container": "celery-a_2fb@.container",
    }


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_as_many_links_as_instances(instances):
    made = units(*({"name": f"q{i}", "instances": n} for i, n in enumerate(instances)))
    links = [path for path in made["links"] if path.startswith(QUADLETS)]
    assert len(links) == sum(instances)
    assert len(made["files"]) == 2 * len(instances)


def test_no_queues_make_no_units():
    host = {"name": "redis1", "vcpus": 2, "memory_mb": 2048, "numa_nodes": 1}
    plan = capacity.plan(host, [], capacity.limits_from_settings({"capacity_redis_host": True}))
    assert celery_worker.worker_units(plan, TEMPLATES, **CONTEXT) == {
        "files": {},
        "links": {},
        "needed": {},
    }


def test_only_the_changed_queue_changes():
    before = units({"name": "a", "concurrency": 2}, {"name": "b", "concurrency": 2})["files"]
    after = units({"name": "a", "concurrency": 2}, {"name": "b", "concurrency": 3})["files"]
    assert [path for path in before if before[path] != after[path]] == [
        f"{QUADLETS}/celery-b@.container"
    ]


@pytest.mark.parametrize("missing", sorted(CONTEXT))
def test_a_missing_value_is_an_error(missing):
    plan = capacity.plan(
        {"name": "w", "vcpus": 2, "memory_mb": 4096, "numa_nodes": 1},
        capacity.validate_queues([{"name": "a"}]),
        capacity.limits_from_settings({}),
    )
    context = {key: value for key, value in CONTEXT.items() if key != missing}
    with pytest.raises((UndefinedError, KeyError), match=missing):
        celery_worker.worker_units(plan, TEMPLATES, **context)


def test_a_hundred_queues_take_no_time():
    queues = [{"name": f"queue{number}", "instances": 2} for number in range(100)]
    started = time.process_time()
    made = units(*queues)
    assert time.process_time() - started < 2
    assert len(made["files"]) == 200


# What is in them


def test_a_worker_s_environment():
    sections = container({"name": "emails", "concurrency": 3})
    assert environment(sections) == {
        "CELERY_APP": "metal_sample.celery:app",
        "CELERY_METAL_QUEUE": "emails",
        "CELERY_METAL_POOL": "prefork",
        "CELERY_METAL_PLAN_CONCURRENCY": "3",
        "CELERY_METAL_PROCESS_FACTOR": "4",
        "CELERY_METAL_INSTANCE": "%i",
        "CELERY_METAL_HOST": "web1",
        "CELERY_METAL_BOOT": "%m%b",
        "CELERY_METAL_LOGLEVEL": "info",
        "CELERY_METAL_BROKER": CONTEXT["broker_url"],
        "CELERY_METAL_ACKS_LATE": "true",
        "CELERY_METAL_PREFETCH": "1",
        "CELERY_METAL_AHEAD_MB": "64",
        "CELERY_METAL_MAX_MEMORY_PER_CHILD_MB": "150",
        "CELERY_METAL_DRAIN_SECONDS": "60",
        "CELERY_METAL_TMPFS": "/tmp,/var/tmp,/dev/shm",
        "CELERY_METAL_VISIBILITY_SECONDS": "3600",
        "CELERY_METAL_WATCHDOG_SECONDS": "60",
    }
    assert dict(sections["Service"])["WatchdogSec"] == "60"
    assert dict(sections["Install"])["WantedBy"] == "celery-emails.target"
    assert dict(sections["Unit"])["PartOf"] == "celery-emails.target"


def test_several_queues_reach_the_worker_in_their_order():
    one = environment(container({"name": "a", "queue_order": "priority"}))
    assert not {"CELERY_METAL_QUEUES", "CELERY_METAL_QUEUE_ORDER"} & set(one)
    several = {"name": "both", "queues": ["b 50%", "a"], "queue_order": "priority"}
    found = environment(container(several))
    assert found["CELERY_METAL_QUEUE"] == "both"
    assert found["CELERY_METAL_QUEUES"] == "b 50%,a"
    assert found["CELERY_METAL_QUEUE_ORDER"] == "priority"
    other = environment(container({"name": "more", "queues": ["a"]}))
    assert other["CELERY_METAL_QUEUES"] == "a"


def test_autoscale_goes_as_max_and_min():
    found = environment(container({"name": "a", "concurrency": {"min": 2, "max": 8}}))
    assert found["CELERY_METAL_PLAN_AUTOSCALE"] == "8,2"
    assert "CELERY_METAL_PLAN_CONCURRENCY" not in found


def test_no_password_and_no_latest():
    for text in units({"name": "a"}, broker_is_local=False)["files"].values():
        assert ":latest" not in text
        assert "AutoUpdate" not in text
    labels = [value for key, value in container({"name": "a"})["Container"] if key == "Label"]
    assert labels == ["celery-metal.password=abc"]
    secrets = [value for key, value in container({"name": "a"})["Container"] if key == "Secret"]
    assert secrets == [
        "celery-redis-worker,type=mount,target=celery-redis-password,uid=999,gid=999,mode=0400"
    ]


def test_the_container_has_no_rights_to_spare():
    found = dict(container({"name": "a"})["Container"])
    wanted = {
        "UserNS": "auto",
        "User": "999",
        "ReadOnly": "true",
        "DropCapability": "all",
        "NoNewPrivileges": "true",
        "Pull": "never",
        "Notify": "true",
        "PodmanArgs": "--ipc=private",
    }
    assert {key: found.get(key) for key in wanted} == wanted


@pytest.mark.parametrize("local", [True, False])
def test_only_a_local_broker_s_socket_is_mounted(local):
    sections = container({"name": "a"}, broker_is_local=local)
    volumes = [value for key, value in sections["Container"] if key == "Volume"]
    assert volumes == (["/run/celery-metal/redis:/run/redis:ro"] if local else [])
    assert ("After", "celery-redis.service") in sections["Unit"] or not local


@pytest.mark.parametrize("drain", [1, 60, 86400])
def test_the_drain_chain(drain):
    sections = container({"name": "a", "drain_seconds": drain})
    podman = seconds(sections, "Container", "StopTimeout")
    systemd = seconds(sections, "Service", "TimeoutStopSec")
    given = environment(sections)
    assert int(given["CELERY_METAL_DRAIN_SECONDS"]) == drain
    assert drain < podman < systemd
    assert podman - drain >= 10
    assert systemd - podman >= 10


def test_a_drained_host_starts_no_worker():
    assert ("ConditionPathExists", "!/etc/celery-metal/drained") in container({"name": "a"})["Unit"]


def test_pauses_between_restarts_grow_to_a_minute_and_never_end():
    sections = container({"name": "a"})
    wanted = {"Restart": "always", "RestartSec": "1s", "RestartMaxDelaySec": "60s"}
    assert wanted.items() <= dict(sections["Service"]).items()
    assert int(dict(sections["Service"])["RestartSteps"]) > 1
    assert ("StartLimitIntervalSec", "0") in sections["Unit"]


@given(st.lists(st.integers(0, 604800)))
def test_the_visibility_timeout_is_above_every_drain_and_limit(longest):
    visibility = celery_worker.visibility_seconds(longest)
    assert visibility >= 3600
    assert all(visibility >= 2 * seconds for seconds in longest)


def test_what_a_queue_says_of_its_tasks_reaches_the_worker():
    found = environment(
        container({"name": "a", "acks_late": False, "prefetch": 4, "memory_per_process_mb": 300})
    )
    assert found["CELERY_METAL_ACKS_LATE"] == "false"
    assert found["CELERY_METAL_PREFETCH"] == "4"
    assert found["CELERY_METAL_MAX_MEMORY_PER_CHILD_MB"] == "300"
    assert "CELERY_METAL_TIME_LIMIT_SECONDS" not in found
    limited = environment(container({"name": "a", "time_limit_seconds": 90}))
    assert limited["CELERY_METAL_TIME_LIMIT_SECONDS"] == "90"
    assert "CELERY_METAL_MAX_TASKS_PER_CHILD" not in limited
    leaking = environment(container({"name": "a", "max_tasks_per_child": 500}))
    assert leaking["CELERY_METAL_MAX_TASKS_PER_CHILD"] == "500"
    threads = environment(container({"name": "a", "pool": "threads"}))
    assert "CELERY_METAL_MAX_MEMORY_PER_CHILD_MB" not in threads


APP = {
    "environment": {"LEVEL": "1", "TEXT": '50% of "$HOME" \\ é'},
    "secrets": {"DATABASE_URL": "m1", "key.pem": "m2"},
    "secrets_exported": ["DATABASE_URL"],
}


def values(sections, key):
    return [value for name, value in sections["Container"] if name == key]


def test_the_app_s_environment_reaches_the_worker_as_it_is():
    found = environment(container({"name": "a"}, **APP))
    assert (found["LEVEL"], found["TEXT"]) == ("1", APP["environment"]["TEXT"])
    own = environment(container({"name": "a", "environment": {"LEVEL": "2"}}, **APP))
    assert (own["LEVEL"], own["TEXT"]) == ("2", APP["environment"]["TEXT"])


def test_a_pythonpath_of_the_app_comes_after_that_of_the_image():
    # Alone it would hide the runtime: "No module named celery_metal_runtime".
    files = Path(TEMPLATES).parents[1] / "image" / "files"
    texts = [(files / name / "Containerfile").read_text() for name in ("app", "base")]
    found = [re.findall(r"^ENV .*?PYTHONPATH=([^$\s]+)", text, re.MULTILINE) for text in texts]
    of_images = ":".join(one for [one] in found)
    for own, added in {"/data/lib": ":/data/lib", "": ""}.items():
        sections = container({"name": "a", "environment": {"PYTHONPATH": own}}, **APP)
        assert environment(sections)["PYTHONPATH"] == f"{of_images}{added}"
    assert "PYTHONPATH" not in environment(container({"name": "a"}, **APP))


def test_secrets_are_files_of_the_queues_that_want_them():
    every = container({"name": "a"}, **APP)
    mount = "type=mount,target={0},uid=999,gid=999,mode=0400"
    assert values(every, "Secret")[:2] == [
        f"celery-app-{name}," + mount.format(name) for name in ("DATABASE_URL", "key.pem")
    ]
    assert environment(every)["CELERY_METAL_EXPORT"] == "DATABASE_URL"
    one = container({"name": "a", "secrets": ["key.pem"]}, **APP)
    assert [value for value in values(one, "Secret") if "app-" in value] == [
        "celery-app-key.pem," + mount.format("key.pem")
    ]
    assert "CELERY_METAL_EXPORT" not in environment(one)
    none = container({"name": "a", "secrets": []}, **APP)
    assert not [value for value in values(none, "Secret") if "app-" in value]


def test_the_address_of_redis_is_in_no_unit_but_its_variables_are():
    found = environment(
        container({"name": "a"}, broker_variables=["CELERY_BROKER_URL", "REDIS_URL"])
    )
    assert found["CELERY_METAL_BROKER_VARIABLES"] == "CELERY_BROKER_URL,REDIS_URL"
    assert not {"CELERY_BROKER_URL", "REDIS_URL"} & set(found)
    assert "CELERY_METAL_BROKER_VARIABLES" not in environment(container({"name": "a"}))


def test_a_secret_that_says_where_results_are_is_one_of_each_queue():
    context = {**APP, "result_backend": "secret:DATABASE_URL"}
    none = container({"name": "a", "secrets": []}, **context)
    assert environment(none)["CELERY_METAL_RESULT_BACKEND"] == "secret:DATABASE_URL"
    mounted = [value.split(",")[0] for value in values(none, "Secret") if "app-" in value]
    assert mounted == ["celery-app-DATABASE_URL"]
    assert "CELERY_METAL_EXPORT" not in environment(none)
    address = "db+postgresql://shop@db/50%25$"
    found = environment(container({"name": "a"}, result_backend=address))
    assert found["CELERY_METAL_RESULT_BACKEND"] == address


def test_another_secret_concerns_those_that_have_it():
    queues = [{"name": "a"}, {"name": "b", "secrets": ["key.pem"]}]
    before = units(*queues, **APP)["files"]
    after = units(*queues, **{**APP, "secrets": {"DATABASE_URL": "m3", "key.pem": "m2"}})["files"]
    assert [path for path in before if before[path] != after[path]] == [
        f"{QUADLETS}/celery-a@.container"
    ]


def test_limits_are_the_plan_s_and_say_why():
    text = units({"name": "a", "weight": 2, "concurrency": 2})["files"][
        f"{QUADLETS}/celery-a@.container"
    ]
    lines = text.splitlines()
    for key, reason in (
        ("Environment=CELERY_METAL_PLAN_CONCURRENCY=2", "# explicit"),
        ("Tmpfs=/tmp:size=64m,exec", "# auto: as a process, 64 MB at most"),
        ("MemoryMax=428M", "# main process 64 + 2 x 150 + /tmp 64 MB"),
        ("CPUWeight=200", "# 100 x weight 2 / 1 instance"),
    ):
        assert lines[lines.index(key) - 1] == reason
    assert "role celery_worker" in lines[0]


@pytest.mark.parametrize(
    ("queue", "most", "reason"),
    [
        ({"concurrency": 2}, "768", "256 + 2 x 256 processes and threads"),
        (
            {"pool": "threads", "concurrency": 50},
            "562",
            "256 + 1 x 256 processes and threads + 50 of the pool",
        ),
        ({"quadlet": {"Service": {"TasksMax": 9000}}, "concurrency": 2}, "9000", ""),
    ],
)
def test_processes_and_threads_are_limited_and_the_queue_may_say_how_many(queue, most, reason):
    """A host of 64 vCPUs, on which libraries start as many threads in each process."""
    text = units({"name": "a", **queue})["files"][f"{QUADLETS}/celery-a@.container"]
    assert dict(parse(text)["Service"])["TasksMax"] == most
    assert f"# {reason}\nTasksMax={most}" in text or not reason


def test_the_path_to_systemd_is_closed_once_a_worker_is_ready():
    closing = dict(container({"name": "a.b"})["Service"])["ExecStartPost"]
    # Only for the runtime that stays connected, and never for the label of another container.
    asked = 'podman ps -q -f "name=^celery-a[.]b-%i$$" -f label=celery-metal.notify=connected'
    assert closing.startswith(f'-/bin/sh -c \'found="$$({asked})" && test -z "$$found" || exec ')
    assert closing.endswith("/notify/notify.sock\"'")
    label = asked.rpartition("label=")[2]
    assert label in (Path(TEMPLATES).parents[1] / "image/files/app/Containerfile").read_text()


def test_what_an_app_needs_reaches_its_unit():
    queue = {
        "name": "a",
        "volumes": ["/srv/50%:/media:ro,idmap"],
        "ports": ["127.0.0.1:8080:80"],
        "devices": ["/dev/fuse"],
        "gpus": ["nvidia.com/gpu=0"],
        "quadlet": {
            "Container": {"Sysctl": ["net.a=1", "net.b=2"], "Tmpfs": "/x:size=1m,%i"},
            "Service": {"Nice": 5, "CPUSchedulingResetOnFork": True},
        },
    }
    sections = container(queue)
    assert "/srv/50%%:/media:ro,idmap" in values(sections, "Volume")
    assert values(sections, "PublishPort") == ["127.0.0.1:8080:80"]
    assert values(sections, "AddDevice") == ["/dev/fuse", "nvidia.com/gpu=0"]
    assert values(sections, "Sysctl") == ["net.a=1", "net.b=2"]
    assert values(sections, "Tmpfs")[-1] == "/x:size=1m,%i"
    assert dict(sections["Service"])["Nice"] == "5"
    assert dict(sections["Service"])["CPUSchedulingResetOnFork"] == "true"
    made = units(queue, {"name": "b", "volumes": ["/srv/50%:/y"]})
    assert made["needed"] == {
        "/srv/50%": "volumes of queue a, volumes of queue b",
        "/dev/fuse": "devices of queue a",
    }


@pytest.mark.parametrize(
    ("queue", "sizes"),
    [
        ({"tmp_mb": 100}, ["/tmp:size=100m,exec", "/var/tmp:size=100m,exec"]),
        ({"volumes": ["/srv/x:/tmp/:idmap"]}, ["/var/tmp:size=64m,exec"]),
        ({"quadlet": {"Container": {"ReadOnlyTmpfs": "no"}}}, []),
    ],
)
def test_what_tasks_may_write_into_memory_has_a_size(queue, sizes):
    sections = container({"name": "a", **queue})
    assert values(sections, "Tmpfs") == sizes
    watched = [*(size.partition(":")[0] for size in sizes), "/dev/shm"]
    assert environment(sections)["CELERY_METAL_TMPFS"] == ",".join(watched)


def test_no_worker_runs_beside_one_that_has_a_port():
    host = {"name": "w", "vcpus": 4, "memory_mb": 8000, "numa_nodes": 1}
    queues = capacity.validate_queues([{"name": "a"}, {"name": "b", "ports": ["80:80"]}])
    plan = capacity.plan(host, queues, capacity.limits_from_settings({}))
    assert set(celery_worker.surge_sizes(plan)) == {"celery-a@.service"}


# Beat


def beat(*queues, own=(), **context):
    """Beat's unit on a host of a plan with these queues, and all that was made.

    `own` has variables of Beat's.
    """
    host = {"name": "web1", "vcpus": 4, "memory_mb": 16000, "numa_nodes": 1}
    settings = {"capacity_runs_beat": True, **dict(own)}
    assert capacity.setting_problems(settings) == []
    limits = capacity.limits_from_settings(settings)
    plan = capacity.plan(host, capacity.validate_queues(list(queues)), limits)
    made = celery_worker.worker_units(plan, TEMPLATES, **{**CONTEXT, **context})
    made["files"] = without_network(made["files"])
    return parse(made["files"][f"{QUADLETS}/celery-beat.container"]), made


def test_beat_is_one_unit_besides_those_of_a_queue_of_its_name():
    sections, made = beat({"name": "beat"})
    assert set(made["files"]) == {
        f"{QUADLETS}/celery-beat.container",
        f"{QUADLETS}/celery-beat@.container",
        f"{UNITS}/celery-beat.target",
    }
    assert dict(sections["Unit"])["PartOf"] == "celery.target"
    assert dict(sections["Install"])["WantedBy"] == "celery.target"
    assert dict(sections["Container"])["ContainerName"] == "celery-beat"
    assert dict(sections["Container"])["Exec"] == "beat"
    assert dict(sections["Service"])["MemoryMax"] == "150M"
    assert seconds(sections, "Container", "StopTimeout") < seconds(
        sections, "Service", "TimeoutStopSec"
    )
    assert f"{QUADLETS}/celery-beat.container" not in units({"name": "beat"})["files"]


def test_beat_has_what_all_workers_have():
    """But for what is of a queue; so a queue's own variables are no matter."""
    own = {"environment": {"LEVEL": "2"}, "secrets": ["key.pem"]}
    sections, _ = beat({"name": "a", **own}, **APP)
    worker = container({"name": "a"}, **APP)
    for key in ("Secret", "Volume", "UserNS", "User", "ReadOnly", "DropCapability", "Notify"):
        assert values(sections, key) == values(worker, key)
    labels = values(sections, "Label")
    assert labels == values(worker, "Label")
    found, workers = environment(sections), environment(worker)
    assert found.items() < workers.items()
    assert {"LEVEL", "TEXT", "CELERY_METAL_EXPORT", "CELERY_METAL_BROKER"} < set(found)
    assert not {"CELERY_METAL_QUEUE", "CELERY_METAL_DRAIN_SECONDS"} & set(found)
    assert ("ConditionPathExists", "!/etc/celery-metal/drained") in sections["Unit"]


def test_beat_has_an_environment_secrets_volumes_and_keys_of_its_own():
    volume = "/srv/schedule:/schedule:idmap"
    own = {
        "celery_beat_environment": {"LEVEL": "3", "ONLY": "50% of $HOME"},
        "celery_beat_secrets": ["key.pem"],
        "celery_beat_volumes": [volume],
        "celery_beat_quadlet": {"Container": {"ShmSize": "9m"}, "Service": {"Nice": 5}},
    }
    queue = {"name": "a", "volumes": [volume]}
    sections, made = beat(queue, own=own, **APP)
    found = environment(sections)
    assert found["LEVEL"] == "3"
    assert found["ONLY"] == "50% of $HOME"
    assert found["TEXT"] == APP["environment"]["TEXT"]
    assert "CELERY_METAL_EXPORT" not in found
    secrets = [one for one in values(sections, "Secret") if one.startswith("celery-app-")]
    assert [one.partition(",")[0] for one in secrets] == ["celery-app-key.pem"]
    assert values(sections, "Volume")[-1] == volume
    assert ("ShmSize", "9m") in sections["Container"]
    assert ("Nice", "5") in sections["Service"]
    assert made["needed"] == {"/srv/schedule": "volumes of queue a, celery_beat_volumes"}
    # Of workers' units nothing changes.
    before = beat(queue, **APP)[1]["files"]
    assert {path for path, text in made["files"].items() if before[path] != text} == {
        f"{QUADLETS}/celery-beat.container"
    }


# The network of workers

NFT = "/etc/celery-metal/egress.nft"


def rules(**context):
    return all_units({"name": "a"}, **context)["files"][NFT]


def chain(text, name):
    """The rules of a chain, or the lines of a set."""
    return text.partition(f"\t{name} {{\n")[2].partition("\t}\n")[0].split("\n")


def test_workers_have_a_network_of_their_own_with_rules():
    made = all_units({"name": "a"})["files"]
    assert set(celery_worker.EGRESS) < set(made)
    sections = parse(made[f"{QUADLETS}/celery-a@.container"])
    assert ("Wants", "celery-egress.service") in sections["Unit"]
    assert ("After", "celery-egress.service") in sections["Unit"]
    assert dict(sections["Container"])["Network"] == "celery-metal"
    assert dict(sections["Service"])["ExecStartPre"] == f"/usr/sbin/nft -f {NFT}"
    network = json.loads(made["/etc/containers/networks/celery-metal.json"])
    assert network["subnets"] == [{"subnet": "10.87.0.0/24", "gateway": "10.87.0.1"}]
    assert (network["name"], network["network_interface"]) == ("celery-metal", "celery0")
    assert 'iifname "celery0" jump to_the_host' in made[NFT]
    assert "ip saddr 10.87.0.0/24 ip daddr { 10.87.0.0/24, 224.0.0.0/4, " in made[NFT]
    assert dict(sections["Service"])["IPAddressDeny"] == "fe80::/10"


@pytest.mark.parametrize("network", ["host", "none", "podman", "mine:ip=10.1.0.9"])
def test_another_network_is_the_user_s_and_has_no_rules(network):
    made = all_units({"name": "a"}, network=network)["files"]
    assert not set(celery_worker.EGRESS) & set(made)
    # Podman's rules are there for all networks that need them.
    has_rules = network not in ("host", "none")
    assert set(celery_worker.RELOADS) & set(made) == set(celery_worker.RELOADS if has_rules else ())
    text = made[f"{QUADLETS}/celery-a@.container"]
    assert ("Network", network) in parse(text)["Container"]
    assert "egress" not in text


@pytest.mark.parametrize("verb", ["ExecStartPost", "ExecReload", "ExecStopPost"])
def test_podman_s_rules_come_back_after_those_of_the_distribution(verb):
    made = all_units({"name": "a"})
    unit, drop_in = celery_worker.RELOADS
    # Without waiting: at boot nftables.service comes long before there are containers.
    command = "-/usr/bin/systemctl --no-block try-reload-or-restart celery-network.service"
    assert (verb, command) in parse(made["files"][drop_in])["Service"]
    sections = parse(made["files"][unit])
    assert ("After", "nftables.service") in sections["Unit"]
    assert [one for key, one in sections["Service"] if key == "ExecReload"] == [
        "-/usr/bin/podman network reload --all",
        "/usr/sbin/nft 'add table inet celery_network'",
    ]
    assert made["links"][f"{UNITS}/celery.target.wants/celery-network.service"] == unit
    assert celery_worker.running(made) == ["celery.target", "celery-network.service"]


@pytest.mark.parametrize(
    ("written", "podman_rules", "egress_is_lost", "loaded"),
    [
        ({}, True, False, []),
        ({"new": [NFT]}, None, False, ["celery-egress.service"]),
        ({"written": [NFT]}, True, False, ["celery-egress.service"]),
        ({}, False, True, ["celery-egress.service", "celery-network.service"]),
        # Something else may have removed Podman's alone.
        ({"waiting": ["celery-a@1.service"]}, True, False, ["celery-network.service"]),
        ({"waiting": ["celery-a@1.service"]}, None, False, []),
        ({"start": ["celery-network.service"]}, False, False, []),
        ({"gone": [celery_worker.RELOADS[0]]}, False, False, []),
    ],
)
def test_rules_that_are_lost_are_loaded_again(written, podman_rules, egress_is_lost, loaded):
    found = {"new": [], "written": [], "waiting": [], "start": [], "gone": [], **written}
    assert celery_worker.reloads(found, {"podman_rules": podman_rules}, egress_is_lost) == loaded


def test_rules_admit_redis_and_what_is_listed():
    url = "sentinels://worker@10.0.0.7:26379,10.0.0.8:26379/0?master_name=celery&replicas=1"
    text = rules(broker_url=url, egress=["10.1.0.0/16", "fd00::7"])
    assert "\t\telements = { 10.0.0.7, 10.0.0.8 }" in chain(text, "set brokers4")
    assert "\t\telements = { 10.1.0.0/16 }" in chain(text, "set listed4")
    assert "\t\telements = { fd00::7 }" in chain(text, "set listed6")
    assert "\t\tip daddr @brokers4 tcp dport { 6379, 26379 } accept" in chain(
        text, "chain admitted"
    )
    for name in ("to_the_host", "to_the_network"):
        found = chain(text, f"chain {name}")
        assert found[0] == "\t\tjump admitted"
        assert found[-2] == "\t\tjump refused"
        # Not even names are resolved but by what is listed.
        assert not any("dport" in line or "dnat" in line for line in found)


def test_rules_of_any_leave_out_the_host_and_its_containers():
    text = rules(egress=["any"])
    assert chain(text, "chain to_the_host")[-2] == "\t\tjump refused"
    assert any("th dport 53 accept" in line for line in chain(text, "chain to_the_host"))
    assert chain(text, "chain to_the_network")[-2] == "\t\tct status dnat jump refused"
    assert "elements" not in text
    # A Redis that a socket leads to has no port.
    assert "@brokers4" not in text


def test_a_change_of_the_rules_restarts_no_worker():
    before, after = (all_units({"name": "a"}, egress=one)["files"] for one in (["any"], []))
    assert [path for path in before if before[path] != after[path]] == [NFT]


@pytest.mark.parametrize(
    ("network", "is_planned", "loaded", "lacks"),
    [
        ("bridge", True, "", True),
        ("bridge", True, "0" * 40, True),
        ("bridge", True, None, False),
        ("podman", True, "", False),
        ("bridge", False, "", False),
    ],
)
def test_rules_that_the_kernel_does_not_have_are_loaded(network, is_planned, loaded, lacks):
    plan = {"queues": ["a"] if is_planned else [], "beat": None}
    wanted = (["any"], "10.87.0.0/24", CONTEXT["broker_url"], 6379)
    mark = celery_worker.egress_rules(*wanted)["mark"]
    assert celery_worker.egress_lacks(plan, network, loaded, mark) == lacks
    assert not celery_worker.egress_lacks(plan, network, mark, mark)
    # As the file has it: it is what the kernel returns.
    assert f'\tcomment "{mark}"\n' in rules()
    assert mark != celery_worker.egress_rules(["10.0.0.7"], *wanted[1:])["mark"]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://worker@10.0.0.7:6380/0", (["10.0.0.7"], [6379, 6380])),
        ("rediss://[fd00::1]/0", (["fd00::1"], [6379])),
        ("rediss://worker@redis.example:6390", ([], [6379, 6390])),
    ],
)
def test_where_redis_is(url, found):
    assert celery_worker.endpoints(url) == found


# Names that units must not misread

NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp"), exclude_characters=","),
    min_size=1,
    max_size=30,
) | st.text('\\"%$i {}', min_size=1, max_size=8)


@given(NAMES)
def test_quoted_is_read_back(text):
    assert unquoted(celery_worker.quoted(text)) == text


@given(NAMES.filter(lambda name: name == name.strip()))
def test_any_name_reaches_the_worker_and_breaks_no_line(name):
    if capacity.queue_problems([{"name": name}]):
        return
    made = units({"name": name})
    for text in made["files"].values():
        sections = parse(text)
        shown = dict(sections["Unit"])["Description"]
        assert shown.replace("%%", "").count("%") == ("worker %i" in shown)
        assert f"Queue {name}, " in shown.replace("%%", "%")
        assert "PartOf" in dict(sections["Unit"])
        if "Container" in sections:
            assert environment(sections)["CELERY_METAL_QUEUE"] == name
            assert set(sections) == {"Unit", "Container", "Service", "Install"}
