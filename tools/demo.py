#!/usr/bin/env python3
"""From nothing to tasks running: boot a test host, deploy the site to it, send tasks, show it all.

Run by "make demo". Run again, it finds the host as it is, changes nothing and sends tasks again.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
BIN = pathlib.Path(sys.executable).parent
LAB = [sys.executable, str(ROOT / "molecule" / "_lab" / "lab.py")]
HOST = "metal"
PLATFORMS = [{"name": HOST, "groups": ["redis", "celery"], "cpus": 2, "memory_mb": 4096}]
TASKS = 200


def step(what: str, command: list[str]) -> None:
    """Run a command in sight of the user, and say how long it took; end the demo if it fails."""
    print(f"\n==> {what}\n    $ {' '.join(shown(command))}", flush=True)
    begun = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(
            f"demo: {what}: failed with status {done.returncode}. 'make clean' removes it all."
        )
    print(f"    done in {time.monotonic() - begun:.0f} s", flush=True)


def shown(command: list[str]) -> list[str]:
    """The words of a command as one would type them in the checkout."""
    words = [word.replace(f"{ROOT}/", "") for word in command]
    return [word if " " not in word and '"' not in word else f"'{word}'" for word in words]


def on_host(*words: str) -> str:
    """Standard output of a command on the demo's host."""
    command = [*LAB, "shell", "@demo", HOST, "--", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def table(rows: list[list[Any]]) -> str:
    """Rows of words, aligned; the first is the heading."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "    "
        + "  ".join(
            str(cell).ljust(width) if column == 0 else str(cell).rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def send_tasks(plan: dict[str, Any]) -> str:
    """Send tasks through every queue, check the answers, and tell what came of it as a table."""
    queues = [row["name"] for row in plan["queues"]]
    words = [word for name in queues for word in ("--queue", name)]
    container = f"celery-{plan['queues'][0]['unit']}-1"
    answer = on_host(
        *("podman", "exec", container, "python", "-m", "metal_sample.smoke"),
        *("--json", "--count", str(TASKS), *words),
    )
    reports = json.loads(answer)
    rows: list[list[Any]] = [["queue", "instances", "concurrency", "tasks done", "seconds"]]
    for row in plan["queues"]:
        report = reports[row["name"]]
        if report["wrong"] or report["missing"] or report["done"] < TASKS:
            sys.exit(f"demo: {row['name']} gave wrong answers or none: {report}")
        size = sum(report["workers"].values()) // len(report["workers"])
        rows.append([row["name"], len(report["workers"]), size, report["done"], report["seconds"]])
    return table(rows)


def main() -> None:
    begun = time.monotonic()
    step("boot a test host", [*LAB, "up", "@demo", "--platforms", json.dumps(PLATFORMS)])
    step(
        "deploy the site (the first time some 30 s: packages are unpacked and images built)",
        [str(BIN / "ansible-playbook"), "-i", "inventory/lab", "site.yml"],
    )
    print("\n==> send tasks through every queue, and check each answer", flush=True)
    plan = json.loads(on_host("cat", "/etc/celery-metal/plan.json"))
    print(send_tasks(plan))
    shell = ".venv/bin/python molecule/_lab/lab.py shell @demo"
    print(f"""
==> look around
    {shell}
    {shell} -- systemctl status "'celery-*'"
    {shell} -- systemctl cat celery-add_queue@1
    {shell} -- journalctl -fu celery-add_queue@1
    change inventory/lab/group_vars/all.yml and run "make demo" again
    make clean                         # removes the host, .venv and caches

All done in {time.monotonic() - begun:.0f} s.""")


if __name__ == "__main__":
    main()
