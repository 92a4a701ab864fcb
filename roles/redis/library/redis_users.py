#!/usr/bin/python
"""Give Redis its users: passwords are made here, kept by Podman, and known to nobody else."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_users
short_description: Keep the passwords and the rights of Redis's users
description:
  - Each user has a password of its own, made once and kept as the Podman secret
    C(celery-redis-USER) with the label C(version), a random mark that says nothing of it. What
    Redis loads at its start, rights and hashed passwords, is the secret C(celery-redis-acl).
  - A Redis that runs is told at once, so that nothing restarts. A user's earlier passwords stay
    valid until they are retired.
  - Each step leaves every password that is kept valid; a run that was cut is completed by the next.
options:
  rules:
    description: What each user may do; see C(files/users.acl) of the role redis.
    type: str
    required: true
  more:
    description: User to rights that it has besides, in the words of Redis.
    type: dict
    default: {}
  mark:
    description: What changes when I(rules) or I(more) do; kept as the label C(rules).
    type: str
    required: true
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
generation:
  description: What changes when Redis must be started anew to take the users
  type: str
  returned: always
diff: {description: Names of the secrets that are written, type: dict, returned: always}
"""

import hashlib
import re
import secrets as randomness
import string
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError, conclude
from ansible.module_utils.celery_redis import SECONDS, SOCKET, Client, RedisError
from ansible.module_utils.podman_store import Kept, keep, kept

PREFIX = "celery-redis-"
ACL = f"{PREFIX}acl"
KEEPER = "admin"
LETTERS = string.ascii_letters + string.digits
# 62 letters, 40 of them: 238 bits, which nobody guesses from a hash.
LENGTH = 40
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


def reach() -> Client | None:
    """A connection to the Redis of this host; None where none runs."""
    try:
        return Client(SOCKET, SECONDS)
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
        f"Redis runs and does not take its users: {problem}. {CONSEQUENCE} See 'journalctl -u "
        "celery-redis' there, then run again."
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


def password(before: Kept | None, *, renew: bool) -> tuple[Kept, bool]:
    """The password that is kept, or a new one; and whether it is new."""
    if before and not renew:
        return before, False
    value = "".join(randomness.choice(LETTERS) for _ in range(LENGTH))
    return Kept(value, {"version": randomness.token_hex(6)}), True


def bring(module: AnsibleModule) -> dict[str, Any]:
    """Make what is missing or renewed; tell Redis, and keep it, in this order."""
    wanted, found = module.params, kept(PREFIX)
    users = users_of(wanted["rules"])
    for name, rights in wanted["more"].items():
        users[name] = users[name] + words_of(rights)
    acl = found.get(ACL)
    earlier = hashes_of(acl.value) if acl else {}
    passwords, hashes = {}, {NOBODY: []}
    for name in users.keys() - {NOBODY}:
        before = found.get(PREFIX + name)
        passwords[name], is_new = password(before, renew=name in wanted["renew"])
        # The one before stays valid, too: until the new one is written, it is what others get.
        known = [passwords[name].value, *([before.value] if before else [])]
        older = [] if name in wanted["retire"] and not is_new else earlier.get(name, [])
        hashes[name] = list(dict.fromkeys([*map(hashed, known), *older]))
    text = acl_file(users, hashes)
    is_changed = acl is None or (acl.value, acl.labels.get("rules")) != (text, wanted["mark"])
    client = reach() if is_changed else None
    knows_us = client is not None and is_known(client, found.get(PREFIX + KEEPER))
    generation = acl.version if acl else ""
    if not generation or (client and not knows_us):
        generation = randomness.token_hex(6)
    new = sorted(name for name in passwords if passwords[name] is not found.get(PREFIX + name))
    if is_changed and not module.check_mode:
        if knows_us:
            tell(client, users, hashes, sorted(earlier.keys() - users.keys()))
        keep(ACL, text, CONSEQUENCE, version=generation, rules=wanted["mark"])
        for name in new:
            keep(PREFIX + name, passwords[name].value, CONSEQUENCE, **passwords[name].labels)
        if knows_us:
            end_connections(client, wanted["retire"])
    written = ([ACL] if is_changed else []) + [PREFIX + name for name in new]
    return {
        "changed": bool(written),
        "versions": {name: one.version for name, one in passwords.items()},
        "generation": generation,
        "diff": {"prepared": "".join(f"keep secret {name}\n" for name in written)},
    }


def end_connections(client: Client, names: list[str]) -> None:
    """End the connections of these users but for this one; who may, comes again."""
    try:
        for name in names:
            client.ask(("CLIENT", "KILL", "USER", name, "SKIPME", "yes"))
    except (OSError, RedisError) as problem:
        raise HostError(unanswered(problem)) from None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "rules": {"type": "str", "required": True},
            "more": {"type": "dict", "default": {}},
            "mark": {"type": "str", "required": True},
            "renew": {"type": "list", "elements": "str", "default": []},
            "retire": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    conclude(module, lambda: bring(module), changes=True)


if __name__ == "__main__":
    main()
