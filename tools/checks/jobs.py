"""What there is to check: linters, unit tests and Molecule's scenarios, each as a job."""

from __future__ import annotations

import dataclasses
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOGS = ROOT / ".cache" / "test"
BIN = ROOT / ".venv" / "bin"
LAB = ROOT / "molecule" / "_lab" / "lab.py"
# What only computes leaves the CPUs to a job that others wait for.
BESIDE = ("nice",)
# A single test that takes longer hangs, and its log shows where.
TEST_SECONDS = 900

LINTERS = {
    "ansible-lint": ["ansible-lint", "--offline", "--nocolor"],
    "yamllint": ["yamllint", "--strict", "."],
    "mypy": ["mypy"],
    "ruff-check": ["ruff", "check", "."],
    "ruff-format": ["ruff", "format", "--check", "."],
}


class UnknownScenarioError(Exception):
    """No scenario has this name; the text lists those that exist."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One command and its name, such as "molecule/default"; `scenario` if it uses a lab."""

    name: str
    command: tuple[str, ...]
    junit: bool = False
    scenario: str = ""

    @property
    def log(self) -> pathlib.Path:
        return LOGS / f"{self.name.replace('/', '-')}.log"

    @property
    def report(self) -> pathlib.Path:
        return self.log.with_suffix(".xml")

    @property
    def kept(self) -> pathlib.Path:
        """Where molecule/_lab/destroy.yml keeps the journals of the scenario's hosts."""
        return ROOT / ".cache" / "journals" / (self.scenario or "none")

    def environment(self) -> dict[str, str]:
        """Return the job's environment: this checkout's tools first, and plain output."""
        env = dict(os.environ, PATH=f"{BIN}:{os.environ['PATH']}", NO_COLOR="1", PY_COLORS="0")
        env |= {"ANSIBLE_NOCOLOR": "1", "MOLECULE_COMMAND_BORDERS": "false"}
        # Each process that Ansible forks would compile the filters again.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        env["PYTHONPYCACHEPREFIX"] = str(ROOT / ".cache" / "bytecode")
        if self.junit:
            # Reaches pytest also through Molecule.
            hangs = f"-o faulthandler_timeout={TEST_SECONDS} -o faulthandler_exit_on_timeout=true"
            env["PYTEST_ADDOPTS"] = f"--junitxml={self.report} {hangs}"
        return env


def lint_jobs() -> list[Job]:
    """Return one job for each linter."""
    return [Job(f"lint/{name}", (*BESIDE, *command)) for name, command in LINTERS.items()]


def unit_jobs() -> list[Job]:
    """Return one job for each directory of unit tests, and app's with its oldest versions."""
    directories = [
        *sorted(ROOT.glob("roles/*/tests")),
        ROOT / "app/tests",
        ROOT / "tests",
        ROOT / "bench",
        ROOT / "tools/checks",
        LAB.parent,
    ]
    names = [
        str(directory.relative_to(ROOT))
        for directory in directories
        if any(directory.glob("test_*.py"))
    ]
    # Hypothesis's own for a machine of which nobody knows what else it does: no limits of time.
    command = ("pytest", "--quiet", "-p", "no:cacheprovider", "--hypothesis-profile=ci")
    return [
        *(Job(f"unit/{name}", (*beside(name), *command, name), junit=True) for name in names),
        Job("unit/app/tests-oldest", ("tools/oldest.sh",), junit=True),
    ]


def beside(name: str) -> tuple[str, ...]:
    """Return how to start the tests of a directory; those of app/ have workers that must beat."""
    return () if name.startswith("app/") else BESIDE


def known_scenarios() -> list[str]:
    """Return the names of all scenarios, sorted."""
    return sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml"))


def scenario_jobs(wanted: list[str]) -> list[Job]:
    """Return one job for each scenario, or for those wanted.

    Raises:
        UnknownScenarioError: one of the wanted has no molecule.yml.
    """
    known = known_scenarios()
    for name in wanted:
        if name not in known:
            raise UnknownScenarioError(f"no scenario {name!r}, only: {', '.join(known)}")
    return [
        Job(
            f"molecule/{name}",
            ("molecule", "test", "--scenario-name", name),
            junit=True,
            scenario=name,
        )
        for name in wanted or known
    ]
