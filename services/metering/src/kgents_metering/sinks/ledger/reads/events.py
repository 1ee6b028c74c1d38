"""The tenant's own events as they are listed, with what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection

from kgents_metering.model.query.listing import TIMES, EventPage
from kgents_metering.sinks.ledger.reads.conditions import condition

LISTED_DAYS = 32

_SELECT = """
select e.n, e.ce_id, e.source, e.type, e.tenant, e.time, e.data, e.stored_at,
       coalesce((select string_agg(i.message, E'\n' order by i.meter)
                 from metering.invalid i where i.n = e.n),
                case when not exists (select 1 from metering.meter m
                                      where m.event_type = e.type and m.deleted_at is null)
                     then 'no meter found for event type: ' || e.type end)
from metering.event e
where e.tenant = %(tenant)s
"""
EVENTS = f"""{_SELECT}
  and e.time >= %(start)s
  and (%(id)s::text is null or position(%(id)s in e.ce_id) > 0)
  and (%(end)s::timestamptz is null or e.time < %(end)s)
  and (%(stored_from)s::timestamptz is null or e.stored_at >= %(stored_from)s)
  and (%(stored_to)s::timestamptz is null or e.stored_at < %(stored_to)s)
order by e.time desc, e.n desc limit %(limit)s
"""


_FIELDS = {
    "id": "e.ce_id",
    "source": "e.source",
    "subject": "e.tenant",
    "type": "e.type",
    "time": "e.time",
    "ingestedAt": "e.stored_at",
}


@dataclass(frozen=True, slots=True)
class ListedEvent:
    """An event as the listing shows it.

    Attributes:
        n: Its number in the ledger.
    """

    n: int
    id: str
    source: str
    type: str
    subject: str
    time: datetime
    data: str
    stored_at: datetime
    invalid: str | None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What to list."""

    event_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    stored_from: datetime | None = None
    stored_to: datetime | None = None
    limit: int = 100


async def list_events(
    connection: AsyncConnection, tenant: str, wanted: EventFilter, now: datetime
) -> list[ListedEvent]:
    """Newest first, of the last 32 days unless a start is given."""
    values = {
        "tenant": tenant,
        "id": wanted.event_id,
        "start": wanted.start or now - timedelta(days=LISTED_DAYS),
        "end": wanted.end,
        "stored_from": wanted.stored_from,
        "stored_to": wanted.stored_to,
        "limit": wanted.limit,
    }
    return [ListedEvent(*row) for row in await (await connection.execute(EVENTS, values)).fetchall()]


def page_statement(tenant: str, wanted: EventPage) -> tuple[str, dict[str, Any]]:
    """The statement for a page of one tenant's events, and its values."""
    values: dict[str, Any] = {"tenant": tenant, "limit": wanted.limit}
    text = _SELECT
    for name, tree in wanted.filters.items():
        text += f" and {condition(_FIELDS[name], tree, values, is_text=name not in TIMES)}"
    if wanted.before is not None:
        values["time"], values["n"] = wanted.before
        text += " and (e.time, e.n) < (%(time)s, %(n)s)"
    return f"{text} order by e.time desc, e.n desc limit %(limit)s", values


async def page_of_events(connection: AsyncConnection, tenant: str, wanted: EventPage) -> list[ListedEvent]:
    """Newest first, of all time unless a filter says which."""
    text, values = page_statement(tenant, wanted)
    return [ListedEvent(*row) for row in await (await connection.execute(text.encode(), values)).fetchall()]
