"""The delivery loop on a real outbox, against a target that answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from opentelemetry.trace import NoOpTracer
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.clock import SystemClock
from kgents_common.crash import CrashPoints
from kgents_common.resilience import CircuitState
from kgents_common.telemetry import new_registry
from kgents_metering.handlers.deliver import Deliverer
from kgents_metering.metrics import Metrics
from kgents_metering.model.delivery import Answer
from kgents_metering.model.wire import Owed
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.outbox import Outbox

from .messages import event

Pool = AsyncConnectionPool[AsyncConnection]


class FailsOver:
    """Takes everything but batches that hold one of these events."""

    def __init__(self, *failing: int, status: int = 500) -> None:
        self.failing = set(failing)
        self.status = status
        self.taken: set[int] = set()
        self.calls = 0

    async def send(self, events: Sequence[Owed], traceparent: str | None = None) -> Answer:
        self.calls += 1
        numbers = {one.n for one in events}
        if numbers & self.failing:
            return Answer(self.status, "told to")
        self.taken |= numbers
        return Answer(204)

    async def stored(self, events: Sequence[Owed]) -> set[int]:
        return {one.n for one in events} & self.taken


@asynccontextmanager
async def delivering(pool: Pool, target: FailsOver) -> AsyncIterator[Deliverer]:
    deliverer = Deliverer(
        Outbox(pool, "openmeter"),
        target,
        pool=pool,
        in_flight=4,
        dedupe_window=timedelta(days=32),
        holder="test",
        metrics=Metrics(new_registry()),
        tracer=NoOpTracer(),
        clock=SystemClock(),
        crash_points=CrashPoints(None),
    )
    await deliverer.start()
    try:
        yield deliverer
    finally:
        await deliverer.stop()


async def owed(pool: Pool) -> list[int]:
    async with pool.connection() as connection:
        rows = await (await connection.execute("select n from metering.outbox order by n")).fetchall()
    return [row[0] for row in rows]


async def test_one_event_that_fails_alone_holds_up_nobody(ledger: Ledger, pool: Pool) -> None:
    """Rule: after some attempts a batch is halved, and what fails alone does not open the circuit."""
    await ledger.apply([event(i, f"e{i}") for i in range(1, 101)], [])
    numbers = await owed(pool)
    target = FailsOver(numbers[37])
    async with delivering(pool, target) as deliverer, asyncio.timeout(60):
        while await owed(pool) != [numbers[37]]:
            await asyncio.sleep(0.05)
        # It is tried again and again, while what comes later passes.
        await ledger.apply([event(i, f"e{i}") for i in range(101, 201)], [])
        deliverer.wake()
        while await owed(pool) != [numbers[37]]:
            await asyncio.sleep(0.05)
        assert deliverer.breaker.state is CircuitState.CLOSED
        target.failing.clear()
        while await owed(pool):
            await asyncio.sleep(0.05)
    assert len(target.taken) == 200
