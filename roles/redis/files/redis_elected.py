"""What Redis and its Sentinel begin with on this host: the primary, as the Sentinel knows it.

    redis_elected.py sentinel       before celery-sentinel.service starts
    redis_elected.py redis          before celery-redis.service starts
    redis_elected.py leave          before it stops: another becomes the primary first

What the kit declares is written anew each time, what the Sentinel has found out is kept. Both files
hold a password: the one is in a directory of root's alone, the other is gone when the host goes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

# Under -I Python looks for nothing here; and it shall leave nothing here either.
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

from celery_redis import (  # noqa: E402
    SECONDS,
    SOCKET,
    Client,
    ClosedError,
    RedisError,
    fields,
    secrets,
    tls_context,
    watched,
)
from container_files import Folder, RefusedError  # noqa: E402

SETTINGS = Path("/etc/celery-metal/redis-elected.json")
STATE = Path("/var/lib/celery-metal/sentinel/sentinel.conf")
ROLE = Path("/run/celery-metal/redis/elected.conf")
SENTINEL_SOCKET = "/run/celery-metal/sentinel/sentinel.sock"
MASTER = "celery"
# Longer than an election; systemd's limit for the stop is above it.
LEAVE_SECONDS = 20
# For the others to hear of it; one of them may be away, and then it is of no use.
SETTLE_SECONDS = 5
STEP = 0.05
STATE_BYTES = 1 << 20
# What a Sentinel writes down of what it has found out.
FOUND = ("myid", "config-epoch", "leader-epoch", "current-epoch", "known-replica", "known-sentinel")
RIGHTS = "+ping +client|setname +client|setinfo +sentinel|masters"
USERS = ("worker", "producer", "monitor")
# systemd takes the number for the line's priority.
WARNING = "<4>"


def hashes_of(acl: str) -> dict[str, str]:
    """Each user to its hashed passwords in an ACL file, as its words.

    >>> hashes_of("user default off\\nuser a reset on #12 #34 ~* +get\\n")
    {'default': '', 'a': '#12 #34'}
    """
    lines = [line.split() for line in acl.splitlines() if line]
    return {words[1]: " ".join(word for word in words if word.startswith("#")) for words in lines}


def found_lines(text: str, members: Iterable[str]) -> list[str]:
    """What a Sentinel has written of what it has found out, but for hosts that are none of ours.

    >>> found_lines("port 1\\nsentinel known-replica celery 10.0.0.9 6379\\nsentinel myid x", [])
    ['sentinel myid x']
    """
    kept = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 3 or words[0] != "sentinel" or words[1] not in FOUND:
            continue
        if words[1].startswith("known-") and (len(words) < 4 or words[3] not in {*members}):
            continue
        kept.append(line)
    return kept


def primary_in(text: str, members: Iterable[str]) -> str:
    """The address of the primary in what a Sentinel has written; empty where there is none.

    >>> primary_in("sentinel monitor celery 10.0.0.2 6379 2", ["10.0.0.2"])
    '10.0.0.2'
    """
    for line in text.splitlines():
        words = line.split()
        if words[:3] == ["sentinel", "monitor", MASTER] and {*words[3:4]} & {*members}:
            return words[3]
    return ""


def state() -> str:
    """What the Sentinel has written; nothing where there is none, or its container left another."""
    try:
        with Folder(STATE.parent) as folder:
            return folder.text(STATE.name, STATE_BYTES)
    except FileNotFoundError:
        return ""
    except RefusedError as refused:
        print(f"{WARNING}{refused} See docs/failover.md.", flush=True)
        return ""


def tls_of(settings: dict[str, Any]) -> Any:
    """What connections to the other hosts are encrypted with, if they are."""
    if not settings["tls"]:
        return None
    ca, certificate = secrets("ca", "certificate-server")
    return tls_context(ca, certificate, "/run")


def primary_elsewhere(settings: dict[str, Any]) -> str:
    """The primary as the others have elected it last; empty where none of them runs a Sentinel.

    For a host that comes to those that run, or has lost what its Sentinel knew.
    """
    (password,) = secrets("admin")
    tls = tls_of(settings)
    found = [(-1, "")]
    for member in settings["members"]:
        # Another may know. A primary that is down is taken, too: the first may be long out of date.
        with suppress(OSError, RedisError):
            client = Client((member, settings["sentinel_port"]), SECONDS, tls)
            known = watched(client, MASTER, ("admin", password))
            found += [(int(one["config-epoch"]), one["ip"]) for one in known]
    primary = max(found)[1]
    return primary if primary in settings["members"] else ""


def write(path: Path, text: str) -> None:
    """In one step, for root alone; the container's user gets it with the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Folder(path.parent) as folder:
        folder.write(path.name, text)


def sentinel_text(settings: dict[str, Any], before: str, acl: str, password: str) -> str:
    """The Sentinel's configuration."""
    members, users = settings["members"], hashes_of(acl)
    primary = primary_in(before, members) or settings["first"]
    listens = f"port {settings['sentinel_port']}"
    if settings["tls"]:
        server = "/run/secrets/celery-redis-certificate-server"
        listens = (
            f"port 0\ntls-port {settings['sentinel_port']}\ntls-replication yes\n"
            f"tls-ca-cert-file /run/secrets/celery-redis-ca\ntls-cert-file {server}\n"
            f"tls-key-file {server}\ntls-auth-clients yes"
        )
    lines = [
        "supervised systemd",
        "daemonize no",
        "protected-mode no",
        "dir /data",
        f"bind {settings['own']}",
        listens,
        "unixsocket /run/sentinel/sentinel.sock",
        "unixsocketperm 700",
        "user default off",
        *(f"user {name} on {users[name]} {RIGHTS}" for name in USERS),
        *(f"user {name} on {users[name]} ~* &* +@all" for name in ("admin", "sentinel")),
        "sentinel sentinel-user sentinel",
        f"sentinel sentinel-pass {password}",
        f"sentinel announce-ip {settings['own']}",
        f"sentinel monitor {MASTER} {primary} {settings['port']} {len(members) // 2 + 1}",
        f"sentinel auth-user {MASTER} sentinel",
        f"sentinel auth-pass {MASTER} {password}",
        f"sentinel down-after-milliseconds {MASTER} {settings['down_milliseconds']}",
        f"sentinel failover-timeout {MASTER} {settings['failover_milliseconds']}",
        f"sentinel parallel-syncs {MASTER} {settings['parallel_syncs']}",
        *found_lines(before, members),
    ]
    return "\n".join(lines) + "\n"


def redis_text(settings: dict[str, Any], before: str, password: str) -> str:
    """What Redis's configuration includes."""
    primary = primary_in(before, settings["members"]) or settings["first"]
    lines = ["masteruser replica", f"masterauth {password}"]
    if primary != settings["own"]:
        lines.append(f"replicaof {primary} {settings['port']}")
    return "\n".join(lines) + "\n"


def ask(path: str, password: str, *words: str) -> Any:
    """The answer to a command, as admin."""
    with closing(Client(path, SECONDS)) as client:
        return client.ask(("AUTH", "admin", password), words)[-1]


def has_followers(info: dict[str, str]) -> bool:
    """Whether each replica that is connected has all that the primary has, and there is one.

    >>> has_followers({"master_repl_offset": "7", "slave0": "ip=a,port=1,state=online,offset=7"})
    True
    """
    replicas = [text for name, text in info.items() if name.startswith("slave") and "ip=" in text]
    wanted = f"offset={info['master_repl_offset']}"
    return bool(replicas) and all(wanted in text.split(",") for text in replicas)


def is_settled(settings: dict[str, Any], primary: str) -> bool:
    """Whether most Sentinels know the new primary, and somebody follows it.

    The Sentinel that has had it elected may stop with its Redis: what it has told nobody, the
    others find out much later; the same for a replica that it has not told whom to follow.
    """
    login, members = ("admin", *secrets("admin")), settings["members"]
    tls = tls_of(settings)
    known = 1  # by the Sentinel of this host
    for member in members:
        with suppress(OSError, RedisError):
            if member != settings["own"]:
                client = Client((member, settings["sentinel_port"]), SECONDS, tls)
                known += any(one["ip"] == primary for one in watched(client, MASTER, login))
    if known * 2 <= len(members):
        return False
    with (
        suppress(OSError, RedisError),
        closing(Client((primary, settings["port"]), SECONDS, tls)) as it,
    ):
        return "state=online" in it.ask(("AUTH", *login), ("INFO", "replication"))[-1]
    return False


def unready(own: str, redis: Callable[..., Any], sentinel: Callable[..., Any]) -> str:
    """Why another cannot be elected yet; empty when it can."""
    # It may have been elected a moment ago, and what the Sentinel begins would be another's end.
    if (named := sentinel("GET-MASTER-ADDR-BY-NAME")[0]) != own:
        return f"the Sentinel here takes {named} for the primary"
    if not has_followers(fields(redis("INFO", "replication"))):
        return "no replica has all that this primary has"
    return ""


def begin(sentinel: Callable[..., Any], until: float) -> None:
    """Have a Sentinel begin; it may have just started, or be at the end of another election."""
    while True:
        try:
            sentinel("FAILOVER")
        except RedisError as problem:
            if isinstance(problem, ClosedError) or time.monotonic() > until:
                raise
            time.sleep(STEP)
        else:
            return


def leave(settings: dict[str, Any]) -> str:
    """Have another elected if this is the primary; for the journal what became of it.

    A Sentinel's own way does not wait for replicas. So nothing is written from before it begins:
    who wants to waits, and is sent away when this Redis stops.
    """
    (password,) = secrets("admin")

    def redis(*words: str) -> Any:
        return ask(SOCKET, password, *words)

    def sentinel(*words: str) -> Any:
        return ask(SENTINEL_SOCKET, password, "SENTINEL", *words, MASTER)

    if redis("ROLE")[0] != "master":
        return ""
    deadline = time.monotonic() + LEAVE_SECONDS
    redis("CLIENT", "PAUSE", str(2 * LEAVE_SECONDS * 1000), "WRITE")
    said = f"no other Redis has become the primary within {LEAVE_SECONDS} s"
    try:
        while why := unready(settings["own"], redis, sentinel):
            if time.monotonic() > deadline - LEAVE_SECONDS / 2:
                raise RedisError(why)
            time.sleep(STEP)
        begin(sentinel, deadline - LEAVE_SECONDS / 2)
        while time.monotonic() < deadline:
            primary = sentinel("GET-MASTER-ADDR-BY-NAME")[0]
            if primary != settings["own"]:
                settles = time.monotonic() + SETTLE_SECONDS
                while not is_settled(settings, primary) and time.monotonic() < settles:
                    time.sleep(STEP)
                return f"{primary} is the primary now"
            time.sleep(STEP)
    except ClosedError:  # as with one that cannot be reached
        raise
    except RedisError as problem:
        said = f"no other Redis becomes the primary: {problem}"
    # It stops all the same: what it took now, it might not answer any more.
    return said


def main(what: str) -> None:
    settings = json.loads(SETTINGS.read_text())
    if what == "sentinel":
        acl, password = secrets("acl", "sentinel")
        if not primary_in(state(), settings["members"]):
            settings["first"] = primary_elsewhere(settings) or settings["first"]
        write(STATE, sentinel_text(settings, state(), acl, password))
    elif what == "redis":
        (password,) = secrets("replica")
        write(ROLE, redis_text(settings, state(), password))
    else:
        try:
            said = leave(settings)
        except (OSError, RedisError) as problem:
            said = f"this Redis goes without a successor: {problem}"
        if said:
            print(said, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except (RedisError, RefusedError) as refused:
        sys.exit(str(refused))
