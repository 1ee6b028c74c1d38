"""Dumps of the databases: one moment, every row back, nothing half."""

from __future__ import annotations

import psycopg
import pytest

from kgents_backup.model.documents import DatabaseManifest
from kgents_backup.model.faults import CorruptError, RefusedError
from kgents_backup.operations import databases
from kgents_backup.operations.verifying import verify_databases
from kgents_backup.sinks.store import Vault
from kgents_common.clock import SystemClock
from kgents_common.errors import PermanentError

CLOCK = SystemClock()
SCHEMA = """
create schema metering; create schema billing; create schema other;
create table metering.migration (name text primary key, digest text not null);
create table metering.tenant (id bigint generated always as identity primary key, name text unique);
create table metering.event (
    key bytea primary key, tenant bigint not null references metering.tenant,
    at timestamptz not null, amount numeric, data jsonb, tags text[],
    size int generated always as (length(key)) stored
);
create table metering.rollup (hour timestamptz, value numeric) partition by range (hour);
create table metering.rollup_1 partition of metering.rollup for values from ('2026-01-01') to ('2026-02-01');
create table metering.rollup_2 partition of metering.rollup for values from ('2026-02-01') to ('2026-03-01');
create table billing.child (id int primary key, parent int references billing.child deferrable, note text);
create table other.secret (x int);
"""
ROWS = """
insert into metering.migration values ('0001.sql', 'd');
insert into metering.tenant (name) select 'tenant-' || n from generate_series(1, 50) n;
insert into metering.event select decode(md5(n::text), 'hex'), 1 + n % 50, now() - n * interval '1 second',
    n / 7.0, jsonb_build_object('text', E'line\\nbreak\\t"quote" ü', 'n', n), array['a', 'b,{"']
    from generate_series(1, 20000) n;
insert into metering.rollup values ('2026-01-05', 1.5), ('2026-02-05', null);
insert into billing.child values (1, null, E'back\\\\slash'), (2, 1, null), (3, 2, '');
insert into other.secret values (1);
"""
TABLES = ("metering.migration", "metering.tenant", "metering.event", "metering.rollup", "billing.child")


async def contents(url: str) -> dict[str, list[object]]:
    """Every row of the tables."""
    found: dict[str, list[object]] = {}
    async with await psycopg.AsyncConnection.connect(url) as connection:
        for table in TABLES:
            rows = await (await connection.execute(f"select t::text from {table} t order by 1")).fetchall()
            found[table] = [row[0] for row in rows]
    return found


@pytest.fixture
async def filled(database_url: str) -> str:
    """A database with tables of every kind we use, filled."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        await connection.execute(SCHEMA)  # type: ignore[call-overload]
        await connection.execute(ROWS)  # type: ignore[call-overload]
    return database_url


async def execute(url: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(statement)  # type: ignore[call-overload]


async def test_every_row_comes_back(filled: str, vault: Vault) -> None:
    """Rule: rows, nulls, odd characters, partitions, generated columns and sequences are as they were."""
    before = await contents(filled)
    made = await databases.dump(filled, vault, clock=CLOCK)
    assert sum(t.rows for t in made.tables) == sum(len(rows) for rows in before.values())
    assert not any(t.schema == "other" for t in made.tables)
    await execute(filled, "truncate metering.event, metering.tenant, metering.rollup, billing.child")
    await databases.load(filled, vault, replace=False)
    assert await contents(filled) == before
    await execute(filled, "insert into metering.tenant (name) values ('next')")
    assert len((await contents(filled))["metering.tenant"]) == 51


async def test_a_dump_is_of_one_moment(filled: str, vault: Vault) -> None:
    """Rule: what commits while the dump runs is in all of its tables or in none."""
    inner = vault.write_part
    is_first = True

    async def slow(prefix: str, file: str, content: bytes):  # type: ignore[no-untyped-def]
        nonlocal is_first
        if is_first:
            is_first = False
            await execute(filled, "insert into metering.tenant (name) values ('late')")
            await execute(filled, "insert into billing.child values (9, null, 'late')")
        return await inner(prefix, file, content)

    vault.write_part = slow  # type: ignore[method-assign]
    made = await databases.dump(filled, vault, clock=CLOCK)
    assert {t.table: t.rows for t in made.tables} == {
        "migration": 1,
        "tenant": 50,
        "event": 20_000,
        "rollup": 2,
        "child": 3,
    }


async def test_rows_that_are_there_are_not_overwritten_unless_told(filled: str, vault: Vault) -> None:
    """Rule: loading over rows wants --replace."""
    before = await contents(filled)
    await databases.dump(filled, vault, clock=CLOCK)
    await execute(filled, "insert into metering.tenant (name) values ('newer')")
    with pytest.raises(RefusedError, match="holds rows"):
        await databases.load(filled, vault)
    assert len((await contents(filled))["metering.tenant"]) == 51
    await databases.load(filled, vault, replace=True)
    assert await contents(filled) == before


async def test_a_load_that_fails_changes_nothing(filled: str, vault: Vault) -> None:
    """Rule: one transaction; a damaged file is named, a changed table refused, and the rows stay."""
    made = await databases.dump(filled, vault, clock=CLOCK)
    before = await contents(filled)
    table = next(t for t in made.tables if t.table == "rollup")
    key = f"databases/{made.id}/{table.parts[0].file}"
    good = await vault.store.get(key)
    await vault.store.put(key, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CorruptError, match=key):
        await databases.load(filled, vault, replace=True)
    assert await contents(filled) == before
    assert (await verify_databases(vault)).faults[0].startswith(key)
    await vault.store.put(key, good)
    await execute(filled, "alter table billing.child rename column note to remark")
    with pytest.raises(PermanentError, match="other columns than the dump"):
        await databases.load(filled, vault, replace=True)
    await execute(filled, "drop schema billing cascade")
    with pytest.raises(PermanentError, match=r"no table billing\.child"):
        await databases.load(filled, vault, replace=True)
    assert (
        len((await vault.read_document(f"databases/{made.id}/manifest.json", DatabaseManifest)).tables) == 5
    )
