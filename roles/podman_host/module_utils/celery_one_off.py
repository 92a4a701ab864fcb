"""A command in a container like those of a queue's workers: what Podman is to run for it.

The unit of the workers says all: image, environment, secrets, volumes, network. Podman's own
Quadlet reads it, and the command takes the place of the worker.
"""

from __future__ import annotations

import platform
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from ansible.module_utils.celery_metal import HostError, run

QUADLET = "/usr/libexec/podman/quadlet"
#: Where units are, and drop-ins of the user's for them.
QUADLETS = Path("/etc/containers/systemd/celery-metal")
DROP_INS = (QUADLETS, QUADLETS.parent)
#: Keys of [Service] that a command has in common with the workers; systemd-run takes them.
ALIKE = re.compile(
    r"(AllowedCPUs|AllowedMemoryNodes|CPUQuota|CPUWeight|ExecStartPre|IOWeight|IPAddressAllow"
    r"|IPAddressDeny|LimitNOFILE|LimitNPROC|Nice|TasksMax)=(.+)"
)
ESCAPES = dict(zip("abfnrtv\\\"'s", "\a\b\f\n\r\t\v\\\"' ", strict=True))
ESCAPE = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))", re.S
)
WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')+""", re.S)
QUOTED = re.compile(r""""((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)'|((?:[^\s"'\\]|\\.)+)""", re.S)


def words(line: str) -> list[str]:
    """The words of ``ExecStart=``, as in systemd.syntax(7) and systemd.service(5).

    >>> words(r'podman run --env "Q=50%% of \\"$$HOME\\"" a\\x20b')
    ['podman', 'run', '--env', 'Q=50%% of "$$HOME"', 'a b']
    """
    return ["".join(map(_plain, QUOTED.findall(one))) for one in WORD.findall(line)]


def _plain(groups: tuple[str, str, str]) -> str:
    return ESCAPE.sub(_unescaped, "".join(groups))


def _unescaped(found: re.Match[str]) -> str:
    two, four, eight, octal, one = found.groups()
    if one is not None:
        return ESCAPES.get(one, found[0])
    return chr(int(octal, 8) if octal else int(two or four or eight, 16))


def expanded(word: str, specifiers: Mapping[str, str]) -> str:
    """A word with systemd's specifiers and its ``$$`` resolved.

    :param specifiers: letter to text.
    :raises HostError: for another specifier.

    >>> expanded("50%%-%i-$$HOME", {"i": "1"})
    '50%-1-$HOME'
    """

    def value(found: re.Match[str]) -> str:
        letter = found[0][1:]
        if letter in ("%", "$"):
            return letter
        if letter not in specifiers:
            raise HostError(
                f"the unit of the queue has the specifier {found[0]}, which a command has no value "
                "for\n  Fix: write what it stands for. Nothing was run."
            )
        return specifiers[letter]

    return re.sub(r"%.|%\Z|\$\$", value, word, flags=re.S)


def specifiers(unit: str) -> dict[str, str]:
    """What systemd's specifiers stand for in a command's unit, of instance 1.

    :param unit: its name without ``.service``.
    """
    host = socket.gethostname()
    return {
        "n": f"{unit}.service",
        "N": unit,
        "p": unit,
        "P": unit,
        "i": "1",
        "I": "1",
        "H": host,
        "l": host.partition(".")[0],
        "v": platform.release(),
        "m": _id("/etc/machine-id"),
        "b": _id("/proc/sys/kernel/random/boot_id"),
        "t": "/run",
        "E": "/etc",
        "S": "/var/lib",
        "C": "/var/cache",
        "L": "/var/log",
        "T": "/tmp",
        "V": "/var/tmp",
        "h": "/root",
        "u": "root",
        "U": "0",
        "g": "root",
        "G": "0",
    }


def _id(path: str) -> str:
    return Path(path).read_text().strip().replace("-", "")


def translated(name: str, text: str, container: str, image: str) -> str:
    """The service that Quadlet makes of a worker's unit, with the command's name and image.

    :param name: of the worker's unit file; drop-ins of the user's for it are taken as well.
    :param text: the unit file.
    :param container: name of the command's container.
    :param image: instead of the unit's; empty for that one.
    :raises HostError: when Quadlet refuses it.
    """
    with tempfile.TemporaryDirectory(prefix="celery-metal-") as top:
        Path(top, name).write_text(text)
        own = Path(top, f"{name}.d")
        own.mkdir()
        for place, directory in enumerate(one / f"{name}.d" for one in DROP_INS):
            for number, path in enumerate(sorted(directory.glob("*.conf"))):
                shutil.copyfile(path, own / f"{place}-{number:04}.conf")
        # An empty value takes back all before it. The last in order of names.
        lines = ["[Container]", f"ContainerName={container}", "Exec=", "Notify=", "PublishPort="]
        lines += [f"Image={image}"] if image else []
        # Else Quadlet has Podman leave, once the container runs.
        lines += ["[Service]", "Type=oneshot"]
        Path(own, "9.conf").write_text("\n".join([*lines, ""]))
        done = run(QUADLET, "-dryrun", QUADLET_UNIT_DIRS=top)
    found = re.fullmatch(r"---\S+---\n(.*)", done.stdout, re.S)
    if done.returncode or not found:
        said = [line for line in done.stderr.splitlines() if "Loading source" not in line]
        raise HostError(
            "Podman's Quadlet generator refuses the unit of the queue: "
            + ("\n".join(said) or "it makes no service of it")
            + "\n  Fix: look at the drop-ins for it. Nothing was run."
        )
    return found[1]


def podman(
    service: str, unit: str, command: Iterable[str], *, terminal: bool
) -> tuple[list[str], str]:
    """What is to be run on the host, and its image.

    :param service: what ``translated`` returned.
    :param unit: name of the command's unit, without ``.service``.
    :param command: a program and its arguments.
    :param terminal: whether the command has one.
    """
    known = specifiers(unit)
    line = re.findall(r"^ExecStart=(.*)$", service, re.M)[-1]
    found = [expanded(one, known) for one in words(line)]
    # The image is the last word, for the unit's Exec= is empty.
    image = found[-1]
    at = found.index("run") + 1
    # What it writes goes to the terminal, or by systemd to the journal, and not there twice.
    found[at:at] = ["--log-driver=none", *(["-i", "-t"] if terminal else [])]
    return [*found, "run", *command], image


def limits(service: str, unit: str) -> list[str]:
    """What a command has in common with the workers, as options of systemd-run."""
    known = specifiers(unit)
    section = service.partition("\n[Service]\n")[2].partition("\n[")[0]
    found = [ALIKE.fullmatch(line) for line in section.splitlines()]
    return [f"--property={expanded(one[0], known)}" for one in found if one]
