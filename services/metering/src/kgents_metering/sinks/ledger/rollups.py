"""Adding folded minutes to the rollup tables, set-based and in lock order; what is folded is the model's."""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import AsyncConnection

from kgents_metering.model.rollup import Rollup

_ADD = """
insert into metering.rollup as r
    (meter, tenant, minute, grp_key, grp, cnt, sum, min, max, last_time, last_n, last_value)
select t.meter, t.tenant, t.minute, t.grp_key, t.grp::jsonb, t.cnt, t.sum, t.min, t.max, t.last_time,
       t.last_n, t.last_value
from unnest(%s::int[], %s::text[], %s::timestamptz[], %s::bytea[], %s::text[], %s::bigint[], %s::numeric[],
            %s::numeric[], %s::numeric[], %s::timestamptz[], %s::bigint[], %s::numeric[])
     as t (meter, tenant, minute, grp_key, grp, cnt, sum, min, max, last_time, last_n, last_value)
on conflict (meter, tenant, minute, grp_key) do update set
    cnt = r.cnt + excluded.cnt,
    sum = coalesce(r.sum + excluded.sum, r.sum, excluded.sum),
    min = least(r.min, excluded.min),
    max = greatest(r.max, excluded.max),
    last_value = case when (excluded.last_time, excluded.last_n) > (r.last_time, r.last_n)
                      or r.last_time is null then excluded.last_value else r.last_value end,
    last_n = case when (excluded.last_time, excluded.last_n) > (r.last_time, r.last_n)
                  or r.last_time is null then excluded.last_n else r.last_n end,
    last_time = case when (excluded.last_time, excluded.last_n) > (r.last_time, r.last_n)
                     or r.last_time is null then excluded.last_time else r.last_time end
"""
_ADD_DISTINCT = """
insert into metering.distinct_value (meter, tenant, minute, grp_key, vhash)
select * from unnest(%s::int[], %s::text[], %s::timestamptz[], %s::bytea[], %s::bytea[])
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
