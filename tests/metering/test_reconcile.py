"""Reconciliation tells every event that one of the two has too much, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_metering.handlers.commands import _parser
from kgents_metering.handlers.reconcile import Report, reconcile
from kgents_metering.model.reconciliation import Expected
from kgents_metering.model.wire import Owed
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.settlement import Settlement

from .messages import event

Pool = AsyncConnectionPool[AsyncConnection]
DAY = datetime(2026, 11, 23, tzinfo=UTC)
NEXT_DAY = datetime(2026, 11, 24, tzinfo=UTC)
ELEVEN = datetime(2026, 11, 23, 11, tzinfo=UTC)


class Says:
    """An OpenMeter that says these hours of the meter `tokens`, and has these events."""

    def __init__(self, tokens: dict[tuple[str, datetime], Decimal], has: set[int] | None = None) -> None:
        self.tokens = tokens
        self.has = has or set()

    async def hourly(self, slug: str, start: datetime, end: datetime) -> dict[tuple[str, datetime], Decimal]:
        return self.tokens if slug == "tokens" else {k: Decimal(len(self.has)) for k in self.tokens}

    async def stored(self, events: Sequence[Owed]) -> set[int]:
        return {one.n for one in events} & self.has


async def run(pool: Pool, says: Says, *, repair: bool = False) -> Report:
    settlement = Settlement(pool, "openmeter")
    return await reconcile(pool, says, settlement, start=DAY, end=NEXT_DAY, repair=repair)


async def execute(pool: Pool, statement: str) -> None:
    async with pool.connection() as connection:
        await connection.execute(statement.encode())


async def deliver_all(pool: Pool) -> set[int]:
    """Everything owed is delivered; their numbers."""
    async with pool.connection() as connection:
        rows = await (
            await connection.execute(
                "with gone as (delete from metering.outbox returning n)"
                " insert into metering.delivered (target, n) select 'openmeter', n from gone returning n"
            )
        ).fetchall()
    return {row[0] for row in rows}


async def test_an_hour_that_only_openmeter_has_differs(ledger: Ledger, pool: Pool) -> None:
    """Rule: every hour that either of the two has is compared; 5,000 extra are not `0 differ`."""
    await ledger.apply([event(1)], [])
    has = await deliver_all(pool)
    three = datetime(2026, 11, 23, 3, tzinfo=UTC)
    extra = {("acme", ELEVEN): Decimal(10), ("acme", three): Decimal(5000), ("nobody", ELEVEN): Decimal(7)}
    report = await run(pool, Says({("acme", ELEVEN): Decimal(10)}, has))
    assert report.agrees
    report = await run(pool, Says(extra, has))
    found = {(d.tenant, d.hour, d.ledger, d.openmeter) for d in report.differences if d.meter == "tokens"}
    assert found == {
        ("acme", three, Decimal(0), Decimal(5000)),
        ("nobody", ELEVEN, Decimal(0), Decimal(7)),
    }


async def test_what_is_missing_is_owed_again_once(ledger: Ledger, pool: Pool) -> None:
    """Rule: repaired by resending what is missing (P5)."""
    await ledger.apply([event(i, f"e{i}") for i in range(1, 11)], [])
    has = await deliver_all(pool)
    lost = min(has)
    report = await run(pool, Says({("acme", ELEVEN): Decimal(90)}, has - {lost}), repair=True)
    assert (report.missing, report.owed_again) == (1, 1)
    assert {d.meter for d in report.differences} == {"tokens", "calls"}


@pytest.mark.parametrize("settled", ["poison", "forgone"])
async def test_a_refused_event_exempts_only_itself(ledger: Ledger, pool: Pool, settled: str) -> None:
    """Rule: the hour of an event that OpenMeter refuses is compared without it."""
    await ledger.apply([event(i, f"e{i}") for i in range(1, 11)], [])
    has = await deliver_all(pool)
    refused = max(has)
    await execute(pool, f"delete from metering.delivered where n = {refused}")
    if settled == "poison":
        await execute(
            pool, f"insert into metering.outbox (target, n, poison) values ('openmeter', {refused}, true)"
        )
    else:
        await execute(
            pool, f"insert into metering.forgone (target, n, reason) values ('openmeter', {refused}, 'so')"
        )
    report = await run(pool, Says({("acme", ELEVEN): Decimal(90)}, has - {refused}))
    assert (report.agrees, report.stuck, report.waiting) == (True, 1, 0)
    report = await run(pool, Says({("acme", ELEVEN): Decimal(80)}, has - {refused, min(has)}))
    assert (report.agrees, report.missing) == (False, 1)
    # It took it after all, and the answer was lost: then it is expected there.
    assert (await run(pool, Says({("acme", ELEVEN): Decimal(100)}, has))).agrees


async def test_what_is_on_its_way_is_no_difference(ledger: Ledger, pool: Pool) -> None:
    """Rule: an hour into which events are owed since a moment ago is left for the next time; not for ever."""
    await ledger.apply([event(1)], [])
    await execute(pool, "update metering.event set stored_at = now()")
    report = await run(pool, Says({}))
    assert (report.agrees, report.waiting, report.compared) == (True, 1, 0)
    await execute(pool, "update metering.event set stored_at = now() - interval '1 hour'")
    report = await run(pool, Says({}))
    assert (report.agrees, report.waiting, report.stuck) == (True, 0, 1)


@pytest.mark.parametrize(
    ("expected", "theirs", "agrees"),
    [
        (Expected(Decimal(10**12), 10**6, Decimal(10**6), True), Decimal(10**12), True),
        (Expected(Decimal(10**12), 10**6, Decimal(10**6), True), Decimal(10**12 - 1), False),
        (Expected(Decimal("0.3"), 3, Decimal("0.1"), False), Decimal("0.30000000000000004"), True),
        (Expected(Decimal("0.3"), 3, Decimal("0.1"), False), Decimal("0.3000000001"), False),
        # A relative tolerance of 1e-9 would hide a thousand here.
        (Expected(Decimal("1e12"), 10**4, Decimal("1e8"), False), Decimal("1e12") - 1000, False),
        (Expected(Decimal(2**60), 4, Decimal(2**58), True), Decimal(2**60) + 2**8, True),
    ],
)
def test_the_tolerance_is_what_float64_may_lose(expected: Expected, theirs: Decimal, agrees: bool) -> None:
    """Rule: exact where float64 is, and elsewhere no more than its own error."""
    assert expected.agrees(theirs) is agrees


@pytest.mark.parametrize("hours", ["0", "-5", "99999999999", "nan"])
def test_hours_that_are_none_are_refused(hours: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: a wrong number is the caller's, told before anything is asked."""
    with pytest.raises(SystemExit):
        _parser().parse_args(["reconcile", "--hours", hours])
    assert "--hours" in capsys.readouterr().err
