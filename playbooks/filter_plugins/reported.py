"""What one host says of itself, before it is used on another or on the controller.

A host may be compromised. So what its modules return is an address, a mark or a name of a secret,
as the inventory leads to expect, or the run ends.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Labels of secrets: hashes, numbers, times, names of hosts. They stand in units of other hosts.
LABEL = re.compile(r"[A-Za-z0-9 ,._:+/=@*-]{0,4096}")
SECRET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
PUBLIC_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68} celery-metal [A-Za-z0-9.-]{1,64}")
UNMADE = "ssh-ed25519 (made by a run without --check)"
SHOWN = 60


class ReportedError(ValueError):
    """A host reports what it cannot be: which host, what, the value, and the remedy."""


def refusal(host: str, variable: str, value: Any, why: str, remedy: str) -> ReportedError:
    """The error for a value that a host reports.

    >>> print(refusal("web1", "source", "0.0.0.0/0", "is no address", "look at it"))
    host web1: it reports source "0.0.0.0/0", which is no address.
      Fix: look at it. Nothing was changed.
    """
    text = str(value)
    shown = text if text.isascii() and text.isprintable() else ascii(text)[1:-1]
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
    return ReportedError(
        f'host {host}: it reports {variable} "{shown}", which {why}.\n'
        f"  Fix: {remedy}. Nothing was changed."
    )


def shown(value: Any, length: int = SHOWN) -> str:
    """A text for a terminal: one line, without control characters, and not long.

    >>> shown("\\x1b[2Jbusy\\n4")
    '?[2Jbusy 4'
    """
    text = str(value[: length + 1] if isinstance(value, str) else value)[: length + 1]
    line = "".join(one if one.isprintable() else " " if one.isspace() else "?" for one in text)
    return line if len(line) <= length else f"{line[:length]}..."


def address(host: str, variable: str, value: Any, remedy: str = "", *, local: bool = False) -> str:
    """A single address that packets can come from, as a host reports it.

    :param local: it may be the host's own loopback.
    :raises ReportedError: when it is anything else.
    """
    remedy = remedy or f"find out what runs on {host}; a host that is not compromised reports one"
    try:
        # No number, and none with an interface behind it.
        found = ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise refusal(host, variable, value, "is no single address", remedy) from None
    inner = getattr(found, "ipv4_mapped", None) or found
    if getattr(found, "scope_id", None):
        raise refusal(host, variable, value, "is no single address", remedy)
    is_usable = local if inner.is_loopback else not inner.is_reserved
    if inner.is_unspecified or inner.is_multicast or not is_usable:
        raise refusal(host, variable, value, "is the address of no single host", remedy)
    return str(value)


def source(
    hosts: Mapping[str, Mapping[str, Any]], host: str, value: Any, redis: str, known: Iterable[str]
) -> str:
    """The address from which a host says that it reaches Redis, when it may be its own.

    :param hosts: Ansible's hostvars.
    :param redis: the address of Redis.
    :param known: all hosts that the inventory has addresses of.
    :raises ReportedError: when it is none, that of another host, or a public one toward a private.
    """
    remedy = f"write redis_client_addresses for {host}, or find out what runs there"
    found = address(host, "source", value, remedy)
    own = str(hosts[host].get("ansible_host", host))
    if found == own:
        return found
    others = {str(hosts[one].get("ansible_host", one)): one for one in known if one != host}
    if found in others:
        raise refusal(host, "source", value, f"is the address of {others[found]}", remedy)
    if _is_private(redis) and not _is_private(found):
        why = f"is a public address, while Redis at {redis} is private"
        raise refusal(host, "source", value, why, remedy)
    return found


def _is_private(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_global
    except ValueError:
        return False  # a name


def addresses(host: str, variable: str, values: Any, *, local: bool = False) -> list[str]:
    """Some of them.

    :raises ReportedError: when it is no list of addresses, or there are more than 64.
    """
    if not isinstance(values, (list, tuple)) or len(values) > 64:
        remedy = f"find out what runs on {host}"
        raise refusal(host, variable, values, "is no list of addresses", remedy)
    return [address(host, variable, value, local=local) for value in values]


def labels(host: str, secrets: Any) -> dict[str, dict[str, str]]:
    """Secret to its labels, which stand in units of other hosts.

    :raises ReportedError: when one has anything else in it.
    """
    remedy = f"'podman secret inspect' on {host} shows them; find out what runs there"
    if not isinstance(secrets, Mapping):
        raise refusal(host, "secrets", secrets, "is no list of secrets", remedy)
    for name, own in secrets.items():
        if not isinstance(name, str) or not SECRET.fullmatch(name):
            raise refusal(host, "a secret's name", name, "Podman gives no secret", remedy)
        for label, value in own.items() if isinstance(own, Mapping) else [("", own)]:
            if not isinstance(value, str) or not LABEL.fullmatch(value):
                what = f"the label {label!a:.40} of {name}"
                raise refusal(host, what, value, "has characters that no label of ours has", remedy)
    return dict(secrets)


def public_key(text: Any, host: str) -> str:
    """The key for shipping, on one line: it stands in authorized_keys of another host.

    :raises ReportedError: when it is anything else.
    """
    if text != UNMADE and not (isinstance(text, str) and PUBLIC_KEY.fullmatch(text)):
        remedy = f"remove /etc/celery-metal/ship on {host}, and find out what runs there"
        raise refusal(host, "public_key", text, "is no key of ssh-ed25519", remedy)
    return str(text)


def problems(
    hosts: Mapping[str, Mapping[str, Any]], redis: Sequence[str], played: Iterable[str]
) -> str:
    """What hosts of a run report that they cannot; for a check before anything is changed."""
    found = []
    for host in played:
        for variable in ("podman_host_state", "site_broker_state"):
            said = hosts[host].get(variable) or {}
            # With --limit the host of Redis was looked at for another.
            whose = host if variable == "podman_host_state" or not redis else redis[0]
            try:
                if said.get("source"):
                    address(whose, "source", said["source"])
                if said.get("primary"):
                    address(whose, "primary", said["primary"])
                addresses(whose, "members", said.get("members") or [])
                labels(whose, said.get("secrets") or {})
            except ReportedError as refused:
                found.append(str(refused))
    return "\n".join(dict.fromkeys(found))


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {"reported_problems": problems, "reported_public_key": public_key}
