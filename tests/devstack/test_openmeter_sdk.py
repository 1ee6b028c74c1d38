"""OpenMeter's own SDK, unchanged, speaks to the stand-in as to OpenMeter."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from corehttp.exceptions import ClientAuthenticationError, HttpResponseError
from openmeter import Client
from openmeter.aio import Client as AsyncClient
from openmeter.models import Event

from kgents_devstack.openmeter.process import OpenMeterStandIn

pytest_plugins = ["kgents_devstack.openmeter.fixtures"]


@pytest.fixture
def sdk(openmeter: OpenMeterStandIn) -> Client:
    """The SDK's client, as its README makes it."""
    return Client(endpoint=openmeter.url, token=openmeter.token)


def event(number: int, **changes: Any) -> Event:
    """A valid event of the SDK's own model."""
    return Event(
        id=f"e-{number}",
        source="sdk",
        specversion="1.0",
        type="prompt",
        subject="acme",
        time=datetime(2026, 1, 1, 12, number, tzinfo=UTC),
        data={"tokens": str(number), "model": "m"},
        **changes,
    )


def test_ingest_list_and_query(openmeter: OpenMeterStandIn, sdk: Client) -> None:
    """One event, a batch, either; a meter; what they add up to; and all of them page by page."""
    meter = {
        "slug": "tokens_total",
        "eventType": "prompt",
        "aggregation": "SUM",
        "valueProperty": "$.tokens",
        "groupBy": {"model": "$.model"},
    }
    created = sdk.meters.create(meter)

    sdk.events.ingest_event(event(1))
    sdk.events.ingest_events([event(2), event(3), event(2)])
    sdk.events.ingest_events_json([event(4)])

    result = sdk.meters.query_json("tokens_total", subject=["acme"], group_by=["model"], window_size="HOUR")
    paged = [item.event.id for item in sdk.events_v2.list(limit=3)]
    filtered = [item.event.id for item in sdk.events_v2.list(filter={"id": {"$in": ["e-2", "e-9"]}})]
    assert (created.slug, sdk.meters.get(created.id).slug, len(sdk.meters.list())) == (
        "tokens_total",
    ) * 2 + (1,)
    assert [(row.value, row.subject, row.group_by) for row in result.data] == [(10.0, "acme", {"model": "m"})]
    assert result.data[0].window_start == datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert paged == ["e-4", "e-3", "e-2", "e-1"]
    assert filtered == ["e-2"]
    assert openmeter.stats()["duplicates"] == 1


def test_a_refusal_reaches_the_sdk_as_its_own_error(openmeter: OpenMeterStandIn, sdk: Client) -> None:
    """400 with the problem document's detail, 401 for a wrong token."""
    with pytest.raises(HttpResponseError) as refused:
        sdk.events.ingest_events([event(1), {"id": "x"}])
    with pytest.raises(ClientAuthenticationError):
        Client(endpoint=openmeter.url, token="wrong").meters.list()

    assert refused.value.status_code == 400
    assert "is missing" in refused.value.model["detail"]


def test_the_sdk_gets_through_a_503_by_itself(openmeter: OpenMeterStandIn, sdk: Client) -> None:
    """It retries 500, 503 and 504, and 429 only because it carries Retry-After."""
    openmeter.set_faults(error_before={"count": 1}, too_many_requests={"count": 1, "retry_after_seconds": 0})

    sdk.events.ingest_event(event(1))

    assert openmeter.stats()["by_status"] == {"204": 1, "429": 1, "503": 1}


async def test_the_asynchronous_client(openmeter: OpenMeterStandIn) -> None:
    """The same over its other transport."""
    async with AsyncClient(endpoint=openmeter.url, token=openmeter.token) as client:
        await client.events.ingest_events([event(1), event(2)])
        listed = [item.event.id async for item in client.events_v2.list(limit=1)]

    assert listed == ["e-2", "e-1"]
