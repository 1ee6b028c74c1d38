"""Usage of one ledger: each read bounded in rows, in events and in time, and given out piece by piece."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from heapq import merge
from itertools import islice

from psycopg import AsyncConnection, AsyncServerCursor
from psycopg_pool import AsyncConnectionPool

from kgents_metering.model.levels import Levels, levels
from kgents_metering.model.meters import Aggregation
from kgents_metering.model.query import Query, QueryError, Span
from kgents_metering.model.query.listing import EventPage
from kgents_metering.model.rollup import Rollup
from kgents_metering.model.windows import MINUTE, NOTHING, Windows, windows
from kgents_metering.sinks.ledger.meters import EMPTY, MeterInForce, MeterSet, current
from kgents_metering.sinks.ledger.reads import statement
from kgents_metering.sinks.ledger.reads.bad_events import BadEvent, BadEvents, find_bad_events
from kgents_metering.sinks.ledger.reads.edges import measure_edges
from kgents_metering.sinks.ledger.reads.events import (
    EventFilter,
    ListedEvent,
    list_events,
    page_of_events,
)
from kgents_metering.sinks.ledger.reads.merging import in_order
from kgents_metering.sinks.ledger.reads.rows import (
    NARROW,
    Answer,
    BackfillingError,
    ReadLimits,
    Row,
    read_errors,
)

# So many rows are made at a time: a few milliseconds, within which nobody else is served.
CHUNK = 500


class UsageReads:
    """Reads of one ledger."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], limits: ReadLimits | None = None) -> None:
        self._pool = pool
        self._limits = limits or ReadLimits()
        self._meters: MeterSet = EMPTY

    async def meters(self) -> list[MeterInForce]:
        """All meters in force, by slug."""
        found = await self._current()
        return sorted({m.id: m for m in found.by_name.values()}.values(), key=lambda m: m.meter.slug)

    async def meter(self, slug_or_ulid: str) -> MeterInForce | None:
        """One meter in force."""
        return (await self._current()).by_name.get(slug_or_ulid)

    @asynccontextmanager
    async def open_query(
        self, meter: MeterInForce, tenants: tuple[str, ...], query: Query
    ) -> AsyncIterator[Answer]:
        """The rows of a query, by window and tenant, without empty windows. A connection is held meanwhile.

        Raises:
            BackfillingError: The meter cannot answer yet.
            QueryError: 422: more rows, events or time than a read may take; said before the first row.
            TransientError: Postgres is away.
        """
        if not meter.is_ready:
            raise BackfillingError(f"meter {meter.meter.slug} is being measured over its history")
        total, found = 0, list[AsyncIterator[list[Row]]]()
        async with self._reading() as connection, AsyncExitStack() as cursors:
            for tenant in tenants:
                limit = self._limits.rows - total + 1
                cursor = await cursors.enter_async_context(connection.cursor(name=f"usage{len(found)}"))
                rows, chunks = await self._opened(connection, cursor, meter, tenant, query, limit)
                total += rows
                if total > self._limits.rows:
                    raise QueryError(f"the answer has more than {self._limits.rows} rows: {NARROW}", 422)
                if rows:
                    found.append(chunks)
            if total:
                yield Answer(total, in_order(found, CHUNK, by_window=query.window is not None))
            else:
                nothing = _nothing(meter.meter.aggregation, query, tenants)
                yield Answer(len(nothing), _once(nothing))

    async def _opened(
        self,
        connection: AsyncConnection,
        cursor: AsyncServerCursor,
        meter: MeterInForce,
        tenant: str,
        query: Query,
        limit: int,
    ) -> tuple[int, AsyncIterator[list[Row]]]:
        """How many rows one tenant has, no more than the limit, and the rows."""
        parts = await measure_edges(connection, meter, tenant, query.span.edges(), self._limits)
        held = await _held(connection, meter, tenant, query.span)
        # In a thread: windows of half a century take tenths of a second, and others are served meanwhile.
        made = await asyncio.to_thread(_windows, query, held, parts)
        chosen = levels(*held, made) if held else Levels()
        text, values = statement.build(meter, tenant, query, parts, chosen, made, limit=limit)
        await cursor.execute(text.encode(), values)
        first = await cursor.fetchmany(CHUNK)
        return first[0][-1] if first else 0, _chunks(cursor, first, tenant, query, made)

    async def query(self, meter: MeterInForce, tenant: str, query: Query) -> list[Row]:
        """As `open_query` of one tenant, all rows at once."""
        async with self.open_query(meter, (tenant,), query) as answer:
            return [row async for chunk in answer.chunks for row in chunk]

    async def group_values(self, meter: MeterInForce, tenant: str, key: str, span: Span) -> list[str]:
        """The values a group key had, as exactly as a query over the same span.

        Raises:
            QueryError: 422: more than an answer may have.
        """
        async with self._reading() as connection:
            parts = await measure_edges(connection, meter, tenant, span.edges(), self._limits)
            held = await _held(connection, meter, tenant, span)
            chosen = levels(*held, None) if held else Levels()
            text, values = statement.group_values(meter, tenant, key, chosen, limit=self._limits.rows + 1)
            rows = await (await connection.execute(text.encode(), values)).fetchall()
        found = {row[0] for row in rows} | {json.loads(delta.group).get(key, "") for _, delta in parts.rows()}
        if len(found) > self._limits.rows:
            raise QueryError(f"there are more than {self._limits.rows} values: narrow from and to", 422)
        return sorted(found)

    async def has_usage(self, meter: MeterInForce, tenant: str, span: Span) -> bool:
        """Whether the tenant used the meter at all, as exactly as a query over the same span."""
        async with self._reading() as connection:
            if await _held(connection, meter, tenant, span) is not None:
                return True
            parts = await measure_edges(connection, meter, tenant, span.edges(), self._limits)
        return bool(parts.deltas)

    async def events(self, tenants: Sequence[str], wanted: EventFilter, now: datetime) -> list[ListedEvent]:
        """The tenants' own events, newest first, of the last 32 days unless a start is given."""
        async with self._reading() as connection:
            found = [await list_events(connection, tenant, wanted, now) for tenant in tenants]
        return _newest(found, wanted.limit)

    async def page_of_events(self, tenants: Sequence[str], wanted: EventPage) -> list[ListedEvent]:
        """A page of the tenants' own events, newest first."""
        async with self._reading() as connection:
            found = [await page_of_events(connection, tenant, wanted) for tenant in tenants]
        return _newest(found, wanted.limit)

    async def bad_events(self, tenant: str, wanted: BadEvents) -> list[BadEvent]:
        """The tenant's own events that were not counted, or not by every meter, newest first."""
        async with self._reading() as connection:
            return await find_bad_events(connection, tenant, wanted)

    async def _current(self) -> MeterSet:
        async with self._reading() as connection:
            self._meters = await current(connection, self._meters)
        return self._meters

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[AsyncConnection]:
        with read_errors(self._limits):
            async with self._pool.connection() as connection:
                yield connection


def _newest(found: Sequence[list[ListedEvent]], limit: int) -> list[ListedEvent]:
    """Of several lists that are newest first."""
    return list(islice(merge(*found, key=lambda event: (event.time, event.n), reverse=True), limit))


async def _held(
    connection: AsyncConnection, meter: MeterInForce, tenant: str, span: Span
) -> tuple[datetime, datetime] | None:
    """From the first to behind the last whole minute there is in a span; None where there is none."""
    text, values = statement.first_and_last(meter, tenant, span)
    row = await (await connection.execute(text.encode(), values)).fetchone()
    return None if row is None or row[0] is None else (row[0], row[1] + MINUTE)


def _windows(query: Query, held: tuple[datetime, datetime] | None, parts: Rollup) -> Windows | None:
    """The windows from the first to the last minute there is; None where none are asked for."""
    if query.window is None:
        return None
    minutes = [key[2] for key, _ in parts.rows()]
    if held:
        minutes += [held[0], held[1] - MINUTE]
    return windows(query.window, query.zone, min(minutes), max(minutes)) if minutes else NOTHING


async def _chunks(
    cursor: AsyncServerCursor,
    first: list[tuple[object, ...]],
    tenant: str,
    query: Query,
    made: Windows | None,
) -> AsyncIterator[list[Row]]:
    rows = first
    while rows:
        yield [statement.as_row(row, tenant, query, made) for row in rows]
        rows = await cursor.fetchmany(CHUNK)


async def _once(rows: list[Row]) -> AsyncIterator[list[Row]]:
    yield rows


def _nothing(aggregation: Aggregation, query: Query, tenants: tuple[str, ...]) -> list[Row]:
    """Counting nothing in one whole window is zero; every other question about nothing has no rows."""
    counts = aggregation in (Aggregation.COUNT, Aggregation.UNIQUE_COUNT)
    if not counts or query.window is not None or query.group_by or query.by_subject:
        return []
    start = query.span.start or datetime(1970, 1, 1, tzinfo=UTC)
    return [Row(start, query.span.end or start + timedelta(minutes=1), {}, Decimal(0), tenants[0])]
