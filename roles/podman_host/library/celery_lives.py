#!/usr/bin/python
"""Whether each worker works at this moment, asked of Redis in one go; which queues are paused."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_lives
short_description: Report the workers that have left Redis no sign of life lately
description:
  - Each worker leaves one every 5 seconds, with Redis's own time. Where all are fresh, one look is
    enough; otherwise the module looks again for I(seconds).
  - One from before the last start of Redis does not count.
  - A Redis that does not answer is no failure; C(error) says so.
  - Reports the queues that are paused, too. Their workers work, and start none of their tasks.
options:
  expected:
    description: Node name to the queues that it is to consume.
    type: dict
    default: {}
  prefixes:
    description: What the app may set as Celery's C(global_keyprefix), besides none.
    type: list
    elements: str
    default: []
  database:
    description: Number of the Redis database.
    type: int
    default: 0
  external:
    description: As for C(celery_backlog).
    type: dict
  seconds:
    description: How long to look for signs of life that are missing.
    type: int
    default: 30
author: celery-metal
"""

EXAMPLES = r"""
- name: Ask Redis for all workers
  celery_lives:
    expected: {emails-1@web1: [emails]}
  register: site_lives
"""

RETURN = r"""
error: {description: Why Redis gave no answer; empty when it did, type: str, returned: always}
paused:
  description: Each paused queue, as C(celery_backlog) reports it
  type: list
  returned: always
paused_error:
  description: Why paused queues cannot be read; empty when they can
  type: str
  returned: always
silent:
  description: >-
    Node name of each worker without a fresh sign of life to C(seconds) since its last one, null
    where there is none, and the queues that are C(missing) in it
  type: dict
  returned: always
"""

import contextlib
import re
import time
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError
from ansible.module_utils.celery_pauses import pauses_of
from ansible.module_utils.celery_redis import SOCKET, Client, RedisError
from ansible.module_utils.celery_redis_login import client_at, client_of
from ansible.module_utils.celery_signs import Clock, silent, silent_in_each

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from celery_metal_types import Endpoint, Pause, Silent

PAUSE_SECONDS = 0.3
# A Redis that is just starting, or being elected.
ERROR_SECONDS = 10


def asked(client: Client, prefixes: Sequence[str]) -> tuple[Clock, list[dict[str, str]]]:
    """Redis's own time, and the signs of life under each prefix.

    What the user may not read holds none of its app; a user of an external Redis may lack TIME, and
    INFO.

    :raises RedisError: when nothing may be read, or Redis answers with another error.
    """
    keys = [f"{prefix}celery-metal.nodes" for prefix in dict.fromkeys(["", *prefixes])]
    commands = [("TIME",), ("INFO", "server"), *(("HGETALL", key) for key in keys)]
    clock, info, *hashes = client.try_all(*commands)
    denied = [one for one in (clock, *hashes) if isinstance(one, RedisError)]
    other = [one for one in denied if not str(one).startswith("NOPERM")]
    if other or all(one in denied for one in hashes):
        raise (other or denied)[-1]
    now = None if clock in denied else int(clock[0])
    return Clock(now, started(now, info)), [
        dict(zip(one[::2], one[1::2], strict=True)) for one in hashes if one not in denied
    ]


def started(now: int | None, info: Any) -> int | None:
    """When Redis was started, by its clock; None where it does not say.

    >>> started(1700000000, "# Server\\r\\nuptime_in_seconds:60\\r\\n")
    1699999940
    """
    found = re.search(r"^uptime_in_seconds:([0-9]{1,12})\r?$", str(info), re.M)
    return None if found is None or now is None else now - int(found[1])


def watch(
    client: Client,
    expected: Mapping[str, Sequence[str]],
    prefixes: Sequence[str],
    seconds: float,
    answered: Callable[[], None] = lambda: None,
) -> dict[str, Silent]:
    """Those that leave no sign of life within these seconds; `answered` is called at each look."""
    deadline, firsts, missing = time.monotonic() + seconds, None, expected
    while True:
        clock, looks = asked(client, prefixes)
        answered()
        # The first look alone shows nothing of a worker whose life has no moment.
        firsts = looks if firsts is None else firsts
        pairs = zip(looks, firsts, strict=False)
        found = silent_in_each(silent(missing, lives, first, clock) for lives, first in pairs)
        if not found or time.monotonic() >= deadline:
            return found
        # Beats come one after the other: who has been seen needs not be seen again.
        missing = {node: expected[node] for node in found}
        time.sleep(PAUSE_SECONDS)


def paused(client: Client, queues: Sequence[str], prefixes: Sequence[str]) -> list[Pause] | str:
    """The queues that are paused, those of ``queues`` first; a text where they cannot be read."""
    try:
        return pauses_of(client, queues, prefixes)
    except (OSError, RedisError) as problem:
        return str(problem)


def paused_queues(client: Client, params: Mapping[str, Any]) -> list[Pause] | str:
    """The same, with the rights for it: a Redis of the project has the user admin on its host.

    :param client: of the user that asked for signs of life.
    :param params: of this module.
    """
    queues = sorted({queue for some in params["expected"].values() for queue in some})
    if params["external"]:
        return paused(client, queues, params["prefixes"])
    try:
        with contextlib.closing(client_of("admin")) as admin:
            admin.ask(("SELECT", str(params["database"])))
            return paused(admin, queues, params["prefixes"])
    except (OSError, RedisError, HostError) as problem:
        return str(problem)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "expected": {"type": "dict", "default": {}},
            "prefixes": {"type": "list", "elements": "str", "default": []},
            "database": {"type": "int", "default": 0},
            "external": {"type": "dict"},
            "seconds": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    params = module.params
    external: Endpoint | None = params["external"]
    database = external["database"] if external else params["database"]
    began, error = time.monotonic(), ""
    last = [began]
    while True:
        try:
            client = client_at(external, module.tmpdir) if external else client_of("monitor")
            with contextlib.closing(client):
                client.ask(("SELECT", str(database)))
                left = began + params["seconds"] - time.monotonic()
                found = watch(
                    client,
                    params["expected"],
                    params["prefixes"],
                    left,
                    lambda: last.append(time.monotonic()),
                )
                pauses = paused_queues(client, params)
            why = pauses if isinstance(pauses, str) else ""
            rest = {"paused": [] if why else pauses, "paused_error": why}
            module.exit_json(changed=False, error="", silent=found, **rest)
        except OSError as problem:
            where = "" if external else f"{SOCKET}: "
            error = f"{where}{problem.strerror or problem}"
        except (RedisError, HostError) as problem:
            error = str(problem)
        if time.monotonic() - last[-1] > ERROR_SECONDS:
            rest = {"paused": [], "paused_error": ""}
            module.exit_json(changed=False, error=error, silent={}, **rest)
        time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    main()
