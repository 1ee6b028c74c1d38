"""What an operator does to the outbox: see what OpenMeter refuses, retry it, or let it go with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors


@dataclass(frozen=True, slots=True)
class Refused:
    """An event OpenMeter refused, and why."""

    n: int
    tenant: str
    type: str
    time: datetime
    attempts: int
    last_code: int | None
    last_detail: str | None


class Settlement:
    """The refused part of one target's outbox."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], target: str) -> None:
        self._pool = pool
        self._target = self.target = target

    async def refused(self, limit: int) -> list[Refused]:
        """What is set aside, oldest first."""
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(Refused))
                await cursor.execute(
                    "select o.n, e.tenant, e.type, e.time, o.attempts, o.last_code, o.last_detail"
                    " from metering.outbox o join metering.event e using (n)"
                    " where o.target = %s and o.poison order by o.n limit %s",
                    [self._target, limit],
                )
                return await cursor.fetchall()

    async def retry(self, numbers: Sequence[int]) -> int:
        """Put refused events (all of them where none is named) back into delivery; how many."""
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = await connection.execute(
                    "update metering.outbox set poison = false, next_at = now()"
                    " where target = %s and poison and (%s::bigint[] = '{}' or n = any(%s::bigint[]))",
                    [self._target, list(numbers), list(numbers)],
                )
                return cursor.rowcount

    async def forgo(self, numbers: Sequence[int], reason: str) -> int:
        """Give up delivering refused events; they stay counted here, and the reason is kept. How many."""
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = await connection.execute(
                    "with gone as (delete from metering.outbox where target = %s and poison"
                    " and n = any(%s::bigint[]) returning n)"
                    " insert into metering.forgone (target, n, reason) select %s, n, %s from gone",
                    [self._target, list(numbers), self._target, reason],
                )
                return cursor.rowcount

    async def owe_again(self, numbers: Sequence[int]) -> int:
        """Owe delivered events again, OpenMeter not having them; it is asked before a resend. How many."""
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = await connection.execute(
                    "with gone as (delete from metering.delivered where target = %s"
                    " and n = any(%s::bigint[]) returning n)"
                    " insert into metering.outbox (target, n, first_at) select %s, n, 'epoch' from gone"
                    " on conflict do nothing",
                    [self._target, list(numbers), self._target],
                )
                return cursor.rowcount
