"""The lease: one holder at a time, a fence that rises, and an answer at once whatever Redis does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from redis.asyncio import Redis

from kgents_common.idempotency import Busy, Held, NoLeases, RedisLeases, Unknown
from kgents_common.redis_client import make_redis
from kgents_devstack.servers import ValkeyServer

LENGTH = timedelta(seconds=3)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    # More patient than a service is: how fast a shared machine connects is not what these tests are about.
    client = make_redis(redis_url, timeout=timedelta(seconds=10))
    yield client
    await client.aclose()


@pytest.fixture
def leases(redis: Redis) -> RedisLeases:
    return RedisLeases(redis, prefix="t:", length=LENGTH)


async def test_of_many_at_once_one_holds_it(leases: RedisLeases) -> None:
    """Rule: while it is held, everybody else learns for how long at most."""
    claims = await asyncio.gather(*(leases.claim("evt_1") for _ in range(100)))
    held = [claim for claim in claims if isinstance(claim, Held)]
    busy = [claim for claim in claims if isinstance(claim, Busy)]
    assert (len(held), len(busy)) == (1, 99)
    assert all(timedelta() < claim.left <= LENGTH for claim in busy)
    assert isinstance(await leases.claim("evt_2"), Held)


async def test_what_runs_out_is_taken_under_a_greater_fence(leases: RedisLeases) -> None:
    """Rule: a holder that died holds nothing up; one that only slept learns that it was superseded."""
    first = await leases.claim("evt_1")
    assert isinstance(first, Held)
    await asyncio.sleep(LENGTH.total_seconds() + 0.1)
    second = await leases.claim("evt_1")
    assert isinstance(second, Held)
    assert second.fence > first.fence
    assert not await leases.renew(first)
    await leases.release(first)
    assert isinstance(await leases.claim("evt_1"), Busy), "the superseded one releases nothing"
    assert await leases.renew(second)


async def test_released_it_is_free_at_once(leases: RedisLeases) -> None:
    """Rule: whoever ends early leaves nobody waiting."""
    held = await leases.claim("evt_1")
    assert isinstance(held, Held)
    await leases.release(held)
    again = await leases.claim("evt_1")
    assert isinstance(again, Held)
    assert again.fence > held.fence


async def test_a_flushed_lease_is_nobodys(leases: RedisLeases, redis: Redis) -> None:
    """Rule: Redis may forget; a holder that asks is told that it holds nothing."""
    held = await leases.claim("evt_1")
    assert isinstance(held, Held)
    await redis.flushall()
    assert not await leases.renew(held)
    assert isinstance(await leases.claim("evt_1"), Held)


async def test_without_redis_the_answer_is_unknown(own_valkey: ValkeyServer) -> None:
    """Rule: a dead Redis stops nobody, and after a few failures is not asked any more."""
    client = make_redis(own_valkey.url)
    leases = RedisLeases(client, prefix="t:", length=LENGTH)
    assert isinstance(await leases.claim("evt_1"), Held)
    own_valkey.kill()
    for _ in range(20):
        assert isinstance(await leases.claim("evt_1"), Unknown)
    assert leases.breaker.state.name == "OPEN"
    assert isinstance(await NoLeases().claim("evt_1"), Unknown)
    await client.aclose()
