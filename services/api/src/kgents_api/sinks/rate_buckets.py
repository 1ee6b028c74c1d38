"""Token buckets in Redis, through pyrate-limiter's GCRA: one number for each tenant and limit."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import lru_cache
from typing import cast

from prometheus_client import Counter
from pyrate_limiter.abstracts.algorithm import GCRA, Decision, State
from pyrate_limiter.abstracts.rate import Rate
from pyrate_limiter.buckets.redis_state import RedisStateStore

from kgents_api.model.rate_limit import Bucket, Quota
from kgents_api.sinks.shared_redis import SharedRedis
from kgents_common.clock import Clock
from kgents_common.errors import TransientError

PREFIX = "rate:events:"
# A store holds nothing but its name and its script: one that is dropped costs its making again.
MAX_STORES = 4096
_ALGORITHM = GCRA()


class RedisBuckets:
    """See `Buckets`. Moments are this process's wall clock's: NTP's few milliseconds are few tokens."""

    def __init__(
        self, redis: SharedRedis, quota: Quota, clock: Clock, *, unanswered: Counter, prefix: str = PREFIX
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._quota = quota
        self._rates = [Rate(quota.per_second, quota.seconds * 1000, burst=quota.burst)]
        self._unanswered = unanswered
        self._store = lru_cache(maxsize=MAX_STORES)(
            lambda tenant: RedisStateStore(redis.client, prefix + tenant)
        )

    async def take(self, tenant: str, tokens: int) -> Bucket:
        """See `Buckets.take`."""
        store = self._store(tenant)
        now = int(self._clock.now().timestamp() * 1000)
        try:
            decision: Decision = await self._redis.ask(
                lambda: cast("Awaitable[Decision]", store.check(_ALGORITHM, self._rates, now, tokens))  # type: ignore[no-untyped-call]
            )
            state: State = await self._redis.ask(
                lambda: cast("Awaitable[State]", store.read(_ALGORITHM, self._rates))  # type: ignore[no-untyped-call]
            )
        except TransientError:
            self._unanswered.inc()
            raise
        used = _ALGORITHM.consumed(self._rates, state, now)
        wait = decision.retry_after_ms if decision.retry_after_ms is not None else 0
        return Bucket(
            given=decision.allowed,
            left=max(0, self._quota.burst - used),
            wait_seconds=wait / 1000,
            full_seconds=used * self._quota.seconds / self._quota.per_second,
        )
