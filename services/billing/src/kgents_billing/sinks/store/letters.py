"""What waits for its tenant, and what was set aside for an operator; neither is ever dropped."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from kgents_common import dead_letters
from kgents_common.database import transient_errors
from kgents_common.dead_letters import Burial, DeadLetters, bury
from kgents_common.stored_message import StoredMessage
from kgents_common.subjects import EVENTS

_WAITING = (
    "event_id, type, customer, named, subject, body, epoch, seq, stored_at, reason, first_at, tries, next_at"
)
FIRST_WAIT = timedelta(seconds=5)
LONGEST_WAIT = timedelta(minutes=10)
# After so long an operator is asked whose it is.
PATIENCE = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A quarantined event.

    Attributes:
        stored_at: When JetStream stored its message; None where a version before did not keep it.
    """

    event_id: str
    type: str
    customer: str | None
    named: str | None
    subject: str
    body: bytes
    epoch: datetime
    seq: int
    stored_at: datetime | None
    reason: str
    first_at: datetime
    tries: int
    next_at: datetime

    def message(self) -> StoredMessage:
        """The stored message it came with."""
        return StoredMessage(
            subject=self.subject,
            headers={},
            body=bytes(self.body),
            epoch=self.epoch,
            seq=self.seq,
            stored_at=self.stored_at or self.epoch,
            stream=EVENTS,
        )


@dataclass(frozen=True, slots=True)
class DeadLetter(dead_letters.DeadLetter):
    """An event that was set aside."""

    event_id: str | None
    type: str


class Letters(DeadLetters[DeadLetter]):
    """The quarantine and the dead letters."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        super().__init__(pool, "billing", DeadLetter)

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

    async def give_up(self, found: Waiting, code: str, detail: str) -> None:
        """Make a dead letter of an event that waits no longer.

        A letter that was replayed, only to wait here again, is open again.
        """
        with transient_errors():
            async with self._pool.connection() as connection, connection.transaction():
                gone = await connection.execute(
                    "delete from billing.quarantine where event_id = %s", [found.event_id]
                )
                if gone.rowcount:
                    burial = Burial(
                        found.message(),
                        code,
                        detail,
                        {"event_id": found.event_id, "type": found.type},
                    )
                    await bury(connection, "billing", [burial], reopen=True)

    async def fails_by(self, letter_id: int, code: str, detail: str) -> None:
        """Note why an open letter cannot be handled now, where that is not why it was set aside.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute(
                    "update billing.dead set code = %s, detail = %s where id = %s and state = 'open'",
                    [code, detail, letter_id],
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
