"""A migrated ledger with a few meters."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import database
from kgents_common.crash import CrashPoints
from kgents_metering.model.meters import parse
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.meters import sync

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
