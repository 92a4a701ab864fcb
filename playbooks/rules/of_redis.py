"""Rules about Redis: what it keeps on disk, its memory, results, and what waits in queues."""

from __future__ import annotations

from collections.abc import Iterator

from findings import HIGH, LOW, MEDIUM, Given, Seen, Site, duration, megabytes, rule

#: Rewrites of the append-only file, and seconds between them on average.
MANY_REWRITES, OFTEN_SECONDS = 5, 600
#: Writes that waited for the disk, and an hour.
MANY_DELAYS, DELAYS_AN_HOUR = 10, 60
FORK_MICROSECONDS = 500_000
NEAR_PERCENT, RESULTS_PERCENT = 80, 25
#: Results without an end among those that were looked at; tasks that make a queue long.
MANY_ENDLESS, LONG_QUEUE = 100, 1000
#: Without a word of the app's: Celery's own visibility timeout.
WINDOW_SECONDS = 3600


def _infos(site: Site) -> Iterator[tuple[str, Given]]:
    for name, redis in site.redises():
        yield name, redis.inner("info")


@rule(
    "redis-silent",
    HIGH,
    "Redis gave no answer",
    risk="Workers wait for it, producers get errors, and backups fail.",
    fix="'systemctl status celery-redis' there; if it runs, run site.yml",
)
def silent(site: Site) -> Iterator[Seen]:
    seen = {}
    for name, host in site.known():
        if error := host.facts.inner("redis").text("error"):
            seen[name] = error
    # A run without hosts of celery did not ask for what waits: that is no answer of Redis.
    if site.fleet["hosts"] and (error := site.fleet["redis_error"]):
        seen[site.fleet["redis_host"]] = error
    yield from (Seen(name, error) for name, error in seen.items())


@rule(
    "redis-save",
    HIGH,
    "Redis could not write its data",
    risk="A task that is sent now is lost when Redis or its host ends.",
    fix="'journalctl -u celery-redis' there says why; free space on its disk or memory for the "
    "save, then BGREWRITEAOF as the user admin (docs/access.md)",
)
def save(site: Site) -> Iterator[Seen]:
    names = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
    for name, info in _infos(site):
        for one in names:
            if info.text(one) not in ("", "ok"):
                yield Seen(name, f"{one} is {info.text(one)} (INFO persistence)")


@rule(
    "redis-volatile",
    HIGH,
    "Redis writes no append-only file",
    risk="A restart of Redis loses each task that came after the last dump.",
    fix="remove appendonly from redis_extra_config and run site.yml; where Redis is your own, set "
    "appendonly yes there",
)
def volatile(site: Site) -> Iterator[Seen]:
    for name, info in _infos(site):
        if info.number("aof_enabled") == 0:
            yield Seen(name, "aof_enabled is 0 (INFO persistence)")


@rule(
    "redis-rewrites",
    MEDIUM,
    "Redis rewrites its append-only file too often",
    risk="Each rewrite copies all data, takes a CPU and memory, and delays tasks.",
    fix="raise auto-aof-rewrite-min-size in redis_extra_config above aof_base_size, such as 256mb, "
    "and run site.yml",
)
def rewrites(site: Site) -> Iterator[Seen]:
    for name, info in _infos(site):
        count, up = info.number("aof_rewrites") or 0, info.number("uptime_in_seconds") or 0
        if count >= MANY_REWRITES and up < count * OFTEN_SECONDS:
            yield Seen(
                name,
                f"{count} rewrites in {duration(up)}, aof_base_size "
                f"{megabytes(info.number('aof_base_size') or 0)} (INFO persistence)",
            )


@rule(
    "redis-evicts",
    HIGH,
    "Redis removes keys when it is full",
    risk="The keys are tasks.",
    fix="remove maxmemory-policy from redis_extra_config and run site.yml; where Redis is your "
    "own, set maxmemory-policy noeviction there",
)
def evicts(site: Site) -> Iterator[Seen]:
    for name, info in _infos(site):
        policy, evicted = info.text("maxmemory_policy"), info.number("evicted_keys")
        if policy not in ("", "noeviction") or evicted:
            yield Seen(name, f"maxmemory_policy is {policy}, evicted_keys {evicted or 0} (INFO)")


@rule(
    "redis-unbounded",
    MEDIUM,
    "Redis has no limit of memory",
    risk="When it grows, the kernel ends it or what runs beside it.",
    fix="remove maxmemory from redis_extra_config and run site.yml; where Redis is your own, set "
    "maxmemory there",
)
def unbounded(site: Site) -> Iterator[Seen]:
    for name, info in _infos(site):
        if info.number("maxmemory") == 0:
            yield Seen(name, "maxmemory is 0 (INFO memory)")


@rule(
    "redis-full",
    HIGH,
    "Redis is nearly full",
    risk="When it is full, producers get an error for each task.",
    fix="run more workers, or see 'When Redis fills up' in docs/operating.md",
)
def full(site: Site) -> Iterator[Seen]:
    memory = site.fleet["redis_memory"]
    if memory and memory["alarm"]:
        used, limit = megabytes(memory["used"]), megabytes(memory["limit"])
        yield Seen(site.fleet["redis_host"], f"{used} of {limit}, {memory['percent']} %")


@rule(
    "redis-clients",
    HIGH,
    "Redis turns clients away, or soon will",
    risk="Workers and producers get no connection.",
    fix="find the clients (CLIENT LIST as the user admin, docs/access.md), or raise "
    "maxclients in redis_extra_config",
)
def clients(site: Site) -> Iterator[Seen]:
    for name, info in _infos(site):
        count, most = info.number("connected_clients") or 0, info.number("maxclients") or 0
        rejected = info.number("rejected_connections") or 0
        if rejected or (most and count * 100 >= most * NEAR_PERCENT):
            yield Seen(name, f"{count} of {most} clients, {rejected} turned away since its start")


@rule(
    "redis-disk-slow",
    LOW,
    "Redis waits for its disk",
    risk="Every queue stands still for as long.",
    fix="give /var/lib/celery-metal/redis a faster disk of its own: docs/durability.md",
)
def slow(site: Site) -> Iterator[Seen]:
    for name, info in _infos(site):
        count, up = info.number("aof_delayed_fsync") or 0, info.number("uptime_in_seconds") or 0
        if count >= MANY_DELAYS and count * 3600 >= up * DELAYS_AN_HOUR:
            yield Seen(name, f"{count} writes waited for an fsync in {duration(up)} (INFO)")


@rule(
    "redis-fork-slow",
    LOW,
    "Redis stands still when it begins a save",
    risk="Every queue stands still for as long, at each rewrite and each backup.",
    fix="keep less in Redis: shorter queues, result_expires, smaller arguments",
)
def fork(site: Site) -> Iterator[Seen]:
    for name, info in _infos(site):
        if (took := info.number("latest_fork_usec") or 0) >= FORK_MICROSECONDS:
            yield Seen(name, f"the last fork took {took // 1000} ms (latest_fork_usec)")


@rule(
    "redis-replicas",
    HIGH,
    "Redis has too few replicas",
    risk="The primary takes no tasks, or loses them when it fails.",
    fix="'systemctl status celery-redis' on the other hosts of the group redis: docs/failover.md",
)
def replicas(site: Site) -> Iterator[Seen]:
    found = site.fleet["redis_replication"]
    if found and (found["missing"] or found["absent"]):
        names = ", ".join(found["absent"])
        absent = f"; {names} neither is the primary nor follows it" if names else ""
        yield Seen(
            found["host"],
            f"replicas that keep up with the primary: {found['count'] or 0}, required: "
            f"{found['required']}{absent}",
        )


@rule(
    "access",
    MEDIUM,
    "a certificate ends, or a host that left still has access",
    risk="What the report says.",
    fix="see docs/tls.md and docs/access.md",
)
def access(site: Site) -> Iterator[Seen]:
    host = site.hosts.get(site.fleet["redis_host"])
    if host and host.why:
        return  # the report is that it gave no answer
    for text in site.fleet["redis_reports"]:
        said, _, fix = text.partition("\n  Fix: ")
        yield Seen(site.fleet["redis_host"], " - ".join(map(str.strip, said.split("\n"))), fix)


@rule(
    "results-endless",
    MEDIUM,
    "results of tasks never expire",
    risk="They fill Redis, which then takes no tasks.",
    fix="set result_expires of the app to seconds, such as 86400, or ignore_result=True for tasks "
    "whose result is not read; remove the old ones as the user admin (docs/access.md)",
)
def endless(site: Site) -> Iterator[Seen]:
    for name, redis in site.redises():
        found = redis.inner("results")
        count, sampled = found.number("count") or 0, found.number("sampled") or 0
        lasting = found.number("endless") or 0
        if sampled and lasting * count >= MANY_ENDLESS * sampled:
            yield Seen(
                name,
                f"{lasting} of {sampled} sampled results have no expiry; {_results(found)}",
            )


@rule(
    "results-large",
    LOW,
    "results take much of Redis's memory",
    risk="What they take is not there for tasks.",
    fix="lower result_expires of the app, or set ignore_result=True for tasks whose result is not "
    "read",
)
def large(site: Site) -> Iterator[Seen]:
    for name, redis in site.redises():
        found, limit = redis.inner("results"), redis.inner("info").number("maxmemory")
        size = _estimated(found) * (found.number("mean_bytes") or 0)
        if limit and size * 100 > limit * RESULTS_PERCENT:
            yield Seen(name, f"{_results(found)}, about {megabytes(size)} of {megabytes(limit)}")


def _estimated(found: Given) -> int:
    """How many results there are, from what was seen of all keys."""
    count, seen, keys = (found.number(key) or 0 for key in ("count", "seen", "keys"))
    return count if found.truth("is_complete") or not seen else count * keys // seen


def _results(found: Given) -> str:
    mean = f" of {found.number('mean_bytes') or 0} bytes on average"
    if found.truth("is_complete"):
        return f"{found.number('count') or 0} results{mean} (SCAN of all keys)"
    seen = f"SCAN of {found.number('seen') or 0} of {found.number('keys') or 0} keys"
    return f"about {_estimated(found)} results{mean} ({seen})"


@rule(
    "queue-stale",
    LOW,
    "a queue is long, and its tasks never expire",
    risk="When workers come to them, they may be of no use any more, and delay newer ones.",
    fix="send them with expires, run more workers, or purge the queue: playbooks/queues.yml",
)
def stale(site: Site) -> Iterator[Seen]:
    for name, queue in _queues(site):
        length, sampled = queue.number("length") or 0, queue.number("sampled") or 0
        is_waiting = not queue.text("node")
        if is_waiting and length >= LONG_QUEUE and sampled and queue.number("endless") == sampled:
            yield Seen(
                name,
                f"queue {queue.text('queue')}: {length} tasks wait, and none of {sampled} sampled "
                "has expires",
            )


@rule(
    "eta-far",
    MEDIUM,
    "tasks wait for an ETA beyond the visibility timeout",
    risk="A worker keeps them in its memory until then, and consumers without celery-metal run "
    "them twice.",
    fix="keep them in a database and send them when they are due, or give them a queue of their "
    "own: 'Tasks with a countdown or an ETA' in docs/queues.md",
)
def far(site: Site) -> Iterator[Seen]:
    windows = [one.inner("settings").number("visibility_timeout") for _, one in site.workers()]
    window = max([one for one in windows if one], default=WINDOW_SECONDS)
    for name, queue in _queues(site):
        raw = queue.raw.get("etas")
        etas = [one for one in raw if type(one) is int] if isinstance(raw, list) else []
        beyond = [one for one in etas if one > window]
        if beyond:
            where = f"held by {queue.text('node')}" if queue.text("node") else "waiting"
            yield Seen(
                name,
                f"queue {queue.text('queue')}: {len(beyond)} of {queue.number('sampled') or 0} "
                f"sampled, {where}, the farthest in {duration(max(beyond))}; the visibility "
                f"timeout is {duration(window)}",
            )


def _queues(site: Site) -> Iterator[tuple[str, Given]]:
    for name, redis in site.redises():
        for queue in redis.each("queues"):
            yield name, queue
