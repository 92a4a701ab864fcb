"""Programs outside the kit, as the tests of this scenario are: apps and connections."""

from urllib.parse import quote

import pytest
from celery import Celery
from programs import BROKER, PATIENCE, USERS
from redis import Redis


@pytest.fixture
def app_of(kit, lab, tmp_path):
    """An app outside the kit that has nothing but a user's URL, as docs/queues.md gives it."""
    apps = []

    def make(user, password="", tls=None):
        secret = quote(password or kit.password(BROKER, user), safe="")
        url = f"rediss://{user}:{secret}@{lab.address(BROKER)}:6379/0"
        app = Celery(user, broker=url, backend=url, set_as_current=False)
        tls = tls or kit.certificates(BROKER, tmp_path, user)
        app.conf.update(broker_use_ssl=tls, redis_backend_use_ssl=tls)
        if user == "monitor":
            app.conf.control_exchange = "celery-inspect"
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def client_of(kit, lab, tmp_path):
    """A connection as a user; with its password and certificate, or those that are given."""
    clients = []

    def make(user, password="", **tls):
        # The default user and a stranger have none.
        own = kit.certificates(BROKER, tmp_path, user if user in USERS else "producer")
        client = Redis(
            host=lab.address(BROKER),
            username=user,
            password=password or kit.password(BROKER, user),
            decode_responses=True,
            socket_timeout=PATIENCE,
            socket_connect_timeout=PATIENCE,
            ssl=True,
            **{**own, **tls},
        )
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()
