"""A tenant's bad events, newest first: without a value for a meter, no event at all, or a contradiction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

# What is shown of a message that is no event: it may be of any size.
SHOWN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class BadEvents:
    """Which to list.

    Attributes:
        before: Only with a smaller number.
    """

    kind: str
    limit: int
    before: int | None = None
    code: str | None = None
    type: str | None = None
    source: str | None = None
    meter: str | None = None


@dataclass(frozen=True, slots=True)
class BadEvent:
    """One of them.

    Attributes:
        number: Where it stands among its kind.
        at: When it was stored in the stream.
        body: Of a dead letter, the first bytes of the message.
    """

    number: int
    at: datetime
    seq: int
    code: str
    reason: str
    type: str | None
    id: str | None
    source: str | None
    meter: str | None
    state: str | None
    body: bytes | None


# One for each event, whatever the number of meters: a page never ends within one.
_INVALID = """
select i.n as number, min(e.stored_at) as at, min(e.seq) as seq, min(i.code) as code,
       string_agg(i.message, E'\n' order by i.meter) as reason, min(e.type) as type, min(e.ce_id) as id,
       min(e.source) as source, string_agg(m.slug, ', ' order by i.meter) as meter, null::text as state,
       null::bytea as body
from metering.invalid i join metering.event e using (n) join metering.meter m on m.id = i.meter
where i.tenant = %(tenant)s and (%(before)s::bigint is null or i.n < %(before)s)
  and (%(code)s::text is null or i.code = %(code)s) and (%(type)s::text is null or e.type = %(type)s)
  and (%(source)s::text is null or e.source = %(source)s) and (%(meter)s::text is null or m.slug = %(meter)s)
group by i.n order by i.n desc limit %(limit)s
"""
_DEAD = """
select d.id as number, d.stored_at as at, d.seq, d.code, d.detail as reason,
       nullif(substr(d.subject, length('agentese.' || %(tenant)s) + 2), '') as type, null::text as id,
       null::text as source, null::text as meter, d.state, substr(d.body, 1, %(shown)s) as body
from metering.dead d
where d.subject like 'agentese.%%' and split_part(d.subject, '.', 2) = %(tenant)s
  and (%(before)s::bigint is null or d.id < %(before)s)
  and (%(code)s::text is null or d.code = %(code)s)
  and (%(type)s::text is null or d.subject = 'agentese.' || %(tenant)s || '.' || %(type)s)
order by d.id desc limit %(limit)s
"""
_CONFLICT = """
select c.id as number, c.at, c.seq, 'conflict' as code,
       'another payload was counted under this source and id, at stream sequence ' || e.seq as reason,
       e.type, e.ce_id as id, e.source, null::text as meter, null::text as state, null::bytea as body
from metering.conflict c join metering.event e using (n)
where e.tenant = %(tenant)s and (%(before)s::bigint is null or c.id < %(before)s)
  and (%(source)s::text is null or e.source = %(source)s) and (%(type)s::text is null or e.type = %(type)s)
order by c.id desc limit %(limit)s
"""
STATEMENTS = {"invalid": _INVALID, "dead": _DEAD, "conflict": _CONFLICT}


async def find_bad_events(connection: AsyncConnection, tenant: str, wanted: BadEvents) -> list[BadEvent]:
    """The tenant's, and nobody else's."""
    values = {
        "tenant": tenant,
        "before": wanted.before,
        "code": wanted.code,
        "type": wanted.type,
        "source": wanted.source,
        "meter": wanted.meter,
        "limit": wanted.limit,
        "shown": SHOWN_BYTES,
    }
    async with connection.cursor(row_factory=class_row(BadEvent)) as cursor:
        await cursor.execute(STATEMENTS[wanted.kind], values)
        return await cursor.fetchall()
