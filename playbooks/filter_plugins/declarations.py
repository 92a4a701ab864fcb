"""Check the kit's variables against the roles' argument specs, all at once and in plain words.

Ansible checks a role's arguments when the role begins, when hosts have been changed already, and
prints the whole specification with the mistake. This looks at what the inventory and the command
line say before any host is contacted.
"""

from __future__ import annotations

import datetime
import difflib
import functools
import ipaddress
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping, Sized
from typing import Any

import yaml
from jinja2 import Undefined, UndefinedError

try:
    from ansible.errors import AnsibleError
except ImportError:  # the functions also serve where Ansible is not installed
    AnsibleError = ValueError
# Beside this file, and rules that are no plugins; Ansible loads filters by their path.
sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "declared"))
import addresses
import hooks
from of_the_app import KNOWN_HOSTS, SECRET_BYTES, app_problems, beat_problems
from texts import CONTROL, NAMES, NO_CHARACTER, hushed, shown, word

SAFE = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What comes of looking at a value whose template fails; `source` is then what stands for it.
UNREADABLE = (AnsibleError, RecursionError, UndefinedError)
# Variables of this name belong to the kit; a name close to one of ours is taken for a typing error.
PREFIXES = ("capacity_", "celery_", "deploy_", "image_", "podman_host_", "redis_")
KINDS = {
    "bool": (bool, "true or false"),
    "dict": (Mapping, "a mapping"),
    "int": (int, "a whole number"),
    "list": (list, "a list"),
    "path": (str, "text"),
    "str": (str, "text"),
}
CLOSE = 0.85
# A name of before to that of now.
RENAMED = {"celery_worker_app": "celery_app"}
# Values, one in another: more is no declaration.
DEPTH = 20
# What text must look like that becomes a word of a unit, a command or a configuration.
FORMS = {
    "celery_app": (rf"{NAMES}(:{NAMES})?", "write package.module:attribute"),
    "celery_worker_network": (
        # The first is bridge without its rules; options of the second would lead to Podman's own.
        r"(?!celery-metal(?::|\Z)|bridge:)(?a:[A-Za-z0-9][\w.:,=/+-]*)",
        "write bridge, host, none, or a Podman network of yours",
    ),
    "image_app_version": (r"(?a:[\w.-]*)", "write the tag of a version that the hosts have kept"),
    "podman_host_packages": (r"[a-z0-9][a-z0-9+.-]+", "write the name of a package"),
    "podman_host_user_range": (
        r"[1-9][0-9]{0,9}:[1-9][0-9]{0,9}",
        'write "first:count", such as "2147483647:2147483648"',
    ),
    "redis_address": (
        r"([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)?",
        "write an IPv4 address, or a name that has one",
    ),
    "redis_backup_calendar": (
        r"(?a:[\w*:,./~+ -]*\w[\w*:,./~+ -]*)",
        'write it as systemd does, such as daily or "*-*-* 02:30"',
    ),
    "redis_client_addresses": (
        r"(?a:\w([\w.-]{0,251}\w)?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)",
        "write an address or a name, such as 10.0.0.7",
    ),
    "redis_control_users": ("producer|monitor", "write producer, monitor, both, or none of them"),
    "redis_external_accept": (
        "appendfsync|authentication|eviction|info|permissions|persistence|replicas",
        "write some of appendfsync, authentication, eviction, info, permissions, persistence, "
        "replicas",
    ),
    "redis_key_prefixes": (
        r"(?a:[\w.:{}/-]{1,100})",
        "write the global_keyprefix of an app, such as shop:",
    ),
    "redis_socket_group": (
        r"(?a:[a-z_][a-z0-9_-]{0,30})",
        "write the name of a group, such as celery-redis",
    ),
    "redis_tls_names": (
        r"(?a:\w([\w.-]{0,251}\w)?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)",
        "write an address or a name, such as redis.example",
    ),
}
# Read by the roles themselves, when facts are known.
LATE = ("celery_app", "celery_worker_", "deploy_", "podman_host_", "redis_")
# How many hosts upgrade.yml takes at a time.
SERIAL = re.compile(r"[1-9][0-9]{0,4}|(?:[1-9][0-9]?|100)%", re.ASCII)
# As Redis reads a line of redis.conf: quotes end what they begin, and before a blank.
DIRECTIVE = re.compile(r"[A-Za-z][A-Za-z0-9-]*", re.ASCII)
ARGUMENTS = re.compile(r"""(?:[^"']|"(?:\\.|[^"\\])*"(?=\s|$)|'(?:\\'|[^'])*'(?=\s|$))*""")
# Those of the role redis, in its file users.acl.
USERS = ("worker", "producer", "monitor", "admin")
# Of redis_apps; a colon ends what Celery adds nothing to, and no key of Celery's own has one there.
APP = re.compile(r"[a-z][a-z0-9]{0,30}", re.ASCII)
APP_PREFIX = re.compile(r"[a-zA-Z0-9][\w-]{0,50}:", re.ASCII)
# Commands, keys and channels; with parentheses around them a selector.
RIGHT = r"(?:[+-]@?[\w|-]+|%[RW]{1,2}~[^\s()]+|[~&][^\s()]+)"
RIGHTS = re.compile(rf" *(?:(?:{RIGHT}|\( *{RIGHT}(?: +{RIGHT})* *\))(?: +|$))*", re.ASCII)
# Addresses without a password.
WHERE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[1-9][0-9]{0,4})?"
EXTERNAL = re.compile(
    rf"rediss?://(?:[\w.+-]+@)?{WHERE}(?:/[0-9]{{0,4}})?"
    rf"|sentinels?://(?:[\w.+-]+@)?{WHERE}(?:,{WHERE})*(?:/[0-9]{{0,4}})?"
    r"\?master_name=[\w.-]+(?:&sentinel_auth=(?:yes|no))?",
    re.ASCII,
)
# Bits of celery_worker_subnet.
SUBNET_LARGEST, SUBNET_SMALLEST = 16, 28
PRIVATE = [
    ipaddress.IPv4Network(one)
    for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
]
# Of redis_tls_files.
TLS_FILES = ("ca", "server", "worker")
# Read on each host for itself; all others are those of the first host of the fleet.
IMAGES_OF_A_HOST = {"image_registry_auth_file", "image_registry_tls_verify"}
# Set by the playbooks over whatever an inventory says.
GIVEN = "given by the playbook"
# Of these a message has no value.
SECRETS = ("celery_worker_secrets", "redis_external_password")


def bounds(description: str | list[str]) -> tuple[int, int] | None:
    """The range that a description states as ``1 to 65535``.

    >>> bounds("The TCP port, 1 to 65535.")
    (1, 65535)
    """
    found = re.search(r"\b(\d+) to (\d+)\b", " ".join(flat(description)))
    return (int(found.group(1)), int(found.group(2))) if found else None


def flat(description: str | list[str]) -> list[str]:
    return [description] if isinstance(description, str) else description


def read(where: str, value: Any, unread: list[tuple[str, Any]], depth: int = 0) -> Any:
    """A plain copy of a variable's value, templates and all in it resolved.

    :param where: the variable's name, and the way to the value in it.
    :param unread: gets the way and the reason, for each part that cannot be read; in the copy None
        stands for it.
    """
    if isinstance(value, Undefined):
        unread.append((where, value))
        return None
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            unread.append((where, ValueError("it holds half of a character")))
        return value
    if not isinstance(value, (Mapping, list, tuple)):
        return value
    if depth == DEPTH:
        unread.append((where, ValueError(f"it holds more than {DEPTH} values in each other")))
        return None
    pairs = value if isinstance(value, Mapping) else range(len(value))
    copy = {}
    for key in pairs:
        place = f"{where}[{shown(key).strip(chr(34))}]"
        try:
            copy[key] = read(place, value[key], unread, depth + 1)
        except UNREADABLE as error:
            unread.append((place, getattr(error, "source", error)))
            copy[key] = None
    return copy if isinstance(value, Mapping) else list(copy.values())


def waits_for_facts(reason: Any) -> bool:
    """Whether a value may be readable once facts are known: it names a part of something."""
    if not isinstance(reason, Undefined):
        return False
    said = str(reason._undefined_message)
    return bool(re.search(r"has no (attribute|element)|^'ansible_\w+' is undefined", said))


def unread_problem(where: str, reason: Any) -> str:
    """Why a part of a variable cannot be read, and what to do; no text of a secret."""
    secret = where.startswith(SECRETS)
    said = str(reason._undefined_message if isinstance(reason, Undefined) else reason)
    said = said.removeprefix("A captured exception marker was tripped: ")
    said = " ".join(said.split("\n")[0].split())
    # Ansible's own kind of Undefined knows its template.
    known = hasattr(type(reason), "_marker_template_source")
    source = reason._marker_template_source if known else None
    said += f", in {shown(source)}" if isinstance(source, str) and not secret else ""
    if "decrypt" in said or "vault" in type(reason).__name__.lower():
        return (
            f"{where} cannot be decrypted: give the vault's password, as with --ask-vault-pass, or "
            "encrypt the value anew"
        )
    if re.search(r"is undefined|has no (attribute|element)", said):
        return (
            f"{where} names something that is not defined: {said}: define it, or write !unsafe "
            "before text that is no template"
        )
    if secret:
        said = "its template fails"
    return (
        f"{where} cannot be read: {said}: correct it, or write !unsafe before text that is no "
        "template"
    )


def problem(name: str, value: Any, option: Mapping[str, Any]) -> str:
    """What is wrong with a variable's value, and what to write; empty when nothing is."""
    kind = option.get("type", "str")
    if kind == "raw":
        return ""  # a number or a word: the role that owns it checks it
    if isinstance(value, Undefined):
        return unread_problem(name, value)
    python, words = KINDS[kind]
    wanted = words
    limits = bounds(option.get("description", "")) if kind == "int" else None
    if limits:
        wanted += f", {limits[0]} to {limits[1]}"
    if option.get("choices"):
        wanted = f"one of {', '.join(map(str, option['choices']))}"
    fits = isinstance(value, python) and not (kind == "int" and isinstance(value, bool))
    if fits and option.get("choices"):
        fits = value in option["choices"]
    if fits and limits:
        fits = limits[0] <= value <= limits[1]
    if fits and kind == "list" and option.get("elements"):
        element = {"type": option["elements"], "description": ""}
        wrong = [problem(f"{name}[{place}]", one, element) for place, one in enumerate(value)]
        return "; ".join(filter(None, wrong))
    if fits and isinstance(value, str):
        return text_problem(name, value)
    if fits:
        return ""
    if name == "celery_worker_secrets":
        return f"{name} is no mapping: write {{NAME: value}}"
    if name in SECRETS:
        return f"{name} is no text: put its value in quotes"
    hint = ""
    if isinstance(value, str) and kind in ("int", "bool"):
        hint = ", without quotes (-e name=value always gives text: use -e '{name: value}')"
    return f"{name} is {hushed(shown(value))}: it must be {wanted}{hint}"


def text_problem(name: str, value: str) -> str:
    """What is wrong with a text that has the right type."""
    if name in SECRETS:
        return ""  # external_problems knows what it must not hold
    if CONTROL.search(value) or NO_CHARACTER.search(value):
        seen = hushed(shown(value))
        return f"{name} is {seen}: it holds a control character or a line's end: remove it"
    form, remedy = FORMS.get(name.partition("[")[0], ("", ""))
    if form and not re.fullmatch(form, value):
        return f"{name} is {shown(value)}, which cannot be used: {remedy}"
    return ""


@functools.cache
def options_of(specs: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What the argument specs of roles say of each variable, by its name."""
    options: dict[str, dict[str, Any]] = {}
    for spec in specs:
        # Not Ansible's own from_yaml, which remembers where each word stood, and takes its time.
        options |= yaml.load(spec, SAFE)["argument_specs"]["main"]["options"]
    return options


def declaration_problems(
    variables: Mapping[str, Any],
    specs: Iterable[str],
    host: str,
    facts_known: bool = False,
    address: str | None = None,
    places: Iterable[str] = (),
    first: Mapping[str, Any] | None = None,
) -> str:
    """All that is wrong with the kit's variables of a host, one line each; empty when nothing is.

    :param variables: all variables of the host.
    :param specs: the text of ``meta/argument_specs.yml`` of each role.
    :param host: the host's name, for the message.
    :param facts_known: whether facts were gathered; before, a value made of them is let pass.
    :param address: what Redis would listen on; None where it does not, or before facts are known.
    :param places: directories of the controller in which files with a relative path are looked for.
    :param first: all variables of the host whose images all others get; None without one.
    """
    options = options_of(tuple(specs))
    problems, values = [], {}
    for name in sorted(name for name in variables if name.startswith(PREFIXES)):
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1, cutoff=CLOSE)
            if name in RENAMED:
                problems.append(f"{name} has another name now: write {RENAMED[name]}")
            elif near:
                problems.append(f"{name} is no variable of the kit: did you mean {near[0]}?")
            continue
        unread: list[tuple[str, Any]] = []
        try:
            value = read(name, variables[name], unread)
        except UNREADABLE as error:
            unread.append((name, getattr(error, "source", error)))
        if unread:
            late = name.startswith(LATE) and not facts_known
            problems += [
                unread_problem(*one) for one in unread if not (late and waits_for_facts(one[1]))
            ]
            continue
        if GIVEN in " ".join(flat(options[name].get("description", ""))):
            problems.append(f"{name} is {shown(value)} here, but it is {GIVEN}: remove it")
            continue
        values[name] = value
        if name != "celery_queues":  # they have a check of their own, which knows more than types
            problems += filter(None, [problem(name, value, options[name])])
    unreadable = {name for name in variables if name in options} - set(values)
    if not unreadable & {"celery_worker_secrets", "celery_worker_secrets_exported"}:
        problems += app_problems({**values, "groups": variables.get("groups", {})})
    problems += beat_problems({**values, "groups": variables.get("groups", {})})
    queues = values.get("celery_queues", [])
    problems += hooks.problems(values.get("deploy_hooks", {}), queues)
    problems += redis_problems(values.get("redis_extra_config", {}))
    problems += user_problems(values.get("redis_user_rules", {}))
    problems += redis_app_problems(
        values.get("redis_apps", {}), variables.get("groups", {}).get("redis", [])
    )
    problems += ship_problems(values.get("redis_backup_ship_to", ""), variables.get("groups", {}))
    problems += network_problems(values, "redis_allowed_sources")
    problems += network_problems(values, "celery_worker_egress", ("any",))
    problems += subnet_problems(values.get("celery_worker_subnet"))
    problems += external_problems(values)
    certificates = values.get("podman_host_ca_certificates", [])
    if isinstance(certificates, list) and all(isinstance(one, str) for one in certificates):
        problems += certificate_problems(certificates, places)
    names = [address, *values.get("redis_tls_names", [])] if address else []
    problems += tls_problems(values.get("redis_tls_files", {}), names)
    packages = values.get("podman_host_packages_archive", "")
    if isinstance(packages, str) and packages and not on_controller(packages, places):
        problems.append(
            f"podman_host_packages_archive names {word(packages)}, which is no file on the "
            "controller: take the one in a bundle, as its install.sh writes it into bundle.yml"
        )
    problems += serial_problems(read("upgrade_serial", variables.get("upgrade_serial", 1), []))
    if address is not None:
        problems += addresses.problems(variables, address)
    if first is not None:
        problems += image_problems(values, first)
    if not problems:
        return ""
    return "\n".join([f"host {host}:", *(f"- {one}" for one in problems), "Nothing was changed."])


def serial_problems(serial: Any) -> list[str]:
    """What is wrong with upgrade_serial: Ansible takes 0 and less for all hosts at once."""
    if type(serial) in (int, str) and SERIAL.fullmatch(str(serial)):
        return []
    return [
        f"upgrade_serial is {shown(serial)}: write how many hosts are upgraded at a time, such as "
        "2, or their share, such as 25%"
    ]


def redis_problems(directives: Any) -> list[str]:
    """What is wrong with redis_extra_config, which Redis would say only when it starts."""
    problems = []
    for name, value in directives.items() if isinstance(directives, Mapping) else ():
        where = f"redis_extra_config[{shown(name).strip(chr(34))}]"
        if not isinstance(name, str) or not DIRECTIVE.fullmatch(name):
            problems.append(f"{where} is no directive of redis.conf: correct the name")
        elif isinstance(value, bool) or not isinstance(value, (int, str)):
            problems.append(
                f"{where} is {shown(value)}, which is no text (YAML reads no as false, and 010 as "
                "8): put what you mean in quotes"
            )
        elif isinstance(value, str) and (CONTROL.search(value) or not value.strip()):
            problems.append(
                f"{where} is {shown(value)}: write one line; for an empty value write '\"\"'"
            )
        elif isinstance(value, str) and not ARGUMENTS.fullmatch(value):
            problems.append(
                f"{where} is {shown(value)}, in which quotes do not end as Redis wants: close them"
            )
    return problems


def user_problems(rules: Any) -> list[str]:
    """What is wrong with redis_user_rules, which Redis would say only when it starts."""
    problems = []
    for name, rights in rules.items() if isinstance(rules, Mapping) else ():
        where = f"redis_user_rules[{shown(name).strip(chr(34))}]"
        if name not in USERS:
            problems.append(f"{where} is no user of Redis: take one of {', '.join(USERS)}")
        elif not isinstance(rights, str) or not RIGHTS.fullmatch(rights):
            problems.append(
                f"{where} is {shown(rights)}: write rights in the words of Redis, one after the "
                "other, such as ~lock:* +set or (~cache:* +get +set), on one line; a user's "
                "passwords are the kit's"
            )
    return problems


def redis_app_problems(apps: Any, redis: Sized = ()) -> list[str]:
    """What is wrong with redis_apps, of which names of users and patterns of keys are made.

    :param redis: the hosts of Redis.
    """
    problems: list[str] = []
    if apps and len(redis) > 1:
        problems.append(
            f"redis_apps is {shown(apps)}, and the group redis has {len(redis)} hosts, whose "
            "Sentinels do not know the users of apps: remove redis_apps, or take one host of Redis"
        )
    seen: list[str] = []
    for name, prefix in apps.items() if isinstance(apps, Mapping) else ():
        where = f"redis_apps[{shown(name).strip(chr(34))}]"
        if not isinstance(name, str) or not APP.fullmatch(name):
            problems.append(f"{where} is no name of an app: write small letters, such as shop")
        elif name == "certificate":
            # celery-redis-certificate-worker is a certificate.
            problems.append(f"{where} is a name of celery-metal's own secrets: choose another")
        elif not isinstance(prefix, str) or not APP_PREFIX.fullmatch(prefix):
            problems.append(
                f"{where} is {shown(prefix)}: write the global_keyprefix of the app, with a colon "
                "at its end, such as shop:"
            )
        elif any(one.startswith(prefix) or prefix.startswith(one) for one in seen):
            problems.append(f"{where} is {shown(prefix)}, with which another begins: change one")
        else:
            seen.append(prefix)
    return problems


def network_problems(
    values: Mapping[str, Any], name: str, words: tuple[str, ...] = ()
) -> list[str]:
    """What is wrong with a list of networks, of which nft would take names, and guess masks.

    :param words: what may be in it besides.
    """
    problems = []
    texts = values.get(name, [])
    for place, source in enumerate(texts if isinstance(texts, list) else []):
        where = f"{name}[{place}] is {shown(source)}"
        if not isinstance(source, str) or CONTROL.search(source) or source in words:
            continue  # said already, or right
        try:
            network = ipaddress.ip_network(source, strict=False)
        except ValueError:
            network = None
        if network is None or "%" in source:
            besides = f", or {' or '.join(words)}" if words else ""
            problems.append(
                f"{where}, which is no address and no network: write such as 10.0.0.7, "
                f"10.1.0.0/16 or fd00::/64{besides}"
            )
        elif "/" in source and ipaddress.ip_interface(source).ip != network.network_address:
            problems.append(
                f"{where}, which is an address in the network {network}: write one of the two"
            )
    return problems


def subnet_problems(subnet: Any) -> list[str]:
    """What is wrong with celery_worker_subnet."""
    if not isinstance(subnet, str) or CONTROL.search(subnet):
        return []  # not there, or said already
    try:
        network = ipaddress.IPv4Network(subnet)
    except ValueError:
        network = None
    sized = network and SUBNET_LARGEST <= network.prefixlen <= SUBNET_SMALLEST
    if network and sized and any(map(network.subnet_of, PRIVATE)):
        return []
    return [
        f"celery_worker_subnet is {shown(subnet)}, which is no private IPv4 network of 16 to "
        "65536 addresses: write such as 10.87.0.0/24"
    ]


def ship_problems(target: Any, groups: Mapping[str, Any]) -> list[str]:
    """What is wrong with the host that backups are shipped to."""
    if not isinstance(target, str) or not target:
        return []  # none, or said already
    where = f"redis_backup_ship_to names {word(target)}"
    if target in groups.get("redis", []):
        return [f"{where}, where Redis itself is: name another host, or leave it out"]
    known = list(groups.get("all", []))
    if target in known:
        return []
    few = ", ".join([*known[:KNOWN_HOSTS], *(["..."] if len(known) > KNOWN_HOSTS else [])])
    return [f"{where}, which is no host of the inventory: add it there, or take one of {few}"]


def image_problems(values: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    """Which variables of images are not those of the first host, and would not count."""
    problems = []
    declared = {name for name in values if name.startswith("image_")} - IMAGES_OF_A_HOST
    for name in sorted(declared):
        unread: list[tuple[str, Any]] = []
        try:
            theirs = read(name, first[name], unread) if name in first else None
        except UNREADABLE:
            continue  # said of the first host
        if unread or (name in first and theirs == values[name]):
            continue
        there = shown(theirs) if name in first else "not set"
        # Of a build's environment only the name: it may open a package index.
        secret = name == "image_build_environment"
        what = "another one" if secret else f"{shown(values[name])} here, and {there}"
        problems.append(
            f"{name} is {what} on {first['inventory_hostname']}, but all hosts get the same "
            "images: write it once, such as in group_vars/all.yml"
        )
    return problems


def on_controller(path: str, places: Iterable[str]) -> bool:
    """Whether there is such a file on the controller.

    Relative paths are looked for as Ansible does: in each place, in its directory ``files`` first.
    """
    whole = pathlib.Path(os.path.expanduser(path))  # leaves a user that is not known
    found = [whole] if whole.is_absolute() else []
    if not whole.is_absolute():
        found = [pathlib.Path(place, "files", path) for place in places]
        found += [pathlib.Path(place, path) for place in places]
    return any(one.is_file() for one in found)


def certificate_problems(paths: Iterable[str], places: Iterable[str]) -> list[str]:
    """What is wrong with podman_host_ca_certificates: files that are missing, or would be one."""
    problems: list[str] = []
    taken: dict[str, str] = {}
    for path in paths:
        if not on_controller(path, places):
            problems.append(
                f"podman_host_ca_certificates names {word(path)}, which is no file on the "
                "controller: write the path of a PEM file there"
            )
        # As the role names the file on the host.
        name = re.sub(r"\.(crt|pem)$", "", pathlib.Path(path).name)
        if name in taken:
            problems.append(
                f"podman_host_ca_certificates names {word(taken[name])} and {word(path)}, which "
                f"would both be {word(name)}.crt on the host: rename one"
            )
        taken.setdefault(name, path)
    return problems


def external_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with how a Redis of the user's own is named; never with a password in it."""
    names = ("url", "password", "ca", "certificate")
    texts = {name: values.get(f"redis_external_{name}", "") for name in names}
    mode = values.get("redis_mode", "deploy")
    if mode not in ("deploy", "external") or not all(
        isinstance(one, str) for one in texts.values()
    ):
        return []  # said already
    url, where = texts["url"], f"redis_external_url is {hushed(shown(texts['url']))}"
    example = "write such as redis://worker@10.0.0.5:6379/0, or rediss:// for TLS"
    problems = []
    if url != hushed(url):
        problems.append(
            f"{where}, with a password in it: remove it there, and put it into "
            "redis_external_password, encrypted by Ansible's vault"
        )
    elif url and not CONTROL.search(url) and (not EXTERNAL.fullmatch(url) or not _has_port(url)):
        problems.append(f"{where}, which is no address of a Redis: {example}")
    if mode == "deploy":
        if url:
            problems.append(
                f"{where}, and redis_mode is deploy: write redis_mode: external, or remove it"
            )
        return problems
    if not url:
        problems.append(f"redis_mode is external, and redis_external_url is not set: {example}")
    if values.get("celery_worker_network") == "none":
        problems.append(
            "celery_worker_network is none, by which workers do not reach redis_external_url: take "
            "bridge or host"
        )
    if CONTROL.search(texts["password"]) or len(texts["password"].encode()) >= SECRET_BYTES:
        problems.append(
            "redis_external_password holds a control character or a line's end, or is longer than "
            "Podman keeps: remove what is no part of the password"
        )
    for name in ("ca", "certificate"):
        if not texts[name]:
            continue
        here = f"redis_external_{name} is {shown(texts[name])}"
        if url.startswith(("redis://", "sentinel://")):
            problems.append(
                f"{here}, and redis_external_url is without TLS: write {url.partition(':')[0]}s://"
            )
        chain_in(texts[name], name, here, problems)
    return problems


def _has_port(url: str) -> bool:
    ports = re.findall(r":(\d+)(?=[,/?]|$)", re.sub(r"\[.*?\]", "", url))
    return all(int(port) < 65536 for port in ports)


def tls_problems(files: Any, names: list[str]) -> list[str]:
    """What is wrong with certificates of the user's own.

    :param files: the variable ``redis_tls_files``.
    :param names: by what others reach Redis; empty where that is not known, or not asked.
    """
    if not isinstance(files, Mapping) or not files:
        return []  # ours, or said already
    if {*files} != {*TLS_FILES}:
        return [
            f"redis_tls_files has {', '.join(sorted(map(word, map(str, files))))}: write "
            f"{', '.join(TLS_FILES)}, each the path of a PEM file on the controller"
        ]
    problems: list[str] = []
    found: dict[str, list[Any]] = {}
    for kind in TLS_FILES:
        where = f"redis_tls_files[{kind}] names {shown(files[kind])}"
        chain = chain_in(files[kind], kind, where, problems)
        if chain:
            found[kind] = chain
    for kind in ("server", "worker"):
        if {"ca", kind} <= found.keys() and not is_issued(found[kind], found["ca"]):
            problems.append(
                f"redis_tls_files[{kind}] is not issued by redis_tls_files[ca]: put the "
                "certificate of the authority there, and those between the two behind that of the "
                f"{kind}"
            )
    if "server" in found:
        known = names_in(found["server"][0])
        problems += [
            f"redis_tls_files[server] is for {', '.join(known) or 'no name'}, and not for {name}, "
            "by which workers reach Redis: have it issued for that, or correct redis_address or "
            "redis_tls_names"
            for name in names
            if not is_named(name, known)
        ]
    return problems


def chain_in(file: Any, kind: str, where: str, problems: list[str]) -> list[Any]:
    """The certificates of a file on the controller; none where it cannot be read, or not here.

    :param kind: ``ca``, or whose certificate it is: then it has a key, too.
    :param where: the variable and its value, for the messages that go to `problems`.
    """
    path = pathlib.Path(file) if isinstance(file, str) else pathlib.Path()
    if not path.is_absolute() or not path.is_file():
        problems.append(
            f"{where}, which is no file on the controller: write its whole path, such as "
            f'"{{{{ inventory_dir }}}}/tls/{kind}.pem"'
        )
        return []
    content = path.read_bytes()
    if content.startswith(b"$ANSIBLE_VAULT"):
        return []  # the hosts see it
    try:
        chain = chain_of(content, has_key=kind != "ca")
    except ValueError as problem:
        problems.append(f"{where}: {problem}")
        return []
    end = chain[0].not_valid_after_utc
    if end < datetime.datetime.now(datetime.UTC):
        problems.append(f"{where}, whose certificate has ended at {end:%F}: bring a new one")
    return chain


def chain_of(content: bytes, *, has_key: bool) -> list[Any]:
    """The certificates of a PEM file.

    :param has_key: whether it must have the key of the first of them.
    :raises ValueError: with what to do.
    """
    from cryptography import x509  # Ansible's own; it takes a while to load
    from cryptography.hazmat.primitives import serialization

    try:
        chain = x509.load_pem_x509_certificates(content)
    except ValueError:
        raise ValueError("it holds no certificate: write the path of a PEM file") from None
    if not has_key:
        return chain
    try:
        key = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError):
        raise ValueError(
            "it holds no key that can be read: put the certificate and its key, without a "
            "passphrase, into one file; Ansible's vault can encrypt it"
        ) from None
    if key.public_key() != chain[0].public_key():
        raise ValueError("its key is not that of its certificate: put the two that belong together")
    return chain


def is_issued(chain: list[Any], authorities: list[Any]) -> bool:
    """Whether the first certificate leads to one of the authorities, by those behind it."""
    from cryptography.exceptions import InvalidSignature

    def issues(issuer: Any, one: Any) -> bool:
        try:
            one.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    one, *between = chain
    while not any(issues(authority, one) for authority in authorities):
        issuer = next((other for other in between if issues(other, one)), None)
        if issuer is None:
            return False
        between.remove(issuer)
        one = issuer
    return True


def names_in(certificate: Any) -> list[str]:
    """The names and addresses that a certificate is for."""
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = found.get_values_for_type(x509.IPAddress)
    return [*found.get_values_for_type(x509.DNSName), *map(str, addresses)]


def is_named(name: str, known: list[str]) -> bool:
    """Whether a name or an address is among those of a certificate.

    >>> is_named("a.example", ["*.example"]), is_named("a.b.example", ["*.example"])
    (True, False)
    """
    try:
        return str(ipaddress.ip_address(name)) in known
    except ValueError:
        wild = f"*.{name.partition('.')[2]}"
        return bool({name.lower(), wild.lower()} & {one.lower() for one in known})


def broker_problem(
    state: Mapping[str, Any],
    hosts: Mapping[str, Mapping[str, Any]],
    host: str,
    redis: str,
    source: str,
) -> str:
    """Why a host cannot use a Redis that is not part of the run; empty when it can.

    :param state: what the module ``celery_host`` gave of the host of Redis.
    :param hosts: Ansible's hostvars, with the facts of the host of Redis.
    :param host: the host that needs it.
    :param redis: the host of Redis.
    :param source: from where the host comes to it; only asked for where Redis does not admit all.
    """
    is_encrypted = hosts[redis].get("redis_tls", True)
    needed = ["celery-redis-worker"]
    needed += ["celery-redis-ca", "celery-redis-certificate-worker"] if is_encrypted else []
    if not state["secrets"].keys() >= set(needed):
        what = "certificate" if "celery-redis-worker" in state["secrets"] else "password"
        return (
            f"{host} needs Redis, and {redis} has no {what} for it yet. Nothing was changed. "
            "Run site.yml without --limit."
        )
    address = addresses.redis_address(hosts, redis, state)
    if problems := addresses.problems(hosts[redis], address, state):
        return f"host {redis}: {problems[0]}. Nothing was changed."
    if not source:
        return ""
    here = ipaddress.ip_address(source)
    # Of another family, it is in none.
    if any(here in ipaddress.ip_network(one) for one in state["admitted"]):
        return ""
    return (
        f"{host} comes to Redis from {source}, which {redis} does not admit yet. Nothing was "
        f"changed. Let the run go to both: --limit '{host},{redis}'."
    )


class FilterModule:
    def filters(self) -> dict[str, Any]:
        return {
            "broker_problem": broker_problem,
            "declaration_problems": declaration_problems,
        }
