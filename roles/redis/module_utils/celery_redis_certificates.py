#!/usr/bin/python3
"""The certificates of Redis and of those who connect to it, by an authority of this host's own.

    redis_certificates.py renew

issues a new certificate for Redis before the one that it has ends, and restarts Redis and its
Sentinel when they use another one than is kept. Where the certificates are the user's own, it fails
before they end.

The role redis puts this file on the host of Redis, where celery-redis-certificate.service runs it,
and sends it along with the module redis_certificates. All of them are secrets of Podman:
celery-redis-authority with the authority's key, which no container gets; celery-redis-ca, by which
others check certificates; celery-redis-certificate-NAME with a certificate and its key, for the
server and for each user.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets as randomness
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

PREFIX = "celery-redis-"
AUTHORITY = f"{PREFIX}authority"
CA = f"{PREFIX}ca"
CERTIFICATE = f"{PREFIX}certificate-"
SERVER = f"{CERTIFICATE}server"

# Each is its unit, too. Redis first: a Sentinel that stops has no other elected.
CONTAINERS = ("celery-redis", "celery-sentinel")
# That of the kit's modules: no run of a playbook meanwhile.
LOCK = "/run/celery-metal.lock"

AUTHORITY_DAYS = 3650
# What browsers allow at most: 398.
SERVER_DAYS = 397
# A third of it, for a timer that fails to be noticed.
RENEW = timedelta(days=130)
# Of the authority, which only an operator replaces.
AUTHORITY_WARNING = timedelta(days=365)
# Of certificates that the user brings.
GIVEN_WARNING = timedelta(days=30)
# For hosts whose clocks are behind.
BACKDATED = timedelta(days=1)

CONFIGURATION = """
[ca]
default_ca = kit
[kit]
new_certs_dir = {place}
database = {place}/index
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
[any]
commonName = supplied
[authority]
basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
[client]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


class CertificateError(Exception):
    """What went wrong, what it means, and the remedy."""


class Kept(NamedTuple):
    """A secret in Podman's store."""

    value: str
    labels: dict[str, str]

    @property
    def until(self) -> datetime:
        """When the certificate in it ends."""
        return datetime.fromtimestamp(int(self.labels["until"]), UTC)


def command(*words: str, stdin: str = "") -> str:
    """What a command prints.

    :raises CertificateError: when it fails.
    """
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CertificateError(
            f"'{' '.join(words[:3])}' failed: {done.stderr.strip()}. Redis goes on with the "
            "certificate that it has. Mend what is named, then run again."
        )
    return done.stdout


def kept() -> dict[str, Kept]:
    """The certificates and the authority that Podman keeps."""
    listed = command("podman", "secret", "ls", "--format", "{{.Name}}").split()
    names = [name for name in listed if name in (AUTHORITY, CA) or name.startswith(CERTIFICATE)]
    if not names:
        return {}
    found = json.loads(command("podman", "secret", "inspect", "--showsecret", *names))
    return {
        one["Spec"]["Name"]: Kept(one["SecretData"], one["Spec"].get("Labels") or {})
        for one in found
    }


def keep(name: str, one: Kept) -> None:
    """Have Podman keep a secret; it is in no command line."""
    labels = [word for item in one.labels.items() for word in ("--label", "=".join(item))]
    command("podman", "secret", "create", "--replace", *labels, name, "-", stdin=one.value)


def end_of(certificate: str) -> datetime:
    """When the first certificate of a PEM text ends."""
    said = command("openssl", "x509", "-noout", "-enddate", stdin=certificate)
    moment = said.strip().removeprefix("notAfter=")
    return datetime.strptime(moment, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)


def alternative_names(names: list[str]) -> str:
    """The names of a server as its certificate has them.

    >>> alternative_names(["10.0.0.5", "redis.example"])
    'IP:10.0.0.5,DNS:redis.example'
    """
    return ",".join(f"{'IP' if _is_address(name) else 'DNS'}:{name}" for name in names)


def _is_address(name: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, name)
        except OSError:
            continue
        return True
    return False


def issue(
    kind: str, name: str, authority: str, until: datetime, names: str = "IP:127.0.0.1"
) -> str:
    """A new certificate with its key, in one PEM text.

    :param kind: ``authority``, ``server`` or ``client``.
    :param authority: its certificate and key; empty for one that signs itself.
    :param names: what a server is reached by, as its certificate has it.
    """
    start = datetime.now(UTC) - BACKDATED
    # In memory, and for root alone.
    with tempfile.TemporaryDirectory(dir="/run") as place:
        key, request, signed, by, settings = (
            os.path.join(place, one) for one in ("key", "request", "signed", "by", "settings")
        )
        Path(settings).write_text(CONFIGURATION.format(place=place, names=names))
        Path(place, "index").touch()
        command(
            *(
                "openssl",
                "req",
                "-new",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
            ),
            *("-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}"),
        )
        signer: tuple[str, ...]
        if authority:
            Path(by).write_text(authority)
            signer = ("-cert", by, "-keyfile", by)
        else:
            signer = ("-selfsign", "-keyfile", key)
        command(
            *("openssl", "ca", "-batch", "-notext", "-config", settings, "-extensions", kind),
            *("-startdate", f"{start:%Y%m%d%H%M%SZ}", "-enddate", f"{until:%Y%m%d%H%M%SZ}"),
            *signer,
            *("-in", request, "-out", signed),
        )
        return Path(signed).read_text() + Path(key).read_text()


def new_authority(now: datetime, **labels: str) -> Kept:
    """An authority of which nobody else has the key."""
    until = now + timedelta(days=AUTHORITY_DAYS)
    name = f"celery-metal {socket.gethostname()[:40]} {now:%Y-%m-%d}"
    return labelled(issue("authority", name, "", until), until, **labels)


def client_certificate(user: str, authority: Kept) -> Kept:
    """For one of Redis's users; it ends when its authority does."""
    until = authority.until
    text = issue("client", user, authority.value, until)
    return labelled(text, until, authority=authority.labels["version"])


def server_certificate(names: list[str], authority: Kept, now: datetime, **labels: str) -> Kept:
    """For Redis itself.

    :param names: the names and addresses by which it is reached.
    """
    until = min(now + timedelta(days=SERVER_DAYS), authority.until)
    text = issue("server", "celery-redis", authority.value, until, alternative_names(names))
    labels = {"names": ",".join(names), "authority": authority.labels["version"], **labels}
    return labelled(text, until, **labels)


def labelled(value: str, until: datetime, **labels: str) -> Kept:
    """A secret with a mark that changes when it does and says nothing of it."""
    end = str(int(until.timestamp()))
    return Kept(value, {"version": randomness.token_hex(6), "until": end, **labels})


def public(authority: str) -> str:
    """The certificate of an authority, without its key."""
    return authority.partition("-----BEGIN PRIVATE KEY-----")[0]


def is_due(until: datetime, authority_until: datetime, now: datetime) -> bool:
    """Whether Redis's certificate is to be issued anew: it ends soon, and a new one would not."""
    return until < now + RENEW and until + timedelta(days=1) < authority_until


def renewed(found: Mapping[str, Kept], now: datetime) -> Kept:
    """Redis's certificate, issued anew by the authority that is kept; it stays what others know."""
    server = found[SERVER]
    names = server.labels["names"].split(",")
    own = {name: server.labels[name] for name in ("mark", "generation")}
    return server_certificate(names, found[AUTHORITY], now, **own)


def used(container: str) -> str:
    """The certificate that a container has read; empty when it does not run."""
    done = subprocess.run(
        ("podman", "container", "inspect", "--format", "{{.State.Pid}}", container),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return ""
    try:
        return Path(f"/proc/{int(done.stdout)}/root/run/secrets/{SERVER}").read_text()
    except FileNotFoundError:
        return ""


def renew(now: datetime) -> None:
    """See to it that Redis has a certificate that does not end soon.

    :raises CertificateError: when an operator must see to it.
    """
    found = kept()
    server = found.get(SERVER)
    if server is None:
        return  # no run has been here yet, or it is being removed
    authority = found.get(AUTHORITY)
    if authority and is_due(server.until, authority.until, now):
        server = renewed(found, now)
        keep(SERVER, server)
        print(f"issued a certificate for Redis that ends at {server.until:%F}")
    stale = [name for name in CONTAINERS if used(name) not in ("", server.value)]
    if stale:
        # In one step: the Sentinel stops when Redis has, and is there before it starts.
        command("systemctl", "restart", *(f"{name}.service" for name in stale))
        print(f"restarted {' and '.join(stale)} with the certificate that is kept")
    if authority is None:
        ends = min(one.until for one in found.values())
        if ends < now + GIVEN_WARNING:
            raise CertificateError(
                f"a certificate of redis_tls_files ends at {ends:%F %T} UTC, and then nobody "
                "reaches Redis: put the new ones in its place, and run site.yml"
            )
    elif authority.until < now + AUTHORITY_WARNING:
        raise CertificateError(
            f"the authority of Redis's certificates ends at {authority.until:%F}, and then nobody "
            "reaches Redis: run playbooks/rotate-secrets.yml -e rotate_certificates=true"
        )


def main(words: list[str]) -> int:
    """Run a command of the command line; its exit status."""
    if words != ["renew"]:
        print(__doc__, file=sys.stderr)
        return 2
    os.umask(0o077)
    try:
        with open(LOCK, "a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            renew(datetime.now(UTC))
    except CertificateError as problem:
        print(f"{socket.gethostname()}: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
