"""Health is of what is needed: a Postgres that answers, without the tables, is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import database
from kgents_common.errors import TransientError
from kgents_common.health import LastLook, Status
from kgents_common.telemetry import new_registry
from kgents_common.watchdog import Watchdog
from kgents_metering.app import _watch_round
from kgents_metering.app_reads import _look_round
from kgents_metering.metrics import Metrics


async def test_a_ledger_whose_tables_are_gone_is_down_until_they_are_back(
    pool: AsyncConnectionPool[AsyncConnection], database_url: str
) -> None:
    """Rule: writer and reads alike; the reason is the database's own."""
    writer, reads, seen = LastLook(), LastLook("not looked at yet"), {"schema": False}
    looks = (
        _watch_round(pool, cast("Watchdog", SimpleNamespace(pending=0)), Metrics(new_registry()), writer),
        _look_round(pool, reads, seen),
    )
    for look in looks:
        await look()
    assert [one.check().status for one in (writer, reads)] == [Status.OK, Status.OK]
    assert seen["schema"]
    async with pool.connection() as connection:
        await connection.execute("drop schema metering cascade")
    with pytest.raises(TransientError):
        await looks[0]()
    assert writer.check().status is Status.DOWN
    assert "does not exist" in writer.check().detail
    await looks[1]()
    assert not seen["schema"]
    await database.migrate(database_url, package="kgents_metering.schema", schema="metering")
    for look in looks:
        await look()
    assert writer.check().status is Status.OK
    assert seen["schema"]
