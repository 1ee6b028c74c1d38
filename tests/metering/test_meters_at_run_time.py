"""Meters are made, changed and ended by API, in OpenMeter's shapes, beside those of the file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import keyring
from kgents_common.application import application
from kgents_metering.handlers import meter_door, reads
from kgents_metering.handlers.meter_door import MeterDoor, actor_by_key
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.meter_changes import sync
from kgents_metering.sinks.ledger.meter_editing import MeterEditing
from kgents_metering.sinks.ledger.meters import backfill

from .conftest import METERS
from .messages import event

Pool = AsyncConnectionPool[AsyncConnection]
LATENCY = {
    "slug": "latency",
    "eventType": "llm.tokens",
    "aggregation": "SUM",
    "valueProperty": "$.tokens",
    "groupBy": {"model": "$.model"},
}


@pytest.fixture
async def editor(pool: Pool, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    key, record = keyring.mint("*", ["meters:write"])
    tenants, tenants_record = keyring.mint("acme", keyring.TENANT_SCOPES)
    before, before_record = keyring.mint("acme", [])  # as releases before made them
    several, several_record = keyring.mint(["acme", "globex"], [])
    of_before = [
        msgspec.structs.replace(r, scopes=("meters:write",)) for r in (before_record, several_record)
    ]
    keyring.write(tmp_path / "keys.json", [record, tenants_record, *of_before])
    door = MeterDoor(MeterEditing(pool), actor_by_key(keyring.Keyring(tmp_path / "keys.json").find))
    app = application(meter_door.routes(door), reads.EXCEPTION_HANDLERS)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://metering",
        headers={
            "x-api-key": key,
            "x-tenants": tenants,
            "x-before": before,
            "x-several": several,
            "x-id": record.id,
        },
    ) as made:
        yield made


async def total(pool: Pool, slug: str) -> Any:
    async with pool.connection() as connection:
        row = await (
            await connection.execute(
                "select sum(r.sum) from metering.rollup r join metering.meter m on m.id = r.meter"
                " where m.slug = %s and m.deleted_at is null",
                [slug],
            )
        ).fetchone()
    return row[0] if row else None


async def test_a_meter_is_made_measured_changed_and_ended(
    editor: httpx.AsyncClient, pool: Pool, ledger: Ledger
) -> None:
    """Rule: history counts, once; progress and every change with its author can be seen."""
    await ledger.apply([event(i, f"e{i}") for i in range(1, 21)], [])
    made = await editor.post("/api/v1/meters", json=LATENCY)
    assert (made.status_code, made.json()["slug"], made.json()["groupBy"]) == (
        201,
        "latency",
        {"model": "$.model"},
    )
    assert (await editor.get("/v1/meters/latency/progress")).json()["isReady"] is False
    await ledger.apply([event(i, f"e{i}") for i in range(21, 31)], [])
    while await backfill(pool, chunk=7):
        pass
    progress = (await editor.get("/v1/meters/latency/progress")).json()
    assert (progress["isReady"], progress["measured"] == progress["total"]) == (True, True)
    assert await total(pool, "latency") == 300

    name = f"/api/v1/meters/{made.json()['id']}"
    changed = await editor.put(name, json={"name": "Latency", "groupBy": {}})
    assert (changed.json()["name"], changed.json()["groupBy"]) == ("Latency", {})
    while await backfill(pool):
        pass
    assert await total(pool, "latency") == 300
    assert (await editor.delete(name)).status_code == 204
    assert (await editor.delete(name)).status_code == 404
    await ledger.apply([event(99, "e99")], [])
    changes = (await editor.get("/v1/meter-changes")).json()
    mine = [one["action"] for one in changes if one["actor"] == editor.headers["x-id"]]
    assert mine == ["ended", "created", "created"]


async def test_a_file_neither_ends_nor_takes_what_was_made_by_api(
    editor: httpx.AsyncClient, pool: Pool
) -> None:
    """Rule: both ways stand beside each other; each meter has one owner."""
    await editor.post("/api/v1/meters", json=LATENCY)
    await sync(pool, METERS)
    assert (await editor.get("/v1/meters/latency/progress")).status_code == 200
    for request in (
        editor.put("/api/v1/meters/tokens", json={"name": "x"}),
        editor.delete("/api/v1/meters/tokens"),
        editor.post("/api/v1/meters", json=LATENCY),
    ):
        assert (await request).status_code == 409


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({**LATENCY, "slug": "UPPER"}, "slug"),
        ({**LATENCY, "valueProperty": "tokens"}, "valueProperty"),
        ({**LATENCY, "aggregation": "MEDIAN"}, "aggregation"),
        ({**LATENCY, "unknown": 1}, "unknown"),
        ([], "JSON object"),
    ],
)
async def test_a_wrong_meter_is_told(editor: httpx.AsyncClient, wish: object, told: str) -> None:
    """Rule: a clear error, and nothing is changed."""
    answer = await editor.post("/api/v1/meters", json=wish)
    assert (answer.status_code, told in answer.json()["detail"]) == (400, True)
    assert (await editor.put("/api/v1/meters/x", json={"aggregation": "SUM"})).status_code == 400
    assert (await editor.put("/api/v1/meters/x", json={})).status_code == 404


@pytest.mark.parametrize(
    ("whose", "told"),
    [("x-tenants", "lack the scope"), ("x-before", "every tenant's"), ("x-several", "every tenant's")],
)
async def test_meters_are_an_operators(editor: httpx.AsyncClient, whose: str, told: str) -> None:
    """Rule: a scope of its own, on a key of every tenant alone; a key of before with it is told why not."""
    headers = {"x-api-key": editor.headers[whose]}
    answer = await editor.post("/api/v1/meters", json=LATENCY, headers=headers)
    assert (answer.status_code, told in answer.json()["detail"]) == (403, True)
    assert (
        await editor.post("/api/v1/meters", json=LATENCY, headers={"x-api-key": "kg_no"})
    ).status_code == 401
