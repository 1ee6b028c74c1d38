"""A key of several tenants asks about those it names: one, some, in one answer; never about another's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx import QueryParams
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import keyring
from kgents_common.application import application
from kgents_common.clock import ManualClock
from kgents_common.telemetry import new_registry
from kgents_metering.handlers import reads
from kgents_metering.handlers.authorization import record_by_key
from kgents_metering.handlers.reads import bad_events
from kgents_metering.metrics import ReadMetrics
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.reads import ReadLimits, UsageReads

from .messages import event

QUERY = "/api/v1/meters/tokens/query"
NOW = datetime(2026, 11, 23, 13, tzinfo=UTC)


@pytest.fixture
async def asked(
    pool: AsyncConnectionPool[AsyncConnection], ledger: Ledger, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    """Reads of at most ten rows over hours of three tenants; the client's key is of acme and globex."""
    key, record = keyring.mint(["acme", "globex"], keyring.TENANT_SCOPES)
    every, every_record = keyring.mint("*", keyring.TENANT_SCOPES)
    own, own_record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(tmp_path / "keys.json", [record, every_record, own_record])
    gate = reads.Gate(
        record_by_key(keyring.Keyring(tmp_path / "keys.json")), reads.Admission(), ReadMetrics(new_registry())
    )
    usage = UsageReads(pool, ReadLimits(rows=10))
    app = application(
        [*reads.routes(usage, gate, ManualClock(NOW)), *bad_events.routes(usage, gate)],
        reads.EXCEPTION_HANDLERS,
    )
    used = [("acme", 9, 1), ("acme", 11, 2), ("globex", 9, 4), ("globex", 10, 8), ("initech", 9, 16)]
    await ledger.apply(
        [
            event(
                seq,
                f"e{seq}",
                subject=tenant,
                time=f"2026-11-23T{hour:02}:00:00Z",
                data={"tokens": tokens, "model": f"of-{tenant}"},
            )
            for seq, (tenant, hour, tokens) in enumerate(used, 1)
        ],
        [],
    )
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://metering",
        headers={"x-api-key": key, "x-every": every, "x-own": own},
    ) as made:
        yield made


def shown(answer: httpx.Response) -> list[tuple[Any, ...]]:
    """Hour, subject and value of each row."""
    assert answer.status_code == 200, answer.text
    return [(row["windowStart"][11:13], row["subject"], row["value"]) for row in answer.json()["data"]]


async def test_several_are_one_answer_by_window(asked: httpx.AsyncClient) -> None:
    """Rule: `subject` filters and groups, as OpenMeter has it; by window, then subject; POST, too."""
    by_hour = [("09", "acme", 1), ("09", "globex", 4), ("10", "globex", 8), ("11", "acme", 2)]
    named = [("subject", "globex"), ("subject", "acme")]
    assert shown(await asked.get(QUERY, params=[*named, ("windowSize", "HOUR")])) == by_hour
    body = {"subject": ["globex", "acme"], "windowSize": "HOUR"}
    assert shown(await asked.post(QUERY, json=body)) == by_hour
    assert shown(await asked.get(QUERY, params=named)) == [("09", "acme", 3), ("09", "globex", 12)]
    cut = [*named, ("from", "2026-11-23T09:00:00Z"), ("to", "2026-11-23T10:00:01Z")]
    assert shown(await asked.get(QUERY, params=cut)) == [("09", "acme", 1), ("09", "globex", 12)]
    lines = (await asked.get(QUERY, params=named, headers={"accept": "text/csv"})).text.splitlines()
    assert [line.split(",")[2:] for line in lines] == [["subject", "value"], ["acme", "3"], ["globex", "12"]]
    every = {"x-api-key": asked.headers["x-every"]}
    assert shown(await asked.get(f"{QUERY}?subject=initech", headers=every)) == [("09", "initech", 16)]
    assert shown(await asked.post(QUERY, json={"subject": "initech"}, headers=every)) == [
        ("09", "initech", 16)
    ]


async def test_one_limit_of_rows_holds_for_all_together(asked: httpx.AsyncClient, ledger: Ledger) -> None:
    """Rule: an answer about many tenants is not larger than one about one may be."""
    more = [
        event(10 + n, f"m{n}", subject=tenant, time=f"2026-11-22T0{n % 4}:00:00Z", data={"tokens": 1})
        for n, tenant in enumerate(["acme"] * 4 + ["globex"] * 4)
    ]
    await ledger.apply(more[:-2], [])
    wanted = f"{QUERY}?windowSize=HOUR&subject=acme&subject=globex"
    assert len(shown(await asked.get(wanted))) == 10
    await ledger.apply(more, [])
    assert (await asked.get(wanted)).status_code == 422


async def test_other_reads_of_several(asked: httpx.AsyncClient) -> None:
    """Rule: subjects, group values and events of all that are named; what is nobody's needs no name."""
    both = "subject=acme&subject=globex"
    assert (await asked.get(f"/api/v1/meters/tokens/subjects?{both}")).json() == ["acme", "globex"]
    values = await asked.get(f"/api/v1/meters/tokens/group-by/model/values?{both}&from=2026-11-23T00:00:00Z")
    assert values.json() == ["of-acme", "of-globex"]
    events = (await asked.get(f"/api/v1/events?{both}&limit=2")).json()
    assert [(e["event"]["subject"], e["event"]["time"][11:13]) for e in events] == [
        ("acme", "11"),
        ("globex", "10"),
    ]
    both_in = '{"subject":{"$in":["acme","globex"]}}'
    for asked_for in (f"filter={both_in}", both):
        pages = (await asked.get(f"/api/v2/events?{asked_for}&limit=2")).json()
        assert [e["event"]["subject"] for e in pages["items"]] == ["acme", "globex"]
        further = await asked.get(
            "/api/v2/events", params=[*QueryParams(asked_for).multi_items(), ("cursor", pages["nextCursor"])]
        )
        assert {e["event"]["id"] for e in further.json()["items"]} == {"e3", "e1"}
    for filters, status in (
        ("{}", 400),
        ('{"subject":{"$like":"%"}}', 400),
        ('{"subject":{"$eq":"initech"}}', 403),
    ):
        assert (await asked.get("/api/v2/events", params={"filter": filters})).status_code == status
    assert {meter["slug"] for meter in (await asked.get("/api/v1/meters")).json()} >= {"tokens"}
    assert (await asked.get("/api/v1/meters/tokens")).status_code == 200
    one_only = await asked.get(f"/v1/bad-events?kind=dead&{both}")
    assert (one_only.status_code, "one tenant" in one_only.json()["detail"]) == (400, True)
    assert (await asked.get("/v1/bad-events?kind=dead&subject=globex")).json()["items"] == []


async def test_who_is_asked_about_is_said_and_allowed(asked: httpx.AsyncClient) -> None:
    """Rule: nothing is guessed; a key of one tenant stays as it is."""
    bodies: list[tuple[Any, int]] = [
        ({}, 400),
        ([], 400),
        ({"subject": []}, 400),
        ({"subject": None}, 400),
        ({"subject": ["acme", 7]}, 400),
        ({"subject": ["acme", "initech"]}, 403),
        ({"subject": "*"}, 403),
    ]
    for body, status in bodies:
        assert (await asked.post(QUERY, json=body)).status_code == status, body
    for named, status in (("", 400), ("subject=acme&subject=initech", 403), ("subject=*", 403)):
        assert (await asked.get(f"{QUERY}?{named}")).status_code == status, named
    own = {"x-api-key": asked.headers["x-own"]}
    assert shown(await asked.get(QUERY, headers=own)) == [("09", None, 3)]
    assert (await asked.get(f"{QUERY}?subject=acme&subject=globex", headers=own)).status_code == 403
