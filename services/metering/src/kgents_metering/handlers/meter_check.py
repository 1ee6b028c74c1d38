"""A process and the meters in force: it reads them, and says where its own file is another's.

Two releases with two files run side by side during every update. Were each to put its own in force when it
starts, they would take turns, and each turn measures all history again.
"""

from __future__ import annotations

import structlog
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.health import Check, Status
from kgents_metering.model.meters import Declared
from kgents_metering.sinks.ledger import meter_changes
from kgents_metering.sinks.ledger.meter_changes import Standing

HINT = "kgents-metering meters plan, then apply"
SHOWN_SLUGS = 5

_log = structlog.get_logger()


class MeterCheck:
    """Compares the declared meters with those in force, now and then."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], wanted: Declared) -> None:
        self._pool = pool
        self._wanted = wanted
        self._standing = Standing(0, ())

    async def begin(self) -> None:
        """Apply them to a ledger that never had any.

        Raises:
            TransientError: Postgres is away.
        """
        await meter_changes.begin(self._pool, self._wanted, actor="a metering process, at its first start")
        await self.look()

    async def look(self) -> bool:
        """Compare; False, as there is no more to do at once.

        Raises:
            TransientError: Postgres is away.
        """
        found = await meter_changes.standing(self._pool, self._wanted)
        if found.differing and found != self._standing:
            _log.warning("meters.file_differs", meters=found.differing[:SHOWN_SLUGS], hint=HINT)
        self._standing = found
        return False

    def check(self) -> Check:
        """For the health document."""
        differing = self._standing.differing
        if not differing:
            return Check(Status.OK)
        more = f" and {len(differing) - SHOWN_SLUGS} more" if len(differing) > SHOWN_SLUGS else ""
        slugs = ", ".join(differing[:SHOWN_SLUGS]) + more
        return Check(Status.DEGRADED, f"in force and in this process's file differ: {slugs}; {HINT}")
