"""Signs of life that workers leave in Redis, and which of them are missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from celery_metal_types import Silent

# Workers leave one each 5 s. One that is older is waited for, so a short limit blames nobody.
FRESH_SECONDS = 8
# By their number, what an earlier runtime kept in each part of a name.
KEPT = {f"{ord(char):X}": char for char in ".:-"}
# What a message has room for.
MOST_SECONDS = 10**9
# As the runtime: what is longer was not written by it.
LONGEST_LIFE = 65536


class Life(NamedTuple):
    """What a worker has left: when, in seconds by Redis's clock, and which queues it consumes."""

    moment: int | None
    queues: list[str]


class Clock(NamedTuple):
    """Redis's time, and when it was started, in seconds since 1970; None where it does not say."""

    now: int | None
    started: int | None = None


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


def former_name(node: str) -> str:
    """The node name that an earlier runtime makes of the same queue, instance and host.

    >>> former_name("media=2F=thumbs-1@fd00=3A==3A=1")
    'media_thumbs-1@fd00::1'
    """
    return re.sub(r"=([0-9A-F]{1,6})=", lambda code: KEPT.get(code[1], "_"), node)


def silent(
    expected: Mapping[str, Sequence[str]],
    lives: Mapping[str, str],
    first: Mapping[str, str],
    clock: Clock,
) -> dict[str, Silent]:
    """The workers that leave no sign of life, or one without all of their queues.

    :param expected: node name to the queues that it is to consume.
    :param lives: node name to what is in Redis.
    :param first: the same, when this was first asked: a life without a moment must have changed.
    :param clock: a life from before Redis was started tells nothing of the connections to it now.
    """
    now = clock.now
    found: dict[str, Silent] = {}
    for node, queues in expected.items():
        name = node if node in lives else former_name(node)
        life = parsed(lives.get(name, ""))
        if life is None or (name != node and life.moment is not None):
            found[node] = {"seconds": None, "missing": []}
        elif life.moment is not None and now is not None and not _is_fresh(life.moment, now, clock):
            # One from the future, by a clock that was set back, is as good as none.
            age = now - life.moment
            found[node] = {"seconds": min(age, MOST_SECONDS) if age > 0 else None, "missing": []}
        elif (life.moment is None or now is None) and lives[name] == first.get(name):
            found[node] = {"seconds": None, "missing": []}
        elif missing := sorted(set(queues) - set(life.queues)):
            found[node] = {"seconds": None, "missing": missing}
    return found


def _is_fresh(moment: int, now: int, clock: Clock) -> bool:
    is_of_before = clock.started is not None and moment <= clock.started
    return abs(now - moment) <= FRESH_SECONDS and not is_of_before


def silent_in_each(some: Iterable[Mapping[str, Silent]]) -> dict[str, Silent]:
    """The workers that are silent under each prefix, with what is best known of each.

    >>> none, late = {"seconds": None, "missing": []}, {"seconds": 60, "missing": []}
    >>> silent_in_each([{"a": none, "b": none}, {"a": late}])
    {'a': {'seconds': 60, 'missing': []}}
    """
    looks = list(some)
    nodes = [node for node in looks[0] if all(node in one for one in looks)] if looks else []

    def known(one: Silent) -> tuple[bool, int]:
        seconds = MOST_SECONDS + 1 if one["seconds"] is None else one["seconds"]
        return not one["missing"], seconds

    return {node: min((one[node] for one in looks), key=known) for node in nodes}
