"""What waits for its tenant, and what was set aside for an operator; neither is ever dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_common.errors import PermanentError

_WAITING = "event_id, type, customer, named, subject, body, epoch, seq, reason, first_at, tries, next_at"
_DEAD = "id, event_id, type, subject, body, epoch, seq, code, detail, at, state, settled_at, reason"
FIRST_WAIT = timedelta(seconds=5)
LONGEST_WAIT = timedelta(minutes=10)
# After so long an operator is asked whose it is.
PATIENCE = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A quarantined event."""

    event_id: str
    type: str
    customer: str | None
    named: str | None
    subject: str
    body: bytes
    epoch: datetime
    seq: int
    reason: str
    first_at: datetime
    tries: int
    next_at: datetime


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that was set aside."""

    id: int
    event_id: str | None
    type: str
    subject: str
    body: bytes
    epoch: datetime
    seq: int
    code: str
    detail: str
    at: datetime
    state: str
    settled_at: datetime | None
    reason: str | None


class Letters:
    """The quarantine and the dead letters."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def due(self, limit: int) -> list[Waiting]:
        """Quarantined events to try again now; each is put off, so that a second worker takes others.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(Waiting))
                await cursor.execute(
                    "update billing.quarantine set tries = tries + 1,"
                    " next_at = now() + least(%s, %s * power(2, least(tries, 20)))"
                    " where event_id in (select event_id from billing.quarantine where next_at <= now()"
                    " order by next_at, event_id limit %s for update skip locked)"
                    f" returning {_WAITING}".encode(),
                    [LONGEST_WAIT, FIRST_WAIT, limit],
                )
                return sorted(await cursor.fetchall(), key=lambda found: (found.epoch, found.seq))

    async def waiting(self, limit: int = 100) -> list[Waiting]:
        """Quarantined events, the oldest first."""
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(Waiting))
                await cursor.execute(
                    f"select {_WAITING} from billing.quarantine order by first_at limit %s".encode(), [limit]
                )
                return await cursor.fetchall()

    async def free(self, event_id: str) -> None:
        """Let go of an event that ended by another way meanwhile."""
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute("delete from billing.quarantine where event_id = %s", [event_id])

    async def give_up(self, found: Waiting, detail: str) -> None:
        """Make a dead letter of an event whose tenant nobody could say in time.

        A letter that was replayed, only to wait here again, is open again.
        """
        with transient_errors():
            async with self._pool.connection() as connection, connection.transaction():
                gone = await connection.execute(
                    "delete from billing.quarantine where event_id = %s", [found.event_id]
                )
                if gone.rowcount:
                    await connection.execute(
                        "insert into billing.dead (event_id, type, subject, body, epoch, seq, code, detail)"
                        " values (%s, %s, %s, %s, %s, %s, %s, %s) on conflict (epoch, seq) do update set"
                        " state = 'open', body = excluded.body, code = excluded.code,"
                        " detail = excluded.detail, settled_at = null, reason = null, mirrored = false",
                        [found.event_id, found.type, found.subject, found.body, found.epoch, found.seq,
                         found.reason, detail],
                    )  # fmt: skip

    async def find(
        self, *, state: str | None = "open", code: str | None = None, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        """Dead letters with these properties, in the order they came."""
        return await self._dead(
            "where (%s::text is null or state = %s) and (%s::text is null or code = %s) and id > %s"
            " order by id limit %s",
            [state, state, code, code, after, limit],
        )

    async def get(self, letter_id: int) -> DeadLetter:
        """One dead letter.

        Raises:
            PermanentError: There is none with this id.
        """
        found = await self._dead("where id = %s", [letter_id])
        if not found:
            raise PermanentError(f"no dead letter {letter_id}", hint="list them: kgents-billing dead list")
        return found[0]

    async def settle(self, letter_id: int, *, state: str, reason: str | None = None) -> None:
        """Note that an open letter was replayed or discarded.

        Raises:
            PermanentError: It is not open (any more).
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                settled = await connection.execute(
                    "update billing.dead set state = %s, settled_at = now(), reason = %s"
                    " where id = %s and state = 'open'",
                    [state, reason, letter_id],
                )
                if settled.rowcount == 0:
                    raise PermanentError(f"dead letter {letter_id} is not open")

    async def to_mirror(self, limit: int = 100) -> list[DeadLetter]:
        """Dead letters that the bus does not know of."""
        return await self._dead("where not mirrored order by id limit %s", [limit])

    async def mirrored(self, ids: Sequence[int]) -> None:
        """The bus knows of them."""
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute(
                    "update billing.dead set mirrored = true where id = any(%s)", [list(ids)]
                )

    async def counts(self) -> tuple[int, int]:
        """How many wait for their tenant, and how many for an operator."""
        with transient_errors():
            async with self._pool.connection() as connection:
                row = await (
                    await connection.execute(
                        "select (select count(*) from billing.quarantine),"
                        " (select count(*) from billing.dead where state = 'open')"
                    )
                ).fetchone()
        return (row[0], row[1]) if row else (0, 0)

    async def _dead(self, condition: str, values: Sequence[object]) -> list[DeadLetter]:
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(DeadLetter))
                await cursor.execute(f"select {_DEAD} from billing.dead {condition}".encode(), values)
                return await cursor.fetchall()
