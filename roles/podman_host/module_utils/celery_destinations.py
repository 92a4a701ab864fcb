"""The destination that this host was deployed for, as site.yml has recorded it."""

from __future__ import annotations

import json
from pathlib import Path

STATE = Path("/var/lib/celery-metal/destination.json")
#: For a file that holds no name: no destination has it.
UNREADABLE = "?"


def recorded_destination(path: Path = STATE) -> str:
    """The name on record; empty where there is none.

    A damaged file counts as another destination, for it may be that of one.
    """
    try:
        name = json.loads(path.read_text())["destination"]
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return UNREADABLE
    return name if isinstance(name, str) and name else UNREADABLE
