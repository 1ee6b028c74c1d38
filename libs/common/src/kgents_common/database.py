"""Postgres for the services that own a schema: a pool, ordered migrations, durability; it holds no query.

Sources: PostgreSQL documentation, "Reliability and the Write-Ahead Log" (fsync, synchronous_commit).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Annotated

import psycopg
import structlog
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool
from pydantic import AfterValidator

from kgents_common.errors import ConfigurationError, TransientError

_log = structlog.get_logger()

# PostgreSQL documentation, Appendix A. An OperationalError to psycopg, and yet of what was asked: a limit.
_OF_WHAT_WAS_ASKED = "54"
# None, and yet of the server's state: a transaction that may only read, or was ended for its age; rights,
# tables, columns and functions that are not those of this release (yet); a page or an index that is damaged.
_TRANSACTION_STATE = "25"
_NOT_OUR_SCHEMA = frozenset({"3F000", "42501", "42703", "42883", "42P01"})
_DAMAGED = frozenset({"XX001", "XX002"})


# Compiling (jit) takes longer than what it saves in answers that are planned to be short.
_READING = (
    " -c default_transaction_read_only=on -c cursor_tuple_fraction=1 -c max_parallel_workers_per_gather=0"
    r" -c default_transaction_isolation=repeatable\ read -c jit=off"
)


def make_pool(
    url: str,
    *,
    application: str,
    max_size: int = 8,
    statement_timeout_seconds: float = 60,
    is_read_only: bool = False,
) -> AsyncConnectionPool[psycopg.AsyncConnection]:
    """A closed pool; `await pool.open()` starts it. Connections are checked before use.

    Args:
        url: A libpq connection URL.
        application: The name shown in pg_stat_activity.
        statement_timeout_seconds: The longest one statement may run; a transaction may idle as long.
        is_read_only: For questions: nothing is written, a transaction sees one moment, cursors are planned to
            be read to their end, and a statement has one process: it takes one core from those who write.
    """
    reading = _READING if is_read_only else ""
    milliseconds = int(statement_timeout_seconds * 1000)
    return AsyncConnectionPool(
        url,
        min_size=1,
        max_size=max_size,
        open=False,
        timeout=10,
        max_idle=60,
        reconnect_timeout=3600,
        check=AsyncConnectionPool.check_connection,
        kwargs={
            "application_name": application,
            "connect_timeout": 5,
            "options": f"-c statement_timeout={milliseconds}"
            f" -c idle_in_transaction_session_timeout={milliseconds} -c timezone=UTC{reading}",
        },
        name=application,
    )


def checked_url(url: str) -> str:
    """The URL, which libpq can read.

    Raises:
        ValueError: It cannot; nothing of it is repeated.
    """
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # What libpq says of it repeats a part of it, which may be the password.
        raise ValueError("no connection URL: postgresql://user:password@host:5432/name") from None
    return url


# A setting that `make_pool` and `migrate` take.
DatabaseUrl = Annotated[str, AfterValidator(checked_url)]


@contextmanager
def transient_errors() -> Iterator[None]:
    """Turn Postgres being away, restarting, overtaken or not as it should be into TransientError.

    What passes is an error of what was asked, for which an event may be blamed.

    Raises:
        TransientError: The same transaction may succeed later.
    """
    try:
        yield
    except psycopg.Error as error:
        if not _is_of_the_server(error):
            raise
        reason = error.diag.message_primary if error.sqlstate in _NOT_OUR_SCHEMA | _DAMAGED else None
        raise TransientError(f"postgres: {reason or type(error).__name__}") from error


def _is_of_the_server(error: psycopg.Error) -> bool:
    """Whether an error is of the server's state, the network or a lost race."""
    state = error.sqlstate or ""
    if state[:2] == _TRANSACTION_STATE or state in _NOT_OUR_SCHEMA | _DAMAGED:
        return True
    known = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return known and state[:2] != _OF_WHAT_WAS_ASKED


async def check_durability(connection: psycopg.AsyncConnection) -> None:
    """Refuse a server on which a commit may vanish.

    Raises:
        ConfigurationError: fsync, full_page_writes or synchronous_commit is off.
    """
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        row = await (await connection.execute("select current_setting(%s)", [setting])).fetchone()
        if row is None or row[0] == "off":
            raise ConfigurationError(
                f"Postgres has {setting}=off: an acknowledged commit could be lost",
                hint=f"set {setting} = on and restart the service",
            )


async def migrate(url: str, *, package: str, schema: str) -> list[str]:
    """Run the package's `*.sql` files that this schema has not seen, in name order, each in a transaction.

    Safe to run from several processes at once: one advisory lock orders them.

    Returns:
        The names of the files that ran.

    Raises:
        ConfigurationError: A file that already ran has changed since.
        TransientError: Postgres is away.
    """
    files = sorted(
        (f for f in resources.files(package).iterdir() if f.name.endswith(".sql")), key=lambda f: f.name
    )
    ran: list[str] = []
    with transient_errors():
        async with await psycopg.AsyncConnection.connect(
            url, autocommit=True, connect_timeout=5
        ) as connection:
            await check_durability(connection)
            lock = f"kgents.migrate.{schema}"
            await connection.execute("select pg_advisory_lock(hashtextextended(%s, 0))", [lock])
            try:
                name = sql.Identifier(schema)
                await connection.execute(sql.SQL("create schema if not exists {}").format(name))
                table = sql.Identifier(schema, "migration")
                await connection.execute(
                    sql.SQL(
                        "create table if not exists {} (name text primary key, digest text not null,"
                        " at timestamptz not null default now())"
                    ).format(table)
                )
                rows = await (
                    await connection.execute(sql.SQL("select name, digest from {}").format(table))
                ).fetchall()
                seen: dict[str, str] = dict(rows)
                for file in files:
                    text = file.read_text()
                    digest = hashlib.sha256(text.encode()).hexdigest()
                    if file.name in seen:
                        if seen[file.name] != digest:
                            raise ConfigurationError(
                                f"migration {schema}/{file.name} has changed since it ran",
                                hint="put the change into a new file",
                            )
                        continue
                    async with connection.transaction():
                        await connection.execute(text.encode())
                        await connection.execute(
                            sql.SQL("insert into {} (name, digest) values (%s, %s)").format(table),
                            [file.name, digest],
                        )
                    ran.append(file.name)
                    _log.info("database.migrated", schema=schema, file=file.name)
            finally:
                await connection.execute("select pg_advisory_unlock(hashtextextended(%s, 0))", [lock])
    return ran


class SchemaPool:
    """A pool on a schema of one's own, as a part: migrated before it opens.

    Args:
        package: Holds the schema's `*.sql` files.
    """

    def __init__(
        self, pool: AsyncConnectionPool[psycopg.AsyncConnection], url: str, *, package: str, schema: str
    ) -> None:
        self._pool = pool
        self._url = url
        self._package = package
        self._schema = schema

    async def start(self) -> None:
        """Migrate, open.

        Raises:
            ConfigurationError: As `migrate`.
            TransientError: Postgres is away.
        """
        await migrate(self._url, package=self._package, schema=self._schema)
        await self._pool.open()

    async def stop(self) -> None:
        """Close."""
        await self._pool.close(timeout=5)
