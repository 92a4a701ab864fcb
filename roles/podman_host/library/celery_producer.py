#!/usr/bin/python
"""Keep on a host what a program needs to send tasks, and have that program read it again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_producer
short_description: Files with which a program sends tasks, and its reload
description:
  - Writes the password, the certificates and an environment file into one directory, each at once.
  - When one has changed it runs the commands that have the program read it again. A command that
    fails is run again by the next call, until all have succeeded.
options:
  state:
    description: C(look) changes nothing, and fails where C(present) would.
    choices: [look, present, absent]
    default: present
  directory:
    description: Where the files are.
    required: true
  place:
    description: >-
      Where they will be on another machine, for the paths in the environment file. Nothing is then
      recorded on this one, and no command is run.
    default: ""
  owner:
    description: Who owns the files; the directory belongs to who runs this.
  group:
    description: Their group.
  mode:
    description: Their mode, in octal digits.
    default: "0640"
  url:
    description: The address of Redis, with a user and without a password.
    default: ""
  results:
    description: Where results are kept, without a password; empty for where the app keeps them.
    default: ""
  variables:
    description: Names of variables that hold the address with the password.
    type: list
    elements: str
    default: []
  secrets:
    description: Each secret to the version that it has on the host of Redis.
    type: dict
    default: {}
  inspected:
    description: What C(podman secret inspect --showsecret) has printed of them there.
    type: str
    default: ""
  certificate:
    description: The client's certificate and key, where that is none of those secrets.
    type: str
    default: ""
  reload:
    description: Commands for when a file has changed.
    type: list
    elements: list
    default: []
  restart:
    description: Commands instead, for when the environment file has changed.
    type: list
    elements: list
    default: []
  destination:
    description: The destination of the run, for the record; empty for none.
    default: ""
author: celery-metal
"""

EXAMPLES = r"""
- name: Keep what a web process needs to send tasks
  celery_producer:
    directory: /etc/celery-producer
    url: rediss://producer@10.0.0.5:6379/0
    secrets: {celery-redis-producer: a1b2}
    inspected: "{{ inspected.stdout }}"
    reload: [[systemctl, reload, shop]]
"""

RETURN = r"""
versions: {description: Each secret to the version of its whole file, type: dict, returned: always}
destination: {description: The destination on record, type: str, returned: with O(state=look)}
notes: {description: What an operator has to do, type: list, returned: with O(state=present)}
diff: {description: What was done, a line each, type: dict, returned: always}
"""

import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError, conclude
from ansible.module_utils.celery_producing import (
    ENVIRONMENT,
    STATE,
    State,
    account,
    contents,
    environment_text,
    mode_of,
    moves_safely,
    owned_by,
    remove,
    sum_of,
    trusted,
    unlink,
    whole,
    write,
)

UNREAD = (
    "{} has changed, and a reload does not read it again\n  Fix: restart the program, and write "
    "celery_producer_restart, such as [systemctl restart shop]: then a run restarts it."
)
# A reload waits for requests that run.
SECONDS = 300


def work(module: AnsibleModule, record: Path = STATE) -> dict[str, Any]:
    """Do what `state` says; HostError where it cannot be done."""
    params = module.params
    directory, is_here = Path(params["directory"]), not params["place"]
    known = State.read(record) if is_here else State()
    if params["state"] == "absent":
        return _absent(known, record, check_mode=module.check_mode)
    mode = mode_of(params["mode"])
    trusted(directory)
    moves_safely(known, directory, params["restart"])
    own = account(params["owner"], params["group"])
    versions = whole(known, directory)
    if params["state"] == "look":
        found = {"versions": versions, "destination": known.destination}
        return {"changed": False, **found, "diff": {"prepared": ""}}
    lines: list[str] = []
    wanted = params["secrets"]
    if module.check_mode and versions != wanted:
        # Without them the environment file is not known either.
        lines = [f"keep secret {name}\n" for name in sorted(wanted) if name not in versions]
        lines += [f"renew {name}\n" for name in sorted(wanted) if name in versions]
        return {"changed": True, "versions": versions, "diff": {"prepared": "".join(lines)}}
    files = contents(
        wanted, params["inspected"], params["certificate"], known=versions, directory=directory
    )
    place = Path(params["place"] or directory)
    files[ENVIRONMENT] = environment_text(
        params["url"], files, place, params["variables"], params["results"]
    )
    changed = {
        name
        for name, text in files.items()
        if sum_of(directory / name) != sum_of(text) or not owned_by(directory / name, own, mode)
    }
    gone = known.paths() - {str(directory / name) for name in files}
    is_first = not known.files or known.is_first
    lines = [f"keep {directory / name}\n" for name in sorted(changed)]
    lines += [f"remove {path}\n" for path in sorted(gone)]
    is_new = sum_of(directory / ENVIRONMENT) != sum_of(files[ENVIRONMENT])
    needs = "restart" if is_new or known.pending == "restart" else "reload"
    what = needs if params[needs] else "reload"
    commands = params[what]
    is_due = is_here and bool(commands) and not is_first and bool(changed or gone or known.pending)
    lines += [f"{what} {' '.join(command)}\n" for command in commands if is_due]
    done = State(
        str(directory),
        dict(wanted),
        {name: sum_of(text) for name, text in files.items()},
        destination=params["destination"],
    )
    if not module.check_mode and (changed or gone or known.pending or done != known):
        pending = needs if is_due else ""
        # Of what is between two versions nothing is whole; a run that is cut is completed.
        for_now = done._replace(pending=pending, earlier=tuple(sorted(gone)), is_first=is_first)
        for_now._replace(versions={}).write(record, is_here)
        for name in sorted(changed):
            write(directory / name, files[name], own, mode, is_private=not is_here)
        for_now._replace(is_first=False).write(record, is_here)
        if is_due:
            _run_all(commands, what)
        # Until now the program may have used them.
        unlink(gone)
        done.write(record, is_here)
    is_unread = is_due and what != needs and not module.check_mode
    return {
        "changed": bool(lines),
        "versions": dict(wanted),
        "diff": {"prepared": "".join(lines)},
        "notes": [UNREAD.format(directory / ENVIRONMENT)] if is_unread else [],
    }


def _absent(known: State, record: Path, *, check_mode: bool) -> dict[str, Any]:
    lines = "".join(f"remove {path}\n" for path in sorted(known.paths()))
    if not check_mode:
        remove(known, record)
    return {"changed": bool(lines), "versions": {}, "diff": {"prepared": lines}}


def _run_all(commands: list[list[str]], what: str) -> None:
    for command in commands:
        shown = " ".join(command)[:200]
        variable = f"celery_producer_{what}"
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=SECONDS,
                stdin=subprocess.DEVNULL,
            )
            reason = f"exits with {done.returncode}"
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            is_done = done.returncode == 0
        except subprocess.TimeoutExpired:
            is_done, reason, said = False, f"runs for more than {SECONDS} seconds", []
        except OSError as problem:
            is_done, reason, said = False, f"cannot run: {problem.strerror}", []
        if not is_done:
            last = f"\n  {said[-1][:300]}" if said else ""
            raise HostError(
                f'{variable}: "{shown}" {reason}{last}\n  The files are new, and the program may '
                f"still use the earlier ones.\n  Fix: correct {variable} or the program, and run "
                "the same playbook again: it runs the command again."
            )


def main() -> None:
    lists = {"type": "list", "elements": "list", "default": []}
    module = AnsibleModule(
        argument_spec={
            "state": {"default": "present", "choices": ["look", "present", "absent"]},
            "directory": {"required": True},
            "place": {"default": ""},
            "owner": {},
            "group": {},
            "mode": {"default": "0640"},
            "url": {"default": ""},
            "results": {"default": ""},
            "variables": {"type": "list", "elements": "str", "default": []},
            "secrets": {"type": "dict", "default": {}, "no_log": False},
            "inspected": {"default": "", "no_log": True},
            "certificate": {"default": "", "no_log": True},
            "reload": lists,
            "restart": lists,
            "destination": {"default": ""},
        },
        supports_check_mode=True,
    )
    conclude(module, lambda: work(module), changes=not module.params["place"], warned="notes")


if __name__ == "__main__":
    main()
