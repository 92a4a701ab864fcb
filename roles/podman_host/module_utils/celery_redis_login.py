"""Connections to Redis with the passwords that Podman keeps on this host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ansible.module_utils.celery_redis import (
    SECONDS,
    SOCKET,
    Client,
    RedisError,
    primary_of,
    tls_context,
)
from ansible.module_utils.podman_store import kept

if TYPE_CHECKING:
    from celery_metal_types import Endpoint


def client_of(user: str) -> Client:
    """A connection as one of the kit's users; the password stays in this process.

    :raises RedisError: when there is no password, or Redis does not take it.
    :raises OSError: when Redis does not run.
    """
    name = f"celery-redis-{user}"
    found = kept(name).get(name)
    if found is None:
        raise RedisError(f"Podman has no secret {name} there; site.yml makes it")
    client = Client(SOCKET, SECONDS)
    client.ask(("AUTH", user, found.value))
    return client


def client_at(endpoint: Endpoint, directory: str) -> Client:
    """A connection over the network, as the workers of this host have it.

    :param endpoint: ``host``, ``port``, ``tls`` and ``user``; or ``sentinels``, ``sentinel_auth``
        and ``master_name`` in the place of the first two.
    :param directory: as for tls_context.
    :raises RedisError: when Redis does not take the password.
    :raises OSError: when it cannot be reached, or is not trusted.
    """
    found = kept("celery-redis-")

    def secret(name: str) -> str:
        return found[name].value if name in found else ""

    certificate = secret("celery-redis-certificate-worker")
    tls = (
        tls_context(secret("celery-redis-ca"), certificate, directory) if endpoint["tls"] else None
    )
    user, password = endpoint["user"], secret("celery-redis-worker")
    login = (*([user] if user else []), password) if user or password else ()
    where = (endpoint["host"], int(endpoint["port"]))
    if endpoint.get("sentinels"):
        entry = login if endpoint["sentinel_auth"] else ()
        where = primary_of(endpoint["sentinels"], endpoint["master_name"], entry, tls).where
    client = Client(where, SECONDS, tls)
    if login:
        client.ask(("AUTH", *login))
    return client
