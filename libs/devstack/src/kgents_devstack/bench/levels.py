"""What hours and days above the minutes cost the writer, in processor time, which load changes little."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psutil
from psycopg import AsyncConnection

from kgents_common import database
from kgents_devstack.bench.report import Figure
from kgents_metering.model.measure import Sample
from kgents_metering.model.rollup import Rollup
from kgents_metering.sinks.ledger import schema
from kgents_metering.sinks.ledger.rollups import add_rollup

# A batch of 500 events of twenty tenants and two meters, in one minute, is so many minutes of so many groups.
TENANTS, METERS, GROUPS = 20, 2, 5
BATCHES = 300

_MINUTES_ALONE = """
insert into metering.rollup as r
    (meter, tenant, minute, grp_key, grp, cnt, sum, min, max, last_time, last_n, last_value)
select meter, tenant, minute, grp_key, grp::jsonb, cnt, sum, min, max, last_time, last_n, last_value
from unnest(%s::int[], %s::text[], %s::timestamptz[], %s::bytea[], %s::text[], %s::bigint[], %s::numeric[],
            %s::numeric[], %s::numeric[], %s::timestamptz[], %s::bigint[], %s::numeric[])
     as t (meter, tenant, minute, grp_key, grp, cnt, sum, min, max, last_time, last_n, last_value)
on conflict (meter, tenant, minute, grp_key) do update set
    cnt = r.cnt + excluded.cnt, sum = r.sum + excluded.sum, min = least(r.min, excluded.min),
    max = greatest(r.max, excluded.max), last_time = excluded.last_time, last_n = excluded.last_n,
    last_value = excluded.last_value
"""
Add = Callable[[AsyncConnection, Rollup], Awaitable[None]]


def measure_levels(url: str) -> Iterator[Figure]:
    """A batch's minutes alone, and with their hours and days, interleaved; on a database of its own."""
    alone, levelled = asyncio.run(_measure(url))
    what = f"apply: {TENANTS * METERS * GROUPS} minutes of a batch of 500, Postgres's processor time"
    yield Figure(f"{what}, minutes alone", alone * 1000, "ms")
    yield Figure(f"{what}, with hours and days", levelled * 1000, "ms")


async def _measure(url: str) -> tuple[float, float]:
    await database.migrate(url, package=schema.PACKAGE, schema=schema.NAME)
    async with await AsyncConnection.connect(url) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        spent = {_alone: 0.0, _with_levels: 0.0}
        for number in range(BATCHES):
            for add in spent:
                rollup = _batch(number)
                before = _seconds(backend)
                await add(connection, rollup)
                await connection.commit()
                spent[add] += _seconds(backend) - before
    return spent[_alone] / BATCHES, spent[_with_levels] / BATCHES


async def _alone(connection: AsyncConnection, rollup: Rollup) -> None:
    rows = rollup.rows()
    columns = zip(
        *(
            (*key, d.group, d.cnt, d.sum, d.min, d.max, d.last_time, d.last_n, d.last_value)
            for key, d in rows
        ),
        strict=True,
    )
    await connection.execute("set local kgents.levels = 'on'")
    await connection.execute(_MINUTES_ALONE, [list(column) for column in columns])


async def _with_levels(connection: AsyncConnection, rollup: Rollup) -> None:
    await add_rollup(connection, rollup, [])


def _batch(number: int) -> Rollup:
    """Of the second `number`: batches of one minute add to the same rows, as they do."""
    now = datetime(2026, 11, 25, 12, tzinfo=UTC) + timedelta(seconds=number)
    rollup = Rollup()
    for index in range(TENANTS * METERS * GROUPS):
        sample = Sample(Decimal(index), None, (("model", f"m{index % GROUPS}"),))
        rollup.add(index // GROUPS % METERS + 1, f"t{index // (GROUPS * METERS)}", now, index, sample)
    return rollup


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
