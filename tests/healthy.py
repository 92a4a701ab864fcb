"""What playbooks/doctor.yml knows of a healthy site of two hosts, to be changed by tests."""

import copy

import doctor
import findings

MIB, GIB = 1 << 20, 1 << 30
NOW = 1_795_980_160.0


def disk(**changes):
    return {
        "mount": "/",
        "type": "ext4",
        "holds": ["the system", "images", "Redis's data"],
        "size": 100 * GIB,
        "free": 60 * GIB,
        "inodes": 1_000_000,
        "inodes_free": 900_000,
        **changes,
    }


def unit(name, **changes):
    return {
        "unit": name,
        "processes": 2,
        "main_peak": 57 * MIB,
        "child_peak": 48 * MIB,
        "resident": 70 * MIB,
        "swap": 0,
        "files": 36,
        "files_most": 20000,
        "memory_most": 278 * MIB,
        "anonymous": 90 * MIB,
        "oom_kills": 0,
        "tasks": 12,
        "tasks_most": 4096,
        "tasks_denied": 0,
        "versions": {"celery": "5.7.0", "kombu": "5.7.0", "redis": "8.1.0"},
        **changes,
    }


def planned(**changes):
    return {
        "name": "emails",
        "unit": "emails",
        "pool": "prefork",
        "concurrency": 2,
        "memory_per_process_mb": 150,
        "memory_mb": 428,
        "tmp_mb": 64,
        "prefetch": 1,
        "acks_late": True,
        "time_limit_seconds": 0,
        "drain_seconds": 60,
        "queues": ["emails"],
        **changes,
    }


def answer(**settings):
    """What a worker that is as the queue wants it answers, with these settings of the app."""
    return {
        "running": 0,
        "longest": 0,
        "settings": {
            "result_backend": "redis",
            "task_acks_late": True,
            "task_reject_on_worker_lost": True,
            "visibility_timeout": 3600,
            "worker_disable_prefetch": False,
            "worker_max_memory_per_child": 153600,
            "worker_prefetch_multiplier": 1,
            **settings,
        },
    }


INFO = {
    "aof_base_size": "90",
    "aof_current_size": "179865",
    "aof_delayed_fsync": "0",
    "aof_enabled": "1",
    "aof_last_bgrewrite_status": "ok",
    "aof_last_write_status": "ok",
    "aof_rewrites": "0",
    "connected_clients": "62",
    "evicted_keys": "0",
    "latest_fork_usec": "300",
    "loading": "0",
    "maxclients": "10000",
    "maxmemory": str(491 * MIB),
    "maxmemory_policy": "noeviction",
    "rdb_last_bgsave_status": "ok",
    "redis_version": "8.0.2",
    "rejected_connections": "0",
    "role": "master",
    "uptime_in_seconds": "3750",
    "used_memory": str(20 * MIB),
}
RESULTS = {
    "keys": 500,
    "seen": 500,
    "is_complete": True,
    "count": 400,
    "sampled": 400,
    "endless": 0,
    "mean_bytes": 300,
}
MANY_RESULTS = {"keys": 500_000, "is_complete": False, "mean_bytes": 400}
WAITING = {"queue": "emails", "node": "", "length": 40, "sampled": 20, "endless": 20, "etas": []}


def facts(**changes):
    return {
        "format": 1,
        "asked": NOW - 3,
        "at": NOW - 1,
        "kernel": "6.12.48",
        "architecture": "x86_64",
        "system": "Debian GNU/Linux 13 (trixie)",
        "in_container": False,
        "is_synchronised": True,
        "memory": {"total": 4 * GIB, "available": 3 * GIB, "swap": 0},
        "disks": [disk()],
        "limits": {"files": 3025, "files_most": 2466170, "huge_pages": "always"},
        "units": [unit("celery-emails@1.service"), unit("celery-redis.service", versions={})],
        "plan": {
            "maxmemory_mb": 491,
            "queues": [planned()],
            "totals": {"workers_mb": 856, "redis_mb": 737, "beat_mb": 0, "sentinel_mb": 0},
        },
        "backup": {
            "count": 3,
            "ended": int(NOW) - 3600,
            "newest": int(NOW) - 3600,
            "result": "success",
            "state": "inactive",
            "timer": "active",
            "triggered": int(NOW) - 3610,
            "unproven": 0,
        },
        "redis": {
            "asked": 2,
            "config": {"disable-thp": "yes", "port": "0", "tls-port": "6379", "bind": "10.0.0.1"},
            "info": dict(INFO),
            "queues": [dict(WAITING)],
            "results": dict(RESULTS),
            "workers": {"emails-1@web1": answer(), "emails-1@web2": answer()},
        },
        **changes,
    }


STATE = {
    "podman": "5.4.2",
    "overcommit_memory": {"value": 1, "writable": True},
    "admitted": ["10.0.0.2"],
    "firewall": "a mark",
    "egress": "a mark",
    "podman_rules": True,
    "hooks_left": "",
}


def worker(**changes):
    return {
        "queue": "emails",
        "queues": ["emails"],
        "instance": "1",
        "state": "active",
        "restarts": 0,
        "concurrency": 2,
        "busy": 0,
        "done": 7,
        "version": "4f1c",
        "since": int(NOW) - 3750,
        **changes,
    }


BACKLOG = {
    "error": "",
    "waiting": {"emails": 40},
    "memory": {"used": 20 * MIB, "limit": 491 * MIB},
    "run_id": "a",
    "replication": None,
    "consumers": {},
    "unconsumed": {},
    "is_complete": True,
    "dead": {},
    "holders": None,
    "secrets": {},
    "held": [],
}


class Fleet:
    """What the playbook hands over; the default is a healthy site of two hosts."""

    def __init__(self):
        self.hosts = {
            "web1": {"doctor": {"facts": facts()}, "state": dict(STATE)},
            "web2": {
                "doctor": {"facts": facts(redis=None, backup=None)},
                "state": {**STATE, "admitted": None, "firewall": ""},
            },
        }
        self.status = {name: {"workers": [worker()], "beat": ""} for name in self.hosts}
        self.backlog = copy.deepcopy(BACKLOG)
        self.redis = {"host": "web1", "alarm_percent": 80, "reports": []}
        self.whole = True

    def facts(self, host="web1"):
        return self.hosts[host]["doctor"]["facts"]

    def set(self, path, value, host="web1"):
        """Change what a host has at a path, such as redis.info.aof_enabled."""
        *parents, last = path.split(".")
        place = self.facts(host)
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place[name]
        place[int(last) if isinstance(place, list) else last] = value

    def answer(self, **settings):
        self.facts()["redis"]["workers"]["emails-1@web1"] = answer(**settings)

    def site(self):
        status = (self.status, self.backlog, self.redis, self.whole)
        return doctor.site_of(self.hosts, status, ["web1"], NOW)

    def examined(self, *accepted):
        return findings.examine(self.site(), accepted)

    def found(self):
        return {one.rule.name: one for one in self.examined()}
