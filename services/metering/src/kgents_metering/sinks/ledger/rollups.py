"""Adding folded minutes to the rollup tables, set-based and in lock order; what is folded is the model's."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import AsyncConnection

from kgents_metering.model.rollup import Rollup

_LAST = ",\n           ".join(
    f"(array_agg({column} order by last_time desc, last_n desc) filter (where last_n is not null))[1]"
    for column in ("last_time", "last_n", "last_value")
)
_IS_LATER = "(excluded.last_time, excluded.last_n) > (r.last_time, r.last_n) or r.last_time is null"
_MERGE = f"""
        cnt = r.cnt + excluded.cnt,
        sum = coalesce(r.sum + excluded.sum, r.sum, excluded.sum),
        min = least(r.min, excluded.min),
        max = greatest(r.max, excluded.max),
        last_value = case when {_IS_LATER} then excluded.last_value else r.last_value end,
        last_n = case when {_IS_LATER} then excluded.last_n else r.last_n end,
        last_time = case when {_IS_LATER} then excluded.last_time else r.last_time end
"""


def _level(name: str) -> str:
    """The same minutes folded into one level above."""
    return f"""
    insert into metering.rollup_{name} as r
        (meter, tenant, {name}, grp_key, grp, cnt, sum, min, max, first_minute, last_minute, last_time,
         last_n, last_value)
    select meter, tenant, date_bin('1 {name}', minute, '2000-01-01 00:00:00+00') as at, grp_key,
           min(grp)::jsonb, sum(cnt), sum(sum), min(min), max(max), min(minute), max(minute),
           {_LAST}
    from input group by meter, tenant, at, grp_key order by meter, tenant collate "C", at, grp_key
    on conflict (meter, tenant, {name}, grp_key) do update set
        first_minute = least(r.first_minute, excluded.first_minute),
        last_minute = greatest(r.last_minute, excluded.last_minute),{_MERGE}"""


# This writer keeps the levels itself; see the triggers of schema/0020_levels.sql.
_KEEPS_LEVELS = "set local kgents.levels = 'on'"
# Every writer locks minutes, hours and days in this order, and each in the order of their keys.
_ADD = f"""
with input as materialized (
    select * from unnest(
        %s::int[], %s::text[], %s::timestamptz[], %s::bytea[], %s::text[], %s::bigint[], %s::numeric[],
        %s::numeric[], %s::numeric[], %s::timestamptz[], %s::bigint[], %s::numeric[]
    ) as t (meter, tenant, minute, grp_key, grp, cnt, sum, min, max, last_time, last_n, last_value)
), minutes as (
    insert into metering.rollup as r
        (meter, tenant, minute, grp_key, grp, cnt, sum, min, max, last_time, last_n, last_value)
    select meter, tenant, minute, grp_key, grp::jsonb, cnt, sum, min, max, last_time, last_n, last_value
    from input order by meter, tenant collate "C", minute, grp_key
    on conflict (meter, tenant, minute, grp_key) do update set {_MERGE}
    returning 1
), hours as ({_level("hour")} returning 1
), days as ({_level("day")} returning 1
)
select (select count(*) from minutes), (select count(*) from hours), (select count(*) from days)
"""
_ADD_DISTINCT = """
with input as materialized (
    select * from unnest(%s::int[], %s::text[], %s::timestamptz[], %s::bytea[], %s::bytea[])
        as t (meter, tenant, minute, grp_key, vhash)
), minutes as (
    insert into metering.distinct_value (meter, tenant, minute, grp_key, vhash)
    select * from input order by meter, tenant collate "C", minute, grp_key, vhash
    on conflict do nothing
    returning meter, tenant, minute, grp_key, vhash
), hours as (
    insert into metering.distinct_hour (meter, tenant, hour, grp_key, vhash)
    select distinct meter, tenant collate "C", date_bin('1 hour', minute, '2000-01-01 00:00:00+00'), grp_key,
           vhash
    from minutes order by 1, 2, 3, 4, 5
    on conflict do nothing
    returning meter, tenant, hour, grp_key, vhash
)
insert into metering.distinct_day (meter, tenant, day, grp_key, vhash)
select distinct meter, tenant collate "C", date_bin('1 day', hour, '2000-01-01 00:00:00+00'), grp_key, vhash
from hours order by 1, 2, 3, 4, 5
on conflict do nothing
"""
_ADD_INVALID = """
insert into metering.invalid (n, meter, code, message)
select * from unnest(%s::bigint[], %s::int[], %s::text[], %s::text[])
on conflict do nothing
"""


async def add_rollup(
    connection: AsyncConnection, rollup: Rollup, invalid: Sequence[tuple[int, int, str, str]]
) -> None:
    """Add minutes, distinct values, and the invalid as (n, meter, code, message), in one transaction."""
    rows = rollup.rows()
    if rows or rollup.distinct:
        await connection.execute(_KEEPS_LEVELS)
    if rows:
        keys, deltas = [key for key, _ in rows], [delta for _, delta in rows]
        await connection.execute(
            _ADD,
            [
                [k[0] for k in keys],
                [k[1] for k in keys],
                [k[2] for k in keys],
                [k[3] for k in keys],
                [d.group for d in deltas],
                [d.cnt for d in deltas],
                [d.sum for d in deltas],
                [d.min for d in deltas],
                [d.max for d in deltas],
                [d.last_time for d in deltas],
                [d.last_n for d in deltas],
                [d.last_value for d in deltas],
            ],
        )
    if rollup.distinct:
        distinct = sorted(rollup.distinct)
        await connection.execute(_ADD_DISTINCT, [list(column) for column in zip(*distinct, strict=True)])
    if invalid:
        await connection.execute(_ADD_INVALID, [list(column) for column in zip(*invalid, strict=True)])
