"""What a run says that it changes on a host, and what has changed there, in the same words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# By kind: files to what is in them (None: gone), all others by name.
Changes = dict[str, Any]
KINDS = (
    *("start", "restart", "stop", "keep secret", "remove secret", "bring image", "remove image"),
    *("install package", "reload", "renew"),
)
STATE = re.compile(r"/var/lib/celery-metal/(workers|redis|images)\.json")
NOTES = "what it keeps for itself"
TRUST = "/etc/ssl/certs/"
# Marks that come with a secret are random: each run makes others.
MARK = re.compile(
    r"^(Label=celery-metal\.(?:ca|certificates?|generation|password|users|secret\.\S+)=|"
    # The same marks in holders.json.
    r' +"(?:admin|authority|certificate|monitor|producer|worker)": "(?=[0-9a-f]{12}",?$))\S+$',
    re.M,
)
# Made and removed again by the same run.
WORK = "/var/lib/celery-metal/image"

# Prints, as JSON, what a host is like.
SNAPSHOT = r"""
import hashlib, json, os, shutil, stat, subprocess, sys

def said(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

def blocks(text):
    for block in text.strip().split("\n\n"):
        yield dict(line.split("=", 1) for line in block.splitlines() if "=" in line)

def content(path, found):
    if stat.S_ISLNK(found.st_mode):
        return "-> " + os.readlink(path)
    if not stat.S_ISREG(found.st_mode):
        return ""
    # What packages have put there is looked at by its stamp only.
    if path.startswith("/usr/") and not path.startswith("/usr/local/"):
        return f"{found.st_size} {found.st_mtime_ns}"
    with open(path, "rb") as file:
        raw = file.read()
    try:
        return raw.decode() if len(raw) < 50000 else hashlib.sha256(raw).hexdigest()
    except UnicodeDecodeError:
        return hashlib.sha256(raw).hexdigest()

files, device = {}, os.stat("/").st_dev
for top, folders, names in os.walk("/"):
    folders[:] = [n for n in folders if os.lstat(os.path.join(top, n)).st_dev == device]
    for name in [*folders, *names]:
        path = os.path.join(top, name)
        found = os.lstat(path)
        files[path] = {
            "is": stat.filemode(found.st_mode) + f" {found.st_uid} {found.st_gid}",
            "content": content(path, found),
            "stamp": found.st_ctime_ns,
        }
shown = said("systemctl", "show", "--all", "-p", "Id,ActiveState,InvocationID,FragmentPath", "*")
podman = {}
if shutil.which("podman"):
    names = said("podman", "secret", "ls", "--quiet").split()
    secrets = json.loads(said("podman", "secret", "inspect", *names)) if names else []
    images = json.loads(said("podman", "images", "--all", "--format", "json"))
    podman = {
        "secrets": {
            one["Spec"]["Name"]: [one["ID"], one["UpdatedAt"], one["Spec"]["Labels"]]
            for one in secrets
        },
        "images": {name: one["Id"] for one in images for name in one.get("Names") or []},
        "layers": sorted(one["Id"] for one in images),
        "volumes": said("podman", "volume", "ls", "--quiet").split(),
        "networks": said("podman", "network", "ls", "--quiet").split(),
        "containers": sorted(said("podman", "ps", "--all", "--quiet", "--no-trunc").split()),
    }
print(json.dumps({
    "files": files,
    "units": {one["Id"]: one for one in blocks(shown)},
    "podman": podman,
    "packages": dict(
        line.split() for line in said(
            "dpkg-query", "-W", "-f", "${Package} ${Version}-${db:Status-Status}\n"
        ).splitlines()
    ),
}))
"""


def nothing() -> Changes:
    """No change at all."""
    return {"files": {}, **{kind: set() for kind in KINDS}}


def unmarked(changes: Changes) -> Changes:
    """The same, without the random marks in files if there are new secrets."""
    if not changes["keep secret"]:
        return changes
    files = {path: text and MARK.sub(r"\1", text) for path, text in changes["files"].items()}
    return {**changes, "files": files}


# ------------------------------------------------------------------------------------------
# What a run says


def results(output: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Host, task and result of all tasks that changed a host, from what the callback wrote."""
    played, _ = json.JSONDecoder().raw_decode(output[output.index("{\n") :])
    for play in played["plays"]:
        for task in play["tasks"]:
            for host, result in task["hosts"].items():
                for one in result.get("results", [result]):
                    if one.get("changed"):
                        action = {"action": result["action"].rpartition(".")[2]}
                        yield host, task["task"]["name"].rpartition(" : ")[2], {**one, **action}


def said(output: str, host: str) -> Changes:
    """What a run of site.yml says that it changes, or would change, on a host.

    :raises AssertionError: for a task of which is not known what it changes.
    """
    found = nothing()
    for name, task, result in results(output):
        if name == host:
            assert result["action"] in READERS, f"{task}: what does {result['action']} change?"
            READERS[result["action"]](found, task, result)
    return found


def _of_diff(found: Changes, task: str, result: Mapping[str, Any]) -> None:
    diff = result["diff"]
    for one in diff if isinstance(diff, list) else [diff]:
        if "prepared" in one:
            for line in one["prepared"].splitlines():
                _of_line(found, line)
        elif one.get("before_header", "").endswith("(file attributes)"):
            assert "before" not in one, task
        else:
            path = one["before_header"].removesuffix(" (content)")
            assert path not in found["files"], f"{task}: {path} once more"
            found["files"][path] = None if one["after_header"] == "/dev/null" else one["after"]


def _of_line(found: Changes, line: str) -> None:
    # "restart a@1.service, a@surge1.service beside it"
    kind, _, name = line.partition(",")[0].rpartition(" ")
    if kind == "write":
        found["files"][name] = NOTES
    else:
        # On a clean host two roles would each start celery.target.
        assert kind == "start" or name not in found[kind], f"{line}: once more"
        found[kind].add(name)


def _of_words(found: Changes, task: str, result: Mapping[str, Any]) -> None:
    kinds = {"images": "bring image", "packages": "install package"}
    said = re.match(r"Say which (\w+) a run without --check would", task)
    assert said, task
    kind = kinds[said[1]]
    words = result["msg"].removesuffix(", and what they depend on")
    found[kind].update(words.split(", "))


def _of_apt(found: Changes, task: str, result: Mapping[str, Any]) -> None:
    # Of a task without packages, package lists only.
    new = re.search(r"NEW packages will be installed:\n((?: .*\n)*)", result.get("stdout", ""))
    found["install package"].update(new[1].split() if new else ())


def _of_image(found: Changes, task: str, result: Mapping[str, Any]) -> None:
    # One that is saved for other hosts is said to be pushed.
    found["bring image"].update(re.findall(r"(?:Built|Pulled) image (\S+)", str(result["actions"])))


def _of_trust(found: Changes, task: str, result: Mapping[str, Any]) -> None:
    assert task == "Trust the private CA certificates", task
    found["renew"].add(TRUST)


def _of_work(found: Changes, task: str, result: Mapping[str, Any]) -> None:
    place = result.get("path") or result["dest"]
    assert f"{place}/".startswith(f"{WORK}/"), (task, place)


READERS: dict[str, Callable[[Changes, str, Mapping[str, Any]], None]] = {
    "apt": _of_apt,
    "celery_broker_secrets": _of_diff,
    "celery_images": _of_diff,
    "celery_secrets": _of_diff,
    "celery_services": _of_diff,
    "celery_units": _of_diff,
    "command": _of_trust,
    "copy": _of_work,
    "debug": _of_words,
    "file": _of_work,
    "lineinfile": _of_diff,
    "package": _of_apt,
    "podman_image": _of_image,
    "redis_certificates": _of_diff,
    "redis_users": _of_diff,
    "unarchive": _of_work,
}


# ------------------------------------------------------------------------------------------
# What has changed

# Neither --check nor a run of the kit is what changes these.
NOISE = re.compile(
    r"/var/log(/.*)?"  # the journal of any login
    r"|/var/lib/celery-metal/redis/.*"  # Redis's data: workers beat
    r"|(session-.*|user(-runtime-dir)?@0|user-0|run-user-0)\.\w+"  # logins
    r"|var-lib-containers-.*\.mount"  # of containers: systemd forgets them when it likes
    r"|celery-redis-memory\.service"  # its timer starts it each minute
    r"|netavark-dhcp-proxy\.service"  # ends by itself, 30 s after its package has started it
)
# The group of Redis's socket: its unit makes it from a file that the run writes.
OF_UNITS = re.compile(r"/etc/(g?shadow|group|passwd)-?|/etc/\.pwd\.lock")
# What packages and their scripts bring besides the files that dpkg lists.
OF_PACKAGES = re.compile(
    r"/usr/(?!local/).*|/var/(cache|lib/(apt|dpkg|pam|systemd|polkit-1))/.*"
    r"|/etc/(alternatives|apparmor\.d/local)/.*|/etc/ld\.so\.cache|/etc/pam\.d/common-session"
)
OF_DISTRIBUTION = ("-> /usr/lib/systemd/", "/usr/lib/systemd/")


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ, or that only one of the two has; sorted."""
    return sorted(
        key
        for key in {*before, *after}
        if before.get(key) != after.get(key) and not NOISE.fullmatch(key)
    )


def touched(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """All that is not as it was, and each file that was written, be it as it had been."""
    return [
        f"{kind}: {one}"
        for kind in before.keys() | after.keys()
        for one in differing(before[kind], after[kind])
    ]


def done(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """What has changed on a host between two snapshots."""
    found = nothing()
    found["install package"] = set(after["packages"]) - set(before["packages"])
    old_files, files = map(_files, (before, after))
    brought = _brought(after, found["install package"])
    for path in differing(old_files, files):
        if path.startswith(TRUST):
            found["renew"].add(TRUST)
        elif path not in brought and not OF_UNITS.fullmatch(path):
            found["files"][path] = files[path][1] if path in files else None
    was, now = map(_active, (before, after))
    for name in differing(was, now):
        if name not in was:
            # What units need is started with them, and what packages bring.
            if not after["units"][name]["FragmentPath"].startswith(OF_DISTRIBUTION):
                found["start"].add(name)
        else:
            found["restart" if name in now else "stop"].add(name)
    for kind, come, gone in (
        ("secrets", "keep secret", "remove secret"),
        ("images", "bring image", "remove image"),
    ):
        was, now = (snapshot["podman"].get(kind, {}) for snapshot in (before, after))
        for name in differing(was, now):
            found[come if name in now else gone].add(name)
    return found


def _files(snapshot: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    files = {path: one for path, one in snapshot["files"].items() if one["is"][0] != "d"}
    return {
        # The kit's own notes, by the moment at which they were written.
        path: (one["stamp"], NOTES) if STATE.fullmatch(path) else (one["is"], one["content"])
        for path, one in files.items()
    }


def _active(snapshot: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: one["InvocationID"]
        for name, one in snapshot["units"].items()
        if one["ActiveState"] == "active" and name.endswith((".service", ".target", ".timer"))
    }


def _brought(snapshot: Mapping[str, Any], packages: set[str]) -> set[str]:
    """The files that came with packages."""
    if not packages:
        return set()
    files = snapshot["files"]
    listed = {
        path
        for name, one in files.items()
        if re.fullmatch(r"/var/lib/dpkg/info/.*\.list", name)
        for path in one["content"].splitlines()
    }
    return listed | {
        path
        for path, one in files.items()
        if OF_PACKAGES.fullmatch(path) or one["content"].startswith(OF_DISTRIBUTION)
    }
