#!/usr/bin/python
"""A command in a container of its own, as a queue's workers have it: start it, and follow it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_run
short_description: Run a command with the image, environment, secrets and network of a queue
description:
  - The command runs in a container as the workers of I(queue) do, but without their ports, as the
    unit C(celery-run-ID.service) in C(celery.slice). It goes on when the connection is cut.
  - In playbooks of celery-metal an action plugin of this name starts it, shows what it writes as it
    comes, and fails when it fails.
options:
  step:
    description: >-
      C(look) says whether the queue is deployed here; C(prepare) returns what runs the command in a
      terminal, and reserves its memory for five minutes; C(start) starts it without one; C(follow)
      waits for more of what it writes, or for its end; C(leave) keeps in mind that hooks of a
      deploy of I(image) are left to be run, or with no image that none are
    type: str
    choices: [look, prepare, start, follow, leave]
    required: true
  id:
    description: Of the command, eight hexadecimal digits.
    type: str
    default: ''
  command:
    description: A program in the image and its arguments.
    type: list
    elements: str
    default: []
  queue:
    description: Name of a queue with workers on this host; the first of the host when left out.
    type: str
    default: ''
  units:
    description: >-
      Path to content of unit files; with these instead of the host's, which may be of the previous
      version, and with the first queue of I(queues)
    type: dict
    default: {}
  queues:
    description: With I(units), name of each queue to the middle of its unit's name.
    type: dict
    default: {}
  image:
    description: An image of this host, instead of the workers' one.
    type: str
    default: ''
  memory_mb:
    description: >-
      The most memory that it may use; 0 for 512 MB. It must fit into what the host's plan leaves
      free and other commands do not use; 0 takes less then, but not below 64 MB
    type: int
    default: 0
  free_mb:
    description: With I(units), what the plan leaves free.
    type: int
    default: 0
  seconds:
    description: After so many seconds it is ended; 0 for never.
    type: int
    default: 0
  cursor:
    description: Where in the journal the last step left off.
    type: str
    default: ''
author: celery-metal
"""

EXAMPLES = r"""
- name: Migrate the database
  celery_run:
    command: [python, manage.py, migrate]
"""

RETURN = r"""
queues: {description: Queues with workers on this host, type: list, returned: with step look}
argv: {description: What runs the command in a terminal, type: list, returned: with step prepare}
unit: {description: The unit of the command, type: str, returned: with steps prepare and start}
memory_mb: {description: Its limit, type: int, returned: with steps prepare and start}
cursor: {description: Where in the journal to go on, type: str, returned: with step follow}
lines: {description: What it has written since, type: list, returned: with step follow}
ended: {description: Whether it has ended, type: bool, returned: with step follow}
status: {description: Its exit status or signal, type: int, returned: at its end}
result: {description: systemd's word for how it ended, type: str, returned: at its end}
"""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import (
    HostError,
    conclude,
    keep_others_out,
    output,
    run,
    write_durably,
)
from ansible.module_utils.celery_one_off import QUADLETS, limits, podman, translated

PLAN = Path("/etc/celery-metal/plan.json")
#: Held while a command starts, and for how long another one waits for it.
LOCK, START_SECONDS = "/run/celery-metal-run.lock", 60.0
HOOKS = Path("/var/lib/celery-metal/hooks.json")
#: Less is no room for a Python with an app.
LEAST_MB = 64
#: Without memory_mb, so that one that is left open keeps no room from the next.
USUAL_MB = 512
#: Lines and characters of one answer, characters of a line, seconds of a step that follows.
MOST_LINES, MOST_TEXT, MOST_LINE, FOLLOW_SECONDS, PAUSE_SECONDS = 10_000, 1 << 20, 8192, 5.0, 0.1
#: A terminal that is lost ends the command: systemd-run and Podman would outlive it. A shell that
#: waits hears of it, and what it starts meanwhile would have no input but for the third line.
IN_TERMINAL = """\
trap 'systemctl --quiet stop "$0"; exit' HUP TERM
export SYSTEMD_ADJUST_TERMINAL_TITLE=0
exec 3<&0
"$@" <&3 &
wait $!
"""
#: Until its SSH connection begins, and sudo has the password.
RESERVED_SECONDS = 300
#: Between the end that is asked for and a kill.
STOP_SECONDS = 5
ID = re.compile(r"[0-9a-f]{8}")
MIB = 1 << 20
HOOK = "A hook"
#: Of a unit's name: all that a command has in common with its reservation, and the end of that.
NAMED, RESERVED = len("celery-run-01234567"), "-reserved"
RUNS = ("start", "start-pre", "start-post", "running", "stop", "stop-sigterm", "stop-post")
#: Lines a second, of a command that writes as fast as it can; seconds after which no run follows.
MOST_RATE, FORGOTTEN_SECONDS = 100_000_000, 120.0


def queues_here() -> tuple[dict[str, str], int]:
    """The queues in the plan that is deployed, name to the middle of their units', and free MB."""
    try:
        plan = json.loads(PLAN.read_text())
        queues = {one["name"]: one["unit"] for one in plan["queues"]}
        free_mb = int(plan["totals"]["free_mb"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}, 0
    # A plan is written before the units of its queues.
    there = {name: one for name, one in queues.items() if unit_file(one).is_file()}
    return there, free_mb


def unit_file(middle: str) -> Path:
    """The unit file of a queue's workers.

    :param middle: of the unit's name.
    """
    return QUADLETS / f"celery-{middle}@.container"


def unit_of(queue: str, queues: dict[str, str], units: dict[str, str]) -> tuple[str, str]:
    """Name and text of the unit file of a queue's workers.

    :param queue: its name, or empty for the first one.
    :param queues: name to the middle of the unit's name.
    :param units: path to content; empty for those of the host.
    :raises HostError: when there is none.
    """
    found = queues.get(queue or next(iter(queues), ""))
    path = unit_file(str(found))
    text = units.get(str(path))
    if found is not None and text is None and not units:
        try:
            text = path.read_text()
        except FileNotFoundError:
            found = None
    if found is None or text is None:
        what = f"has no queue {queue}" if queue else "has no workers"
        has = f"; it has {', '.join(queues)}" if queue and queues else ""
        raise HostError(
            f"this host {what}{has}\n  Fix: name a queue of this host, take another host, or "
            "deploy first with site.yml. Nothing was run."
        )
    return path.name, text


def properties(unit: str) -> dict[str, str]:
    """What systemd says of a command's unit."""
    names = "LoadState,ActiveState,SubState,Result,ExecMainStatus,ExecMainCode,MemoryMax"
    shown = output("systemctl", "show", "--property", names, f"{unit}.service")
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def commands_here() -> list[dict[str, str]]:
    """What systemd says of the commands of this host."""
    names = "Id,Description,SubState,MemoryMax,ExecMainExitTimestampMonotonic"
    shown = output("systemctl", "show", "--property", names, "celery-run-*.service")
    blocks = [one for one in shown.split("\n\n") if one.strip()]
    return [dict(line.split("=", 1) for line in one.splitlines() if "=" in line) for one in blocks]


def runs(command: dict[str, str]) -> bool:
    """Whether a command has not ended yet."""
    return command.get("SubState") in RUNS


def others_mb() -> list[int]:
    """Memory in MB of the commands that run here, or have a reservation."""
    # A command and its reservation count once.
    limits = {
        one.get("Id", "")[:NAMED]: one.get("MemoryMax", "") for one in commands_here() if runs(one)
    }
    return [int(one) // MIB for one in limits.values() if one.isdigit()]


def reserve(unit: str, memory_mb: int) -> None:
    """Keep the memory of a command that begins by another connection.

    The command ends the reservation; without one it ends by itself.
    """
    done = run(
        *("systemd-run", "--quiet", "--collect", f"--unit={unit}{RESERVED}"),
        *(f"--description=Memory of {unit}", f"--property=MemoryMax={memory_mb}M"),
        *("/usr/bin/sleep", str(RESERVED_SECONDS)),
    )
    if done.returncode:
        raise HostError(
            f"systemd did not reserve memory for the command: {done.stderr.strip()}\n  Fix: mend "
            "what it says. Nothing was run."
        )


def prepare(params: dict[str, Any]) -> dict[str, Any]:
    """What runs a command in a terminal; its memory is reserved."""
    keep_others_out("a command", LOCK, START_SECONDS)
    found = made(params, terminal=True)
    reserve(found["unit"].removesuffix(".service"), found["memory_mb"])
    return found


def clear() -> None:
    """Remove units of commands that have ended, and that no run follows any more."""
    for one in commands_here():
        ended = int(one.get("ExecMainExitTimestampMonotonic") or 0) / 1e6
        if one.get("SubState") == "exited" and time.monotonic() - ended > FORGOTTEN_SECONDS:
            run("systemctl", "stop", one["Id"])


def refuse_beside_a_hook() -> None:
    """Let no hook begin while one of an earlier run goes on, as after an interrupt.

    :raises HostError: when one does.
    """
    for one in commands_here():
        if runs(one) and one.get("Description", "").startswith(HOOK):
            raise HostError(
                f"a hook of an earlier run still runs: {one['Id']}\n  Fix: wait for its end, or "
                f"'systemctl stop {one['Id']}' there. No hook was run."
            )


def room(wanted: int, free: int) -> int:
    """Memory in MB for a command.

    :param wanted: as the user has it, or 0.
    :param free: what the plan leaves.
    :raises HostError: when there is too little.
    """
    others = sum(others_mb())
    left = free - others
    if max(wanted, LEAST_MB) > left:
        used = f", and other commands (celery-run-*.service) may use {others} MB" if others else ""
        needs = f"{wanted} MB are asked for" if wanted else f"a command needs {LEAST_MB} MB"
        raise HostError(
            f"{needs}, and the plan of this host leaves {free} MB free{used}\n  Fix: ask for less, "
            "wait for the others, take another host, or give queues of this host less memory. "
            "Nothing was run."
        )
    return wanted or min(left, USUAL_MB)


def made(params: dict[str, Any], *, terminal: bool) -> dict[str, Any]:
    """What is to be run for a command, and its unit."""
    if not ID.fullmatch(params["id"]) or not params["command"]:
        raise HostError("id and command are needed")
    unit = f"celery-run-{params['id']}"
    queues, free = queues_here()
    if params["units"]:
        queues, free = params["queues"], params["free_mb"]
    name, text = unit_of(params["queue"], queues, params["units"])
    memory_mb = room(params["memory_mb"], free)
    service = translated(name, text, unit, params["image"])
    argv, image = podman(service, unit, params["command"], terminal=terminal)
    if run("podman", "image", "exists", image).returncode:
        raise HostError(
            f"the image {image} is not on this host\n  Fix: site.yml brings it. Nothing was run."
        )
    what = HOOK if params["units"] else "A command"
    remove = f"/usr/bin/podman rm -v -f -i --cidfile=/run/{unit}.cid"
    options = [
        *("--quiet", f"--unit={unit}", "--slice=celery.slice", "--expand-environment=no"),
        f"--description={what} as queue {params['queue'] or next(iter(queues))} has it",
        *("--property=Type=exec", "--property=Delegate=yes", "--property=OOMPolicy=continue"),
        *(f"--property=MemoryMax={memory_mb}M", "--property=MemorySwapMax=0"),
        *("--property=KillMode=mixed", f"--property=TimeoutStopSec={2 * STOP_SECONDS}"),
        "--property=LogRateLimitIntervalSec=1s",
        # Without one systemd tells journald of no limit, and journald has its own.
        f"--property=LogRateLimitBurst={MOST_RATE}",
        # Podman's own end, for it does not remove a container whose conmon was killed.
        f"--property=ExecStop=-{remove} -t {STOP_SECONDS}",
        f"--property=ExecStopPost=-{remove}",
        f"--property=ExecStopPost=-/usr/bin/rm -f /run/{unit}.cid",
        *([f"--property=RuntimeMaxSec={params['seconds']}"] if params["seconds"] else []),
        *limits(service, unit),
    ]
    if terminal:
        end = f"--property=ExecStartPost=-/usr/bin/systemctl --no-block stop {unit}{RESERVED}"
        run_it = ["systemd-run", "--pty", "--wait", "--collect", "--background=", *options, end]
        run_it += argv
        run_it = ["sh", "-c", IN_TERMINAL, f"{unit}.service", *run_it]
    else:
        run_it = ["systemd-run", "--property=RemainAfterExit=yes", *options, *argv]
    return {
        "argv": run_it,
        "unit": f"{unit}.service",
        "memory_mb": memory_mb,
    }


def start(params: dict[str, Any]) -> dict[str, Any]:
    """Start a command without a terminal."""
    # Until it runs, another one would count on the same memory.
    keep_others_out("a command", LOCK, START_SECONDS)
    clear()
    if params["units"]:
        refuse_beside_a_hook()
    found = made(params, terminal=False)
    done = run(*found["argv"])
    if done.returncode:
        raise HostError(
            f"systemd did not start the command: {done.stderr.strip()}\n  Fix: mend what it says. "
            "Nothing was run."
        )
    return {"unit": found["unit"], "memory_mb": found["memory_mb"]}


def written(unit: str, cursor: str) -> tuple[list[str], str]:
    """What a command has written since a place in the journal, and the place after it."""
    argv = [
        *("journalctl", "--quiet", "--no-pager", "--all", "--output=json"),
        *("--output-fields=MESSAGE", f"--unit={unit}.service", "_TRANSPORT=stdout"),
        *([f"--after-cursor={cursor}"] if cursor else []),
    ]
    lines: list[str] = []
    size = 0
    # It is not read to its end: all that a command has written may be much.
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reading:
        for one in reading.stdout or []:
            entry = json.loads(one)
            lines.append(shown_line(entry.get("MESSAGE")))
            cursor, size = entry["__CURSOR"], size + len(lines[-1])
            if len(lines) == MOST_LINES or size > MOST_TEXT:
                break
        reading.kill()
    return lines, cursor


def shown_line(message: Any) -> str:
    """A line of the journal, cut where it is long.

    >>> shown_line([97, 255]), shown_line(None)
    ('a\ufffd', '')
    """
    # An array of bytes, where it is no text for a terminal.
    text = bytes(message).decode(errors="replace") if isinstance(message, list) else message
    text = str(text or "")
    left = len(text) - MOST_LINE
    return f"{text[:MOST_LINE]}... ({left} more characters)" if left > 0 else text


def follow(unit: str, cursor: str) -> dict[str, Any]:
    """Wait for what a command writes, or for its end; not for long."""
    deadline = time.monotonic() + FOLLOW_SECONDS
    while True:
        said = properties(unit)
        ended = not runs(said)
        if ended:
            run("journalctl", "--sync")
        lines, cursor = written(unit, cursor)
        # More than one answer takes: the end comes with the last one.
        ended = ended and not lines
        if lines or ended or time.monotonic() > deadline:
            break
        time.sleep(PAUSE_SECONDS)
    found = {"lines": lines, "cursor": cursor, "ended": ended}
    if not ended:
        return found
    if said.get("LoadState") != "loaded":
        raise HostError(
            f"{unit}.service is gone: somebody has stopped it, or the host was booted\n  Fix: "
            f"'journalctl -u {unit}' there says what it did."
        )
    run("systemctl", "stop", f"{unit}.service")
    run("systemctl", "reset-failed", f"{unit}.service")
    return {
        **found,
        "status": int(said.get("ExecMainStatus") or 0),
        "result": said.get("Result", ""),
    }


def work(params: dict[str, Any]) -> dict[str, Any]:
    """One step."""
    if params["step"] == "look":
        return {"queues": list(queues_here()[0])}
    if params["step"] == "leave":
        if params["image"]:
            write_durably(HOOKS, json.dumps({"image": params["image"]}))
        else:
            HOOKS.unlink(missing_ok=True)
        return {}
    if params["step"] == "prepare":
        return prepare(params)
    if params["step"] == "start":
        return start(params)
    if not ID.fullmatch(params["id"]):
        raise HostError("id is needed")
    return follow(f"celery-run-{params['id']}", params["cursor"])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "step": {
                "type": "str",
                "choices": ["look", "prepare", "start", "follow", "leave"],
                "required": True,
            },
            "id": {"type": "str", "default": ""},
            "command": {"type": "list", "elements": "str", "default": []},
            "queue": {"type": "str", "default": ""},
            "units": {"type": "dict", "default": {}},
            "queues": {"type": "dict", "default": {}},
            "image": {"type": "str", "default": ""},
            "memory_mb": {"type": "int", "default": 0},
            "free_mb": {"type": "int", "default": 0},
            "seconds": {"type": "int", "default": 0},
            "cursor": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
        # Each answer would be a line in the journal, with the command.
        no_log=True,
    )
    conclude(module, lambda: {"changed": False, **work(module.params)}, changes=False)


if __name__ == "__main__":
    main()
