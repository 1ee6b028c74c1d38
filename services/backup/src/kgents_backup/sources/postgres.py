"""The rows of our schemas as of one moment, through COPY in one repeatable-read snapshot; no DDL, no server.

The tables themselves are made by each service's own migrations, which its `migration` table names: a dump
goes into a database to which the same migrations were applied.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from kgents_backup.model.documents import SequenceRecord
from kgents_common.database import transient_errors

CONNECT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Table:
    """A table and the columns that hold data (generated ones compute themselves)."""

    schema: str
    name: str
    columns: tuple[str, ...]

    @property
    def identifier(self) -> sql.Identifier:
        """For a statement."""
        return sql.Identifier(self.schema, self.name)


@asynccontextmanager
async def one_moment(url: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """A connection in a read-only, repeatable-read transaction: all it reads is of one moment.

    Raises:
        TransientError: Postgres is away.
    """
    with transient_errors():
        connection = await psycopg.AsyncConnection.connect(
            url, connect_timeout=CONNECT_SECONDS, application_name="kgent-backup", autocommit=True
        )
        async with connection:
            await connection.execute("begin isolation level repeatable read, read only")
            yield connection


async def tables(connection: psycopg.AsyncConnection, schemas: Sequence[str]) -> list[Table]:
    """The tables of the schemas, those that others refer to first.

    A table with partitions stands for them; a partition is not listed by itself.
    """
    rows = await (
        await connection.execute(
            """
            select n.nspname, c.relname, array_agg(a.attname::text order by a.attnum)
            from pg_class c
            join pg_namespace n on n.oid = c.relnamespace
            join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                and a.attgenerated = ''
            where c.relkind in ('r', 'p') and not c.relispartition and n.nspname = any(%s)
            group by 1, 2 order by 1, 2
            """,
            [list(schemas)],
        )
    ).fetchall()
    found = {(schema, name): Table(schema, name, tuple(columns)) for schema, name, columns in rows}
    references = await (
        await connection.execute(
            """
            select distinct n.nspname, c.relname, fn.nspname, f.relname
            from pg_constraint k
            join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
            join pg_class f on f.oid = k.confrelid join pg_namespace fn on fn.oid = f.relnamespace
            where k.contype = 'f' and n.nspname = any(%s) and c.oid <> f.oid
            """,
            [list(schemas)],
        )
    ).fetchall()
    needs: dict[tuple[str, str], set[tuple[str, str]]] = {key: set() for key in found}
    for schema, name, other_schema, other in references:
        if (schema, name) in needs and (other_schema, other) in found:
            needs[schema, name].add((other_schema, other))
    ordered: list[Table] = []
    while needs:
        ready = sorted(key for key, wanted in needs.items() if not wanted & needs.keys())
        for key in ready or sorted(needs):  # a cycle of references: any order, checked at commit
            ordered.append(found[key])
            del needs[key]
    return ordered


async def sequences(connection: psycopg.AsyncConnection, schemas: Sequence[str]) -> list[SequenceRecord]:
    """The last values of the schemas' sequences."""
    rows = await (
        await connection.execute(
            "select schemaname, sequencename, last_value from pg_sequences"
            " where schemaname = any(%s) order by 1, 2",
            [list(schemas)],
        )
    ).fetchall()
    return [SequenceRecord(*row) for row in rows]


async def rows(connection: psycopg.AsyncConnection, table: Table) -> AsyncIterator[bytes]:
    """A table's rows in COPY's text format, in pieces as the server sends them (a row or more each).

    Raises:
        TransientError: Postgres went away.
    """
    statement = sql.SQL("copy (select {} from {}) to stdout").format(
        sql.SQL(", ").join(map(sql.Identifier, table.columns)), table.identifier
    )
    async with connection.cursor() as cursor, cursor.copy(statement) as copy:
        async for data in copy:
            yield bytes(data)
