"""Ingest as OpenMeter documents it: what it takes, what it refuses in which words, and what counts once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kgents_devstack.openmeter.process import OpenMeterStandIn
from kgents_devstack.waiting import HANGS_AFTER_SECONDS

pytest_plugins = ["kgents_devstack.openmeter.fixtures"]

SINGLE = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
EITHER = "application/json"
V1 = "/api/v1/events"
V3 = "/api/v3/openmeter/events"


def event(**changes: Any) -> dict[str, Any]:
    """A valid event; a field changed to `...` is left out."""
    whole = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "tests",
        "type": "llm.tokens",
        "subject": "acme",
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not ...}


def post(client: httpx.Client, body: Any, content_type: str = SINGLE, *, path: str = V1) -> httpx.Response:
    """The answer to a body sent with exactly this content type."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, content=content, headers={"content-type": content_type})


@pytest.mark.parametrize(
    ("content_type", "body"),
    [(SINGLE, event()), (BATCH, [event()]), (EITHER, event()), (EITHER, [event()]), (BATCH, [])],
)
def test_each_content_type_is_answered_204_without_a_body(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client, content_type: str, body: Any
) -> None:
    """Success is 204 and nothing else (openapi.yaml, ingestEvents)."""
    answer = post(openmeter_http, body, content_type)

    assert (answer.status_code, answer.content) == (204, b"")
    assert openmeter.stats()["stored"] == (1 if body else 0)


@pytest.mark.parametrize("content_type", [f"{kind}; charset=utf-8" for kind in (SINGLE, BATCH, EITHER)])
def test_v1_compares_the_content_type_whole(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client, content_type: str
) -> None:
    """A parameter after the content type is enough for 400 in v1; v3 reads past it."""
    body = [event()] if content_type.startswith(BATCH) else event()

    refused = post(openmeter_http, body, content_type)
    accepted = post(openmeter_http, body, content_type, path=V3)

    assert refused.status_code == 400
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["detail"] == f"invalid content type: {content_type}"
    assert accepted.status_code == 202
    assert openmeter.stats()["stored"] == 1


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-ndjson", ""])
def test_another_content_type_is_refused(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client, content_type: str
) -> None:
    """The schema validator refuses it, which is why the problem has no instance."""
    answer = post(openmeter_http, event(), content_type)

    assert answer.status_code == 400
    assert "header Content-Type has unexpected value" in answer.json()["detail"]
    assert "instance" not in answer.json()


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "om_for_tests", "Basic om_for_tests"])
def test_a_caller_without_the_token_gets_401(
    openmeter: OpenMeterStandIn, openmeter_server: OpenMeterStandIn, authorization: str | None
) -> None:
    """The cloud asks for `Authorization: Bearer`; nothing is ingested without it, nothing read."""
    headers = {"content-type": SINGLE} | ({"authorization": authorization} if authorization else {})

    with httpx.Client(base_url=openmeter_server.url, headers=headers, trust_env=False) as stranger:
        answers = [
            stranger.post(V1, content=json.dumps(event())),
            stranger.get(V1),
            stranger.get("/api/v1/meters"),
        ]

    assert [answer.status_code for answer in answers] == [401, 401, 401]
    assert answers[0].json()["title"] == "Unauthorized"
    assert openmeter.stats()["stored"] == 0


BROKEN = [
    (event(id=...), '"/id": property "id" is missing'),
    (event(source=...), '"/source": property "source" is missing'),
    (event(specversion=...), '"/specversion": property "specversion" is missing'),
    (event(type=...), '"/type": property "type" is missing'),
    (event(subject=...), '"/subject": property "subject" is missing'),
    (event(subject=None), '"/subject": Value is not nullable'),
    (event(id=""), '"/id": minimum string length is 1'),
    (event(subject=""), '"/subject": minimum string length is 1'),
    (event(id=7), '"/id": value must be a string'),
    (event(data=[1]), '"/data": value must be an object'),
    (event(data="text"), '"/data": value must be an object'),
    (event(data=0), '"/data": value must be an object'),
    (event(time="yesterday"), '"/time": string doesn\'t match the format "date-time"'),
    (event(time="2026-01-01T00:00:00"), '"/time": string doesn\'t match the format "date-time"'),
    (event(time="2026-02-30T00:00:00Z"), '"/time": string doesn\'t match the format "date-time"'),
    (event(time=1767225600), '"/time": value must be a string'),
    (event(datacontenttype="text/plain"), '"/datacontenttype": value is not one of the allowed values'),
    (event(dataschema=""), '"/dataschema": minimum string length is 1'),
    (event(specversion="2.0"), "invalid event: specversion: unknown"),
    (event(source="http://a b%zz"), "invalid event: source: invalid URL escape"),
    (event(source="1:2"), "invalid event: source: first path segment in URL cannot contain colon"),
    ("text", "value must be an object"),
]


@pytest.mark.parametrize(("body", "words"), BROKEN, ids=[words[:50] for _, words in BROKEN])
def test_what_breaks_the_schema_is_refused_by_name(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client, body: Any, words: str
) -> None:
    """The schema of `Event`; the same event in a batch refuses the batch, and names its place."""
    alone = post(openmeter_http, body)
    in_batch = post(openmeter_http, [event(id="good"), body], BATCH)

    assert (alone.status_code, in_batch.status_code) == (400, 400)
    assert words in alone.json()["detail"]
    assert words.replace('"/', '"/1/', 1) in in_batch.json()["detail"]
    assert alone.json()["status"] == 400
    assert openmeter.stats()["stored"] == 0


@pytest.mark.parametrize(
    "body",
    [
        event(time=None, data=None, datacontenttype=None, dataschema=None),
        event(specversion="0.3", datacontenttype="application/json", data={}),
        event(time="2026-01-01T00:00:00.123456789+05:30", source="urn:x:y", dataschema="urn:schema"),
        event(source="https://agents.example/acme?x=1#y", traceparent="00-a-b-01"),
    ],
)
def test_what_the_schema_allows_is_taken(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client, body: dict[str, Any]
) -> None:
    """Optional attributes may be null, and v1 takes extension attributes."""
    assert post(openmeter_http, body).status_code == 204


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"", SINGLE, "value is required but missing"),
        (b"{", SINGLE, "failed to decode request body"),
        (b'{"id":"\xff"}', SINGLE, "failed to decode request body"),
        (b"[]", EITHER, "invalid event: no events found"),
        (b"[]", SINGLE, "value must be an object"),
        (b"{}", BATCH, "value must be an array"),
    ],
)
def test_a_body_that_is_no_event_is_refused(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client, body: bytes, content_type: str, words: str
) -> None:
    """An empty array is refused as `application/json` alone."""
    answer = post(openmeter_http, body, content_type)

    assert answer.status_code == 400
    assert words in answer.json()["detail"]


def test_v3_refuses_extension_attributes_and_names_them(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """v1 drops them without a word; v3's schema has no additional properties."""
    body = [event(), event(id="e-2", traceparent="00-a-b-01")]

    answer = post(openmeter_http, body, BATCH, path=V3)

    assert answer.status_code == 400
    assert answer.json()["invalid_parameters"] == [
        {
            "field": "1.traceparent",
            "rule": "unknown_property",
            "reason": 'property "traceparent" is unsupported',
            "source": "body",
        }
    ]
    assert openmeter.stats()["stored"] == 0
    assert post(openmeter_http, [event()], BATCH, path=V3).status_code == 202


def test_time_has_whole_seconds_and_extensions_are_gone(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """Only id, source, type, subject, time and data survive, and time is cut, before 1970 too."""
    late = event(time="2026-01-01T00:00:00.999Z", data={"n": 1}, traceparent="00-a-b-01")
    early = event(id="e-2", time="1969-12-31T23:59:58.5Z")

    post(openmeter_http, [late, early], BATCH)

    kept = {item["id"]: item for item in openmeter.events()}
    assert kept["e-1"]["time"] == 1767225600
    assert kept["e-2"]["time"] == -2
    assert kept["e-1"]["data"] == {"n": 1}
    assert "traceparent" not in kept["e-1"]


def test_an_event_without_a_time_gets_the_servers(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """`time` null or absent is the moment of ingestion."""
    before = int(time.time())

    post(openmeter_http, event())

    assert before <= openmeter.events()[0]["time"] <= time.time()


def test_source_and_id_count_once_and_the_first_wins(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """Deduplication is by source and id, without subject, type or payload, and nobody is told."""
    first = event(data={"n": 1})
    again = [first, event(data={"n": 2}), event(subject="globex", data={"n": 1}), event(source="other")]

    answers = [post(openmeter_http, body).status_code for body in [first, *again]]

    stats = openmeter.stats()
    assert answers == [204] * 5
    assert (stats["unique"], stats["duplicates"], stats["conflicts"]) == (2, 3, 2)
    assert openmeter.events(source="tests", id="e-1")[0]["data"] == {"n": 1}


def test_a_duplicate_within_a_batch_counts_once(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """Events of a batch are taken one by one."""
    post(openmeter_http, [event(), event(), event(id="e-2")], BATCH)

    assert openmeter.stats()["unique"] == 2


def test_keys_are_joined_with_a_dash_which_confuses_some(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """Source `a` with id `b-c` and source `a-b` with id `c` are one event to OpenMeter (dedupe.go)."""
    post(openmeter_http, event(source="a", id="b-c"))
    post(openmeter_http, event(source="a-b", id="c"))

    assert openmeter.stats()["unique"] == 1
    assert openmeter.events(id="c") == []
    assert len(openmeter.events(source="a", id="b-c")) == 1


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[OpenMeterStandIn]:
    """A stand-in that asks for no token and forgets keys after a second."""
    with OpenMeterStandIn(tmp_path, token=None, dedupe_window_seconds=1.0) as server:
        yield server


def test_a_key_past_the_dedupe_window_counts_again(forgetful: OpenMeterStandIn) -> None:
    """That is why a late resend must be verified first: OpenMeter's window ends, ours does not."""
    with httpx.Client(base_url=forgetful.url, trust_env=False) as client:
        post(client, event())
        deadline = time.monotonic() + HANGS_AFTER_SECONDS
        while forgetful.stats()["stored"] < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
            post(client, event())

    stats = forgetful.stats()
    assert (stats["unique"], stats["stored"]) == (1, 2)
    assert stats["duplicates"] >= 1
    assert len(forgetful.events(id="e-1")) == 2
