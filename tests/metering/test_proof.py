"""The bill is proved by itself, and what was found is kept for whoever asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.clock import ManualClock
from kgents_common.telemetry import new_registry
from kgents_metering.handlers.proof import Prover
from kgents_metering.handlers.reconcile import reconcile
from kgents_metering.metrics import Metrics
from kgents_metering.model.wire import Owed
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.reconciliations import Reconciliations
from kgents_metering.sinks.ledger.settlement import Settlement

from .messages import event

Pool = AsyncConnectionPool[AsyncConnection]
ELEVEN = datetime(2026, 11, 23, 11, tzinfo=UTC)


class Says:
    """An OpenMeter that says this of the meter `tokens`; while it is asked, something may happen."""

    def __init__(self, tokens: int, meanwhile: Callable[[], Awaitable[None]] | None = None) -> None:
        self.tokens = tokens
        self.meanwhile = meanwhile
        self.asked = 0

    async def hourly(self, slug: str, start: datetime, end: datetime) -> dict[tuple[str, datetime], Decimal]:
        self.asked += slug == "tokens"
        if slug != "tokens":
            return {("acme", ELEVEN): Decimal(1)} if self.tokens else {}
        if self.meanwhile is not None:
            await self.meanwhile()
        return {("acme", ELEVEN): Decimal(self.tokens)} if self.tokens else {}

    async def stored(self, events: Sequence[Owed]) -> set[int]:
        return set()


async def deliver_all(pool: Pool) -> None:
    async with pool.connection() as connection:
        await connection.execute(
            "with gone as (delete from metering.outbox returning n)"
            " insert into metering.delivered (target, n) select 'openmeter', n from gone"
        )


async def test_a_difference_is_told_until_a_comparison_finds_none(ledger: Ledger, pool: Pool) -> None:
    """Rule: due after its time, by whoever compared last; a second writer does not ask again."""
    await ledger.apply([event(1)], [])
    await deliver_all(pool)
    clock, openmeter, metrics = ManualClock(ELEVEN), Says(0), Metrics(new_registry())

    def prover(metrics: Metrics) -> Prover:
        settlement = Settlement(pool, "openmeter")
        return Prover(pool, openmeter, settlement, every=timedelta(hours=1), clock=clock, metrics=metrics)

    def told(metrics: Metrics) -> tuple[float, float]:
        return metrics.reconciled._value.get(), metrics.differences._value.get()

    first, other = prover(metrics), Metrics(new_registry())
    second = prover(other)
    await first.look()
    assert (openmeter.asked, told(metrics)) == (0, (ELEVEN.timestamp(), 0))
    clock.advance(timedelta(hours=1))
    await first.look()
    await second.look()
    assert openmeter.asked == 1
    assert told(metrics) == told(other) == (clock.now().timestamp(), 2)  # tokens and calls
    openmeter.tokens = 10
    clock.advance(timedelta(hours=1))
    await second.look()
    await first.look()
    assert told(metrics) == told(other) == (clock.now().timestamp(), 0)
    kept = await Reconciliations(pool, "openmeter").last()
    assert kept is not None
    assert (kept.differences, kept.missing, kept.compared) == (0, 0, 2)


async def test_what_is_counted_while_openmeter_is_asked_is_no_difference(ledger: Ledger, pool: Pool) -> None:
    """Rule: an hour that the ledger speaks of otherwise afterwards is left for the next time."""
    await ledger.apply([event(1)], [])
    await deliver_all(pool)

    async def another() -> None:
        await ledger.apply([event(2, "e2")], [])
        await deliver_all(pool)

    span = {"start": ELEVEN - timedelta(hours=1), "end": ELEVEN + timedelta(hours=1)}
    settlement = Settlement(pool, "openmeter")
    report = await reconcile(pool, Says(20, another), settlement, **span, repair=True)
    assert (report.agrees, report.waiting, report.owed_again) == (True, 1, 0)
    report = await reconcile(pool, Says(30), settlement, **span, repair=False)
    assert {d.meter for d in report.differences} == {"tokens", "calls"}
