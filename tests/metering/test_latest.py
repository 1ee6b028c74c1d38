"""LATEST among equal times is the stream's word, whatever the batches were and however it is replayed."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_metering.model.event import Event
from kgents_metering.model.meters import parse
from kgents_metering.model.query import parse_query
from kgents_metering.model.rollup import stream_order
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.meter_changes import sync
from kgents_metering.sinks.ledger.meters import backfill
from kgents_metering.sinks.ledger.reads import UsageReads

from .messages import EPOCH, event

Pool = AsyncConnectionPool[AsyncConnection]
METERS = parse(
    {
        "meters": [
            {"slug": "level", "eventType": "llm.tokens", "aggregation": "LATEST", "valueProperty": "$.tokens"}
        ]
    }
)


def equal_times() -> list[Event]:
    """Forty events of one moment; the last of the stream says 39."""
    return [event(i + 1, f"e{i}", data={"tokens": i}) for i in range(40)]


async def latest(pool: Pool, **span: str) -> Decimal:
    reads = UsageReads(pool)
    meter = await reads.meter("level")
    assert meter is not None
    values = {name: [value] for name, value in span.items()}
    [row] = await reads.query(meter, "acme", parse_query(values, meter.meter, ("acme",)))
    return row.value


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_last_of_the_stream_is_the_latest_however_it_was_applied(
    ledger: Ledger, pool: Pool, seed: int
) -> None:
    """Rule: order is time, then stream sequence, then place in the batch; batches may commit in any order."""
    await sync(pool, METERS)
    events, roll = equal_times(), random.Random(seed)
    roll.shuffle(events)
    while events:
        cut = roll.randint(1, 15)
        await ledger.apply(events[:cut], [])
        events = events[cut:]
    assert await latest(pool) == 39
    # A query that cuts the minute measures the events again.
    assert await latest(pool, **{"from": "2026-11-23T11:59:20Z", "to": "2026-11-23T11:59:40Z"}) == 39


async def test_a_backfill_says_the_same(ledger: Ledger, pool: Pool) -> None:
    """Rule: the same after history is measured again."""
    events = equal_times()
    await ledger.apply(events[20:], [])
    await ledger.apply(events[:20], [])
    await sync(pool, METERS)
    while await backfill(pool, chunk=7):
        pass
    assert await latest(pool) == 39


def test_a_later_stream_is_later_and_every_number_fits() -> None:
    """Rule: sequences start again with a stream that is made anew."""
    assert stream_order(EPOCH, 10**9) < stream_order(EPOCH + timedelta(hours=1), 1)
    assert stream_order(datetime(2079, 1, 1, tzinfo=UTC), 2**44 - 1) < 2**63
    assert stream_order(datetime(2019, 1, 1, tzinfo=UTC), 1) > 2**40
