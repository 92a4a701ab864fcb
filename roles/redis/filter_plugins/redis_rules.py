"""Rules made from variables: hosts that the firewall admits, and keys that users of Redis reach."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
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


def addresses(
    clients: Mapping[str, Iterable[str]], others: Iterable[str], own: Iterable[str]
) -> list[str]:
    """Return what systemd shall pass to and from Redis, in order.

    >>> addresses({"web1": ["10.0.0.7"]}, ["fd00::/64"], ["10.0.0.5", "redis.example", ""])
    ['10.0.0.5', '10.0.0.7', 'fd00::/64']

    :param clients: host to its addresses.
    :param others: addresses and networks of the variable ``redis_allowed_sources``.
    :param own: addresses and names by which Redis is reached; names are left out.
    """
    literal = [one for one in own if _is_address(one)]
    return [one for version in (4, 6) for one in elements(clients, [*others, *literal], version)]


def own_addresses(names: Iterable[str], address: str, default: str) -> list[str]:
    """By what Redis is reached, with an address of its host where it has none but a name.

    >>> own_addresses(["10.0.0.5"], "10.0.0.5", "10.9.0.5")
    ['10.0.0.5']
    >>> own_addresses(["redis.example"], "redis.example", "10.0.0.5")
    ['redis.example', '10.0.0.5']

    :param address: the variable ``redis_address``.
    :param default: the address of the host's default route, which another network may take.
    """
    return [*names, *([] if _is_address(address) else [default])]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# Keys of Celery, kombu and the runtime begin with one of these. Queues do not.
RESERVED = ("_kombu.", "celery-metal.", "celery-task-meta-", "celery-taskset-meta-", "unacked")
# In users.acl, each word with one of these becomes several.
QUEUES, PREFIX = "<queues>", "<prefix>"
# An app of its own can have these.
APP_USERS = ("worker", "producer", "monitor")
# What follows _kombu.binding in the keys of all exchanges but those of replies to remote control.
EXCHANGES, REPLY_EXCHANGES = "<exchanges>", ".reply.celery"
# Selectors after these: for users that may control workers, and for those that hear replies.
CONTROL, REPLIES = "<control>", "<replies>"


def complement(words: Iterable[str]) -> list[str]:
    """Return patterns of Redis that together match each key that begins with none of `words`.

    Redis has no pattern that excludes. These are one class of characters for each place where a
    key can differ from a word, and the keys that end before they can.

    >>> complement(["ab", "ac"])
    ['[^a]*', 'a[^bc]*', 'a']
    """
    words = list(words)
    found = []
    for start in sorted({word[:length] for word in words for length in range(len(word))}):
        if start.startswith(tuple(words)):
            continue
        # Sorted, a hyphen comes first, where it makes no range.
        following = sorted({word[len(start)] for word in words if word.startswith(start)})
        found += [f"{start}[^{''.join(following)}]*", *([start] if start else [])]
    return found


def user_rules(
    rules: str,
    prefixes: Iterable[str],
    control: Iterable[str],
    apps: Mapping[str, str] = MappingProxyType({}),
    replies: bool = False,
) -> str:
    """Return the text of users.acl with its queues and prefixes written out.

    :param prefixes: what apps set as ``global_keyprefix``.
    :param control: users that may control workers.
    :param apps: name to ``global_keyprefix``, of apps with users of their own.
    :param replies: whether each user that may control workers hears their replies.
    """
    # Ansible's lookup of a file leaves out the newline at its end.
    rules = _controlled("\n".join([rules, *_app_rules(rules, apps)]), {*control}, replies=replies)
    # Celery adds an underscore for the keys of results, unless it finds one of the others.
    every = _forms(prefixes)
    # A producer of all has no reserved key of an app's either.
    queues = complement(
        one + word for one in _forms([*prefixes, *apps.values()]) for word in RESERVED
    )
    for mark, values in ((QUEUES, queues), (PREFIX, every)):
        for word in set(re.findall(rf"(?:%[RW]+)?[~&]{mark}[^\s)]*", rules)):
            rules = rules.replace(word, " ".join(word.replace(mark, one) for one in values))
    exchanges = complement([REPLY_EXCHANGES])
    return re.sub(
        rf"([^\s(]+){EXCHANGES}", lambda mark: " ".join(mark[1] + one for one in exchanges), rules
    )


def _forms(prefixes: Iterable[str]) -> list[str]:
    """What keys of apps begin with; those of an app without a prefix with nothing."""
    return list(dict.fromkeys(["", *(form for one in prefixes for form in (one, f"{one}_"))]))


def app_users(apps: Iterable[str]) -> list[str]:
    """The users of apps that have users of their own.

    >>> app_users(["shop"])
    ['shop-worker', 'shop-producer', 'shop-monitor']
    """
    return [f"{app}-{user}" for app in apps for user in APP_USERS]


def _app_rules(rules: str, apps: Mapping[str, str]) -> list[str]:
    """The rules of the users of each app: those of users.acl, under the app's prefix."""
    blocks = {name: text for name, text in _blocks(rules) if name in APP_USERS}
    # Celery before 5.5 adds an underscore for the keys of results.
    queues = complement(form + word for form in ("", "_") for word in RESERVED)
    found = []
    for app, prefix in apps.items():
        for name, text in blocks.items():
            words = text.replace(f"~{QUEUES}", f"~{prefix}{QUEUES}").replace(PREFIX, prefix)
            # A star in front is for any prefix.
            words = re.sub(r"([~&])\*(?=[^\s)])", rf"\g<1>{prefix}", words)
            words = re.sub(r"([~&])\*", rf"\g<1>{prefix}*", words)
            words = re.sub(rf"([~&]{prefix})(celery-task(?:set)?-meta-\*)", r"\1\2 \1_\2", words)
            words = re.sub(
                rf"(\S+){QUEUES}", lambda mark: " ".join(mark[1] + one for one in queues), words
            )
            if name == "worker":
                words += f"  {' '.join(_subscribed(prefix))}\n"
            found.append(words.replace(f"user {name}", f"user {app}-{name}", 1))
    return found


def _subscribed(prefix: str) -> list[str]:
    """Channels of workers; patterns that are subscribed to must be allowed letter by letter."""
    return [
        f"&{prefix}/{database}.{channel}"
        for database in (*range(16), "{db}")
        for channel in ("celery.pidbox", "celery-inspect.pidbox", "celeryev/worker.*")
    ]


def _blocks(rules: str) -> list[tuple[str, str]]:
    """Each user and its part of users.acl, without comments."""
    text = re.sub(r"^\s*#.*\n", "", rules, flags=re.M)
    parts = re.split(r"^(?=user )", text, flags=re.M)
    return [(one.split(maxsplit=2)[1], one) for one in parts if one.strip()]


def _controlled(rules: str, control: set[str], *, replies: bool) -> str:
    """The rules without the selectors of control, and of replies to it, of all other users."""
    blocks = []
    for text in re.split(r"^(?=user )", rules, flags=re.M):
        user, block = re.match(r"user (\S+)", text), text
        may_control = user is not None and user[1].rpartition("-")[2] in control
        for mark, is_granted in ((CONTROL, may_control), (REPLIES, may_control and replies)):
            kept = r"\1" if is_granted else ""
            block = re.sub(rf"{mark} (\([^)]*\))", kept, block)
        blocks.append(block)
    return "".join(blocks)


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "redis_addresses": addresses,
            "redis_app_users": app_users,
            "redis_elements": elements,
            "redis_own_addresses": own_addresses,
            "redis_user_rules": user_rules,
        }
