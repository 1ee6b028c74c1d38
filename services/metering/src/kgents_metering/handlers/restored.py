"""The guard that notices a ledger that came back from a dump, before anything is delivered from it.

What it then owes from before may have been delivered after the dump: a new generation makes the delivery ask
first. What it lacks comes again by `kgents-metering redeliver`; until then health and a metric say so.
"""

from __future__ import annotations

import asyncio

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.connection import Connection
from kgents_common.errors import KgentsError
from kgents_common.health import Check, Status
from kgents_common.streams import ConsumerSpec
from kgents_metering.handlers.positions import CONSUMERS, Behind, Positions
from kgents_metering.metrics import Metrics
from kgents_metering.sinks.ledger.generations import Generations

RETRY_SECONDS = 1.0
HINT = "kgents-metering redeliver has the streams delivered again from where the ledger is"

_log = structlog.get_logger()


class RestoreGuard:
    """A part that starts once the ledger was compared with its streams, and the work of comparing again."""

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection], connection: Connection, metrics: Metrics
    ) -> None:
        self._pool = pool
        self._connection = connection
        self._metrics = metrics
        self._behind: dict[str, Behind] = {}

    async def start(self) -> None:
        """Compare; waits for both neighbours, as nothing may be delivered before."""
        while True:
            try:
                await self.look()
                return
            except KgentsError as error:
                _log.warning("restore_guard.cannot_look", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def stop(self) -> None:
        """Nothing to end."""

    async def look(self) -> bool:
        """Compare once; False, as there is no more to do at once.

        Raises:
            KgentsError: Postgres or JetStream does not answer.
        """
        positions = Positions(self._pool, self._connection.client)
        for consumer in CONSUMERS:
            found = await positions.behind(consumer)
            self._metrics.ledger_behind.labels(consumer.name).set(found is not None)
            if found is None:
                self._behind.pop(consumer.name, None)
            elif consumer.name not in self._behind:
                generation = await Generations(self._pool).raise_(str(found))
                self._behind[consumer.name] = found
                _log.error("ledger.behind", detail=str(found), generation=generation.n, hint=HINT)
        return False

    def is_behind(self, consumer: ConsumerSpec) -> bool:
        """Whether the ledger was last seen to lack what this consumer acknowledged."""
        return consumer.name in self._behind

    def check(self) -> Check:
        """For the health document."""
        if not self._behind:
            return Check(Status.OK)
        return Check(Status.DEGRADED, "; ".join(map(str, self._behind.values())) + "; " + HINT)
