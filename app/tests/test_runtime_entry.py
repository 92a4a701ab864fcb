"""The command line: what it refuses, and what it hands to Celery."""

import os
import signal
import socket
import subprocess
import sys
from itertools import product

import pytest
from celery import Celery
from celery.utils.nodenames import host_format
from celery_metal_runtime.entry import _check_arguments, _look_at_queues, _order
from celery_metal_runtime.names import node_name
from celery_metal_runtime.settings import UsageError, export_secrets
from kombu import Queue
from runtime_lab import PASSWORD, base_environ, run, wait_until

WORKER = {"CELERY_METAL_QUEUE": "q"}
CHECK = ["; check celery_app, and that the image holds it"]


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        (WORKER | {"CELERY_APP": ""}, ["CELERY_APP", "not set", "celery -A"]),
        (WORKER | {"CELERY_APP": "no_such:app"}, ["CELERY_APP='no_such:app'", *CHECK]),
        (WORKER | {"CELERY_APP": "no_such.celery"}, ["no module 'no_such'", *CHECK]),
        (WORKER | {"CELERY_APP": "lab_app:nothing"}, ["no such attribute", *CHECK]),
        (WORKER | {"CELERY_APP": "lab_app.nothing"}, ["no module 'lab_app.nothing'", *CHECK]),
        (WORKER | {"CELERY_APP": "json"}, ["no attribute 'celery'", *CHECK]),
        ({}, ["CELERY_METAL_QUEUE", "not set", "name the queue"]),
        ({"CELERY_METAL_QUEUE": "a,b"}, ["CELERY_METAL_QUEUE='a,b'", "comma", "METAL_QUEUES"]),
        (WORKER | {"CELERY_METAL_QUEUES": "a,b,a"}, ["CELERY_METAL_QUEUES='a,b,a'", "twice"]),
        (WORKER | {"CELERY_METAL_QUEUES": "a,,b"}, ["CELERY_METAL_QUEUES='a,,b'", "none between"]),
        (WORKER | {"CELERY_METAL_POOL": "fork"}, ["CELERY_METAL_POOL='fork'", "prefork, threads"]),
        (WORKER | {"CELERY_METAL_LOGLEVEL": "loud"}, ["CELERY_METAL_LOGLEVEL='loud'", "debug"]),
        (WORKER | {"CELERY_METAL_WATCHDOG_SECONDS": "-1"}, ["WATCHDOG_SECONDS='-1'", "0 or more"]),
        (WORKER | {"CONCURRENCY": "many"}, ["CONCURRENCY='many'", "1 or more"]),
        (WORKER | {"CELERY_METAL_BROKER": "here"}, ["CELERY_METAL_BROKER='here'", "redis://"]),
    ],
)
def test_a_bad_setting_is_one_clear_line_and_exit_64(environ, words):
    done = run(environ)
    assert done.returncode == 64
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    for word in ["celery-metal: ", *words]:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (
            "import module_the_app_needs",
            "ModuleNotFoundError: No module named 'module_the_app_needs'",
        ),
        ("from json import no_such", "ImportError: cannot import name 'no_such' from 'json'"),
        ("import json; json.no_such", "AttributeError: module 'json' has no attribute 'no_such'"),
        ("raise ValueError('one\\ntwo')", "ValueError: one. "),
        ("raise ValueError", "ValueError. "),
        (
            "from celery import Celery; app = Celery(include=['tasks_without'])",
            "ModuleNotFoundError: No module named 'tasks_without'",
        ),
        (
            "from celery import Celery; app = Celery(config_source='config_without')",
            "No module named 'config_without'",
        ),
    ],
)
@pytest.mark.parametrize("name", ["broken:app", "broken.app"])
def test_an_apps_own_error_is_said_in_a_line_and_keeps_its_traceback(tmp_path, name, code, error):
    (tmp_path / "broken.py").write_text(code + "\n")
    done = run(WORKER | {"CELERY_APP": name, "PYTHONPATH": path_with(tmp_path)})
    assert done.returncode == 1
    told = f"celery-metal: CELERY_APP={name!r} cannot be loaded: "
    before, after = done.stderr.split(told)
    assert "Traceback" not in before
    line, _, traceback = after.partition("\n")
    assert error in line
    assert line.endswith("mend it and deploy again, or roll back. Its traceback follows.")
    assert traceback.startswith("Traceback")
    assert "broken.py" in traceback or "import_module" in traceback


def test_an_error_in_the_module_that_celery_guesses_is_the_apps_own(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "celery.py").write_text("import module_the_app_needs\n")
    done = run(WORKER | {"CELERY_APP": "shop", "PYTHONPATH": path_with(tmp_path)})
    assert done.returncode == 1
    told = "CELERY_APP='shop' cannot be loaded: ModuleNotFoundError: No module named 'module_the"
    assert told in done.stderr.splitlines()[0]
    assert "shop/celery.py" in done.stderr


def path_with(folder):
    return f"{folder}:{base_environ()['PYTHONPATH']}"


@pytest.mark.parametrize(
    ("argument", "variable"),
    [
        ("-Pgevent", "CELERY_METAL_POOL"),
        ("--pool=gevent", "CELERY_METAL_POOL"),
        ("-c4", "CONCURRENCY"),
        ("--autoscale", "CONCURRENCY"),
        ("-Q", "CELERY_METAL_QUEUES"),
    ],
)
def test_arguments_cannot_pass_by_the_variables(argument, variable):
    with pytest.raises(UsageError, match=f"set {variable} instead"):
        _check_arguments(["-E", argument])
    _check_arguments(["-E", "--prefetch-multiplier=1", "-Ofair"])


@pytest.mark.parametrize(
    ("environ", "node"),
    [
        ({}, f"q-1@{socket.gethostname()}"),
        ({"CELERY_METAL_INSTANCE": "3", "CELERY_METAL_HOST": "web1.example.org"}, None),
        ({"CELERY_METAL_QUEUE": "a@b%h c", "CELERY_METAL_HOST": "x"}, "a=40=b=25=h=20=c-1@x"),
    ],
)
def test_the_node_name(environ, node):
    assert _order(WORKER | environ).node == (node or "q-3@web1.example.org")


def test_no_two_workers_have_one_node_name_or_one_list_of_claims():
    parts = ["a", "b", "a b", "a&b", "a_b", "a/b", "a=2F=b", "a-1", "a:b", "a@b", "%h", "é", "a.b"]
    queues, instances, hosts = parts, ["1", "1-1", "surge1"], [*parts, "fe80::1", "b:a"]
    workers = [*product(queues, instances, hosts)]
    names = {node_name(*worker) for worker in workers}
    assert len(names) == len(workers)
    keys = {f"{name}:{queue}" for name in names for queue in [*parts, "b:a", ":a"]}
    assert len(keys) == len(names) * (len(parts) + 2)
    # Celery expands and splits what it is given.
    assert {host_format(name) for name in names} == names
    assert {name.count("@") for name in names} == {1}


def test_a_worker_has_the_queue_of_its_name_or_those_that_are_named():
    assert _order(WORKER).queues == ["q"]
    order = _order(WORKER | {"CELERY_METAL_QUEUES": "urgent,no hurry"})
    assert (order.queues, order.name) == (["urgent", "no hurry"], "q")


def test_queues_whose_names_look_alike_have_workers_of_their_own(redis, start, tmp_path):
    names = [f"{tmp_path.name}{one}x" for one in "/_& "]
    workers = [start(server=redis, CELERY_METAL_QUEUE=name) for name in names]
    nodes = {node_name(name, "1", socket.gethostname()) for name in names}
    for worker in workers:
        worker.ready()
    answer = run(redis.environ(), "inspect", "ping", "-d", ",".join(nodes))
    assert {node for node in nodes if f"{node}: OK" in answer.stdout} == nodes
    assert nodes <= set(redis.client.hkeys("celery-metal.nodes"))


def test_other_commands_use_the_same_broker(redis, start):
    worker = start(server=redis, CELERY_METAL_INSTANCE="7", CELERY_METAL_HOST="node").ready()
    node = f"{worker.queue}-7@node"
    environ = redis.environ(redis.tcp_url)
    answer = run(environ, "inspect", "ping", "-d", node)
    assert answer.returncode == 0, answer.stderr
    assert node in answer.stdout
    sent = run(environ, "call", "metal_sample.tasks.add", "--args=[1,2]", f"--queue={worker.queue}")
    assert sent.returncode == 0, sent.stderr
    result = run(environ, "result", sent.stdout.strip())
    assert result.stdout.strip() == "3"
    conf = run(environ, "inspect", "conf", "-d", node)
    for text in (conf.stdout, run(environ, "report").stdout, answer.stdout, sent.stdout):
        assert PASSWORD not in text
        assert "p%40ss" not in text
    assert ":**" in conf.stdout


def test_sigterm_ends_a_pid_1_that_still_loads_its_app(tmp_path):
    (tmp_path / "slow.py").write_text("print('loading', flush=True)\nimport time\ntime.sleep(60)\n")
    # Who is not root may still have a PID namespace, inside a user namespace of their own.
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    command = ["unshare", *own, "--fork", "--pid", "--kill-child", sys.executable]
    with subprocess.Popen(
        [*command, "-m", "celery_metal_runtime"],
        env=base_environ() | WORKER | {"CELERY_APP": "slow:app", "PYTHONPATH": path_with(tmp_path)},
        stdout=subprocess.PIPE,
    ) as outer:
        assert outer.stdout.readline() == b"loading\n"
        children = f"/proc/{outer.pid}/task/{outer.pid}/children"
        with open(children) as file:
            os.kill(int(file.read()), signal.SIGTERM)
        wait_until(lambda: outer.poll() is not None, "the process ends")
        assert outer.returncode == 0


def test_exported_secrets_are_what_the_app_finds(tmp_path):
    (tmp_path / "TOKEN").write_bytes(b"two\r\nlines\n")
    environ = {"CELERY_METAL_EXPORT": "TOKEN", "CELERY_METAL_SECRETS_DIRECTORY": str(tmp_path)}
    export_secrets(environ)
    assert environ["TOKEN"] == "two\r\nlines\n"
    done = run(WORKER | environ | {"CELERY_METAL_EXPORT": "TOKEN,OTHER"})
    assert done.returncode == 64
    assert f"CELERY_METAL_EXPORT names OTHER, and {tmp_path}/OTHER cannot be read" in done.stderr
    assert "run site.yml" in done.stderr
    export_secrets({})


def app_with(**settings):
    app = Celery("django", set_as_current=False)
    source = {f"CELERY_{name.upper()}": value for name, value in settings.items()}
    app.config_from_object(source, namespace="CELERY")
    return app


@pytest.mark.versions
def test_a_queue_that_the_app_does_not_know_is_refused():
    known = [Queue("default"), Queue("mail", alias="post")]
    app = app_with(task_queues=known, task_create_missing_queues=False)
    assert _look_at_queues(app, ["default", "post"]) == []
    told = "^the app's task_queues has no celery, only default, mail: name these in celery_queues$"
    with pytest.raises(UsageError, match=told):
        _look_at_queues(app, ["celery", "mail"])
    assert _look_at_queues(app_with(task_queues=known), ["celery"]) == []


@pytest.mark.versions
def test_where_tasks_without_a_route_go_is_told_if_the_app_says_so_and_it_is_not_here():
    told = ["tasks without a route go to other (task_default_queue), not to this worker"]
    assert _look_at_queues(app_with(task_default_queue="other"), ["celery"]) == told
    assert _look_at_queues(app_with(task_default_queue="other"), ["a", "other"]) == []
    assert _look_at_queues(app_with(), ["a"]) == []
