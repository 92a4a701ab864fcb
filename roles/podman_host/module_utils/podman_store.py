"""Podman's store: secrets, each with labels that say nothing of it, and images."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

from ansible.module_utils import podman_images
from ansible.module_utils.celery_metal import HostError, output, run


class Kept(NamedTuple):
    """A secret in Podman's store."""

    value: str
    labels: dict[str, str]

    @property
    def version(self) -> str:
        """A random mark that changes when the secret does."""
        return self.labels.get("version", "")


def kept(prefix: str | tuple[str, ...]) -> dict[str, Kept]:
    """The secrets whose names begin so, or with one of these.

    :raises HostError: when Podman does not tell.
    """
    if not shutil.which("podman"):  # a clean host, under --check
        return {}
    listed = output("podman", "secret", "ls", "--format", "{{.Name}}").split()
    names = [name for name in listed if name.startswith(prefix)]
    if not names:
        return {}
    found = json.loads(output("podman", "secret", "inspect", "--showsecret", *names))
    return {
        one["Spec"]["Name"]: Kept(one["SecretData"], one["Spec"].get("Labels") or {})
        for one in found
    }


def labels(prefix: str) -> dict[str, dict[str, str]]:
    """The secrets whose names begin so, each with its labels; never their content.

    :raises HostError: when Podman does not tell.
    """
    listed = output("podman", "secret", "ls", "--format", "{{.Name}}").split()
    names = [name for name in listed if name.startswith(prefix)]
    found = json.loads(output("podman", "secret", "inspect", *names)) if names else []
    return {one["Spec"]["Name"]: one["Spec"].get("Labels") or {} for one in found}


def keep(name: str, value: str, consequence: str, **labels: str) -> None:
    """Have Podman keep a secret; it is in no command line.

    :param consequence: what it means for what runs when Podman does not.
    :raises HostError: when Podman does not.
    """
    command = ["podman", "secret", "create", "--replace"]
    for label, text in labels.items():
        command += ["--label", f"{label}={text}"]
    done = subprocess.run(
        [*command, name, "-"], input=value, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise HostError(
            f"Podman did not keep the secret {name}: {done.stderr.strip()}. {consequence} Look at "
            "'podman secret ls' and the free space of /var/lib/containers there, then run again."
        )


def images_gone(references: Iterable[str]) -> dict[str, str]:
    """Those of these images that are not on this host, or are damaged; each once, in their order.

    :returns: reference to what is wrong with the image; empty where there is none.
    :raises HostError: when Podman does not tell.
    """
    gone = {}
    every = list(dict.fromkeys(references))
    damaged = podman_images.look(every).damaged if every else {}
    for reference in every:
        if reference in damaged:
            gone[reference] = damaged[reference]
            continue
        done = run("podman", "image", "exists", reference)
        if done.returncode > 1:
            raise HostError(
                f"Podman does not report whether it has {reference}: {done.stderr.strip()}\n"
                "  Fix: run 'podman images' there and mend what it reports. Nothing was "
                "changed."
            )
        if done.returncode:
            gone[reference] = ""
    return gone
