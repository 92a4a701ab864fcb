#!/usr/bin/python
"""Restart and start any number of units with few systemctl calls; workers without a pause."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_services
short_description: Bring systemd units to their new version, and back when it does not work
description:
  - C(ansible.builtin.systemd_service) takes one unit a task, so its cost grows with the queues.
  - Waits until every unit is up; a worker is when a task of its own has run. For a worker that
    itself waits for Redis it waits a minute.
  - Units of I(surge) are replaced without a pause. Beside each an instance of the new version is
    started, C(a@surge1.service) beside C(a@1.service). When all of these are up, the old ones are
    restarted, which drains them; then the instances beside them are drained and stopped. As many
    units at a time as fit into I(free_mb); one that does not fit is restarted by itself.
  - What the app sets, and a worker does not take as it is, is a warning.
  - What failed is shown with its last journal lines. With I(owned), all unit files are brought back
    to what they were when this module last succeeded, and all units to that version.
  - Beat is restarted after all others. Where it alone fails, it alone is brought back. The others
    have worked, so they stay, and are kept as the version that did. Where it would go back to
    another broker than theirs, or no worker is there, all go back.
options:
  restart:
    description:
      - Units to restart. Those that still start are first, others last. Workers drain before they
        stop.
    type: list
    elements: str
    default: []
  start:
    description: Units to start, before what drains.
    type: list
    elements: str
    default: []
  reload:
    description: Units to reload after all others, or to start where they do not run.
    type: list
    elements: str
    default: []
  waiting:
    description:
      - Units that run and do not reach Redis. They have a minute after I(reload), then it is a
        failure. Nothing is restarted or brought back for them.
    type: list
    elements: str
    default: []
  leftover:
    description: Instances beside others that an interrupted run left; drained and stopped.
    type: list
    elements: str
    default: []
  retired:
    description:
      - Units that run and are no longer declared. They run on until the caller removes them. Those
        that publish ports or have devices, and those that do not fit into I(free_mb), stop before
        other units start; they run again when this version does not work.
    type: list
    elements: str
    default: []
  surge:
    description: Template, such as C(a@.service), to the memory in MB that one instance may use.
    type: dict
    default: {}
  free_mb:
    description: Memory in MB for instances beside the old ones.
    type: int
    default: 0
  owned:
    description: Glob patterns of the unit files that make up a version.
    type: list
    elements: str
    default: []
  image:
    description:
      - The image of this version. The last five that worked stay on the host, others of its name
        are removed, with the containers of interrupted builds on them.
    type: str
    default: ""
  base:
    description: What I(image) is built on; it stays, too.
    type: str
    default: ""
  state_file:
    description: Where the unit files and the images of versions that worked are kept.
    type: path
    default: /var/lib/celery-metal/workers.json
  back:
    description:
      - Take back what the last call has done, where units of I(retired) had to make room. They run
        again, and all else of I(owned) as before that call.
    type: bool
    default: false
  note:
    description: What an operator must also know when the units do not come up.
    type: str
    default: ""
  journal_lines:
    description: Journal lines to show of each unit that failed.
    type: int
    default: 30
author: celery-metal
"""

EXAMPLES = r"""
- name: Bring the workers to what is declared
  celery_services:
    restart: [celery-add_queue@1.service]
    start: [celery-multiply_queue@1.service, celery-multiply_queue@2.service]
    surge: {celery-add_queue@.service: 400}
    free_mb: 1000
"""

RETURN = r"""
turns:
  description: The units that were restarted together, and the instances that ran beside them.
  type: list
  returned: success
told:
  description: What workers report of the app's settings, and why an image stays.
  type: list
  returned: success
yielded:
  description: Those of I(retired) that were stopped, where others needed their room
  type: list
  returned: success
removed_images: {description: Images that were removed, type: list, returned: success}
diff: {description: What was done to which unit and image, type: dict, returned: success}
"""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any

from ansible.module_utils import celery_up
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_journal import described, journal, settings_told
from ansible.module_utils.celery_kept import (
    held_images,
    kept,
    only,
    read_state,
    restore,
    snapshot,
    units_of,
    unneeded,
    values,
    with_earlier,
    write_state,
)
from ansible.module_utils.celery_metal import HostError, conclude, run, template_of
from ansible.module_utils.celery_turns import Turn, exclusive, turns, yielding
from ansible.module_utils.podman_builds import removal

LOOK_SECONDS = 2
# A worker's start waits for Redis without end; whoever runs a playbook does not.
REDIS_SECONDS = 60
SETTLE_SECONDS = 60
# More MB than any host has.
ALL = 1 << 40
BEAT = celery_up.BEAT
# In a unit file.
IMAGE, BROKER = r"^Image=(\S+)$", r"^Environment=.*\bCELERY_METAL_BROKER=.*$"


class ServicesError(Exception):
    """Units did not come up; the text names them and holds their journal."""

    def __init__(self, text: str, units: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.units = sorted(units)


def shown(units: Iterable[str]) -> dict[str, dict[str, str]]:
    """What systemd says of each unit."""
    names = sorted(units)
    if not names:
        return {}
    properties = "Id,ActiveState,SubState,StatusText,Result,ExecMainStatus"
    blocks = run("systemctl", "show", "-p", properties, "--", *names).stdout.strip().split("\n\n")
    # Not by splitlines(): a worker's status may hold what else ends a line, and forge an Id.
    found = [dict(line.split("=", 1) for line in one.split("\n") if "=" in line) for one in blocks]
    return {one["Id"]: one for one in found if "Id" in one}


def inactive(units: Iterable[str]) -> list[str]:
    """Those that are not up; one that waits for its next try ("activating") has failed."""
    return sorted(n for n, one in shown(units).items() if one["ActiveState"] != "active")


def waiting_for_redis(units: Iterable[str], seconds: int = REDIS_SECONDS) -> dict[str, str]:
    """The workers whose start waits for Redis, and what each says, once one waits for so long."""
    found = shown(units).items()
    starting = {name: one for name, one in found if one["ActiveState"] == "activating"}
    waiting = cut_off(starting)
    return waiting if celery_up.waiting(waiting, seconds) else {}


def cut_off(states: dict[str, dict[str, str]]) -> dict[str, str]:
    """The workers that wait for Redis, whether they start or run, and what each says.

    :param states: of ``shown``.
    """
    texts = {unit: celery_up.plain(one.get("StatusText", "")) for unit, one in states.items()}
    return celery_up.waiting(texts)


def said_since(moment: float, params: dict[str, Any]) -> str:
    """What the units that were started and restarted have written into the journal since then."""
    units = [word for unit in params["restart"] + params["start"] for word in ("-u", unit)]
    words = ("journalctl", "--no-pager", "-o", "cat", "--since", f"@{moment:.0f}")
    return run(*words, *units).stdout if units else ""


def bring(verb: str, units: list[str], lines: int) -> None:
    """Run one systemctl call.

    :raises ServicesError: when not all units are up afterwards, or some only wait for Redis.
    """
    if not units:
        return
    command, begun = ("systemctl", verb, "--", *units), time.monotonic()
    # Standard output is the module's own, for its result.
    with subprocess.Popen(
        command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        while True:
            try:
                said = process.communicate(timeout=LOOK_SECONDS)[1].strip()
                break
            except subprocess.TimeoutExpired:
                # One that has waited for long may reach a Redis that is back.
                is_late = time.monotonic() - begun >= REDIS_SECONDS
                waiting = waiting_for_redis(units) if is_late else {}
                if [*waiting] == [BEAT] and units != [BEAT]:
                    # celery.target would wait for it.
                    run("systemctl", "stop", "--", BEAT)
                elif waiting:
                    # It only waits itself, for what systemd goes on with.
                    process.terminate()
                    raise ServicesError(
                        f"systemctl {verb}: Redis does not answer {', '.join(waiting)} "
                        f"({next(iter(waiting.values()))}). Look at 'systemctl status "
                        "celery-redis' on its host, at the address where it listens, and at the "
                        "firewall between.\n",
                        waiting,
                    ) from None
    failed = inactive(units)
    if process.returncode or failed:
        logs = {unit: journal(unit, lines) for unit in failed}
        why, text = described(logs, shown(failed)) if failed else (said, "")
        names = ", ".join(failed or units)
        raise ServicesError(f"systemctl {verb} failed for {names}: {why}\n{text}", failed or units)


def unless_beat(act: Callable[[], None]) -> str:
    """Bring units up; why Beat is not, where it alone has failed.

    :raises ServicesError: when another one is not up.
    """
    try:
        act()
    except ServicesError as problem:
        if problem.units != [BEAT]:
            raise
        return str(problem)
    return ""


def take(turn: Turn, touched: list[str], lines: int) -> None:
    """Replace the units of one turn, and add them to those that were touched when they are.

    :raises ServicesError: when not all come up; what runs beside them is gone then, too.
    """
    try:
        bring("start", turn.beside, lines)
        touched += turn.units
        bring("restart", turn.units, lines)
    finally:
        stop(turn.beside)


def stop(units: list[str]) -> None:
    """Drain and stop units; one that failed is forgotten, and not tried again."""
    if units:
        run("systemctl", "stop", "--", *units)
        run("systemctl", "reset-failed", "--", *units)


def reload() -> None:
    """Let systemd read the unit files.

    :raises ServicesError: when it does not.
    """
    done = run("systemctl", "daemon-reload")
    if done.returncode:
        raise ServicesError(f"systemctl daemon-reload failed: {done.stderr.strip()}\n")


def settle(units: Iterable[str], seconds: float = SETTLE_SECONDS) -> list[str]:
    """Wait a while until the units are up and reach Redis; those that are not, or do not."""
    deadline = time.monotonic() + seconds
    while True:
        states = shown(units)
        away = {name for name, one in states.items() if one["ActiveState"] != "active"}
        waiting = cut_off(states)
        down = sorted(away | waiting.keys())
        # Those that have waited so long already get no more.
        late = celery_up.waiting(waiting, int(seconds)).keys()
        if late >= set(down) or time.monotonic() >= deadline:
            return down
        time.sleep(LOOK_SECONDS)


def way_told(
    down: list[str], text: str = "The previous version is back, its unit files too"
) -> str:
    """How the units are after a version was brought back.

    :param down: those that are not up, or do not reach Redis.
    :param text: what was brought back.
    """
    if not down:
        return f"{text}, and all units are up."
    waiting = cut_off(shown(down))
    if others := [unit for unit in down if unit not in waiting]:
        text += (
            f", but these are not up: {', '.join(others)}. systemd goes on trying; see "
            f"'journalctl -u {others[0]}'."
        )
    if waiting:
        text += (
            f"{' And' if others else ', but'} these do not reach Redis: {', '.join(waiting)} "
            f"({next(iter(waiting.values()))}). They look for it where it was before this run. "
            "If redis_address, redis_port, redis_tls or redis_extra_config were changed, write "
            "their earlier values."
        )
    return text


# ------------------------------------------------------------------------------------------
# Versions


def way_back(
    version: dict[str, dict[str, str]], started: list[str], touched: list[str]
) -> tuple[list[str], list[str]]:
    """Which of the units that were touched to stop, and which to bring back to a version.

    One that was restarted and is not declared was started by hand: it follows its template.

    >>> old = {"files": {"/q/a@.container": ""}, "links": {"/q/a@1.container": "a@.container"}}
    >>> way_back(old, ["a@2.service"], ["a@2.service", "a@1.service", "a@9.service", "b@1.service"])
    (['a@2.service', 'b@1.service'], ['a@1.service', 'a@9.service'])
    """
    known = units_of(version)
    back = [
        unit
        for unit in touched
        if unit in known or (unit not in started and template_of(unit) in known)
    ]
    return [unit for unit in touched if unit not in back], back


def go_back(
    version: dict[str, dict[str, str]], touched: list[str], params: dict[str, Any]
) -> list[str]:
    """Bring unit files and the units that were touched back to a version.

    Returns those that are not up then, and workers that do not reach Redis.

    :raises ServicesError: when systemd does not read the files.
    """
    gone, back = way_back(version, params["start"], touched)
    # Before their files go: after a reload systemd would no longer know how to stop them.
    stop(gone)
    restore(version, params["owned"])
    reload()
    # The kernel may have the rules of the new version.
    if loaded := sorted({*params["reload"]} & units_of(version)):
        run("systemctl", "reload-or-restart", "--", *loaded)
    broken = inactive(back)
    working = [unit for unit in back if unit not in broken]
    if broken:
        run("systemctl", "restart", "--no-block", "--", *broken)
    for turn in turns(working, params["surge"], params["free_mb"]):
        try:
            take(turn, [], 0)
        except ServicesError:
            # Not even beside: then in its own place, for the new version shall not stay. Waited
            # for: until it stops, the new version would pass for one that is back.
            with suppress(ServicesError):  # named by its state, below
                bring("restart", turn.units, 0)
    declared = {unit for unit in units_of(version) if "@." not in unit}
    run("systemctl", "start", "--no-block", "--", *sorted(declared))
    return settle(declared | set(back))


def worked(params: dict[str, Any]) -> dict[str, dict[str, str]] | None:
    """The version that last worked here, if one has."""
    version: dict[str, dict[str, str]] | None = read_state(params["state_file"])["version"]
    return version if params["owned"] else None


def beat_back(params: dict[str, Any]) -> str:
    """Bring Beat alone back to its version that last worked; how it is then.

    :raises ServicesError: when systemd does not read its file.
    """
    earlier, failed = only(worked(params), BEAT), only(snapshot(params["owned"]), BEAT)
    text = f"The workers have come up, and stay on {image_of(failed)}.\n"
    is_back = bool(earlier["files"]) and earlier != failed
    if is_back:
        stop([BEAT])
        restore(earlier, earlier["files"])
        reload()
    # Where it waited for Redis, it was stopped.
    run("systemctl", "start", "--no-block", "--", BEAT)
    if is_back:
        back = (
            f"Beat alone is back in its previous version, on {image_of(earlier)}, its unit file too"
        )
        return text + way_told(settle([BEAT]), back)
    if earlier["files"]:
        return f"{text}Beat's unit file is the one that has worked before; systemd goes on trying."
    return (
        f"{text}No earlier version of Beat has worked here that could come back: its unit file "
        "stays as it is now, and systemd goes on trying."
    )


def image_of(version: dict[str, dict[str, str]]) -> str:
    """The images of a version, as an operator names them, such as ``app:4d2af1cb9d7c3dfa``."""
    return ", ".join(one.rpartition("/")[2] for one in values(version, IMAGE))


def prune(params: dict[str, Any], images: list[str]) -> list[str]:
    """The images that go when only these are kept."""
    if not params["image"] or not shutil.which("podman"):  # a clean host, under --check
        return []
    listed = json.loads(run("podman", "images", "--format", "json").stdout or "[]")
    held = held_images(params["restart"] + params["leftover"])
    return unneeded(listed, params["image"], params["base"], images, held)


def memory_mb(units: Iterable[str]) -> dict[str, int]:
    """The memory in MB that each service may use; one without a limit may use all."""
    names = sorted(unit for unit in units if unit.endswith(".service"))
    if not names:
        return {}
    text = run("systemctl", "show", "-p", "Id,MemoryMax", "--", *names).stdout
    blocks = [dict(line.split("=", 1) for line in one.splitlines()) for one in text.split("\n\n")]
    limits = {one["Id"]: one["MemoryMax"] for one in blocks if "Id" in one}
    return {name: int(limits[name]) >> 20 if limits[name].isdigit() else ALL for name in limits}


def make_room(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the units that stop first, ``yielding``, and the memory beside others."""
    needed = params["restart"] + params["start"]
    sizes = memory_mb(params["retired"]) if needed else {}
    claiming = exclusive(snapshot(params["owned"])["files"], sizes)
    first, free_mb = yielding(sizes, claiming, params["free_mb"])
    return {**params, "yielding": first, "free_mb": free_mb}


def roll(params: dict[str, Any]) -> tuple[list[Turn], str]:
    """Start and restart everything; the turns that were taken, and why Beat alone is not up.

    :raises ServicesError: with what failed, and what was done about it.
    """
    lines, touched = params["journal_lines"], list(params["start"])
    coming, planned = order(params)
    # An earlier run may have been cut off after it wrote and before systemd read.
    reload()
    beat = ""
    try:
        stop(params["leftover"] + params["yielding"])
        for turn in coming:
            # Before the targets, whose start waits for theirs.
            take(turn, touched, lines)
        beat = unless_beat(partial(bring, "start", params["start"], lines))
        for turn in planned:
            beat += unless_beat(partial(take, turn, touched, lines))
        bring("reload-or-restart", params["reload"], lines)
        if beat and (why := why_together(params)) is not None:
            raise ServicesError(why)
    except ServicesError as problem:
        version = worked(params)
        if version is None:
            raise ServicesError(
                f"{beat}{problem}No earlier version has worked here that could come back: the unit "
                "files stay as they are now, and systemd goes on trying."
            ) from None
        text = way_told(go_back(version, touched, params))
        raise ServicesError(f"{beat}{problem}{text}") from None
    return [*coming, *planned], beat


def why_together(params: dict[str, Any]) -> str | None:
    """Why a Beat that has failed goes back with all else, a line or nothing; None where alone."""
    now = snapshot(params["owned"])
    if not any("@" in unit for unit in units_of(now)):
        return ""  # no worker has shown that this version works
    earlier = values(only(worked(params), BEAT), BROKER)
    if earlier and earlier != values(only(now, BEAT), BROKER):
        return "Its previous version has another broker than the workers now.\n"
    return None


def order(params: dict[str, Any]) -> tuple[list[Turn], list[Turn]]:
    """The turns in which units are restarted: those that still start, which drain nothing; others.

    Beside those that still start nothing runs. Beat is last: it fails by itself.
    """
    workers = [unit for unit in params["restart"] if unit != BEAT]
    coming = inactive(workers)
    others = [unit for unit in workers if unit not in coming]
    found = turns(others, params["surge"], params["free_mb"])
    last = [Turn([BEAT], [])] if BEAT in params["restart"] else []
    return ([Turn(coming, [])] if coming else []), [*found, *last]


def reconnected(units: Iterable[str], seconds: float) -> None:
    """Wait until units reach Redis.

    :raises HostError: when one of them still does not after so many seconds.
    """
    deadline = time.monotonic() + seconds
    while late := celery_up.waiting(celery_up.look(list(units)).statuses):
        if time.monotonic() >= deadline:
            lines = "\n".join(f"  {unit}: {text}" for unit, text in sorted(late.items()))
            raise HostError(
                f"these units run and do not reach Redis:\n{lines}\n  Fix: look at 'systemctl "
                "status celery-redis' on its host, at the address where it listens, and at the "
                "firewalls between, then run again."
            )
        time.sleep(LOOK_SECONDS)


def lines_of(
    params: dict[str, Any], planned: list[Turn], removed_images: list[str], down: list[str]
) -> str:
    """What is done to each unit and image, a line each.

    :param down: those of the units to reload that did not run.
    """
    lines = [f"stop {unit}" for unit in params["leftover"] + params["yielding"]]
    lines += [f"start {unit}" for unit in params["start"]]
    for turn in planned:
        lines += [
            f"restart {unit}" + (f", {turn.beside[place]} beside it" if turn.beside else "")
            for place, unit in enumerate(turn.units)
        ]
    lines += [f"{'start' if unit in down else 'reload'} {unit}" for unit in params["reload"]]
    if params["owned"]:
        lines.append(f"write {params['state_file']}")
    lines += [f"remove image {image}" for image in removed_images]
    return "".join(f"{line}\n" for line in lines)


def undo(params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Bring back the version from before this run, where units of it had to make room.

    :raises HostError: when not all of it comes up.
    """
    former = read_state(params["state_file"]).get("former")
    if not former:
        return {"changed": False}
    version, start, touched = former["version"], former["start"], former["touched"]
    gone, back = way_back(version, start, touched)
    yielded = inactive({one for one in units_of(version) if "@." not in one} - {*touched})
    lines = [f"stop {unit}" for unit in gone] + [f"restart {unit}" for unit in back]
    lines += [f"start {unit}" for unit in yielded]
    if not check_mode:
        # In their own places: what made room needs it again.
        alone = {**params, "start": start, "reload": former["reload"], "surge": {}, "free_mb": 0}
        try:
            down = go_back(version, touched, alone)
        except ServicesError as problem:
            raise HostError(str(problem)) from None
        write_state(params["state_file"], {"version": version, "images": former["images"]})
        if down:
            raise HostError(way_told(down))
    return {
        "changed": True,
        "told": [
            f"{', '.join(yielded)} had made room for workers of this run, which has failed "
            "elsewhere: the version from before it is back here."
        ],
        "diff": {"prepared": "".join(f"{line}\n" for line in lines)},
    }


def is_due(params: dict[str, Any]) -> bool:
    """Whether there is a unit to touch."""
    return bool(params["restart"] + params["start"] + params["reload"] + params["leftover"])


def with_remedy(problem: str, params: dict[str, Any]) -> str:
    """What failed, what else an operator must know, and what to do."""
    remedy = "  Fix: correct the cause above, then run the same playbook again."
    return "\n".join(line for line in (problem, params["note"], remedy) if line)


def work(params: dict[str, Any], *, check_mode: bool) -> dict[str, Any]:
    """Bring all units up, and keep what has worked; under --check only say so.

    :raises HostError: when something did not come up, with all that there is to say of it.
    """
    if params.get("back"):
        return undo(params, check_mode=check_mode)
    if not is_due(params):
        if not check_mode:
            reconnected(params["waiting"], REDIS_SECONDS)
        return {"changed": False, "turns": [], "removed_images": []}
    since = time.time()
    params = make_room(params)
    down = inactive(params["reload"])
    beat = ""
    try:
        if check_mode:
            planned = list(chain(*order(params)))
        else:
            planned, beat = roll(params)
            beat += beat_back(params) if beat else ""
    except ServicesError as problem:
        raise HostError(with_remedy(str(problem), params)) from None
    gone: list[str] = []
    stays: list[str] = []
    if params["owned"]:
        former = read_state(params["state_file"])
        before, version = former["images"], snapshot(params["owned"])
        if beat:
            version = with_earlier(version, former["version"], BEAT)
        images = kept(before, params["image"]) if params["image"] else before
        # Under --check the files are those of before.
        gone = prune(
            params, images if check_mode else [*images, *values(only(version, BEAT), IMAGE)]
        )
        if not check_mode:
            state = {"version": version, "images": images}
            if params["yielding"] and former["version"]:
                taken = {"start": params["start"], "reload": params["reload"]}
                taken["touched"] = params["start"] + params["restart"]
                state["former"] = {"version": former["version"], "images": before, **taken}
            write_state(params["state_file"], state)
            reasons = {image: removal(image) for image in gone}
            gone = [image for image, why in reasons.items() if not why]
            stays = [f"{one} stays on this host: {why}" for one, why in reasons.items() if why]
    if beat:
        raise HostError(with_remedy(beat, params))
    if not check_mode:
        reconnected(params["waiting"], REDIS_SECONDS)
    return {
        "changed": True,
        "told": [] if check_mode else [*settings_told(said_since(since, params)), *stays],
        "turns": [turn._asdict() for turn in planned],
        "yielded": params["yielding"],
        "removed_images": gone,
        "diff": {"prepared": lines_of(params, planned, gone, down)},
    }


def main() -> None:
    lists = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "restart": lists,
            "start": lists,
            "reload": lists,
            "waiting": lists,
            "leftover": lists,
            "retired": lists,
            "surge": {"type": "dict", "default": {}},
            "free_mb": {"type": "int", "default": 0},
            "owned": lists,
            "image": {"type": "str", "default": ""},
            "base": {"type": "str", "default": ""},
            "state_file": {"type": "path", "default": "/var/lib/celery-metal/workers.json"},
            "back": {"type": "bool", "default": False},
            "note": {"type": "str", "default": ""},
            "journal_lines": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not (is_due(params) or params["waiting"] or params["back"]):
        module.exit_json(changed=False, turns=[], removed_images=[])
    conclude(
        module, lambda: work(params, check_mode=module.check_mode), changes=True, warned="told"
    )


if __name__ == "__main__":
    main()
