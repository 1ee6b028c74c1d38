"""Erasing what a tenant's events say beyond what is measured; keys, times, sums and outcomes stay."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_metering.model.erasure import ERASED, measured_paths, reduced
from kgents_metering.sinks.ledger.meters import EMPTY, LOCK, current

CHUNK = 2000

_EVENTS = """
select e.n, e.type, e.data, e.epoch, e.seq from metering.event e
where e.tenant = %(tenant)s and (%(source)s::text is null or e.source = %(source)s) and e.time < %(before)s
  and (not e.erased or exists (select from metering.conflict c where c.n = e.n and c.body <> '{}'))
order by e.n limit %(limit)s
"""
_ERASE = """
update metering.event e
set source = %(word)s, ce_id = encode(e.key, 'hex'), data = t.data, erased = true
from unnest(%(n)s::bigint[], %(data)s::text[]) as t (n, data) where e.n = t.n
"""
_REPEATS = """
select epoch, seq from metering.duplicate where n = any(%(n)s::bigint[])
union all select epoch, seq from metering.conflict where n = any(%(n)s::bigint[])
"""
_CONFLICTS = "update metering.conflict set body = '{}' where n = any(%s::bigint[]) and body <> '{}'"
_INVALID = "update metering.invalid set message = %s where n = any(%s::bigint[])"
_LETTERS = """
select id, body, epoch, seq from metering.dead
where subject like %(subject)s and stored_at < %(before)s and code <> %(word)s order by id
"""
_BURY = """
update metering.dead set body = '', headers = '{}', raw_headers = null, raw_subject = null, code = %(word)s,
    detail = %(word)s, state = case state when 'open' then 'discarded' else state end,
    settled_at = coalesce(settled_at, now()), reason = coalesce(reason, %(reason)s)
where id = any(%(ids)s::bigint[])
"""
_RECORD = """
insert into metering.erasure
    (actor, reason, tenant, source_hash, before, events, conflicts, dead_letters, messages)
values (%s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


class _Said(msgspec.Struct):
    source: str = ""


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose, of which source (all where None), and of what happened before when."""

    tenant: str
    source: str | None
    before: datetime


@dataclass(frozen=True, slots=True)
class Found:
    """Rows to erase, and where streams have their messages: first there, then here, so that a run that ended
    halfway is run again.

    Attributes:
        rows: Events as (n, type, data), or dead letters as (id,).
        places: Creation time of a stream, and sequence.
    """

    rows: list[tuple[Any, ...]]
    places: list[tuple[datetime, int]]


class Erasing:
    """Erases in the ledger. Every method raises TransientError where Postgres is away."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection]) -> None:
        self._pool = pool

    async def events(self, scope: Scope) -> Found:
        """The next events of the scope, with what repeated or contradicted them; no rows for all erased."""
        values = {"tenant": scope.tenant, "source": scope.source, "before": scope.before, "limit": CHUNK}
        with transient_errors():
            async with self._pool.connection() as connection:
                rows = await (await connection.execute(_EVENTS, values)).fetchall()
                numbers = [row[0] for row in rows]
                repeats = await (await connection.execute(_REPEATS, {"n": numbers})).fetchall()
        return Found([row[:3] for row in rows], [row[3:] for row in rows] + repeats)

    async def erase_events(self, found: Found) -> int:
        """Leave of them what is measured, and of their conflicts nothing; how many conflicts."""
        with transient_errors():
            async with self._pool.connection() as connection, connection.transaction():
                await connection.execute(LOCK)
                meters = (await current(connection, EMPTY)).by_type
                paths = {
                    kind: measured_paths(one.meter for one in meters.get(kind, ()))
                    for kind in {row[1] for row in found.rows}
                }
                numbers = [row[0] for row in found.rows]
                data = [reduced(row[2], paths[row[1]]) for row in found.rows]
                await connection.execute(_ERASE, {"word": ERASED, "n": numbers, "data": data})
                conflicts = await connection.execute(_CONFLICTS, [numbers])
                await connection.execute(_INVALID, [f"invalid event: {ERASED}", numbers])
        return conflicts.rowcount

    async def letters(self, scope: Scope) -> Found:
        """The dead letters of the scope."""
        pattern = f"agentese.{_escaped(scope.tenant)}.%"
        values = {"subject": pattern, "before": scope.before, "word": ERASED}
        with transient_errors():
            async with self._pool.connection() as connection:
                rows = await (await connection.execute(_LETTERS, values)).fetchall()
        wanted = [row for row in rows if scope.source is None or _is_from(row[1], scope.source)]
        return Found([row[:1] for row in wanted], [row[2:] for row in wanted])

    async def erase_letters(self, found: Found, reason: str) -> None:
        """Leave nothing of them but that they were; those that are open are discarded."""
        ids = [row[0] for row in found.rows]
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute(_BURY, {"word": ERASED, "reason": reason, "ids": ids})

    async def record(self, scope: Scope, *, actor: str, reason: str, counts: Sequence[int]) -> None:
        """Keep that it was done; `counts` are events, conflicts, dead letters and messages."""
        source = None
        if scope.source is not None:
            source = hashlib.blake2b(scope.source.encode(), digest_size=16).digest()
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute(
                    _RECORD, [actor, reason, scope.tenant, source, scope.before, *counts]
                )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%")


def _is_from(body: bytes, source: str) -> bool:
    """Whether an unreadable message names this source, or this very text is in it."""
    try:
        return msgspec.json.decode(body, type=_Said).source == source
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return source.encode() in bytes(body)
