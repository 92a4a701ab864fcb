#!/usr/bin/python
"""Whether a Redis that somebody else runs can be the broker, and is safe, seen from here."""

from __future__ import annotations

DOCUMENTATION = r"""
module: celery_survey
short_description: Look at a Redis or Valkey of the user's own, changing nothing on it
description:
  - Connects as workers will, and asks for the version, the role, eviction, persistence, and whether
    the user may do all that Celery and the runtime do.
  - Commands are tried in a transaction that is never executed; rights are checked before.
options:
  host: {description: Its name or address, type: str, default: ""}
  port: {description: Its port, type: int, default: 0}
  sentinels:
    description: Instead, host and port of each Sentinel that knows the primary.
    type: list
    elements: list
    default: []
  master_name: {description: The name that Sentinels have for the primary, type: str, default: ""}
  sentinel_auth: {description: Whether Sentinels take the same login, type: bool, default: true}
  tls: {description: Whether it speaks TLS, type: bool, default: false}
  user: {description: Name of the user; empty for the default one, type: str, default: ""}
  password: {description: The user's password; empty for none, type: str, default: ""}
  database: {description: Number of the database, type: int, default: 0}
  ca:
    description: PEM text of the authority; empty for those that the system trusts.
    type: str
    default: ""
  certificate:
    description: PEM text of the client's certificate and its key; empty for none.
    type: str
    default: ""
  queues:
    description: Names of the queues.
    type: list
    elements: str
    default: []
author: celery-metal
"""

EXAMPLES = r"""
- name: Look at the Redis that is there
  celery_survey:
    host: 10.0.0.5
    port: 6379
  register: survey
"""

RETURN = r"""
server: {description: What it is, such as "redis 8.0.2", type: str, returned: always}
run_id:
  description: What this one run of it is known by; empty where the user may not ask
  type: str
  returned: always
database: {description: Number of the database that was looked at, type: int, returned: always}
findings:
  description: For each problem its C(kind), what was C(seen), and the C(remedy)
  type: list
  returned: always
notes: {description: What is no problem and worth knowing, type: list, returned: always}
"""

import ssl
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_redis import (
    SECONDS,
    Client,
    RedisError,
    fields,
    primary_of,
    tls_context,
)

if TYPE_CHECKING:
    from celery_metal_types import Survey, SurveyOptions

# BLMOVE, which no task is lost with.
LEAST = (6, 2)
# Denied commands that a message names.
NAMED = 8
SHA = "0" * 40
QUEUE = "{queue}"
# As Celery and the runtime send them, for each queue; tests compare them with users.acl.
PROBES = (
    ("PING",),
    ("UNWATCH",),
    ("TIME",),
    ("EVAL", "return", "0"),
    ("EVALSHA", SHA, "0"),
    ("SCRIPT", "LOAD", "return"),
    ("SCRIPT", "EXISTS", SHA),
    ("WAIT", "0", "0"),
    ("LPUSH", QUEUE, "x"),
    ("RPUSH", QUEUE, "x"),
    ("RPOP", QUEUE),
    ("BRPOP", QUEUE, "1"),
    ("BLMOVE", QUEUE, "celery-metal.held:preflight:{queue}", "RIGHT", "LEFT", "1"),
    ("LREM", QUEUE, "1", "x"),
    ("LRANGE", QUEUE, "0", "0"),
    ("LLEN", QUEUE),
    ("EXISTS", QUEUE),
    ("PEXPIRE", QUEUE, "1"),
    ("DEL", QUEUE),
    ("PUBLISH", "/0.celery.pidbox", "x"),
    ("SUBSCRIBE", "/0.celery.pidbox"),
    ("UNSUBSCRIBE", "/0.celery.pidbox"),
    ("PSUBSCRIBE", "/0.celeryev/*"),
    ("PUNSUBSCRIBE", "/0.celeryev/*"),
    *(
        (command, f"celery-{kind}-meta-preflight", *words)
        for kind in ("task", "taskset")
        for command, *words in (
            ("GET",),
            ("MGET",),
            ("SET", "x"),
            ("SETEX", "1", "x"),
            ("INCRBY", "1"),
            ("EXPIRE", "1"),
            ("SADD", "x"),
            ("SISMEMBER", "x"),
            ("ZADD", "1", "x"),
            ("ZCOUNT", "0", "1"),
            ("ZRANGE", "0", "1"),
            ("SUBSCRIBE",),
        )
    ),
    ("SADD", "_kombu.binding.preflight", "x"),
    ("SREM", "_kombu.binding.preflight", "x"),
    ("SMEMBERS", "_kombu.binding.preflight"),
    ("ZADD", "_kombu.binding.preflight", "1", "x"),
    ("ZREM", "_kombu.binding.preflight", "x"),
    ("ZRANGEBYSCORE", "_kombu.binding.preflight", "0", "1"),
    ("HSET", "unacked", "x", "x"),
    ("HGET", "unacked", "x"),
    ("HDEL", "unacked", "x"),
    ("ZADD", "unacked_index", "1", "x"),
    ("ZREM", "unacked_index", "x"),
    ("ZRANGE", "unacked_index", "0", "1"),
    ("ZREVRANGEBYSCORE", "unacked_index", "1", "0"),
    ("SET", "unacked_mutex", "x"),
    ("GET", "unacked_mutex"),
    ("HSET", "celery-metal.nodes", "x", "x"),
    ("HGET", "celery-metal.nodes", "x"),
    ("HGETALL", "celery-metal.nodes"),
    ("HDEL", "celery-metal.nodes", "x"),
    ("ZADD", "celery-metal.revoked", "1", "x"),
    ("ZREM", "celery-metal.revoked", "x"),
    ("ZRANGE", "celery-metal.revoked", "0", "1"),
    ("GET", "celery-metal.beat.lock"),
    ("SET", "celery-metal.beat.lock", "x"),
    ("PTTL", "celery-metal.beat.lock"),
)
# What cannot be queued, and does nothing outside of a transaction.
OUTSIDE = (("WATCH", "unacked_mutex"), ("EXEC",), ("SELECT", "0"))


class Finding(NamedTuple):
    """Why it cannot be the broker, or is not safe as one; those of some kinds can be accepted."""

    kind: str
    seen: str
    remedy: str


class UnusableError(Exception):
    """What is wrong is a finding, and nothing more can be asked."""

    def __init__(self, *finding: str) -> None:
        super().__init__(finding[1])
        self.finding = Finding(*finding)


def connected(params: SurveyOptions, directory: str) -> tuple[Client, list[str]]:
    """A connection, with TLS where it is told; and what is worth knowing of the Sentinels.

    :raises UnusableError: when there is none to be had.
    """
    where: tuple[str, int] = (params["host"], params["port"])
    silent: dict[str, str] = {}
    try:
        tls = tls_context(params["ca"], params["certificate"], directory) if params["tls"] else None
        if params["sentinels"]:
            where, silent = primary_of(
                params["sentinels"],
                params["master_name"],
                login_of(params) if params["sentinel_auth"] else (),
                tls,
            )
        notes = [f"the Sentinel {name} gives no answer: {why}" for name, why in silent.items()]
        return Client(where, SECONDS, tls), notes
    except RedisError as problem:
        raise of_sentinels(str(problem), params) from None
    except ssl.SSLCertVerificationError as problem:
        raise UnusableError(
            "tls",
            f"its certificate is not accepted: {problem.verify_message}",
            "give the certificate of its authority as redis_external_ca, and write the name or "
            "address that it was issued for into redis_external_url",
        ) from None
    except ssl.SSLError as problem:
        raise UnusableError(
            "tls",
            f"TLS fails: {getattr(problem, 'reason', None) or problem}",
            "write redis:// if it speaks no TLS; else look at redis_external_ca and "
            "redis_external_certificate",
        ) from None
    except OSError as problem:
        why = "no answer" if isinstance(problem, TimeoutError) else problem.strerror or problem
        raise UnusableError(
            "unreachable",
            f"it cannot be reached: {why}",
            "correct redis_external_url, or mend the route, the firewalls between, or what that "
            "Redis listens on (bind)",
        ) from None


def login_of(params: SurveyOptions) -> tuple[str, ...]:
    """What AUTH is given; nothing where there is no password and no user."""
    user, password = params["user"], params["password"]
    return (*([user] if user else []), password) if user or password else ()


def of_sentinels(said: str, params: SurveyOptions) -> UnusableError:
    """What it means that Sentinels name no primary."""
    if "closed" in said:
        return refused(said, params)
    if said.startswith(("WRONGPASS", "NOAUTH", "NOPERM", "ERR")):
        return UnusableError(
            "sentinel",
            f"a Sentinel refuses the user {params['user'] or 'default'}: {said}",
            "give the Sentinels that user with the same password and +sentinel|masters, or write "
            "&sentinel_auth=no at the end of redis_external_url if they ask for none",
        )
    return UnusableError(
        "sentinel",
        f"its Sentinels name no primary: {said}",
        "correct master_name in redis_external_url, or mend that there",
    )


def entered(client: Client, params: SurveyOptions) -> dict[str, Any]:
    """Log in, and take what the server says of itself: server, version, mode, role ...

    :raises UnusableError: when it lets nobody in, or is too old to tell.
    """
    login = login_of(params)
    try:
        if login:
            client.ask(("AUTH", *login))
        (said,) = client.ask(("HELLO",))
    except RedisError as problem:
        raise refused(str(problem), params) from None
    return dict(zip(said[::2], said[1::2], strict=True))


def refused(said: str, params: SurveyOptions) -> UnusableError:
    """What it means that a login was refused, or what it was answered with."""
    user = params["user"] or "default"
    if said.startswith(("WRONGPASS", "NOAUTH", "ERR invalid password")):
        what = "does not take the password" if params["password"] else "asks for a password"
        return UnusableError(
            "password",
            f"it {what} of the user {user}",
            "give it as redis_external_password, from Ansible's vault, and the user in "
            "redis_external_url",
        )
    if "without any password configured" in said:
        return UnusableError(
            "password",
            f"its user {user} has no password, and redis_external_password gives one",
            "give that user a password there",
        )
    if "unknown command" in said or "wrong number of arguments" in said:
        return UnusableError("version", "it is older than Redis 6.0", "upgrade it to 6.2 or newer")
    if "closed" in said:
        remedy = (
            "if it asks for a certificate, give it as redis_external_certificate"
            if params["tls"]
            else "if it speaks TLS, write rediss:// or sentinels:// in redis_external_url"
        )
        return UnusableError("tls", "it closes the connection", f"{remedy}; else look at its log")
    return UnusableError(
        "unreachable", f"it answers {said}", "look at its log, and mend that there"
    )


def of_the_server(said: dict[str, Any]) -> list[Finding]:
    """What is wrong with what it is."""
    found = []
    server, version = said.get("server", "redis"), str(said.get("version", "0"))
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if server == "redis" and parts < LEAST:
        found.append(
            Finding("version", f"it is Redis {version}", "upgrade it to 6.2 or newer, or to Valkey")
        )
    if said.get("mode", "standalone") != "standalone":
        found.append(
            Finding(
                "mode",
                f"it runs as {said['mode']}",
                "take a single Redis, as Celery's queues and scripts use keys of any slot; or, for "
                "what Sentinels elect, write sentinel://host:26379,host:26379/0?master_name=NAME",
            )
        )
    if said.get("role", "master") != "master":
        found.append(
            Finding("replica", f"it is a {said['role']}", "name the primary in redis_external_url")
        )
    return found


def of_the_settings(
    info: dict[str, str] | None, settings: dict[str, str]
) -> tuple[list[Finding], list[str]]:
    """What is not safe in how it keeps data, and what is worth knowing.

    :param info: what INFO says; None where the user may not ask.
    :param settings: what CONFIG GET says, as far as the user may ask.
    """
    if info is None:
        return [
            Finding(
                "info",
                "its user may not run INFO, so that eviction and persistence cannot be looked at",
                "grant +info there",
            )
        ], []
    found, notes = [], []
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found.append(
            Finding(
                "eviction",
                f"its maxmemory-policy is {policy}: when it is full it deletes tasks",
                "set maxmemory-policy noeviction there",
            )
        )
    if info.get("aof_enabled") == "0":
        saves = settings.get("save")
        lost = {
            None: "what came since its last snapshot, or all where it makes none,",
            "": "it makes no snapshots either, and all",
        }.get(saves, "what came since its last snapshot")
        found.append(
            Finding(
                "persistence",
                f"it has no append-only file: {lost} is lost when it ends",
                "set appendonly yes there, with CONFIG SET and in its redis.conf",
            )
        )
    elif settings.get("appendfsync") == "no":
        found.append(
            Finding(
                "appendfsync",
                "its appendfsync is no: a power cut takes some 30 s of tasks",
                "set appendfsync everysec there",
            )
        )
    elif "appendfsync" not in settings:
        notes.append("its user may not run CONFIG GET, so that appendfsync could not be looked at")
    if info.get("maxmemory", "0") == "0":
        notes.append("it has no maxmemory: the kernel may end it when its host's memory is full")
    return found, notes


def denied(client: Client, queues: list[str]) -> list[str]:
    """What the user may not do of what workers do; nothing of it is done.

    :raises UnusableError: when the server takes no writes at all.
    """
    outside = zip(OUTSIDE, client.try_all(*OUTSIDE), strict=True)
    lacking = [words[0] for words, said in outside if is_denied(said)]
    # Only then is what follows queued; the connection is closed without an EXEC.
    (begun,) = client.try_all(("MULTI",))
    if begun != "OK":
        return [*lacking, "MULTI"]
    commands = [
        tuple(word.replace(QUEUE, queue) for word in words)
        for words in PROBES
        for queue in (queues if QUEUE in words else [""])
    ]
    for words, said in zip(commands, client.try_all(*commands), strict=True):
        if is_denied(said):
            lacking.append(" ".join(words[:2]))
        elif isinstance(said, RedisError) and str(said).split()[0] in ("OOM", "MISCONF"):
            raise UnusableError("full", f"it takes no tasks: {said}", "mend that there")
    return lacking


def is_denied(said: Any) -> bool:
    return isinstance(said, RedisError) and str(said).startswith("NOPERM")


def survey(params: SurveyOptions, directory: str) -> Survey:
    """All that is found, as the module returns it."""
    said: dict[str, Any] = {}
    found: list[Finding] = []
    notes: list[str] = []
    known: dict[str, str] | None = None
    client = None
    try:
        client, silent = connected(params, directory)
        said = entered(client, params)
        found += of_the_server(said)
        if params["password"] == "":
            found.append(
                Finding(
                    "authentication",
                    "it asks for no password: whoever reaches it can send and take tasks",
                    "give its user a password, and that as redis_external_password",
                )
            )
        select, info, *settings = client.try_all(
            ("SELECT", str(params["database"])),
            ("INFO",),
            ("CONFIG", "GET", "appendfsync"),
            ("CONFIG", "GET", "save"),
            ("CONFIG", "GET", "min-replicas-to-write"),
        )
        if isinstance(select, RedisError) and not is_denied(select):
            raise UnusableError(
                "database",
                f"it has no database {params['database']}: {select}",
                "correct the number at the end of redis_external_url",
            )
        told = dict(one for one in settings if isinstance(one, list) and len(one) == 2)
        known = None if isinstance(info, RedisError) else fields(info)
        more, notes = of_the_settings(known, told)
        found += more
        notes += silent
        if params["sentinels"] and told.get("min-replicas-to-write") == "0":
            found.append(
                Finding(
                    "replicas",
                    "its min-replicas-to-write is 0: a primary that is cut off goes on taking "
                    "tasks, which are gone when another is elected",
                    "set min-replicas-to-write 1 and min-replicas-max-lag 10 there, on all of them",
                )
            )
        lacking = denied(client, params["queues"])
        if lacking:
            rest = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
            found.append(
                Finding(
                    "permissions",
                    f"the user {params['user'] or 'default'} may not: "
                    f"{', '.join(lacking[:NAMED])}{rest}",
                    "grant it what docs/external.md lists",
                )
            )
    except UnusableError as problem:
        found.append(problem.finding)
    except (OSError, RedisError) as problem:
        # A server that wants a certificate says so after the handshake.
        tls = isinstance(problem, ssl.SSLError) or (params["tls"] and not params["certificate"])
        found.append(
            Finding(
                "tls" if tls else "unreachable",
                f"it ends the connection: {getattr(problem, 'reason', None) or problem}",
                "give the certificate that it asks for as redis_external_certificate"
                if tls
                else "look at its log, and mend that there",
            )
        )
    finally:
        if client is not None:
            client.close()
    return {
        "server": f"{said.get('server', 'redis')} {said.get('version', '')}".strip(),
        "run_id": (known or {}).get("run_id", ""),
        "database": params["database"],
        "findings": [{"kind": one.kind, "seen": one.seen, "remedy": one.remedy} for one in found],
        "notes": notes,
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "default": ""},
            "port": {"type": "int", "default": 0},
            "sentinels": {"type": "list", "elements": "list", "default": []},
            "master_name": {"type": "str", "default": ""},
            "sentinel_auth": {"type": "bool", "default": True},
            "tls": {"type": "bool", "default": False},
            "user": {"type": "str", "default": ""},
            "password": {"type": "str", "default": "", "no_log": True},
            "database": {"type": "int", "default": 0},
            "ca": {"type": "str", "default": ""},
            "certificate": {"type": "str", "default": "", "no_log": True},
            "queues": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    params = cast("SurveyOptions", module.params)
    module.exit_json(changed=False, **survey(params, module.tmpdir))


if __name__ == "__main__":
    main()
