"""Rules of ``playbooks/doctor.yml``: what each is, and how findings are made of them.

A rule is a function from all that is known to what it has seen. What is not known is no finding: a
host that cannot be asked is one of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# Filters that others use, too, and the runtime; Ansible loads files by their path.
sys.path.insert(0, str(Path(__file__).parents[1] / "filter_plugins"))
sys.path.insert(0, str(Path(__file__).parents[2] / "app/runtime"))
import reported
from celery_metal_runtime.names import node_name

if TYPE_CHECKING:
    from celery_metal_types import Fleet

HIGH, MEDIUM, LOW = "high", "medium", "low"
SEVERITIES = (HIGH, MEDIUM, LOW)
MOST_TEXT, MOST_ITEMS, MOST_NUMBER = 256, 5000, 1 << 53
FORMAT = 1


class Given:
    """Facts as a host has reported them: each value is of the wanted type and bounded, or None."""

    def __init__(self, raw: Any) -> None:
        self.raw: Mapping[Any, Any] = raw if isinstance(raw, Mapping) else {}

    def number(self, key: str) -> int | None:
        """A number that is not negative; also in digits, as Redis has it."""
        value = self.raw.get(key)
        if isinstance(value, str) and len(value) < 17 and value.isascii() and value.isdigit():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return int(value) if 0 <= value <= MOST_NUMBER else None

    def text(self, key: str) -> str:
        """A text of one line for a terminal; empty where there is none."""
        value = self.raw.get(key)
        return reported.shown(value, MOST_TEXT) if isinstance(value, str) else ""

    def truth(self, key: str) -> bool | None:
        value = self.raw.get(key)
        return value if isinstance(value, bool) else None

    def inner(self, key: str) -> Given:
        return Given(self.raw.get(key))

    def each(self, key: str) -> list[Given]:
        value = self.raw.get(key)
        return [Given(one) for one in value[:MOST_ITEMS]] if isinstance(value, list) else []

    def texts(self, key: str) -> list[str]:
        value = self.raw.get(key)
        some = value[:MOST_ITEMS] if isinstance(value, list) else []
        return [reported.shown(one, MOST_TEXT) for one in some if isinstance(one, str)]

    def items(self) -> list[tuple[str, Given]]:
        some = list(self.raw.items())[:MOST_ITEMS]
        return [(reported.shown(key, MOST_TEXT), Given(one)) for key, one in some]

    def __bool__(self) -> bool:
        return bool(self.raw)


class Host(NamedTuple):
    """What is known of a host; ``why`` is not empty where it gave no answer.

    ``facts`` is what ``celery_doctor`` found, ``state`` what ``celery_host`` did.
    """

    facts: Given
    state: Given
    why: str = ""
    #: The controller's clock before it asked, and after it had all answers.
    asked: float = 0.0
    answered: float = 0.0


class Site(NamedTuple):
    """All that rules look at: hosts by name, what status.yml knows, and the hosts of Redis."""

    hosts: Mapping[str, Host]
    fleet: Fleet
    redis: Collection[str]
    now: float

    def known(self) -> Iterator[tuple[str, Host]]:
        """The hosts that gave an answer."""
        return ((name, host) for name, host in self.hosts.items() if not host.why)

    def redises(self) -> Iterator[tuple[str, Given]]:
        """Where a Redis was asked, and what it said."""
        for name, host in self.known():
            if (redis := host.facts.inner("redis")).inner("info"):
                yield name, redis

    def workers(self) -> Iterator[tuple[str, Given]]:
        """Node name to what a running worker answered."""
        for _, redis in self.redises():
            yield from redis.inner("workers").items()

    def queue_of(self, node: str) -> Given:
        """The row of the plan for a worker, whichever its instance; empty where there is none."""
        middle = node.rpartition("@")[0].rpartition("-")[0]
        for name, host in self.known():
            for queue in host.facts.inner("plan").each("queues"):
                own = node_name(queue.text("name"), "1", name)
                if own.rpartition("@")[2] == node.rpartition("@")[2] and (
                    own.rpartition("@")[0].rpartition("-")[0] == middle
                ):
                    return queue
        return Given({})


class Seen(NamedTuple):
    """Where a cause was seen, and what was measured; a fix that replaces the rule's."""

    where: str
    measured: str
    fix: str = ""


class Rule(NamedTuple):
    name: str
    severity: str
    title: str
    risk: str
    fix: str
    look: Callable[[Site], Iterable[Seen]]


class Finding(NamedTuple):
    """A rule's cause wherever it was seen with the same remedy."""

    rule: Rule
    fix: str
    seen: list[Seen]

    @property
    def where(self) -> list[str]:
        return list(dict.fromkeys(one.where for one in self.seen))


RULES: dict[str, Rule] = {}
Look = Callable[[Site], Iterable[Seen]]


def rule(name: str, severity: str, title: str, *, risk: str, fix: str) -> Callable[[Look], Look]:
    """Take a function for a rule of this name."""

    def add(look: Look) -> Look:
        RULES[name] = Rule(name, severity, title, risk, fix, look)
        return look

    return add


def examine(site: Site, accepted: Collection[str] = ()) -> list[Finding]:
    """Find what will hurt, the worst first.

    :param accepted: names of rules that are not looked at.
    """
    found: dict[tuple[str, str], Finding] = {}
    for one in RULES.values():
        if one.name in accepted:
            continue
        for seen in one.look(site):
            fix = seen.fix or one.fix
            found.setdefault((one.name, fix), Finding(one, fix, [])).seen.append(seen)
    order = [*RULES]
    return sorted(
        found.values(),
        key=lambda one: (SEVERITIES.index(one.rule.severity), order.index(one.rule.name)),
    )


def megabytes(size: float) -> str:
    """Bytes in words.

    >>> megabytes(5 << 20), megabytes(3 << 30)
    ('5 MB', '3.0 GB')
    """
    return f"{size / (1 << 30):.1f} GB" if size >= 1 << 30 else f"{size // (1 << 20):.0f} MB"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(42), duration(600), duration(7200), duration(864000)
    ('42 s', '10 min', '2 h', '10 d')
    """
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
