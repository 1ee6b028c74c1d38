"""The door for events: an answer of 2xx means durable, and a refusal names what is wrong."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import nats
import pytest

from .conftest import Door, encoded, event

BATCH = "application/cloudevents-batch+json"


def new() -> str:
    return uuid.uuid4().hex


async def test_an_accepted_event_is_in_the_stream_whole(door: Door) -> None:
    """Rule: 202 only after the PubAck, with where it is stored (P1)."""
    name = new()
    answer = door.post(encoded(name, region="eu"))
    (receipt,) = answer.json()["receipts"]
    assert (answer.status_code, receipt["id"], receipt["duplicate"]) == (202, name, False)
    client = await nats.connect(door.nats.url)
    stored = await client.jetstream().get_msg("AGENTESE", receipt["stream_sequence"])
    await client.close()
    assert stored.subject == "agentese.acme.llm.tokens"
    assert stored.data is not None
    body = json.loads(stored.data)
    assert (body["id"], body["subject"], body["region"]) == (name, "acme", "eu")


def test_the_same_event_again_is_a_duplicate_with_the_same_receipt(door: Door) -> None:
    """Rule: sending again is safe, and says so (P1)."""
    body = encoded(new())
    first, second = door.post(body).json()["receipts"][0], door.post(body).json()["receipts"][0]
    assert second == {**first, "duplicate": True}


def test_two_tenants_may_use_the_same_id(door: Door) -> None:
    """Rule: identity is tenant, source and id."""
    body = encoded(new())
    door.post(body)
    answer = door.post(body, authorization=f"Bearer {door.foreign_key}")
    assert answer.json()["receipts"][0]["duplicate"] is False


@pytest.mark.parametrize("kind", [BATCH, "application/json", f"{BATCH}; charset=utf-8"])
def test_a_batch_gets_a_receipt_for_each_event_in_order(door: Door, kind: str) -> None:
    """Rule: 202 with a receipt for each event."""
    names = [new() for _ in range(250)]
    answer = door.post(json.dumps([event(n) for n in names]), kind)
    assert [r["id"] for r in answer.json()["receipts"]] == names
    assert len({r["stream_sequence"] for r in answer.json()["receipts"]}) == 250


def test_binary_mode_is_taken(door: Door) -> None:
    """Rule: structured, batch and binary CloudEvents."""
    answer = door.post(
        b'{"tokens": 3}',
        "application/json",
        **{"ce-id": new(), "ce-source": "agents/a1", "ce-type": "llm.tokens", "ce-specversion": "1.0"},
    )
    assert answer.status_code == 202


def test_a_key_in_x_api_key_is_as_good(door: Door) -> None:
    """Rule: callers authenticate by bearer token or X-API-Key."""
    answer = door.post(encoded(new()), authorization="", **{"x-api-key": door.key})
    assert answer.status_code == 202


def deep(levels: int) -> bytes:
    body = encoded("deep", data=None)
    return body[:-1] + b',"data":{"a":' + b"[" * levels + b"]" * levels + b"}}"


REFUSED: list[tuple[str, bytes | str, str, int, str | None]] = [
    ("not JSON", b"{", "application/cloudevents+json", 400, ""),
    ("not UTF-8", b'{"id":"\xff"}', "application/cloudevents+json", 400, "id"),
    ("an array where one event was announced", b"[]", "application/cloudevents+json", 400, ""),
    ("no events", b"[]", BATCH, 400, ""),
    ("empty", b"", "application/json", 400, ""),
    ("wrong content type", encoded("x"), "text/plain", 415, None),
    ("no content type", encoded("x"), "", 415, None),
    ("form", b"a=b", "application/x-www-form-urlencoded", 415, None),
    ("missing id", encoded("x", id=None), "application/cloudevents+json", 400, "id"),
    ("missing source", encoded("x", source=None), "application/cloudevents+json", 400, "source"),
    ("missing type", encoded("x", type=None), "application/cloudevents+json", 400, "type"),
    ("number as id", encoded("x", id=7), "application/cloudevents+json", 400, "id"),
    ("specversion 0.3", encoded("x", specversion="0.3"), "application/cloudevents+json", 400, "specversion"),
    ("foreign tenant", encoded("x", subject="globex"), "application/cloudevents+json", 403, "subject"),
    ("wildcard subject", encoded("x", subject="*"), "application/cloudevents+json", 403, "subject"),
    ("wildcard type", encoded("x", type="llm.>"), "application/cloudevents+json", 400, "type"),
    ("space in type", encoded("x", type="llm tokens"), "application/cloudevents+json", 400, "type"),
    ("line break in type", encoded("x", type="a\r\nPUB b 0"), "application/cloudevents+json", 400, "type"),
    ("far future", encoded("x", time="2999-01-01T00:00:00Z"), "application/cloudevents+json", 400, "time"),
    ("before 1970", encoded("x", time="0001-01-01T00:00:00Z"), "application/cloudevents+json", 400, "time"),
    ("no time", encoded("x", time="soon"), "application/cloudevents+json", 400, "time"),
    ("1e400", encoded("x", data=None)[:-1] + b',"data":{"n":1e400}}', "application/json", 400, "data"),
    ("deep nesting", deep(100), "application/json", 400, "data"),
    ("very deep nesting", deep(100_000), "application/json", 400, None),
    ("data that is a list", encoded("x", data=[1]), "application/json", 400, "data"),
    ("1 MiB", encoded("x", data={"a": "b" * 2**20}), "application/cloudevents+json", 413, None),
    ("1 MiB as JSON", encoded("x", data={"a": "b" * 2**20}), "application/json", 413, ""),
    ("5 MiB", b"[" + b" " * 5 * 2**20 + b"]", BATCH, 413, None),
    ("1001 events", json.dumps([event(str(i)) for i in range(1001)]), BATCH, 413, ""),
    ("second event wrong", json.dumps([event("a"), event("b", type="x y")]), BATCH, 400, "[1].type"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "kind", "status", "field"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_bad_input_is_refused_and_nothing_is_stored(
    door: Door, body: bytes | str, kind: str, status: int, field: str | None
) -> None:
    """Rule: a clear 4xx naming the field; nothing of that request is stored; the process is unharmed."""
    before = door.stored()
    answer = door.post(body, kind)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["detail"]
    if field is not None:
        assert field in [p["field"] for p in problem["invalid_parameters"]]
    assert door.stored() == before
    assert door.post(encoded(new())).status_code == 202


def test_a_body_in_chunks_is_capped_too(door: Door) -> None:
    """Rule: the cap holds where no length was declared."""

    def chunks() -> Any:
        for _ in range(40):
            yield b" " * 256 * 1024

    answer = door.client.post(
        "/v1/events",
        content=chunks(),
        headers={"authorization": f"Bearer {door.key}", "content-type": BATCH},
    )
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": ""}, 401),
        ({"authorization": "Bearer kg_unknown"}, 401),
        ({"authorization": "Basic abc"}, 401),
        ({"authorization": "Bearer " + "x" * 5000}, 401),
    ],
)
def test_bad_credentials_are_refused(door: Door, headers: dict[str, str], status: int) -> None:
    """Rule: no one gets in where they don't belong (P8)."""
    answer = door.post(encoded(new()), **headers)
    assert answer.status_code == status
    assert "www-authenticate" in answer.headers


def test_a_key_without_the_scope_is_forbidden(door: Door) -> None:
    """Rule: a key may do what its scopes say."""
    assert door.post(encoded(new()), authorization=f"Bearer {door.reader_key}").status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/events", 405), ("POST", "/nowhere", 404), ("GET", "/", 404)]
)
def test_unknown_places_answer_with_a_problem(door: Door, method: str, path: str, status: int) -> None:
    """Rule: errors are problem+json."""
    answer = door.client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_the_contract_names_every_route(door: Door) -> None:
    """Rule: `/openapi.json` is true: each path of it answers, and each route is in it."""
    described = httpx.get(f"{door.service.operations_url}/openapi.json").json()
    for path, methods in described["paths"].items():
        for method in methods:
            assert door.client.request(method.upper(), path).status_code not in (404, 405, 500)
    for path in ("/v1/events", "/api/v1/events", "/health", "/health/live", "/health/ready"):
        assert path in described["paths"]


def test_metrics_never_carry_a_tenant(door: Door) -> None:
    """Rule: labels are bounded; never a tenant in one."""
    door.post(encoded(new()))
    text = httpx.get(f"{door.service.operations_url}/metrics").text
    assert 'kgents_api_requests_total{code="202",method="POST",route="/v1/events"}' in text
    assert "kgents_nats_messages_published_total" in text
    assert "acme" not in text


def test_docs_fetch_nothing_from_elsewhere(door: Door) -> None:
    """Rule: the documentation works without a network."""
    page = httpx.get(f"{door.service.operations_url}/docs").text
    assert "/v1/events" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "src=" not in page
