#!/usr/bin/python
"""Keep the certificates of Redis and of who connects to it, as secrets of Podman."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_certificates
short_description: Keep an authority, a certificate for Redis, and one for each of its users
description:
  - An authority is made once, and with it what it signs. C(community.crypto) would want a Python
    library on the host, and files where these are secrets.
  - Each secret has the label C(version), a random mark that says nothing of it, and C(until), when
    its certificate ends.
  - A certificate of Redis that ends soon is issued anew; all others know its authority.
  - The authority is replaced in steps. After C(begin) Redis and all that get C(celery-redis-ca)
    trust the old one and the new one, of which users have their certificates; C(serve) gives Redis
    one of the new authority, and C(finish) ends the old one, too. Several Redis, which trust each
    other, are all to be done with one step before the next; for one alone C(finish) is enough.
  - A run that was cut is completed by the next.
options:
  names:
    description: Names and addresses by which Redis is reached.
    type: list
    elements: str
    default: []
  users:
    description: Who gets a certificate.
    type: list
    elements: str
    default: []
  given:
    description:
      - Certificates of the user's own instead, as PEM texts C(ca), C(server) and C(worker); the
        last two with their keys.
    type: dict
    default: {}
  mark:
    description: What changes when I(names) or I(given) do; kept as the label C(mark).
    type: str
    required: true
  rotate:
    description: A step of replacing the authority.
    type: str
    choices: ["", begin, serve, finish]
    default: ""
author: celery-metal
"""

EXAMPLES = r"""
- name: Keep the certificates of Redis
  redis_certificates:
    names: [10.0.0.5]
    users: [worker]
    mark: "1"
  register: certificates
"""

RETURN = r"""
labels: {description: Name of each secret to its labels, type: dict, returned: always}
renewed:
  description: Whether Redis's certificate is another one that its unit does not know of
  type: bool
  returned: always
diff: {description: Names of the secrets that are written and removed, type: dict, returned: always}
"""

import secrets as randomness
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ansible.module_utils import celery_redis_certificates as certificates
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.celery_metal import HostError, conclude, output
from ansible.module_utils.celery_redis_certificates import AUTHORITY, CA, CERTIFICATE, SERVER, Kept
from ansible.module_utils.podman_store import keep, kept

CONSEQUENCE = "Redis and all workers run on with the certificates that they have."


class Versions(NamedTuple):
    """The mark of the authority that signs, and of one that is trusted besides, while it ends."""

    now: str
    before: str


def versions(found: Mapping[str, Kept], rotate: str) -> Versions:
    """Which authority is to sign, and which one is to be trusted besides."""
    labels = found[AUTHORITY].labels if AUTHORITY in found else {}
    version, before = labels.get("version", ""), labels.get("before", "")
    if not version:
        return Versions(randomness.token_hex(6), "")
    if rotate == "begin" and not before:  # else it has begun
        return Versions(randomness.token_hex(6), version)
    return Versions(version, "" if rotate == "finish" else before)


def stale(
    found: Mapping[str, Kept], wanted: Versions, params: Mapping[str, Any], now: datetime
) -> list[str]:
    """The secrets that are to be written, in an order that leaves all connected after each."""
    labels = {name: one.labels for name, one in found.items()}
    server = labels.get(SERVER, {})
    signs = {wanted.now} if params["rotate"] == "serve" else {*wanted} - {""}
    fits = server.get("mark") == params["mark"] and server.get("authority") in signs
    if fits and AUTHORITY in found:
        fits = not certificates.is_due(found[SERVER].until, found[AUTHORITY].until, now)
    checks = {
        AUTHORITY: _of(labels.get(AUTHORITY, {}), "version") == wanted,
        CA: _of(labels.get(CA, {}), "authority") == wanted,
        **{
            CERTIFICATE + user: labels.get(CERTIFICATE + user, {}).get("authority") == wanted.now
            for user in params["users"]
        },
        SERVER: fits,
    }
    if not wanted.before:
        # An authority is forgotten when nobody has a certificate of it.
        checks[CA] = checks.pop(CA)
    return [name for name, is_fine in checks.items() if not is_fine]


def _of(labels: Mapping[str, str], version: str) -> Versions:
    return Versions(labels.get(version, ""), labels.get("before", ""))


def made(
    name: str, found: Mapping[str, Kept], wanted: Versions, params: Mapping[str, Any], now: datetime
) -> Kept:
    """What a secret that is stale is to be; those before it in the order are in `found`."""
    own = {"before": wanted.before} if wanted.before else {}
    authority, before = found.get(AUTHORITY), found.get(name)
    if name == AUTHORITY:
        if before and before.labels["version"] == wanted.now:
            labels = {**before.labels}
            labels.pop("before")
            return Kept(before.value, labels)
        return certificates.new_authority(now, version=wanted.now, **own)
    if authority is None:
        raise AssertionError("an authority comes first")
    if name == CA:
        text = certificates.public(authority.value)
        if before and wanted.before and before.labels.get("authority") == wanted.before:
            text += before.value
        return certificates.labelled(text, authority.until, authority=wanted.now, **own)
    if name == SERVER:
        labels = before.labels if before else {}
        if (labels.get("mark"), labels.get("authority")) == (params["mark"], wanted.now):
            return certificates.renewed(found, now)  # it ends soon
        generation = randomness.token_hex(6)
        return certificates.server_certificate(
            params["names"], authority, now, mark=params["mark"], generation=generation
        )
    return certificates.client_certificate(name.removeprefix(CERTIFICATE), authority)


def of_the_user(
    found: Mapping[str, Kept], given: Mapping[str, str], mark: str
) -> tuple[dict[str, Kept], list[str]]:
    """The user's own certificates, and those of ours that nobody has any more."""
    texts = {CA: given["ca"], CERTIFICATE + "worker": given["worker"], SERVER: given["server"]}
    written = {}
    for name, text in texts.items():
        if name in found and found[name].value == text and name != SERVER:
            continue
        before = found.get(SERVER)
        if name == SERVER and before and (before.value, before.labels.get("mark")) == (text, mark):
            continue
        own = {"mark": mark, "generation": randomness.token_hex(6)} if name == SERVER else {}
        written[name] = certificates.labelled(text, certificates.end_of(text), **own)
    return written, sorted(found.keys() - texts.keys())


def bring(module: AnsibleModule) -> dict[str, Any]:
    """Make and keep what is missing, ends, or is another one."""
    params, now = module.params, datetime.now(UTC)
    found = {
        name: Kept(*one)
        for name, one in kept(certificates.PREFIX).items()
        if name in (AUTHORITY, CA) or name.startswith(CERTIFICATE)
    }
    generation = found[SERVER].labels.get("generation", "") if SERVER in found else ""
    gone: list[str] = []
    if params["given"]:
        written, gone = of_the_user(found, params["given"], params["mark"])
        names = list(written)
    else:
        wanted = versions(found, params["rotate"])
        names, written = stale(found, wanted, params, now), {}
    labels = {name: one.labels for name, one in found.items() if name not in gone}
    for name in names:
        if module.check_mode:
            # As if it were another one, which it would be.
            labels[name] = {"version": randomness.token_hex(6), "generation": ""}
            continue
        one = written[name] if name in written else made(name, found, wanted, params, now)
        keep(name, one.value, CONSEQUENCE, **one.labels)
        found[name], labels[name] = one, one.labels
    if gone and not module.check_mode:
        output("podman", "secret", "rm", *gone)
    lines = [f"keep secret {name}\n" for name in names]
    lines += [f"remove secret {name}\n" for name in gone]
    return {
        "changed": bool(lines),
        "labels": labels,
        "renewed": SERVER in names and labels[SERVER].get("generation") == generation,
        "diff": {"prepared": "".join(lines)},
    }


def work(module: AnsibleModule) -> dict[str, Any]:
    try:
        return bring(module)
    except certificates.CertificateError as problem:
        raise HostError(str(problem)) from None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "default": []},
            "users": {"type": "list", "elements": "str", "default": []},
            "given": {"type": "dict", "default": {}, "no_log": True},
            "mark": {"type": "str", "required": True},
            "rotate": {"type": "str", "choices": ["", "begin", "serve", "finish"], "default": ""},
        },
        supports_check_mode=True,
    )
    conclude(module, lambda: work(module), changes=True)


if __name__ == "__main__":
    main()
