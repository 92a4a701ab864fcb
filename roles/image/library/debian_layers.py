#!/usr/bin/python
"""Unpack Debian packages into directories from which image layers are made."""

from __future__ import annotations

DOCUMENTATION = r"""
module: debian_layers
short_description: Unpack the distribution's packages into one directory per image layer
description:
  - Resolves, downloads and checks packages with the host's own apt, so its mirror and keys count.
  - Nothing is installed, and no maintainer script runs; documentation and locales are left out.
options:
  destination:
    description: Directory in which a directory for each layer is made, replacing what is there.
    type: path
    required: true
  layers:
    description:
      - Layer to the packages it is for. A layer holds what these depend on, except what the first
        layer has already.
    type: dict
    required: true
  release:
    description: Codename of another release of the distribution, for C(release_layers).
    type: str
    default: ""
  release_layers:
    description: As C(layers), of packages of C(release); mirrors and keys are the host's own.
    type: dict
    default: {}
  left_out:
    description: Packages that no layer shall hold.
    type: list
    elements: str
    default: []
author: celery-metal
"""

EXAMPLES = r"""
- name: Unpack the layers of the Redis image
  debian_layers:
    destination: /var/lib/celery-metal/image
    layers: {base: [libc6], redis: [redis-server]}
"""

RETURN = r"""
packages: {description: Layer to its packages with versions, type: dict, returned: always}
"""

import re
import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.debian_apt import Apt, AptError, run

LEFT_OUT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/common-licenses/*-*",
    "usr/lib/*/gconv",
    "usr/lib/python3*/test",
    "usr/lib/python3*/pydoc_data",
)
MERGED = ("bin", "lib", "lib64", "sbin")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
PIP_CONFIG = Path("/etc/pip.conf")


def archives(uris: str) -> dict[str, str]:
    """Package to file name, from ``apt-get install --print-uris``.

    >>> archives("'http://m/p/libc6_2.41_amd64.deb' libc6_2.41_amd64.deb 2846580 SHA256:00")
    {'libc6': 'libc6_2.41_amd64.deb'}
    """
    names = re.findall(r"^'\S+' (\S+\.deb) \d+", uris, re.M)
    return {name.split("_")[0]: name for name in names}


def merge(layer: Path, *, is_first: bool) -> None:
    """Move what packages have in /bin, /lib and the like into /usr, as on an installed host.

    Debian 12 does that by a script of one package, Debian 13 by links in base-files.
    """
    for name in MERGED:
        path, into = layer / name, layer / "usr" / name
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, into, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(path)
        if is_first and into.is_dir() and not path.is_symlink():
            path.symlink_to(f"usr/{name}")


def unpack(
    apt: Apt, top: Path, layers: dict[str, list[str]], left_out: list[str]
) -> dict[str, Any]:
    """Make a directory in ``top`` for each layer; return layer to its packages with versions.

    :raises AptError: when a package is not there, or apt refuses it.
    """
    files: dict[str, dict[str, str]] = {}
    taken = set(left_out)
    for number, (layer, packages) in enumerate(layers.items()):
        wanted = archives(apt.get("install", "--print-uris", *packages))
        files[layer] = {name: one for name, one in wanted.items() if name not in taken}
        # Only the first layer lies below all others.
        taken |= set(wanted) if number == 0 else set()
    every = sorted({package for packages in layers.values() for package in packages})
    apt.get("install", "--download-only", *every)
    for layer, debs in files.items():
        shutil.rmtree(top / layer, ignore_errors=True)
        (top / layer).mkdir()
        # base-files first: it has the links from /bin and /lib into /usr.
        for name in sorted(debs, key=lambda name: (name != "base-files", name)):
            run("dpkg-deb", "-x", str(apt.archives / debs[name]), str(top / layer))
        for pattern in LEFT_OUT:
            for path in (top / layer).glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        merge(top / layer, is_first=layer == next(iter(layers)))
    trust = top / next(iter(layers)) / "etc/ssl/certs"
    trust.mkdir(parents=True, exist_ok=True)
    # The build host's trust store, private authorities included: containers reach what it reaches.
    shutil.copy(CA_BUNDLE, trust / CA_BUNDLE.name)
    return {layer: sorted(debs.values()) for layer, debs in files.items()}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "destination": {"type": "path", "required": True},
            "layers": {"type": "dict", "required": True},
            "release": {"type": "str", "default": ""},
            "release_layers": {"type": "dict", "default": {}},
            "left_out": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=True, packages={})
    top, left_out = Path(module.params["destination"]), module.params["left_out"]
    release: str = module.params["release"]
    try:
        apt = Apt(top / ".apt")
        packages = unpack(apt, top, module.params["layers"], left_out)
        if release:
            apt = Apt(top / ".apt", release)
            packages |= unpack(apt, top, module.params["release_layers"], left_out)
    except AptError as failed:
        module.fail_json(msg=f"Nothing was built. {failed}")
    (top / "host").mkdir(exist_ok=True)
    pip_config = PIP_CONFIG.read_text() if PIP_CONFIG.exists() else ""
    (top / "host" / "pip.conf").write_text(pip_config)
    shutil.rmtree(apt.work)
    module.exit_json(changed=True, packages=packages)


if __name__ == "__main__":
    main()
