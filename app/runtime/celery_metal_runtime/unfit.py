"""A result that can never fit into this Redis fails at once: Celery would try it for ever."""

from typing import Any

from celery.exceptions import BackendStoreError
from redis.exceptions import RedisError

MB = 1024 * 1024
# Redis holds it so often before it takes it: it is kept and published in one transaction, and the
# room in which Redis reads what follows is as large.
COPIES = 3
# The role's limit for clients lets a result of this part of maxmemory pass: redis.conf.j2.
PASSING_PART = 16
# Bytes from which on a result is looked at before it is sent: redis-py takes seconds to put a long
# value that was refused into its error.
LARGE = MB


class Refusals:
    """What this process knows of the large result that it sends.

    Where the user may not run INFO, nothing is refused.
    """

    def __init__(self) -> None:
        self.key: Any = None
        self.cut_off = 0

    def check(self, client: Any, key: Any, value: Any, was_cut_off: bool) -> None:
        """BackendStoreError with both sizes when `value` can never be kept under `key`.

        `was_cut_off`: the connection was lost while it was sent. That may have another cause; it
        counts when Redis has cut off clients since the check before it was sent.
        """
        try:
            limit = int(client.info("memory")["maxmemory"])
            if not limit or PASSING_PART * len(value) <= limit:
                return
            seen = int(client.info("stats").get("evicted_clients", 0))
        except (RedisError, KeyError, ValueError):
            return
        is_cut_off = was_cut_off and key == self.key and seen > self.cut_off
        self.key, self.cut_off = key, seen
        if COPIES * len(value) > limit:
            why = f"Redis has a maxmemory of {limit / MB:.1f} MB and holds it {COPIES} times"
        elif is_cut_off:
            passing = limit / PASSING_PART / MB
            why = (
                f"Redis cut off the connection that sent it: of its maxmemory of "
                f"{limit / MB:.1f} MB, {passing:.1f} MB surely pass (maxmemory-clients)"
            )
        else:
            return
        raise BackendStoreError(
            f"a result of {len(value) / MB:.1f} MB can never be stored: {why}. Keep the data "
            "elsewhere and return where it is, or give Redis more memory"
        )
