"""playbooks/run.yml and deploy_hooks: nonsense is refused; which hooks run, where and when."""

import time

import commands
import hooks
import pytest
import run_hooks
from hypothesis import given
from hypothesis import strategies as st
from test_refusals import Site

HOSTS = ["web1", "web2"]
QUEUES = ["mail", "é 1"]
RUN = {"run_command": "python manage.py migrate"}


@pytest.mark.parametrize(
    ("variables", "said", "remedy"),
    [
        ({}, "run_command is not set", "run_command='python manage.py migrate'"),
        ({"run_command": ""}, "it is empty", "run_command="),
        ({"run_command": "sh -c 'x"}, "No closing quotation", "run_command="),
        ({"run_command": ["a", 1]}, "neither a text nor a list of texts", "run_command="),
        ({"run_command": "x" * 70000}, "more than 65536 bytes", "run_command="),
        ({"run_command": ["a\0"]}, "(NUL)", "run_command="),
        ({**RUN, "_raw_params": "-A shop"}, 'ends before "-A shop"', "run_command='python"),
        ({**RUN, "--fake": "1"}, 'ends before "--fake"', "run_command='python"),
        ({**RUN, "run_comand": "x"}, "run_comand is an unknown variable", "write run_command"),
        ({**RUN, "run_queue": "a\n"}, 'run_queue is "a "', "name of a queue"),
        (
            {**RUN, "run_queue": "mial"},
            '"mial", which is not in celery_queues',
            "one of mail, é 1; ",
        ),
        ({**RUN, "run_on": "web3"}, 'run_on is "web3"', "first, all, or one of web1, web2"),
        ({**RUN, "run_version": "x y"}, 'run_version is "x y"', "rollback.yml lists them"),
        ({**RUN, "run_memory_mb": "0"}, 'run_memory_mb is "0"', "write 1 to"),
        ({**RUN, "run_seconds": True}, 'run_seconds is "True"', "write 1 to"),
        ({**RUN, "run_terminal": "maybe"}, 'run_terminal is "maybe"', "write true or false"),
        ({**RUN, "run_terminal": True, "run_on": "all"}, "run_on is all", "name one host"),
    ],
)
def test_nonsense_is_refused_with_a_remedy(variables, said, remedy):
    problem, _, fix = commands.problems(variables, HOSTS, QUEUES).partition(".\n  Fix: ")
    assert said in problem
    assert remedy in fix
    assert fix.endswith("Nothing was run.")


@pytest.mark.parametrize(
    "more",
    [
        {},
        # Variables of an inventory's own.
        {"run_environment": "prod", "my-var": 1},
        {"run_on": "web2", "run_terminal": "yes", "run_queue": "é 1", "run_version": "a_b-1.2"},
        {"run_on": "all", "run_memory_mb": "300", "run_seconds": 60, "run_terminal": False},
        {"run_command": ["python", "-c", "print('a b')"]},
    ],
)
def test_what_can_be_done_is_not_refused(more):
    assert commands.problems({**RUN, "other": "{{ x }}", **more}, HOSTS, QUEUES) == ""


@pytest.mark.parametrize(
    ("declared", "found"),
    [
        ({}, []),
        (
            {"web1": [{"name": "a"}, {"name": 7}], "web2": [{"name": "a", "queues": ["x"]}]},
            ["a", "7"],
        ),
        # Refused by others.
        ({"web1": "a", "web2": ["a", {}, {"name": "b"}]}, ["b"]),
    ],
)
def test_the_queues_are_those_of_all_hosts(declared, found):
    hosts = {host: {"celery_queues": declared.get(host)} for host in HOSTS}
    assert commands.queues_of(hosts, HOSTS) == found


@given(st.dictionaries(st.sampled_from(commands.KNOWN), st.one_of(st.text(), st.integers())))
def test_no_value_ends_the_check_or_reaches_the_terminal(variables):
    said = commands.problems(variables, HOSTS, QUEUES)
    assert all(one.isprintable() or one == "\n" for one in said)


@pytest.mark.parametrize(
    ("given", "queues", "found"),
    [
        ({}, {"web1": [], "web2": ["mail"]}, ["web2"]),
        ({"run_queue": "big"}, {"web1": ["mail"], "web2": ["big"]}, ["web2"]),
        ({"run_on": "all"}, {"web1": ["mail"], "web2": ["mail"]}, HOSTS),
        ({"run_on": "all", "run_queue": "big"}, {"web1": ["mail"], "web2": ["big"]}, ["web2"]),
        ({"run_on": "web2"}, {"web1": ["mail"], "web2": []}, ["web2"]),
        # Refused there, with the queues that it has.
        ({"run_queue": "gone"}, {"web1": ["mail"], "web2": ["mail"]}, ["web1"]),
        # A host may say anything.
        ({}, {"web1": 7, "web2": ["mail"]}, ["web2"]),
    ],
)
def test_a_command_runs_where_its_queue_is(given, queues, found):
    hosts = {host: {**given, "run_found": {"queues": queues[host]}} for host in HOSTS}
    assert commands.targets(hosts, HOSTS) == found


@pytest.mark.playbook
def test_nonsense_is_refused_before_a_host_is_contacted(tmp_path):
    site = Site(tmp_path)
    run = site.run("-e", "run_command=python manage.py migrate", playbook="playbooks/run.yml")
    assert 'the command ends before "manage.py migrate"' in run.said
    assert "UNREACHABLE" not in run.said
    site.variables("celery_queues: [{name: emails, queues: [emails, mail]}]\n")
    wanted = ("-e", "run_command=python", "-e")
    run = site.run(*wanted, "run_queue=mail", playbook="playbooks/run.yml")
    assert 'run_queue is "mail", which is not in celery_queues' in run.said
    assert "write one of emails; " in run.said
    assert "UNREACHABLE" not in run.said
    run = site.run(*wanted, "run_queue=emails", playbook="playbooks/run.yml")
    assert "UNREACHABLE" in run.said


@pytest.mark.playbook
def test_a_hook_that_cannot_be_run_is_refused_before_a_host_is_contacted(tmp_path):
    site = Site(tmp_path)
    site.variables(
        "celery_queues: [{name: emails}]\n"
        "deploy_hooks: {before_workers: [{command: sh -c 'x, queue: mail}]}\n"
    )
    site.refuses("deploy_hooks.before_workers[0] has the command", "No closing quotation")


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"before": []}, 'deploy_hooks has "before": take one of before_workers'),
        ({"before_workers": "migrate"}, 'deploy_hooks.before_workers is "migrate", no list: write'),
        ({"before_workers": [7]}, "neither a text nor a list of texts"),
        ({"before_workers": [{"queue": "mail"}]}, "has the command"),
        ({"before_workers": [{"command": "a", True: "controller"}]}, "has True: take one of"),
        ({"before_workers": [{"command": "a", "where": "web1"}]}, "write host or controller"),
        ({"before_workers": [{"command": "a", "queue": "gone"}]}, "name one of celery_queues"),
        ({"before_workers": [{"command": "a", "memory_mb": "1"}]}, 'has memory_mb: "1":'),
        ({"after_workers": [{"command": "a", "seconds": 0}]}, "has seconds: 0:"),
        (
            {"after_workers": [{"command": "a", "where": "controller", "queue": "mail"}]},
            "has queue, and runs on the controller",
        ),
        ({"on_failure": [{"command": "a", "where": "host"}]}, "commands run on the controller"),
    ],
)
def test_a_hook_that_cannot_be_run_is_refused(declared, said):
    problem = hooks.problems(declared, [{"name": "mail"}])
    assert len(problem) == 1
    assert said in problem[0]


HOOK = {"before_workers": ["migrate"]}


@pytest.mark.parametrize(
    ("others", "differs"),
    [
        ({"web2": HOOK, "web3": {"before_workers": ["migrate"]}}, False),
        ({"web2": None}, True),
        ({"web2": HOOK, "web3": {"before_workers": ["migrate", "x"]}}, True),
        ({"web2": {"before_workers": [{"command": "migrate"}]}}, True),
    ],
)
def test_hooks_that_differ_by_host_are_refused(others, differs):
    hosts = {host: {"deploy_hooks": one} if one else {} for host, one in others.items()}
    hosts["web1"] = {"deploy_hooks": HOOK}
    said = hooks.fleet_problem(hosts, sorted(hosts))
    assert bool(said) == differs
    if differs:
        assert "deploy_hooks is" in said
        assert "on web1: hooks run once for all hosts.\n  Fix: declare" in said
        assert said.endswith("Nothing was changed.")


@pytest.mark.playbook
def test_hooks_that_differ_are_refused_before_a_host_is_contacted(tmp_path):
    site = Site(tmp_path)
    (tmp_path / "host_vars").mkdir()
    path = tmp_path / "host_vars/web2.yml"
    path.write_text("deploy_hooks: {after_workers: [warm]}\n")
    site.refuses("web2: deploy_hooks is {'after_workers': ['warm']}, and None on web1: hooks run")
    # What a fact decides is known later.
    path.write_text("deploy_hooks: {after_workers: ['{{ ansible_facts.hostname }}']}\n")
    assert "UNREACHABLE" in site.run().said


NEW, OLD = "localhost/celery-metal/app:2", "localhost/celery-metal/app:1"
HOOKS = {
    "before_workers": ["migrate", {"command": ["tell"], "where": "controller"}],
    "after_workers": ["warm"],
    "on_failure": ["tell 'it failed'"],
}


def fleet(images, left="", declared=HOOKS, queues=("", "mail", "mail")):
    """Hostvars of three hosts, of which the first has no workers."""
    return {
        f"web{number}": {
            "deploy_hooks": declared,
            "podman_host_state": {"app_images": images, "hooks_left": left},
            "capacity_plan": {
                "queues": [{"name": queue}] if queue else [],
                "totals": {"free_mb": 100},
            },
        }
        for number, queue in enumerate(queues)
    }


@pytest.mark.parametrize(
    ("images", "left", "found"),
    [
        ([], "", (2, 1, 1)),
        ([OLD], "", (2, 1, 1)),
        # A run that was cut in the middle of writing units.
        ([OLD, NEW], "", (2, 1, 1)),
        ([NEW], "", (0, 0, 0)),
        ([NEW], NEW, (0, 1, 1)),
        ([NEW], OLD, (0, 0, 0)),
    ],
)
def test_hooks_run_when_a_version_comes_and_those_that_are_left_later(images, left, found):
    hosts = fleet(images, left)
    assert tuple(len(hooks.due(hosts, [*hosts], NEW, one)) for one in hooks.PHASES) == found
    before = hooks.before(hosts, "web1", [*hosts], NEW)
    assert bool(before) == (found != (0, 0, 0))
    if before:
        assert len(before["commands"]) == found[0]
        assert before["left"] == NEW
    assert hooks.before(hosts, "web2", [*hosts], NEW) == {}, "they run on one host"


def test_hooks_run_on_the_first_host_with_workers_or_nowhere():
    hosts = fleet([], queues=("", "", ""))
    assert hooks.hook_host(hosts, [*hosts]) == ""
    assert hooks.due(hosts, [*hosts], NEW, "before_workers") == []
    hosts = fleet([])
    assert hooks.hook_host(hosts, [*hosts]) == "web1"
    assert hooks.due(hosts, [*hosts], NEW, "before_workers") == [
        {"where": "host", "command": ["migrate"]},
        {"where": "controller", "command": ["tell"]},
    ]
    assert hooks.due(fleet([], declared=None), [*hosts], NEW, "before_workers") == []


@pytest.mark.parametrize(
    ("hook", "free_mb", "said"),
    [
        ({"command": "a", "memory_mb": 100}, 100, ""),
        ({"command": "a", "memory_mb": 101}, 100, "after_workers[1] needs 101 MB, and the plan of"),
        ("a", 64, ""),
        ("a", 63, "after_workers[0] needs 64 MB, the least for a hook without memory_mb, and the"),
        ({"command": "a", "where": "controller"}, 0, ""),
    ],
)
def test_a_hook_fits_into_the_plan_or_is_refused(hook, free_mb, said):
    first = {"command": "b", "where": "controller"} if free_mb < 64 and "where" in hook else "b"
    hosts = fleet([OLD], declared={"after_workers": [first, hook]})
    hosts["web1"]["capacity_plan"]["totals"]["free_mb"] = free_mb
    found = hooks.memory_problem(hosts, [*hosts], NEW)
    assert said in found
    assert bool(said) == bool(found)
    if found:
        assert found.startswith("web1: deploy_hooks.")
        assert f"leaves {free_mb} MB free.\n  Fix: " in found
    # Where no hook is due there is nothing to refuse.
    for one in hosts.values():
        one["podman_host_state"]["app_images"] = [NEW]
    assert hooks.memory_problem(hosts, [*hosts], NEW) == ""


def test_a_hook_on_the_controller_knows_the_deploy():
    hosts = fleet([])
    hosts["web0"]["image_app_found"] = {"revision": "a" * 40}
    found = hooks.environment(hosts, [*hosts], NEW, "failure")
    assert found.pop("DEPLOY_BY").count("@") == 1
    assert found == {
        "DEPLOY_VERSION": "2",
        "DEPLOY_COMMIT": "a" * 40,
        "DEPLOY_HOSTS": "web0,web1,web2",
        "DEPLOY_RESULT": "failure",
    }


@pytest.fixture
def said(monkeypatch):
    """Lines that were shown."""
    found = []
    monkeypatch.setattr(
        run_hooks.Display, "display", lambda _, text: found.extend(text.split("\n"))
    )
    return found


@pytest.mark.parametrize(
    ("script", "seconds", "status", "lines"),
    [
        ("echo a; echo $B; exit 3", None, 3, ["a", "b"]),
        ("printf 'a\\033[2J'; true", None, 0, ["a?[2J"]),
        ("echo a; sleep 9; true", 0.5, 124, ["a"]),
        # What it leaves in the background is not waited for.
        ("echo a; sleep 9 & exit 5", 8, 5, ["a"]),
        ("exec >&- 2>&-; sleep 0.3; exit 4", None, 4, []),
        ("seq 20000", None, 0, [str(number) for number in range(1, 20001)]),
    ],
)
def test_a_hook_on_the_controller(said, script, seconds, status, lines):
    begun = time.monotonic()
    result = run_hooks.run_here(["sh", "-c", script], {"B": "b"}, seconds)
    assert time.monotonic() - begun < 8
    assert result.get("status", 0) == status
    assert said == lines


def test_a_hook_on_the_controller_that_is_not_there(said):
    result = run_hooks.run_here(["/gone"], {})
    assert result["msg"] == "controller: /gone ended with status 127: No such file or directory."
    assert said == []
