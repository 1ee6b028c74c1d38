"""What is owed to a target: taking what is due, noting attempts, marking deliveries; it sends nothing.

One process at a time delivers to a target. The lock alone could be lost unnoticed, so every write also
carries the epoch of the leadership it was made under, and an older one changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_common.errors import TransientError
from kgents_common.leadership import try_lead
from kgents_metering.model.wire import Owed

_DUE = """
select o.n, e.key, e.tenant, e.type, e.time, e.data, o.attempts, o.first_at, o.traceparent,
       coalesce(least(e.time, e.stored_at) <= (select max(asked_until) from metering.generation), false)
from metering.outbox o join metering.event e using (n)
where o.target = %(target)s and not o.poison and o.next_at <= now() and not o.n = any(%(busy)s::bigint[])
order by o.next_at, o.n limit %(limit)s
"""
_HELD = "exists (select 1 from metering.leader where name = %(name)s and epoch = %(epoch)s)"
_NOTE_ATTEMPT = f"""
update metering.outbox set attempts = attempts + 1, first_at = coalesce(first_at, now())
where target = %(target)s and n = any(%(n)s::bigint[]) and {_HELD}
"""
_PUT_OFF = f"""
update metering.outbox set next_at = now() + %(wait)s, last_code = %(code)s, last_detail = %(detail)s
where target = %(target)s and n = any(%(n)s::bigint[]) and {_HELD}
"""
_POISON = f"""
update metering.outbox set poison = true, last_code = %(code)s, last_detail = %(detail)s
where target = %(target)s and n = any(%(n)s::bigint[]) and {_HELD}
"""
_MARK = f"""
with gone as (
    delete from metering.outbox where target = %(target)s and n = any(%(n)s::bigint[]) and {_HELD} returning n
)
insert into metering.delivered (target, n) select %(target)s, n from gone on conflict do nothing
"""


class LostLeadershipError(TransientError):
    """Another process delivers now; what this one thought it did must be left to it."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How much is owed."""

    waiting: int
    poison: int
    oldest_age_seconds: float


class Outbox:
    """The outbox of one target, under one leadership."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], target: str) -> None:
        self._pool = pool
        self._target = target
        self._name = f"deliver:{target}"
        self._epoch = 0

    async def lead(self, connection: AsyncConnection, holder: str) -> bool:
        """Try to become the one that delivers, for as long as `connection` (in autocommit) lives."""
        with transient_errors():
            if not await try_lead(connection, self._name):
                return False
            raised = await (
                await connection.execute(
                    "insert into metering.leader as l (name, epoch, holder) values (%s, 1, %s)"
                    " on conflict (name) do update set epoch = l.epoch + 1, holder = excluded.holder,"
                    " at = now() returning epoch",
                    [self._name, holder],
                )
            ).fetchone()
            self._epoch = raised[0] if raised else 0
            return True

    async def due(self, limit: int, busy: Sequence[int]) -> list[Owed]:
        """What may be sent now, the longest due first, without what is under way (`busy`)."""
        with transient_errors():
            async with self._pool.connection() as connection:
                rows = await (
                    await connection.execute(
                        _DUE, {"target": self._target, "limit": limit, "busy": list(busy)}
                    )
                ).fetchall()
        return [Owed(row[0], bytes(row[1]), *row[2:]) for row in rows]

    async def note_attempt(self, events: Sequence[Owed]) -> None:
        """Remember, before it is sent, that it may have been.

        Raises:
            LostLeadershipError: Another process delivers; do not send.
        """
        await self._write(_NOTE_ATTEMPT, events)

    async def put_off(self, events: Sequence[Owed], wait: timedelta, code: int, detail: str) -> None:
        """Leave it alone for `wait`."""
        await self._write(_PUT_OFF, events, wait=wait, code=code, detail=_storable(detail))

    async def poison(self, events: Sequence[Owed], code: int, detail: str) -> None:
        """Set aside what the target refuses; it stays visible until an operator settles it."""
        await self._write(_POISON, events, code=code, detail=_storable(detail))

    async def mark(self, events: Sequence[Owed]) -> None:
        """It is delivered."""
        await self._write(_MARK, events)

    async def depth(self) -> Depth:
        """How much is owed and since when."""
        with transient_errors():
            async with self._pool.connection() as connection:
                row = await (
                    await connection.execute(
                        "select count(*) filter (where not poison), count(*) filter (where poison),"
                        " extract(epoch from now() - (select e.stored_at from metering.event e where e.n ="
                        " min(o.n) filter (where not o.poison)))"
                        " from metering.outbox o where target = %s",
                        [self._target],
                    )
                ).fetchone()
        if row is None:
            return Depth(0, 0, 0)
        return Depth(row[0], row[1], max(0.0, float(row[2] or 0)))

    async def _write(self, statement: str, events: Sequence[Owed], **values: object) -> None:
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = await connection.execute(
                    statement.encode(),
                    {
                        "target": self._target,
                        "n": [event.n for event in events],
                        "name": self._name,
                        "epoch": self._epoch,
                        **values,
                    },
                )
                if cursor.rowcount < len(events):
                    raise LostLeadershipError("outbox: another process delivers now")


def _storable(detail: str) -> str:
    return detail.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()[:1000]
