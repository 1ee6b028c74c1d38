"""Keys of several tenants, and sessions bound to their sources: whose an event is, is said and checked."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from kgents_common import keyring
from kgents_devstack.servers import NatsServer, ValkeyServer, apply_streams

from .conftest import encoded, event, serving

ONE = {"content-type": "application/cloudevents+json"}
BATCH = {"content-type": "application/cloudevents-batch+json"}


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    directory = tmp_path_factory.mktemp("several")
    minted = {
        "acme": keyring.mint("acme", keyring.TENANT_SCOPES),
        "two": keyring.mint(["acme", "globex"], keyring.TENANT_SCOPES),
        "every": keyring.mint("*", keyring.TENANT_SCOPES),
    }
    with NatsServer(directory / "nats") as nats, ValkeyServer(directory / "valkey") as valkey:
        apply_streams(nats.url)
        keys = {name: key for name, (key, _) in minted.items()}
        records = [record for _, record in minted.values()]
        with serving(directory, nats, keys, records, REDIS_URL=valkey.url) as clients:
            yield clients


@pytest.mark.parametrize(
    ("who", "subject", "status"),
    [
        ("two", "acme", 202),
        ("two", "globex", 202),
        ("two", "initech", 403),
        ("two", None, 400),
        ("two", "", 400),
        ("two", "a.b", 400),
        ("two", "*", 400),
        ("every", "initech", 202),
        ("every", "a b", 400),
        ("every", "*", 400),
        ("acme", None, 202),
        ("acme", "acme", 202),
        ("acme", "globex", 403),
    ],
)
def test_the_subject_names_the_tenant_and_is_on_the_list(
    callers: dict[str, httpx.Client], who: str, subject: str | None, status: int
) -> None:
    """Rule: keys of one tenant stay as they are; of several, nothing is guessed."""
    body = encoded(f"{who}-{subject}", subject=subject)
    answer = callers[who].post("/v1/events", content=body, headers=ONE)
    assert answer.status_code == status, answer.text
    if status != 202:
        assert [v["field"] for v in answer.json()["invalid_parameters"]] == ["subject"]


def test_a_batch_may_mix_tenants_and_is_one(callers: dict[str, httpx.Client]) -> None:
    """Rule: each event is its own tenant's; one of a foreign tenant, and none is stored."""
    mixed = [event(f"mixed-{tenant}", subject=tenant) for tenant in ("acme", "globex", "acme2")]
    refused = callers["two"].post("/v1/events", content=json.dumps(mixed), headers=BATCH)
    assert refused.status_code == 403
    assert [v["field"] for v in refused.json()["invalid_parameters"]] == ["[2].subject"]
    taken = callers["every"].post("/v1/events", content=json.dumps(mixed), headers=BATCH)
    assert taken.status_code == 202
    assert [receipt["duplicate"] for receipt in taken.json()["receipts"]] == [False] * 3
    ingested = callers["two"].post("/api/v1/events", content=json.dumps(mixed[:2]), headers=BATCH)
    assert ingested.status_code == 204


def test_a_live_stream_is_one_tenants(callers: dict[str, httpx.Client]) -> None:
    path = "/v1/events/stream"
    for query, status in (("", 400), ("?subject=initech", 403), ("?subject=acme&subject=globex", 400)):
        assert callers["two"].get(path + query).status_code == status
    assert callers["two"].head(f"{path}?subject=globex").status_code in (200, 405)


def test_a_session_of_a_wide_key_is_of_one_tenant(callers: dict[str, httpx.Client]) -> None:
    wish = {"agent": "a1"}
    assert callers["two"].post("/v1/sessions", json=wish).status_code == 400
    assert callers["two"].post("/v1/sessions", json={**wish, "tenant": "initech"}).status_code == 403
    assert callers["acme"].post("/v1/sessions", json={**wish, "tenant": "globex"}).status_code == 403
    minted = callers["two"].post("/v1/sessions", json={**wish, "tenant": "globex"})
    assert (minted.status_code, minted.json()["tenant"]) == (201, "globex")
    token = {**ONE, "authorization": f"Bearer {minted.json()['token']}", "x-api-key": ""}
    assert callers["two"].post("/v1/events", content=encoded("s1"), headers=token).status_code == 202
    foreign = callers["two"].post("/v1/events", content=encoded("s2", subject="acme"), headers=token)
    assert foreign.status_code == 403
    assert callers["two"].delete(f"/v1/sessions/{minted.json()['id']}").status_code == 204


def test_a_session_may_be_bound_to_its_sources(callers: dict[str, httpx.Client]) -> None:
    """Rule: an agent that holds it cannot void another's event by its source and id."""
    wish = {"agent": "a1", "sources": ["agents/a1", "tools/t1"]}
    token = callers["acme"].post("/v1/sessions", json=wish).json()["token"]
    headers = {**ONE, "authorization": f"Bearer {token}", "x-api-key": ""}
    for source, status in (("agents/a1", 202), ("tools/t1", 202), ("agents/a2", 403), ("agents/a1/", 403)):
        body = encoded(f"bound-{source}", source=source)
        assert callers["acme"].post("/v1/events", content=body, headers=headers).status_code == status
    assert callers["acme"].post("/v1/sessions", json={**wish, "sources": []}).status_code == 400
