"""What there is to check: linters, unit tests and Molecule's scenarios, each as a job."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil

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
# Replace those of the same name in `quick`. The playbooks of scenarios take most of the time.
QUICK_LINTERS = {"ansible-lint": [*LINTERS["ansible-lint"], "roles", "playbooks", "site.yml"]}
# Unit tests that need nothing but Python and PROGRAMS: one run of pytest.
UNIT_TESTS = ("roles", "tests", "bench", "molecule/_lab", "tools")
# The programs that these start, and Debian's package of each.
PROGRAMS = {
    "dpkg-deb": "dpkg",
    "git": "git",
    "openssl": "openssl",
    "redis-server": "redis-server",
    "ssh-keygen": "openssh-client",
}


class MissingProgramError(Exception):
    """Programs are missing; the text names them and their packages."""


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


def lint_jobs(linters: dict[str, list[str]] = LINTERS) -> list[Job]:
    """Return one job for each linter."""
    return [Job(f"lint/{name}", (*BESIDE, *command)) for name, command in linters.items()]


def pytest_job(name: str, *words: str, prefix: tuple[str, ...] = BESIDE) -> Job:
    """Return one run of pytest."""
    options = ("--quiet", "-p", "no:cacheprovider")
    return Job(name, (*prefix, "pytest", *options, *words), junit=True)


def pure_job() -> Job:
    """Return the job of all unit tests that start neither Ansible nor a worker."""
    return pytest_job("unit/pure", "-m", "not playbook", *UNIT_TESTS)


def unit_jobs() -> list[Job]:
    """Return the jobs of the unit tests; app/ runs without nice, as its workers must beat."""
    return [
        pure_job(),
        pytest_job("unit/playbooks", "-m", "playbook", "tests"),
        pytest_job("unit/app/tests", "app/tests", prefix=()),
        Job("unit/app/tests-versions", ("tools/versions.py", "--of-commit"), junit=True),
    ]


def quick_jobs() -> list[Job]:
    """Return what answers within a minute.

    Raises:
        MissingProgramError: a test starts a program that is not installed.
    """
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        packages = sorted({PROGRAMS[name] for name in missing})
        raise MissingProgramError(
            f"the checks need programs that are not installed: {', '.join(missing)}\n"
            f"  Fix: apt-get install {' '.join(packages)}. No check was run."
        )
    return [pure_job(), *lint_jobs(LINTERS | QUICK_LINTERS)]


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
