#!/usr/bin/python
"""Give Redis its users: passwords are made here, kept by Podman, and known to nobody else."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_users
short_description: Keep the passwords and the rights of Redis's users
description:
  - Each user has a password of its own, made once and kept as the Podman secret
    C(celery-redis-USER) with the labels C(version), a random mark that says nothing of it, and
    C(at), when it was made. What
    Redis loads at its start, rights and hashed passwords, is the secret C(celery-redis-acl).
  - The password of an app's user that is gone is removed.
  - A Redis that runs is told at once, and its Sentinel, so that nothing restarts. A user's earlier
    passwords stay valid until they are retired.
  - Each step leaves every password that is kept valid; a run that was cut is completed by the next.
options:
  rules:
    description: What each user may do; see C(files/users.acl) of the role redis.
    type: str
    default: ""
  more:
    description: User to rights that it has besides, in the words of Redis.
    type: dict
    default: {}
  mark:
    description: What changes when I(rules) or I(more) do; kept as the label C(rules).
    type: str
    default: ""
  renew:
    description: Users that get a new password.
    type: list
    elements: str
    default: []
  retire:
    description:
      - Users of whose passwords only the newest stays valid. Connections that were made with an
        earlier one end.
    type: list
    elements: str
    default: []
  adopt:
    description:
      - Instead, have the Redis and the Sentinel of this host log in to others with the passwords
        that are kept. All of them must know these by then.
    type: bool
    default: false
  earlier:
    description:
      - Instead, report the connections of these users that were made before their newest password,
        and so with an earlier one. Nothing is changed.
    type: list
    elements: str
    default: []
  taken:
    description:
      - Instead, what C(podman secret inspect --showsecret) has printed on the host that makes them,
        where several Redis have the same. Certificates are kept, too.
    type: str
    default: ""
  names:
    description: The secrets that are in I(taken).
    type: list
    elements: str
    default: []
author: celery-metal
"""

EXAMPLES = r"""
- name: Keep the users of Redis
  redis_users:
    rules: "{{ lookup('ansible.builtin.file', 'users.acl') }}"
    mark: "1"
  register: users
"""

RETURN = r"""
versions: {description: Each user to the mark of its password, type: dict, returned: always}
labels: {description: Each secret to its labels, type: dict, returned: always}
generation:
  description: What changes when Redis must be started anew to take the users
  type: str
  returned: always
connections:
  description: >-
    With I(earlier), for each user and address how many (C(count)), and since how many seconds
    (C(seconds)) the oldest; those first
  type: list
  returned: with earlier
diff: {description: Names of the secrets that are written or removed, type: dict, returned: always}
"""

import hashlib
import json
import re
import secrets as randomness
import string
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError, conclude, output
from ansible.module_utils.celery_redis import SECONDS, SOCKET, Client, RedisError
from ansible.module_utils.podman_store import Kept, keep, kept

PREFIX = "celery-redis-"
ACL = f"{PREFIX}acl"
KEEPER = "admin"
# As whom they log in to each other.
REPLICA, SENTINEL = "replica", "sentinel"
MASTER = "celery"
SENTINEL_SOCKET = "/run/celery-metal/sentinel/sentinel.sock"
LETTERS = string.ascii_letters + string.digits
# 62 letters, 40 of them: 238 bits, which nobody guesses from a hash.
LENGTH = 40
# Of a user of an app; certificates have such names, too.
APP_SECRET = re.compile(
    rf"{PREFIX}(?!certificate-)[a-z][a-z0-9]{{0,30}}-(?:worker|producer|monitor)", re.ASCII
)
#: Addresses in a report.
MOST = 100
# Of Redis's own, without a password.
NOBODY = "default"
CONSEQUENCE = (
    "Redis and all workers run on as they are, and every password that is kept is still valid."
)


def users_of(rules: str) -> dict[str, list[str]]:
    """Each user to its rights, a word or a ``(selector)`` each.

    >>> users_of("# who\\nuser a\\n  ~x +get\\n  (~y +set)\\nuser b +ping")
    {'a': ['~x', '+get', '(~y +set)'], 'b': ['+ping']}
    """
    text = re.sub(r"^\s*#.*$", "", rules, flags=re.M)
    found = {}
    for block in re.split(r"^user\s", text, flags=re.M)[1:]:
        name, *rights = words_of(block)
        found[name] = rights
    return found


def words_of(text: str) -> list[str]:
    """A user's rights one by one; a selector is one.

    >>> words_of("+ping\n  (~a   +get)")
    ['+ping', '(~a +get)']
    """
    return re.findall(r"\([^)]*\)|[^\s()]+", " ".join(text.split()))


def hashed(password: str) -> str:
    """As Redis keeps it."""
    return hashlib.sha256(password.encode()).hexdigest()


def hashes_of(acl: str) -> dict[str, list[str]]:
    """Each user to its hashed passwords in an ACL file, the newest first.

    >>> hashes_of("user default off\\nuser a on #12 #34 ~* +get\\n")
    {'default': [], 'a': ['12', '34']}
    """
    lines = (line.split() for line in acl.splitlines())
    return {
        words[1]: [word[1:] for word in words if word.startswith("#")]
        for words in lines
        if len(words) > 1
    }


def definition(rights: list[str], hashes: list[str]) -> list[str]:
    """The words that define a user: what it was before has no part in it."""
    return ["reset", "on", *(f"#{one}" for one in hashes), *rights]


def acl_file(users: dict[str, list[str]], hashes: dict[str, list[str]]) -> str:
    """What Redis loads when it starts; a user that is not named there cannot log in."""
    return "".join(
        f"user {name} {' '.join(definition(rights, hashes[name]))}\n"
        for name, rights in users.items()
    )


def reach(path: str) -> Client | None:
    """A connection to the Redis or the Sentinel of this host; None where none runs."""
    try:
        return Client(path, SECONDS)
    except (FileNotFoundError, ConnectionRefusedError):
        return None


def is_known(client: Client, keeper: Kept | None) -> bool:
    """Log in; False when that Redis has another keeper, or none.

    :raises HostError: when it does not answer.
    """
    try:
        client.ask(("AUTH", KEEPER, keeper.value if keeper else ""))
    except (OSError, RedisError) as problem:
        if str(problem).startswith("WRONGPASS"):
            return False
        raise HostError(unanswered(problem)) from None
    return True


def unanswered(problem: Exception) -> str:
    """What it means that a Redis that runs did not do as it was told."""
    return (
        f"Redis, or its Sentinel, runs and does not take its users: {problem}. {CONSEQUENCE} See "
        "'journalctl -u celery-redis -u celery-sentinel' there, then run again."
    )


def tell(
    client: Client, users: dict[str, list[str]], hashes: dict[str, list[str]], gone: list[str]
) -> None:
    """Have a Redis that runs take the users, all of them or none, and forget those that are gone.

    :raises HostError: when it refuses one, with Redis's word on why.
    """
    scratch = f"celery-metal-{randomness.token_hex(6)}"
    try:
        for name, rights in users.items():
            try:
                # Tried first on a user that nobody can be.
                client.ask(("ACL", "SETUSER", scratch, *definition(rights, []), "off"))
            except RedisError as problem:
                raise HostError(
                    f"Redis does not take the rights of its user {name}: {problem}. Mend "
                    f"redis_user_rules[{name}]. Nothing was changed in this step."
                ) from None
            finally:
                client.ask(("ACL", "DELUSER", scratch))
        for name, rights in users.items():
            client.ask(("ACL", "SETUSER", name, *definition(rights, hashes[name])))
        for name in gone:
            client.ask(("ACL", "DELUSER", name))
    except (OSError, RedisError) as problem:
        raise HostError(unanswered(problem)) from None


class Servers:
    """The Redis and the Sentinel of this host, as far as they run.

    :param keeper: the password by which they know us.
    """

    def __init__(self, keeper: Kept | None) -> None:
        running = [reach(SOCKET), reach(SENTINEL_SOCKET)]
        known = [client and is_known(client, keeper) for client in running]
        # One of them may have other users: only its start brings it ours.
        self.are_ours = all(known[place] for place, one in enumerate(running) if one)
        self.redis, self.sentinel = (
            client if knows_us else None for client, knows_us in zip(running, known, strict=True)
        )

    def tell(
        self, users: dict[str, list[str]], hashes: dict[str, list[str]], gone: list[str]
    ) -> None:
        """Have them take the users; a Sentinel gives each rights of its own."""
        if self.redis:
            tell(self.redis, users, hashes, gone)
        if self.sentinel:
            commands = [
                ("ACL", "SETUSER", name, "resetpass", *(f"#{one}" for one in hashes[name]))
                for name in self._users(self.sentinel)
                if name in users
            ]
            self._ask(self.sentinel, *commands)

    def end_connections(self, names: list[str]) -> None:
        """End the connections of these users but for this one; who may, comes again."""
        for client in filter(None, (self.redis, self.sentinel)):
            known = [name for name in names if name in self._users(client)]
            self._ask(client, *(("CLIENT", "KILL", "USER", one, "SKIPME", "yes") for one in known))

    def connections(self) -> list[dict[str, str]]:
        """Each connection to the Redis of this host, in the words of CLIENT LIST."""
        if not self.redis:
            return []
        (text,) = self._ask(self.redis, ("CLIENT", "LIST"))
        lines = str(text).splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def _users(self, client: Client) -> list[str]:
        """Those that it knows; a Sentinel has no user that replicates."""
        users: list[str] = self._ask(client, ("ACL", "USERS"))[0]
        return users

    def adopt(self, replica: str, sentinel: str) -> None:
        """Have them log in to others with these passwords."""
        if self.redis:
            self._ask(self.redis, ("CONFIG", "SET", "masterauth", replica))
        if self.sentinel:
            self._ask(
                self.sentinel,
                ("SENTINEL", "SET", MASTER, "auth-pass", sentinel),
                ("SENTINEL", "CONFIG", "SET", "sentinel-pass", sentinel),
            )

    @staticmethod
    def _ask(client: Client, *commands: tuple[str, ...]) -> list[Any]:
        try:
            return client.ask(*commands)
        except (OSError, RedisError) as problem:
            raise HostError(unanswered(problem)) from None


def password(before: Kept | None, *, renew: bool) -> tuple[Kept, bool]:
    """The password that is kept, or a new one; and whether it is new."""
    if before and not renew:
        return before, False
    value = "".join(randomness.choice(LETTERS) for _ in range(LENGTH))
    labels = {"version": randomness.token_hex(6), "at": str(int(time.time()))}
    return Kept(value, labels), True


def bring(module: AnsibleModule) -> dict[str, Any]:
    """Make what is missing or renewed; tell Redis, and keep it, in this order."""
    wanted, found = module.params, kept(PREFIX)
    users = users_of(wanted["rules"])
    for name, rights in wanted["more"].items():
        users[name] = users[name] + words_of(rights)
    acl = found.get(ACL)
    earlier = hashes_of(acl.value) if acl else {}
    passwords: dict[str, Kept] = {}
    hashes: dict[str, list[str]] = {NOBODY: []}
    for name in users.keys() - {NOBODY}:
        before = found.get(PREFIX + name)
        passwords[name], is_new = password(before, renew=name in wanted["renew"])
        # The one before stays valid, too: until the new one is written, it is what others get.
        known = [passwords[name].value, *([before.value] if before else [])]
        older = [] if name in wanted["retire"] and not is_new else earlier.get(name, [])
        hashes[name] = list(dict.fromkeys([*map(hashed, known), *older]))
    text = acl_file(users, hashes)
    is_changed = acl is None or (acl.value, acl.labels.get("rules")) != (text, wanted["mark"])
    servers = Servers(found.get(PREFIX + KEEPER)) if is_changed else None
    generation = acl.version if acl else ""
    if not generation or (servers and not servers.are_ours):
        generation = randomness.token_hex(6)
    labels = acl.labels if acl else {}
    if is_changed or labels.get("version") != generation:
        own = {"version": generation, "rules": wanted["mark"], "text": randomness.token_hex(6)}
        labels = own
    new = sorted(name for name in passwords if passwords[name] is not found.get(PREFIX + name))
    gone = sorted(
        name
        for name in found
        if APP_SECRET.fullmatch(name) and name.removeprefix(PREFIX) not in users
    )
    if is_changed and not module.check_mode:
        if servers:
            servers.tell(users, hashes, sorted(earlier.keys() - users.keys()))
        keep(ACL, text, CONSEQUENCE, **labels)
        for name in new:
            keep(PREFIX + name, passwords[name].value, CONSEQUENCE, **passwords[name].labels)
        if servers:
            servers.end_connections(wanted["retire"])
    if gone and not module.check_mode:
        output("podman", "secret", "rm", *gone)
    written = ([ACL] if is_changed else []) + [PREFIX + name for name in new]
    return {
        "changed": bool(written or gone),
        "versions": {name: one.version for name, one in passwords.items()},
        "generation": generation,
        "labels": {ACL: labels, **{PREFIX + name: one.labels for name, one in passwords.items()}},
        "diff": {
            "prepared": "".join(f"keep secret {name}\n" for name in written)
            + "".join(f"remove secret {name}\n" for name in gone)
        },
    }


def take(module: AnsibleModule) -> dict[str, Any]:
    """Keep what another host has made, and tell a Redis that runs."""
    names, found = module.params["names"], kept(PREFIX)
    if not module.check_mode:
        given = {
            one["Spec"]["Name"]: Kept(one["SecretData"], one["Spec"]["Labels"])
            for one in json.loads(module.params["taken"])
        }
        if odd := sorted(given.keys() - {*names}):
            # That host may be compromised, and must not choose what this one keeps.
            raise HostError(
                f"the host that makes passwords gives the secret {odd[0][:60]!a}, and was asked "
                f"for {', '.join(names)}. Nothing was changed. Find out what runs there."
            )
        if ACL in given:
            users = rights_of(given[ACL].value)
            earlier = hashes_of(found[ACL].value) if ACL in found else {}
            servers = Servers(found.get(PREFIX + KEEPER))
            gone = sorted(earlier.keys() - users.keys())
            servers.tell(users, hashes_of(given[ACL].value), gone)
            servers.end_connections(module.params["retire"])
        for name, one in given.items():
            keep(name, one.value, CONSEQUENCE, **one.labels)
    prepared = "".join(f"keep secret {name}\n" for name in names)
    return {"changed": bool(names), "diff": {"prepared": prepared}}


def rights_of(acl: str) -> dict[str, list[str]]:
    """Each user to its rights in an ACL file as `acl_file` writes it.

    >>> rights_of("user a reset on #12 #34 ~x (~y +set)\n")
    {'a': ['~x', '(~y +set)']}
    """
    return {
        name: [word for word in rights if word not in ("reset", "on") and word[0] != "#"]
        for name, *rights in (words_of(line)[1:] for line in acl.splitlines() if line)
    }


def adopt(module: AnsibleModule) -> dict[str, Any]:
    """Have what runs here use the passwords that are kept."""
    found = kept(PREFIX)
    if not module.check_mode:
        own = [found[PREFIX + name].value for name in (REPLICA, SENTINEL)]
        Servers(found.get(PREFIX + KEEPER)).adopt(*own)
    return {"changed": True, "diff": {"prepared": "log in to others with what is kept\n"}}


def earlier(module: AnsibleModule) -> dict[str, Any]:
    """Which connections were made before the newest password of their user."""
    found, now = kept(PREFIX), time.time()
    made = {
        name: int(found[PREFIX + name].labels["at"])
        for name in module.params["earlier"]
        # One that an earlier version of this module has made has no date.
        if PREFIX + name in found and found[PREFIX + name].labels.get("at", "").isdecimal()
    }
    ages: dict[tuple[str, str], list[int]] = {}
    for one in Servers(found.get(PREFIX + KEEPER)).connections() if made else ():
        user, age = one.get("user", ""), int(one.get("age", 0))
        if user in made and age > now - made[user]:
            # Of a Unix socket it is its path.
            ages.setdefault((user, one.get("addr", "").rpartition(":")[0]), []).append(age)
    rows = [
        {"user": user, "address": address, "count": len(some), "seconds": max(some)}
        for (user, address), some in sorted(ages.items(), key=lambda one: -max(one[1]))
    ]
    return {"changed": False, "connections": rows[:MOST], "diff": {"prepared": ""}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "rules": {"type": "str", "default": ""},
            "more": {"type": "dict", "default": {}},
            "mark": {"type": "str", "default": ""},
            "adopt": {"type": "bool", "default": False},
            "earlier": {"type": "list", "elements": "str", "default": []},
            "taken": {"type": "str", "default": "", "no_log": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "renew": {"type": "list", "elements": "str", "default": []},
            "retire": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    work = adopt if module.params["adopt"] else take if module.params["names"] else bring
    if module.params["earlier"]:
        work = earlier
    conclude(module, lambda: work(module), changes=work is not earlier)


if __name__ == "__main__":
    main()
