"""Rows put back into our schemas, all in one transaction: a load that fails changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import LiteralString

import psycopg
from psycopg import sql

from kgents_backup.model.documents import DatabaseManifest, TableRecord
from kgents_backup.model.faults import RefusedError
from kgents_common.database import transient_errors
from kgents_common.errors import PermanentError

Rows = Callable[[TableRecord], AsyncIterator[bytes]]


async def load(url: str, manifest: DatabaseManifest, rows: Rows, *, replace: bool) -> int:
    """Put a dump's rows back; how many.

    Args:
        rows: Gives a table's rows in COPY's text format.
        replace: Remove the rows that are there.

    Raises:
        PermanentError: A table or column of the dump does not exist.
        RefusedError: A table holds rows, and replacing them was not asked for.
        TransientError: Postgres is away.
    """
    loaded = 0
    with transient_errors():
        async with (
            await psycopg.AsyncConnection.connect(url, connect_timeout=10) as connection,
            connection.transaction(),
        ):
            await connection.execute("set constraints all deferred")
            # What triggers derive from rows is in the dump, too: they rest until it is all there.
            await _switch_triggers(connection, manifest, "disable")
            await _make_room(connection, manifest, replace=replace)
            for table in manifest.tables:
                loaded += await _copy(connection, table, rows)
            await connection.execute("set constraints all immediate")
            await _switch_triggers(connection, manifest, "enable")
            for sequence in manifest.sequences:
                if sequence.last_value is not None:
                    await connection.execute(
                        "select setval(format('%%I.%%I', %s::text, %s::text)::regclass, %s)",
                        [sequence.schema, sequence.name, sequence.last_value],
                    )
    return loaded


async def _switch_triggers(
    connection: psycopg.AsyncConnection, manifest: DatabaseManifest, how: LiteralString
) -> None:
    """Disable or enable the tables' own triggers, not those of constraints."""
    for table in manifest.tables:
        name = sql.Identifier(table.schema, table.table)
        try:
            await connection.execute(sql.SQL("alter table {} " + how + " trigger user").format(name))
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise PermanentError(
                f"there is no table {table.schema}.{table.table}",
                hint="start the service once, so that its migrations make the tables; stop it; try again",
            ) from error


async def _make_room(
    connection: psycopg.AsyncConnection, manifest: DatabaseManifest, *, replace: bool
) -> None:
    names = [sql.Identifier(t.schema, t.table) for t in manifest.tables]
    for table, name in zip(manifest.tables, names, strict=True):
        row = await (await connection.execute(sql.SQL("select 1 from {} limit 1").format(name))).fetchone()
        # Migrations record themselves: those rows are there before any load.
        if row is not None and not replace and table.table != "migration":
            raise RefusedError(
                f"{table.schema}.{table.table} holds rows", hint="add --replace to remove them first"
            )
    if names:
        await connection.execute(sql.SQL("truncate {}").format(sql.SQL(", ").join(names)))


async def _copy(connection: psycopg.AsyncConnection, table: TableRecord, rows: Rows) -> int:
    statement = sql.SQL("copy {} ({}) from stdin").format(
        sql.Identifier(table.schema, table.table), sql.SQL(", ").join(map(sql.Identifier, table.columns))
    )
    try:
        async with connection.cursor() as cursor:
            async with cursor.copy(statement) as copy:
                async for data in rows(table):
                    await copy.write(data)
            count = cursor.rowcount
    except psycopg.errors.UndefinedColumn as error:
        raise PermanentError(
            f"{table.schema}.{table.table} has other columns than the dump",
            hint="use the release of the service that made the dump",
        ) from error
    if count != table.rows:
        raise PermanentError(f"{table.schema}.{table.table}: {count} rows loaded, not {table.rows}")
    return count
