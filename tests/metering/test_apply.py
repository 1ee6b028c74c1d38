"""Applying: each event counts at most once, for ever, and every message ends as exactly one thing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.crash import CrashPoints
from kgents_metering.model.event import Event
from kgents_metering.model.meters import parse
from kgents_metering.model.rollup import GroupKeys
from kgents_metering.sinks.ledger.apply import Ledger, as_multirange
from kgents_metering.sinks.ledger.gaps import gaps
from kgents_metering.sinks.ledger.meter_changes import sync
from kgents_metering.sinks.ledger.meters import backfill

from .conftest import METERS
from .messages import EPOCH, NOON, body, classify, dead, event, message

Pool = AsyncConnectionPool[AsyncConnection]


async def select(pool: Pool, statement: str) -> list[tuple[Any, ...]]:
    async with pool.connection() as connection:
        return await (await connection.execute(statement.encode())).fetchall()


async def tokens(pool: Pool) -> Decimal | None:
    rows = await select(
        pool,
        "select sum(r.sum) from metering.rollup r join metering.meter m on m.id = r.meter"
        " where slug = 'tokens'",
    )
    return rows[0][0]


async def test_an_event_is_counted_and_owed(ledger: Ledger, pool: Pool) -> None:
    """Rule: ledger row, rollups, outbox row and cursor commit together (P2)."""
    outcome = await ledger.apply([event(1)], [])
    assert outcome.counts["accepted"] == 1
    assert await tokens(pool) == 10
    assert await select(pool, "select count(*) from metering.outbox") == [(1,)]
    assert await select(pool, "select applied::text from metering.cursor") == [("{[1,2)}",)]


async def test_the_same_event_again_is_a_duplicate(ledger: Ledger, pool: Pool) -> None:
    """Rule: duplicates are recognised by key, not by a time window (P2)."""
    await ledger.apply([event(1)], [])
    outcome = await ledger.apply([event(900_000)], [])
    assert outcome.counts["duplicate"] == 1
    assert await tokens(pool) == 10


async def test_the_same_message_again_is_a_redelivery(ledger: Ledger, pool: Pool) -> None:
    """Rule: a message whose ack was lost is not a second event of any kind (P3)."""
    await ledger.apply([event(1)], [])
    outcome = await ledger.apply([event(1)], [])
    assert outcome.counts["redelivered"] == 1
    assert await select(pool, "select count(*) from metering.duplicate") == [(0,)]
    assert await tokens(pool) == 10


async def test_the_same_key_with_another_payload_is_a_conflict(ledger: Ledger, pool: Pool) -> None:
    """Rule: kept, visible, not counted (P2)."""
    await ledger.apply([event(1)], [])
    outcome = await ledger.apply([event(2, data={"tokens": 11, "model": "m1"})], [])
    assert outcome.counts["conflict"] == 1
    assert await tokens(pool) == 10
    assert (await select(pool, "select seq, body from metering.conflict"))[0][0] == 2


async def test_within_a_batch_the_first_of_the_stream_counts(ledger: Ledger, pool: Pool) -> None:
    """Rule: the outcome does not depend on how messages were cut into batches."""
    outcome = await ledger.apply([event(3, data={"tokens": 5}), event(2), event(4)], [])
    assert (outcome.counts["accepted"], outcome.counts["conflict"], outcome.counts["duplicate"]) == (1, 1, 1)
    assert await tokens(pool) == 10


async def test_what_is_no_event_is_a_dead_letter(ledger: Ledger, pool: Pool) -> None:
    """Rule: set aside, whole, with the reason (P3); again on redelivery changes nothing."""
    await ledger.apply([event(1)], [dead(2, b"\x00\xff{")])
    await ledger.apply([], [dead(2, b"\x00\xff{")])
    assert await select(pool, "select seq, code, body from metering.dead") == [
        (2, "invalid_event", b"\x00\xff{")
    ]


async def test_an_event_without_a_value_is_counted_and_flagged(ledger: Ledger, pool: Pool) -> None:
    """Rule: unmeterable events are accepted, and say why (OpenMeter's own messages)."""
    outcome = await ledger.apply([event(1, data={"model": "m1"})], [])
    assert outcome.counts["accepted"] == 1
    assert outcome.invalid["missing_value"] == 1
    assert await select(pool, "select message from metering.invalid") == [
        ('invalid event: missing value property: "$.tokens"',)
    ]


async def test_sums_are_exact(ledger: Ledger, pool: Pool) -> None:
    """Rule: exact decimals, where float64 gives 100.0000000013 and drops small parts of large sums."""
    events = [event(i, f"e{i}", data={"tokens": "0.1"}) for i in range(1, 1001)]
    events.append(event(2000, "big", data={"tokens": 10**300}))
    events.append(event(2001, "small", data={"tokens": "1e-300"}))
    await ledger.apply(events, [])
    rows = await select(
        pool,
        "select sum(r.sum) = 1e300::numeric + 100 + 1e-300::numeric from metering.rollup r"
        " join metering.meter m on m.id = r.meter where slug = 'tokens'",
    )
    assert rows == [(True,)]


@pytest.mark.parametrize(
    "data",
    [
        {"tokens": 1, "model": "x" * 2048},
        {"tokens": 1, "model": "a\x00b"},
        {"tokens": 1, "model": {"deep": ["\x00", None, 1.5]}},
        {"tokens": "9" * 399},
        {"tokens": "1e308"},
        {"tokens": "-1e-400"},
        {"tokens": "1" * 500},
    ],
)
async def test_strange_values_do_not_stop_the_ledger(
    ledger: Ledger, pool: Pool, data: dict[str, object]
) -> None:
    """Rule: whatever the door accepts, the ledger stores; nothing blocks the stream."""
    outcome = await ledger.apply([event(1, "strange", data=data), event(2, "plain")], [])
    assert outcome.counts["accepted"] == 2


async def test_a_group_that_is_too_large_is_a_dead_letter(ledger: Ledger, pool: Pool) -> None:
    """Rule: memory is bounded in bytes; nothing of the event is lost, and it blocks nobody."""
    large = {"tokens": 1, "model": "x" * 2049}
    outcome = await ledger.apply([event(1, "large", data=large), event(2, "plain")], [])
    assert (outcome.counts["accepted"], outcome.counts["dead"]) == (1, 1)
    assert await select(pool, "select seq, code from metering.dead") == [(1, "group_value_too_large")]
    assert (await tokens(pool), await select(pool, "select count(*) from metering.outbox")) == (10, [(1,)])
    assert await gaps(pool, "AGENTESE") == []


async def test_one_that_an_earlier_release_counted_stays_a_duplicate(ledger: Ledger, pool: Pool) -> None:
    """Rule: an update changes nothing of what was counted."""
    large = {"tokens": 1, "model": "x" * 5000}
    await sync(pool, [])
    await ledger.apply([event(1, "large", data=large)], [])
    await sync(pool, METERS)
    outcome = await ledger.apply([event(1, "large", data=large), event(7, "large", data=large)], [])
    assert (outcome.counts["redelivered"], outcome.counts["duplicate"], outcome.counts["dead"]) == (1, 1, 0)


def test_known_groups_take_a_bounded_amount_of_memory() -> None:
    """Rule: caches are bounded in bytes: a thousand groups of 400 kB held 764 MB."""
    keys = GroupKeys(1024 * 1024)
    for number in range(2000):
        group = (("model", f"{number}" + "x" * (number % 2048)),)
        assert keys.of(group) == GroupKeys(0).of(group)
        assert keys.held_bytes <= 1024 * 1024
    assert keys.of((("model", "x" * 200_000),))
    assert keys.held_bytes == 0, "one that is larger than all of it is not kept"


async def test_two_workers_with_the_same_messages_count_them_once(pool: Pool) -> None:
    """Rule: unique keys hold with any number of workers, and they do not deadlock."""
    ledgers = [
        Ledger(pool, target="openmeter", stream="AGENTESE", crash_points=CrashPoints(None)) for _ in range(2)
    ]
    batches = [[event(i, f"e{i}") for i in range(start, start + 200)] for start in range(1, 1001, 100)]
    await asyncio.gather(
        *(
            ledger.apply(batch if i % 2 else batch[::-1], [])
            for i, ledger in enumerate(ledgers)
            for batch in batches
        )
    )
    assert await tokens(pool) == 11_000
    assert await select(pool, "select count(*), count(distinct key) from metering.event") == [(1100, 1100)]


async def test_a_missing_sequence_is_a_gap(ledger: Ledger, pool: Pool) -> None:
    """Rule: what never reached the ledger can be seen."""
    await ledger.apply([event(1), event(2, "e2")], [])
    await ledger.apply([event(7, "e7")], [dead(9)])
    assert await gaps(pool, "AGENTESE") == [(EPOCH, 3, 6), (EPOCH, 8, 8)]


async def test_a_new_meter_measures_all_history_once(ledger: Ledger, pool: Pool) -> None:
    """Rule: new meters are retroactive, and an event is either the backfill's or the apply's, never both."""
    await ledger.apply([event(i, f"e{i}") for i in range(1, 21)], [])
    new = parse(
        {
            "meters": [
                {"slug": "late", "eventType": "llm.tokens", "aggregation": "SUM", "valueProperty": "$.tokens"}
            ]
        }
    )
    await sync(pool, new)
    await ledger.apply([event(i, f"e{i}") for i in range(21, 26)], [])
    while await backfill(pool, chunk=7):
        pass
    rows = await select(
        pool, "select sum(r.sum), sum(r.cnt) from metering.rollup r join metering.meter m on m.id = r.meter"
        " where slug = 'late'"
    )  # fmt: skip
    assert rows == [(250, 25)]


def test_sequences_become_ranges() -> None:
    """Rule: the cursor keeps ranges, so that a billion sequences are one row."""
    assert as_multirange([3, 1, 2, 7, 2]) == "{[1,4),[7,8)}"


def test_an_event_of_another_tenant_than_its_subject_is_dead() -> None:
    """Rule: the tenant of the NATS subject is the credentials' word; the body is never trusted (P8)."""
    found = classify(message(1, body(subject="globex")))
    assert getattr(found, "code", None) == "foreign_tenant"


def test_a_direct_publisher_may_leave_out_subject_and_time() -> None:
    """Rule: the stream's time stands in, marked as not the producer's."""
    found = event(1, subject=None, time=None)
    assert found.tenant == "acme"
    assert found.time > NOON


async def test_where_only_some_messages_are_ours_the_cursor_is_one_number(pool: Pool) -> None:
    """Rule: a commit costs the same at any number of facts; the position only moves forward."""
    floors = iter([40, 90, 60])
    ledger = Ledger(
        pool, target=None, stream="EVENTS", crash_points=CrashPoints(None), floor=lambda: next(floors)
    )
    await ledger.apply([event(i, f"e{i}") for i in range(1, 500, 3)], [])
    await ledger.apply([event(501, "e501")], [])
    await ledger.apply([event(503, "e503")], [])
    assert await select(pool, "select floor, applied::text from metering.cursor") == [(90, "{}")]


@pytest.mark.parametrize(
    ("said", "received"),
    [
        ("2026-11-20T08:00:00.5Z", datetime(2026, 11, 20, 8, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-11-24T08:00:00Z", NOON + timedelta(milliseconds=1)),  # later than it was stored: not ours
        ("yesterday", NOON + timedelta(milliseconds=1)),
        ("", NOON + timedelta(milliseconds=1)),
    ],
)
def test_an_event_that_a_restore_stored_again_keeps_its_time(said: str, received: datetime) -> None:
    """Rule: coming back changes nothing, also where the stream's time stands in for the producer's."""
    found = classify(message(1, body(time=None), headers={"Kgents-Original-Time": said}))
    assert getattr(found, "time", None) == received


async def test_a_sequence_used_before_is_another_message(ledger: Ledger, pool: Pool) -> None:
    """Rule: what a stream made anew holds at a sequence used before ends as what it is, not as a redelivery,
    although its creation may not have been noticed yet (the epoch is the old one)."""

    def anew(seq: int, **changes: object) -> Event:
        before = event(seq, **changes)
        later = before.message.stored_at + timedelta(hours=1)
        return replace(before, message=replace(before.message, stored_at=later))

    different = {"tokens": 11, "model": "m1"}
    await ledger.apply([event(1), event(2), event(3, data=different)], [])
    outcome = await ledger.apply([anew(1), anew(2), anew(3, data=different)], [])
    assert (outcome.counts["duplicate"], outcome.counts["conflict"], outcome.counts["redelivered"]) == (
        2,
        1,
        0,
    )
    again = await ledger.apply([anew(2), anew(3, data=different)], [])
    assert again.counts["accepted"] == 0
    assert await select(pool, "select count(*) from metering.duplicate") == [(3,)]
    assert await select(pool, "select count(*) from metering.conflict") == [(2,)]
