"""The script that Postgres runs once: each service owns its schema, blind to the other's; backup has both."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from kgents_common import database
from kgents_devstack.servers import PostgresServer
from kgents_devstack.servers.postgres_programs import programs

from .rendered import K8S

ROLES = ("kgents_metering", "kgents_billing", "kgents_backup")


@pytest.fixture
def prepared(postgres_server: PostgresServer, database_url: str, tmp_path: Path) -> Iterator[str]:
    """A database on which the script has run; the roles go with the test."""
    for service in ("metering", "billing", "backup"):
        (tmp_path / service).write_text(f"it's {service}'s")
    told = {
        "PATH": f"{programs(None) / 'bin'}:{os.environ['PATH']}",
        "KGENTS_ROLES": str(tmp_path),
        "POSTGRES_USER": "postgres",
        "POSTGRES_DB": urlsplit(database_url).path.strip("/"),
        "PGHOST": "127.0.0.1",
        "PGPORT": str(postgres_server.port),
    }
    script = str(K8S / "base" / "postgres" / "roles.sh")
    answer = subprocess.run(["sh", script], env=told, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    yield database_url
    with psycopg.connect(database_url, autocommit=True) as connection:
        for role in reversed(ROLES):
            connection.execute(sql.SQL("drop owned by {} cascade").format(sql.Identifier(role)))
        for role in reversed(ROLES):
            connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


def as_role(url: str, role: str) -> str:
    """The same database, as another user."""
    return url.replace("//postgres@", f"//{role}@")


async def test_each_service_makes_its_own_schema_and_sees_no_other(prepared: str) -> None:
    """Its migrations run with its own rights; the other's tables are refused; backup reads and fills both."""
    for service in ("metering", "billing"):
        url = as_role(prepared, f"kgents_{service}")
        await database.migrate(url, package=f"kgents_{service}.schema", schema=service)

    tables: dict[str, list[str]] = {}
    with psycopg.connect(prepared) as connection:
        rows = connection.execute(
            "select table_schema, table_name from information_schema.tables"
            " where table_schema in ('metering', 'billing') and table_type = 'BASE TABLE'"
        )
        for schema, table in rows:
            tables.setdefault(schema, []).append(f"{schema}.{table}")
    assert set(tables) == {"metering", "billing"}

    for role, schema in (("kgents_metering", "billing"), ("kgents_billing", "metering")):
        with (
            psycopg.connect(as_role(prepared, role)) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(f"select * from {tables[schema][0]} limit 1")  # type: ignore[arg-type]
    with psycopg.connect(as_role(prepared, "kgents_backup")) as connection:
        for table in (name for names in tables.values() for name in names):
            granted = connection.execute(
                "select bool_and(has_table_privilege(%s, p)) from unnest(%s::text[]) p",
                [table, ["select", "insert", "delete", "truncate"]],
            ).fetchone()
            assert granted == (True,), table


def test_nobody_else_comes_in(prepared: str) -> None:
    """A role that has nothing may not even connect, and the passwords are those of the files."""
    with psycopg.connect(prepared, autocommit=True) as connection:
        connection.execute("create role kgents_stranger login")
        kept = connection.execute(
            "select count(*) from pg_authid where rolname = any(%s) and rolpassword like 'SCR%%'",
            [list(ROLES)],
        ).fetchone()
        try:
            with pytest.raises(psycopg.OperationalError, match="permission denied"):
                psycopg.connect(as_role(prepared, "kgents_stranger"))
        finally:
            connection.execute("drop role kgents_stranger")

    assert kept == (3,)
