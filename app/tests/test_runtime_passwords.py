"""A process that sends tasks outlives a rotation: its next connection reads the files again."""

from pathlib import Path

import pytest
from celery import Celery
from celery_metal_runtime import configure
from kombu.exceptions import OperationalError
from runtime_lab import PASSWORD, Redis
from sentinel_lab import Site
from tls_lab import Authority

pytestmark = pytest.mark.versions

NEW = "the next: one"
SETTINGS = ("ACL", "SETUSER", "producer")


def app_with(environ):
    app = Celery("shop", set_as_current=False)
    app.conf.result_backend = "redis://elsewhere.invalid"
    configure(app, environ)
    return app


def end(client):
    """What the end of a rotation does with the earlier password of a user."""
    client.execute_command(*SETTINGS, f"<{PASSWORD}", f">{NEW}")
    client.execute_command("CLIENT", "KILL", "USER", "producer")


def lives_on(app, waiting):
    """It sends a task and looks for the result of one."""
    sent = app.send_task("a", queue="mail", expires=3600)
    assert waiting()
    assert app.AsyncResult(sent.id).state == "PENDING"


def waits_in(server, count):
    return lambda: server.client.llen("mail") == count


@pytest.mark.parametrize("url", ["socket_url", "tcp_url"])
def test_a_producer_that_was_not_reloaded_has_the_next_password(own_redis, url):
    app = app_with(own_redis.environ(getattr(own_redis, url).replace("worker@", "producer@")))
    lives_on(app, waits_in(own_redis, 1))
    own_redis.password_file.write_text(f"{NEW}\n")
    end(own_redis.client)
    lives_on(app, waits_in(own_redis, 2))
    # Again, from what it has by now.
    own_redis.password_file.write_text(PASSWORD)
    own_redis.client.execute_command(*SETTINGS, f"<{NEW}", f">{PASSWORD}")
    own_redis.client.execute_command("CLIENT", "KILL", "USER", "producer")
    lives_on(app, waits_in(own_redis, 3))
    app.close()


def test_a_producer_of_several_redis_has_the_next_password_for_sentinels_too(tmp_path):
    site = Site(tmp_path)
    try:
        app, primary = app_with(site.environ(site.url("producer"))), site.primary()
        lives_on(app, waits_in(primary, 1))
        site.servers[0].password_file.write_text(NEW)
        for one in site.sentinels:
            one.ask(end)
        for server in site.servers:
            end(server.client)
        lives_on(app, waits_in(primary, 2))
        app.close()
    finally:
        site.servers[0].password_file.write_text(PASSWORD)
        site.stop()


def test_a_file_that_cannot_be_read_leaves_the_process_the_password_it_has(own_redis, capfd):
    app = app_with(own_redis.environ(own_redis.tcp_url.replace("worker@", "producer@")))
    for number, change in enumerate(
        (
            lambda file: file.write_text(""),
            lambda file: file.write_bytes(b"\xff"),
            lambda file: file.unlink(),
        ),
        1,
    ):
        change(own_redis.password_file)
        for count in (2 * number - 1, 2 * number):
            own_redis.client.execute_command("CLIENT", "KILL", "USER", "producer")
            lives_on(app, waits_in(own_redis, count))
    said = [line for line in capfd.readouterr().err.splitlines() if "celery-metal: " in line]
    assert [line.partition(" cannot be read: ")[2].partition(";")[0] for line in said] == [
        "it is not text",
        "No such file or directory",
    ]
    assert PASSWORD not in "".join(said)
    app.close()


def test_a_password_that_is_not_of_the_file_stays(own_redis):
    """That of another Redis, or one that the app names itself."""
    app = app_with(own_redis.environ(own_redis.tcp_url.replace("worker@", "producer@")))
    own_redis.password_file.write_text(NEW)
    other = Celery("other", set_as_current=False)
    other.conf.broker_url = f"redis://producer:wrong@127.0.0.1:{own_redis.port}/0"
    with pytest.raises(OperationalError, match="invalid username-password pair"):
        other.send_task("a", queue="mail", retry=False)
    own_redis.password_file.write_text(PASSWORD)
    lives_on(app, waits_in(own_redis, 1))
    app.close()


def test_a_new_certificate_and_authority_need_no_reload(tmp_path):
    """redis-py reads the files of both at each connection."""
    first, second = (Authority(tmp_path / name) for name in ("first", "second"))
    own, its = first.server("127.0.0.1"), second.server("127.0.0.1")
    server = Redis(tmp_path / "redis", (first.ca, own))
    try:
        url = server.tcp_url.replace("redis://worker@", "rediss://producer@")
        app = app_with(server.environ(url) | first.environ())
        lives_on(app, waits_in(server, 1))
        server.stop()
        for old, new in ((first.ca, second.ca), (first.worker, second.worker), (own, its)):
            Path(old).write_text(Path(new).read_text())
        server.start()
        lives_on(app, waits_in(server, 1))
        app.close()
    finally:
        server.stop()
