"""What an inventory says of the app's environment, secrets, results and addresses of Redis."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import Undefined
from texts import CONTROL, LETTERS, NAMES, NO_CHARACTER, VARIABLE, hushed, known, shown, word

# Of a variable of the environment, and of all in one mapping; the kernel takes 128 kB for one word,
# and systemd 1 MB for a line, which holds both mappings, and in which quotes count twice.
VALUE_BYTES = 65536
ENVIRONMENT_BYTES = 131072
SECRET = re.compile(r"[A-Za-z0-9_.-]{1,100}", re.ASCII)
# podman-secret-create(1): below 512 kB.
SECRET_BYTES = 512000
# Variables that celery-metal sets in the container, and those that Celery reads itself.
OURS = ("CELERY_METAL_",)
AS_BROKER = (
    "in which Celery would find another broker: write celery_worker_broker_variables: [{}], and "
    "the app finds the address of its Redis there"
)
AS_RESULTS = (
    "in which Celery would find another result backend: write celery_worker_result_backend, or "
    "celery_worker_broker_variables: [{}] for an app that reads the address of Redis there"
)
TAKEN = {
    "BROKER_URL": AS_BROKER,
    "CELERY_APP": "which is another variable: write celery_app",
    "CELERY_BROKER": AS_BROKER,
    "CELERY_BROKER_READ_URL": AS_BROKER,
    "CELERY_BROKER_URL": AS_BROKER,
    "CELERY_BROKER_WRITE_URL": AS_BROKER,
    "CELERY_RESULT_BACKEND": AS_RESULTS,
    "NOTIFY_SOCKET": "which systemd sets: remove it",
    "RESULT_BACKEND": AS_RESULTS,
}
# What Celery keeps results in: its own names, those of django-celery-results, a class by its path.
BACKENDS = (
    "arangodb|azureblockblob|cache|cassandra|consul|cosmosdbsql|couchbase|couchdb|database|db"
    "|disabled|django-cache|django-db|dynamodb|elasticsearch|file|gs|mongodb|riak|rpc|s3"
)
RESULTS = re.compile(
    rf"(?:{BACKENDS}|{NAMES}[.:][^\W\d]\w*)"
    r"(?:(?:\+[a-z][a-z0-9+._-]*)?://[\w.~:/?#\[\]@!&()*+,;=%-]*)?",
    re.ASCII,
)
REDIS_RESULTS = re.compile(r"(?:rediss?|sentinels?|unix)(?:\+\w+)?(?:://.*)?")
# As a parameter, or as a part of what an Azure account is named by.
KEY_IN_URL = re.compile(r"(?i)[/?&;][^/?&;=]*(?:pass|pwd|secret|token|key(?!space))[^/?&;=]*=")
SECRETS_TAKEN = {
    ".",
    "..",
    "celery-redis-ca",
    "celery-redis-certificate",
    "celery-redis-password",
}
# Hosts of a group that a message names.
KNOWN_HOSTS = 12


def app_problems(variables: Mapping[str, Any]) -> list[str]:
    """What is wrong with the environment and the secrets of the app; never with a secret in it."""
    prefix = "celery_worker_"
    secrets = variables.get(f"{prefix}secrets", {})
    exported = variables.get(f"{prefix}secrets_exported", [])
    queues = variables.get("celery_queues", [])
    overrides = variables.get("celery_queue_overrides", {})
    shaped = isinstance(secrets, Mapping) and isinstance(exported, list)
    if not shaped or not isinstance(queues, list) or not isinstance(overrides, Mapping):
        return []  # said already
    problems = environment_problems(
        f"{prefix}environment", variables.get(f"{prefix}environment", {}), exported
    )
    problems += secret_problems(secrets)
    problems += result_problems(variables.get(f"{prefix}result_backend", "app"), secrets)
    problems += broker_variable_problems(variables, exported)
    for name in exported:
        if not isinstance(name, str):
            continue  # said already
        if name not in secrets:
            problems.append(
                f"{prefix}secrets_exported names {shown(name)}, which is none of {prefix}secrets: "
                f"{known(secrets)}"
            )
        elif not VARIABLE.fullmatch(name):
            problems.append(
                f"{prefix}secrets_exported names {shown(name)}, which is no name of a variable: "
                f"{LETTERS}"
            )
    named = [
        (f"celery_queues ({shown(queue.get('name'))})", queue)
        for queue in queues
        if isinstance(queue, Mapping)
    ]
    named += [(f"celery_queue_overrides ({shown(name)})", own) for name, own in overrides.items()]
    for where, queue in named:
        if not isinstance(queue, Mapping):
            continue
        problems += environment_problems(
            f"{where}: environment", queue.get("environment", {}), exported
        )
        network = variables.get("celery_worker_network", "bridge")
        if queue.get("ports") and network in ("host", "none"):
            problems.append(
                f"{where} has ports, and celery_worker_network is {network}, where there are none "
                "to lead anywhere: remove them, or take bridge"
            )
        problems += chosen_problems(f"{where}: secrets", queue.get("secrets"), secrets)
    problems += environment_problems(
        "celery_beat_environment", variables.get("celery_beat_environment"), exported
    )
    problems += chosen_problems(
        "celery_beat_secrets", variables.get("celery_beat_secrets"), secrets
    )
    return problems


def chosen_problems(where: str, chosen: Any, secrets: Iterable[str]) -> list[str]:
    """What is wrong with the choice of some of the app's secrets."""
    return [
        f"{where} names {shown(name)}, which is none of celery_worker_secrets: {known(secrets)}"
        for name in (chosen if isinstance(chosen, list) else [])
        if isinstance(name, str) and name not in secrets
    ]


def beat_problems(variables: Mapping[str, Any]) -> list[str]:
    """What is wrong with the choice of hosts that run Beat."""
    chosen = variables.get("celery_beat_hosts")
    if not isinstance(chosen, list):
        return []  # the first two, or said already
    known = list(variables.get("groups", {}).get("celery", []))
    few = [*known[:KNOWN_HOSTS], *(["..."] if len(known) > KNOWN_HOSTS else [])]
    hosts = f"the group celery has {', '.join(few) or 'no host'}"
    if not chosen:
        return [
            f"celery_beat_hosts is empty, so that no host would schedule: name some ({hosts}), or "
            "leave celery_beat out"
        ]
    return [
        f"celery_beat_hosts names {word(host)}, which is no host of the group celery: write "
        f"others; {hosts}"
        for host in chosen
        if isinstance(host, str) and host not in known
    ]


def environment_problems(where: str, values: Any, exported: Iterable[str]) -> list[str]:
    """What is wrong with environment variables, each with its value and the remedy."""
    problems = []
    exported = [name for name in exported if isinstance(name, str)]
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if not isinstance(name, str) or not VARIABLE.fullmatch(name):
            problems.append(
                f"{where} names {shown(name)}, which is no name of a variable: {LETTERS}"
            )
        elif name.startswith(OURS) or name in TAKEN:
            remedy = TAKEN.get(name, "which a variable of the roles decides: use that")
            problems.append(f"{where} sets {name}, {remedy.format(name)}")
        elif name in exported:
            problems.append(
                f"{where} sets {name}, which celery_worker_secrets_exported names as well: keep one"
            )
        elif not isinstance(value, str):
            problems.append(
                f"{where} has {name} as {shown(value)}, which is no text (YAML reads no as "
                "false, and 010 as 8): put what you mean in quotes"
            )
        elif CONTROL.search(value) or NO_CHARACTER.search(value):
            problems.append(
                f"{where} has {name} as {shown(value)}: a unit file has no place for lines and "
                "control characters; make it a secret, which is a file"
            )
        elif len(value.encode()) > VALUE_BYTES:
            problems.append(
                f"{where} has {name} as {shown(value)}, of {len(value.encode())} bytes: a unit "
                f"file has no place for more than {VALUE_BYTES}; make it a secret, which is a file"
            )
    texts = values.items() if isinstance(values, Mapping) else ()
    size = sum(len(f"{name}={value}".encode()) for name, value in texts)
    if size > ENVIRONMENT_BYTES and not problems:
        problems.append(
            f"{where} has {size} bytes in all, and a unit file has no place for more than "
            f"{ENVIRONMENT_BYTES}; make some of it secrets, which are files"
        )
    return problems


def broker_variable_problems(variables: Mapping[str, Any], exported: list[Any]) -> list[str]:
    """What is wrong with the names of variables that get the address of Redis."""
    where = "celery_worker_broker_variables"
    names = variables.get(where, [])
    if not isinstance(names, list) or not names:
        return []
    queues = [
        *variables.get("celery_queues", []),
        *variables.get("celery_queue_overrides", {}).values(),
    ]
    environments = [queue.get("environment") for queue in queues if isinstance(queue, Mapping)]
    environments.append(variables.get("celery_worker_environment"))
    others = {name for one in environments if isinstance(one, Mapping) for name in one}
    problems = []
    for name in names:
        if not isinstance(name, str):
            continue  # the type check refuses it
        if not VARIABLE.fullmatch(name):
            problems.append(
                f"{where} names {shown(name)}, which is no name of a variable: {LETTERS}"
            )
        elif name.startswith(OURS) or "{}" not in TAKEN.get(name, "{}"):
            problems.append(f"{where} names {name}, which holds something else: remove it")
        elif name in exported or (name in others and name not in TAKEN):
            other = "celery_worker_secrets_exported" if name in exported else "an environment"
            problems.append(f"{where} names {name}, which {other} has as well: keep one")
    external = variables.get("redis_mode") == "external"
    hosts = [] if external else variables.get("groups", {}).get("redis", [])
    url = variables.get("redis_external_url") if external else ""
    if len(hosts) > 1 or str(url).startswith(("sentinel://", "sentinels://")):
        problems.append(
            f"{where} is {shown(names)}, and redis-py has no URL for a Redis that Sentinels elect: "
            "remove it, and have the app take a client of Celery's: "
            "app.connection_for_write().default_channel.client"
        )
    return problems


def result_problems(value: Any, secrets: Mapping[str, Any]) -> list[str]:
    """What is wrong with where results are kept; never with a password in it."""
    where = "celery_worker_result_backend"
    if not isinstance(value, str) or CONTROL.search(value) or NO_CHARACTER.search(value):
        return []  # the type check refuses it
    kind, _, name = value.partition(":")
    if value in ("app", "redis"):
        return []
    if kind == "secret" and name not in secrets:
        return [
            f"{where} names the secret {shown(name)}, which is none of celery_worker_secrets: "
            f"{known(secrets)}"
        ]
    held = secrets[name] if kind == "secret" else value
    if isinstance(held, str) and REDIS_RESULTS.fullmatch(held.strip()):
        return [
            f"{where} is {shown(hushed(value))}, the address of a Redis: results are kept in the "
            f"Redis of the tasks or in none, so write {where}: redis"
        ]
    if kind == "secret":
        return []
    if value != hushed(value) or KEY_IN_URL.search(value):
        return [
            f"{where} is an address with a password in it: put it into celery_worker_secrets, such "
            f'as RESULTS, and write {where}: "secret:RESULTS"'
        ]
    if not RESULTS.fullmatch(value):
        return [
            f"{where} is {shown(value)}, which is no backend: write app, redis, django-db, rpc://, "
            "db+postgresql://host/name, secret:NAME or package.module:Class"
        ]
    return []


def secret_problems(secrets: Mapping[str, Any]) -> list[str]:
    """What is wrong with secrets, without their values."""
    problems = []
    for name, value in secrets.items():
        if isinstance(value, Undefined):
            problems.append(
                f"celery_worker_secrets[{name}] names something that is not defined: "
                f"{value._undefined_message}"
            )
        elif not isinstance(name, str) or not SECRET.fullmatch(name) or name in SECRETS_TAKEN:
            problems.append(
                f"celery_worker_secrets has the name {shown(name)}: take 1 to 100 of the letters A "
                "to Z, digits, and _ . - , and no name of celery-metal's own"
            )
        elif not isinstance(value, str):
            problems.append(
                f"celery_worker_secrets[{name}] is no text: put its value in quotes (a mapping or "
                "list: make it text with to_json)"
            )
        elif not 0 < len(value.encode()) < SECRET_BYTES:
            problems.append(
                f"celery_worker_secrets[{name}] is empty, or larger than Podman keeps "
                f"({SECRET_BYTES - 1} bytes): give it a value, or remove it"
            )
    return problems
