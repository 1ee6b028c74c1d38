"""Meters made, changed and ended one at a time, beside those of a file; who did it is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_common.errors import PermanentError
from kgents_metering.model.meters import Meter, parse
from kgents_metering.sinks.ledger.meter_changes import ROWS, Change, put, record
from kgents_metering.sinks.ledger.meters import EMPTY, LOCK_EXCLUSIVE, MeterInForce, current

_CHANGES = "select at, actor, action, slug, definition from metering.meter_change order by id desc limit %s"
_PROGRESS = """
select backfill_after, backfill_to from metering.meter where deleted_at is null and (slug = %s or ulid = %s)
"""


class NoMeterError(PermanentError):
    """There is no such meter in force."""


class MeterConflictError(PermanentError):
    """The slug is in use, or the meter is the file's to change."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A change of meters that was made."""

    at: datetime
    actor: str
    action: str
    slug: str
    definition: Mapping[str, Any]


class MeterEditing:
    """Edits the meters in force.

    Every method raises TransientError where Postgres is away; nothing is changed then.
    """

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def create(self, meter: Meter, actor: str) -> MeterInForce:
        """Put a new one in force; history is measured later.

        Raises:
            MeterConflictError: The slug is in use.
        """

        def as_new(own: list[Any]) -> Meter:
            if any(row[4] for row in own):
                raise MeterConflictError(f"the slug {meter.slug} is in use")
            return meter

        return await self._put(meter.slug, as_new, actor)

    async def update(self, name: str, change: Callable[[Meter], Meter], actor: str) -> MeterInForce:
        """Change what may change of one, by its slug or id. Another groupBy measures all history again.

        Raises:
            NoMeterError: There is none.
            MeterConflictError: It is declared in a file.
            ConfigurationError: It cannot be changed so.
        """

        def as_changed(own: list[Any]) -> Meter:
            return change(_editable(own, name))

        return await self._put(name, as_changed, actor)

    async def delete(self, name: str, actor: str) -> None:
        """End one, by its slug or id; its values stay and answer nothing.

        Raises:
            NoMeterError: There is none.
            MeterConflictError: It is declared in a file.
        """
        with transient_errors():
            async with self._pool.connection() as connection, connection.transaction():
                own = await _rows(connection, name)
                meter = _editable(own, name)
                await _end(connection, own)
                await record(connection, [Change("ended", meter)], actor)

    async def progress(self, name: str) -> tuple[int, int]:
        """How many events of how many were looked at for one, by its slug or id.

        Raises:
            NoMeterError: There is none.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                row = await (await connection.execute(_PROGRESS, [name, name])).fetchone()
        if row is None:
            raise NoMeterError(f"there is no meter {name}")
        return min(row[0], row[1]), row[1]

    async def changes(self, limit: int) -> list[Recorded]:
        """The newest changes of meters, by a file or by API."""
        with transient_errors():
            async with self._pool.connection() as connection:
                rows = await (await connection.execute(_CHANGES, [limit])).fetchall()
        return [Recorded(*row) for row in rows]

    async def _put(self, name: str, make: Callable[[list[Any]], Meter], actor: str) -> MeterInForce:
        with transient_errors():
            async with self._pool.connection() as connection, connection.transaction():
                own = await _rows(connection, name)
                meter = make(own)
                action = await put(connection, meter, own, origin="api")
                replaced = [row for row in own if bytes(row[2]) != meter.fingerprint]
                await _end(connection, replaced)
                await record(connection, [Change(action, meter)] if action else [], actor)
                return (await current(connection, EMPTY)).by_name[meter.slug]


async def _rows(connection: AsyncConnection, name: str) -> list[Any]:
    """Under the lock: all rows of the slug that `name` is, or is the id of."""
    await connection.execute(LOCK_EXCLUSIVE)
    rows = await (await connection.execute(ROWS)).fetchall()
    slugs = {row[1] for row in rows if row[4] and name in (row[1], row[5])} or {name}
    return [row for row in rows if row[1] in slugs]


def _editable(own: list[Any], name: str) -> Meter:
    active = [row for row in own if row[4]]
    if not active:
        raise NoMeterError(f"there is no meter {name}")
    if active[0][6] != "api":
        raise MeterConflictError(f"the meter {active[0][1]} is declared in the meters file: change it there")
    (meter,) = parse({"meters": [active[0][3]]})
    return meter


async def _end(connection: AsyncConnection, rows: list[Any]) -> None:
    await connection.execute(
        "update metering.meter set deleted_at = now() where id = any(%s) and deleted_at is null",
        [[row[0] for row in rows]],
    )
