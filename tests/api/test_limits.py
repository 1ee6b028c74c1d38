"""Rate limits on a real Valkey: a tenant gets its quota, and without Redis nobody waits."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from kgents_common import keyring
from kgents_devstack.servers import NatsServer, apply_streams

from .conftest import serving

RATE = 1
BURST = 10


def _batch(name: str, count: int) -> bytes:
    events = [
        {
            "specversion": "1.0",
            "id": f"{name}-{n}",
            "source": "a",
            "type": "llm.tokens",
            "data": {"tokens": 1},
        }
        for n in range(count)
    ]
    return json.dumps(events).encode()


@dataclass
class Limited:
    """A door with a small quota, and one caller of each of two tenants."""

    clients: dict[str, httpx.Client]
    valkey: Any

    def send(self, tenant: str, name: str, count: int = 1) -> httpx.Response:
        return self.clients[tenant].post(
            "/v1/events",
            content=_batch(name, count),
            headers={"content-type": "application/cloudevents-batch+json"},
        )


@pytest.fixture
def limited(tmp_path: Path, nats_server: NatsServer, own_valkey: Any) -> Iterator[Limited]:
    apply_streams(nats_server.url)
    minted = {tenant: keyring.mint(tenant, keyring.TENANT_SCOPES) for tenant in ("acme", "globex")}
    keys = {tenant: key for tenant, (key, _) in minted.items()}
    with serving(
        tmp_path,
        nats_server,
        keys,
        [record for _, record in minted.values()],
        REDIS_URL=own_valkey.url,
        KGENTS_RATE_LIMIT_EVENTS_PER_SECOND=str(RATE),
        KGENTS_MAX_BATCH_EVENTS=str(BURST),
    ) as clients:
        yield Limited(clients, own_valkey)


def test_a_tenant_gets_its_quota_and_no_more(limited: Limited) -> None:
    began = time.monotonic()
    whole = limited.send("acme", "whole", BURST)
    assert whole.status_code == 202, whole.text
    assert whole.headers["ratelimit-limit"] == str(BURST)
    assert int(whole.headers["ratelimit-remaining"]) <= BURST - 1
    answers = [limited.send("acme", f"more-{n}") for n in range(30)]
    passed = sum(answer.status_code == 202 for answer in answers)
    assert passed <= (time.monotonic() - began) * RATE + 1
    refused = [answer for answer in answers if answer.status_code != 202]
    assert {answer.status_code for answer in refused} == {429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert refused[0].headers["content-type"] == "application/problem+json"
    assert refused[0].json()["type"] == "urn:kgents:problem:rate_limited"
    assert limited.send("globex", "another's").status_code == 202


def test_a_refused_tenant_passes_again(limited: Limited) -> None:
    limited.send("acme", "whole", BURST)
    for n in range(200):
        answer = limited.send("acme", f"again-{n}")
        if answer.status_code == 202 and n > 0:
            return
        time.sleep(0.05)
    pytest.fail("the tenant never passed again")


def test_without_redis_everything_passes_and_nothing_waits(limited: Limited) -> None:
    limited.send("acme", "whole", BURST)
    limited.valkey.stop()
    time.sleep(1.1)  # beyond what was refused, and what was leased, while Redis was there
    answers = [limited.send("acme", f"free-{n}") for n in range(50)]
    assert {answer.status_code for answer in answers} == {202}
    assert "ratelimit-limit" not in answers[-1].headers
    assert limited.clients["acme"].get("/health").json()["status"] in ("ok", "degraded")
    assert limited.clients["acme"].get("/health/ready").status_code == 200


def test_an_address_that_guesses_keys_is_refused_and_a_good_key_passes(limited: Limited) -> None:
    client = limited.clients["acme"]
    statuses = [
        client.post("/v1/events", content=b"{}", headers={"x-api-key": f"kg_{n}"}).status_code
        for n in range(105)
    ]
    assert statuses[:100] == [401] * 100
    assert statuses[100:] == [429] * 5
    assert limited.send("acme", "good").status_code == 202
