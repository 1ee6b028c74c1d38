"""Conflicts in the ledger: messages that contradict an event that was counted; kept, never counted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_common.errors import PermanentError

_COLUMNS = """
select c.id, c.epoch, c.seq, coalesce(c.stored_at, c.epoch) as stored_at, c.at, c.body,
       e.tenant, e.source, e.ce_id, e.type as counted_type,
       e.time as counted_time, e.data as counted_data, e.seq as counted_seq, e.epoch as counted_epoch
from metering.conflict c join metering.event e using (n)
"""


@dataclass(frozen=True, slots=True)
class Conflict:
    """One message that was not counted, and the event that was, under the same tenant, source and id.

    Attributes:
        epoch: When the stream was created that `seq` counts in.
        stored_at: When JetStream stored it; with `seq`, which message it is.
        at: When it was found.
        body: The message as it was stored.
        ce_id: The id that both have.
    """

    id: int
    epoch: datetime
    seq: int
    stored_at: datetime
    at: datetime
    body: bytes
    tenant: str
    source: str
    ce_id: str
    counted_type: str
    counted_time: datetime
    counted_data: str
    counted_seq: int
    counted_epoch: datetime


class Conflicts:
    """The conflicts of the ledger."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def find(
        self, *, tenant: str | None = None, source: str | None = None, after: int = 0, limit: int = 100
    ) -> list[Conflict]:
        """Those of a tenant and source (of all where None), in the order they were found, after an id.

        Raises:
            TransientError: Postgres is away.
        """
        return await self._select(
            "where (%s::text is null or e.tenant = %s) and (%s::text is null or e.source = %s) and c.id > %s"
            " order by c.id limit %s",
            [tenant, tenant, source, source, after, limit],
        )

    async def get(self, conflict_id: int, *, tenant: str | None = None) -> Conflict:
        """One, where it is this tenant's or none is named.

        Raises:
            PermanentError: There is none with this id.
            TransientError: Postgres is away.
        """
        found = await self._select(
            "where c.id = %s and (%s::text is null or e.tenant = %s)", [conflict_id, tenant, tenant]
        )
        if not found:
            raise PermanentError(
                f"no conflict {conflict_id}", hint="list them: kgents-metering conflicts list"
            )
        return found[0]

    async def _select(self, condition: str, values: list[object]) -> list[Conflict]:
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(Conflict))
                await cursor.execute(f"{_COLUMNS} {condition}".encode(), values)
                return await cursor.fetchall()
