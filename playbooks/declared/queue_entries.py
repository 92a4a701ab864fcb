"""The entries of celery_queues, as an inventory has them: they may be wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def entries(
    hosts: Mapping[str, Mapping[str, Any]], celery: Sequence[str]
) -> Iterator[Mapping[str, Any]]:
    """Each entry with a name, of all hosts; what is none is refused by others.

    :param hosts: Ansible's hostvars.
    :param celery: the hosts that are to run workers.
    """
    for queues in [hosts[host].get("celery_queues") for host in celery]:
        for one in queues if isinstance(queues, list) else ():
            if isinstance(one, Mapping) and "name" in one:
                yield one


def consumed(entry: Mapping[str, Any]) -> list[str]:
    """The queues in Redis that workers of an entry consume.

    >>> consumed({"name": "a"}), consumed({"name": "a", "queues": ["b", "c"]})
    (['a'], ['b', 'c'])
    """
    return [str(name) for name in entry.get("queues") or [entry["name"]]]
