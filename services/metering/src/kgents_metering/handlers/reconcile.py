"""Proving the bill: ledger and OpenMeter compared by tenant, meter and hour, and what is missing owed again.

What is still in the outbox is not a difference: it is on its way. Nothing is sent from here; an event that
OpenMeter does not have goes back into the outbox marked as sent long ago, so the delivery asks OpenMeter for
it once more before it sends it, and cannot double it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_metering.model.wire import Owed
from kgents_metering.sinks.ledger.settlement import Settlement

CHUNK = 1000
# OpenMeter adds float64 numbers by default: a sum of many may differ in the last digits without an event
# being missing (OpenMeter `aggregation.enableDecimalPrecision`).
RELATIVE_TOLERANCE = 1e-9

# SUM and COUNT tell a missing event by their value; the other aggregations follow from the same events.
_HOURS = """
select m.slug, m.definition->>'eventType', r.tenant, date_trunc('hour', r.minute) as hour,
       case m.definition->>'aggregation' when 'COUNT' then sum(r.cnt) else sum(r.sum) end
from metering.rollup r join metering.meter m on m.id = r.meter
where m.deleted_at is null and m.definition->>'aggregation' in ('SUM', 'COUNT')
  and r.minute >= %s and r.minute < %s
group by 1, 2, 3, 4, m.definition->>'aggregation'
order by 3, 1, 4
"""
_WAITING = """
select distinct e.tenant, e.type, date_trunc('hour', e.time)
from metering.outbox o join metering.event e using (n) where e.time >= %s and e.time < %s
"""
_DELIVERED = """
select e.n, e.key, e.tenant, e.type, e.time, e.data, 0, null::timestamptz, null::text
from metering.event e join metering.delivered d using (n)
where e.tenant = %s and e.type = %s
  and e.time >= %s and e.time < %s::timestamptz + interval '1 hour' and e.n > %s
order by e.n limit %s
"""


class Asked(Protocol):
    """OpenMeter, as reconciliation needs it."""

    async def stored(self, events: list[Owed]) -> set[int]:
        """Which of these it has."""

    async def hourly(self, slug: str, subject: str, start: datetime, end: datetime) -> dict[datetime, float]:
        """A meter's value by hour for one subject."""


@dataclass(frozen=True, slots=True)
class Difference:
    """An hour on which the two do not agree."""

    tenant: str
    meter: str
    hour: datetime
    ledger: Decimal
    openmeter: Decimal


@dataclass(slots=True)
class Report:
    """What was compared and found."""

    compared: int = 0
    waiting: int = 0
    differences: list[Difference] = field(default_factory=list)
    missing: int = 0
    owed_again: int = 0

    @property
    def agrees(self) -> bool:
        """Whether every compared hour is equal."""
        return not self.differences

    def lines(self) -> list[str]:
        """For a terminal."""
        found = [
            f"{d.tenant}  {d.meter}  {d.hour:%Y-%m-%dT%H:00Z}  ledger {d.ledger}  openmeter {d.openmeter}"
            for d in self.differences
        ]
        found.append(
            f"{self.compared} hours compared, {self.waiting} with deliveries under way,"
            f" {len(self.differences)} differ, {self.missing} events missing, {self.owed_again} owed again"
        )
        return found


async def reconcile(
    pool: AsyncConnectionPool[AsyncConnection],
    openmeter: Asked,
    settlement: Settlement,
    *,
    start: datetime,
    end: datetime,
    repair: bool,
) -> Report:
    """Compare every hour from `start` to `end`, whole hours; with `repair`, owe again what is missing.

    Raises:
        TransientError: Postgres or OpenMeter does not answer; what was repaired so far stays repaired.
    """
    report = Report()
    with transient_errors():
        async with pool.connection() as connection:
            hours = await (await connection.execute(_HOURS, [start, end])).fetchall()
            waiting = set(await (await connection.execute(_WAITING, [start, end])).fetchall())
    report.waiting = len(waiting)
    theirs: dict[tuple[str, str], dict[datetime, float]] = {}
    for slug, event_type, tenant, hour, value in hours:
        if (tenant, event_type, hour) in waiting:
            continue
        if (tenant, slug) not in theirs:
            theirs[tenant, slug] = await openmeter.hourly(slug, tenant, start, end)
        ours, other = Decimal(value or 0), Decimal(repr(theirs[tenant, slug].get(hour, 0)))
        report.compared += 1
        if abs(ours - other) <= abs(ours) * Decimal(RELATIVE_TOLERANCE):
            continue
        report.differences.append(Difference(tenant, slug, hour, ours, other))
        await _find_missing(pool, openmeter, settlement, report, (tenant, event_type, hour), repair=repair)
    return report


async def _find_missing(
    pool: AsyncConnectionPool[AsyncConnection],
    openmeter: Asked,
    settlement: Settlement,
    report: Report,
    where: tuple[str, str, datetime],
    *,
    repair: bool,
) -> None:
    tenant, event_type, hour = where
    after = 0
    while True:
        with transient_errors():
            async with pool.connection() as connection:
                rows = await (
                    await connection.execute(_DELIVERED, [tenant, event_type, hour, hour, after, CHUNK])
                ).fetchall()
        events = [Owed(row[0], bytes(row[1]), *row[2:]) for row in rows]
        if not events:
            return
        stored = await openmeter.stored(events)
        missing = [event.n for event in events if event.n not in stored]
        report.missing += len(missing)
        if repair and missing:
            report.owed_again += await settlement.owe_again(missing)
        after = events[-1].n
