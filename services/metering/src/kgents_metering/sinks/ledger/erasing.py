"""Erasing what a tenant's events say beyond what is measured; keys, times, sums and outcomes stay."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_metering.model.erasure import ERASED, measured_paths, reduced
from kgents_metering.sinks.ledger.meters import EMPTY, LOCK, current

CHUNK = 2000

_EVENTS = """
select e.n, e.type, e.data from metering.event e
where e.tenant = %(tenant)s and (%(source)s::text is null or e.source = %(source)s) and e.time < %(before)s
  and (not e.erased or exists (select from metering.conflict c where c.n = e.n and c.body <> '{}'))
order by e.n limit %(limit)s
"""
_ERASE = """
update metering.event e
set source = %(word)s, ce_id = encode(e.key, 'hex'), data = t.data, erased = true
from unnest(%(n)s::bigint[], %(data)s::text[]) as t (n, data) where e.n = t.n
"""
_ERASED = "select key from metering.event where erased and key = any(%s)"
_CONFLICTS = "update metering.conflict set body = '{}' where n = any(%s::bigint[]) and body <> '{}'"
_INVALID = "update metering.invalid set message = %s where n = any(%s::bigint[])"
_LETTERS = """
select id, body from metering.dead
where subject like %(subject)s and stored_at < %(before)s and code <> %(word)s order by id
"""
_BURIED = "select stored_at from metering.dead where subject like %(subject)s and code = %(word)s"
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
    """Events to erase, as (n, type, data)."""

    rows: list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Letters:
    """Dead letters to erase.

    Attributes:
        bodies: What the stream holds of them.
        before: When those were stored that an earlier run erased: a restore brings them back with that time.
    """

    rows: list[int]
    bodies: frozenset[bytes]
    before: frozenset[datetime] = frozenset()

    def has(self, body: bytes, received_at: datetime) -> bool:
        """Whether a message that is no event is one of these; times differ by how each was rounded."""
        near = (received_at + timedelta(microseconds=n) for n in (-1, 0, 1))
        return body in self.bodies or any(moment in self.before for moment in near)


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
        return Found(rows)

    async def erased(self, keys: Collection[bytes]) -> set[bytes]:
        """Of these keys, those whose event is erased."""
        with transient_errors():
            async with self._pool.connection() as connection:
                rows = await (await connection.execute(_ERASED, [list(keys)])).fetchall()
        return {bytes(row[0]) for row in rows}

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

    async def letters(self, scope: Scope) -> Letters:
        """The dead letters of the scope."""
        pattern = f"agentese.{_escaped(scope.tenant)}.%"
        values = {"subject": pattern, "before": scope.before, "word": ERASED}
        with transient_errors():
            async with self._pool.connection() as connection:
                rows = await (await connection.execute(_LETTERS, values)).fetchall()
                buried = await (await connection.execute(_BURIED, values)).fetchall()
        wanted = [row for row in rows if scope.source is None or _is_from(row[1], scope.source)]
        return Letters(
            [row[0] for row in wanted],
            frozenset(bytes(row[1]) for row in wanted),
            frozenset(row[0] for row in buried),
        )

    async def erase_letters(self, found: Letters, reason: str) -> None:
        """Leave nothing of them but that they were; those that are open are discarded."""
        with transient_errors():
            async with self._pool.connection() as connection:
                await connection.execute(_BURY, {"word": ERASED, "reason": reason, "ids": found.rows})

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
