"""celery_backlog: what is asked of Redis."""

import json

import celery_backlog


class Redis:
    """Lists by their lengths; what nobody knows is empty."""

    def __init__(self, lengths, nodes):
        self.lengths, self.nodes, self.trips = lengths, nodes, 0

    def ask(self, *commands):
        self.trips += 1
        return [
            self.nodes if words[0] == "HGETALL" else self.lengths.get(words[1], 0)
            for words in commands
        ]


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
        [
            "mail-1@a",
            json.dumps([7, 1, ["celery-metal.canary:mail-1@a", "mail"]]),
            "x-1@b",
            json.dumps([9, 1, ["by hand", "mail"]]),
        ],
    )
    assert celery_backlog.backlog(redis, ["mail", "reports"]) == {
        "waiting": {"mail": 8, "reports": 0, "by hand": 4},
        "dead": {"mail": 3},
        "held": [
            {"node": "mail-1@a", "queue": "mail", "tasks": 2},
            {"node": "x-1@b", "queue": "by hand", "tasks": 1},
        ],
    }
    assert redis.trips == 2


def test_nothing_is_known_of_nothing():
    assert celery_backlog.backlog(Redis({}, []), []) == {"waiting": {}, "dead": {}, "held": []}
