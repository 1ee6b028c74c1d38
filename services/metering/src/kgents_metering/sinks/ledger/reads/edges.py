"""The parts of minutes at a query's ends: their events are measured again, so that nothing is approximate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

import msgspec
from psycopg import AsyncConnection

from kgents_metering.model.measure import Sample
from kgents_metering.model.query import QueryError
from kgents_metering.model.rollup import Rollup, stream_order
from kgents_metering.sinks.ledger.meters import MeterInForce
from kgents_metering.sinks.ledger.reads.rows import ReadLimits

CHUNK = 1000

_EVENTS = """
select time, data, epoch, seq from metering.event
where tenant = %s and type = %s and time >= %s and time < %s
"""
_DATA = msgspec.json.Decoder(float_hook=Decimal)


async def measure_edges(
    connection: AsyncConnection,
    meter: MeterInForce,
    tenant: str,
    spans: Sequence[tuple[datetime, datetime]],
    limits: ReadLimits,
) -> Rollup:
    """The events of these spans, folded; read and measured a thousand at a time.

    Raises:
        QueryError: 422: more events than a read may measure; they are never cut.
    """
    rollup = Rollup()
    seen = 0
    for start, end in spans:
        async with connection.cursor(name="edge") as cursor:
            await cursor.execute(_EVENTS, [tenant, meter.meter.event_type, start, end])
            while rows := await cursor.fetchmany(CHUNK):
                seen += len(rows)
                if seen > limits.edge_events:
                    raise QueryError(
                        f"from and to cut minutes of more than {limits.edge_events} events:"
                        " let them be whole minutes",
                        422,
                    )
                for time, data, epoch, seq in rows:
                    if not meter.meter.counts_at(time):
                        continue
                    sample = meter.measure(_DATA.decode(data))
                    if isinstance(sample, Sample):
                        rollup.add(meter.id, tenant, time, stream_order(epoch, seq), sample)
    return rollup
