"""celery_backlog: what is asked of Redis."""

import json

import celery_backlog
import pytest
from ansible.module_utils.celery_metrics import SENT
from ansible.module_utils.celery_redis import RedisError


class Redis:
    """Lists by their lengths; what nobody knows is empty."""

    def __init__(self, lengths, nodes):
        self.lengths, self.nodes, self.trips = lengths, nodes, 0

    def ask(self, *commands):
        self.trips += 1
        return [
            self.nodes.get(words[1], []) if words[0] == "HGETALL" else self.lengths.get(words[1], 0)
            for words in commands
        ]

    def try_all(self, *commands):
        return self.ask(*commands)


def test_all_lists_in_two_trips():
    redis = Redis(
        {
            "mail": 5,
            "mail\x06\x163": 2,
            "mail\x06\x169": 1,
            "by hand": 4,
            "celery-metal.dead:mail": 3,
            "celery-metal.held:mail-1@a:mail": 2,
            "celery-metal.held:x-1@b:by hand": 1,
        },
        {
            "celery-metal.nodes": [
                "mail-1@a",
                json.dumps([7, 1, ["celery-metal.canary:mail-1@a", "mail"]]),
                "x-1@b",
                json.dumps([9, 1, ["by hand", "mail"]]),
            ]
        },
    )
    assert celery_backlog.backlog(redis, ["mail", "reports"]) == {
        "waiting": {"mail": 8, "reports": 0, "by hand": 4},
        "consumers": {"by hand": ["x-1@b"]},
        "dead": {"mail": 3},
        "held": [
            {"node": "mail-1@a", "queue": "mail", "tasks": 2, "beats": True},
            {"node": "x-1@b", "queue": "by hand", "tasks": 1, "beats": True},
        ],
    }
    assert redis.trips == 2


def test_a_queue_counts_under_each_prefix():
    redis = Redis(
        {
            "mail": 1,
            "shop:mail\x06\x163": 2,
            "shop:celery-metal.dead:mail": 3,
            "shop:celery-metal.held:mail-1@a:mail": 4,
        },
        {"shop:celery-metal.nodes": ["mail-1@a", json.dumps([7, 1, ["mail"]])]},
    )
    assert celery_backlog.backlog(redis, ["mail"], ["shop:", "none:"]) == {
        "waiting": {"mail": 3},
        "consumers": {},
        "dead": {"mail": 3},
        "held": [{"node": "mail-1@a", "queue": "mail", "tasks": 4, "beats": True}],
    }


class Wrong(Redis):
    """Its queues have no lengths, for this reason."""

    reason = "WRONGTYPE Operation against a key holding the wrong kind of value"

    def try_all(self, *commands):
        return [
            RedisError(self.reason) if words[0] == "LLEN" else found
            for words, found in zip(commands, self.ask(*commands), strict=True)
        ]


def test_a_queue_that_is_no_list_is_empty_and_a_redis_that_loads_is_an_error():
    wrong = Wrong({"mail": 1}, {})
    assert celery_backlog.backlog(wrong, ["mail"])["waiting"] == {"mail": 0}
    wrong.reason = "LOADING Redis is loading the dataset in memory"
    with pytest.raises(RedisError, match="LOADING"):
        celery_backlog.backlog(wrong, ["mail"])


def test_what_is_in_other_lists_is_added_and_counted_once():
    held = {"node": "mail-1@a", "queue": "mail", "tasks": 2, "beats": True}
    lengths = {"waiting": {"mail": 1}, "dead": {"mail": 3}, "held": [held]}
    found = celery_backlog.Stray(
        waiting={"mial": 4},
        dead={"mail": 3, "shop:mail": 3, "gone": 5},
        held={("mail-1@a", "mail"): 2, ("gone-1@b", "gone"): 6},
        is_complete=True,
    )
    assert celery_backlog.with_strays(lengths, found, ["shop:"]) == {
        "waiting": {"mail": 1},
        "dead": {"mail": 3, "gone": 5},
        "held": [held, {"node": "gone-1@b", "queue": "gone", "tasks": 6, "beats": False}],
    }


def test_claims_of_other_apps_workers_with_a_heartbeat_are_theirs(client):
    task = json.dumps({"body": "W10=", "headers": {"task": "a.b", "id": "1"}, "properties": {}})
    alive, gone = "sync-1@web1", "sync-2@web1"
    client.ask(
        ("HSET", "shop:celery-metal.nodes", alive, json.dumps([3, 1, ["sync"]])),
        *(
            ("LPUSH", key, task)
            for key in (
                *("mail", "shop:mail", "shop:sync", "shop:other"),
                *(f"shop:celery-metal.held:{node}:sync" for node in (alive, gone)),
            )
        ),
    )
    found = celery_backlog.strays(client, ["mail"], [], ["shop:"])
    assert found.waiting == {"shop:mail": 1, "shop:other": 1}
    assert found.held == {(gone, "shop:sync"): 1}
    # As if it were an app of this inventory.
    assert celery_backlog.strays(client, ["mail"], ["shop:"], []).waiting == {
        "shop:other": 1,
        "shop:sync": 1,
    }


def test_the_memory_of_redis():
    class Redis:
        def ask(self, *commands):
            assert commands == (("INFO", "memory"),)
            return ["# Memory\r\nused_memory:700\r\nused_memory_human:7K\r\nmaxmemory:1000\r\n"]

    assert celery_backlog.memory_of(Redis()) == {"used": 700, "limit": 1000}


# As Redis 7.0 says it.
REPLICATION = """# Replication\r
role:master\r
connected_slaves:2\r
min_slaves_good_slaves:1\r
slave0:ip=10.0.0.7,port=6379,state=wait_bgsave,offset=0,lag=0\r
slave1:ip=10.0.0.6,port=6379,state=online,offset=6000,lag=1\r
master_failover_state:no-failover\r
master_repl_offset:6923\r
second_repl_offset:-1\r
"""
FOLLOWED = {
    "primary": "10.0.0.5:6379",
    "replicas": [
        {"address": "10.0.0.6:6379", "state": "online", "behind_bytes": 923, "lag_seconds": 1},
        {
            "address": "10.0.0.7:6379",
            "state": "wait_bgsave",
            "behind_bytes": 6923,
            "lag_seconds": 0,
        },
    ],
    "count": 1,
}


class Elected(Redis):
    """One that says this of its replication, or refuses INFO."""

    where = ("10.0.0.5", 6379)

    def __init__(self, info=REPLICATION):
        super().__init__({"mail": 5}, {})
        self.info = info

    def ask(self, *commands):
        word, *rest = commands[0]
        if word == "TIME":
            return [["100", "0"], *super().ask(*commands[1:])]
        if rest[:1] == [SENT]:
            return [["40.5"] + [""] * (int(rest[1]) - 1)]
        if word != "INFO":
            return super().ask(*commands)
        if isinstance(self.info, Exception):
            raise self.info
        return [self.info if commands[0][1] == "replication" else "used_memory:7\nmaxmemory:9"]


def test_who_follows_the_primary():
    assert celery_backlog.replication_of(Elected()) == FOLLOWED
    alone = "role:master\r\nconnected_slaves:0\r\nmaster_repl_offset:0\r\n"
    assert celery_backlog.replication_of(Elected(alone)) == {
        "primary": "10.0.0.5:6379",
        "replicas": [],
        "count": None,
    }
    # Another has been elected meanwhile.
    replica = "role:slave\r\nslave_read_only:1\r\nmaster_repl_offset:6923\r\n"
    assert celery_backlog.replication_of(Elected(replica)) is None


class Module:
    """Ansible's, with an endpoint; it ends with what was found."""

    tmpdir = ""

    def __init__(self, **external):
        self.params = {"queues": ["mail"], "prefixes": [], "apps": [], "all_lists": True}
        self.params |= {"database": 0, "external": {"database": 0, **external}}
        self.said = {}

    def exit_json(self, **said):
        self.said = said


@pytest.mark.parametrize(
    ("sentinels", "redis", "memory", "replication"),
    [
        ([["10.0.0.5", 26379]], Elected(), {"used": 7, "limit": 9}, FOLLOWED),
        ([["10.0.0.5", 26379]], Elected(RedisError("NOPERM info")), {}, None),
        (None, Elected(), {"used": 7, "limit": 9}, None),
    ],
)
def test_only_one_that_was_elected_tells_who_follows_if_it_does(
    monkeypatch, sentinels, redis, memory, replication
):
    module = Module(sentinels=sentinels)
    monkeypatch.setattr(celery_backlog, "AnsibleModule", lambda **_: module)
    monkeypatch.setattr(celery_backlog, "client_at", lambda *_: redis)
    celery_backlog.main()
    assert module.said["error"] == ""
    assert module.said["waiting"] == {"mail": 5}
    assert (module.said["memory"], module.said["replication"]) == (memory, replication)
    assert module.said["oldest"] == {"mail": 60}


def test_nothing_is_known_of_nothing():
    assert celery_backlog.backlog(Redis({}, {}), []) == {
        "waiting": {},
        "consumers": {},
        "dead": {},
        "held": [],
    }
