"""The official OpenMeter and CloudEvents SDKs work unchanged against the running door."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import httpx
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent
from openmeter import Client
from openmeter.models import Event

from .conftest import Door


def test_the_openmeter_sdk_ingests_one_and_many(door: Door) -> None:
    """Rule: an OpenMeter SDK may point here."""
    before = door.stored()
    client = Client(endpoint=door.service.url, token=door.key)

    def made() -> Event:
        return Event(
            id=uuid.uuid4().hex,
            source="sdk",
            specversion="1.0",
            type="llm.tokens",
            subject="acme",
            time=datetime.now(UTC),
            data={"tokens": 3},
        )

    client.events.ingest_event(made())
    client.events.ingest_events([made() for _ in range(3)])
    assert door.stored() == before + 4


def test_the_cloudevents_sdk_publishes_in_both_modes(door: Door) -> None:
    """Rule: structured and binary, as the SDK writes them."""
    for convert in (to_structured, to_binary):
        headers, body = convert(CloudEvent({"type": "llm.tokens", "source": "sdk"}, {"tokens": 3}))
        answer = httpx.post(
            f"{door.service.url}/v1/events",
            content=body,
            headers={**headers, "authorization": f"Bearer {door.key}"},
        )
        assert answer.status_code == 202, answer.text
