"""A lease with a fence in Redis: two workers seldom do the same work at once; it decides nothing about money.

Redis may be flushed, evict or be away at any time. Whoever holds no lease for that reason works all the
same: what counts is decided by unique keys in Postgres, and the worst that a lost lease costs is work done
twice and thrown away once.

It never says that a thing is done. Marking it so beforehand (`SET NX EX`, as the field does) loses it when
the worker dies, and a mark in Redis outlives a database that was restored to an earlier moment.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from kgents_common.resilience import CircuitBreaker, CircuitOpenError

_log = structlog.get_logger()

# KEYS[1] the lease; ARGV[1] its length in ms. Times are Redis's own. Answers {fence, ms until it is free}.
_CLAIM = """
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local kept = redis.call('HMGET', KEYS[1], 'fence', 'until')
local left = kept[2] and (tonumber(kept[2]) - ms) or 0
if left > 0 then return {0, left} end
local fence = (tonumber(kept[1]) or 0) + 1
redis.call('HSET', KEYS[1], 'fence', fence, 'until', ms + tonumber(ARGV[1]))
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[1]) * 20)
return {fence, 0}
"""
# ARGV[1] the fence, ARGV[2] how much longer in ms, from now; 0 gives it back. 1 where it was still ours.
_HOLD = """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'until', now[1] * 1000 + math.floor(now[2] / 1000) + tonumber(ARGV[2]))
return 1
"""


@dataclass(frozen=True, slots=True)
class Held:
    """The work is ours until the lease runs out; a greater `fence` supersedes it."""

    key: str
    fence: int


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody else is at it, for at most this long."""

    left: timedelta


@dataclass(frozen=True, slots=True)
class Unknown:
    """Redis does not say: work on."""


Claim = Held | Busy | Unknown


class Leases(Protocol):
    """Who is at what."""

    async def claim(self, key: str) -> Claim:
        """Take the lease on `key`, or learn why not; never raises, never waits long."""

    async def renew(self, held: Held) -> bool:
        """Hold it for another length; False where it is another's by now (or Redis does not say)."""

    async def release(self, held: Held) -> None:
        """Let others have it at once."""


class RedisLeases:
    """Leases in Redis.

    Args:
        prefix: Before every key, e.g. `idem:stripe:`.
        length: How long a lease holds unless it is renewed.
        breaker: Open, Redis is not asked.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        prefix: str,
        length: timedelta = timedelta(seconds=30),
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._length = _milliseconds(length)
        self.breaker = breaker or CircuitBreaker("redis", threshold=3, window=6)
        self._claim = redis.register_script(_CLAIM)
        self._hold = redis.register_script(_HOLD)

    async def claim(self, key: str) -> Claim:
        """See `Leases.claim`."""
        answer = await self._ask(lambda: self._claim(keys=[self._prefix + key], args=[self._length]))
        if answer is None:
            return Unknown()
        fence, left = answer
        return Held(key, int(fence)) if fence else Busy(timedelta(milliseconds=int(left)))

    async def renew(self, held: Held) -> bool:
        """See `Leases.renew`."""
        keys, values = [self._prefix + held.key], [held.fence, self._length]
        return bool(await self._ask(lambda: self._hold(keys=keys, args=values)))

    async def release(self, held: Held) -> None:
        """See `Leases.release`."""
        keys = [self._prefix + held.key]
        await self._ask(lambda: self._hold(keys, args=[held.fence, 0]))

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _ask(self, question: Callable[[], Awaitable[Any]]) -> Any:
        """The answer; None where Redis does not give one."""
        try:
            async with self.breaker.guard():
                return await question()
        except CircuitOpenError:
            return None
        except (RedisError, OSError, TimeoutError) as error:
            _log.warning("lease.redis_away", error=type(error).__name__)
            return None


class NoLeases:
    """No Redis: everybody works, Postgres decides."""

    async def claim(self, key: str) -> Claim:
        """Always `Unknown`."""
        del key
        return Unknown()

    async def renew(self, held: Held) -> bool:
        """There is none to renew."""
        del held
        return False

    async def release(self, held: Held) -> None:
        """There is none to release."""


def _milliseconds(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)
