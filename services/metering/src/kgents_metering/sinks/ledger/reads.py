"""Usage read back from the ledger: one statement over the minutes, for every aggregation; it writes nothing.

Whole minutes come from the rollup. Where a query begins or ends within a minute, the events of that part of
the minute are measured again and joined in as rows of the same shape, so nothing is approximate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_common.errors import TransientError
from kgents_metering.model.measure import Sample
from kgents_metering.model.meters import Aggregation
from kgents_metering.model.query import (
    COMPARISONS,
    Filter,
    Query,
    Span,
    edges,
    whole_minutes,
    window_end,
)
from kgents_metering.model.rollup import Rollup
from kgents_metering.sinks.ledger.meters import EMPTY, MeterInForce, MeterSet, current

LISTED_DAYS = 32
MAX_EDGE_EVENTS = 1_000_000

_VALUES = {
    Aggregation.SUM: "sum(s.sum)",
    Aggregation.COUNT: "sum(s.cnt)",
    Aggregation.UNIQUE_COUNT: "count(distinct s.vhash)",
    # Postgres keeps no more than sixteen digits of a quotient unless an operand has a larger scale.
    Aggregation.AVG: "(sum(s.sum) + 0::numeric(50, 40)) / nullif(sum(s.cnt), 0)",
    Aggregation.MIN: "min(s.min)",
    Aggregation.MAX: "max(s.max)",
    Aggregation.LATEST: "(array_agg(s.last_value order by s.last_time desc, s.last_n desc)"
    " filter (where s.last_n is not null))[1]",
}
_COLUMNS = "minute, grp, cnt, sum, min, max, last_time, last_n, last_value"
_DATA = msgspec.json.Decoder(float_hook=Decimal)


@dataclass(frozen=True, slots=True)
class Row:
    """One value: of a window and a group."""

    start: datetime
    end: datetime
    groups: Mapping[str, str]
    value: Decimal


@dataclass(frozen=True, slots=True)
class ListedEvent:
    """An event as the listing shows it."""

    id: str
    source: str
    type: str
    subject: str
    time: datetime
    data: str
    stored_at: datetime
    invalid: str | None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What to list."""

    event_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    stored_from: datetime | None = None
    stored_to: datetime | None = None
    limit: int = 100


class BackfillingError(TransientError):
    """The meter is new and its history is still being measured."""


class UsageReads:
    """Reads of one ledger."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool
        self._meters: MeterSet = EMPTY

    async def meters(self) -> list[MeterInForce]:
        """All meters in force, by slug."""
        found = await self._current()
        return sorted({m.id: m for m in found.by_name.values()}.values(), key=lambda m: m.meter.slug)

    async def meter(self, slug_or_ulid: str) -> MeterInForce | None:
        """One meter in force."""
        return (await self._current()).by_name.get(slug_or_ulid)

    async def query(self, meter: MeterInForce, tenant: str, query: Query) -> list[Row]:
        """The rows of a query, by window; empty windows are left out.

        Raises:
            BackfillingError: The meter cannot answer yet.
            TransientError: Postgres is away.
        """
        if not meter.is_ready:
            raise BackfillingError(f"meter {meter.meter.slug} is being measured over its history")
        with transient_errors():
            async with self._pool.connection() as connection:
                parts = await self._edges(connection, meter, tenant, query)
                statement, values = _statement(meter, tenant, query, parts)
                rows = await (await connection.execute(statement.encode(), values)).fetchall()
        return [_row(row, query) for row in rows] or _nothing(meter.meter.aggregation, query)

    async def group_values(self, meter: MeterInForce, tenant: str, key: str, span: Span) -> list[str]:
        """The values a group key had."""
        with transient_errors():
            async with self._pool.connection() as connection:
                rows = await (
                    await connection.execute(
                        "select distinct grp->>%s from metering.rollup where meter = %s and tenant = %s"
                        " and (%s::timestamptz is null or minute >= %s)"
                        " and (%s::timestamptz is null or minute < %s) order by 1",
                        [key, meter.id, tenant, span.start, span.start, span.end, span.end],
                    )
                ).fetchall()
        return [row[0] for row in rows if row[0] is not None]

    async def has_usage(self, meter: MeterInForce, tenant: str, span: Span) -> bool:
        """Whether the tenant used the meter at all."""
        with transient_errors():
            async with self._pool.connection() as connection:
                row = await (
                    await connection.execute(
                        "select exists (select 1 from metering.rollup where meter = %s and tenant = %s"
                        " and (%s::timestamptz is null or minute >= %s)"
                        " and (%s::timestamptz is null or minute < %s))",
                        [meter.id, tenant, span.start, span.start, span.end, span.end],
                    )
                ).fetchone()
        return bool(row and row[0])

    async def events(self, tenant: str, wanted: EventFilter, now: datetime) -> list[ListedEvent]:
        """The tenant's own events, newest first, of the last 32 days unless a start is given."""
        with transient_errors():
            async with self._pool.connection() as connection:
                rows = await (
                    await connection.execute(
                        _EVENTS,
                        {
                            "tenant": tenant,
                            "id": wanted.event_id,
                            "start": wanted.start or now - timedelta(days=LISTED_DAYS),
                            "end": wanted.end,
                            "stored_from": wanted.stored_from,
                            "stored_to": wanted.stored_to,
                            "limit": wanted.limit,
                        },
                    )
                ).fetchall()
        return [ListedEvent(*row) for row in rows]

    async def _current(self) -> MeterSet:
        with transient_errors():
            async with self._pool.connection() as connection:
                self._meters = await current(connection, self._meters)
        return self._meters

    async def _edges(
        self, connection: AsyncConnection, meter: MeterInForce, tenant: str, query: Query
    ) -> Rollup:
        rollup = Rollup()
        for start, end in edges(query):
            rows = await (
                await connection.execute(
                    "select n, time, data from metering.event where tenant = %s and type = %s"
                    " and time >= %s and time < %s limit %s",
                    [tenant, meter.meter.event_type, start, end, MAX_EDGE_EVENTS],
                )
            ).fetchall()
            for n, time, data in rows:
                sample = meter.measure(_DATA.decode(data))
                if isinstance(sample, Sample):
                    rollup.add(meter.id, tenant, time, n, sample)
        return rollup


_EVENTS = """
select e.ce_id, e.source, e.type, e.tenant, e.time, e.data, e.stored_at,
       coalesce((select min(i.message) from metering.invalid i where i.n = e.n),
                case when not exists (select 1 from metering.meter m
                                      where m.event_type = e.type and m.deleted_at is null)
                     then 'no meter found for event type: ' || e.type end)
from metering.event e
where e.tenant = %(tenant)s and e.time >= %(start)s
  and (%(id)s::text is null or position(%(id)s in e.ce_id) > 0)
  and (%(end)s::timestamptz is null or e.time < %(end)s)
  and (%(stored_from)s::timestamptz is null or e.stored_at >= %(stored_from)s)
  and (%(stored_to)s::timestamptz is null or e.stored_at < %(stored_to)s)
order by e.time desc, e.n desc limit %(limit)s
"""


def _statement(meter: MeterInForce, tenant: str, query: Query, parts: Rollup) -> tuple[str, dict[str, Any]]:
    values: dict[str, Any] = {"meter": meter.id, "tenant": tenant, "zone": query.zone}
    span = whole_minutes(query)
    conditions = ["r.meter = %(meter)s", "r.tenant = %(tenant)s"]
    if span.start is not None:
        conditions.append("r.minute >= %(start)s")
        values["start"] = span.start
    if span.end is not None:
        conditions.append("r.minute < %(end)s")
        values["end"] = span.end
    if meter.meter.aggregation is Aggregation.UNIQUE_COUNT:
        source = (
            f"select {_prefixed('r')}, d.vhash from metering.rollup r"
            " join metering.distinct_value d using (meter, tenant, minute, grp_key)"
        )
    else:
        source = f"select {_prefixed('r')}, null::bytea from metering.rollup r"
    source += f" where {' and '.join(conditions)} union all {_EDGE_ROWS}"
    values |= _edge_values(parts, meter.meter.aggregation)

    window = f"date_trunc('{query.window.lower()}', s.minute, %(zone)s)" if query.window else "min(s.minute)"
    last = "null::timestamptz" if query.window else "max(s.minute)"
    keys = []
    for index, key in enumerate(query.group_by):
        values[f"key{index}"] = key
        keys.append(f"coalesce(s.grp->>%(key{index})s, '')")
    where = [_condition(key, condition, values) for key, condition in query.filters.items()]
    value = _VALUES[meter.meter.aggregation]
    positions = [*([1] if query.window else []), *range(3, 3 + len(keys))]
    statement = (
        f"with s (minute, grp, cnt, sum, min, max, last_time, last_n, last_value, vhash) as ({source})"
        f" select {', '.join([window, last, *keys, value])} from s"
        + (f" where {' and '.join(where)}" if where else "")
        + (f" group by {', '.join(map(str, positions))}" if positions else "")
        + f" having {value} is not null and count(*) > 0"
        + f" order by {', '.join(map(str, range(1, 3 + len(keys))))}"
    )
    return statement, values


def _prefixed(alias: str) -> str:
    return ", ".join(f"{alias}.{name.strip()}" for name in _COLUMNS.split(","))


_EDGE_ROWS = """
select t.minute, t.grp::jsonb, t.cnt, t.sum, t.min, t.max, t.last_time, t.last_n, t.last_value, t.vhash
from unnest(%(e_minute)s::timestamptz[], %(e_grp)s::text[], %(e_cnt)s::bigint[], %(e_sum)s::numeric[],
            %(e_min)s::numeric[], %(e_max)s::numeric[], %(e_last_time)s::timestamptz[],
            %(e_last_n)s::bigint[], %(e_last_value)s::numeric[], %(e_vhash)s::bytea[])
     as t (minute, grp, cnt, sum, min, max, last_time, last_n, last_value, vhash)
"""


def _edge_values(parts: Rollup, aggregation: Aggregation) -> dict[str, Any]:
    rows = parts.rows()
    hashes: list[tuple[int, bytes | None]]
    if aggregation is Aggregation.UNIQUE_COUNT:
        place = {key: index for index, (key, _) in enumerate(rows)}
        hashes = [(place[entry[:4]], entry[4]) for entry in sorted(parts.distinct)]
    else:
        hashes = [(index, None) for index in range(len(rows))]
    found: dict[str, Any] = {"e_minute": [], "e_grp": [], "e_vhash": []}
    names = ("cnt", "sum", "min", "max", "last_time", "last_n", "last_value")
    for name in names:
        found[f"e_{name}"] = []
    for index, vhash in hashes:
        key, delta = rows[index]
        found["e_minute"].append(key[2])
        found["e_grp"].append(delta.group)
        found["e_vhash"].append(vhash)
        for name in names:
            found[f"e_{name}"].append(getattr(delta, name))
    return found


def _condition(key: str, condition: Filter, values: dict[str, Any]) -> str:
    """A filter tree as SQL, its values bound."""

    def bind(value: object) -> str:
        name = f"v{len(values)}"
        values[name] = value
        return f"%({name})s"

    left = f"coalesce(s.grp->>{bind(key)}, '')"
    parts: list[str] = []
    for operator, value in condition.items():
        if operator in ("$and", "$or"):
            joined = f" {operator[1:]} ".join(_condition(key, part, values) for part in value)
            parts.append(f"({joined})")
        elif operator == "$in":
            parts.append(f"{left} = any({bind(value)}::text[])")
        elif operator == "$nin":
            parts.append(f"not {left} = any({bind(value)}::text[])")
        else:
            parts.append(f"{left} {COMPARISONS[operator]} {bind(value)}")
    return f"({' and '.join(parts)})"


def _row(row: Sequence[Any], query: Query) -> Row:
    groups = dict(zip(query.group_by, row[2:-1], strict=True))
    if query.window is not None:
        start = row[0].astimezone(UTC)
        return Row(start, window_end(start, query.window, query.zone), groups, Decimal(row[-1]))
    return Row(
        query.start or row[0].astimezone(UTC),
        query.end or row[1].astimezone(UTC) + timedelta(minutes=1),
        groups,
        Decimal(row[-1]),
    )


def _nothing(aggregation: Aggregation, query: Query) -> list[Row]:
    """Counting nothing in one whole window is zero; every other question about nothing has no rows."""
    counts = aggregation in (Aggregation.COUNT, Aggregation.UNIQUE_COUNT)
    if not counts or query.window is not None or query.group_by or query.by_subject:
        return []
    start = query.start or datetime(1970, 1, 1, tzinfo=UTC)
    return [Row(start, query.end or start + timedelta(minutes=1), {}, Decimal(0))]
