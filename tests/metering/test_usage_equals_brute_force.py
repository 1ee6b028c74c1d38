"""Whatever comes, in whatever order, how often and how late: the ledger's answers equal a count by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import database
from kgents_common.crash import CrashPoints
from kgents_metering.model import zones
from kgents_metering.model.meters import Aggregation, parse
from kgents_metering.model.query import Query, parse_query
from kgents_metering.model.windows import Window, windows
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.meter_changes import sync
from kgents_metering.sinks.ledger.reads import UsageReads

from .messages import event

METERS = parse(
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
# Both clock changes of both hemispheres, half hours, a day that begins at one o'clock once, one with two
# midnights, and one of seconds; and a few more by the seed.
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/Asuncion",
    "America/Havana",
    "CET",
    "Africa/Monrovia",
)
DAYS = (
    datetime(2026, 3, 29, tzinfo=UTC),  # Berlin springs forward
    datetime(2026, 10, 25, tzinfo=UTC),  # Berlin falls back
    datetime(2026, 11, 1, tzinfo=UTC),  # New York falls back
    datetime(2024, 10, 6, tzinfo=UTC),  # Asunción skips midnight
    datetime(2026, 1, 31, 22, tzinfo=UTC),  # the end of a month
    datetime(2026, 4, 4, 14, tzinfo=UTC),  # Lord Howe falls back by half an hour
    datetime(2020, 10, 31, 16, tzinfo=UTC),  # Havana has two midnights, at the first of a month
    datetime(1972, 1, 7, tzinfo=UTC),  # Monrovia gives up its seconds
)


@dataclass(frozen=True)
class Sent:
    """One event as the producer made it."""

    id: str
    time: datetime
    value: object
    model: object


values = st.one_of(
    st.integers(-50, 50),
    st.decimals(-1000, 1000, places=3).map(str),
    st.sampled_from([None, "abc", True, "NaN", 10**20, "0.1"]),
)
events = st.builds(
    lambda day, offset, value, model: (DAYS[day] + timedelta(seconds=offset), value, model),
    st.integers(0, len(DAYS) - 1),
    st.one_of(st.integers(0, 86_400), st.integers(0, 300)),
    values,
    st.sampled_from(["a", "b", None]),
)


@pytest.mark.parametrize("examples", [15, pytest.param(500, marks=pytest.mark.long)])
def test_every_answer_equals_a_count_by_hand(ledger_url: str, examples: int) -> None:
    """Rule: random events, repeats, order, lateness: every aggregation × window × time zone is exact."""

    @given(
        made=st.lists(events, min_size=1, max_size=40),
        repeats=st.integers(0, 10),
        seed=st.integers(0, 10_000),
        cut=st.integers(1, 20),
        zone=st.one_of(st.sampled_from(ZONES), st.sampled_from(sorted(zones.names()))),
        window=st.sampled_from([None, *Window]),
        grouped=st.booleans(),
        bounds=st.one_of(
            st.none(), st.tuples(st.integers(0, len(DAYS) - 1), st.integers(0, 7200), st.integers(1, 90_000))
        ),
        model=st.sampled_from([None, "a", ""]),
    )
    @settings(max_examples=examples, deadline=None)
    def equals(
        made: list[tuple[datetime, object, object]],
        repeats: int,
        seed: int,
        cut: int,
        zone: str,
        window: Window | None,
        grouped: bool,
        bounds: tuple[int, int, int] | None,
        model: str | None,
    ) -> None:
        sent = [Sent(f"e{i}", *parts) for i, parts in enumerate(made)]
        roll = random.Random(seed)
        stream = sent + [roll.choice(sent) for _ in range(repeats)]
        roll.shuffle(stream)
        start = end = None
        if bounds is not None:
            start = DAYS[bounds[0]] + timedelta(seconds=bounds[1])
            end = start + timedelta(seconds=bounds[2])
        asyncio.run(_check(ledger_url, stream, cut, zone, window, grouped, start, end, model))

    equals()


async def _check(
    url: str,
    stream: list[Sent],
    cut: int,
    zone: str,
    window: Window | None,
    grouped: bool,
    start: datetime | None,
    end: datetime | None,
    model: str | None,
) -> None:
    pool = database.make_pool(url, application="test", max_size=2)
    await pool.open()
    try:
        await _empty(pool)
        ledger = Ledger(pool, target=None, stream="AGENTESE", crash_points=CrashPoints(None))
        for at in range(0, len(stream), cut):
            await ledger.apply([_message(at + i, s) for i, s in enumerate(stream[at : at + cut])], [])
        async with pool.connection() as connection:
            numbered = await (await connection.execute("select ce_id, n from metering.event")).fetchall()
        order = dict(numbered)
        unique = sorted({s.id: s for s in stream}.values(), key=lambda s: (s.time, order[s.id]))
        reads = UsageReads(pool)
        for aggregation in Aggregation:
            meter = await reads.meter(aggregation.lower())
            assert meter is not None
            parameters: dict[str, list[str]] = {"windowTimeZone": [zone]}
            if window is not None:
                parameters["windowSize"] = [window]
            if grouped:
                parameters["groupBy"] = ["model"]
            if model is not None:
                parameters["filterGroupBy[model]"] = [model]
            if start is not None and end is not None:
                parameters |= {"from": [start.isoformat()], "to": [end.isoformat()]}
            query = parse_query(parameters, meter.meter, ("acme",))
            rows = await reads.query(meter, "acme", query)
            found = {(r.start, r.end, r.groups.get("model")): r.value for r in rows}
            expected = dict(_by_hand(unique, aggregation, query, model))
            assert found == expected, (aggregation, query)
            assert not any("." in text and text[-1] == "0" for text in map("{:f}".format, found.values()))
    finally:
        await pool.close()


def _message(seq: int, sent: Sent) -> Any:
    data = {} if sent.value is None else {"v": sent.value}
    if sent.model is not None:
        data["model"] = sent.model
    return event(seq + 1, sent.id, time=sent.time.isoformat(), data=data)


def _by_hand(
    sent: list[Sent], aggregation: Aggregation, query: Query, model: str | None
) -> Iterator[tuple[tuple[datetime, datetime, str | None], Decimal]]:
    """An independent reference: plain loops over the events in order of time."""
    groups: dict[tuple[Any, str | None], list[tuple[datetime, Decimal | str | None]]] = {}
    for one in sent:
        if (
            query.span.start is not None
            and query.span.end is not None
            and not query.span.start <= one.time < query.span.end
        ):
            continue
        group = "" if one.model is None else str(one.model)
        if model is not None and group != model:
            continue
        usable, value = _usable(one.value, aggregation)
        if not usable:
            continue
        where = _window_of(one.time, query.window, query.zone) if query.window else None
        groups.setdefault((where, group if query.group_by else None), []).append((one.time, value))
    for (where, group), members in groups.items():
        if where is None:
            first, last = min(m[0] for m in members), max(m[0] for m in members)
            where = (
                query.span.start or first.replace(second=0, microsecond=0),
                query.span.end or last.replace(second=0, microsecond=0) + timedelta(minutes=1),
            )
        yield (*where, group), _aggregate(aggregation, [m[1] for m in members])
    counts = aggregation in (Aggregation.COUNT, Aggregation.UNIQUE_COUNT)
    if not groups and counts and query.window is None and not query.group_by:
        start = query.span.start or datetime(1970, 1, 1, tzinfo=UTC)
        yield (start, query.span.end or start + timedelta(minutes=1), None), Decimal(0)


def _usable(value: object, aggregation: Aggregation) -> tuple[bool, Decimal | str | None]:
    if aggregation is Aggregation.COUNT:
        return True, None
    if value is None:
        return False, None
    if aggregation is Aggregation.UNIQUE_COUNT:
        return True, "true" if value is True else str(value)
    if isinstance(value, bool) or value in ("abc", "NaN"):
        return False, None
    return True, Decimal(str(value))


def _window_of(time: datetime, window: Window, zone: str) -> tuple[datetime, datetime]:
    """The window around a moment, made for it alone (`test_windows` walks through every zone's)."""
    minute = time.replace(second=0, microsecond=0)
    return windows(window, zone, minute, minute).around(minute)


def _aggregate(aggregation: Aggregation, values: list[Any]) -> Decimal:
    match aggregation:
        case Aggregation.SUM:
            return sum(values, Decimal(0))
        case Aggregation.COUNT:
            return Decimal(len(values))
        case Aggregation.UNIQUE_COUNT:
            return Decimal(len(set(values)))
        case Aggregation.AVG:
            return _Close(sum(values, Decimal(0)) / len(values))
        case Aggregation.MIN:
            return Decimal(min(values))
        case Aggregation.MAX:
            return Decimal(max(values))
        case Aggregation.LATEST:
            return Decimal(values[-1])


class _Close(Decimal):
    """A quotient: equal within the digits a division keeps."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Decimal) and abs(Decimal(self) - other) <= abs(other) * Decimal("1e-15")

    __hash__ = Decimal.__hash__


async def _empty(pool: AsyncConnectionPool[AsyncConnection]) -> None:
    async with pool.connection() as connection:
        await connection.execute(
            "truncate metering.event, metering.seen, metering.rollup, metering.distinct_value,"
            " metering.invalid, metering.duplicate, metering.conflict, metering.dead, metering.cursor"
        )


@pytest.fixture
async def ledger_url(database_url: str) -> str:
    """A migrated ledger with one meter of each aggregation."""
    await database.migrate(database_url, package="kgents_metering.schema", schema="metering")
    pool = database.make_pool(database_url, application="test")
    await pool.open()
    await sync(pool, METERS)
    await pool.close()
    return database_url
