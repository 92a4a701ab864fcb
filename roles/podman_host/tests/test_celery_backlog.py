"""celery_backlog: Redis's protocol, and what is asked."""

import io
import json

import celery_backlog
import pytest


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"+OK\r\n", "OK"),
        (b":42\r\n", 42),
        (b"$2\r\n\xc3\xa9\r\n", "é"),
        (b"$4\r\n\r\n\r\n\r\n", "\r\n\r\n"),
        (b"$0\r\n\r\n", ""),
        (b"$-1\r\n", None),
        (b"*2\r\n:1\r\n*1\r\n$1\r\na\r\n", [1, ["a"]]),
        (b"*0\r\n", []),
    ],
)
def test_answers(sent, expected):
    stream = io.BytesIO(sent + b"+next\r\n")
    assert celery_backlog.answer(stream) == expected
    assert celery_backlog.answer(stream) == "next"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"-WRONGPASS invalid\r\n", "WRONGPASS invalid"),
        (b"*2\r\n:1\r\n-ERR x\r\n", "ERR x"),
        (b"", "closed"),
        (b":4", "closed"),
    ],
)
def test_errors(sent, said):
    with pytest.raises(celery_backlog.RedisError, match=said):
        celery_backlog.answer(io.BytesIO(sent))


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
