"""What tests of the kit itself need besides the lab: playbooks, plans, workers, tasks, Redis."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from lab_fixtures import LabUnderTest

ROOT = pathlib.Path(__file__).resolve().parents[2]
ANSIBLE_PLAYBOOK = pathlib.Path(sys.executable).with_name("ansible-playbook")


@dataclasses.dataclass(frozen=True)
class Played:
    """How a playbook ended: exit status, all that it printed, and how many tasks changed a host."""

    status: int
    output: str

    @property
    def changed(self) -> dict[str, int]:
        """Changed tasks of each host, from the recap."""
        found = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", self.output, re.M)
        return {host: int(number) for host, number in found if host != "localhost"}


class Kit:
    """The kit as an operator uses it on the scenario's hosts."""

    def __init__(self, lab: LabUnderTest, inventory: str) -> None:
        self.lab = lab
        self.inventory = inventory

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
        command = [ANSIBLE_PLAYBOOK, "-i", inventory or self.inventory, playbook, *words]
        done = subprocess.run(
            [*command, "-e", json.dumps(variables)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=self._environment(),
        )
        output = done.stdout + done.stderr
        assert bool(done.returncode) == fails, f"{playbook} ended with {done.returncode}\n{output}"
        return Played(done.returncode, output)

    def cut(self, task: str, seconds: float, **variables: Any) -> bool:
        """Run site.yml, and cut its connections so many seconds after that task has begun.

        The controller's processes are killed, too. False: the run ended well before the task.
        """
        with subprocess.Popen(
            [ANSIBLE_PLAYBOOK, "-i", self.inventory, "site.yml", "-e", json.dumps(variables)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # Else a task is named when its first host is done with it.
            env=self._environment() | {"ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true"},
        ) as process:
            output = ""
            for line in process.stdout or ():
                output += line
                if line.startswith("TASK [") and task in line:
                    time.sleep(seconds)  # this is the moment
                    os.killpg(process.pid, signal.SIGKILL)
                    self.lab.disconnect()
                    return True
        assert not process.returncode, output
        return False

    @staticmethod
    def _environment() -> dict[str, str]:
        # Molecule forces colours, which the output could not be read through.
        plain = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
        return {**os.environ, **plain}

    def status(self, *words: str) -> dict[str, Any]:
        """What playbooks/status.yml knows, and that it changed nothing."""
        played = self.play(*words, playbook="playbooks/status.yml", status_format="json")
        assert set(played.changed.values()) == {0}, played.output
        found = re.search(r"^( *)\{\n.*?^\1\}$", played.output, re.M | re.S)
        assert found, played.output
        return json.loads(found[0])

    def inventory_of(self, directory: pathlib.Path, *hosts: str) -> str:
        """Write an inventory in which only these hosts are there, in both groups; its path."""
        everything = json.loads(pathlib.Path(self.inventory, "hosts.yml").read_text())
        known = {name: everything["all"]["hosts"][name] for name in hosts}
        members = {"hosts": {name: {} for name in hosts}}
        groups = {"redis": members, "celery": members}
        path = directory / "hosts.yml"
        path.write_text(json.dumps({"all": {"hosts": known, "children": groups}}))
        return str(directory)

    def plan(self, host: str) -> dict[str, Any]:
        """The plan that is kept on a host."""
        return json.loads(self.lab.run(host, "cat /etc/celery-metal/plan.json"))

    def queue(self, host: str, name: str) -> dict[str, Any]:
        """One queue's row in the plan of a host."""
        return next(row for row in self.plan(host)["queues"] if row["name"] == name)

    def services(self, host: str) -> set[str]:
        """The services of workers and Redis that are active on a host."""
        states = self.lab.properties(host, "celery-*.service", "ActiveState")
        # That of the firewall only loads rules: it has no process.
        states.pop("celery-firewall.service", None)
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
        return json.loads(self.lab.run(host, [*command, "--count", str(count), *words]))

    def password(self, host: str, user: str = "worker") -> str:
        """The password of a user of Redis, from the secret store of a host."""
        show = "podman secret inspect --showsecret --format '{{.SecretData}}'"
        return self.lab.run(host, f"{show} celery-redis-{user}").strip()

    def redis(self, host: str, *words: str, user: str = "admin") -> str:
        """What redis-cli prints for a user's command, run on the Redis host."""
        command = ["podman", "exec", "-i", "celery-redis", "sh", "-c"]
        script = 'read -r REDISCLI_AUTH; export REDISCLI_AUTH; exec redis-cli --raw "$@"'
        options = ["-s", "/run/redis/redis.sock", "--user", user, "--no-auth-warning"]
        line = [*command, script, "redis-cli", *options, *words]
        return self.lab.run(host, line, stdin=self.password(host, user) + "\n").strip()


@pytest.fixture(scope="session")
def kit(lab: LabUnderTest) -> Kit:
    """The kit on the hosts of the scenario that Molecule is verifying."""
    return Kit(lab, os.environ["MOLECULE_SCENARIO_DIRECTORY"] + "/inventory")
