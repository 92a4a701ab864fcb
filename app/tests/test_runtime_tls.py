"""The broker and the results by TLS: real certificates, a real Redis, real workers."""

import os

import pytest
from celery import Celery
from celery_metal_runtime import configure
from celery_metal_runtime.settings import UsageError
from runtime_lab import Producer, Redis, wait_until
from tls_lab import Authority

INSIDE = "lab_app.inside"


@pytest.fixture
def serve(authority, tmp_path):
    """Starts a Redis that speaks TLS, and has a certificate for an address."""
    servers = []

    def start_server(address="127.0.0.1"):
        tls = (authority.ca, authority.server(address))
        servers.append(Redis(tmp_path / f"redis-{len(servers)}", tls))
        return servers[-1]

    yield start_server
    for server in servers:
        server.stop()


def url_of(server):
    return server.tcp_url.replace("redis://", "rediss://")


def app_with(environ, **conf):
    app = Celery("shop", set_as_current=False)
    app.conf.update(conf)
    configure(app, environ)
    return app


@pytest.mark.versions
def test_each_pool_works_by_tls(start, serve, authority):
    server = serve()
    environ = server.environ(url_of(server)) | authority.environ()
    workers = [
        start(
            server=server,
            CELERY_METAL_POOL=pool,
            ADDRESS=f"@celery-metal-tls-{os.getpid()}-{pool}",
            **environ,
        )
        for pool in ("prefork", "threads", "gevent", "solo")
    ]
    producer = Producer(server)
    for worker in workers:
        assert len(producer.answers(worker.ready(), INSIDE, times=5)) == 5
        assert worker.stop() == 0
    assert server.refused() == []


@pytest.mark.versions
def test_idle_connections_are_checked_by_tls_too(serve, authority):
    server = serve()
    app = app_with(server.environ(url_of(server)) | authority.environ())
    with app.connection_for_read() as connection:
        client = connection.default_channel.client
        assert client.ping()
        made = client.connection_pool.make_connection()
    assert (made.socket_timeout, made.health_check_interval) == (15, 10)


@pytest.mark.versions
def test_a_lost_connection_is_made_again(start, serve, authority):
    server = serve()
    worker = start(server=server, **server.environ(url_of(server)), **authority.environ()).ready()
    server.stop()
    server.start()
    assert Producer(server).answers(worker, INSIDE)
    assert worker.process.poll() is None


@pytest.mark.parametrize("wrong", ["address", "authority", "nothing shown"])
def test_who_cannot_check_the_other_takes_no_task(start, serve, authority, tmp_path, wrong):
    server = serve("127.0.0.9" if wrong == "address" else "127.0.0.1")
    environ = server.environ(url_of(server)) | authority.environ()
    if wrong == "authority":
        environ["CELERY_METAL_TLS_CA_FILE"] = str(Authority(tmp_path / "other").ca)
    if wrong == "nothing shown":
        environ.pop("CELERY_METAL_TLS_CERTIFICATE_FILE")
    worker = start(server=server, **environ)
    Producer(server).post(worker, INSIDE)
    log, reason = {
        "address": (worker.log_file, "IP address mismatch"),
        "authority": (worker.log_file, "certificate verify failed"),
        "nothing shown": (server.log_file, "did not return a certificate"),
    }[wrong]
    wait_until(lambda: reason in log.read_text(), reason)
    assert worker.process.poll() is None
    assert server.client.llen(worker.queue) == 1


def test_certificates_belong_to_an_address_of_tls_and_to_no_other(redis, authority):
    own = {"ssl_cert_reqs": "none"}
    secure = redis.environ("rediss://worker@redis.invalid/0") | authority.environ()
    app = app_with(secure, broker_use_ssl=own, redis_backend_use_ssl=own, result_backend="redis://")
    wanted = {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": str(authority.ca),
        "ssl_certfile": str(authority.worker),
        "ssl_keyfile": str(authority.worker),
    }
    assert app.conf.broker_use_ssl == app.conf.redis_backend_use_ssl == wanted
    app = app_with(secure | {"CELERY_METAL_RESULT_BACKEND": redis.socket_url})
    assert app.conf.broker_use_ssl == wanted
    assert app.backend.client.ping()
    app = app_with(redis.environ(), broker_use_ssl=own, result_backend="db+sqlite://")
    with app.connection_for_write() as connection:
        assert connection.default_channel.client.ping()
    app = app_with({}, broker_use_ssl=own)
    assert app.conf.broker_use_ssl == own


@pytest.mark.parametrize("name", ["CELERY_METAL_TLS_CA_FILE", "CELERY_METAL_TLS_CERTIFICATE_FILE"])
def test_a_file_that_is_named_and_missing_is_said(redis, name):
    environ = redis.environ("rediss://worker@redis.invalid/0") | {name: "/nowhere/ca"}
    with pytest.raises(UsageError, match=f"{name}='/nowhere/ca' cannot be read: there is no such"):
        app_with(environ)
    # Nor one that holds something else.
    with pytest.raises(UsageError, match=f"{name}=.* holds no CERTIFICATE in PEM form"):
        app_with(environ | {name: str(redis.password_file)})
    # Where nothing is encrypted, nothing is read.
    app_with(redis.environ() | {name: "/nowhere/ca"})
