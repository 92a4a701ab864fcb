"""Where an app reads the broker's address itself, and results that are kept in no Redis."""

import os
from pathlib import Path

import pytest
from celery import Celery
from celery_metal_runtime import configure
from celery_metal_runtime.broker import export_address
from celery_metal_runtime.settings import UsageError
from redis import Redis as Client
from runtime_lab import PASSWORD, Redis, base_environ, run, wait_until

NAMES = ("REDIS_URL", "BROKER_URL", "CELERY_BROKER_URL")
VARIABLES = {"CELERY_METAL_BROKER_VARIABLES": ",".join([*NAMES, "CELERY_RESULT_BACKEND"])}
# As its authors wrote it, with their own broker in variables.
SHOP = f"""
import os
from pathlib import Path
from celery import Celery
from redis import Redis

class Config:
    CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
    CELERY_RESULT_BACKEND = os.environ["CELERY_RESULT_BACKEND"]

app = Celery("shop")
app.config_from_object(Config, namespace="CELERY")

@app.task
def look():
    shown = Path(f"/proc/{{os.getppid()}}/environ").read_text()
    clients = [Redis.from_url(os.environ[name]) for name in {NAMES!r}]
    return [client.ping() for client in clients], "%40" in shown
"""


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "shop.py").write_text(SHOP)
    return {"CELERY_APP": "shop", "PYTHONPATH": f"{tmp_path}:{base_environ()['PYTHONPATH']}"}


@pytest.fixture
def secure(authority, tmp_path):
    server = Redis(tmp_path / "secure", (authority.ca, authority.server("127.0.0.1")))
    yield server
    server.stop()


@pytest.mark.versions
@pytest.mark.parametrize("way", ["socket", "tcp", "tls"])
def test_an_app_reads_the_broker_from_variables_of_its_own(
    redis, secure, authority, start, shop, way
):
    server = secure if way == "tls" else redis
    url = server.socket_url if way == "socket" else server.tcp_url
    environ = shop | VARIABLES | server.environ(url)
    if way == "tls":
        environ |= authority.environ()
        environ["CELERY_METAL_BROKER"] = url.replace("redis://", "rediss://")
    worker = start(server=server, fresh=way == "socket", **environ).ready()
    environ["CELERY_METAL_QUEUE"] = worker.queue
    sent = run(environ, "call", "shop.look", f"--queue={worker.queue}")
    assert sent.returncode == 0, sent.stderr
    result = run(environ, "result", sent.stdout.strip())
    assert result.stdout.strip() == "[[True, True, True], False]", result.stderr
    for text in (worker.log, sent.stderr, result.stderr):
        assert PASSWORD not in text
        assert "p%40ss" not in text


@pytest.mark.versions
def test_another_command_finds_them_too(redis, shop):
    script = (
        "import os, shop; from redis import Redis; assert shop.app.AsyncResult('x').state;"
        "print(Redis.from_url(os.environ['REDIS_URL']).ping(), shop.look.delay().id);"
        "print(os.environ['CELERY_BROKER_URL'] == os.environ['REDIS_URL'])"
    )
    environ = shop | VARIABLES | redis.environ()
    done = run(environ, "run", "python", "-c", script, fresh=True)
    assert done.stdout.split()[::2] == ["True", "True"], done.stderr
    assert redis.client.delete("celery") == 1


def test_the_forms_of_the_address(redis, authority):
    def address(url, **more):
        environ = {"CELERY_METAL_BROKER": url, "CELERY_METAL_BROKER_VARIABLES": "A,B", **more}
        export_address(environ)
        assert environ["A"] == environ["B"]
        return environ["A"]

    assert address("redis://r1:6379/2") == "redis://r1:6379/2"
    assert address("redis+socket:///run/r.sock?virtual_host=3") == "unix:///run/r.sock?db=3"
    assert address("redis+socket://worker@/run/r.sock") == "unix://worker@/run/r.sock?db=0"
    secure = address("rediss://r1/0", **authority.environ())
    made = Client.from_url(secure).connection_pool.connection_kwargs
    assert made["ssl_ca_certs"] == str(authority.ca)
    assert made["ssl_certfile"] == made["ssl_keyfile"] == str(authority.worker)
    assert (made["ssl_cert_reqs"], made["ssl_check_hostname"]) == ("required", True)
    # The system's trust store.
    assert "ssl_ca_certs" not in address("rediss://r1/0")
    password = {"CELERY_METAL_PASSWORD_FILE": str(redis.password_file)}
    found = Client.from_url(address("redis://worker@r1", **password))
    login = found.connection_pool.connection_kwargs
    assert (login["username"], login["password"]) == ("worker", PASSWORD)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "CELERY_METAL_BROKER is not set: CELERY_METAL_BROKER_VARIABLES names A, which get"),
        ("sentinel://r1/0?master_name=m", "names A, and redis-py has no URL of Sentinels: remove"),
    ],
)
def test_a_broker_without_such_an_address_is_refused(url, words):
    environ = {"CELERY_METAL_BROKER": url, "CELERY_METAL_BROKER_VARIABLES": "A"}
    with pytest.raises(UsageError, match=words):
        export_address(environ)
    export_address({"CELERY_METAL_BROKER": url})


def test_results_go_to_an_address_that_a_secret_holds(redis, start, tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (tmp_path / "RESULTS").write_text(f"file://{folder}\n")
    worker = start(
        CELERY_METAL_RESULT_BACKEND="secret:RESULTS",
        CELERY_METAL_SECRETS_DIRECTORY=str(tmp_path),
    ).ready()
    sent = run(redis.environ(), "call", "lab_app.inside", f"--queue={worker.queue}")
    name = f"celery-task-meta-{sent.stdout.strip()}"
    wait_until(lambda: name in os.listdir(folder), "its result is there")


def results_of(value, **more):
    app = Celery("shop", broker="redis://r1", backend="redis://r1", set_as_current=False)
    environ = {"CELERY_METAL_BROKER": "redis://r1", "CELERY_METAL_RESULT_BACKEND": value, **more}
    configure(app, environ)
    return app


@pytest.mark.versions
def test_results_go_where_celery_can_keep_them():
    for value in ("django-db", "rpc://", "db+postgresql://worker@db/shop"):
        assert results_of(value).conf.result_backend == value
    assert type(results_of("cache+memory://").backend).__name__ == "CacheBackend"


@pytest.mark.parametrize("value", ["redis://:hush@r1", "rediss://r1", "sentinels://r1", "", None])
def test_a_secret_that_holds_no_such_address_is_refused_without_it(tmp_path, value):
    if value is not None:
        Path(tmp_path, "NAME").write_text(value)
    with pytest.raises(UsageError) as error:
        results_of("secret:NAME", CELERY_METAL_SECRETS_DIRECTORY=str(tmp_path))
    assert "hush" not in str(error.value)
    remedy = "run site.yml" if value is None else "write celery_worker_result_backend: redis"
    assert remedy in str(error.value)


@pytest.mark.parametrize("value", ["db+postgresql://worker:hush@db/shop", "redis://a:hush@r1"])
def test_a_password_in_the_address_of_results_is_refused_without_it(value):
    with pytest.raises(UsageError) as error:
        results_of(value)
    assert "hush" not in str(error.value)
    assert "put" in str(error.value)
