"""A ledger of the first release is brought up to date with everything in it, and goes on counting once."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any

import psycopg
from psycopg.types.json import Json
from psycopg_pool import AsyncConnectionPool

from kgents_common import database
from kgents_common.crash import CrashPoints
from kgents_metering.handlers.meter_check import MeterCheck
from kgents_metering.model.event import Event
from kgents_metering.model.meters import Declared
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.conflicts import Conflicts

from .conftest import METERS
from .messages import EPOCH, event

FIRST = "0001_ledger.sql"


def first_release(url: str, counted: Event, contradicting: Event) -> None:
    """The schema of the first release, as its migrations left it, with rows of each kind."""
    text = (resources.files("kgents_metering.schema") / FIRST).read_text()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(text.encode())
        connection.execute(
            "create table metering.migration (name text primary key, digest text not null,"
            " at timestamptz not null default now())"
        )
        digest = hashlib.sha256(text.encode()).hexdigest()
        connection.execute("insert into metering.migration (name, digest) values (%s, %s)", [FIRST, digest])
        row: list[Any] = [counted.key, counted.tenant, counted.type, counted.source, counted.id, counted.time]
        connection.execute(
            "insert into metering.event"
            " (n, key, tenant, type, source, ce_id, time, stored_at, epoch, seq, data)"
            " values (nextval('metering.event_n'), %s, %s, %s, %s, %s, %s, now(), %s, 1, %s)",
            [*row, EPOCH, counted.data.decode()],
        )
        connection.execute(
            "insert into metering.seen values (%s, 1, %s)", [counted.key, counted.payload_hash]
        )
        connection.execute(
            "insert into metering.conflict (epoch, seq, n, payload_hash, body) values (%s, 2, 1, %s, %s)",
            [EPOCH, contradicting.payload_hash, contradicting.message.body],
        )
        connection.execute("insert into metering.outbox (target, n) values ('openmeter', 1)")
        connection.execute(
            "insert into metering.cursor"
            " values ('AGENTESE', %s, '{[1,3)}'), ('EVENTS', %s, '{[5,6),[9,10)}')",
            [EPOCH, EPOCH],
        )
        for meter in METERS:
            definition = Json(meter.definition())
            connection.execute(
                "insert into metering.meter (ulid, slug, fingerprint, definition, event_type)"
                " values (%s, %s, %s, %s, %s)",
                [
                    meter.slug,
                    meter.slug,
                    meter.fingerprint,
                    definition,
                    "llm.tokens",
                ],
            )


async def test_a_ledger_of_the_first_release_goes_on(database_url: str) -> None:
    """Rule: nothing of it is lost or counted again; what it owed is owed."""
    first_release(database_url, event(1), event(2, data={"tokens": 11}))
    ran = await database.migrate(database_url, package="kgents_metering.schema", schema="metering")
    assert FIRST not in ran
    pool: AsyncConnectionPool[Any] = database.make_pool(database_url, application="test")
    await pool.open()
    try:
        check = MeterCheck(pool, Declared(()))
        await check.begin()
        [conflict] = await Conflicts(pool).find()
        ledger = Ledger(pool, target="openmeter", stream="AGENTESE", crash_points=CrashPoints(None))
        outcome = await ledger.apply([event(1), event(3), event(4, "e4")], [])
        facts = Ledger(
            pool, target="openmeter", stream="EVENTS", crash_points=CrashPoints(None), floor=lambda: 9
        )
        await facts.apply([event(20, "f1")], [])
        async with pool.connection() as connection:
            rows = await (
                await connection.execute(
                    "select stream, applied::text, floor from metering.cursor order by 1"
                )
            ).fetchall()
            owed = await (await connection.execute("select count(*) from metering.outbox")).fetchone()
    finally:
        await pool.close()
    assert (conflict.id, conflict.counted_seq, conflict.ce_id) == (1, 1, "e1")
    assert (outcome.counts["redelivered"] + outcome.counts["duplicate"], outcome.counts["accepted"]) == (2, 1)
    assert rows == [("AGENTESE", "{[1,5)}", 0), ("EVENTS", "{}", 9)]
    assert owed == (3,)
    assert "differ" in check.check().detail, "its meters are still in force, and none was applied"
