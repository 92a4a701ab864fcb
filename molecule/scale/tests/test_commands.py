"""One-off commands, and hooks of a deploy: on a host as on an operator's terminal."""

import json
import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import sys
import time

import pytest

HOST = "metal"
ROOT = pathlib.Path(__file__).resolve().parents[3]
RUN = "playbooks/run.yml"
ODD = '50% of "$HOME" \\ é %i $$'
SITE = {
    "celery_queues": [
        {"name": "add_queue", "concurrency": 1},
        {"name": "mail", "concurrency": 1, "environment": {"LEVEL": "low"}},
    ],
    "celery_worker_environment": {"LEVEL": ODD},
    "celery_worker_secrets": {"TOKEN": "hush-hush"},
    "celery_worker_secrets_exported": ["TOKEN"],
}
QUEUES = {"celery_queues": SITE["celery_queues"]}
# As one word: Ansible shows lines of a command's output as they come.
SHOW = (
    "import json, os; from metal_sample.celery import app; "
    "print('FOUND', json.dumps([os.getuid(), os.environ['LEVEL'], os.environ['TOKEN'][:4], "
    "app.control.ping(timeout=20, limit=2)]))"
)
SECONDS = 90


def command(kit, *words, fails=False, **variables):
    return kit.play(playbook=RUN, fails=fails, run_command=words, **variables)


def commands_here(lab):
    """What is left of commands: units, containers and files."""
    units = lab.run(HOST, "systemctl list-units --all --plain --no-legend 'celery-run-*'")
    containers = lab.run(HOST, "podman ps --all --format '{{.Names}}'")
    files = lab.run(HOST, "ls /run")
    return re.findall(r"celery-run-\w+", units + containers + files)


def test_a_command_has_what_the_workers_of_its_queue_have(kit, lab):
    kit.ensure(**SITE)
    for queue, level in (("", ODD), ("mail", "low")):
        variables = {**QUEUES, "run_queue": queue} if queue else {}
        output = command(kit, "python", "-c", SHOW, **variables).output
        found = json.loads(re.search(r"^FOUND (.*)$", output, re.M)[1])
        assert found[:3] == [999, level, "hush"]
        assert sorted(name for one in found[3] for name in one) == [
            "add_queue-1@metal",
            "mail-1@metal",
        ]
    # As the app's documentation says it.
    played = command(kit, "celery", "-A", "metal_sample.celery", "inspect", "active")
    assert "2 nodes online." in played.output
    assert commands_here(lab) == []


def test_its_output_comes_as_it_is_written_and_its_memory_is_what_the_plan_leaves(kit, lab):
    kit.ensure(**SITE)
    wait = (
        "import time; from metal_sample.celery import app; print('BEGUN', flush=True)\n"
        "while not app.backend.client.exists('metal_sample.go'): time.sleep(0.1)\n"
        "print('END')"
    )
    line = [sys.executable, "-m", "ansible", "playbook", "-i", kit.inventory, RUN]
    line += ["-e", json.dumps({"run_command": ["python", "-c", wait]})]
    kit.redis(HOST, "del", "metal_sample.go")
    playing = subprocess.Popen(
        line, cwd=ROOT, env=kit._environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        seen = ""
        while not seen.endswith("BEGUN\n"):
            read = playing.stdout.readline()
            assert read, seen
            seen += read
        shown = lab.properties(HOST, "celery-run-*.service", "Slice")
        assert list(shown.values()) == ["celery.slice"]
        limits = lab.properties(HOST, "celery-run-*.service", "MemoryMax")
        assert list(limits.values()) == [str(512 << 20)]
        free = kit.plan(HOST)["totals"]["free_mb"]
        said = command(kit, "true", run_memory_mb=free - 511, fails=True).said
        assert f"{free - 511} MB are asked for, and the plan of this host leaves {free} MB" in said
        command(kit, "true", run_memory_mb=free - 512)
    finally:
        kit.redis(HOST, "set", "metal_sample.go", "1")
        rest = playing.communicate(timeout=SECONDS)[0]
        kit.redis(HOST, "del", "metal_sample.go")
    assert playing.returncode == 0, rest
    assert rest.splitlines()[0] == "END"


def test_all_that_a_command_writes_is_shown(kit):
    kit.ensure(**SITE)
    # Above journald's own limits: 10,000 lines in 30 s, and 4 kB of a line as JSON.
    code = "print('y' * 6000); [print(number) for number in range(45000)]; print('x' * 8300)"
    lines = command(kit, "python", "-c", code).output.splitlines()
    assert "y" * 6000 in lines
    assert [one for one in lines if one.isdigit()] == [str(number) for number in range(45000)]
    assert "x" * 8192 + "... (108 more characters)" in lines


def test_a_command_that_fails_fails_the_run_and_leaves_nothing(kit, lab):
    kit.ensure(**SITE)
    played = command(kit, "sh", "-c", "printf 'a\\033[2Jb\\n'; exit 3", fails=True)
    assert "a?[2Jb" in played.output
    assert "ended with status 3." in played.said
    assert "the image has no such program" in command(kit, "gone", fails=True).said
    said = command(kit, "sleep", "60", fails=True, run_seconds=1).said
    assert "ended with status 124: it was ended after 1 s." in said
    said = command(kit, "true", fails=True, run_queue="gone", **QUEUES).said
    assert 'run_queue is "gone", which is not in celery_queues' in said
    # Declared, and not deployed yet.
    declared = {"celery_queues": [*SITE["celery_queues"], {"name": "next"}]}
    said = command(kit, "true", fails=True, run_queue="next", **declared).said
    assert "this host has no queue next; it has add_queue, mail" in said
    said = command(kit, "true", fails=True, run_version="gone").said
    assert "run_version is gone" in said
    assert "FOUND" not in kit.play(
        "--check", playbook=RUN, run_command="echo FOUND"
    ).output.replace("would run echo FOUND", "")
    assert commands_here(lab) == []


class Terminal:
    """ansible-playbook in a terminal, as an operator has it."""

    def __init__(self, kit, **variables):
        words = ["ansible-playbook", "-i", kit.inventory, RUN, "-e", json.dumps(variables)]
        self.pid, self.file = pty.fork()
        if not self.pid:
            os.chdir(ROOT)
            os.execvpe(words[0], words, kit._environment())
        self.seen = ""

    def until(self, text):
        deadline = time.monotonic() + SECONDS
        while text not in self.seen:
            assert select.select([self.file], [], [], max(0, deadline - time.monotonic()))[0], (
                self.seen
            )
            try:
                self.seen += os.read(self.file, 65536).decode(errors="replace")
            except OSError:  # it has ended
                break
        assert text in self.seen, self.seen

    def write(self, text):
        self.seen = ""
        os.write(self.file, text.encode())


def test_a_terminal_is_the_commands_own_and_its_status_the_runs(kit, lab):
    kit.ensure(**SITE)
    terminal = Terminal(kit, run_command="python -q")
    terminal.until(">>> ")
    terminal.write("import os; print(os.isatty(0), 6 * 7)\r")
    terminal.until("True 42")
    # Its reservation has ended.
    limits = lab.properties(HOST, "celery-run-*.service", "MemoryMax")
    assert list(limits.values()) == [str(512 << 20)]
    terminal.write("import sys; sys.exit(7)\r")
    terminal.until("ended with status 7.")
    terminal.until("SUMMARY")
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 7
    # One that is lost does not leave its command behind.
    terminal = Terminal(kit, run_command="python -q")
    terminal.until(">>> ")
    os.close(terminal.file)
    os.waitpid(terminal.pid, 0)
    lab.wait_for(lambda: not commands_here(lab), SECONDS, "the end of the command", host=HOST)


@pytest.fixture
def version(tmp_path):
    """Sources of another version of the sample app, and a mark that is theirs alone."""
    source = tmp_path / "sample"
    shutil.copytree(ROOT / "app/sample", source)
    (source / "mark.txt").write_text(f"MARK {tmp_path}\n")
    return source


def test_hooks_run_once_in_the_new_version_and_one_that_fails_stops_the_deploy(
    kit, lab, version, tmp_path
):
    kit.ensure(**SITE)
    before = lab.invocation_ids(HOST, "celery-*.service")
    told = tmp_path / "told"
    tell = ["sh", "-c", f"echo $DEPLOY_RESULT $DEPLOY_HOSTS >> {told}"]
    mark = (version / "mark.txt").read_text().strip()
    hooks = {
        "before_workers": ["cat mark.txt", {"command": tell, "where": "controller"}],
        "after_workers": ["celery -A metal_sample.celery inspect ping"],
        "on_failure": [tell],
    }
    variables = {**SITE, "image_app_source": str(version)}
    # With the same version there is nothing to do.
    assert kit.play(**SITE, deploy_hooks=hooks).changed == {HOST: 0}

    bad = {**hooks, "before_workers": [*hooks["before_workers"], "sh -c 'exit 5'"]}
    played = kit.play(**variables, deploy_hooks=bad, fails=True)
    assert "ended with status 5. No worker was replaced." in played.said
    assert played.output.count(f"\n{mark}\n") == 1
    assert told.read_text().splitlines() == ["running metal", "failure metal"]
    assert lab.invocation_ids(HOST, "celery-*.service") == before

    bad = {**hooks, "after_workers": ["sh -c 'exit 6'"]}
    played = kit.play(**variables, deploy_hooks=bad, fails=True)
    order = [played.output.index(text) for text in (mark, "Replace the workers", "exit 6")]
    assert order == sorted(order)
    assert "ended with status 6. All workers work with the new version." in played.said
    assert lab.invocation_ids(HOST, "celery-*.service") != before

    # The next run does what is left, and no more.
    played = kit.play(**variables, deploy_hooks=hooks)
    assert mark not in played.output
    assert "2 nodes online." in played.output
    assert played.changed == {HOST: 1}
    assert kit.play(**variables, deploy_hooks=hooks).changed == {HOST: 0}
    assert commands_here(lab) == []
