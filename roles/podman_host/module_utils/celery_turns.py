"""In which turns units are replaced, and which stop first to make room for others."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from ansible.module_utils.celery_metal import template_of

# What one container of a host takes from the others.
EXCLUSIVE = re.compile(r"^(AddDevice|IP6?|PublishPort)=", re.M)


class Turn(NamedTuple):
    """Units that are restarted together, and what runs beside them meanwhile."""

    units: list[str]
    beside: list[str]


def beside(unit: str) -> str:
    """The instance that runs beside another: ``a@1.service`` gives ``a@surge1.service``."""
    return re.sub(r"@(.+)\.service$", r"@surge\1.service", unit)


def turns(units: list[str], surge: dict[str, int], free_mb: int) -> list[Turn]:
    """Divide units into turns whose instances beside them fit into the free memory.

    :param units: to restart, in this order.
    :param surge: template to memory in MB; others are restarted without one beside them.
    :param free_mb: memory in MB.
    :returns: turns with each unit once; those that nothing can run beside come last, one by one.
    """
    sizes = {unit: surge.get(template_of(unit)) for unit in units}
    found: list[Turn] = []
    room = 0
    for unit in units:
        size = sizes[unit]
        if size is None or size > free_mb:
            continue
        if not found or size > room:
            found.append(Turn([], []))
            room = free_mb
        found[-1].units.append(unit)
        found[-1].beside.append(beside(unit))
        room -= size
    plain = [unit for unit in units if sizes[unit] is None]
    if plain:
        found.append(Turn(plain, []))
    alone = [unit for unit in units if (sizes[unit] or 0) > free_mb]
    return [*found, *(Turn([unit], []) for unit in alone)]


def exclusive(files: dict[str, str], units: Iterable[str]) -> set[str]:
    """Those of the units whose files claim what only one container of a host can have."""
    claiming = {
        os.path.basename(path).removesuffix(".container")
        for path, content in files.items()
        if EXCLUSIVE.search(content)
    }
    return {unit for unit in units if template_of(unit).removesuffix(".service") in claiming}


def yielding(
    sizes: dict[str, int], claiming: Collection[str], free_mb: int
) -> tuple[list[str], int]:
    """Divide units that are no longer declared.

    >>> yielding({"a@1.service": 300, "b@1.service": 200, "c@1.service": 50}, [], 260)
    (['a@1.service'], 10)

    :param sizes: unit to the memory in MB that it may use.
    :param claiming: those that have what others may need.
    :param free_mb: memory in MB that the plan leaves.
    :returns: those that stop before others start, the largest first, and the memory in MB that is
        free beside the rest.
    """
    first = sorted(unit for unit in sizes if unit in claiming)
    others = sorted(set(sizes) - set(first), key=lambda unit: (-sizes[unit], unit))
    while others and sum(sizes[unit] for unit in others) > free_mb:
        first.append(others.pop(0))
    return first, free_mb - sum(sizes[unit] for unit in others)
