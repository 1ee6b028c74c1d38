"""Dead letters in the ledger: found, settled, mirrored to the bus; none is ever deleted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_common.errors import PermanentError

_COLUMNS = """
    id, epoch, seq, subject, headers, body, code, detail, stored_at, at, state, settled_at, reason, replay_seq
"""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row."""

    id: int
    epoch: datetime
    seq: int
    subject: str
    headers: str
    body: bytes
    code: str
    detail: str
    stored_at: datetime
    at: datetime
    state: str
    settled_at: datetime | None
    reason: str | None
    replay_seq: int | None

    def header_map(self) -> dict[str, str]:
        """Its original headers."""
        found: dict[str, str] = msgspec.json.decode(self.headers, type=dict[str, str])
        return found


class DeadLetters:
    """The dead letters of the ledger."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def find(self, *, state: str | None, code: str | None, after: int, limit: int) -> list[DeadLetter]:
        """The letters with these properties, in the order they came, after the id `after`."""
        return await self._select(
            "where (%s::text is null or state = %s) and (%s::text is null or code = %s) and id > %s"
            " order by id limit %s",
            [state, state, code, code, after, limit],
        )

    async def get(self, letter_id: int) -> DeadLetter:
        """One letter.

        Raises:
            PermanentError: There is none with this id.
        """
        found = await self._select("where id = %s", [letter_id])
        if not found:
            raise PermanentError(f"no dead letter {letter_id}", hint="list them: kgents-metering dead list")
        return found[0]

    async def settle(
        self, letter_id: int, *, state: str, reason: str | None = None, replay_seq: int | None = None
    ) -> None:
        """Note that an open letter was replayed or discarded.

        Raises:
            PermanentError: It is not open (any more).
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = await connection.execute(
                    "update metering.dead set state = %s, settled_at = now(), reason = %s, replay_seq = %s"
                    " where id = %s and state = 'open'",
                    [state, reason, replay_seq, letter_id],
                )
                if cursor.rowcount == 0:
                    raise PermanentError(f"dead letter {letter_id} is not open")

    async def to_mirror(self, limit: int = 100) -> list[DeadLetter]:
        """Letters that are not yet on the bus."""
        return await self._select("where not mirrored order by id limit %s", [limit])

    async def mirrored(self, ids: list[int]) -> None:
        """They are on the bus."""
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute("update metering.dead set mirrored = true where id = any(%s)", [ids])

    async def count_open(self) -> int:
        """How many wait for an operator."""
        with transient_errors():
            async with self._pool.connection() as connection:
                row = await (
                    await connection.execute("select count(*) from metering.dead where state = 'open'")
                ).fetchone()
        return row[0] if row else 0

    async def _select(self, condition: str, values: list[object]) -> list[DeadLetter]:
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(DeadLetter))
                await cursor.execute(f"select {_COLUMNS} from metering.dead {condition}".encode(), values)
                return await cursor.fetchall()
