"""What tests of the kit itself need besides the lab: playbooks, plans, workers, tasks, Redis."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import time
from typing import TYPE_CHECKING, Any

import celery_redis
import controller
import lab as machinery
import pytest
from lab_fixtures import CommandError, LabUnderTest
from processes import descendants

if TYPE_CHECKING:
    from celery_metal_types import Fleet, Plan, PlannedQueue

ROOT = pathlib.Path(__file__).resolve().parents[2]
CLAIMED = """
local tasks = 0
for _, key in ipairs(redis.call('KEYS', 'celery-metal.held:*')) do
  tasks = tasks + redis.call('LLEN', key)
end
return tasks
"""
# A busy machine answers late, and a Redis that is stopped never.
REDIS_SECONDS = 30
# Playbooks that change nothing of what site.yml deploys.
LEAVES = (
    "playbooks/doctor.yml",
    "playbooks/producer.yml",
    "playbooks/queues.yml",
    "playbooks/run.yml",
    "playbooks/status.yml",
)


@dataclasses.dataclass(frozen=True)
class Played:
    """How a playbook ended: exit status, all that it printed, and how many tasks changed a host.

    ``stdout`` has no more than what it printed there.
    """

    status: int
    output: str
    stdout: str = ""

    @property
    def said(self) -> str:
        """The output as one line: Ansible breaks its messages where it likes."""
        return " ".join(self.output.split())

    @property
    def changed(self) -> dict[str, int]:
        """Changed tasks of each host, from the recap."""
        found = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", self.output, re.M)
        return {host: int(number) for host, number in found if host != "localhost"}


def end_all(pid: int) -> None:
    """Kill a process and all that it has started.

    Ansible gives each of its workers a session: one that outlived it would go on with its task.
    """
    os.kill(pid, signal.SIGSTOP)  # it starts no more
    for one in descendants(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def raw(answer: Any) -> str:
    """Redis's answer as `redis-cli --raw` prints it: a list as lines, nothing as an empty one."""
    if isinstance(answer, list):
        return "\n".join(map(raw, answer))
    return "" if answer is None else str(answer)


class Kit:
    """The kit as an operator uses it on the scenario's hosts."""

    def __init__(self, lab: LabUnderTest, inventory: str) -> None:
        self.lab = lab
        self.inventory = inventory
        self._passwords: dict[tuple[str, str], str] = {}
        # What the last run of site.yml has deployed; None: it is not known.
        self._deployed: dict[str, Any] | None = None

    def play(
        self,
        *words: str,
        playbook: str = "site.yml",
        inventory: str | None = None,
        fails: bool = False,
        **variables: Any,
    ) -> Played:
        """Run a playbook with the scenario's inventory and these variables over it.

        An AssertionError with all output if it does not end as expected: well, or with `fails` not.
        """
        line = ["-i", inventory or self.inventory, playbook, *words, "-e", json.dumps(variables)]
        done = controller.run(line, ROOT, self._environment())
        output = done.stdout + done.stderr
        assert bool(done.returncode) == fails, f"{playbook} ended with {done.returncode}\n{output}"
        if "--check" not in words and playbook not in LEAVES:
            plain = playbook == "site.yml" and not (words or inventory or done.returncode)
            self._deployed = copy.deepcopy(variables) if plain else None
        return Played(done.returncode, output, done.stdout)

    def ensure(self, **variables: Any) -> None:
        """Deploy the site with these variables, unless the last run has just done that."""
        if self._deployed != variables:
            self.play(**variables)

    def cut(self, task: str, seconds: float, **variables: Any) -> bool:
        """Run site.yml, and cut its connections so many seconds after that task has begun.

        The controller's processes are killed, too. False: the run ended well before the task.
        """
        self._deployed = None
        words = ["-i", self.inventory, "site.yml", "-e", json.dumps(variables)]
        # Else a task is named when its first host is done with it.
        environ = self._environment() | {"ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true"}
        read, write = os.pipe()
        with open(read) as lines:
            process = controller.start(words, ROOT, environ, write, write)
            os.close(write)
            output = ""
            for line in lines:
                output += line
                if line.startswith("TASK [") and task in line:
                    time.sleep(seconds)  # this is the moment
                    end_all(process.pid)
                    self.lab.disconnect()
                    process.wait()
                    return True
        assert not process.wait(), output
        return False

    @staticmethod
    def _environment() -> dict[str, str]:
        # Molecule forces colours, which the output could not be read through.
        plain = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
        return {**os.environ, **plain}

    def status(self, *words: str) -> Fleet:
        """What playbooks/status.yml knows, and that it changed nothing."""
        played = self.play(*words, playbook="playbooks/status.yml", status_format="json")
        assert set(played.changed.values()) == {0}, played.output
        status: Fleet = json.loads(played.stdout)
        return status

    def inventory_of(self, directory: pathlib.Path, *hosts: str) -> str:
        """Write an inventory in which only these hosts are there, in both groups; its path."""
        everything = json.loads(pathlib.Path(self.inventory, "hosts.yml").read_text())
        known = {name: everything["all"]["hosts"][name] for name in hosts}
        members: dict[str, Any] = {"hosts": {name: {} for name in hosts}}
        groups = {"redis": members, "celery": members}
        path = directory / "hosts.yml"
        path.write_text(json.dumps({"all": {"hosts": known, "children": groups}}))
        return str(directory)

    def inventory_with_redis(self, directory: pathlib.Path, *hosts: str) -> str:
        """Write the scenario's inventory with these hosts in the group redis; its path."""
        known = json.loads(pathlib.Path(self.inventory, "hosts.yml").read_text())
        known["all"]["children"]["redis"]["hosts"] = {host: {} for host in hosts}
        shutil.copytree(pathlib.Path(self.inventory, "group_vars"), directory / "group_vars")
        (directory / "hosts.yml").write_text(json.dumps(known))
        return str(directory)

    def plan(self, host: str) -> Plan:
        """The plan that is kept on a host."""
        plan: Plan = json.loads(self.lab.run(host, "cat /etc/celery-metal/plan.json"))
        return plan

    def queue(self, host: str, name: str) -> PlannedQueue:
        """One queue's row in the plan of a host."""
        return next(row for row in self.plan(host)["queues"] if row["name"] == name)

    def services(self, host: str) -> set[str]:
        """The services of workers and Redis that are active on a host."""
        states = self.lab.properties(host, "celery-*.service", "ActiveState")
        # These only load rules: they have no process.
        for unit in ("celery-firewall.service", "celery-egress.service", "celery-network.service"):
            states.pop(unit, None)
        return {unit for unit, state in states.items() if state == "active"}

    def main_process(self, host: str, container: str) -> int:
        """The container's first process, by its number on the host."""
        return int(self.lab.run(host, f"podman inspect -f '{{{{.State.Pid}}}}' {container}"))

    def children(self, host: str, container: str) -> list[int]:
        """Processes that the container's first process has started: a prefork pool."""
        main = self.main_process(host, container)
        return [int(pid) for pid in self.lab.run(host, f"pgrep -P {main} . || [ $? = 1 ]").split()]

    def threads(self, host: str, container: str) -> int:
        """Threads of the container's first process."""
        main = self.main_process(host, container)
        return int(self.lab.run(host, f"ls /proc/{main}/task | wc -l"))

    def environment(self, host: str, container: str) -> dict[str, str]:
        """The environment with which the container's first process was started."""
        main = self.main_process(host, container)
        lines = self.lab.run(host, f"tr '\\0' '\\n' < /proc/{main}/environ").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def smoke(
        self, host: str, container: str, *queues: str, count: int = 100
    ) -> dict[str, dict[str, Any]]:
        """Send `count` tasks to each queue from inside a worker and check all answers."""
        words = [word for queue in queues for word in ("--queue", queue)]
        command = ["podman", "exec", container, "python", "-m", "metal_sample.smoke", "--json"]
        line = [*command, "--count", str(count), *words]
        # Longer than it waits for answers itself: it says which are missing.
        answers: dict[str, dict[str, Any]] = json.loads(self.lab.run(host, line, timeout=90))
        return answers

    def claimed(self, host: str) -> int:
        """How many tasks the workers have taken and not acknowledged, from Redis of a host."""
        return int(self.redis(host, "eval", CLAIMED, "0"))

    def secret(self, host: str, name: str) -> str:
        """A secret from the store of a host, without a last newline."""
        show = "podman secret inspect --showsecret --format '{{.SecretData}}'"
        return self.lab.run(host, f"{show} {name}").strip()

    def password(self, host: str, user: str = "worker") -> str:
        """The password of a user of Redis, from the secret store of a host."""
        return self.secret(host, f"celery-redis-{user}")

    def certificates(
        self, host: str, directory: pathlib.Path, user: str = "producer"
    ) -> dict[str, Any]:
        """What a user of Redis needs for TLS besides, in files of a directory; Celery's options."""
        ca, own = directory / "ca.pem", directory / f"{user}.pem"
        ca.write_text(self.secret(host, "celery-redis-ca"))
        own.write_text(self.secret(host, f"celery-redis-certificate-{user}"))
        options = {"ssl_ca_certs": ca, "ssl_certfile": own, "ssl_keyfile": own}
        return {"ssl_cert_reqs": "required", **{name: str(path) for name, path in options.items()}}

    def make_it_end_soon(self, host: str, name: str) -> None:
        """Have Podman keep a certificate as one that ends in ten days."""
        code = (
            "import json, subprocess, sys, time; name = sys.argv[1];"
            "show = ['podman', 'secret', 'inspect', '--showsecret', name];"
            "one = json.loads(subprocess.check_output(show))[0];"
            "labels = {**one['Spec']['Labels'], 'until': str(int(time.time()) + 864000)};"
            "words = [word for item in labels.items() for word in ('--label', '='.join(item))];"
            "subprocess.run(['podman', 'secret', 'create', '--replace', *words, name, '-'],"
            " input=one['SecretData'], text=True, check=True)"
        )
        self.lab.run(host, ["python3", "-c", code, name])

    def redis(self, host: str, *words: str, user: str = "admin") -> str:
        """What Redis of a host answers to a user's command, as `redis-cli --raw` prints it.

        CommandError if it cannot be asked.
        """
        for known in (True, False):
            if not known or (host, user) not in self._passwords:
                self._passwords[host, user] = self.password(host, user)
            try:
                path = machinery.seen_from_here(self.lab.lab.host(host), celery_redis.SOCKET)
                client = celery_redis.Client(str(path), REDIS_SECONDS)
                try:
                    # One after the other: Redis 8.0 does not answer to an AUTH that fails behind
                    # another command in one write.
                    (welcome,) = client.try_all(("AUTH", user, self._passwords[host, user]))
                    (answer,) = client.try_all(words)
                finally:
                    client.close()
            except (OSError, machinery.LabError) as problem:
                raise CommandError(host, f"redis {words[0]}", 1, str(problem)) from None
            if welcome == "OK":
                return raw(answer).strip()
        raise CommandError(host, f"redis {words[0]}", 1, str(welcome))


@pytest.fixture(scope="session")
def kit(lab: LabUnderTest) -> Kit:
    """The kit on the hosts of the scenario that Molecule is verifying."""
    return Kit(lab, os.environ["MOLECULE_SCENARIO_DIRECTORY"] + "/inventory")
