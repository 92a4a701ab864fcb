"""Redis's protocol."""

import io

import pytest
from ansible.module_utils import celery_redis


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
    assert celery_redis.answer(stream) == expected
    assert celery_redis.answer(stream) == "next"


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
    with pytest.raises(celery_redis.RedisError, match=said):
        celery_redis.answer(io.BytesIO(sent))


class Sentinels:
    """What each address answers; an error of the system is raised."""

    def __init__(self, monkeypatch, **answers):
        self.answers, self.asked = answers, []
        monkeypatch.setattr(celery_redis, "Client", self.connect)

    def connect(self, where, seconds, tls):
        answer = self.answers[where[0]]
        if isinstance(answer, OSError):
            raise answer
        outer = self

        class Client:
            def ask(self, *commands):
                outer.asked += commands
                if isinstance(answer, Exception):
                    raise answer
                return [*(["OK"] * (len(commands) - 1)), [answer]]

            def close(self):
                pass

        return Client()

    def primary(self, login=()):
        where = [(name, 26379) for name in self.answers]
        return celery_redis.primary_of(where, "mine", login, None)


def state(ip, epoch, flags="master", name="mine"):
    return ["name", name, "ip", ip, "port", "6379", "flags", flags, "config-epoch", str(epoch)]


def test_the_primary_is_the_one_that_was_elected_last(monkeypatch):
    asked = Sentinels(monkeypatch, a=state("old", 3), b=state("new", 4), c=state("new", 4))
    assert asked.primary(("u", "p")) == (("new", 6379), {})
    assert asked.asked[:2] == [("AUTH", "u", "p"), ("SENTINEL", "MASTERS")]
    down = OSError(111, "Connection refused")
    asked = Sentinels(monkeypatch, a=down, b=state("new", 4))
    assert asked.primary() == (("new", 6379), {"a:26379": "Connection refused"})
    assert ("AUTH",) not in asked.asked


@pytest.mark.parametrize(
    ("answers", "kind", "said"),
    [
        ({"a": OSError(111, "refused"), "b": OSError(111, "refused")}, OSError, "refused"),
        ({"a": state("x", 1, name="other")}, celery_redis.RedisError, "no Redis of the name mine"),
        ({"a": state("x", 1, "master,s_down")}, celery_redis.RedisError, "x:6379 is down"),
        ({"a": celery_redis.RedisError("WRONGPASS")}, celery_redis.RedisError, "WRONGPASS"),
    ],
)
def test_without_a_primary(monkeypatch, answers, kind, said):
    with pytest.raises(kind, match=said):
        Sentinels(monkeypatch, **answers).primary()
