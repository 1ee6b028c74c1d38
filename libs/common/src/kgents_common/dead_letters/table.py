"""Dead letters in a schema's table: buried once each, found, settled; none is ever deleted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec
from psycopg import AsyncConnection, sql
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_common.dead_letters.letter import Burial, DeadLetter
from kgents_common.errors import PermanentError

L = TypeVar("L", bound=DeadLetter)

_COLUMNS = {
    "stream": "text",
    "epoch": "timestamptz",
    "seq": "bigint",
    "stored_at": "timestamptz",
    "subject": "text",
    "raw_subject": "bytea",
    "headers": "text",
    "raw_headers": "bytea",
    "body": "bytea",
    "code": "text",
    "detail": "text",
}
# A letter of a version that kept no time of storage is known by its epoch: the same message, delivered again
# after the update, must find it.
_BURY = """
insert into {table} ({columns})
select {columns} from unnest({types}) as new ({columns})
where not exists (
    select from {table} as old where old.stored_at is null and old.stream = new.stream
        and old.seq = new.seq and old.epoch = new.epoch
)
on conflict (stream, seq, (coalesce(stored_at, epoch))) do {otherwise}
"""
_REOPEN = """
update set state = 'open', body = excluded.body, code = excluded.code, detail = excluded.detail,
    settled_at = null, reason = null, mirrored = false
"""
_IDENTITY = sql.SQL("coalesce(stored_at, epoch) as stored_at")


async def bury(
    connection: AsyncConnection, schema: str, burials: Sequence[Burial], *, reopen: bool = False
) -> None:
    """Store dead letters in the caller's transaction; a message that is one already stays the one it is.

    Args:
        reopen: Make a letter of the same message that was settled an open one again.

    Raises:
        psycopg.Error: As the caller's transaction.
    """
    if not burials:
        return
    beside = list(burials[0].beside)
    names = [*_COLUMNS, *beside]
    statement = sql.SQL(_BURY).format(
        table=sql.Identifier(schema, "dead"),
        columns=sql.SQL(", ").join(map(sql.Identifier, names)),
        types=sql.SQL(", ").join(sql.SQL(f"%s::{_COLUMNS.get(name, 'text')}[]") for name in names),
        otherwise=sql.SQL(_REOPEN if reopen else "nothing"),
    )
    rows = [(*_row(burial), *(burial.beside[name] for name in beside)) for burial in burials]
    await connection.execute(statement, [list(column) for column in zip(*rows, strict=True)])


class DeadLetters(Generic[L]):
    """The dead letters of one schema.

    Args:
        kind: What a row is; its fields are the columns.
    """

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection], schema: str, kind: type[L]) -> None:
        self._pool = pool
        self._schema = schema
        self._kind = kind
        self._table = sql.Identifier(schema, "dead")
        self._columns = sql.SQL(", ").join(
            _IDENTITY if field.name == "stored_at" else sql.Identifier(field.name)
            for field in dataclasses.fields(kind)
        )

    async def find(
        self, *, state: str | None = "open", code: str | None = None, after: int = 0, limit: int = 100
    ) -> list[L]:
        """The letters with these properties, in the order they came, after the id `after`.

        Raises:
            TransientError: Postgres is away. So all below.
        """
        return await self._select(
            "where (%s::text is null or state = %s) and (%s::text is null or code = %s) and id > %s"
            " order by id limit %s",
            [state, state, code, code, after, limit],
        )

    async def get(self, letter_id: int) -> L:
        """One letter.

        Raises:
            PermanentError: There is none with this id.
        """
        found = await self._select("where id = %s", [letter_id])
        if not found:
            raise PermanentError(
                f"no dead letter {letter_id}", hint=f"list them: kgents-{self._schema} dead list"
            )
        return found[0]

    async def settle(
        self, letter_id: int, *, state: str, reason: str | None = None, replay_seq: int | None = None
    ) -> None:
        """Note that an open letter was replayed or discarded.

        Raises:
            PermanentError: It is not open (any more).
        """
        settled = await self._execute(
            "update {table} set state = %s, settled_at = now(), reason = %s, replay_seq = %s"
            " where id = %s and state = 'open'",
            [state, reason, replay_seq, letter_id],
        )
        if settled == 0:
            raise PermanentError(f"dead letter {letter_id} is not open")

    async def to_mirror(self, limit: int = 20) -> list[L]:
        """Letters that the bus does not know of; those that were tried least first."""
        return await self._select("where not mirrored order by mirror_tries, id limit %s", [limit])

    async def mirrored(self, letter_id: int) -> None:
        """The bus knows of it."""
        await self._execute("update {table} set mirrored = true where id = %s", [letter_id])

    async def not_mirrored(self, letter_id: int) -> None:
        """The bus could not be told of it now: others go first."""
        await self._execute("update {table} set mirror_tries = mirror_tries + 1 where id = %s", [letter_id])

    async def count_open(self) -> int:
        """How many wait for an operator."""
        with transient_errors():
            async with self._pool.connection() as connection:
                statement = sql.SQL("select count(*) from {table} where state = 'open'")
                row = await (await connection.execute(statement.format(table=self._table))).fetchone()
        return row[0] if row else 0

    async def _execute(self, statement: str, values: Sequence[object]) -> int:
        with transient_errors():
            async with self._pool.connection() as connection:
                made = sql.SQL(statement).format(table=self._table)
                return (await connection.execute(made, values)).rowcount

    async def _select(self, condition: str, values: Sequence[object]) -> list[L]:
        statement = sql.SQL("select {columns} from {table} ").format(columns=self._columns, table=self._table)
        with transient_errors():
            async with self._pool.connection() as connection:
                cursor = connection.cursor(row_factory=class_row(self._kind))
                await cursor.execute(statement + sql.SQL(condition), values)
                return await cursor.fetchall()


def _row(burial: Burial) -> tuple[object, ...]:
    message = burial.message
    return (
        message.stream,
        message.epoch,
        message.seq,
        message.stored_at,
        message.subject,
        message.raw_subject or None,
        msgspec.json.encode(message.headers).decode(),
        message.raw_headers or None,
        message.body,
        burial.code,
        burial.storable_detail,
    )
