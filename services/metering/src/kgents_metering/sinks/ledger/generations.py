"""Generations of the ledger: raised whenever its rows may be older than what was delivered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors

# Postgres' clock and NATS' may differ, and what was under way when it was raised is asked for, too.
MARGIN_MINUTES = 10


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation.

    Attributes:
        asked_until: Of events that happened or were stored before this, the target is asked first.
    """

    n: int
    at: datetime
    asked_until: datetime
    reason: str


class Generations:
    """The generations of the ledger; a ledger that never came back has none."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def find(self) -> list[Generation]:
        """All of them, oldest first.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(Generation))
                await cursor.execute("select n, at, asked_until, reason from metering.generation order by n")
                return await cursor.fetchall()

    async def raise_(self, reason: str) -> Generation:
        """Begin a new one: from now on the target is asked for everything from before now.

        Raises:
            TransientError: Postgres is away; nothing is raised.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(Generation))
                await cursor.execute(
                    "insert into metering.generation (asked_until, reason)"
                    " values (now() + make_interval(mins => %s), %s) returning n, at, asked_until, reason",
                    [MARGIN_MINUTES, reason],
                )
                found = await cursor.fetchone()
        assert found is not None  # noqa: S101 an insert returns its row
        return found
