"""A header task counts once in its chord, as from Celery 5.7 on: older versions count each run.

The keys and their layout are those of Celery 5.7, so that workers of both can finish one chord.
"""

from typing import Any

from celery.backends.redis import RedisBackend
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult, allow_join_result
from celery.utils.log import get_logger

logger = get_logger(__name__)

# How long the task that completes a chord keeps others from sending the body too. It may itself
# begin again earlier, when its worker died in between.
CLAIM_SECONDS = 600
# Returns: whether the chord is complete and its body is for this task to send.
COUNT = """
local parts, grown, size_key, seen, claim = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local member, index, value, ordered = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local expires = tonumber(ARGV[5])
if redis.call('GET', claim) == 'done' then
  return 0
end
if redis.call('SADD', seen, member) == 1 then
  if ordered then
    redis.call('ZADD', parts, index, value)
  else
    redis.call('RPUSH', parts, value)
  end
end
if expires > 0 then
  for _, key in ipairs({parts, grown, size_key, seen}) do
    redis.call('EXPIRE', key, expires)
  end
end
local size = redis.call('GET', size_key)
local count = ordered and redis.call('ZCOUNT', parts, '-inf', '+inf') or redis.call('LLEN', parts)
if not size or count ~= tonumber(size) + tonumber(redis.call('GET', grown) or 0) then
  return 0
end
local holder = redis.call('GET', claim)
if holder and holder ~= member then
  return 0
end
redis.call('SET', claim, member, 'EX', ARGV[6])
return 1
"""


def install() -> None:
    """Have the Redis backend of a Celery before 5.7 count so."""
    RedisBackend.on_chord_part_return = count_once


def count_once(
    self: RedisBackend, request: Any, state: str, result: Any, propagate: Any = None, **_: Any
) -> Any:
    """Count the end of a header task once, and send the body when it is the last."""
    task, chord = request.id, request.group
    if not chord or not task:
        return None
    index = "+inf" if request.group_index is None else request.group_index
    keys = [self.get_key_for_group(chord, suffix) for suffix in (".j", ".t", ".s", ".d", ".c")]
    value = self.encode([1, task, state, self.encode_result(result, state)])
    # A frozen signature that is used twice has one ID in two places.
    part = (f"{task}:{index}", index, value, int(self._chord_zset), int(self.expires or 0))
    if not self.client.eval(COUNT, len(keys), *keys, *part, CLAIM_SECONDS):
        return None
    body = maybe_signature(request.chord, app=self.app)
    try:
        values = _values(self, chord, keys[0])
        try:
            body.delay(values)
        except Exception as error:
            logger.exception("Chord callback for %r raised: %r", chord, error)
            return self.chord_error_from_stack(body, ChordError(f"Callback error: {error!r}"))
        finally:
            self.client.delete(*keys)
    except Exception as error:
        logger.exception("Chord %r raised: %r", chord, error)
        known = isinstance(error, ChordError)
        failure = error if known else ChordError(f"Join error: {error!r}")
        try:
            return self.chord_error_from_stack(body, failure)
        finally:
            # A header task that comes again must not fail the chord again.
            self.client.delete(keys[2])
    return None


def _values(backend: RedisBackend, chord: str, parts: Any) -> list[Any]:
    """What the header tasks returned; raises ChordError when one has failed."""
    saved = GroupResult.restore(chord, backend=backend, app=backend.app)
    if saved is not None:  # of a header with groups or chords in it
        saved.on_ready()
        join = saved.join_native if saved.supports_native_join else saved.join
        with allow_join_result():
            timeout = backend.app.conf.result_chord_join_timeout
            values: list[Any] = join(timeout=timeout, propagate=True)
        return values
    read = backend.client.zrange if backend._chord_zset else backend.client.lrange
    return [backend._unpack_chord_result(one, backend.decode) for one in read(parts, 0, -1)]
