"""The broker from outside: an app's code stays as it is, the password stays in its file."""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from celery_metal_runtime.settings import UsageError, text
from celery_metal_runtime.versions import is_set, put

if TYPE_CHECKING:
    from celery import Celery
    from redis import Redis

BROKER = "CELERY_METAL_BROKER"
RESULTS = "CELERY_METAL_RESULT_BACKEND"
PASSWORD_FILE = "CELERY_METAL_PASSWORD_FILE"
DEFAULT_PASSWORD_FILE = "/run/secrets/celery-redis-password"

REDIS = ("redis", "rediss", "redis+socket")
# Celery and its command line read these themselves, and put them before what an app says.
CELERYS_BROKER_VARIABLES = (
    "BROKER_URL",
    "CELERY_BROKER",
    "CELERY_BROKER_URL",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_WRITE_URL",
)
CELERYS_RESULT_VARIABLES = ("RESULT_BACKEND", "CELERY_RESULT_BACKEND")

CONNECT_SECONDS = 5
# Without it a publish on a connection that died silently waits for ever.
SOCKET_SECONDS = 15
# kombu drops a silent connection within 1 + 2 x this.
HEALTH_CHECK_SECONDS = 10
# Commands of the runtime's own are answered at once or not at all: loops wait for some of them.
COMMAND_SECONDS = 5


def configure(app: "Celery", environ: MutableMapping[str, str] | None = None) -> None:
    """Point `app` at the broker that `environ` names, and give it the defaults of a service.

    `environ` is os.environ by default. Where it names no broker, the app's own stays. What the app
    sets itself stays, but for the addresses. For workers, other commands and producers alike.
    Raises UsageError for an address or a password file that cannot be used.
    """
    environ = os.environ if environ is None else environ
    broker, results = text(environ, BROKER), text(environ, RESULTS)
    password = _password(environ) if broker or results else ""
    if broker and not results and _scheme(app.conf.result_backend or "") in REDIS:
        results = broker
    if broker:
        url = _with_password(BROKER, broker, password)
        _forget(environ, CELERYS_BROKER_VARIABLES)
        # An app's own read and write addresses go before it. Without a value, not with this one:
        # Celery shows the passwords of these two before 5.7.
        own = [name for name in ("broker_read_url", "broker_write_url") if is_set(app, name)]
        put(app, **dict.fromkeys(own), broker_url=url)
    if results:
        _forget(environ, CELERYS_RESULT_VARIABLES)
        put(app, result_backend=_with_password(RESULTS, results, password))
    _set_service_defaults(app)


def client_of(channel: Any) -> "Redis":
    """A client with connections of its own, to the Redis of one of kombu's channels.

    Under gevent each thread needs its own.
    """
    from redis import Redis  # not before gevent has patched

    pool = channel._get_pool()
    pool.connection_kwargs["socket_timeout"] = COMMAND_SECONDS
    return Redis(connection_pool=pool)


def _set_service_defaults(app: "Celery") -> None:
    """Unlimited patience with the broker, and no wait without end on a dead connection."""
    defaults: dict[str, Any] = {
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A Redis that cannot write to its disk, or is a replica, ends no worker.
        "broker_channel_error_retry": True,
    }
    broker = _scheme(app.conf.broker_read_url or "")
    if broker in REDIS:
        # No retry_on_timeout: a push repeated after a timeout doubles its task, and kombu would
        # give up publishing in batches for fear of that.
        options = {
            "socket_timeout": SOCKET_SECONDS,
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": HEALTH_CHECK_SECONDS,
        }
        put(app, broker_transport_options=options | dict(app.conf.broker_transport_options or {}))
    results = _scheme(app.conf.result_backend or "")
    if results in REDIS:
        defaults["redis_socket_timeout"] = SOCKET_SECONDS
        defaults["redis_socket_connect_timeout"] = CONNECT_SECONDS
        defaults["redis_backend_health_check_interval"] = HEALTH_CHECK_SECONDS
        if results != "redis+socket":  # which redis-py refuses to keep alive
            defaults["redis_socket_keepalive"] = True
    for name, value in defaults.items():
        if not is_set(app, name):
            app.conf[name] = value


def _password(environ: Mapping[str, str]) -> str:
    """The first line of the password file, or nothing where none is named and none is there."""
    named = text(environ, PASSWORD_FILE)
    path = Path(named or DEFAULT_PASSWORD_FILE)
    try:
        return path.read_text().rstrip("\r\n")
    except FileNotFoundError:
        if not named:
            return ""
        reason = "there is no such file"
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
    raise UsageError(
        f"{PASSWORD_FILE}={str(path)!r} cannot be read: {reason}; run site.yml, which brings the "
        "secret, or name a file that is there"
    )


def _with_password(name: str, url: str, password: str) -> str:
    """`url` with the password in it, quoted as kombu and Celery both unquote it."""
    scheme = _scheme(url)
    try:
        parts = urlsplit(url)
        given, port_is_valid = parts.password is not None, parts.port != 0
    except ValueError:  # a port that is no number, or an unfinished IPv6 address
        given, port_is_valid = False, False
    if given:
        # The value is kept out of the message: it would end in the journal.
        raise UsageError(f"{name} contains a password: put it in the file named by {PASSWORD_FILE}")
    if scheme not in REDIS or not port_is_valid:
        raise UsageError(
            f"{name}={url!r} is no address of a Redis: set it to redis://host:6379/0 "
            "or redis+socket:///path/redis.sock?virtual_host=0"
        )
    if not password:
        return url
    user, _, rest = url.partition("://")[2].rpartition("@")
    return f"{scheme}://{user}:{quote(password, safe='')}@{rest}"


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


def _forget(environ: MutableMapping[str, str], names: tuple[str, ...]) -> None:
    for name in names:
        environ.pop(name, None)
