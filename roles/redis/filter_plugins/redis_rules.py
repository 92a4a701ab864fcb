"""The elements of the sets of nftables that hold whom Redis admits."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any


def elements(
    clients: Mapping[str, Iterable[str]], others: Iterable[str], version: int
) -> dict[str, list[str]]:
    """Each network that is admitted, in order, and whose it is.

    >>> elements({"web1": ["10.0.0.7"]}, ["10.1.0.0/16", "fd00::7"], 4)
    {'10.0.0.7': ['web1'], '10.1.0.0/16': ['redis_allowed_sources']}

    :param clients: host to its addresses.
    :param others: addresses and networks of the variable ``redis_allowed_sources``.
    :param version: 4 or 6.
    """
    found: dict[Any, list[str]] = {}
    for host, addresses in clients.items():
        for address in addresses:
            found.setdefault(ipaddress.ip_network(address), []).append(host)
    for source in others:
        found.setdefault(ipaddress.ip_network(source), []).append("redis_allowed_sources")
    return {
        network.compressed.removesuffix(f"/{network.max_prefixlen}"): sorted(set(found[network]))
        for network in sorted(one for one in found if one.version == version)
    }


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"redis_elements": elements}
