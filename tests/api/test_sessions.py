"""Sessions on a real Valkey: a token is one agent's, for a while, and no more than its key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest

from kgents_common import keyring, subjects
from kgents_devstack.servers import NatsServer, apply_streams
from kgents_devstack.waiting import until as eventually

from .conftest import encoded, serving


@dataclass
class Visited:
    """A door, callers by name, and what it stands on."""

    callers: dict[str, httpx.Client]
    nats: NatsServer
    valkey: Any
    keys_file: Path
    records: dict[str, keyring.KeyRecord]

    def mint(self, caller: str = "acme", **asked: Any) -> httpx.Response:
        return self.callers[caller].post("/v1/sessions", json={"agent": "a1", **asked})

    def publish(self, token: str, event_id: str, **changes: Any) -> httpx.Response:
        return self.callers["nobody"].post(
            "/v1/events",
            content=encoded(event_id, **changes),
            headers={"content-type": "application/cloudevents+json", "authorization": f"Bearer {token}"},
        )

    def last_event(self, tenant: str) -> dict[str, Any]:
        async def ask() -> bytes:
            client = await nats.connect(self.nats.url)
            try:
                subject = subjects.agentese(tenant, "llm.tokens")
                return (await client.jetstream().get_last_msg("AGENTESE", subject)).data or b""
            finally:
                await client.close()

        return dict(json.loads(asyncio.run(ask())))


@pytest.fixture
def visited(tmp_path: Path, nats_server: NatsServer, own_valkey: Any) -> Iterator[Visited]:
    apply_streams(nats_server.url)
    minted = {
        "acme": keyring.mint("acme", keyring.TENANT_SCOPES),
        "globex": keyring.mint("globex", keyring.TENANT_SCOPES),
        "reader": keyring.mint("acme", ["events:read", "sessions:write"]),
        "writer": keyring.mint("acme", ["events:write"]),
    }
    keys = {"nobody": "", **{name: key for name, (key, _) in minted.items()}}
    records = {name: record for name, (_, record) in minted.items()}
    with serving(tmp_path, nats_server, keys, records.values(), REDIS_URL=own_valkey.url) as callers:
        yield Visited(callers, nats_server, own_valkey, tmp_path / "keys.json", records)


def test_a_session_publishes_as_its_agent(visited: Visited) -> None:
    answer = visited.mint()
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    minted = answer.json()
    assert minted["tenant"] == "acme"
    assert minted["scopes"] == ["events:read", "events:write"]
    assert visited.publish(minted["token"], "by-session").status_code == 202
    event = visited.last_event("acme")
    assert (event["id"], event["agent"], event["subject"]) == ("by-session", "a1", "acme")
    assert visited.publish(minted["token"], "same", agent="a1").status_code == 202
    foreign = visited.publish(minted["token"], "another's", agent="a2")
    assert foreign.status_code == 403
    assert foreign.json()["invalid_parameters"][0]["field"] == "agent"


def test_a_session_is_no_more_than_its_key(visited: Visited) -> None:
    token = visited.mint("reader").json()["token"]
    assert visited.publish(token, "unread").status_code == 403
    assert visited.mint("reader", scopes=["events:write"]).status_code == 403
    assert visited.mint("writer").status_code == 403
    again = visited.callers["nobody"].post(
        "/v1/sessions", json={"agent": "a2"}, headers={"authorization": f"Bearer {token}"}
    )
    assert again.status_code == 403


def test_a_session_goes_with_its_key(visited: Visited) -> None:
    token = visited.mint().json()["token"]
    assert visited.publish(token, "before").status_code == 202
    keyring.write(visited.keys_file, [r for name, r in visited.records.items() if name != "acme"])
    eventually(lambda: visited.publish(token, "after").status_code == 401)


def test_a_session_ends_by_itself(visited: Visited) -> None:
    token = visited.mint(ttl_seconds=1).json()["token"]
    eventually(lambda: visited.publish(token, "late").status_code == 401)


def test_a_session_is_ended_by_its_token_and_by_its_tenants_keys_alone(visited: Visited) -> None:
    one, two = visited.mint().json(), visited.mint().json()
    bearer = {"authorization": f"Bearer {one['token']}"}
    nobody, path = visited.callers["nobody"], f"/v1/sessions/{two['id']}"
    assert visited.callers["globex"].delete(path).status_code == 404
    assert visited.callers["writer"].delete(path).status_code == 403
    assert nobody.delete(path, headers=bearer).status_code == 403
    assert visited.callers["acme"].delete("/v1/sessions/current").status_code == 404
    assert visited.publish(two["token"], "still").status_code == 202
    assert visited.callers["acme"].delete(path).status_code == 204
    assert visited.callers["acme"].delete(path).status_code == 404
    assert visited.publish(two["token"], "over").status_code == 401
    assert nobody.delete("/v1/sessions/current", headers=bearer).status_code == 204
    assert visited.publish(one["token"], "over too").status_code == 401


def test_a_token_of_another_secret_opens_nothing(visited: Visited) -> None:
    token = visited.mint().json()["token"]
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    assert visited.publish(wrong, "guessed").status_code == 401
    assert visited.publish("ks_", "empty").status_code == 401


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, ""),
        ({"agent": ""}, "agent"),
        ({"agent": "line\n"}, "agent"),
        ({"agent": "a", "ttl_seconds": 3601}, "ttl_seconds"),
        ({"agent": "a", "scopes": ["usage:read"]}, "scopes[0]"),
        ({"agent": "a", "more": 1}, ""),
    ],
)
def test_a_wrong_wish_is_told_which_field(visited: Visited, body: dict[str, Any], field: str) -> None:
    answer = visited.callers["acme"].post("/v1/sessions", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["invalid_parameters"][0]["field"] == field


def test_redis_away_ends_sessions_and_nothing_else(visited: Visited) -> None:
    token = visited.mint().json()["token"]
    visited.valkey.stop()
    refused = visited.publish(token, "away")
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    assert visited.mint().status_code == 503
    with_key = visited.callers["acme"].post(
        "/v1/events", content=encoded("by key"), headers={"content-type": "application/cloudevents+json"}
    )
    assert with_key.status_code == 202
    eventually(lambda: visited.callers["acme"].get("/health").json()["status"] == "degraded")
    assert visited.callers["acme"].get("/health/ready").status_code == 200
