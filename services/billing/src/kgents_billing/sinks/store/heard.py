"""Every event that was heard of a thing, in the order Stripe made them, and what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors

# What waits or is dead is whole here: Stripe's second is in its body, where that is an event's.
_HEARD = """
select second, at, type, event_id, outcome from billing.applied where about && %(names)s
union all
select null, first_at, type, event_id, 'waits: ' || reason from billing.quarantine
where customer = any(%(names)s) or subscription = any(%(names)s) or waits_for && %(names)s
    or event_id = any(%(names)s)
union all
select null, at, type, coalesce(event_id, '-'), 'set aside: ' || code from billing.dead
where state = 'open' and exists (
    select from unnest(%(names)s) as name where position(convert_to('"' || name || '"', 'UTF8') in body) > 0
)
order by 1, 2, 4
"""
_NAMES = """
select %(name)s::text union select payment from billing.payment_name where id = %(name)s
union select id from billing.payment_name where payment in (
    select %(name)s::text union select payment from billing.payment_name where id = %(name)s
)
"""


@dataclass(frozen=True, slots=True)
class HeardEvent:
    """An event.

    Attributes:
        second: When Stripe made it; None for what waits, is dead, or was heard by the version before.
        at: When it was handled, or began to wait.
        outcome: `applied`, `ignored`, `dead`, or why it waits.
    """

    second: int | None
    at: datetime
    type: str
    event_id: str
    outcome: str


class Heard:
    """Reads of `billing.applied`, the quarantine and the dead letters."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def of(self, name: str) -> Sequence[HeardEvent]:
        """Every event about a thing, by its id, or by any name of its payment.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                names = [
                    row[0] for row in await (await connection.execute(_NAMES, {"name": name})).fetchall()
                ]
                cursor = connection.cursor(row_factory=class_row(HeardEvent))
                await cursor.execute(_HEARD, {"names": names})
                return await cursor.fetchall()
