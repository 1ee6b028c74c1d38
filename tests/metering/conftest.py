"""A migrated ledger with a few meters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette

from kgents_common import database, keyring
from kgents_common.clock import ManualClock
from kgents_common.crash import CrashPoints
from kgents_common.telemetry import new_registry
from kgents_metering.handlers import conflicts, reads
from kgents_metering.handlers.authorization import record_by_key
from kgents_metering.metrics import ReadMetrics
from kgents_metering.model.meters import parse
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.conflicts import Conflicts
from kgents_metering.sinks.ledger.meter_changes import sync
from kgents_metering.sinks.ledger.reads import UsageReads

from .messages import event

METERS = parse(
    {
        "meters": [
            {"slug": "tokens", "eventType": "llm.tokens", "aggregation": "SUM", "valueProperty": "$.tokens",
             "groupBy": {"model": "$.model"}},
            {"slug": "calls", "eventType": "llm.tokens", "aggregation": "COUNT"},
            {"slug": "models", "eventType": "llm.tokens", "aggregation": "UNIQUE_COUNT",
             "valueProperty": "$.model"},
        ]
    }
)  # fmt: skip


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[AsyncConnectionPool[AsyncConnection]]:
    """A pool on a migrated, empty ledger with the meters above in force."""
    await database.migrate(database_url, package="kgents_metering.schema", schema="metering")
    made = database.make_pool(database_url, application="test")
    await made.open()
    await sync(made, METERS)
    yield made
    await made.close()


@pytest.fixture
def ledger(pool: AsyncConnectionPool[AsyncConnection]) -> Ledger:
    """The ledger, owing everything to OpenMeter."""
    return Ledger(pool, target="openmeter", stream="AGENTESE", crash_points=CrashPoints(None))


@pytest.fixture
async def client(
    pool: AsyncConnectionPool[AsyncConnection], ledger: Ledger, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    """The reads over a ledger with a few events of acme on 2026-11-22 and 23."""
    key, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    foreign, foreign_record = keyring.mint("globex", ["usage:read"])
    writer, writer_record = keyring.mint("acme", ["events:write"])
    keyring.write(tmp_path / "keys.json", [record, foreign_record, writer_record])
    gate = reads.Gate(
        record_by_key(keyring.Keyring(tmp_path / "keys.json")), reads.Admission(), ReadMetrics(new_registry())
    )
    clock = ManualClock(datetime(2026, 11, 23, 13, tzinfo=UTC))
    app = Starlette(
        routes=[
            *reads.routes(UsageReads(pool), gate, clock),
            *conflicts.routes(Conflicts(pool), gate),
        ],
        exception_handlers=reads.EXCEPTION_HANDLERS,
    )
    await ledger.apply(
        [
            event(1, "a", time="2026-11-22T23:30:00Z", data={"tokens": 1, "model": "m1"}),
            event(2, "b", time="2026-11-23T00:30:30Z", data={"tokens": "0.1", "model": "m1"}),
            event(3, "c", time="2026-11-23T00:30:45Z", data={"tokens": "0.2", "model": "m,2"}),
            event(4, "d", time="2026-11-23T01:00:00Z", data={"model": "m1"}),
        ],
        [],
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://metering",
        headers={"authorization": f"Bearer {key}", "x-foreign": foreign, "x-writer": writer},
    ) as made:
        yield made
