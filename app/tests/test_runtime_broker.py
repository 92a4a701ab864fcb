"""Addresses and defaults, as kombu, Celery's Redis backend and redis-py understand them."""

import gc
from inspect import signature
from threading import Thread
from uuid import uuid4

import pytest
from celery import Celery
from celery_metal_runtime import configure
from celery_metal_runtime.settings import UsageError
from redis import exceptions
from redis.client import PubSub
from redis.connection import Connection as RedisConnection
from runtime_lab import PASSWORD, PATIENCE, shows_no_password

pytestmark = pytest.mark.versions


def app_with(**settings):
    app = Celery("user", set_as_current=False)
    app.conf.update(settings)
    return app


@pytest.fixture(params=["socket_url", "tcp_url"])
def environ(request, redis):
    return redis.environ(getattr(redis, request.param))


def test_broker_and_results_log_in_and_use_the_timeouts(environ):
    app = app_with(result_backend="redis://elsewhere.invalid/1")
    configure(app, environ)
    with app.connection_for_read() as connection:
        client = connection.default_channel.client
        assert client.ping()
        used = client.connection_pool.connection_kwargs
        made = client.connection_pool.make_connection()
        timeout, interval = made.socket_timeout, made.health_check_interval
        # As redis-py 8 does it when a check has failed.
        takes_error = "kwargs" in signature(RedisConnection.disconnect).parameters
        made.disconnect(**({"error": OSError()} if takes_error else {}))
    assert used["password"] == PASSWORD
    assert used["db"] == 0
    assert (timeout, interval) == (15, 10)

    results = app.backend.client
    assert results.ping()
    made = results.connection_pool.make_connection()
    assert (made.socket_timeout, made.health_check_interval) == (15, 10)
    assert made.password == PASSWORD


def test_tcp_connections_are_kept_alive_and_bounded(redis):
    app = app_with(result_backend="redis://elsewhere.invalid/1")
    configure(app, redis.environ(redis.tcp_url))
    with app.connection_for_read() as connection:
        for client in (connection.default_channel.client, app.backend.client):
            made = client.connection_pool.make_connection()
            assert (made.socket_keepalive, made.socket_connect_timeout) == (True, 5)


def test_addresses_are_masked_where_celery_shows_them(environ):
    app = app_with(result_backend="redis://elsewhere.invalid/1")
    configure(app, environ)
    shows_no_password(app)


def test_without_a_broker_the_app_keeps_its_own():
    app = app_with(broker_url="redis://mine.invalid/3", result_backend="redis://mine.invalid/4")
    configure(app, {})
    assert app.conf.broker_read_url == "redis://mine.invalid/3"
    assert app.conf.result_backend == "redis://mine.invalid/4"


def test_the_environments_broker_wins_over_every_way_to_name_one(redis, monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://variable.invalid/0")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://variable.invalid/0")
    app = app_with(broker_read_url="redis://a.invalid/0", broker_write_url="redis://b.invalid/0")
    for name, value in redis.environ(redis.tcp_url).items():
        monkeypatch.setenv(name, value)
    configure(app)
    for connection in (app.connection_for_read(), app.connection_for_write()):
        assert (connection.hostname, connection.port) == ("127.0.0.1", redis.port)
    assert f":{redis.port}/" in app.conf.result_backend


def test_it_wins_over_an_apps_own_settings_with_a_prefix(redis):
    source = {"CELERY_BROKER_URL": "redis://a.invalid/0", "CELERY_RESULT_BACKEND": "redis://b/0"}
    source["CELERY_BROKER_READ_URL"] = "redis://c.invalid/0"
    source["CELERY_BROKER_TRANSPORT_OPTIONS"] = {"visibility_timeout": 7}
    app = Celery("django", set_as_current=False)
    app.config_from_object(source, namespace="CELERY")
    configure(app, redis.environ(redis.tcp_url))
    for connection in (app.connection_for_read(), app.connection_for_write()):
        assert (connection.hostname, connection.port) == ("127.0.0.1", redis.port)
        assert connection.transport_options["socket_timeout"] == 15
    assert app.backend.connparams["port"] == redis.port
    assert PASSWORD not in str(app.conf.table()) + app.bugreport()


@pytest.mark.parametrize("own", [None, "rpc://", "db+postgresql://results.invalid/x"])
def test_results_that_are_not_in_redis_stay_where_they_are(redis, own):
    app = app_with(result_backend=own)
    configure(app, redis.environ())
    assert app.conf.result_backend == own


def test_results_can_be_sent_elsewhere(redis):
    app = app_with()
    environ = redis.environ() | {"CELERY_METAL_RESULT_BACKEND": "redis://bob@results.invalid/2"}
    configure(app, environ)
    assert app.backend.connparams["host"] == "results.invalid"
    assert app.backend.connparams["username"] == "bob"
    assert app.backend.connparams["password"] == PASSWORD


EXPLICIT = {
    "broker_connection_retry_on_startup": False,
    "broker_connection_max_retries": 7,
    "redis_socket_timeout": 77.0,
    "redis_socket_keepalive": False,
    "redis_socket_connect_timeout": 9.0,
    "redis_backend_health_check_interval": 99,
    "task_serializer": "pickle",
    "accept_content": ["pickle"],
}


@pytest.mark.parametrize("how", ["new names", "namespace", "old names"])
def test_what_the_app_sets_itself_stays(redis, how):
    app = Celery("user", set_as_current=False)
    if how == "new names":
        expected = EXPLICIT
        app.conf.update(EXPLICIT)
    elif how == "namespace":
        expected = EXPLICIT
        source = {f"MY_{name.upper()}": value for name, value in EXPLICIT.items()}
        app.config_from_object(source, namespace="MY")
    else:
        expected = {"broker_connection_max_retries": 7, "task_serializer": "pickle"}
        source = {"BROKER_CONNECTION_MAX_RETRIES": 7, "CELERY_TASK_SERIALIZER": "pickle"}
        app.config_from_object(source)
    configure(app, redis.environ(redis.tcp_url))
    assert {name: app.conf[name] for name in expected} == expected
    assert app.connection_for_read().port == redis.port


def test_what_the_app_does_not_set_is_set_for_a_service(redis):
    app = app_with(broker_transport_options={"visibility_timeout": 7, "socket_timeout": 3})
    configure(app, redis.environ())
    assert app.conf.broker_connection_retry_on_startup is True
    assert app.conf.broker_channel_error_retry is True
    assert app.conf.broker_connection_max_retries is None
    assert app.conf.task_serializer == "json"
    assert list(app.conf.accept_content) == ["json"]
    options = app.conf.broker_transport_options
    assert (options["visibility_timeout"], options["socket_timeout"]) == (7, 3)
    assert options["health_check_interval"] == 10


def test_another_kind_of_broker_gets_no_options_of_redis():
    app = app_with(broker_url="amqp://mine.invalid//")
    configure(app, {})
    assert not app.conf.broker_transport_options
    assert app.conf.broker_connection_max_retries is None


@pytest.mark.parametrize("urls", [["amqp://a//", "amqp://b//"], []])
def test_an_app_with_several_brokers_keeps_them(urls):
    app = app_with(broker_url=urls)
    configure(app, {})
    assert app.conf.broker_read_url == urls


@pytest.mark.parametrize(
    "url",
    ["localhost", "http://x/", "amqp://x//", "redis://x:port/0", "redis://[::1/0", "redis://x:0/0"],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(UsageError, match=r"CELERY_METAL_BROKER=.*set it to redis://"):
        configure(app_with(), {"CELERY_METAL_BROKER": url})


@pytest.mark.parametrize("url", ["redis://:secret@x/0", "redis+socket://u:secret@/run/x.sock"])
def test_a_password_in_the_address_is_refused_and_not_repeated(url):
    with pytest.raises(UsageError) as error:
        configure(app_with(), {"CELERY_METAL_BROKER": url})
    assert "secret" not in str(error.value)
    assert "CELERY_METAL_PASSWORD_FILE" in str(error.value)


def test_a_named_password_file_must_be_there(tmp_path):
    environ = {"CELERY_METAL_BROKER": "redis://x/0"}
    missing = {"CELERY_METAL_PASSWORD_FILE": str(tmp_path / "none")}
    with pytest.raises(UsageError, match=r"no such file; run site\.yml, which brings the secret"):
        configure(app_with(), environ | missing)
    with pytest.raises(UsageError, match="Is a directory"):
        configure(app_with(), environ | {"CELERY_METAL_PASSWORD_FILE": str(tmp_path)})
    app = app_with()
    configure(app, environ)
    assert app.conf.broker_url == "redis://x/0"


@pytest.fixture
def awaited(redis):
    """An app and a result that comes while whoever waits for it looks after a lost connection."""
    app = app_with(result_backend="redis://elsewhere.invalid/1")
    configure(app, redis.environ(redis.tcp_url))
    result = app.AsyncResult(str(uuid4()))
    look, seen = app.backend.client.mget, []

    def look_too_early(keys):
        seen.append(look(keys))
        if len(seen) == 1:
            app.backend.store_result(result.id, 42, "SUCCESS")
        return seen[-1]

    app.backend.client.mget = look_too_early
    result.then(lambda _: None)  # subscribes
    redis.client.client_kill_filter(_type="pubsub")
    yield app, result
    assert seen[0] == [None]


def test_a_result_that_comes_while_its_waiter_reconnects_is_not_waited_for(awaited):
    _, result = awaited
    assert result.get(timeout=PATIENCE) == 42


def test_garbage_that_is_collected_while_a_waiter_reconnects_does_not_hold_it_up(
    awaited, monkeypatch
):
    app, result = awaited
    pool = app.backend.client.connection_pool
    make, subscribe, got, lost = pool.make_connection, PubSub.subscribe, [], []

    def make_after_a_collection():
        gc.collect()
        return make()

    def subscribe_and_lose(self, *channels):
        subscribe(self, *channels)
        if not lost:
            # Its traceback has this frame, which has it: garbage, with what it was subscribed by.
            error = exceptions.ConnectionError("once more")
            lost.append(1)
            raise error

    pool.make_connection = make_after_a_collection
    monkeypatch.setattr(PubSub, "subscribe", subscribe_and_lose)
    gc.disable()
    try:
        waiter = Thread(target=lambda: got.append(result.get(timeout=PATIENCE)), daemon=True)
        waiter.start()
        waiter.join(PATIENCE + 10)
    finally:
        gc.enable()
    assert got == [42]
