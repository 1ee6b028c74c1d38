"""Which sequences of the stream never reached the ledger; a gap may be a deleted message or a lost one."""

from __future__ import annotations

from datetime import datetime

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors

_GAPS = """
select epoch, lower(gap), upper(gap) - 1
from metering.cursor,
     unnest(int8multirange(int8range(1, upper(applied))) - applied) as gap
where stream = %s and not isempty(applied)
order by epoch, lower(gap)
"""


async def gaps(pool: AsyncConnectionPool[AsyncConnection], stream: str) -> list[tuple[datetime, int, int]]:
    """(epoch, first, last) of every run of sequences missing before the highest applied one.

    A message on its way to another worker, or waiting to be delivered again, shows here until it is applied.

    Raises:
        TransientError: Postgres is away.
    """
    with transient_errors():
        async with pool.connection() as connection:
            return await (await connection.execute(_GAPS, [stream])).fetchall()
