"""Workers, results and Beat behind Sentinels: real ones, with real Redis servers."""

import signal
from threading import Thread
from time import monotonic

import pytest
from celery import Celery
from celery_metal_runtime import configure, confirm
from celery_metal_runtime.settings import UsageError
from kombu.exceptions import OperationalError
from runtime_lab import PASSWORD, PATIENCE, Producer, shows_no_password, wait_until
from sentinel_lab import MASTER, Sentinel, Site

INSIDE = "lab_app.inside"


@pytest.fixture
def site(tmp_path, request, authority):
    """Three of each; with TLS where a test asks for it."""
    made = Site(tmp_path, authority if getattr(request, "param", False) else None)
    yield made
    made.stop()


def app_with(environ, **conf):
    app = Celery("shop", set_as_current=False)
    app.conf.update(conf)
    configure(app, environ)
    return app


def good(server):
    """How many replicas a primary has that follow closely enough."""
    return server.client.info("replication")["min_slaves_good_slaves"]


@pytest.mark.versions
@pytest.mark.parametrize("site", [False, True], indirect=True, ids=["plain", "tls"])
def test_each_pool_follows_the_primary(start, site):
    workers = [
        start(server=site, CELERY_METAL_POOL=pool).ready()
        for pool in ("prefork", "threads", "gevent", "solo")
    ]
    producer, before = Producer(site), site.primary()
    for worker in workers:
        assert len(producer.answers(worker, INSIDE, times=5)) == 5
    before.process.kill()
    wait_until(lambda: site.primary() is not before, "another is elected")
    # Until then it takes no tasks, and says so.
    wait_until(lambda: good(site.primary()), "the other one follows it")
    for worker in workers:
        assert len(producer.answers(worker, INSIDE, times=5)) == 5
        assert worker.process.poll() is None
        assert PASSWORD not in worker.log
        assert "p%40ss" not in worker.log
        assert worker.stop() == 0


@pytest.mark.versions
def test_a_primary_without_replicas_takes_nothing_and_is_waited_for(start, site):
    worker, producer = start(server=site).ready(), Producer(site)
    primary = site.primary()
    others = [one for one in site.servers if one is not primary]
    for one in others:
        one.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: good(primary) == 0, "none follows")
    with pytest.raises(OperationalError, match="NOREPLICAS"):
        producer.post(worker, INSIDE)
    wait_until(lambda: "this Redis is not the primary now" in worker.log, "the worker looks again")
    for one in others:
        one.process.send_signal(signal.SIGCONT)
    wait_until(lambda: good(primary), "one follows")
    assert producer.answers(worker, INSIDE)
    assert worker.process.poll() is None


@pytest.mark.versions
def test_a_task_is_sent_when_a_replica_has_it(site):
    app = app_with(site.environ(f"{site.url('producer')}&replicas=2"))
    primary = site.primary()
    app.send_task("a", queue="confirmed")
    last = next(one for one in site.servers if one is not primary)
    last.process.send_signal(signal.SIGSTOP)
    with pytest.raises(OperationalError, match="1 of 2 replicas have it"):
        app.send_task("a", queue="confirmed")
    last.process.send_signal(signal.SIGCONT)
    assert primary.client.llen("confirmed") == 2
    app.close()


@pytest.mark.versions
def test_what_an_election_loses_does_not_count_as_sent(site, monkeypatch):
    """A primary that stood still has one replica left, which confirms, and then leaves it."""
    monkeypatch.setattr(confirm, "CONFIRM_MILLISECONDS", 500)
    app, refused = app_with(site.environ(f"{site.url('producer')}&replicas=1")), []
    primary = site.primary()
    chosen, other = (one for one in site.servers if one is not primary)
    app.send_task("a", queue="elected")
    # Else they make the chosen one a replica again.
    for one in site.sentinels:
        one.process.send_signal(signal.SIGSTOP)

    def send():
        try:
            app.send_task("a", queue="elected", retry=False)
        except OperationalError as error:
            refused.append(str(error))

    # As a Sentinel does it: one is chosen, and then the others follow that one.
    chosen.client.execute_command("REPLICAOF", "NO", "ONE")
    sender = Thread(target=send)
    sender.start()
    wait_until(lambda: other.client.llen("elected") == 2, "the other one has the task")
    other.client.execute_command("REPLICAOF", "127.0.0.1", str(chosen.port))
    sender.join(PATIENCE)
    assert chosen.client.llen("elected") == 1
    assert len(refused) == 1
    assert "0 of 1 replicas have it" in refused[0]
    app.close()


@pytest.mark.versions
def test_a_replica_that_is_down_is_waited_for_once(site, monkeypatch):
    monkeypatch.setattr(confirm, "CONFIRM_MILLISECONDS", 500)
    app = app_with(site.environ(f"{site.url('producer')}&replicas=1"))
    app.send_task("a", queue="down")
    last = next(one for one in site.servers if one is not site.primary())
    last.process.send_signal(signal.SIGSTOP)
    seconds = []
    for _ in range(2):
        begun = monotonic()
        app.send_task("a", queue="down")
        seconds.append(monotonic() - begun)
    last.process.send_signal(signal.SIGCONT)
    assert seconds[0] >= 2 > seconds[1]
    app.close()


@pytest.mark.versions
@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_primary_is_the_one_that_was_elected_last(tmp_path, redis, own_redis, first):
    """One Sentinel behind a cut still names the earlier primary, and takes it for healthy."""
    later = "sentinel config-epoch celery 7\nsentinel leader-epoch celery 7\n"
    sentinels = [Sentinel(tmp_path / "cut-off", own_redis.port)]
    sentinels += [Sentinel(tmp_path / f"s{n}", redis.port, later) for n in range(2)]
    try:
        order = sentinels[first:] + sentinels[:first]
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in order)
        app = app_with(
            redis.environ(f"sentinel://worker@{hosts}/0?master_name={MASTER}"),
            result_backend="redis://here",
        )
        with app.connection_for_write() as connection:
            client = connection.default_channel.client
            assert client.ping()
            assert client.connection_pool.get_master_address()[1] == redis.port
            made = client.connection_pool.make_connection()
            assert (made.socket_timeout, made.health_check_interval) == (5, 3)
        assert app.backend.client.ping()
        assert app.backend.client.connection_pool.get_master_address()[1] == redis.port
        # Of two that are left the one is no majority, but all that there is.
        for one in sentinels[1:]:
            one.stop()
        with app.connection_for_write() as connection:
            client = connection.default_channel.client
            assert client.connection_pool.get_master_address()[1] == own_redis.port
    finally:
        for one in sentinels:
            one.stop()


def test_addresses_are_masked_where_celery_shows_them(redis):
    environ = redis.environ("sentinel://worker@a,b:1/3?master_name=m")
    app = app_with(environ, result_backend="redis://elsewhere.invalid/1")
    shows_no_password(app)


def test_an_address_becomes_celerys_own(redis):
    environ = redis.environ("sentinels://wor%2Fker@a,b:1,[::1]:2/3?master_name=m")
    own = {"master_name": "mine", "visibility_timeout": 7}
    app = app_with(environ, result_backend="redis://", broker_transport_options=own)
    login = "wor%2Fker:p%40ss%3A%2F%3F%23%25%3B%2C%2B%20end"
    wanted = ";".join(f"sentinel://{login}@{host}/3" for host in ("a:26379", "b:1", "[::1]:2"))
    assert app.conf.broker_url == app.conf.result_backend == wanted
    options = app.conf.broker_transport_options
    assert (options["master_name"], options["visibility_timeout"]) == ("m", 7)
    kwargs = options["sentinel_kwargs"]
    assert kwargs == app.conf.result_backend_transport_options["sentinel_kwargs"]
    assert (kwargs["username"], kwargs["password"]) == ("wor/ker", PASSWORD)
    assert kwargs["ssl"]
    assert kwargs["ssl_cert_reqs"] == "required"
    assert app.conf.broker_use_ssl["ssl_cert_reqs"] == "required"


def test_sentinels_that_ask_for_no_password_get_none(redis):
    environ = redis.environ("sentinel://worker@a/0?master_name=m&sentinel_auth=no")
    app = app_with(environ, result_backend="redis://")
    assert "password" not in app.conf.broker_transport_options["sentinel_kwargs"]
    assert "username" not in app.conf.result_backend_transport_options["sentinel_kwargs"]
    assert (app.backend.connparams["username"], app.backend.connparams["password"]) == (
        "worker",
        PASSWORD,
    )


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://a:26379/0",
        "sentinel://a:26379/0?master_name=m&replicas=x",
        "sentinel://a,,b/0?master_name=m",
        "sentinel://a:0,b/0?master_name=m",
        "sentinel://a:x,b/0?master_name=m",
        "sentinel:///0?master_name=m",
        "redis://a,b/0",
    ],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(UsageError, match=r"CELERY_METAL_BROKER=.*sentinel://host:26379,host"):
        app_with({"CELERY_METAL_BROKER": url})
