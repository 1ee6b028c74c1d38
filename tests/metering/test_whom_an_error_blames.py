"""A batch that Postgres does not take: whether an event is to blame, and which."""

from __future__ import annotations

import time
from datetime import timedelta

from opentelemetry import trace
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import database
from kgents_common.clock import SystemClock
from kgents_common.crash import CrashPoints
from kgents_common.telemetry import new_registry
from kgents_metering.handlers.stream import Applier, AppliesBatches
from kgents_metering.metrics import Metrics
from kgents_metering.sinks.ledger.apply import Ledger

from .messages import EPOCH, event

Pool = AsyncConnectionPool[AsyncConnection]


class _Sleeps(CrashPoints):
    """A process that stands still once, right before a commit."""

    def __init__(self, seconds: float) -> None:
        super().__init__(None)
        self._seconds = seconds

    def reach(self, point: str) -> None:
        del point
        time.sleep(self._seconds)
        self._seconds = 0.0


def applier(ledger: AppliesBatches) -> Applier:
    """As metering puts it together, without a broker."""

    async def epoch_of(_: object) -> object:
        return EPOCH

    return Applier(
        ledger,
        epoch_of=epoch_of,  # type: ignore[arg-type]
        ack_wait=timedelta(seconds=30),
        metrics=Metrics(new_registry()),
        tracer=trace.get_tracer("test"),
        clock=SystemClock(),
        crash_points=CrashPoints(None),
    )


async def test_a_process_that_stood_still_blames_no_event_for_it(pool: Pool, database_url: str) -> None:
    """Rule: the server ended the session meanwhile (a machine that slept); the same event counts (P3)."""
    impatient = database.make_pool(database_url, application="test", statement_timeout_seconds=1)
    await impatient.open()
    try:
        ledger = Ledger(impatient, target="openmeter", stream="AGENTESE", crash_points=_Sleeps(1.5))
        outcome = await applier(ledger)._persist([event(1)], [])
    finally:
        await impatient.close()
    assert dict(outcome.counts) == {"accepted": 1, "dead": 0}


async def test_of_a_batch_the_one_that_cannot_be_stored_is_set_aside(pool: Pool, ledger: Ledger) -> None:
    """Rule: a defect of ours with one event costs that one, for an operator to replay, and no other (P0)."""
    async with pool.connection() as connection:
        await connection.execute("alter table metering.event add check (source <> 'agents/odd')")
    odd = [event(n, f"e{n}", source="agents/odd" if n == 3 else "agents/a1") for n in range(1, 6)]
    outcome = await applier(ledger)._persist(odd, [])
    assert (outcome.counts["accepted"], outcome.counts["dead"]) == (4, 1)
    async with pool.connection() as connection:
        rows = await connection.execute("select seq, code from metering.dead")
        assert await rows.fetchall() == [(3, "apply_failed")]
