"""What reconciliations have found, kept; it compares nothing."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors

KEPT_DAYS = 400


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """One comparison of the ledger with a target.

    Attributes:
        at: When it ended.
        start_hour: The first hour that was compared.
        end_hour: The hour after the last one.
    """

    at: datetime
    start_hour: datetime
    end_hour: datetime
    compared: int
    waiting: int
    differences: int
    missing: int
    owed_again: int
    stuck: int


class Reconciliations:
    """The reconciliations with one target."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], target: str) -> None:
        self._pool = pool
        self._target = target

    async def last(self) -> Reconciliation | None:
        """The newest; None where there was none.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(Reconciliation))
                await cursor.execute(
                    "select at, start_hour, end_hour, compared, waiting, differences, missing, owed_again,"
                    " stuck from metering.reconciliation where target = %s order by id desc limit 1",
                    [self._target],
                )
                return await cursor.fetchone()

    async def add(self, made: Reconciliation) -> None:
        """Keep one; those older than a year and a month leave.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute(
                    "insert into metering.reconciliation (target, at, start_hour, end_hour, compared,"
                    " waiting, differences, missing, owed_again, stuck)"
                    " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                    [self._target, *astuple(made)],
                )
                await connection.execute(
                    "delete from metering.reconciliation where at < now() - make_interval(days => %s)",
                    [KEPT_DAYS],
                )
