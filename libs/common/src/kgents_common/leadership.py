"""One process of many does a thing: whoever holds an advisory lock of Postgres; it ends with a connection.

It fences nothing: a leader that lost its connection may not know yet. What it writes decides by keys, or
carries a number of its own (metering's outbox).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors


async def try_lead(connection: AsyncConnection, name: str) -> bool:
    """Whether the lock `kgents.<name>` is this connection's (in autocommit) now, for as long as it lives.

    Raises:
        psycopg.Error: Postgres does not answer.
    """
    row = await (
        await connection.execute("select pg_try_advisory_lock(hashtextextended(%s, 0))", [f"kgents.{name}"])
    ).fetchone()
    return bool(row and row[0])


@asynccontextmanager
async def leadership(pool: AsyncConnectionPool[AsyncConnection], name: str) -> AsyncIterator[bool]:
    """Whether this process is the one that does `name` while the body runs.

    Args:
        name: With its schema, e.g. `billing.poll`.

    Raises:
        TransientError: Postgres does not answer.
    """
    with transient_errors():
        async with pool.connection() as connection:
            await connection.set_autocommit(True)
            is_leader = await try_lead(connection, name)
            try:
                yield is_leader
            finally:
                if is_leader and not connection.closed:
                    await connection.execute(
                        "select pg_advisory_unlock(hashtextextended(%s, 0))", [f"kgents.{name}"]
                    )
                await connection.set_autocommit(False)
