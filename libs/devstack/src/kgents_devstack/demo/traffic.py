"""What the demo sends, and its own record of it; nothing here asks the system what it thinks."""

from __future__ import annotations

import asyncio
import random
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import msgspec
import nats
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent
from openmeter import Client
from openmeter.models import Event

BATCH = "application/cloudevents-batch+json"
BURST_EVENTS = 10_000
BATCH_EVENTS = 100
CONNECTIONS = 8
MODELS = ("small-1", "medium-2", "large-3")
GARBAGE: tuple[tuple[str, bytes], ...] = (
    ("application/cloudevents+json", b"{"),
    ("application/cloudevents+json", b'{"specversion":"0.3","id":"1","source":"s","type":"t"}'),
    ("application/cloudevents+json", b'{"specversion":"1.0","id":"1","source":"s","type":"llm tokens"}'),
    (
        "application/cloudevents+json",
        b'{"specversion":"1.0","id":"1","source":"s","type":"t","subject":"other"}',
    ),
    (
        "application/cloudevents+json",
        b'{"specversion":"1.0","id":"1","source":"s","type":"t","data":{"n":1e400}}',
    ),
    ("text/plain", b"hello"),
    (BATCH, b"[]"),
)


@dataclass(slots=True)
class Sent:
    """The sender's own record.

    Attributes:
        events: Good events sent, repeats included.
        unique: Source and id of the different ones.
        tokens: What the different ones add up to.
        repeated: Receipts that said duplicate.
        refused: Requests of garbage answered with a 4xx.
        direct: Messages published straight to NATS, by how they should end.
    """

    events: int = 0
    acknowledged: int = 0
    unique: set[tuple[str, str]] = field(default_factory=set)
    tokens: int = 0
    repeated: int = 0
    garbage: int = 0
    refused: int = 0
    direct: dict[str, int] = field(default_factory=lambda: {"accepted": 0, "duplicate": 0, "dead": 0})

    def note(self, source: str, event_id: str, tokens: int) -> None:
        """A good event is being sent."""
        self.events += 1
        if (source, event_id) not in self.unique:
            self.unique.add((source, event_id))
            self.tokens += tokens


def send_with_openmeter_sdk(sent: Sent, *, url: str, key: str, tenant: str, count: int) -> None:
    """The official OpenMeter SDK, one by one and as a batch."""
    client = Client(endpoint=url, token=key)
    events = []
    for number in range(count):
        event_id = uuid.uuid4().hex
        sent.note("openmeter-sdk", event_id, number)
        events.append(
            Event(
                id=event_id,
                source="openmeter-sdk",
                specversion="1.0",
                type="llm.tokens",
                subject=tenant,
                time=datetime.now(UTC),
                data={"tokens": number, "model": MODELS[number % 3], "direction": "out"},
            )
        )
    client.events.ingest_event(events[0])
    client.events.ingest_events(events[1:])
    sent.acknowledged += count


def send_with_cloudevents_sdk(sent: Sent, *, url: str, key: str, count: int) -> None:
    """The official CloudEvents SDK, in structured and in binary mode."""
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30) as client:
        for number in range(count):
            event = CloudEvent(
                {"type": "llm.tokens", "source": "cloudevents-sdk"},
                {"tokens": number, "model": MODELS[number % 3], "direction": "in"},
            )
            sent.note("cloudevents-sdk", event["id"], number)
            headers, body = (to_structured if number % 2 else to_binary)(event)
            client.post("/v1/events", content=body, headers=dict(headers)).raise_for_status()
            sent.acknowledged += 1


async def send_burst(sent: Sent, *, url: str, key: str, roll: random.Random) -> None:
    """Ten thousand agent events over a few connections: some repeated, some late, with garbage in between."""
    batches: list[list[dict[str, Any]]] = []
    recent: list[dict[str, Any]] = []
    made = 0
    while made < BURST_EVENTS:
        batch = []
        for _ in range(min(BATCH_EVENTS, BURST_EVENTS - made)):
            event = roll.choice(recent) if recent and roll.random() < 0.05 else _agent_event(roll)
            batch.append(event)
            sent.note(event["source"], event["id"], event["data"]["tokens"])
        made += len(batch)
        recent = batch
        batches.append(batch)
    queue = iter(batches)
    async with httpx.AsyncClient(
        base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=60
    ) as client:

        async def worker() -> None:
            for number, batch in enumerate(queue):
                await _send_batch(client, sent, batch)
                if number % 5 == 0:
                    await _send_garbage(client, sent, roll)

        await asyncio.gather(*(worker() for _ in range(CONNECTIONS)))


async def publish_directly(sent: Sent, *, url: str, key: str, tenant: str) -> None:
    """Straight to NATS, past the door: an event three times without a message id, and garbage."""
    client = await nats.connect(url, token=key, inbox_prefix=f"_INBOX.{tenant}")
    jetstream = client.jetstream()
    body = msgspec.json.encode(
        {
            "specversion": "1.0",
            "id": uuid.uuid4().hex,
            "source": "direct",
            "type": "llm.tokens",
            "data": {"tokens": 1000, "model": MODELS[0], "direction": "in"},
        }
    )
    sent.tokens += 1000
    for outcome in ("accepted", "duplicate", "duplicate"):
        await jetstream.publish(f"agentese.{tenant}.llm.tokens", body)
        sent.direct[outcome] += 1
    for garbage in (b"\x00\xff", b"[]", body.replace(b'"1.0"', b'"0.3"')):
        await jetstream.publish(f"agentese.{tenant}.llm.tokens", garbage)
        sent.direct["dead"] += 1
    await client.close()


def _agent_event(roll: random.Random) -> dict[str, Any]:
    late = timedelta(minutes=roll.choice((0, 0, 0, 0, 3, 90)))
    return {
        "specversion": "1.0",
        "id": uuid.UUID(int=roll.getrandbits(128), version=4).hex,
        "source": f"agents/{roll.randrange(20)}",
        "type": "llm.tokens",
        "time": (datetime.now(UTC) - late).isoformat(),
        "data": {
            "tokens": roll.randrange(1, 5000),
            "model": roll.choice(MODELS),
            "direction": roll.choice(("in", "out")),
        },
    }


async def _send_batch(client: httpx.AsyncClient, sent: Sent, batch: list[dict[str, Any]]) -> None:
    answer = await client.post(
        "/v1/events", content=msgspec.json.encode(batch), headers={"content-type": BATCH}
    )
    answer.raise_for_status()
    receipts = answer.json()["receipts"]
    sent.acknowledged += len(receipts)
    sent.repeated += sum(receipt["duplicate"] for receipt in receipts)


async def _send_garbage(client: httpx.AsyncClient, sent: Sent, roll: random.Random) -> None:
    kind, body = roll.choice(GARBAGE)
    answer = await client.post("/v1/events", content=body, headers={"content-type": kind})
    sent.garbage += 1
    sent.refused += 400 <= answer.status_code < 500
