"""A usage query as one SQL statement over days, hours and minutes; it is run elsewhere.

Whole minutes come from the rollups. Where a query begins or ends within a minute, the events of that part of
the minute are measured again and joined in as rows of the same shape, so nothing is approximate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from kgents_metering.model.levels import Levels, Range
from kgents_metering.model.meters import Aggregation
from kgents_metering.model.query import Query, Span
from kgents_metering.model.rollup import Rollup
from kgents_metering.model.windows import MINUTE, Windows
from kgents_metering.sinks.ledger.meters import MeterInForce
from kgents_metering.sinks.ledger.reads.conditions import condition
from kgents_metering.sinks.ledger.reads.rows import Row

# What a bucket's rows become; UNIQUE_COUNT counts rows that are distinct already.
_VALUES = {
    Aggregation.SUM: "sum(s.sum)",
    Aggregation.COUNT: "sum(s.cnt)",
    Aggregation.UNIQUE_COUNT: "count(s.vhash)",
    # Postgres keeps no more than sixteen digits of a quotient unless an operand has a larger scale.
    Aggregation.AVG: "(sum(s.sum) + 0::numeric(50, 40)) / nullif(sum(s.cnt), 0)",
    Aggregation.MIN: "min(s.min)",
    Aggregation.MAX: "max(s.max)",
    Aggregation.LATEST: "(array_agg(s.last_value order by s.last_time desc, s.last_n desc)"
    " filter (where s.last_n is not null))[1]",
}
_COLUMNS = "at, first_minute, last_minute, grp, cnt, sum, min, max, last_time, last_n, last_value, vhash"
_SUMS = "r.grp, r.cnt, r.sum, r.min, r.max, r.last_time, r.last_n, r.last_value"


@dataclass(frozen=True, slots=True)
class Level:
    """Where a level is kept: its tables and the column of its time."""

    table: str
    distinct: str
    time: str
    bounds: str


MINUTES = Level("rollup", "distinct_value", "minute", "r.minute, r.minute")
HOURS = Level("rollup_hour", "distinct_hour", "hour", "r.first_minute, r.last_minute")
DAYS = Level("rollup_day", "distinct_day", "day", "r.first_minute, r.last_minute")


def build(
    meter: MeterInForce,
    tenant: str,
    query: Query,
    parts: Rollup,
    chosen: Levels,
    windows: Windows | None,
    *,
    limit: int,
) -> tuple[str, dict[str, Any]]:
    """The statement and its values. Its columns: window, last minute, groups, value, count of all rows.

    Args:
        parts: The minutes that the query cuts, as far as it wants them.
        chosen: The days, hours and minutes that answer the rest.
        windows: The windows that they lie in; None where none are asked for.
        limit: The most rows it gives, and counts.
    """
    aggregation = meter.meter.aggregation
    is_distinct = aggregation is Aggregation.UNIQUE_COUNT
    values: dict[str, Any] = {"meter": meter.id, "tenant": tenant}
    sources = [_source(level, ranges, values, is_distinct) for level, ranges in _ranges(chosen)]
    values |= _edge_values(parts, aggregation)
    source = " union all ".join([*sources, _EDGE_ROWS])

    window = _window(windows, values) if windows else "min(s.first_minute)"
    last = "null::timestamptz" if windows else "max(s.last_minute)"
    keys = []
    for index, key in enumerate(query.group_by):
        values[f"key{index}"] = key
        keys.append(f"coalesce(s.grp->>%(key{index})s, '') collate \"C\"")
    conditions: list[str] = []
    for key, wanted in query.filters.items():
        values[f"filtered{len(conditions)}"] = key
        left = f"coalesce(s.grp->>%(filtered{len(conditions)})s, '')"
        conditions.append(condition(left, wanted, values))
    where = f" where {' and '.join(conditions)}" if conditions else ""
    value = _VALUES[aggregation]
    if is_distinct:  # each value once a bucket, by hashing, before it is counted: no sort of all
        groups = [f"{key} as key{index}" for index, key in enumerate(keys)]
        named = [*([f"{window} as at"] if windows else []), *groups, "s.vhash"]
        bounds = "min(s.first_minute) as first_minute, max(s.last_minute) as last_minute"
        source = (
            f"select {', '.join([*named, bounds])} from ({source}) as s ({_COLUMNS}){where}"
            f" group by {', '.join(map(str, range(1, len(named) + 1)))}"
        )
        window = "s.at" if windows else window
        keys = [f"s.key{index}" for index in range(len(keys))]
        rows = f"({source}) as s"
    else:
        rows = f"({source}) as s ({_COLUMNS}){where}"
    positions = [*([1] if windows else []), *range(3, 3 + len(keys))]
    ordered = ", ".join(map(str, range(1, 3 + len(keys))))
    statement = (
        f"select {', '.join([window, last, *keys, f'trim_scale(({value})::numeric)'])} from {rows}"
        + (f" group by {', '.join(map(str, positions))}" if positions else "")
        + f" having {value} is not null and count(*) > 0"
        + f" order by {ordered} limit {limit:d}"
    )
    # The count is of no more rows than the limit; ordered again, which costs nothing where it is in order.
    return f"select *, count(*) over () from ({statement}) as found order by {ordered}", values


def _ranges(chosen: Levels) -> list[tuple[Level, list[Range]]]:
    found = ((DAYS, chosen.days), (HOURS, chosen.hours), (MINUTES, chosen.minutes))
    return [(level, ranges) for level, ranges in found if ranges]


def _source(level: Level, ranges: Sequence[Range], values: dict[str, Any], is_distinct: bool) -> str:
    """The rows of a level in these ranges."""
    if is_distinct:
        vhash = "d.vhash"
        table = (
            f"metering.{level.table} r join metering.{level.distinct} d"
            f" using (meter, tenant, {level.time}, grp_key)"
        )
    else:
        vhash, table = "null::bytea", f"metering.{level.table} r"
    return _within(level, f"r.{level.time}, {level.bounds}, {_SUMS}, {vhash}", table, ranges, values)


def _within(level: Level, columns: str, table: str, ranges: Sequence[Range], values: dict[str, Any]) -> str:
    """A level's rows of the meter and tenant in these ranges: one by its bounds, many one after another.

    `offset 0` keeps each range a look-up of its own: Postgres cannot know how little many ranges are, and
    would rather read the whole table once.
    """
    start, end = f"{level.time}_from", f"{level.time}_to"
    time = f"r.{level.time}"
    own = f"select {columns} from {table} where r.meter = %(meter)s and r.tenant = %(tenant)s"
    if len(ranges) == 1:
        values[start], values[end] = ranges[0]
        return f"{own} and {time} >= %({start})s and {time} < %({end})s"
    values[start], values[end] = [a for a, _ in ranges], [b for _, b in ranges]
    spans = f"unnest(%({start})s::timestamptz[], %({end})s::timestamptz[]) as p (a, b)"
    return (
        f"select found.* from {spans}"
        f" cross join lateral ({own} and {time} >= p.a and {time} < p.b offset 0) as found"
    )


def group_values(
    meter: MeterInForce, tenant: str, key: str, chosen: Levels, *, limit: int
) -> tuple[str, dict[str, Any]]:
    """The statement for the values that a group key had in whole minutes."""
    values: dict[str, Any] = {"meter": meter.id, "tenant": tenant, "key": key}
    parts = [
        _within(level, "coalesce(r.grp->>%(key)s, '')", f"metering.{level.table} r", ranges, values)
        for level, ranges in _ranges(chosen)
    ]
    # Without any range there is nothing: a statement is a statement all the same.
    source = " union all ".join(parts) or "select ''::text where false"
    return f"select distinct value from ({source}) as s (value) limit {limit:d}", values


def first_and_last(meter: MeterInForce, tenant: str, span: Span) -> tuple[str, dict[str, Any]]:
    """The statement for the first and the last minute there is: two look-ups, however much lies between."""
    conditions, values = _where(meter, tenant, span)
    return f"select min(r.minute), max(r.minute) from metering.rollup r where {conditions}", values


def _where(meter: MeterInForce, tenant: str, span: Span) -> tuple[str, dict[str, Any]]:
    values: dict[str, Any] = {"meter": meter.id, "tenant": tenant}
    whole = span.whole_minutes()
    conditions = ["r.meter = %(meter)s", "r.tenant = %(tenant)s"]
    if whole.start is not None:
        conditions.append("r.minute >= %(start)s")
        values["start"] = whole.start
    if whole.end is not None:
        conditions.append("r.minute < %(end)s")
        values["end"] = whole.end
    return " and ".join(conditions), values


def _window(windows: Windows, values: dict[str, Any]) -> str:
    """Where the window of a minute begins: looked up in what was computed, as Postgres knows other zones."""
    if windows.step == MINUTE:
        return "s.at"
    values["w_starts"] = list(windows.starts)
    run = "width_bucket(s.at, %(w_starts)s::timestamptz[])"
    start = f"(%(w_starts)s::timestamptz[])[{run}]"
    if windows.step is None:
        return start
    values["w_origins"], values["w_step"] = list(windows.origins), windows.step
    return f"greatest({start}, date_bin(%(w_step)s, s.at, (%(w_origins)s::timestamptz[])[{run}]))"


_EDGE_ROWS = """
select t.minute, t.minute, t.minute, t.grp::jsonb, t.cnt, t.sum, t.min, t.max, t.last_time, t.last_n,
       t.last_value, t.vhash
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


def as_row(row: Sequence[Any], tenant: str, query: Query, windows: Windows | None) -> Row:
    """A row of the statement."""
    groups = dict(zip(query.group_by, row[2:-2], strict=True)) if query.group_by else {}
    if windows is not None:
        return Row(*windows.around(row[0].astimezone(UTC)), groups, row[-2], tenant)
    return Row(
        query.span.start or row[0].astimezone(UTC),
        query.span.end or row[1].astimezone(UTC) + MINUTE,
        groups,
        row[-2],
        tenant,
    )
