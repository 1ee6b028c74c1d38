"""The limiter alone, on a bucket that answers when it is told to: who waits for whom."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from kgents_api.model.rate_limit import Bucket, Quota, RateLimiter
from kgents_common.clock import ManualClock

QUOTA = Quota(1000, 10_000)


class ToldBuckets:
    """Gives whatever is asked for, each answer once it may."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.left = QUOTA.burst

    async def take(self, tenant: str, tokens: int) -> Bucket:
        self.asked.append(tokens)
        await self.may_answer.wait()
        if tokens > self.left:
            return Bucket(False, self.left, 1.0, 1.0)
        self.left -= tokens
        return Bucket(True, self.left, 0.0, 1.0)


async def spend(limiter: RateLimiter, count: int) -> None:
    for _ in range(count):
        assert (await limiter.take("acme", 1)).allowed
        await asyncio.sleep(0)


async def test_a_busy_tenants_requests_do_not_wait_for_the_next_lease() -> None:
    """Rule: the next lease is fetched once half of this one is spent, beside the requests."""
    buckets = ToldBuckets()
    limiter = RateLimiter(buckets, QUOTA, ManualClock())
    await spend(limiter, 200)
    lease = max(buckets.asked)
    assert lease >= 16
    buckets.may_answer.clear()
    async with asyncio.timeout(5):
        while not limiter._renewals:
            await spend(limiter, 1)
        await spend(limiter, lease // 4)  # the bucket is silent, and nobody waits for it
    buckets.may_answer.set()
    await spend(limiter, 10 * lease)


async def test_tokens_are_spent_once_whatever_is_leased() -> None:
    """Rule: no process gets ahead of the bucket, renewals or not."""
    buckets = ToldBuckets()
    limiter = RateLimiter(buckets, QUOTA, ManualClock())
    allowed = 0
    while (await limiter.take("acme", 1)).allowed:
        allowed += 1
        await asyncio.sleep(0)
    assert allowed == QUOTA.burst
    assert buckets.left == 0


async def test_a_slow_tenant_takes_what_it_needs() -> None:
    buckets = ToldBuckets()
    clock = ManualClock()
    limiter = RateLimiter(buckets, QUOTA, clock)
    for _ in range(5):
        await spend(limiter, 1)
        clock.advance(timedelta(seconds=2))
    assert buckets.asked == [1] * 5
