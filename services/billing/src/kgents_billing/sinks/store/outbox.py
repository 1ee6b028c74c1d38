"""Facts owed to the bus: taken, given to whoever publishes, and marked; it sends nothing itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from kgents_common.crash import CrashPoints
from kgents_common.database import transient_errors


@dataclass(frozen=True, slots=True)
class Owed:
    """A fact that the bus may not have yet."""

    n: int
    key: str
    subject: str
    body: bytes
    traceparent: str | None
    made_at: datetime
    age_seconds: float


Publish = Callable[[Sequence[Owed]], Awaitable[Sequence[int]]]


class Outbox:
    """The facts without `published_at`."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], crash_points: CrashPoints) -> None:
        self._pool = pool
        self._crash_points = crash_points

    async def drain(self, publish: Publish, limit: int = 200) -> tuple[int, int]:
        """Publish what is owed, oldest first.

        Rows stay locked until they are marked: several workers publish different ones. A worker that dies
        leaves its rows owed.

        Args:
            publish: Publishes and returns the numbers of those that are stored.

        Returns:
            How many were taken, and how many of them are on the bus now.

        Raises:
            TransientError: Postgres is away; what was published is owed still, and found on the bus later.
        """
        with transient_errors():
            async with self._pool.connection() as connection, connection.transaction():
                cursor = connection.cursor(row_factory=class_row(Owed))
                await cursor.execute(
                    "select n, key, subject, body, traceparent, made_at,"
                    " extract(epoch from clock_timestamp() - made_at)::float8 as age_seconds"
                    " from billing.fact where published_at is null order by n limit %s"
                    " for update skip locked",
                    [limit],
                )
                owed = await cursor.fetchall()
                if not owed:
                    return 0, 0
                self._crash_points.reach("publish.before_send")
                stored = await publish(owed)
                self._crash_points.reach("publish.after_send")
                await connection.execute(
                    "update billing.fact set published_at = now() where n = any(%s)", [list(stored)]
                )
        self._crash_points.reach("publish.after_mark")
        return len(owed), len(stored)

    async def depth(self) -> tuple[int, float]:
        """How many facts are owed, and the age of the oldest in seconds."""
        with transient_errors():
            async with self._pool.connection() as connection:
                row = await (
                    await connection.execute(
                        "select count(*), coalesce(extract(epoch from now() - min(made_at)), 0)::float8"
                        " from billing.fact where published_at is null"
                    )
                ).fetchone()
        return (row[0], row[1]) if row else (0, 0.0)
