"""The broker from outside: an app's code stays as it is, secrets stay in their files."""

import os
import threading
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from celery_metal_runtime.settings import UsageError, required, secret, text
from celery_metal_runtime.versions import is_set, put

if TYPE_CHECKING:
    from celery import Celery
    from redis import Redis

BROKER = "CELERY_METAL_BROKER"
# Names of variables that get the broker's address, for apps that read it there.
VARIABLES = "CELERY_METAL_BROKER_VARIABLES"
RESULTS = "CELERY_METAL_RESULT_BACKEND"
# Of a value there: what follows is the name of a secret that holds the address.
SECRET = "secret:"
PASSWORD_FILE = "CELERY_METAL_PASSWORD_FILE"
DEFAULT_PASSWORD_FILE = "/run/secrets/celery-redis-password"
# By which the server's certificate is checked; without it by what the system trusts.
CA_FILE = "CELERY_METAL_TLS_CA_FILE"
DEFAULT_CA_FILE = "/run/secrets/celery-redis-ca"
# The client's own certificate and its key.
CERTIFICATE_FILE = "CELERY_METAL_TLS_CERTIFICATE_FILE"
DEFAULT_CERTIFICATE_FILE = "/run/secrets/celery-redis-certificate"

REDIS = ("redis", "rediss", "redis+socket", "sentinel")
# Celery's own address of several Sentinels has no word for TLS, and none for the primary's name.
SENTINEL, SENTINEL_TLS = "sentinel", "sentinels"
TLS = ("rediss", SENTINEL_TLS)
SENTINEL_PORT = 26379
# Of redis-py, which Celery does not know.
SOCKET = "unix"
# Celery and its command line read these themselves, and put them before what an app says: each to
# the setting that it becomes.
CELERYS_BROKER_VARIABLES = {
    "BROKER_URL": "broker_url",
    "CELERY_BROKER": "broker_url",
    "CELERY_BROKER_URL": "broker_url",
    "CELERY_BROKER_READ_URL": "broker_read_url",
    "CELERY_BROKER_WRITE_URL": "broker_write_url",
}
CELERYS_RESULT_VARIABLES = {
    "RESULT_BACKEND": "result_backend",
    "CELERY_RESULT_BACKEND": "result_backend",
}
# Celery may take these before it has read an app's configuration, and so before `configure`.
TAKEN_EARLY = ("CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", *CELERYS_RESULT_VARIABLES)

#: Celery's control_exchange for clients that only ask: see `questions`.
QUESTIONS, CONTROL = "celery-inspect", "celery"
#: The users that may not do more: of the whole Redis, and of one app.
MONITOR, MONITORS = "monitor", "-monitor"

CONNECT_SECONDS = 5
# Without it a publish on a connection that died silently waits for ever.
SOCKET_SECONDS = 15
# kombu drops a silent connection within 1 + 2 x this.
HEALTH_CHECK_SECONDS = 10
# A host that has lost its power does not say so, and another is elected within seconds.
ELECTED_SOCKET_SECONDS, ELECTED_HEALTH_CHECK_SECONDS = 5, 3
# One of several, of which a majority is asked: the dead one must not hold up the others.
SENTINEL_SECONDS = 2
# Commands of the runtime's own are answered at once or not at all: loops wait for some of them.
COMMAND_SECONDS = 5


def configure(app: "Celery", environ: MutableMapping[str, str] | None = None) -> None:
    """Point `app` at the broker that `environ` names, and give it the defaults of a service.

    `environ` is os.environ by default. Where it names no broker, the app's own stays. What the app
    sets itself stays, but for the addresses. For workers, other commands and producers alike.
    Raises UsageError for an address, or a file with a secret, that cannot be used.
    """
    environ = os.environ if environ is None else environ
    broker, results = text(environ, BROKER), _results(environ)
    place, password = _password(environ) if broker or results else ("", "")
    if broker and not results and _scheme(app.conf.result_backend or "") in (*REDIS, SOCKET):
        results = broker
    # It belongs to the address, as the password does: an app's own is for a broker of its own.
    tls = {url: _tls(environ) if _scheme(url) in TLS else None for url in (broker, results)}
    if broker:
        url, options = _for_celery(BROKER, broker, password, tls[broker])
        _forget(environ, CELERYS_BROKER_VARIABLES)
        # An app's own read and write addresses go before it. Without a value, not with this one:
        # Celery shows the passwords of these two before 5.7.
        own = [name for name in ("broker_read_url", "broker_write_url") if is_set(app, name)]
        put(app, **dict.fromkeys(own), broker_url=url, broker_use_ssl=tls[broker])
        _add_options(app, "broker_transport_options", options)
        from celery_metal_runtime import redbeat

        redbeat.lend(app, broker)
    if results:
        _forget(environ, CELERYS_RESULT_VARIABLES)
    if results and _scheme(results) not in (*REDIS, *TLS):
        put(app, result_backend=results)
    elif results:
        url, options = _for_celery(RESULTS, results, password, tls[results])
        put(app, result_backend=url, redis_backend_use_ssl=tls[results])
        _add_options(app, "result_backend_transport_options", options)
        if options:  # before Celery 5.5 the user of such an address is lost
            put(app, redis_username=_user(results) or None)
    if SENTINEL in (
        _scheme(app.conf.broker_read_url or ""),
        _scheme(app.conf.result_backend or ""),
    ):
        from celery_metal_runtime import sentinels  # not before gevent has patched

        sentinels.install()
    if password:
        from celery_metal_runtime import passwords  # not before gevent has patched

        for address in (broker, results):
            if _scheme(address) in (*REDIS, *TLS):
                passwords.follow(place, _user(address), password)
    _choose_exchange(app)
    _set_service_defaults(app)
    from celery_metal_runtime import sent  # not before gevent has patched

    sent.install()


def export_address(environ: MutableMapping[str, str]) -> None:
    """Set the variables that CELERY_METAL_BROKER_VARIABLES names to the broker's URL.

    It is one for redis-py's `from_url`, with the password and the paths of the certificates; in
    TAKEN_EARLY that of a socket is for Celery. Set so late it is not in /proc/1/environ. UsageError
    where there is no broker, or no such URL of it.
    """
    names = [name for name in text(environ, VARIABLES).split(",") if name]
    if not names:
        return
    broker = required(environ, BROKER, f"{VARIABLES} names {', '.join(names)}, which get it")
    scheme = _scheme(broker)
    if scheme in (SENTINEL, SENTINEL_TLS):
        raise UsageError(
            f"{VARIABLES} names {', '.join(names)}, and redis-py has no URL of Sentinels: remove "
            "them from celery_worker_broker_variables, and let the app ask Celery for a client, "
            "app.connection_for_write().default_channel.client"
        )
    url = _for_celery(BROKER, broker, _password(environ)[1], None)[0]
    if scheme in TLS:
        url += ("&" if "?" in url else "?") + urlencode(_tls(environ), safe="/")
    environ.update(dict.fromkeys(names, url))
    if scheme == "redis+socket":
        place, _, query = url.partition("://")[2].partition("?")
        database = parse_qs(query).get("virtual_host", ["0"])[0].strip("/")
        for name in [name for name in names if name not in TAKEN_EARLY]:
            environ[name] = f"{SOCKET}://{place}?db={database}"


def client_of(channel: Any, *, is_shared: bool = False, decodes: bool = False) -> "Redis":
    """A client with connections of its own, to the Redis of one of kombu's channels.

    Under gevent each thread needs its own. `is_shared`: for more greenlets or threads at a time
    than the pool has connections. `decodes`: answers are text.
    """
    from redis import Redis  # not before gevent has patched

    pool = channel._get_pool()
    pool.connection_kwargs["socket_timeout"] = COMMAND_SECONDS
    if decodes:
        pool.connection_kwargs["decode_responses"] = True
    if not is_shared:
        return Redis(connection_pool=pool)
    # One is left for a pipeline.
    places = threading.Semaphore(max(1, pool.max_connections - 1))

    class Patient(Redis):
        """Waits for one of its connections, where redis-py raises."""

        def execute_command(self, *arguments: Any, **options: Any) -> Any:
            with places:
                return super().execute_command(*arguments, **options)

    return Patient(connection_pool=pool)


def is_wrong_type(error: Exception) -> bool:
    """Whether Redis has refused because a key holds another kind of value; redis-py 8 cuts it."""
    return "kind of value" in str(error)


def _choose_exchange(app: "Celery") -> None:
    """Have a user that may only ask use the exchange of questions; all others use Celery's.

    The app of a worker may be that of such a program, too.
    """
    url = app.conf.broker_read_url or ""
    if isinstance(url, (list, tuple)):  # of several, Celery takes the first
        url = next(iter(url), "")
    user = _user(str(url).partition(";")[0])
    if user == MONITOR or user.endswith(MONITORS):
        if not is_set(app, "control_exchange"):
            put(app, control_exchange=QUESTIONS)
    elif app.conf.control_exchange == QUESTIONS:
        put(app, control_exchange=CONTROL)


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
        is_elected = broker == SENTINEL
        options = {
            "socket_timeout": ELECTED_SOCKET_SECONDS if is_elected else SOCKET_SECONDS,
            "socket_connect_timeout": SENTINEL_SECONDS if is_elected else CONNECT_SECONDS,
            "socket_keepalive": True,
            "health_check_interval": (
                ELECTED_HEALTH_CHECK_SECONDS if is_elected else HEALTH_CHECK_SECONDS
            ),
        }
        put(app, broker_transport_options=options | dict(app.conf.broker_transport_options or {}))
        _keep_health_checks()
    results = _scheme(app.conf.result_backend or "")
    if results in REDIS:
        defaults["redis_socket_timeout"] = SOCKET_SECONDS
        defaults["redis_socket_connect_timeout"] = CONNECT_SECONDS
        defaults["redis_backend_health_check_interval"] = HEALTH_CHECK_SECONDS
        if results != "redis+socket":  # which redis-py refuses to keep alive
            defaults["redis_socket_keepalive"] = True
    if broker in REDIS or results in REDIS:
        from celery_metal_runtime import results as waiting  # not before gevent has patched

        waiting.install()
    for name, value in defaults.items():
        if not is_set(app, name):
            app.conf[name] = value


def _keep_health_checks() -> None:
    """Have kombu before 5.7 leave `health_check_interval` to redis-py, which has had it since 3.3.

    It drops what it does not see in the constructor of a connection's class or of the class above.
    redis-py 8 decorates them; with redis-py 6 the one for Sentinel has it two classes above.
    """
    from kombu.transport import redis as transport  # not before gevent has patched

    if getattr(transport, "accepts_argument", _accepts) is _accepts:
        return
    transport.accepts_argument = _accepts
    find = transport.Channel._connparams

    def find_and_adapt(self: Any, *args: Any, **options: Any) -> Any:
        found = find(self, *args, **options)
        made = found["connection_class"]
        # A class of this call, whose `disconnect` does not take redis-py 8's `error`: a check that
        # failed would end the worker with a TypeError.
        if made.__module__ == transport.__name__ and "disconnect" in vars(made):
            disconnect = made.disconnect
            made.disconnect = lambda self, *args, **_: disconnect(self, *args)
        return found

    transport.Channel._connparams = find_and_adapt


def _accepts(_function: Any, _name: str) -> bool:
    return True


def _results(environ: Mapping[str, str]) -> str:
    """What CELERY_METAL_RESULT_BACKEND says, or the secret that it names."""
    given = text(environ, RESULTS)
    if not given.startswith(SECRET):
        if _scheme(given) not in (*REDIS, *TLS) and _has_password(given):
            raise UsageError(
                f"{RESULTS} contains a password: put the address into a secret, and "
                "write secret:NAME"
            )
        return given
    found = secret(environ, RESULTS, given.removeprefix(SECRET)).strip()
    if not found or _scheme(found) in (*REDIS, *TLS):
        raise UsageError(
            f"{RESULTS}={given!r} names a secret that holds no address of a backend, or one of a "
            "Redis: write celery_worker_result_backend: redis for results at the broker's Redis"
        )
    return found


def _user(url: str) -> str:
    return unquote(urlsplit(url).username or "")


def _has_password(url: str) -> bool:
    return ":" in url.partition("://")[2].partition("/")[0].rpartition("@")[0]


def _password(environ: Mapping[str, str]) -> tuple[str, str]:
    """The password file's path and first line; no line where none is named and none is there."""
    path, content = _secret(environ, PASSWORD_FILE, DEFAULT_PASSWORD_FILE)
    return path, content.rstrip("\r\n")


def _tls(environ: Mapping[str, str]) -> dict[str, Any]:
    """What redis-py needs to check the server, and to be checked by it."""
    # A word, as ssl must not be loaded before gevent has patched.
    options: dict[str, Any] = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
    if ca := _pem(environ, CA_FILE, DEFAULT_CA_FILE, "CERTIFICATE"):
        options["ssl_ca_certs"] = ca
    if own := _pem(environ, CERTIFICATE_FILE, DEFAULT_CERTIFICATE_FILE, "CERTIFICATE", "KEY"):
        options |= {"ssl_certfile": own, "ssl_keyfile": own}
    return options


def _pem(environ: Mapping[str, str], variable: str, default: str, *parts: str) -> str:
    """The path of a file with these parts; empty where there is none by default."""
    path, content = _secret(environ, variable, default)
    for part in parts if content else ():
        # redis-py would say no more than "PEM lib", at each attempt to connect.
        if f"{part}-----" not in content:
            raise UsageError(f"{variable}={path!r} holds no {part} in PEM form: add it to the file")
    return path if content else ""


def _secret(environ: Mapping[str, str], variable: str, default: str) -> tuple[str, str]:
    """A file's path and text; no text where none is named and the default is not there."""
    named = text(environ, variable)
    path = Path(named or default)
    try:
        return str(path), path.read_text()
    except FileNotFoundError:
        if not named:
            return str(path), ""
        reason = "there is no such file"
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
    raise UsageError(
        f"{variable}={str(path)!r} cannot be read: {reason}; run site.yml, which brings the "
        "secret, or name a file that is there"
    )


def _for_celery(
    name: str, url: str, password: str, tls: dict[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    """`url` as Celery takes it, with the password; and the transport options that belong to it."""
    scheme = _scheme(url)
    try:
        parts = urlsplit(url)
        hosts = [urlsplit(f"//{host}") for host in parts.netloc.rpartition("@")[2].split(",")]
        given, ports = parts.netloc.rpartition("@")[0], [host.port for host in hosts]
        has_password = ":" in given
        is_address = 0 not in ports and (len(ports) == 1 or scheme in (SENTINEL, SENTINEL_TLS))
    except ValueError:  # a port that is no number, or an unfinished IPv6 address
        has_password, is_address = False, False
    if has_password:
        # The value is kept out of the message: it would end in the journal.
        raise UsageError(f"{name} contains a password: put it in the file named by {PASSWORD_FILE}")
    if scheme not in (*REDIS, *TLS) or not is_address:
        raise UsageError(
            f"{name}={url!r} is no address of a Redis: set it to redis://host:6379/0, "
            "rediss://host:6379/0, redis+socket:///path/redis.sock?virtual_host=0 or "
            "sentinel://host:26379,host:26379/0?master_name=NAME"
        )
    login = f"{given}:{quote(password, safe='')}@" if password else f"{given}@" * bool(given)
    if scheme not in (SENTINEL, SENTINEL_TLS):
        return f"{scheme}://{login}{url.partition('://')[2].rpartition('@')[2]}", {}
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    master, is_asked = query.get("master_name", ""), query.get("sentinel_auth", "yes") != "no"
    replicas = query.get("replicas", "0")
    if not (master and replicas.isdecimal() and all(host.hostname for host in hosts)):
        raise UsageError(
            f"{name}={url!r} is no address of Sentinels: set it to "
            "sentinel://host:26379,host:26379/0?master_name=NAME"
        )
    # With all of it in each: kombu takes what it logs in with from the one whose turn it is.
    addresses = [
        f"{SENTINEL}://{login}{_netloc(host)}:{port or SENTINEL_PORT}{parts.path}"
        for host, port in ((one.hostname or "", one.port) for one in hosts)
    ]
    timeouts = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), SENTINEL_SECONDS)
    user = {"username": unquote(given)} if given else {}
    entry = {**user, "password": password} if password and is_asked else {}
    kwargs = {**timeouts, **entry, **({"ssl": True, **tls} if tls else {})}
    options = {"master_name": master, "sentinel_kwargs": kwargs, "replicas": int(replicas)}
    return ";".join(addresses), options


def _netloc(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _add_options(app: "Celery", name: str, options: dict[str, Any]) -> None:
    """Options of an address go before an app's own: those were for another."""
    if options:
        put(app, **{name: dict(app.conf[name] or {}) | options})


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


def _forget(environ: MutableMapping[str, str], variables: Mapping[str, str]) -> None:
    """Have Celery not read these; those that the app is to find stay."""
    kept = {*text(environ, VARIABLES).split(",")}.intersection(variables)
    for name in variables.keys() - kept:
        environ.pop(name, None)
    if kept:
        _read_settings_alone({variables[name] for name in kept})


def _read_settings_alone(names: set[str]) -> None:
    """Have Celery take these settings from the app, and not from the environment."""
    from celery.app.utils import Settings  # not before gevent has patched

    getters = {
        "broker_url": lambda conf: conf.first("broker_url", "broker_host"),
        "broker_read_url": lambda conf: conf.get("broker_read_url") or conf.broker_url,
        "broker_write_url": lambda conf: conf.get("broker_write_url") or conf.broker_url,
        "result_backend": lambda conf: conf.first("result_backend", "CELERY_RESULT_BACKEND"),
    }
    for name in names:
        setattr(Settings, name, property(getters[name]))
