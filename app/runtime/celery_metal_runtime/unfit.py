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
# So often in a row Redis cuts off what cannot pass; once, it may have been for another client's.
CUT_OFFS = 3
# So many results of this process are known to have been cut off.
MOST_KEYS = 100
# Bytes from which on a result is looked at before it is sent: redis-py takes seconds to put a long
# value that was refused into its error.
LARGE = MB


class Refusals:
    """What this process knows of the large results that it sends.

    Where the user may not run INFO, nothing is refused.
    """

    def __init__(self) -> None:
        #: By key: how many clients Redis had cut off before it was sent, and how often this one.
        self.sent: dict[Any, tuple[int, int]] = {}

    def forget(self, key: Any) -> None:
        """It is kept."""
        self.sent.pop(key, None)

    def check(self, client: Any, key: Any, size: int, was_cut_off: bool) -> None:
        """BackendStoreError with both sizes when so many bytes can never be kept under `key`.

        `was_cut_off`: the connection was lost while it was sent. That may have another cause; it
        counts when Redis has cut off clients since the check before it was sent.
        """
        try:
            limit = int(client.info("memory")["maxmemory"])
            if not limit or PASSING_PART * size <= limit:
                return
            seen = int(client.info("stats").get("evicted_clients", 0))
        except (RedisError, KeyError, ValueError):
            return
        before, count = self.sent.pop(key, (seen, 0))
        count += was_cut_off and seen > before
        self.sent[key] = seen, count
        while len(self.sent) > MOST_KEYS:
            del self.sent[next(iter(self.sent))]
        if COPIES * size > limit:
            why = f"Redis has a maxmemory of {limit / MB:.1f} MB and holds it {COPIES} times"
        elif count >= CUT_OFFS:
            passing = limit / PASSING_PART / MB
            why = (
                f"Redis cut off the connection that sent it {count} times: of its maxmemory of "
                f"{limit / MB:.1f} MB, {passing:.1f} MB surely pass (maxmemory-clients)"
            )
        else:
            return
        raise BackendStoreError(
            f"a result of {size / MB:.1f} MB can never be stored: {why}. Keep the data "
            "elsewhere and return where it is, or give Redis more memory"
        )
