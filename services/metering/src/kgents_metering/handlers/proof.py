"""The bill is proved every hour, and whenever an operator asks; what was found is kept and told.

It repairs nothing by itself: why an event is missing is for a person to know before it is sent again.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.clock import Clock
from kgents_common.leadership import leadership
from kgents_metering.handlers.reconcile import Asked, Report, reconcile
from kgents_metering.metrics import Metrics
from kgents_metering.sinks.ledger.reconciliations import Reconciliation, Reconciliations
from kgents_metering.sinks.ledger.settlement import Settlement

# Of an hour that was right, late events may make a wrong one: two days are looked at each time.
HOURS = 48

Pool = AsyncConnectionPool[AsyncConnection]
_log = structlog.get_logger()


async def prove(
    pool: Pool, openmeter: Asked, settlement: Settlement, *, hours: int, now: datetime, repair: bool
) -> Report:
    """Reconcile the last hours, the current one included, and keep what was found.

    Raises:
        TransientError: Postgres or OpenMeter does not answer; what was repaired so far stays repaired.
    """
    end = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    start = end - timedelta(hours=hours)
    report = await reconcile(pool, openmeter, settlement, start=start, end=end, repair=repair)
    await Reconciliations(pool, settlement.target).add(
        Reconciliation(
            at=now,
            start_hour=start,
            end_hour=end,
            compared=report.compared,
            waiting=report.waiting,
            differences=len(report.differences),
            missing=report.missing,
            owed_again=report.owed_again,
            stuck=report.stuck,
        )
    )
    return report


class Prover:
    """Reconciles when the last time is long ago, whoever did it, as a round's work of one of the writers.

    Args:
        every: How long a reconciliation is good for.
    """

    def __init__(
        self,
        pool: Pool,
        openmeter: Asked,
        settlement: Settlement,
        *,
        every: timedelta,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._pool = pool
        self._openmeter = openmeter
        self._settlement = settlement
        self._every = every
        self._clock = clock
        self._metrics = metrics
        self._kept = Reconciliations(pool, settlement.target)
        self._begun = clock.now()

    async def look(self) -> bool:
        """Reconcile if it is due; False, as there is no more to do at once.

        Raises:
            TransientError: Postgres or OpenMeter does not answer.
        """
        if await self._is_due():
            async with leadership(self._pool, "metering.reconcile") as is_ours:
                if is_ours and await self._is_due():
                    await self._prove()
                    await self._is_due()
        return False

    async def _is_due(self) -> bool:
        last = await self._kept.last()
        at = last.at if last else self._begun
        self._metrics.reconciled.set(at.timestamp())
        self._metrics.differences.set(last.differences if last else 0)
        self._metrics.missing.set(last.missing - last.owed_again if last else 0)
        return self._clock.now() - at >= self._every

    async def _prove(self) -> None:
        now = self._clock.now()
        report = await prove(
            self._pool, self._openmeter, self._settlement, hours=HOURS, now=now, repair=False
        )
        say = _log.info if report.agrees else _log.error
        say(
            "reconcile.done",
            compared=report.compared,
            waiting=report.waiting,
            differences=len(report.differences),
            missing=report.missing,
            stuck=report.stuck,
        )
