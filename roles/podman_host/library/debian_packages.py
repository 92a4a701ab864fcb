#!/usr/bin/python
"""Make an archive of Debian packages from which apt installs without a network."""

from __future__ import annotations

DOCUMENTATION = r"""
module: debian_packages
short_description: Make one archive of packages and all that they depend on
description:
  - Resolves, downloads and checks packages with the machine's own apt; its mirror and keys count.
  - The archive holds a repository with the checksums of its packages, and a configuration for apt
    that knows this repository alone. Nothing is installed.
options:
  packages:
    description: What shall be installable.
    type: list
    elements: str
    required: true
  archive:
    description: The archive to write, replacing what is there; packages are compressed already.
    type: path
    required: true
  unpacked:
    description: Where the archive will be unpacked.
    type: path
    required: true
author: celery-metal
"""

EXAMPLES = r"""
- name: Pack the container engine
  debian_packages:
    packages: [podman]
    archive: /var/lib/celery-metal/packages.tar
    unpacked: /var/lib/celery-metal/packages
"""

RETURN = r"""
packages: {description: The file name of each package, type: list, returned: always}
"""

import hashlib
import shutil
import tarfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.debian_apt import Apt, AptError, run

# Ansible's modules for packages need it on the host.
ALSO = ("python3-apt",)
# apt checks each package against the repository's list, which came with the packages.
SOURCE = "deb [trusted=yes] file:{directory} ./\n"
CONFIG = """\
Dir::Etc::SourceList "{directory}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "{directory}/lists";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
"""


def entry(control: str, name: str, content: bytes) -> str:
    """A package's paragraph in a repository's list: https://wiki.debian.org/DebianRepository/Format.

    :param control: the package's own control paragraph.
    :param name: of its file, beside the list.
    """
    digest = hashlib.sha256(content).hexdigest()
    return f"{control.strip()}\nFilename: ./{name}\nSize: {len(content)}\nSHA256: {digest}\n"


def repository(debs: Path, directory: str) -> None:
    """Write the list of the packages that are in `debs`, and what tells apt of them alone.

    :param directory: where it will be when apt reads it.
    :raises AptError: when a file is no package.
    """
    entries = [
        entry(run("dpkg-deb", "-f", str(deb)), deb.name, deb.read_bytes())
        for deb in sorted(debs.glob("*.deb"))
    ]
    (debs / "Packages").write_text("\n".join(entries))
    (debs / "sources.list").write_text(SOURCE.format(directory=directory))
    (debs / "lists" / "partial").mkdir(parents=True)
    (debs / "apt.conf").write_text(CONFIG.format(directory=directory))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "required": True},
            "archive": {"type": "path", "required": True},
            "unpacked": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=True, packages=[])
    archive = Path(module.params["archive"])
    apt = Apt(archive.with_suffix(".apt"))
    try:
        apt.get("install", "--download-only", *module.params["packages"], *ALSO)
        repository(apt.archives, module.params["unpacked"])
    except AptError as failed:
        module.fail_json(msg=f"No packages were packed. {failed}")
    (apt.archives / "lock").unlink(missing_ok=True)
    with tarfile.open(archive, "w") as tar:
        tar.add(apt.archives, arcname="")
    names = sorted(deb.name for deb in apt.archives.glob("*.deb"))
    shutil.rmtree(apt.work)
    module.exit_json(changed=True, packages=names)


if __name__ == "__main__":
    main()
