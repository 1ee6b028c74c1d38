"""Hours and days are the minutes, whoever wrote them; each read finds what it needs by an index."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import database
from kgents_metering.model import zones
from kgents_metering.model.levels import Levels, levels
from kgents_metering.model.meters import Aggregation, parse
from kgents_metering.model.query import Query, Span
from kgents_metering.model.query.listing import EventPage
from kgents_metering.model.rollup import Rollup
from kgents_metering.model.windows import MINUTE, Window, windows
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.meter_changes import sync
from kgents_metering.sinks.ledger.reads import UsageReads, statement
from kgents_metering.sinks.ledger.reads.bad_events import STATEMENTS
from kgents_metering.sinks.ledger.reads.events import EVENTS, page_statement

from .messages import event

Pool = AsyncConnectionPool[AsyncConnection]
DAY = datetime(2026, 3, 28, 21, tzinfo=UTC)
# What the release before writes: minutes alone.
_MINUTE_AS_BEFORE = """
insert into metering.rollup as r
    (meter, tenant, minute, grp_key, grp, cnt, sum, min, max, last_time, last_n, last_value)
select * from unnest(%s::int[], %s::text[], %s::timestamptz[], %s::bytea[], %s::jsonb[], %s::bigint[],
    %s::numeric[], %s::numeric[], %s::numeric[], %s::timestamptz[], %s::bigint[], %s::numeric[])
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


def test_levels_cover_a_span_once_and_never_reach_over_a_window() -> None:
    """Rule: days, hours and minutes are the span, and each of them lies in one window."""
    roll = random.Random(7)
    for _ in range(300):
        start = DAY + timedelta(minutes=roll.randrange(0, 3000))
        end = start + timedelta(minutes=roll.randrange(1, 4000))
        size = roll.choice([None, *Window])
        zone = roll.choice(["UTC", "Europe/Berlin", "Asia/Kolkata", *roll.sample(sorted(zones.names()), 3)])
        made = windows(size, zone, start, end - MINUTE) if size else None
        chosen = levels(start, end, made)
        pieces = sorted(_pieces(chosen))
        assert [a for a, _ in pieces[1:]] == [b for _, b in pieces[:-1]]
        assert (pieces[0][0], pieces[-1][1]) == (start, end)
        if made is not None:
            assert all(made.around(a) == made.around(b - MINUTE) for a, b in pieces), (size, zone)


def test_levels_are_as_coarse_as_windows_allow() -> None:
    """Rule: whole days where windows hold them; hours where days do not fit; minutes where hours do not."""
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
    assert levels(start, end, None) == Levels(days=[(start, end)])
    cut = levels(start + MINUTE, end - MINUTE, None)
    assert [len(cut.days), len(cut.hours), len(cut.minutes)] == [1, 2, 2]
    for zone, expected in (("UTC", (1, 0, 0)), ("Europe/Berlin", (0, 1, 0)), ("Asia/Kolkata", (0, 60, 59))):
        chosen = levels(start, end, windows(Window.DAY, zone, start, end - MINUTE))
        assert (len(chosen.days), len(chosen.hours), len(chosen.minutes)) == expected, zone
    chosen = levels(start, end, windows(Window.HOUR, "Europe/Berlin", start, end - MINUTE))
    assert (chosen.days, len(chosen.hours), chosen.minutes) == ([], 1, [])
    chosen = levels(start, end, windows(Window.HOUR, "Asia/Kolkata", start, end - MINUTE))
    assert (chosen.days, chosen.hours, len(chosen.minutes)) == ([], [], 1)


async def test_whoever_writes_minutes_the_levels_are_right(pool: Pool, ledger: Ledger) -> None:
    """Rule: after this release's writer, one of the release before, a meter gone and one come back."""
    roll = random.Random(11)
    for batch in range(6):
        made = [
            event(
                batch * 100 + n,
                f"e{batch}-{n}",
                time=(DAY + timedelta(minutes=roll.randrange(0, 4000))).isoformat(),
                data={"tokens": str(roll.randrange(-500, 500) / 8), "model": roll.choice("abc")},
            )
            for n in range(60)
        ]
        await ledger.apply(made, [])
        async with pool.connection() as connection:
            await _write_as_before(connection, roll)
    async with pool.connection() as connection:
        await _assert_levels(connection)
        await connection.execute("delete from metering.rollup where meter = 1")
        await connection.execute("delete from metering.distinct_value where meter = 3")
        await _assert_levels(connection)
        row = await (await connection.execute("select count(*) from metering.rollup_day")).fetchone()
        assert row is not None
        assert row[0] > 0


async def test_a_ledger_of_the_release_before_gets_its_levels(database_url: str) -> None:
    """Rule: the migration folds what is there; nothing is counted anew."""
    roll = random.Random(3)
    async with await AsyncConnection.connect(database_url) as connection:
        await connection.execute("create schema metering")
        await connection.execute(
            "create table metering.migration (name text primary key, digest text not null,"
            " at timestamptz not null default now())"
        )
        files = resources.files("kgents_metering.schema").iterdir()
        for file in sorted((f for f in files if f.name.endswith(".sql")), key=lambda f: f.name):
            if file.name.startswith("002"):
                continue
            text = file.read_text()
            await connection.execute(text.encode())
            digest = hashlib.sha256(text.encode()).hexdigest()
            await connection.execute(
                "insert into metering.migration (name, digest) values (%s, %s)", [file.name, digest]
            )
        for _ in range(5):
            await _write_as_before(connection, roll)
        await connection.commit()
    ran = await database.migrate(database_url, package="kgents_metering.schema", schema="metering")
    assert "0020_levels.sql" in ran
    async with await AsyncConnection.connect(database_url) as connection:
        await _assert_levels(connection)


async def _write_as_before(connection: AsyncConnection, roll: random.Random) -> None:
    rows: dict[tuple[int, str, datetime, bytes], list[Any]] = {}
    for n in range(80):
        minute = DAY + timedelta(minutes=roll.randrange(0, 4000))
        group, meter = roll.choice("abc"), roll.choice([1, 2])
        value = None if meter == 2 else roll.randrange(-1000, 1000)
        last = None if value is None else minute + timedelta(seconds=roll.randrange(60))
        order = None if value is None else n
        key = (meter, roll.choice(["acme", "globex"]), minute, group.encode())
        rows[key] = [json.dumps({"model": group}), 1, value, value, value, last, order, value]
    columns = [list(column) for column in zip(*((*k, *v) for k, v in sorted(rows.items())), strict=True)]
    await connection.execute(_MINUTE_AS_BEFORE, columns)
    hashes = {(3, k[1], k[2], k[3], bytes([roll.randrange(5)])) for k in rows}
    await connection.execute(
        "insert into metering.distinct_value select * from unnest(%s::int[], %s::text[], %s::timestamptz[],"
        " %s::bytea[], %s::bytea[]) on conflict do nothing",
        [list(column) for column in zip(*sorted(hashes), strict=True)],
    )


async def _assert_levels(connection: AsyncConnection) -> None:
    last = "(array_agg({} order by last_time desc, last_n desc) filter (where last_n is not null))[1]"
    for level in ("hour", "day"):
        folded = (
            f"select meter, tenant, date_bin('1 {level}', minute, '2000-01-01 00:00:00+00'), grp_key,"
            f" sum(cnt), sum(sum), min(min), max(max), min(minute), max(minute),"
            f" {last.format('last_time')}, {last.format('last_n')}, {last.format('last_value')}"
            " from metering.rollup group by 1, 2, 3, 4"
        )
        kept = (
            f"select meter, tenant, {level}, grp_key, cnt, sum, min, max, first_minute, last_minute,"
            f" last_time, last_n, last_value from metering.rollup_{level}"
        )
        values = (
            f"select distinct meter, tenant, date_bin('1 {level}', minute, '2000-01-01 00:00:00+00'), "
            " grp_key, vhash from metering.distinct_value"
        )
        for left, right in ((folded, kept), (values, f"table metering.distinct_{level}")):
            for a, b in ((left, right), (right, left)):
                cursor = await connection.execute(f"({a}) except ({b})".encode())
                assert await cursor.fetchall() == [], level


def _pieces(chosen: Levels) -> Iterator[tuple[datetime, datetime]]:
    for unit, ranges in (
        (timedelta(days=1), chosen.days),
        (timedelta(hours=1), chosen.hours),
        (MINUTE, chosen.minutes),
    ):
        for at, end in ranges:
            moment = at
            while moment < end:
                yield moment, moment + unit
                moment += unit


@pytest.fixture
async def grown(database_url: str, pool: Pool) -> Pool:
    """A ledger that is nearly all one tenant's, over months; made in SQL, with the triggers at work."""
    meters = parse(
        {
            "meters": [
                {
                    "slug": aggregation.lower(),
                    "eventType": "llm.tokens",
                    "aggregation": str(aggregation),
                    **({} if aggregation is Aggregation.COUNT else {"valueProperty": "$.v"}),
                    "groupBy": {"model": "$.model"},
                }
                for aggregation in Aggregation
            ]
        }
    )
    await sync(pool, meters)
    async with pool.connection() as connection:
        await connection.execute(
            """
            insert into metering.rollup
                (meter, tenant, minute, grp_key, grp, cnt, sum, min, max, last_time, last_n, last_value)
            select m.id, t.tenant, now() - n * interval '47 minutes', decode(lpad(g::text, 2, '0'), 'hex'),
                   jsonb_build_object('model', g::text), 1, 1, 1, 1, now(), n, 1
            from metering.meter m,
                 (select 'acme', 3000 union all select 't' || x, 50 from generate_series(1, 9) x)
                     as t (tenant, size), generate_series(1, 3000) n, generate_series(1, 2) g
            where n <= t.size and m.slug in ('sum', 'unique_count', 'latest', 'count')
            """
        )
        await connection.execute(
            "insert into metering.distinct_value"
            " select meter, tenant, minute, grp_key, '\\x01' from metering.rollup"
        )
        await connection.execute(
            """
            insert into metering.event
                (n, key, tenant, type, source, ce_id, time, stored_at, epoch, seq, data)
            select n, decode(lpad(to_hex(n), 8, '0'), 'hex'), 't' || n % 30, 'llm.tokens', 's', n::text,
                   now() - n * interval '1 minute', now(), now(), n, '{}' from generate_series(1, 20000) n
            """
        )
        await connection.execute(
            "insert into metering.invalid (n, meter, code, message)"
            " select n, 1, 'nan', 'x' from generate_series(1, 20000, 2) n"
        )
        await connection.execute(
            """
            insert into metering.dead (epoch, seq, subject, headers, body, code, detail, stored_at)
            select now(), n, 'agentese.t' || n % 30 || '.x', '{}', '', 'x', 'x', now()
            from generate_series(1, 5000) n
            """
        )
        await connection.commit()
        await connection.set_autocommit(True)
        for table in (
            "rollup",
            "rollup_hour",
            "rollup_day",
            "distinct_value",
            "distinct_hour",
            "distinct_day",
        ):
            await connection.execute(f"analyze metering.{table}".encode())
        for table in ("event", "invalid", "dead"):
            await connection.execute(f"analyze metering.{table}".encode())
        await connection.set_autocommit(False)
    return pool


# Small whatever happens: who reads them whole reads a page.
SMALL = {"meter", "meter_set", "conflict", "rollup_day", "distinct_day"}


async def test_every_read_finds_its_rows_by_an_index(grown: Pool) -> None:
    """Rule: no read scans a table that grows with what is counted."""
    reads = UsageReads(grown)
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    span = Span(now - timedelta(days=2), now)
    async with grown.connection() as connection:
        for aggregation in (Aggregation.SUM, Aggregation.UNIQUE_COUNT, Aggregation.LATEST):
            meter = await reads.meter(aggregation.lower())
            assert meter is not None
            for size, zone, days in (
                (None, "UTC", 2),
                (Window.DAY, "Asia/Kolkata", 2),
                (Window.DAY, "Asia/Kolkata", 60),  # 120 ranges of hours and of minutes
                (Window.MONTH, "Asia/Tokyo", 2),
            ):
                query = Query(span, size, zone, group_by=("model",))
                start, end = now - timedelta(days=days, minutes=7), now - timedelta(minutes=3)
                made = windows(size, zone, start, end - MINUTE) if size else None
                chosen = levels(start, end, made)
                text, values = statement.build(meter, "acme", query, Rollup(), chosen, made, limit=1000)
                await _assert_no_scan(connection, text, values)
            whole = levels(start, end, None)
            for text, values in (
                statement.group_values(meter, "acme", "model", whole, limit=1000),
                statement.first_and_last(meter, "acme", span),
                statement.first_and_last(meter, "acme", Span()),
            ):
                await _assert_no_scan(connection, text, values)
        edge = {"tenant": "t1", "type": "llm.tokens", "a": now - timedelta(minutes=1), "b": now}
        await _assert_no_scan(
            connection,
            "select time, data from metering.event where tenant = %(tenant)s and type = %(type)s"
            " and time >= %(a)s and time < %(b)s",
            edge,
        )
        listing: dict[str, Any] = dict.fromkeys(("id", "end", "stored_from", "stored_to"))
        listing |= {"tenant": "t1", "start": now - timedelta(days=32), "limit": 100}
        await _assert_no_scan(connection, EVENTS, listing)
        page = EventPage(10, {"type": {"$eq": "llm.tokens"}}, before=(now, 7))
        await _assert_no_scan(connection, *page_statement("t1", page))
        bad: dict[str, Any] = dict.fromkeys(("before", "code", "type", "source", "meter"))
        bad |= {"tenant": "t1", "limit": 10, "shown": 10}
        for kind in ("invalid", "dead"):
            await _assert_no_scan(connection, STATEMENTS[kind], bad)


async def _assert_no_scan(connection: AsyncConnection, text: str, values: dict[str, Any]) -> None:
    cursor = psycopg.AsyncClientCursor(connection)
    await cursor.execute(f"explain (format json) {text}".encode(), values)
    row = await cursor.fetchone()
    assert row is not None
    for node in _nodes(row[0][0]["Plan"]):
        is_scan = node["Node Type"] == "Seq Scan" and node["Relation Name"] not in SMALL
        assert not is_scan, (text, node)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)
