"""The meters in force, kept in the ledger; it measures and answers nothing.

The lock: a transaction that applies events takes `LOCK` shared and then reads the version of the meter set; a
change of meters takes it exclusively. So every event is either before a meter's `backfill_to` (the
backfill's) or measured by an apply that knows the meter: never both, never neither, also while processes of
two releases run side by side.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_common.errors import ConfigurationError
from kgents_metering.model.measure import Measure, Sample, compile_meter
from kgents_metering.model.meters import Meter, parse
from kgents_metering.model.rollup import Rollup, stream_order
from kgents_metering.sinks.ledger.rollups import add_rollup

LOCK = "select pg_advisory_xact_lock_shared(hashtextextended('kgents.metering.meters', 0))"
LOCK_EXCLUSIVE = "select pg_advisory_xact_lock(hashtextextended('kgents.metering.meters', 0))"
BACKFILL_CHUNK = 5000

_log = structlog.get_logger()
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


async def sync(pool: AsyncConnectionPool[AsyncConnection], meters: Sequence[Meter]) -> None:
    """Make these the meters in force: new ones are backfilled later, absent ones end.

    Raises:
        ConfigurationError: A slug's event type, aggregation or value would change: slugs are immutable.
        TransientError: Postgres is away.
    """
    with transient_errors():
        async with pool.connection() as connection, connection.transaction():
            await connection.execute(LOCK_EXCLUSIVE)
            rows = await (
                await connection.execute(
                    "select id, slug, fingerprint, definition, deleted_at is null, ulid"
                    " from metering.meter order by id"
                )
            ).fetchall()
            last = await (
                await connection.execute("select coalesce(max(n), 0) from metering.event")
            ).fetchone()
            changed = False
            for meter in meters:
                own = [row for row in rows if row[1] == meter.slug]
                changed |= await _put(connection, meter, own, last[0] if last else 0)
            wanted = {(meter.slug, meter.fingerprint) for meter in meters}
            for meter_id, slug, fingerprint, _, is_active, _ in rows:
                if is_active and (slug, bytes(fingerprint)) not in wanted:
                    await connection.execute(
                        "update metering.meter set deleted_at = now() where id = %s", [meter_id]
                    )
                    changed = True
            if changed:
                await connection.execute("update metering.meter_set set version = version + 1")
                _log.info("meters.changed", meters=len(meters))


async def _put(connection: AsyncConnection, meter: Meter, own: list[Any], last_n: int) -> bool:
    definition = meter.definition()
    for _, slug, _, existing, is_active, _ in own:
        for name in ("eventType", "aggregation", "valueProperty"):
            if is_active and existing.get(name) != definition.get(name):
                raise ConfigurationError(
                    f"meter {slug}: {name} cannot change once the slug is in use",
                    hint="declare a meter with a new slug and let the old one go",
                )
    same = next((row for row in own if bytes(row[2]) == meter.fingerprint), None)
    if same is not None and same[4]:
        if same[3] == definition:
            return False
        await connection.execute(
            "update metering.meter set definition = %s, updated_at = now() where id = %s",
            [json.dumps(definition), same[0]],
        )
        return True
    if same is not None:
        # It was gone for a while and missed events: what it had is dropped and measured again.
        for table in ("rollup", "distinct_value", "invalid"):
            await connection.execute(f"delete from metering.{table} where meter = %s".encode(), [same[0]])
        await connection.execute(
            "update metering.meter set deleted_at = null, updated_at = now(), definition = %s,"
            " backfill_after = 0, backfill_to = %s where id = %s",
            [json.dumps(definition), last_n, same[0]],
        )
        return True
    await connection.execute(
        "insert into metering.meter (ulid, slug, fingerprint, definition, event_type, backfill_to)"
        " values (%s, %s, %s, %s, %s, %s)",
        [
            own[-1][5] if own else new_ulid(),
            meter.slug,
            meter.fingerprint,
            json.dumps(definition),
            meter.event_type,
            last_n,
        ],
    )
    return True


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


def new_ulid() -> str:
    """A ULID of now: 48 bits of milliseconds, 80 random bits, Crockford base32."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))
