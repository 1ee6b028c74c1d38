"""A running door on a nats-server of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest

from kgents_common import keyring
from kgents_devstack.servers import NatsServer, ValkeyServer, apply_streams
from kgents_devstack.services import ServiceProcess


@dataclass
class Door:
    """The api as a caller sees it."""

    service: ServiceProcess
    nats: NatsServer
    key: str
    foreign_key: str
    reader_key: str
    client: httpx.Client

    def post(
        self, content: bytes | str, kind: str = "application/cloudevents+json", **headers: str
    ) -> httpx.Response:
        """POST /v1/events as the tenant acme, unless the headers say otherwise."""
        sent = {"authorization": f"Bearer {self.key}", "content-type": kind, **headers}
        return self.client.post("/v1/events", content=content, headers={k: v for k, v in sent.items() if v})

    def stored(self) -> int:
        """Messages in AGENTESE."""
        answer = httpx.get(f"{self.nats.monitor_url}/jsz?streams=true").json()
        streams = answer["account_details"][0]["stream_detail"]
        return int(next(s["state"]["messages"] for s in streams if s["name"] == "AGENTESE"))


def event(event_id: str, **changes: Any) -> dict[str, Any]:
    """A good event; None removes an attribute."""
    whole = {
        "specversion": "1.0",
        "id": event_id,
        "source": "agents/a1",
        "type": "llm.tokens",
        "data": {"tokens": 5, "model": "m1"},
        **changes,
    }
    return {k: v for k, v in whole.items() if v is not None}


def encoded(event_id: str, **changes: Any) -> bytes:
    """The same as JSON."""
    return json.dumps(event(event_id, **changes)).encode()


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """One door for a module's tests; they use ids of their own."""
    directory: Path = tmp_path_factory.mktemp("door")
    key, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    foreign_key, foreign = keyring.mint("globex", keyring.TENANT_SCOPES)
    reader_key, reader = keyring.mint("acme", ["events:read"])
    keyring.write(directory / "keys.json", [record, foreign, reader])
    with NatsServer(directory / "nats") as nats:
        apply_streams(nats.url)
        environment = {"NATS_SERVERS": nats.url, "KGENTS_KEYRING_FILE": str(directory / "keys.json")}
        with (
            ServiceProcess("api", directory / "api", environment) as service,
            httpx.Client(base_url=service.url, timeout=20) as client,
        ):
            yield Door(service, nats, key, foreign_key, reader_key, client)


@dataclass
class WholeDoor:
    """The api with all it can have: sessions, limits, webhooks, live streams.

    Attributes:
        tokens: What may be shown, by a name: `key`, `session` (of the agent a1), `reader` (a key that may not
            write), `none`, `unknown`.
    """

    service: ServiceProcess
    nats: NatsServer
    valkey: ValkeyServer
    tokens: dict[str, str]

    @property
    def url(self) -> str:
        """Where it is."""
        return self.service.url

    async def stored(self) -> list[tuple[str, dict[str, Any]]]:
        """Subject and event of every message of AGENTESE."""
        client = await nats.connect(self.nats.url)
        try:
            count = (await client.jetstream().stream_info("AGENTESE")).state.messages
            subscription = await client.jetstream().subscribe("agentese.>", ordered_consumer=True)
            messages = [await subscription.next_msg(20) for _ in range(count)]
            return [(message.subject, json.loads(message.data)) for message in messages]
        finally:
            await client.close()


@pytest.fixture(scope="module")
def whole_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeDoor]:
    """One for a module's tests; at their end, its log tells of no failure of its own."""
    directory: Path = tmp_path_factory.mktemp("whole-door")
    key, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    reader_key, reader = keyring.mint("acme", ["events:read"])
    keyring.write(directory / "keys.json", [record, reader])
    with NatsServer(directory / "nats") as nats_server, ValkeyServer(directory / "valkey") as valkey:
        apply_streams(nats_server.url)
        environment = {
            "NATS_SERVERS": nats_server.url,
            "REDIS_URL": valkey.url,
            "KGENTS_KEYRING_FILE": str(directory / "keys.json"),
            "STRIPE_WEBHOOK_SECRETS": "whsec_of_the_whole_door",
            "KGENTS_RATE_LIMIT_EVENTS_PER_SECOND": "100000",
        }
        with ServiceProcess("api", directory / "api", environment) as service:
            wish, headers = {"agent": "a1", "ttl_seconds": 3600}, {"x-api-key": key}
            session = httpx.post(f"{service.url}/v1/sessions", json=wish, headers=headers).json()["token"]
            tokens = {
                "key": key,
                "session": session,
                "reader": reader_key,
                "none": "",
                "unknown": "kg_unknown",
            }
            yield WholeDoor(service, nats_server, valkey, tokens)
            log = service.log_path.read_text()
            assert "Traceback" not in log
            assert "request.failed" not in log


@contextmanager
def serving(
    directory: Path,
    nats: NatsServer,
    keys: Mapping[str, str],
    records: Iterable[keyring.KeyRecord],
    **environment: str,
) -> Iterator[dict[str, httpx.Client]]:
    """A door of one test's own; a client for each key, by its name."""
    keyring.write(directory / "keys.json", records)
    environment = {
        "NATS_SERVERS": nats.url,
        "KGENTS_KEYRING_FILE": str(directory / "keys.json"),
        **environment,
    }
    with ExitStack() as stack:
        service = stack.enter_context(ServiceProcess("api", directory / "api", environment))
        yield {
            name: stack.enter_context(
                httpx.Client(base_url=service.url, timeout=20, headers={"x-api-key": key} if key else {})
            )
            for name, key in keys.items()
        }
