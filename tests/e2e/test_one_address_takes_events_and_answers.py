"""One address: OpenMeter's SDK sends to the door and asks there; what went wrong is found there, too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import nats
from openmeter import Client
from openmeter.models import Event

from .conftest import System, make_event, publish_directly, run, wait_for


def test_the_sdk_works_with_one_endpoint(make_system: Callable[..., System]) -> None:
    """Rule: ingest, query, meters, listing and CSV at the door; without the reads events are still taken."""
    system = make_system(services=("metering", "reads", "api"))
    api, key = system.stack.service("api").url, system.stack.keys["acme"]
    sdk = Client(endpoint=api, token=key)
    for number in range(3):
        sdk.events.ingest_event(
            Event(
                id=f"one-{number}",
                source="sdk",
                specversion="1.0",
                type="llm.tokens",
                subject="acme",
                data={"tokens": 5, "model": "it's", "direction": "in"},
            )
        )
    system.settle()
    answer = sdk.meters.query_json("tokens", subject=["acme"], filter_group_by={"model": "it's"})
    assert [row.value for row in answer.data] == [15]
    assert {meter.slug for meter in sdk.meters.list()} >= {"tokens", "llm_calls"}
    assert sdk.meters.list_subjects("tokens") == ["acme"]
    assert [event.event.id for event in sdk.events.list(limit=1)] == ["one-2"]
    paged = sdk.events_v2.list(limit=2, filter={"type": {"$eq": "llm.tokens"}})
    assert [event.event.id for event in paged] == ["one-2", "one-1", "one-0"]

    with httpx.Client(base_url=api, headers={"authorization": f"Bearer {key}"}, timeout=30) as client:
        path = "/api/v1/meters/tokens/query"
        as_csv = client.get(path, headers={"accept": "text/csv"})
        assert as_csv.headers["content-disposition"] == 'attachment; filename="tokens.csv"'
        assert as_csv.text.splitlines()[0] == "window_start,window_end,value"
        posted = client.post(path, json={"groupBy": ["model"]}).json()["data"]
        assert [row["groupBy"] for row in posted] == [{"model": "it's"}]
        refused = client.get(f"{path}?windowsize=DAY")
        assert (refused.status_code, "windowSize" in refused.json()["detail"]) == (400, True)
        assert client.get(path, headers={"authorization": "Bearer kg_none"}).status_code == 401
        assert client.post("/api/v1/meters", json={}).status_code == 405
        door, reads = system.stack.service("api"), system.stack.reads
        described = httpx.get(f"{door.operations_url}/openapi.json").json()["paths"]
        own = httpx.get(f"{reads.operations_url}/openapi.json").json()["paths"]
        assert {*own} <= {*described}
        assert {*described["/api/v1/events"]} == {"get", "post"}
        counted = httpx.get(f"{door.operations_url}/metrics").text
        assert 'code="200",method="POST",route="/api/v1/meters/{meter}/query"' in counted

        system.stack.reads.stop()
        away = client.get(path)
        assert (away.status_code, away.headers["content-type"]) == (503, "application/problem+json")
        assert away.headers["retry-after"] == "2"
        system.post(50)
        system.settle()


def test_a_tenant_finds_its_own_bad_events(make_system: Callable[..., System]) -> None:
    """Rule: invalid, dead and conflicting ones, in pages, filtered; nobody else's."""
    system = make_system(services=("metering", "reads", "api"))
    api = system.stack.service("api").url
    system.post(
        0, events=[make_event(id=f"bad-{n}", data={"tokens": "many", "model": "m"}) for n in range(5)]
    )
    system.acknowledged = {}
    run(publish_directly(system.stack.nats.url, [make_event(id="same", data={"tokens": 1, "model": "m"})]))
    run(publish_directly(system.stack.nats.url, [make_event(id="same", data={"tokens": 2, "model": "m"})]))
    run(_publish(system.stack.nats.url, "agentese.acme.llm.tokens", b"no event"))
    run(_publish(system.stack.nats.url, "agentese.globex.llm.tokens", b"nor this"))
    wait_for(lambda: system.ledger()["dead"] == 2 and system.ledger()["conflict"] == 1)
    wait_for(lambda: system.ledger()["accepted"] == 6)

    def ask(parameters: str, tenant: str = "acme") -> Any:
        headers = {"authorization": f"Bearer {system.stack.keys[tenant]}"}
        answer = httpx.get(f"{api}/v1/bad-events?{parameters}", headers=headers, timeout=30)
        return answer.json() if answer.status_code == 200 else answer.status_code

    first = ask("kind=invalid&limit=3")
    second = ask(f"kind=invalid&limit=3&before={first['next']}")
    pages = first["items"] + second["items"]
    assert {item["id"] for item in pages} == {f"bad-{n}" for n in range(5)}
    assert [item["number"] for item in pages] == sorted((item["number"] for item in pages), reverse=True)
    assert "next" not in second
    assert first["items"][0]["reason"] == "invalid event: value cannot be parsed as float64: many"
    assert first["items"][0]["meter"] == "tokens"
    assert ask("kind=invalid&code=nan")["items"] == []
    assert len(ask("kind=invalid&meter=tokens&type=llm.tokens&source=agents/a1")["items"]) == 5
    (dead,) = ask("kind=dead")["items"]
    assert (dead["body"], dead["type"], dead["state"]) == ("no event", "llm.tokens", "open")
    (conflict,) = ask("kind=conflict")["items"]
    assert (conflict["id"], conflict["type"]) == ("same", "llm.tokens")
    assert [item["body"] for item in ask("kind=dead", "globex")["items"]] == ["nor this"]
    assert ask("kind=invalid", "globex")["items"] == ask("kind=conflict", "globex")["items"] == []
    for wrong in ("", "kind=bad", "kind=dead&source=x", "kind=invalid&before=0", "kind=invalid&after=1"):
        assert ask(wrong) == 400
    assert datetime.fromisoformat(dead["storedAt"]) <= datetime.now(UTC)


async def _publish(url: str, subject: str, body: bytes) -> None:
    client = await nats.connect(url)
    await client.jetstream().publish(subject, body)
    await client.close()
