"""The official OpenMeter and CloudEvents SDKs work unchanged against the running door."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import openmeter
import openmeter.aio
import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent, from_http
from corehttp.exceptions import ClientAuthenticationError, HttpResponseError
from openmeter.models import Event

from kgents_devstack.servers import NatsServer

from .conftest import WholeDoor
from .test_rolling_restart import doors

CLIENTS = [openmeter.Client, openmeter.aio.Client]
client_types = pytest.mark.parametrize("client_type", CLIENTS, ids=["sync", "async"])
credentials = pytest.mark.parametrize("credentials", ["key", "session"])


def made(**changes: Any) -> Event:
    whole = {
        "id": uuid.uuid4().hex,
        "source": "sdk",
        "specversion": "1.0",
        "type": "llm.tokens",
        "subject": "acme",
        "time": datetime.now(UTC),
        "data": {"tokens": 3},
    }
    return Event(**{**whole, **changes})


async def ingest(client_type: Any, url: str, token: str, operation: str, body: Any, **options: Any) -> None:
    """One call of the SDK, awaited where it is the async one."""
    client = client_type(endpoint=url, token=token)
    called = getattr(client.events, operation)(body, **options)
    if inspect.isawaitable(called):
        await called
        await client.__aexit__()
    else:
        client.__exit__()


async def refusal(*arguments: Any, **options: Any) -> HttpResponseError:
    with pytest.raises(HttpResponseError) as raised:
        await ingest(*arguments, **options)
    return raised.value


@credentials
@client_types
@pytest.mark.parametrize(
    ("operation", "count"),
    [("ingest_event", 0), ("ingest_events", 3), ("ingest_events_json", 0), ("ingest_events_json", 3)],
)
async def test_the_openmeter_sdk_ingests(
    whole_door: WholeDoor, client_type: Any, operation: str, count: int, credentials: str
) -> None:
    """Rule: an OpenMeter SDK may point here, by its own calls: one event, a batch, either as plain JSON."""
    events = [made() for _ in range(count or 1)]
    body = events if count else events[0]
    await ingest(client_type, whole_door.url, whole_door.tokens[credentials], operation, body)
    stored = {event["id"]: event for _, event in await whole_door.stored()}
    for event in events:
        assert stored[event.id]["data"] == {"tokens": 3}
        assert stored[event.id].get("agent") == ("a1" if credentials == "session" else None)


@client_types
async def test_openmeters_optional_attributes_may_be_absent(whole_door: WholeDoor, client_type: Any) -> None:
    """Rule: OpenMeter's schema needs id, source, specversion, type and subject."""
    event = Event(id=uuid.uuid4().hex, source="sdk", specversion="1.0", type="llm.tokens", subject="acme")
    await ingest(client_type, whole_door.url, whole_door.tokens["key"], "ingest_event", event)
    assert event.id in {stored["id"] for _, stored in await whole_door.stored()}


@client_types
async def test_a_wrong_event_is_openmeters_bad_request(whole_door: WholeDoor, client_type: Any) -> None:
    """Rule: 400 is a problem document that the SDK reads into a model; nothing is stored.

    The generated code reads it twice, as what it is and then as any problem; a later SDK may do so once.
    """
    good, bad = made(), made(type="no type")
    error = await refusal(client_type, whole_door.url, whole_door.tokens["key"], "ingest_events", [good, bad])
    assert error.status_code == 400
    assert type(error.model).__name__ in ("BadRequestProblemResponse", "UnexpectedProblemResponse")
    assert (error.model.title, error.model.status) == ("Bad Request", 400)
    assert "nothing was stored" in error.model.detail
    assert error.model.type
    assert good.id not in {stored["id"] for _, stored in await whole_door.stored()}


@client_types
@pytest.mark.parametrize("token", ["unknown", "kg_", "ks_" + "0" * 75])
async def test_unknown_credentials_are_openmeters_unauthorized(
    whole_door: WholeDoor, client_type: Any, token: str
) -> None:
    error = await refusal(client_type, whole_door.url, token, "ingest_event", made())
    assert isinstance(error, ClientAuthenticationError)
    assert type(error.model).__name__ == "UnauthorizedProblemResponse"
    assert error.model.status == 401


@client_types
@pytest.mark.parametrize(("credentials", "subject"), [("reader", "acme"), ("key", "globex")])
async def test_what_is_not_allowed_is_openmeters_forbidden(
    whole_door: WholeDoor, client_type: Any, credentials: str, subject: str
) -> None:
    """Rule: without the scope, or for another tenant (P8)."""
    token = whole_door.tokens[credentials]
    error = await refusal(client_type, whole_door.url, token, "ingest_event", made(subject=subject))
    assert type(error.model).__name__ == "ForbiddenProblemResponse"
    assert error.model.status == 403


@client_types
async def test_what_is_not_durable_is_openmeters_service_unavailable_and_its_retry_stores_it(
    tmp_path: Any, own_nats: NatsServer, client_type: Any
) -> None:
    """Rule: 503 with Retry-After; the same call again is safe (P1)."""
    with doors(tmp_path, own_nats, 1, KGENTS_PUBLISH_TIMEOUT_SECONDS="1") as ((service,), key, thread):
        own_nats.stop()
        event = made()
        error = await refusal(client_type, service.url, key, "ingest_event", event, retry_total=0)
        assert error.response is not None
        assert int(error.response.headers["retry-after"]) >= 1
        assert type(error.model).__name__ == "ServiceUnavailableProblemResponse"
        assert error.model.status == 503
        thread.submit(own_nats.start).result()
        await ingest(client_type, service.url, key, "ingest_event", event, retry_total=10)
        thread.submit(own_nats.stop).result()


@credentials
@pytest.mark.parametrize("convert", [to_structured, to_binary])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_the_cloudevents_sdk_publishes(
    whole_door: WholeDoor,
    convert: Callable[[CloudEvent], tuple[dict[str, str], bytes]],
    is_async: bool,
    credentials: str,
) -> None:
    """Rule: structured and binary, as the SDK writes them, extension attributes too."""
    event = CloudEvent(
        {"type": "llm.tokens", "source": "sdk/a b", "region": "eu west", "agent": "a1"}, {"tokens": 3}
    )
    headers, body = convert(event)
    sent = {**headers, "authorization": f"Bearer {whole_door.tokens[credentials]}"}
    url = f"{whole_door.url}/v1/events"
    if is_async:
        async with httpx.AsyncClient() as client:
            answer = await client.post(url, content=body, headers=sent)
    else:
        answer = httpx.post(url, content=body, headers=sent)
    assert answer.status_code == 202, answer.text
    stored = {found["id"]: found for _, found in await whole_door.stored()}[event["id"]]
    assert stored["source"] == "sdk/a b"
    assert (stored["region"], stored["agent"]) == ("eu west", "a1")
    assert stored["data"] == {"tokens": 3}


async def test_the_cloudevents_sdk_reads_what_is_stored(whole_door: WholeDoor) -> None:
    """Rule: what is on the stream is a structured CloudEvent for anybody's reader."""
    event = CloudEvent({"type": "llm.tokens", "source": "sdk"}, {"tokens": 3})
    headers, body = to_binary(event)
    token = whole_door.tokens["key"]
    httpx.post(
        f"{whole_door.url}/v1/events", content=body, headers={**headers, "x-api-key": token}
    ).raise_for_status()
    stored = {found["id"]: found for _, found in await whole_door.stored()}[event["id"]]
    again = from_http(
        {"content-type": "application/cloudevents+json"}, httpx.Response(200, json=stored).content
    )
    assert (again["id"], again["source"], again["subject"], again.data) == (
        event["id"],
        "sdk",
        "acme",
        {"tokens": 3},
    )
