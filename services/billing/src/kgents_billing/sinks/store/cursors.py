"""How far polls have come, and what is old enough to be forgotten; it asks nobody but Postgres."""

from __future__ import annotations

from datetime import timedelta

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors

# Stripe delivers for days and EVENTS keeps 35; facts' keys, which are kept for ever, stand behind this.
REMEMBERED = timedelta(days=90)


class Cursors:
    """`billing.cursor`."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def get(self, name: str) -> int | None:
        """A poll's second; None before its first.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                row = await (
                    await connection.execute("select second from billing.cursor where name = %s", [name])
                ).fetchone()
        return row[0] if row else None

    async def advance(self, name: str, second: int) -> None:
        """Note how far a poll came; never back.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute(
                    "insert into billing.cursor as c (name, second) values (%s, %s)"
                    " on conflict (name) do update set second = greatest(c.second, excluded.second),"
                    " updated_at = now()",
                    [name, second],
                )

    async def replace(self, name: str, expected: int | None, second: int) -> None:
        """Note a poll's end, unless somebody asked for another one since `expected` was read.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute(
                    "insert into billing.cursor as c (name, second) values (%s, %s)"
                    " on conflict (name) do update set second = excluded.second, updated_at = now()"
                    " where c.second = %s",
                    [name, second, expected],
                )

    async def forget(self) -> int:
        """Forget which events of long ago were applied; how many."""
        with transient_errors():
            async with self._pool.connection() as connection:
                gone = await connection.execute(
                    "delete from billing.applied where at < now() - %s", [REMEMBERED]
                )
                return gone.rowcount


class Backfills:
    """`billing.backfill`: how far each list was taken."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def of(self, kind: str, since: int) -> tuple[str | None, bool]:
        """After which object to go on, and whether there is nothing left; another day begins anew.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                found = await connection.execute(
                    "insert into billing.backfill as b (kind, since) values (%s, %s)"
                    " on conflict (kind) do update set since = excluded.since,"
                    " after = case when b.since = excluded.since then b.after end,"
                    " is_done = b.is_done and b.since <= excluded.since"
                    " returning after, is_done",
                    [kind, since],
                )
                row = await found.fetchone()
        return (row[0], row[1]) if row else (None, False)

    async def note(self, kind: str, after: str | None, *, seen: int, told: int, skipped: int) -> None:
        """A page is done.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute(
                    "update billing.backfill set after = %s, seen = seen + %s, told = told + %s,"
                    " skipped = skipped + %s, updated_at = now() where kind = %s",
                    [after, seen, told, skipped, kind],
                )

    async def done(self, kind: str) -> None:
        """A list is taken to its end."""
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute(
                    "update billing.backfill set is_done = true, updated_at = now() where kind = %s", [kind]
                )
