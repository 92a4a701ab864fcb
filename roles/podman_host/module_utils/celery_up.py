"""Whether units that run work at this moment, and would start again at the next boot."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from ansible.module_utils.celery_metal import HostError, run

QUADLET = "/usr/libexec/podman/quadlet"
BEAT = "celery-beat.service"
PROPERTIES = "Id,LoadState,ActiveState,StatusText"
MOST_SAID = 200
# One answer that is late on a busy host is nothing to mend.
LONG_SECONDS = 10
# Of one that Quadlet refuses, lines of its words.
MOST_LINES = 3


class Looked(NamedTuple):
    """What systemd says of units: by unit its LoadState, and of those that run the status line."""

    loaded: dict[str, str]
    statuses: dict[str, str]


def look(units: Collection[str]) -> Looked:
    """Ask systemd once for all units."""
    if not units or not shutil.which("systemctl"):
        return Looked({}, {})
    shown = run("systemctl", "show", "-p", PROPERTIES, "--", *sorted(units)).stdout
    return parsed(shown)


def parsed(shown: str) -> Looked:
    """What ``systemctl show`` prints.

    >>> parsed("Id=a.service\\nLoadState=loaded\\nActiveState=active\\nStatusText=a: 1 busy\\n")
    Looked(loaded={'a.service': 'loaded'}, statuses={'a.service': 'a: 1 busy'})
    """
    loaded, statuses = {}, {}
    for block in shown.strip().split("\n\n"):
        # Not by splitlines(): a worker's status may hold what else ends a line, and forge an Id.
        one = dict(line.split("=", 1) for line in block.split("\n") if "=" in line)
        if unit := one.get("Id"):
            loaded[unit] = one.get("LoadState", "")
            if one.get("ActiveState") == "active":
                statuses[unit] = plain(one.get("StatusText", ""))
    return Looked(loaded, statuses)


def plain(text: str) -> str:
    """A status line for a message: what runs there may have written it."""
    return "".join(char if char.isprintable() else "?" for char in text[:MOST_SAID])


def waiting(statuses: Mapping[str, str], seconds: int = 0) -> dict[str, str]:
    """The units that run and have not reached Redis for so long, with their status lines."""
    found = {
        unit: re.search(r": waiting for the broker since ([0-9]{1,9}) s", text)
        for unit, text in statuses.items()
    }
    return {unit: statuses[unit] for unit, one in found.items() if one and int(one[1]) >= seconds}


def generated() -> tuple[set[str], str]:
    """The units that Podman's generator makes of the files on this host, and its errors."""
    dry = run(QUADLET, "-dryrun")
    return set(re.findall(r"^---(\S+)---$", dry.stdout, re.M)), dry.stderr


def refusals(
    settled: Collection[str], made: Collection[str], errors: str, loaded: Mapping[str, str]
) -> list[str]:
    """Why units would not start at the next boot, a text for each.

    :param settled: the units of containers whose files are on the host as they shall be.
    :param made: what Podman's generator makes.
    :param errors: what it says on standard error.
    :param loaded: unit to its LoadState.
    """
    found = [
        f"{unit} is masked, so nothing starts it.\n  Fix: run 'systemctl unmask {unit}' there"
        for unit, state in sorted(loaded.items())
        if state == "masked"
    ]
    refused = sorted(set(settled) - set(made))
    if refused:
        lines = [re.sub(r"^quadlet-generator\[\d+\]: ", "", one) for one in errors.splitlines()]
        words = [plain(one) for one in lines if "Loading source" not in one][:MOST_LINES]
        found.append(
            "\n  ".join([f"the next boot would not know {', '.join(refused)}.", *words])
            + "\n  Fix: correct or remove the drop-in in /etc/containers/systemd/*.container.d/ "
            f"('{QUADLET} -dryrun' there names it)"
        )
    return found


def require(units: Collection[str], settled: Collection[str], looked: Looked) -> None:
    """Have all units start at the next boot.

    :param settled: as for refusals.
    :raises HostError: when one would not.
    """
    made, errors = generated() if settled and Path(QUADLET).exists() else (set(settled), "")
    known = {unit: state for unit, state in looked.loaded.items() if unit in units}
    if found := refusals(settled, made, errors, known):
        raise HostError("\n".join(found) + ", then run again. Nothing was written.")
