"""Facts that were told, as people look for them; it tells none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors

_FACT = """
select key, tenant, type, body ->> 'time' as time, (body #>> '{data,moves_minor}')::bigint as moves
from (select key, tenant, type, n, convert_from(body, 'UTF8')::jsonb as body from billing.fact
"""


@dataclass(frozen=True, slots=True)
class ToldFact:
    """A fact, without its body.

    Attributes:
        moves: What it adds to the money received, in minor units; None where it moves none.
    """

    key: str
    tenant: str
    type: str
    time: str
    moves: int | None


class ToldFacts:
    """Reads of `billing.fact`."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def of_tenant(self, tenant: str, limit: int) -> list[ToldFact]:
        """A tenant's facts, the latest first.

        Raises:
            TransientError: Postgres is away.
        """
        condition = "where tenant = %s order by n desc limit %s) as told order by n desc"
        return await self._select(condition, [tenant, limit])

    async def about(self, name: str) -> list[ToldFact]:
        """Facts whose data name an object, in the order they were made: every fact is read."""
        condition = (
            ") as told where exists (select 1 from jsonb_each_text(body -> 'data') as said"
            " where said.value = %s) order by n"
        )
        return await self._select(condition, [name])

    async def _select(self, condition: str, values: Sequence[object]) -> list[ToldFact]:
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(ToldFact))
                await cursor.execute(f"{_FACT} {condition}".encode(), values)
                return await cursor.fetchall()
