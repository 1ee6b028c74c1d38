"""What the door remembers of tenants, keys and addresses has a limit, however many come and go."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter

from kgents_api.handlers.authentication import MAX_CALLERS, Authentication
from kgents_api.handlers.instrument import Instrument
from kgents_api.metrics import Metrics
from kgents_api.model.failures import MAX_ADDRESSES, FailureCounts
from kgents_api.model.rate_limit import MAX_ACCOUNTS, Bucket, Quota, RateLimiter
from kgents_api.model.recent import RecentEvents
from kgents_api.sinks.rate_buckets import MAX_STORES, RedisBuckets
from kgents_api.sinks.shared_redis import SharedRedis
from kgents_common import envelope
from kgents_common.clock import ManualClock
from kgents_common.envelope import Envelope
from kgents_common.errors import TransientError
from kgents_common.keyring import KeyRecord

KIB = 1024
GENERATIONS = 3


class AnyKey:
    """A keyring in which every key is good, and a tenant's own."""

    def find(self, key: str) -> KeyRecord:
        return KeyRecord(f"key_{key}", "", f"t{key}", ("events:write",), datetime(2026, 1, 1, tzinfo=UTC))

    def by_id(self, key_id: str) -> None:
        return None


class Generous:
    """Buckets that give what is asked for, or say when to come back."""

    def __init__(self) -> None:
        self.given = True

    async def take(self, tenant: str, tokens: int) -> Bucket:
        return Bucket(self.given, 10 if self.given else 0, 0 if self.given else 60, 1)


async def growth(touch: Callable[[int], Awaitable[object]], limit: int) -> int:
    """By how many bytes memory grows with twice as many newcomers as the limit, once that is reached."""
    for number in range(limit):
        await touch(number)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    # What was there before is not traced, so one generation replaces it, and is the base of comparison.
    for number in range(limit, 2 * limit):
        await touch(number)
    gc.collect()
    first, _ = tracemalloc.get_traced_memory()
    for number in range(2 * limit, (1 + GENERATIONS) * limit):
        await touch(number)
    gc.collect()
    last, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert first > before
    return last - first


async def _authentication() -> tuple[Callable[[int], Awaitable[object]], int]:
    door = Authentication(AnyKey(), ManualClock())

    async def touch(number: int) -> object:
        return await door.caller({"x-api-key": str(number)}, "events:write")

    return touch, MAX_CALLERS


async def _rate_limiter() -> tuple[Callable[[int], Awaitable[object]], int]:
    clock = ManualClock()
    limiter = RateLimiter(Generous(), Quota(10, 100), clock)

    async def touch(number: int) -> object:
        clock.advance(timedelta(seconds=0.001))
        return await limiter.take(f"t{number}", 1)

    return touch, MAX_ACCOUNTS


async def _buckets() -> tuple[Callable[[int], Awaitable[object]], int]:
    counter = Counter("unanswered", "x", registry=CollectorRegistry())
    buckets = RedisBuckets(
        SharedRedis("redis://127.0.0.1:1/0"), Quota(10, 100), ManualClock(), unanswered=counter
    )

    async def touch(number: int) -> object:
        with pytest.raises(TransientError):
            await buckets.take(f"t{number}", 1)
        return None

    return touch, MAX_STORES


async def _failures() -> tuple[Callable[[int], Awaitable[object]], int]:
    counts = FailureCounts(100)

    async def touch(number: int) -> object:
        return counts.failed(f"10.0.{number}", 0)

    return touch, MAX_ADDRESSES


async def _paths() -> tuple[Callable[[int], Awaitable[object]], int]:
    async def app(scope: object, receive: object, send: Callable[[object], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})

    instrument = Instrument(
        app,  # type: ignore[arg-type]
        direct={},
        routes={"/v1/events": "/v1/events", "/v1/sessions/{id}": "/v1/sessions/{id}"},
        metrics=Metrics(CollectorRegistry()),
        tracer=None,
        max_concurrency=10,
    )

    async def send(_: object) -> None: ...

    async def touch(number: int) -> object:
        for path in (f"/{number}", f"/v1/sessions/{number}"):
            scope = {"type": "http", "method": f"M{number}", "path": path, "headers": []}
            await instrument(scope, None, send)  # type: ignore[arg-type]
        return None

    return touch, 2000


@pytest.mark.parametrize(
    "make", [_authentication, _rate_limiter, _buckets, _failures, _paths], ids=lambda make: make.__name__[1:]
)
async def test_newcomers_take_the_place_of_others(
    make: Callable[[], Awaitable[tuple[Callable[[int], Awaitable[object]], int]]],
) -> None:
    """Rule: cost does not grow with tenants, keys, addresses or what is asked for (issue 3)."""
    touch, limit = await make()
    assert await growth(touch, limit) < 64 * KIB


async def test_a_refused_tenant_is_not_forgotten_for_newcomers() -> None:
    """Rule: what is forgotten says nothing any more: nobody gets a quota back by the crowd."""
    clock = ManualClock()
    buckets = Generous()
    limiter = RateLimiter(buckets, Quota(10, 100), clock)
    buckets.given = False
    assert not (await limiter.take("refused", 1)).allowed
    buckets.given = True
    for number in range(MAX_ACCOUNTS + 100):
        await limiter.take(f"t{number}", 1)
    assert limiter.refusal("refused") is not None
    clock.advance(timedelta(seconds=61))
    assert limiter.refusal("refused") is None


def test_what_was_stored_lately_is_remembered_within_its_bytes() -> None:
    """Rule: the door's memory of events is bounded in bytes, and the last ones are what it holds."""
    recent = RecentEvents(max_bytes=100 * KIB)

    def event(number: int, tokens: int = 1) -> Envelope:
        data = {"tokens": tokens, "pad": "x" * (number % 7) * 100}
        body = {"specversion": "1.0", "id": f"e{number}", "source": "s", "type": "t", "data": data}
        return envelope.read(msgspec.json.encode(body), tenant="acme", now=datetime(2026, 11, 25, tzinfo=UTC))

    for number in range(10_000):
        assert not recent.contradicts(event(number), number)
    assert recent.held_bytes <= 100 * KIB
    assert recent.contradicts(event(9_999, tokens=2), 20_000)
    assert not recent.contradicts(event(9_999), 20_001)
    assert not recent.contradicts(event(0, tokens=2), 20_002), "forgotten long ago: the ledger tells"


def test_what_is_written_otherwise_contradicts_nothing() -> None:
    """Rule: the door compares as the ledger does: members in any order, the door's own time left out."""
    recent = RecentEvents()
    day = datetime(2026, 11, 25, tzinfo=UTC)
    attributes = b'"specversion":"1.0","id":"1","source":"s","type":"t"'

    def event(more: bytes, now: datetime = day) -> Envelope:
        return envelope.read(b"{" + attributes + more + b"}", tenant="acme", now=now)

    assert not recent.contradicts(event(b',"data":{"a":1,"b":2}'), 1)
    assert not recent.contradicts(event(b',"data":{"b":2, "a":1}', day.replace(hour=1)), 2)
    assert recent.contradicts(event(b',"data":{"a":1,"b":2.0}'), 3), "numbers are compared as written"
    assert recent.contradicts(event(b',"data":{"a":1,"b":2},"time":"2026-11-25T00:00:00Z"'), 4)
