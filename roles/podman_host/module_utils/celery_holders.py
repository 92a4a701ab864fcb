"""The record of the hosts that were given what opens the Redis of this host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HOLDERS = Path("/etc/celery-metal/holders.json")
MAX_BYTES = 1 << 20


def recorded(path: Path = HOLDERS) -> dict[str, Any] | None:
    """What the record says, for the controller to check; None where there is none.

    One that cannot be read has the key ``error`` alone.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            return {"error": f"it has more than {MAX_BYTES} bytes"}
        found = json.loads(text)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {"error": "it is not JSON"}
    return found if isinstance(found, dict) else {"error": "it is not a JSON object"}
