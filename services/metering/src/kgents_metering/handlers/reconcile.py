"""Proving the bill: ledger and OpenMeter compared by tenant, meter and hour, and what is missing owed again.

Compared is every hour that either of the two has. What is on its way to OpenMeter is not a difference: an
hour of which events are owed that came lately is left for the next time. What stays undelivered (refused,
given up, or owed for long) is asked for, one by one, and taken out of what is expected, and nothing else is.

Nothing is sent from here; an event that OpenMeter does not have goes back into the outbox marked as sent long
ago, so the delivery asks OpenMeter for it once more before it sends it, and cannot double it.

While the two are asked, events are counted and delivered: an hour that differs is a difference only if the
ledger says the same of it afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Protocol

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_metering.model.measure import Sample
from kgents_metering.model.meters import Aggregation
from kgents_metering.model.reconciliation import NOTHING, Expected
from kgents_metering.model.wire import Owed
from kgents_metering.sinks.ledger.meters import EMPTY, MeterInForce, current
from kgents_metering.sinks.ledger.settlement import Settlement

CHUNK = 1000
# What is owed, not refused, and younger than this is on its way.
ON_ITS_WAY_MINUTES = 10
# More than so many undelivered events in an hour are a target that is away, not events that are stuck.
MAX_STUCK = 10_000

# SUM and COUNT tell a missing event by their value; the other aggregations follow from the same events.
_HOURS = """
select r.meter, r.tenant, date_trunc('hour', r.minute), sum(r.cnt), sum(r.sum),
       greatest(abs(min(r.min)), abs(max(r.max))), coalesce(max(scale(r.sum)), 0) = 0
from metering.rollup r where r.meter = any(%s) and r.minute >= %s and r.minute < %s
group by 1, 2, 3
"""
_UNDELIVERED = """
select e.tenant, e.type, date_trunc('hour', e.time) as hour, count(*),
       bool_or(o.n is not null and not o.poison and e.stored_at > now() - make_interval(mins => %(minutes)s))
from metering.event e
left join metering.outbox o on o.n = e.n and o.target = %(target)s
left join metering.forgone f on f.n = e.n and f.target = %(target)s
where e.time >= %(start)s and e.time < %(end)s and (o.n is not null or f.n is not null)
group by 1, 2, 3
"""
_STUCK = """
select e.n, e.key, e.tenant, e.type, e.time, e.data, 0, null::timestamptz, null::text
from metering.event e
left join metering.outbox o on o.n = e.n and o.target = %(target)s
left join metering.forgone f on f.n = e.n and f.target = %(target)s
where e.tenant = %(tenant)s and e.type = %(type)s and e.time >= %(hour)s
  and e.time < %(hour)s::timestamptz + interval '1 hour' and (o.n is not null or f.n is not null)
order by e.n
"""
_DELIVERED = """
select e.n, e.key, e.tenant, e.type, e.time, e.data, 0, null::timestamptz, null::text
from metering.event e join metering.delivered d on d.n = e.n and d.target = %(target)s
where e.tenant = %(tenant)s and e.type = %(type)s and e.time >= %(hour)s
  and e.time < %(hour)s::timestamptz + interval '1 hour' and e.n > %(after)s
order by e.n limit %(limit)s
"""
_DATA = msgspec.json.Decoder(float_hook=Decimal)

Pool = AsyncConnectionPool[AsyncConnection]
Place = tuple[str, str, datetime]


class Asked(Protocol):
    """OpenMeter, as reconciliation needs it."""

    async def stored(self, events: Sequence[Owed]) -> set[int]:
        """Which of these it has."""

    async def hourly(self, slug: str, start: datetime, end: datetime) -> dict[tuple[str, datetime], Decimal]:
        """A meter's value by subject and hour."""


@dataclass(frozen=True, slots=True)
class Difference:
    """An hour on which the two do not agree; `ledger` is what OpenMeter should say."""

    tenant: str
    meter: str
    hour: datetime
    ledger: Decimal
    openmeter: Decimal


@dataclass(slots=True)
class Report:
    """What was compared and found.

    Attributes:
        waiting: Hours of a tenant and type that were left out, deliveries being under way.
        stuck: Events that are not delivered and that OpenMeter does not have.
    """

    compared: int = 0
    waiting: int = 0
    stuck: int = 0
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
            f" {len(self.differences)} differ, {self.missing} events missing, {self.owed_again} owed again,"
            f" {self.stuck} refused or stuck"
        )
        return found


async def reconcile(
    pool: Pool, openmeter: Asked, settlement: Settlement, *, start: datetime, end: datetime, repair: bool
) -> Report:
    """Compare every hour from `start` to `end`, whole hours; with `repair`, owe again what is missing.

    Raises:
        TransientError: Postgres or OpenMeter does not answer; what was repaired so far stays repaired.
    """
    report = Report()
    ledger = _Ledger(pool, settlement.target, start, end)
    await ledger.read()
    moved: set[Place] = set()
    found_different: list[tuple[MeterInForce, Place, Difference]] = []
    for found in ledger.meters:
        theirs = await openmeter.hourly(found.meter.slug, start, end)
        for tenant, hour in sorted({*ledger.hours[found.id], *theirs}):
            place = (tenant, found.meter.event_type, hour)
            if place in ledger.waiting:
                continue
            expected = ledger.hours[found.id].get((tenant, hour), NOTHING)
            if place in ledger.stuck:
                expected = expected.without(await ledger.not_there(place, found, openmeter))
            other = theirs.get((tenant, hour), Decimal(0))
            report.compared += 1
            if expected.agrees(other):
                continue
            difference = Difference(tenant, found.meter.slug, hour, expected.value, other)
            found_different.append((found, place, difference))
    if found_different:
        afterwards = _Ledger(pool, settlement.target, start, end)
        await afterwards.read()
        moved = {
            place
            for found, place, _ in found_different
            if ledger.said_of(found, place) != afterwards.said_of(found, place)
        }
    looked_for: set[Place] = set()
    for _, place, difference in found_different:
        if place in moved:
            continue
        report.differences.append(difference)
        if place not in looked_for:  # another meter of the same events has found them
            looked_for.add(place)
            await _find_missing(pool, openmeter, settlement, report, place, repair=repair)
    report.waiting = len(ledger.waiting | moved)
    report.stuck = sum(len(events) for events in ledger.absent.values())
    return report


class _Ledger:
    """What the ledger has of a span of hours.

    Attributes:
        hours: By meter, what OpenMeter should say of a tenant's hour.
        waiting: Places that are left out.
        stuck: Places that have undelivered events, and how many.
        absent: Of these places, once asked for, the events that OpenMeter does not have.
    """

    def __init__(self, pool: Pool, target: str, start: datetime, end: datetime) -> None:
        self._pool = pool
        self._values = {"target": target, "start": start, "end": end, "minutes": ON_ITS_WAY_MINUTES}
        self.meters: list[MeterInForce] = []
        self.hours: dict[int, dict[tuple[str, datetime], Expected]] = {}
        self.waiting: set[Place] = set()
        self.stuck: dict[Place, int] = {}
        self.absent: dict[Place, list[Owed]] = {}

    async def read(self) -> None:
        """All of it, as of one moment."""
        with transient_errors():
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute("set transaction isolation level repeatable read")
                every = (await current(connection, EMPTY)).by_type.values()
                summed = (Aggregation.SUM, Aggregation.COUNT)
                self.meters = [
                    m for of_type in every for m in of_type if m.is_ready and m.meter.aggregation in summed
                ]
                self.meters.sort(key=lambda m: m.meter.slug)
                self.hours = {m.id: {} for m in self.meters}
                is_count = {m.id: m.meter.aggregation is Aggregation.COUNT for m in self.meters}
                span = [list(self.hours), self._values["start"], self._values["end"]]
                rows = await (await connection.execute(_HOURS, span)).fetchall()
                undelivered = await (await connection.execute(_UNDELIVERED, self._values)).fetchall()
        for meter, tenant, hour, count, value, largest, is_integral in rows:
            self.hours[meter][tenant, hour] = (
                Expected(Decimal(count), int(count), Decimal(1), True)
                if is_count[meter]
                else Expected(value or Decimal(0), int(count), largest or Decimal(0), is_integral)
            )
        for tenant, event_type, hour, count, is_on_its_way in undelivered:
            place = (tenant, event_type, hour)
            if is_on_its_way or count > MAX_STUCK:
                self.waiting.add(place)
            else:
                self.stuck[place] = count

    def said_of(self, found: MeterInForce, place: Place) -> tuple[Expected, int, bool]:
        """All that a comparison of an hour stands on."""
        tenant, _, hour = place
        hours = self.hours.get(found.id, {})
        return hours.get((tenant, hour), NOTHING), self.stuck.get(place, 0), place in self.waiting

    async def not_there(self, place: Place, found: MeterInForce, openmeter: Asked) -> Decimal:
        """What the undelivered events of a place, which OpenMeter does not have, add to a meter."""
        if place not in self.absent:
            tenant, event_type, hour = place
            values = {**self._values, "tenant": tenant, "type": event_type, "hour": hour}
            with transient_errors():
                async with self._pool.connection() as connection:
                    rows = await (await connection.execute(_STUCK, values)).fetchall()
            events = _owed(rows)
            stored = await openmeter.stored(events)
            self.absent[place] = [event for event in events if event.n not in stored]
        total = Decimal(0)
        for event in self.absent[place]:
            event_from = found.meter.event_from
            sample = found.measure(_DATA.decode(event.data))
            if isinstance(sample, Sample) and (event_from is None or event.time >= event_from):
                total += 1 if sample.value is None else sample.value
        return total


async def _find_missing(
    pool: Pool, openmeter: Asked, settlement: Settlement, report: Report, place: Place, *, repair: bool
) -> None:
    tenant, event_type, hour = place
    values = {"target": settlement.target, "tenant": tenant, "type": event_type, "hour": hour}
    after = 0
    while True:
        with transient_errors():
            async with pool.connection() as connection:
                rows = await (
                    await connection.execute(_DELIVERED, {**values, "after": after, "limit": CHUNK})
                ).fetchall()
        events = _owed(rows)
        if not events:
            return
        stored = await openmeter.stored(events)
        missing = [event.n for event in events if event.n not in stored]
        report.missing += len(missing)
        if repair and missing:
            report.owed_again += await settlement.owe_again(missing)
        after = events[-1].n


def _owed(rows: Sequence[Sequence[object]]) -> list[Owed]:
    return [Owed(row[0], bytes(row[1]), *row[2:]) for row in rows]  # type: ignore[arg-type,call-overload]
