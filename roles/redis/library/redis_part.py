#!/usr/bin/python
"""Have hosts that are to be no part of Redis any more neither vote nor follow."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_part
short_description: Leave hosts out of those that elect a primary
description:
  - A host that was taken out of the inventory runs on. While the others change one by one, its
    Redis could be elected, and what it then takes would be lost; and its Sentinel would still count
    when a majority is asked for.
  - So its Redis is first made one that nobody elects, and when all Sentinels know this, one that
    cannot log in to the primary; its Sentinel forgets all others. That lasts until it starts again,
    by when the others do not let it in, or until C(playbooks/remove.yml) removes it.
  - A host that cannot be reached has no part in an election.
options:
  addresses:
    description: Addresses of the hosts that leave.
    type: list
    elements: str
    required: true
  members:
    description: Addresses of those that stay.
    type: list
    elements: str
    required: true
  port:
    description: Port of Redis.
    type: int
    required: true
  sentinel_port:
    description: Port of the Sentinels.
    type: int
    required: true
  tls:
    description: Whether they speak TLS.
    type: bool
    required: true
author: celery-metal
"""

EXAMPLES = r"""
- name: Leave a host out
  redis_part:
    addresses: [10.0.0.8]
    members: [10.0.0.5, 10.0.0.6, 10.0.0.7]
    port: 6379
    sentinel_port: 26379
    tls: true
"""

RETURN = r"""
left: {description: Addresses of those that ran, and were told, type: list, returned: always}
diff: {description: The same in words, type: dict, returned: always}
"""

import secrets as randomness
import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError, conclude
from ansible.module_utils.celery_redis import SECONDS, Client, RedisError, tls_context
from ansible.module_utils.podman_store import kept

MASTER = "celery"
# A Sentinel looks at each replica every 10 seconds.
PATIENCE_SECONDS = 30.0


class Network:
    """The way to the other hosts, as admin.

    :param password: admin's, the same on all.
    """

    def __init__(self, params: Mapping[str, Any], password: str, tls: ssl.SSLContext | None):
        self.params, self.tls = params, tls
        self.login = ("AUTH", "admin", password)

    def ask(self, address: str, port: str, *commands: tuple[str, ...]) -> list[Any] | None:
        """The answers, an error of Redis's in the place of one; None when it cannot be reached.

        :param port: the name of the option with the port.
        :raises RedisError: when it does not let us in.
        """
        try:
            with closing(Client((address, self.params[port]), SECONDS, self.tls)) as client:
                client.ask(self.login)
                return client.try_all(*commands)
        except OSError:
            return None


def others(answer: Any) -> list[dict[str, str]]:
    """What a Sentinel knows of several, as it lists them.

    >>> others([["ip", "10.0.0.8", "slave-priority", "0"]])
    [{'ip': '10.0.0.8', 'slave-priority': '0'}]
    """
    return [dict(zip(one[::2], one[1::2], strict=True)) for one in answer]


def electable(network: Network, address: str) -> list[str]:
    """The Sentinels of those that stay that would still elect a host."""
    found = []
    for member in network.params["members"]:
        answers = network.ask(member, "sentinel_port", ("SENTINEL", "REPLICAS", MASTER))
        if not answers or isinstance(answers[0], RedisError):
            continue  # it does not run, or watches nothing yet
        known = [one for one in others(answers[0]) if one["ip"] == address]
        if any(one["slave-priority"] != "0" for one in known):
            found.append(member)
    return found


def part(network: Network, address: str) -> bool:
    """Leave out one host; whether it ran.

    :raises RedisError: when it does not do as it is told.
    :raises HostError: when it is the primary, or others do not take note.
    """
    answers = network.ask(address, "port", ("ROLE",), ("CONFIG", "SET", "replica-priority", "0"))
    if answers is not None:
        _check(answers)
        if answers[0][0] == "master":
            raise HostError(
                f"{address} was to be taken off, and has become the primary of Redis by now. "
                "Nothing was changed in this step. Run again: the beginning says what to do."
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while waiting := electable(network, address):
            if time.monotonic() > deadline:
                raise HostError(
                    f"The Sentinels of {', '.join(waiting)} would still elect {address}, which is "
                    f"to be taken off: they do not say otherwise within {PATIENCE_SECONDS:.0f} s. "
                    "See 'journalctl -u celery-sentinel' there, then run again."
                )
            time.sleep(0.2)
        # It cannot come again, whoever tells it to follow.
        nobody = randomness.token_hex(16)
        own = network.ask(
            address,
            "port",
            ("CONFIG", "SET", "masterauth", nobody),
            ("CLIENT", "KILL", "TYPE", "master"),
        )
        _check(own or [])
    forgotten = network.ask(address, "sentinel_port", ("SENTINEL", "REMOVE", MASTER))
    for one in forgotten or []:
        if isinstance(one, RedisError) and "No such master" not in str(one):
            raise one
    return answers is not None or forgotten is not None


def _check(answers: list[Any]) -> None:
    for one in answers:
        if isinstance(one, RedisError):
            raise one


def work(module: AnsibleModule) -> dict[str, Any]:
    """Leave out all that leave."""
    params = module.params
    found = {name: one.value for name, one in kept("celery-redis-").items()}
    left = list(params["addresses"])
    if not module.check_mode:
        tls = None
        if params["tls"]:
            own = found["celery-redis-certificate-server"]
            tls = tls_context(found["celery-redis-ca"], own, "/run")
        network, left = Network(params, found["celery-redis-admin"], tls), []
        for address in params["addresses"]:
            try:
                if part(network, address):
                    left.append(address)
            except RedisError as problem:
                raise HostError(
                    f"{address} is to be taken off, and does not do as it is told: {problem}. Stop "
                    "celery-redis and celery-sentinel there, or run playbooks/remove.yml for that "
                    "host; then run again. Nothing was changed in this step."
                ) from None
    lines = "".join(f"{address} neither votes nor follows\n" for address in left)
    return {"changed": bool(left), "left": left, "diff": {"prepared": lines}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "addresses": {"type": "list", "elements": "str", "required": True},
            "members": {"type": "list", "elements": "str", "required": True},
            "port": {"type": "int", "required": True},
            "sentinel_port": {"type": "int", "required": True},
            "tls": {"type": "bool", "required": True},
        },
        supports_check_mode=True,
    )
    conclude(module, lambda: work(module), changes=True)


if __name__ == "__main__":
    main()
