"""No reply, event, report or log of a worker holds its password, for each kind of URL."""

import base64
import json
import re
from urllib.parse import quote, quote_plus

import pytest
from celery import Celery
from celery.worker.control import Panel
from celery_metal_runtime import configure
from celery_metal_runtime.replies import shown
from runtime_lab import PASSWORD, PATIENCE, Producer, Redis, wait_until
from sentinel_lab import Site

pytestmark = pytest.mark.versions

KINDS = ("socket", "tcp", "tls", "sentinel")
# All that ask and change nothing.
INSPECT = [name for name, meta in Panel.meta.items() if meta.type == "inspect"]


def forms(secret):
    """How a text can show the secret: as it is, quoted, escaped, or within base64."""
    found = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}
    found |= {json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    raw = secret.encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for offset in range(3):
            # Whole groups of three bytes look the same, whatever stands around them.
            start = -offset % 3
            whole = raw[start : start + (len(raw) - start) // 3 * 3]
            found.add(encode(whole).decode())
    return found


@pytest.fixture
def server(request, tmp_path, authority):
    """A Redis that is reached by one kind of URL, and the environment for that."""
    kind = request.param
    if kind == "sentinel":
        one = Site(tmp_path)
        environ = one.environ()
    elif kind == "tls":
        one = Redis(tmp_path / "redis", (authority.ca, authority.server("127.0.0.1")))
        environ = one.environ(one.tcp_url.replace("redis://", "rediss://")) | authority.environ()
    else:
        one = Redis(tmp_path / "redis")
        environ = one.environ(one.socket_url if kind == "socket" else one.tcp_url)
    yield kind, one, environ
    one.stop()


def watched_events(app, worker, produce):
    """The events until a task has succeeded, as text."""
    heard = []
    with app.connection() as connection:
        receiver = app.events.Receiver(connection, {"*": heard.append})
        for turn, _ in enumerate(receiver.itercapture(limit=None, timeout=PATIENCE, wakeup=False)):
            if not turn:
                produce()
            if any(one["type"] == "task-succeeded" for one in heard):
                break
    return json.dumps(heard)


@pytest.mark.parametrize("server", KINDS, indirect=True)
def test_nothing_that_a_worker_tells_holds_its_password(server, start):
    kind, one, environ = server
    worker = start("worker", "-E", server=one, CELERY_METAL_LOGLEVEL="debug", **environ).ready()
    producer = Producer(one)
    control = producer.operator.control
    wait_until(lambda: control.ping([worker.node], timeout=0.5), "ping is answered")
    told = {}
    for name in INSPECT:
        arguments = {"with_defaults": True} if name == "conf" else {}
        (reply,) = control.broadcast(
            name,
            arguments=arguments,
            destination=[worker.node],
            reply=True,
            timeout=PATIENCE,
            limit=1,
        )
        told[name] = json.dumps(reply)
    broker = json.loads(told["stats"])[worker.node]["broker"]
    assert (broker["userid"], broker["virtual_host"]) == ("worker", "0")
    assert broker["hostname"] == (str(one.path) if kind == "socket" else "127.0.0.1")
    assert broker["transport"] in (kind, "redis", "rediss")
    assert broker["ssl"] is (kind == "tls")
    assert broker["transport_options"]["health_check_interval"] == 1
    primary = one.primary() if kind == "sentinel" else one
    told["events"] = watched_events(
        producer.monitor, worker, lambda: producer.post(worker, "lab_app.inside")
    )
    primary.client.client_kill_filter(_type="normal", skipme=True)
    wait_until(
        lambda: "Connection to broker lost" in worker.log, "the worker logs a lost connection"
    )
    told["log"] = worker.log
    app = Celery("shop", backend="redis://here", set_as_current=False)
    configure(app, dict(environ))
    told["bugreport"] = app.bugreport()
    told["table"] = str(app.conf.table(with_defaults=True)) + app.conf.humanize()
    told["uri"] = app.connection().as_uri() + app.backend.as_uri()
    shown = {
        name: sorted(form for form in forms(PASSWORD) if form in text)
        for name, text in told.items()
    }
    assert {name: found for name, found in shown.items() if found} == {}


@pytest.mark.parametrize(
    "url",
    [
        "redis+socket://worker:SECRET@/run/redis.sock?virtual_host=2",
        "redis+socket://worker:SE/C://R?E#T@/run/redis.sock?virtual_host=2&password=SECRET",
        "redis+socket://:SECRET@/run/redis.sock?virtual_host=2",
    ],
)
def test_a_host_name_that_is_a_url_is_shown_as_its_path(url):
    found = shown({"hostname": url, "password": "SECRET", "alternates": [url], "later": url})
    assert (found["hostname"], found["virtual_host"]) == ("/run/redis.sock", "2")
    assert not re.search("SE/?C", str(found))
