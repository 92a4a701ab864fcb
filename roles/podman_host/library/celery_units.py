#!/usr/bin/python
"""Bring a whole set of unit files to a host in one call, and say which units that concerns."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_units
short_description: Compare, check, write and prune a set of Quadlet and systemd unit files
description:
  - Compares the whole desired set with the host; when all is equal, nothing is written.
  - Otherwise the set is staged in a temporary directory, run through Podman's Quadlet generator in
    dry-run and through C(systemd-analyze verify), C(*.nft) through C(nft --check), and only then
    written. An unsupported key makes the generator drop a unit while C(daemon-reload) still
    succeeds, so it is noticed here.
  - Each container is labelled with its generation, a hash of its unit file. What must restart is
    read from the labels of the running containers; the next run completes one that was cut off.
  - Fails when a unit of the set would not start at the next boot: it is masked, or a drop-in of the
    user's makes the generator drop it.
  - What is there under I(owned) and not in the set is gone. With I(prune), units that run from it
    are stopped, which drains workers, and then it is removed. An empty set removes everything.
options:
  files:
    description: Absolute path to content. Mode is 0644.
    type: dict
    default: {}
  links:
    description: Absolute path to the target of a symbolic link.
    type: dict
    default: {}
  owned:
    description: Glob patterns of the paths that belong to the caller, and to nobody else.
    type: list
    elements: str
    default: []
  running:
    description:
      - Units that shall run besides the containers and targets of the set, such as a service of it,
        or a target that another role wrote. A target that is not active passes no stop or restart
        on to its members.
    type: list
    elements: str
    default: []
  needed:
    description:
      - Path on the host to the words for who needs it. When one is not there nothing is written.
    type: dict
    default: {}
  prune:
    description: Stop and remove what is gone.
    type: bool
    default: false
  keep:
    description: Glob patterns of what is gone and stays for now, also with I(prune).
    type: list
    elements: str
    default: []
  state_file:
    description: Where C(celery_services) keeps a version; it no longer brings back what is removed.
    type: path
author: celery-metal
"""

EXAMPLES = r"""
- name: Write the units of all queues
  celery_units:
    files: {/etc/containers/systemd/celery-metal/celery-mail@.container: "..."}
    links: {/etc/containers/systemd/celery-metal/celery-mail@1.container: celery-mail@.container}
    owned: ["/etc/containers/systemd/celery-metal/celery-*@*.container"]
  register: celery_worker_written
"""

RETURN = r"""
new: {description: Paths that were not there, type: list, returned: always}
written: {description: Paths that were there and differed, type: list, returned: always}
gone: {description: Owned paths that are not in the set, type: list, returned: always}
kept: {description: Those of I(gone) that stay, type: list, returned: always}
start: {description: Units of the set that do not run, type: list, returned: always}
restart: {description: Services that run another generation, type: list, returned: always}
stop: {description: Units that run and are not in the set, type: list, returned: always}
leftover:
  description: Instances beside others, C(a@surge1.service), that an interrupted run left.
  type: list
  returned: always
waiting:
  description: Units of the set that stay as they are, and have not reached Redis for 10 s
  type: list
  returned: always
beat: {description: Status line of a Beat that stays as it is, type: str, returned: always}
kept_out:
  description: Units of the set that a ConditionPathExists of theirs keeps from starting
  type: list
  returned: always
"""

import fnmatch
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils import celery_up
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_kept import brings_back, forget
from ansible.module_utils.celery_metal import HostError, conclude, output, run, template_of

QUADLET = celery_up.QUADLET
QUADLET_ROOT = "/etc/containers/systemd/"
UNIT_ROOT = "/etc/systemd/system/"
NFT = "nft"
# What looks at the files before they are written, by where it comes from.
CHECKERS = {"podman 5.0 or newer": QUADLET, "systemd": "systemd-analyze", "nftables": NFT}
LABEL = "celery-metal.generation"
# The files that make units.
UNITS = (".container", ".service", ".slice", ".target", ".timer")
RUNNING = ("active", "activating", "reloading", "deactivating")


class InvalidUnitsError(Exception):
    """The staged files are refused by Quadlet, systemd or nft; the text is theirs."""


def with_generation(content: str) -> str:
    """A container unit labelled with the hash of its own content, comments left out.

    A planner's reason may change where the number beside it does not; that restarts nothing.
    """
    lines = [line for line in content.splitlines() if not line.startswith("#")]
    mark = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    return content.replace("[Container]\n", f"[Container]\nLabel={LABEL}={mark}\n", 1)


def generation(content: str) -> str:
    """The generation that a container unit is labelled with, or an empty string."""
    found = re.search(rf"^Label={re.escape(LABEL)}=(\S+)$", content, re.M)
    return found.group(1) if found else ""


def unit_of(path: str) -> str:
    """The unit that a file makes: ``a@1.container`` gives ``a@1.service``; others their name."""
    name = Path(path).name
    stem = name.removesuffix(".container")
    return name if stem == name else f"{stem}.service"


def runnable(paths: Iterable[str]) -> set[str]:
    """The units among files and links that can run: containers, their instances, and targets."""
    units = {unit_of(path) for path in paths if path.endswith((".container", ".target"))}
    return {unit for unit in units if "@." not in unit}


def settled_containers(wanted: dict[str, str], before: dict[str, str | None]) -> set[str]:
    """The units of containers whose files, and their templates', are as they shall be.

    >>> template, link = "/q/a@.container", "/q/a@1.container"
    >>> settled_containers({template: "x", link: "-> y"}, {template: "x", link: "-> y"})
    {'a@1.service'}
    >>> settled_containers({template: "x", link: "-> y"}, {template: None, link: "-> y"})
    set()
    """
    paths = [path for path in wanted if path.endswith(".container")]
    changed = {unit_of(path) for path in paths if before[path] != wanted[path]}
    return {
        unit for unit in runnable(paths) if unit not in changed and template_of(unit) not in changed
    }


def closed_units(files: dict[str, str]) -> set[str]:
    """The units, by template, whose own file says that they shall not start as the host is now.

    Only ``ConditionPathExists=!PATH`` counts, which makes a start a success that does nothing.
    """
    return {
        unit_of(path)
        for path, content in files.items()
        if any(map(os.path.exists, re.findall(r"^ConditionPathExists=!(\S+)$", content, re.M)))
    }


def gone_patterns(gone: list[str]) -> list[str]:
    """Names of units whose file is gone; a template takes all its instances along."""
    units = {unit_of(path) for path in gone if path.endswith(UNITS)}
    return sorted(unit.replace("@.", "@*.") for unit in units)


def actions(
    wanted: set[str],
    generations: dict[str, str],
    patterns: list[str],
    states: dict[str, str],
    running: dict[str, str],
) -> dict[str, list[str]]:
    """What to do to which unit.

    :param wanted: units that shall run.
    :param generations: template or plain service to the generation it shall run.
    :param patterns: names, with ``*``, of units that shall not run.
    :param states: unit to its ActiveState, as systemd says.
    :param running: service to the generation of its running container.
    :returns: sorted lists under ``start``, ``restart``, ``stop`` and ``leftover``; no unit is in
        two of them.
    """
    up = {name for name, state in states.items() if state in RUNNING}
    stop = {name for name in up - wanted if any(fnmatch.fnmatchcase(name, p) for p in patterns)}
    # An instance that somebody started by hand follows its template too.
    known = {name for name in up - stop if template_of(name) in generations}
    leftover = {name for name in known if "@surge" in name}
    known -= leftover
    settled = {name for name in up if states[name] == "active"}
    # A start would go on waiting for what the old container waits for.
    starting = {name for name in up & set(running) if states[name] == "activating"}
    restart = {
        name
        for name in known & (settled | starting)
        if running.get(name) != generations[template_of(name)]
    }
    return {
        "start": sorted(wanted - settled - restart),
        "restart": sorted(restart),
        "stop": sorted(stop),
        "leftover": sorted(leftover),
    }


def present(path: str) -> str | None:
    """Content of a file or ``-> target`` of a link; None when there is nothing."""
    if os.path.islink(path):
        return f"-> {os.readlink(path)}"
    return Path(path).read_text(errors="replace") if os.path.exists(path) else None


def validate(files: dict[str, str], links: dict[str, str]) -> None:
    """Run the set through Quadlet's dry-run, ``systemd-analyze verify`` and ``nft --check``.

    :raises InvalidUnitsError: with what Quadlet, systemd or nft said.
    """
    with tempfile.TemporaryDirectory(prefix="celery-metal-") as top:
        quadlets, units = Path(top, "quadlets"), Path(top, "units")
        quadlets.mkdir()
        units.mkdir()
        for path, content in files.items():
            if path.startswith(QUADLET_ROOT):
                Path(quadlets, Path(path).name).write_text(content)
            elif path.startswith(UNIT_ROOT):
                staged = units / path.removeprefix(UNIT_ROOT)  # a drop-in, in its directory
                staged.parent.mkdir(exist_ok=True)
                staged.write_text(content)
            elif path.endswith(".nft"):
                checked = run(NFT, "--check", "--file", str(stage(top, path, content)))
                if checked.returncode:
                    raise InvalidUnitsError("nft refuses: " + checked.stderr.replace(f"{top}/", ""))
        for path, target in links.items():
            if path.startswith(QUADLET_ROOT):
                Path(quadlets, Path(path).name).symlink_to(target)
        if any(quadlets.iterdir()):
            dry = run(QUADLET, "-dryrun", QUADLET_UNIT_DIRS=str(quadlets))
            if dry.returncode:
                said = [line for line in dry.stderr.splitlines() if "Loading source" not in line]
                raise InvalidUnitsError("Podman's Quadlet generator refuses: " + "\n".join(said))
            for name, text in re.findall(
                r"^---(\S+)---\n(.*?)(?=^---\S+---\n|\Z)", dry.stdout, re.M | re.S
            ):
                Path(units, name).write_text(text)
        # One instance of a template stands for all: they differ in nothing that verify looks at.
        found = [one.name for one in units.iterdir() if one.is_file()]
        names = [name for name in found if "@" not in name or "@." in name]
        if not names:
            return
        checked = run(
            "systemd-analyze",
            "verify",
            "--man=no",
            "--recursive-errors=no",
            *(str(units / re.sub(r"@\.", "@1.", name)) for name in sorted(names)),
            SYSTEMD_UNIT_PATH=f"{units}:",
        )
        said = [line for line in checked.stderr.splitlines() if top in line]
        if checked.returncode or said:
            text = "\n".join(said) or checked.stderr
            raise InvalidUnitsError("systemd-analyze verify: " + text.replace(f"{units}/", ""))


def stage(top: str, path: str, content: str) -> Path:
    """A file of the set in a temporary directory."""
    staged = Path(top, Path(path).name)
    staged.write_text(content)
    return staged


def write(path: str, content: str | None, target: str | None) -> None:
    """Put a file or link in place at once; a reader never sees a half of it."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.new"
    if target is not None:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(target, temporary)
    else:
        Path(temporary).write_text(content or "")
        os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def unit_states() -> dict[str, str]:
    """ActiveState of each unit that systemd has loaded; one call, whatever their number."""
    if not shutil.which("systemctl"):
        return {}
    listed = output("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager")
    rows = [line.split(None, 3) for line in listed.splitlines()]
    return {row[0]: row[2] for row in rows if len(row) > 2}


def unknown_units(names: set[str]) -> list[str]:
    """Those of the units that systemd cannot load, sorted."""
    if not names:
        return []
    shown = run("systemctl", "show", "-p", "Id,LoadState", *sorted(names)).stdout
    blocks = [dict(line.split("=", 1) for line in one.split()) for one in shown.split("\n\n")]
    return sorted(names - {one["Id"] for one in blocks if one.get("LoadState") == "loaded"})


def running_generations() -> dict[str, str]:
    """Service to the generation label of its running container."""
    if not shutil.which("podman"):
        return {}
    listed = output("podman", "ps", "--filter", f"label={LABEL}", "--format", "json")
    labels = [one["Labels"] for one in json.loads(listed or "[]")]
    return {one.get("PODMAN_SYSTEMD_UNIT", ""): one[LABEL] for one in labels}


def reload(units: set[str], removed: list[str]) -> None:
    """Let systemd read the unit files.

    :raises HostError: when it does not, or does not know one of the units afterwards.
    """
    reloaded = run("systemctl", "daemon-reload")
    if reloaded.returncode:
        raise HostError(
            f"systemd does not read unit files: {reloaded.stderr.strip()}. Run 'systemctl "
            "daemon-reload' there and mend what it says"
        )
    if removed:
        # A unit that failed before its file was removed would be listed for ever.
        run("systemctl", "reset-failed", *removed)
    unknown = unknown_units(units)
    if unknown:
        raise HostError(
            f"systemd would not know {', '.join(unknown)}. Most often a drop-in of yours in "
            f"{QUADLET_ROOT}*.container.d/ is wrong: '{QUADLET} -dryrun' there names it; mend it"
        )


def missing_programs(files: Iterable[str]) -> list[str]:
    """Those that would check the files, and are not there."""
    rules = any(path.endswith(".nft") for path in files)
    wanted = [one for one in CHECKERS.values() if one != NFT or rules]
    return [one for one in wanted if not shutil.which(one)]


def check(files: dict[str, str], links: dict[str, str]) -> None:
    """Have Quadlet and systemd look at the files before they are written.

    :raises HostError: when one of them refuses a file, or is not there.
    """
    if not any(
        path.startswith((QUADLET_ROOT, UNIT_ROOT)) or path.endswith(".nft") for path in files
    ):
        return
    missing = missing_programs(files)
    if missing:
        needed = [package for package, program in CHECKERS.items() if program in missing]
        raise HostError(
            f"Nothing was written: {', '.join(missing)} is missing. Install {' and '.join(needed)} "
            "from the distribution, then run again."
        )
    try:
        validate(files, links)
    except InvalidUnitsError as refused:
        raise HostError(
            f"Nothing was written, and what runs goes on. {refused}\n{described(files, refused)}"
            "Correct the variable whose value stands there, then run again."
        ) from None


def described(files: dict[str, str], refused: InvalidUnitsError) -> str:
    """A line for each file that a refusal names: what it calls itself."""
    lines = ""
    for path, content in files.items():
        named = re.search(rf"(?<![\w@.-]){re.escape(Path(path).stem)}", str(refused))
        description = re.search(r"^Description=(.+)$", content, re.M)
        if named and description:
            lines += f"{Path(path).name} is: {description.group(1)}\n"
    return lines


def require(needed: dict[str, str]) -> None:
    """Have all paths on the host that the units will need.

    :raises HostError: when one is not there.
    """
    missing = [f"{path} ({who})" for path, who in needed.items() if not os.path.exists(path)]
    if missing:
        raise HostError(
            f"Nothing was written, and what runs goes on. Not on this host: {', '.join(missing)}. "
            "Make the directory, mount its disk or attach the device there, or leave it out for "
            "this host (celery_queue_overrides; for Beat its host_vars); then run again."
        )


def put(files: dict[str, str], links: dict[str, str], paths: Iterable[str]) -> None:
    """Write those files and links whose paths are given."""
    for path in paths:
        write(path, files.get(path), links.get(path))


def put_back(before: dict[str, str | None]) -> None:
    """Make files and links what they were, so that no restart takes what systemd refused."""
    for path, was in before.items():
        if was is None:
            os.unlink(path)
        elif was.startswith("-> "):
            write(path, None, was[3:])
        else:
            write(path, was, None)
    run("systemctl", "daemon-reload")


def stop(units: list[str]) -> None:
    """Drain and stop units that are to be removed.

    :raises HostError: when one of them still runs.
    """
    stopped = run("systemctl", "stop", "--", *units)
    states = unit_states()
    left = [unit for unit in units if states.get(unit) in RUNNING]
    if left:
        raise HostError(
            f"{', '.join(left)} did not stop, so no file was removed; others of "
            f"{', '.join(units)} have stopped. {stopped.stderr.strip()} See "
            f"'journalctl -u {left[0]}' there, then run the same playbook again."
        )


def is_kept(path: str, params: dict[str, Any]) -> bool:
    """Whether a file stays that is gone from the set."""
    kept = any(fnmatch.fnmatchcase(path, pattern) for pattern in params["keep"])
    return kept or not params["prune"]


def bring(module: AnsibleModule) -> dict[str, Any]:
    """Compare, check, write and prune; what changed, and what is to be done to which unit."""
    links = module.params["links"]
    files = {
        path: with_generation(content) if path.endswith(".container") else content
        for path, content in module.params["files"].items()
    }
    require(module.params["needed"])
    wanted = {**files, **{path: f"-> {target}" for path, target in links.items()}}
    before = {path: present(path) for path in wanted}
    owned = {path for pattern in module.params["owned"] for path in glob.glob(pattern)}
    gone = sorted(owned - set(wanted))
    new = sorted(path for path, was in before.items() if was is None)
    written = sorted(p for p, was in before.items() if was is not None and was != wanted[p])
    kept = [path for path in gone if is_kept(path, module.params)]
    remove = [path for path in gone if path not in kept]

    units = runnable(wanted) | set(module.params["running"])
    looked = celery_up.look(units)
    celery_up.require(units, settled_containers(wanted, before), looked)

    # On a host that lacks packages there is nothing yet to check with, under --check.
    if (new or written) and not (module.check_mode and missing_programs(files)):
        check(files, links)

    taken = {path: present(path) for path in remove}
    diff = [
        {"before_header": p, "after_header": p, "before": before[p] or "", "after": wanted[p]}
        for p in [*new, *written]
    ]
    diff += [
        {"before_header": p, "after_header": "/dev/null", "before": was or "", "after": ""}
        for p, was in taken.items()
    ]

    state_file = module.params["state_file"]
    if state_file and brings_back(state_file, remove):
        diff.append({"prepared": f"write {state_file}\n"})
    closed = closed_units(files)
    kept_out = {unit for unit in units if template_of(unit) in closed}
    patterns, removed = gone_patterns(gone), gone_patterns(remove)
    generations = {
        unit_of(path): generation(content)
        for path, content in files.items()
        if path.endswith(".container") and unit_of(path) not in closed
    }
    # Only containers have a generation.
    running = running_generations() if generations else {}
    states = unit_states()
    needed = actions(units - kept_out, generations, patterns, states, running)
    stopped = actions(units - kept_out, generations, removed, states, running)["stop"]
    if stopped:
        diff.append({"prepared": "".join(f"stop {unit}\n" for unit in stopped)})
    if not module.check_mode and (new or written or remove):
        put(files, links, [*new, *written])
        if stopped:
            # Before the files go: after a reload systemd would no longer know how to stop them.
            stop(stopped)
        for path in remove:
            os.unlink(path)
        try:
            reload(units, removed)
        except HostError as problem:
            put_back({path: before[path] for path in [*new, *written]} | taken)
            raise HostError(
                f"{problem}; then run again. The files that were written are taken back, and what "
                "runs goes on."
            ) from None
        if state_file:
            forget(state_file, remove)
        # What was removed runs no more.
        needed = actions(units - kept_out, generations, patterns, unit_states(), running)
    stays = {
        unit: text
        for unit, text in looked.statuses.items()
        if unit not in needed["start"] + needed["restart"] and unit not in kept_out
    }
    return {
        "changed": bool(new or written or remove),
        "waiting": sorted(celery_up.waiting(stays, celery_up.LONG_SECONDS)),
        "beat": stays.get(celery_up.BEAT, ""),
        "new": new,
        "written": written,
        "gone": gone,
        "kept": kept,
        "diff": diff,
        "kept_out": sorted(kept_out),
        **needed,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "dict", "default": {}},
            "links": {"type": "dict", "default": {}},
            "owned": {"type": "list", "elements": "str", "default": []},
            "running": {"type": "list", "elements": "str", "default": []},
            "needed": {"type": "dict", "default": {}},
            "prune": {"type": "bool", "default": False},
            "keep": {"type": "list", "elements": "str", "default": []},
            "state_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    conclude(module, lambda: bring(module), changes=True)


if __name__ == "__main__":
    main()
