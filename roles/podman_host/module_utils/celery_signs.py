"""Signs of life that workers leave in Redis, and which of them are missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from celery_metal_types import Silent

# Workers leave one each 5 s. One that is older is waited for, so a short limit blames nobody.
FRESH_SECONDS = 8
# As the runtime: what is longer was not written by it.
LONGEST_LIFE = 65536


class Life(NamedTuple):
    """What a worker has left: when, in seconds by Redis's clock, and which queues it consumes."""

    moment: int | None
    queues: list[str]


def parsed(life: str) -> Life | None:
    """A sign of life; None where it is none. Earlier runtimes write no moment.

    >>> parsed('[7, [1, "a1", "boot", 1700000000], ["mail"]]')
    Life(moment=1700000000, queues=['mail'])
    >>> parsed('[7, 1, ["mail"]]'), parsed("?")
    (Life(moment=None, queues=['mail']), None)
    """
    try:
        if len(life) > LONGEST_LIFE:
            return None
        _, start, queues = json.loads(life)
    except (ValueError, TypeError, RecursionError):
        return None
    if not isinstance(queues, list) or not all(type(one) is str for one in queues):
        return None
    has_moment = isinstance(start, list) and len(start) == 4 and type(start[3]) is int
    return Life(start[3] if has_moment else None, queues)


def silent(
    expected: Mapping[str, Sequence[str]],
    lives: Mapping[str, str],
    first: Mapping[str, str],
    now: int,
) -> dict[str, Silent]:
    """The workers that leave no sign of life, or one without all of their queues.

    :param expected: node name to the queues that it is to consume.
    :param lives: node name to what is in Redis.
    :param first: the same, when this was first asked: a life without a moment must have changed.
    :param now: seconds since 1970, by Redis's clock.
    """
    found: dict[str, Silent] = {}
    for node, queues in expected.items():
        life = parsed(lives.get(node, ""))
        if life is None:
            found[node] = {"seconds": None, "missing": []}
        elif life.moment is not None and abs(now - life.moment) > FRESH_SECONDS:
            # One from the future, by a clock that was set back, is as good as none.
            age = now - life.moment
            found[node] = {"seconds": age if age > 0 else None, "missing": []}
        elif life.moment is None and lives[node] == first.get(node):
            found[node] = {"seconds": None, "missing": []}
        elif missing := sorted(set(queues) - set(life.queues)):
            found[node] = {"seconds": None, "missing": missing}
    return found
