"""The meters in force, kept in the ledger; it measures and answers nothing.

The lock: a transaction that applies events takes `LOCK` shared and then reads the version of the meter set; a
change of meters takes it exclusively. So every event is either before a meter's `backfill_to` (the
backfill's) or measured by an apply that knows the meter: never both, never neither, also while processes of
two releases run side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_metering.model.measure import Measure, Sample, compile_meter
from kgents_metering.model.meters import Meter, parse
from kgents_metering.model.rollup import Rollup, stream_order
from kgents_metering.sinks.ledger.rollups import add_rollup

LOCK = "select pg_advisory_xact_lock_shared(hashtextextended('kgents.metering.meters', 0))"
LOCK_EXCLUSIVE = "select pg_advisory_xact_lock(hashtextextended('kgents.metering.meters', 0))"
BACKFILL_CHUNK = 5000

_DATA = msgspec.json.Decoder(float_hook=Decimal)
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True, slots=True)
class MeterInForce:
    """A meter with its row: its id in the rollups and its function."""

    id: int
    ulid: str
    meter: Meter
    measure: Measure
    created_at: Any
    updated_at: Any
    is_ready: bool


@dataclass(frozen=True, slots=True)
class MeterSet:
    """All meters in force at one version."""

    version: int
    by_type: dict[str, tuple[MeterInForce, ...]]
    by_name: dict[str, MeterInForce]


EMPTY = MeterSet(-1, {}, {})


async def current(connection: AsyncConnection, known: MeterSet) -> MeterSet:
    """The meters in force; `known` itself where nothing changed. Call it inside a transaction."""
    row = await (await connection.execute("select version from metering.meter_set")).fetchone()
    version = row[0] if row else 0
    if version == known.version and all(m.is_ready for m in known.by_name.values()):
        return known
    rows = await (
        await connection.execute(
            "select id, ulid, definition, created_at, updated_at, backfill_after >= backfill_to"
            " from metering.meter where deleted_at is null order by slug"
        )
    ).fetchall()
    by_type: dict[str, list[MeterInForce]] = {}
    by_name: dict[str, MeterInForce] = {}
    for meter_id, ulid, definition, created_at, updated_at, is_ready in rows:
        (meter,) = parse({"meters": [definition]})
        found = MeterInForce(meter_id, ulid, meter, compile_meter(meter), created_at, updated_at, is_ready)
        by_type.setdefault(meter.event_type, []).append(found)
        by_name[meter.slug] = by_name[ulid] = found
    return MeterSet(version, {k: tuple(v) for k, v in by_type.items()}, by_name)


async def progress(
    pool: AsyncConnectionPool[AsyncConnection],
) -> list[tuple[str, str, str, int, int]]:
    """Of each meter in force: slug, event type, aggregation, events looked at, and of how many.

    Raises:
        TransientError: Postgres is away.
    """
    with transient_errors():
        async with pool.connection() as connection:
            return await (
                await connection.execute(
                    "select slug, event_type, definition->>'aggregation', backfill_after, backfill_to"
                    " from metering.meter where deleted_at is null order by slug"
                )
            ).fetchall()


async def backfill(pool: AsyncConnectionPool[AsyncConnection], chunk: int = BACKFILL_CHUNK) -> int:
    """Measure one chunk of history for one meter that needs it.

    Returns:
        How many events were looked at; 0 when no meter needs more, or another process is at it.

    Raises:
        TransientError: Postgres is away.
    """
    with transient_errors():
        async with pool.connection() as connection, connection.transaction():
            row = await (
                await connection.execute(
                    "select id, definition, backfill_after, backfill_to from metering.meter"
                    " where deleted_at is null and backfill_after < backfill_to"
                    " order by id limit 1 for update skip locked"
                )
            ).fetchone()
            if row is None:
                return 0
            meter_id, definition, after, to = row
            (meter,) = parse({"meters": [definition]})
            measure = compile_meter(meter)
            events = await (
                await connection.execute(
                    "select n, tenant, time, data, epoch, seq from metering.event"
                    " where n > %s and n <= %s and type = %s order by n limit %s",
                    [after, to, meter.event_type, chunk],
                )
            ).fetchall()
            rollup = Rollup()
            invalid: list[tuple[int, int, str, str]] = []
            for n, tenant, moment, data, epoch, seq in events:
                if not meter.counts_at(moment):
                    continue
                found = measure(_DATA.decode(data))
                if isinstance(found, Sample):
                    rollup.add(meter_id, tenant, moment, stream_order(epoch, seq), found)
                else:
                    invalid.append((n, meter_id, found.code, found.message))
            await add_rollup(connection, rollup, invalid)
            done = events[-1][0] if len(events) == chunk else to
            await connection.execute(
                "update metering.meter set backfill_after = %s where id = %s", [done, meter_id]
            )
            return max(len(events), 1)
