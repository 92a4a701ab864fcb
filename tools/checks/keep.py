"""One scenario on hosts that stay between calls: from an edit to the result of a test."""

from __future__ import annotations

import os
import subprocess

import yaml

from checks.jobs import BIN, LAB, ROOT, Job

# What Molecule does by itself between these: it destroys, and demands that nothing changes.
KEPT = ("create", "prepare", "converge")


def sequence(scenario: str) -> list[str]:
    """Return the steps of a scenario before its tests, in order, without those that destroy."""
    own = yaml.safe_load((ROOT / "molecule" / scenario / "molecule.yml").read_text())
    base = yaml.safe_load((ROOT / ".config/molecule/config.yml").read_text())
    steps = (own.get("scenario") or base["scenario"])["test_sequence"]
    return [step for step in steps if step in KEPT]


def has_lab(scenario: str) -> bool:
    """Return whether the scenario's hosts are there and run."""
    command = [str(BIN / "python"), str(LAB), "shell", f"@{scenario}", "--", "true"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode == 0


def pytest_command(scenario: str, only: str) -> list[str]:
    """Return the command line of the scenario's tests; `only` is an expression for pytest's -k."""
    directory = ROOT / "molecule" / scenario
    words = ["pytest", "-p", "lab_fixtures", "-p", "no:cacheprovider", "--quiet"]
    words += [f"--ansible-inventory={directory}/inventory", str(directory / "tests")]
    return [*words, *(["-k", only] if only else [])]


def run(scenario: str, only: str) -> int:
    """Create the hosts if there are none, deploy to them, run the tests, and leave all as it is.

    Returns:
        The exit status of the first step that failed, or that of the tests.
    """
    steps = sequence(scenario)
    if has_lab(scenario):
        # Made once: what prepares new hosts does not run again.
        steps = [step for step in steps if step == "converge"]
    else:
        # Molecule may still believe in hosts that are gone.
        steps = ["destroy", *steps]
    environment = Job(f"molecule/{scenario}", (), scenario=scenario).environment() | {
        "MOLECULE_SCENARIO_NAME": scenario,
        "MOLECULE_SCENARIO_DIRECTORY": str(ROOT / "molecule" / scenario),
        "PYTHONPATH": f"{LAB.parent}:{ROOT / 'roles/podman_host/module_utils'}",
    }
    commands = [["molecule", step, "--scenario-name", scenario] for step in steps]
    for command in [*commands, pytest_command(scenario, only)]:
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if done.returncode:
            return done.returncode
    return os.EX_OK
