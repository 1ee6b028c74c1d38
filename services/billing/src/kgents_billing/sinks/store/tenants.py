"""Which tenants are open, and which names wait for somebody to say that they are one; it opens none itself
but those a key names."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from kgents_common.crash import NEVER, CrashPoints
from kgents_common.database import transient_errors


@dataclass(frozen=True, slots=True)
class UnknownTenant:
    """A name that events gave and nobody opened."""

    named: str
    events: int
    since: datetime
    example: str


async def unknown_of(
    connection: AsyncConnection, names: Collection[str], knows: Callable[[str], bool] | None
) -> frozenset[str]:
    """Those of the names that are no open tenant's.

    Args:
        knows: Whether a key names it; None where every name is a tenant's.
    """
    strange = {name for name in names if knows is not None and not knows(name)}
    if not strange:
        return frozenset()
    found = await connection.execute("select name from billing.tenant where name = any(%s)", [list(strange)])
    return frozenset(strange - {row[0] for row in await found.fetchall()})


async def note_open(connection: AsyncConnection, names: Collection[str], *, opened_by: str = "key") -> None:
    """From now on these are open, whatever becomes of their keys."""
    await connection.execute(
        "insert into billing.tenant (name, opened_by) select name, %s from unnest(%s::text[]) as name"
        " order by name on conflict (name) do nothing",
        [opened_by, sorted(names)],
    )


class Tenants:
    """`billing.tenant`, and the names in the quarantine."""

    def __init__(
        self,
        pool: AsyncConnectionPool[AsyncConnection],
        knows: Callable[[str], bool] | None,
        *,
        crash_points: CrashPoints = NEVER,
    ) -> None:
        self._pool = pool
        self._crash_points = crash_points
        self._knows = knows

    async def is_open(self, name: str) -> bool:
        """Whether it is an open tenant.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                return not await unknown_of(connection, [name], self._knows)

    async def open(self, name: str) -> int:
        """An operator says that it is one; how many events that waited for that are tried again now."""
        with transient_errors():
            async with self._pool.connection() as connection, connection.transaction():
                await note_open(connection, [name], opened_by="operator")
                self._crash_points.reach("open.after_name")
                freed = await connection.execute(
                    "update billing.quarantine set next_at = now() where named = %s", [name]
                )
        self._crash_points.reach("open.after_commit")
        return freed.rowcount

    async def unknown(self) -> list[UnknownTenant]:
        """Names that events gave and nobody opened, the longest waiting first."""
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(UnknownTenant))
                await cursor.execute(
                    "select named, count(*) as events, min(first_at) as since, min(event_id) as example"
                    " from billing.quarantine where named is not null group by named order by min(first_at)"
                )
                return await cursor.fetchall()
