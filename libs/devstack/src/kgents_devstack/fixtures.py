"""pytest fixtures for real servers: one of each a session, started when asked for; a clean slate a test.

With KGENTS_TEST_BACKEND=docker, NATS, Redis and Postgres come from containers of the seed's images instead,
through testcontainers; that needs a Docker engine and is not what CI runs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import psycopg
import pytest
import redis
from nats.aio.client import Client
from psycopg import sql

from kgents_devstack.servers import NatsServer, PostgresServer, S3Server, ValkeyServer
from kgents_devstack.servers.nats import OLDEST_VERSION, installed_version

DOCKER = "docker"


def _backend() -> str:
    return os.environ.get("KGENTS_TEST_BACKEND", "wheels")


@pytest.fixture(scope="session")
def session_directory() -> Iterator[Path]:
    """Where this session's servers keep their files; removed at the end."""
    directory = Path(tempfile.mkdtemp(prefix="kgents-test-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def nats_server(session_directory: Path) -> Iterator[NatsServer]:
    """The session's nats-server; tests that stop or kill it take `own_nats`."""
    with NatsServer(session_directory / "nats") as server:
        yield server


@pytest.fixture(scope="session", params=[OLDEST_VERSION, installed_version()])
def each_nats_server(request: pytest.FixtureRequest, session_directory: Path) -> Iterator[NatsServer]:
    """A nats-server of the oldest version we support, then of the current one."""
    with NatsServer(session_directory / f"nats-{request.param}", version=request.param) as server:
        yield server


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server for this test alone."""
    with NatsServer(tmp_path / "own-nats") as server:
        yield server


@pytest.fixture(scope="session")
def _nats_session_url(request: pytest.FixtureRequest) -> Iterator[str]:
    if _backend() == DOCKER:
        from testcontainers.community.nats import NatsContainer

        with NatsContainer("nats:2.10-alpine", jetstream=True) as container:
            yield container.nats_uri()
    else:
        yield request.getfixturevalue("nats_server").url


@pytest.fixture
async def nats_client(_nats_session_url: str) -> AsyncIterator[Client]:
    """A client of the session's server, which holds no stream."""
    client = await nats.connect(_nats_session_url)
    await remove_streams(client)
    yield client
    await client.close()


@pytest.fixture
async def nats_url(_nats_session_url: str) -> str:
    """The session's NATS server, which holds no stream."""
    client = await nats.connect(_nats_session_url)
    await remove_streams(client)
    await client.close()
    return _nats_session_url


async def remove_streams(client: Client) -> None:
    """Delete every stream of the server."""
    jetstream = client.jetstream()
    for stream in await jetstream.streams_info():
        await jetstream.delete_stream(str(stream.config.name))


@pytest.fixture(scope="session")
def _redis_session_url(session_directory: Path) -> Iterator[str]:
    attached = os.environ.get("REDIS_URL")
    if attached:
        yield attached
    elif _backend() == DOCKER:
        from testcontainers.community.redis import RedisContainer

        with RedisContainer("redis:7-alpine") as container:
            yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"
    else:
        with ValkeyServer(session_directory / "valkey") as server:
            yield server.url


@pytest.fixture
def redis_url(_redis_session_url: str) -> str:
    """An empty Redis (Valkey here)."""
    redis.Redis.from_url(_redis_session_url).flushall()
    return _redis_session_url


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey for this test alone."""
    with ValkeyServer(tmp_path / "own-valkey") as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server(session_directory: Path) -> Iterator[PostgresServer]:
    """The session's Postgres; tests that stop it take `own_postgres`."""
    server = PostgresServer(session_directory / "postgres").start()
    yield server
    server.discard()


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[PostgresServer]:
    """A Postgres for this test alone."""
    server = PostgresServer(tmp_path / "own-postgres").start()
    yield server
    server.discard()


@pytest.fixture(scope="session")
def _postgres_session_url(request: pytest.FixtureRequest) -> Iterator[str]:
    attached = os.environ.get("DATABASE_URL")
    if attached:
        yield attached
    elif _backend() == DOCKER:
        from testcontainers.community.postgres import PostgresContainer

        with PostgresContainer("postgres:16-alpine", driver=None) as container:
            yield container.get_connection_url()
    else:
        yield request.getfixturevalue("postgres_server").url()


# What a test may leave in a database beside schemas of its own: it is not given to the next, then.
_IS_AS_MADE = """
select not exists (select from pg_class where relnamespace = 'public'::regnamespace)
    and not exists (select from pg_proc where pronamespace = 'public'::regnamespace)
    and not exists (select from pg_type where typnamespace = 'public'::regnamespace)
    and not exists (select from pg_default_acl)
    and not exists (select from pg_extension where extname <> 'plpgsql')
    and not exists (select from pg_event_trigger)
    and not exists (select from pg_largeobject_metadata)
    and not exists (select from pg_namespace n join pg_init_privs p on p.objoid = n.oid
        and p.classoid = 'pg_namespace'::regclass where n.nspacl is distinct from p.initprivs)
    and not exists (select from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase
        where d.datname = current_database())
    and exists (select from pg_database where datname = current_database() and datacl is null)
"""
_OWN_SCHEMAS = """
select nspname from pg_namespace where nspname !~ '^pg_' and nspname not in ('information_schema', 'public')
"""


@pytest.fixture(scope="session")
def _empty_databases() -> list[str]:
    """Names of databases that a test was done with: emptying one costs a tenth of making one."""
    return []


@pytest.fixture
def database_url(_postgres_session_url: str, _empty_databases: list[str]) -> Iterator[str]:
    """A database of this test's own, empty at first, gone afterwards."""
    base, _, _ = _postgres_session_url.rpartition("/")
    if _empty_databases:
        name = _empty_databases.pop()
    else:
        name = _database_name()
        with psycopg.connect(_postgres_session_url, autocommit=True) as connection:
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
    yield f"{base}/{name}"
    following = _database_name()
    with psycopg.connect(_postgres_session_url, autocommit=True) as connection:
        if _taken(connection, name, following) and _emptied(f"{base}/{following}"):
            _empty_databases.append(following)
        else:
            for one in (name, following):
                connection.execute(
                    sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(one))
                )


def _database_name() -> str:
    return f"t_{uuid.uuid4().hex[:12]}"


def _taken(connection: psycopg.Connection, name: str, following: str) -> bool:
    """Whether nobody has the database any more: under another name, whoever is left of a test finds none."""
    connection.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = %s", [name]
    )
    try:
        connection.execute(
            sql.SQL("alter database {} rename to {}").format(sql.Identifier(name), sql.Identifier(following))
        )
    except psycopg.Error:  # somebody came back at once, or the test dropped it
        return False
    return True


def _emptied(url: str) -> bool:
    """Whether a database is as one that was just made, once its schemas are dropped."""
    try:
        with psycopg.connect(url) as connection:
            for (schema,) in connection.execute(_OWN_SCHEMAS).fetchall():
                connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))
            found = connection.execute(_IS_AS_MADE).fetchone()
    except psycopg.Error:
        return False
    return found == (True,)


@pytest.fixture(scope="session")
def s3_server(session_directory: Path) -> Iterator[S3Server]:
    """The session's S3 server."""
    with S3Server(session_directory / "s3") as server:
        yield server
