"""Sessions in Redis: a hash a session, and a key for its lease, both under one hash tag and changed by scripts.

serpentine:{id}         model, key, request, created_at, expires_at, version, fence, data; expires with the session
serpentine:{id}:lease   the fence of the writer; expires with its lease
serpentine:of:KEY       the ids of an API key's sessions, by when they expire

serpentine:{model:NAME}:until   the ids of a model's sessions, by when they expire; goes with the last of them
serpentine:{model:NAME}:bytes   how long the data of each are, by id, and `total`; likewise

serpentine:spent:KEY:…   when a rate of an API key will be as if nobody had used it; gone by then

`until` and `bytes` are for the metrics: nothing that is asked of Redis walks through all its keys. They are changed
right after the session and not with it, as they lie under another hash tag: a process that dies in between leaves them
off by that session until it is written again, or expires.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.errors import Overloaded
from service.sessions.session import Session, Stored, no_session, overtaken, too_many, two_writers

TIMEOUT_S = 2.0
EXPIRED_AT_ONCE = 1000  # sessions that one call of _KEPT takes out: some milliseconds, in which Redis does nothing else
MOST_CALLS = 100  # of it for one `kept`
P = ParamSpec("P")
T = TypeVar("T")

_ACQUIRE = """
if redis.call('HGET', KEYS[1], 'key') ~= ARGV[2] then return -1 end
if redis.call('EXISTS', KEYS[2]) == 1 then return -2 end
local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('SET', KEYS[2], fence, 'PX', ARGV[1])
return fence
"""
_WRITE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return -2 end
redis.call('HSET', KEYS[1], 'data', ARGV[2], 'expires_at', ARGV[3], 'request', ARGV[5])
redis.call('PEXPIREAT', KEYS[1], ARGV[4])
redis.call('DEL', KEYS[2])
return redis.call('HINCRBY', KEYS[1], 'version', 1)
"""
_COUNT = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if ARGV[2] ~= '' and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return -2 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[4])
redis.call('EXPIREAT', KEYS[1], math.ceil(ARGV[3]) + 1)
return 0
"""
_KEPT = """
local time, freed = redis.call('TIME'), 0
local now = time[1] + time[2] / 1e6
local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
local expired = #gone
if ARGV[2] then gone[expired + 1] = ARGV[2] end
for _, id in ipairs(gone) do
  freed = freed + (redis.call('HGET', KEYS[2], id) or 0)
  redis.call('HDEL', KEYS[2], id)
  redis.call('ZREM', KEYS[1], id)
end
if ARGV[4] then
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[2])
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])
  freed = freed - ARGV[4]
end
if #gone > 0 then
  redis.call('HINCRBY', KEYS[2], 'total', 0 - freed)
  local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
  local until_s = last and math.ceil(last) + 1 or 0
  redis.call('EXPIREAT', KEYS[1], until_s)
  redis.call('EXPIREAT', KEYS[2], until_s)
end
return {redis.call('ZCOUNT', KEYS[1], '(' .. now, '+inf'), tonumber(redis.call('HGET', KEYS[2], 'total') or 0), expired}
"""
_SPENT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local whole = (redis.call('GET', KEYS[1]) or now) + ARGV[1]
local left_ms = math.ceil(1000 * (whole - now))
if left_ms > 0 then redis.call('SET', KEYS[1], string.format('%.6f', whole), 'PX', left_ms) end
return tostring(whole - now)
"""
_RENEW = "return redis.call('GET', KEYS[2]) == ARGV[1] and redis.call('PEXPIRE', KEYS[2], ARGV[2]) or 0"
_RELEASE = "if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end"
_FIELDS = ("model", "version", "created_at", "expires_at", "key", "request")
_GONE, _REFUSED = -1, -2


def _answers(method: Callable[P, T]) -> Callable[P, T]:
    """What the client library raises, as ours."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError) as error:
            raise Overloaded("the store of sessions does not answer; try again later", retry_after_s=1.0) from error

    return call


class RedisStore:
    """See `Store`."""

    def __init__(self, url: str) -> None:
        # Once more, for a connection that was closed meanwhile; the client's own patience is for whoever can wait.
        again = Retry(NoBackoff(), 1)
        self._redis: Any = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=again
        )
        self._acquire, self._write, self._release = map(self._redis.register_script, (_ACQUIRE, _WRITE, _RELEASE))
        self._renew = self._redis.register_script(_RENEW)

    @_answers
    def create(self, id: str, stored: Stored, most: int | None = None) -> None:
        """See `Store`."""
        key, _ = _keys(id)
        if int(self._redis.eval(*_counting(stored.key, id, stored.expires_at, most))) == _REFUSED:
            assert most is not None
            raise too_many(stored.key, most)
        data = stored.data or b""
        fields = {name: str(getattr(stored, name)) for name in _FIELDS} | {"fence": 0, "data": data}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, mapping=fields)
            pipe.pexpireat(key, _milliseconds(stored.expires_at))
            pipe.execute()
        with suppress(redis.RedisError):  # it is made, and to be answered
            self._redis.eval(*_keeping(stored.model, id, stored.expires_at, len(data)))

    @_answers
    def read(self, id: str, known_version: int | None = None) -> Stored:
        """See `Store`."""
        key, _ = _keys(id)
        fields = self._redis.hmget(key, _FIELDS)
        data = None
        if known_version is None or fields[1] is None or int(fields[1]) != known_version:
            *fields, data = self._redis.hmget(key, (*_FIELDS, "data"))  # at once: of one version
        if None in fields:
            raise no_session(id)
        model, version, created_at, expires_at, owner, request = fields
        times = float(created_at), float(expires_at)
        return Stored(model.decode(), int(version), *times, data, owner.decode(), request.decode())

    @_answers
    def acquire(self, id: str, lease_s: float, key: str) -> int:
        """See `Store`."""
        fence = int(self._acquire(keys=_keys(id), args=[max(1, round(1000 * lease_s)), key]))
        if fence == _GONE:
            raise no_session(id)
        if fence == _REFUSED:
            raise two_writers(id)
        return fence

    @_answers
    def renew(self, id: str, fence: int, lease_s: float) -> bool:
        """See `Store`."""
        return bool(self._renew(keys=_keys(id), args=[fence, max(1, round(1000 * lease_s))]))

    @_answers
    def write(self, session: Session, fence: int, data: bytes) -> int:
        """See `Store`."""
        id, expires_at = session.id, session.expires_at
        args: list[Any] = [fence, data, expires_at, _milliseconds(expires_at), session.request]
        version = int(self._write(keys=_keys(id), args=args))
        if version == _GONE:
            raise no_session(id)
        if version == _REFUSED:
            raise overtaken(id)
        with suppress(redis.RedisError), self._redis.pipeline(transaction=False) as pipe:
            # Where this fails the session is written all the same: who was told 503 would have its steps read again.
            pipe.eval(*_counting(session.key, id, expires_at))
            pipe.eval(*_keeping(session.model, id, expires_at, len(data)))
            pipe.execute()
        return version

    @_answers
    def release(self, id: str, fence: int) -> None:
        """See `Store`."""
        self._release(keys=_keys(id), args=[fence])

    @_answers
    def delete(self, id: str, key: str, model: str) -> None:
        """See `Store`."""
        session, lease = _keys(id)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.delete(session)
            pipe.delete(lease)
            pipe.zrem(_sessions_of(key), id)
            pipe.eval(*_keeping(model, id))
            found, *_ = pipe.execute()
        if not found:
            raise no_session(id)

    @_answers
    def kept(self, model: str) -> tuple[int, int]:
        """See `Store`."""
        for _ in range(MOST_CALLS):
            count, total, expired = self._redis.eval(*_keeping(model))
            if expired < EXPIRED_AT_ONCE:
                break
        return int(count), int(total)

    @_answers
    def spent(self, what: str, seconds: float) -> float:
        """See `Store`."""
        return float(self._redis.eval(_SPENT, 1, f"serpentine:spent:{what}", seconds))

    def close(self) -> None:
        """See `Store`."""
        self._redis.close()


def _keys(id: str) -> list[str]:
    key = f"serpentine:{{{id}}}"
    return [key, f"{key}:lease"]


def _counting(key: str, id: str, expires_at: float, most: int | None = None) -> tuple[Any, ...]:
    """What counts a session among its key's, until it expires; _REFUSED where they are as many as may be."""
    return _COUNT, 1, _sessions_of(key), time.time(), "" if most is None else most, expires_at, id


def _keeping(model: str, *session: Any) -> tuple[Any, ...]:
    """What counts a session (id, expires_at, bytes) among its model's, or (id) no more; or counts what there is."""
    name = f"serpentine:{{model:{model}}}"
    return _KEPT, 2, f"{name}:until", f"{name}:bytes", EXPIRED_AT_ONCE, *session


def _sessions_of(key: str) -> str:
    return f"serpentine:of:{key}"


def _milliseconds(at: float) -> int:
    return round(1000 * at)
