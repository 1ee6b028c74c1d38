"""Meters are put in force by whoever applies them; a process that starts reads them, whatever its file is."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import database
from kgents_common.errors import ConfigurationError
from kgents_common.health import Status
from kgents_metering.handlers.meter_check import MeterCheck
from kgents_metering.model.meters import Declared, declared
from kgents_metering.sinks.ledger import meter_changes

Pool = AsyncConnectionPool[AsyncConnection]


def file_of(version: int | None, *slugs: str) -> Declared:
    meters = [{"slug": slug, "eventType": "llm.tokens", "aggregation": "COUNT"} for slug in slugs]
    return declared({"meters": meters, **({} if version is None else {"version": version})})


@pytest.fixture
async def bare(database_url: str) -> Any:
    """A migrated ledger that never had meters."""
    await database.migrate(database_url, package="kgents_metering.schema", schema="metering")
    pool = database.make_pool(database_url, application="test")
    await pool.open()
    yield pool
    await pool.close()


async def in_force(pool: Pool) -> list[str]:
    async with pool.connection() as connection:
        rows = await (
            await connection.execute("select slug from metering.meter where deleted_at is null order by slug")
        ).fetchall()
    return [row[0] for row in rows]


async def test_two_releases_side_by_side_do_not_flip_the_meters(bare: Pool) -> None:
    """Rule: the very first start puts its file in force; from then on a start changes nothing and says so."""
    old, new = MeterCheck(bare, file_of(1, "a", "b")), MeterCheck(bare, file_of(2, "b", "c"))
    for process in (old, new, old, new):
        await process.begin()
        assert await in_force(bare) == ["a", "b"]
    assert old.check().status is Status.OK
    assert (new.check().status, "a, c" in new.check().detail) == (Status.DEGRADED, True)
    await meter_changes.apply(bare, file_of(2, "b", "c"), actor="the operator")
    for process in (old, new):
        await process.look()
    assert await in_force(bare) == ["b", "c"]
    assert (old.check().status, new.check().status) == (Status.DEGRADED, Status.OK)


async def test_an_older_file_cannot_undo_a_newer_one(bare: Pool) -> None:
    """Rule: applying is versioned; a plan changes nothing, and what was changed is kept with who did it."""
    await meter_changes.apply(bare, file_of(3, "a", "b"), actor="anna")
    planned = await meter_changes.apply(bare, file_of(4, "b", "c"), actor="anna", is_plan=True)
    assert [str(change).split() for change in planned] == [["created", "c"], ["ended", "a"]]
    assert await in_force(bare) == ["a", "b"]
    for stale in (file_of(2, "a"), file_of(3, "a")):
        with pytest.raises(ConfigurationError, match="version 3 is in force"):
            await meter_changes.apply(bare, stale, actor="a job of the old release")
    assert await meter_changes.apply(bare, file_of(3, "a", "b"), actor="the same job again") == []
    await meter_changes.apply(bare, file_of(2, "a"), actor="ben", is_forced=True)
    assert await in_force(bare) == ["a"]
    async with bare.connection() as connection:
        rows = await (
            await connection.execute("select actor, action, slug from metering.meter_change order by id")
        ).fetchall()
    assert rows == [("anna", "created", "a"), ("anna", "created", "b"), ("ben", "ended", "b")]


async def test_a_ledger_of_the_version_before_keeps_its_meters(bare: Pool) -> None:
    """Rule: an update changes no meter; there, none was applied with a version."""
    await meter_changes.sync(bare, file_of(None, "a").meters)
    process = MeterCheck(bare, file_of(1, "a", "b"))
    await process.begin()
    assert await in_force(bare) == ["a"]
    await meter_changes.apply(bare, file_of(1, "a", "b"), actor="the operator")
    assert await in_force(bare) == ["a", "b"]


@pytest.mark.parametrize("version", [0, -1, True, "2", 1.5])
def test_a_version_is_a_whole_number(version: object) -> None:
    """Rule: a clear error, and nothing is applied."""
    with pytest.raises(ConfigurationError, match="version"):
        declared({"meters": [], "version": version})
