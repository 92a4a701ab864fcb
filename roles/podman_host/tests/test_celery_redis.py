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
