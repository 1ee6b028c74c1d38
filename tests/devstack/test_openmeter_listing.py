"""What was ingested can be asked for, by list or page and filter; verify-before-resend needs it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from kgents_devstack.openmeter.process import OpenMeterStandIn

pytest_plugins = ["kgents_devstack.openmeter.fixtures"]

NOW = datetime.now(UTC).replace(microsecond=0)


def at(minutes: int) -> str:
    """So many minutes ago."""
    return (NOW - timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


@pytest.fixture
def listed(openmeter: OpenMeterStandIn, openmeter_http: httpx.Client) -> httpx.Client:
    """A client of a stand-in with 25 events, `e-00` the newest, a minute apart, of two sources."""
    send(
        openmeter_http,
        [
            {
                "id": f"e-{n:02}",
                "source": f"kgents/{'acme' if n % 2 else 'globex'}",
                "subject": "acme" if n % 2 else "globex",
                "type": "llm.tokens",
                "time": at(n),
                "data": {"n": n},
            }
            for n in range(25)
        ],
    )
    return openmeter_http


def send(client: httpx.Client, events: list[dict[str, Any]]) -> None:
    """Ingest events."""
    batch = [
        {"specversion": "1.0", "source": "tests", "type": "t", "subject": "acme", **event} for event in events
    ]
    headers = {"content-type": "application/cloudevents-batch+json"}
    assert client.post("/api/v1/events", content=json.dumps(batch), headers=headers).status_code == 204


def found(client: httpx.Client, conditions: dict[str, Any], **query: Any) -> list[str]:
    """Ids of v2's first page under a filter."""
    answer = client.get("/api/v2/events", params={"filter": json.dumps(conditions), **query})
    assert answer.status_code == 200, answer.text
    return [item["event"]["id"] for item in answer.json()["items"]]


def test_pages_hold_every_event_once_newest_first(listed: httpx.Client) -> None:
    """A page that is not empty names a next one, which may be empty (pkg/pagination/v2/result.go)."""
    ids: list[str] = []
    sizes: list[int] = []
    cursor: str | None = None
    for _ in range(20):
        page = listed.get(
            "/api/v2/events", params={"limit": 5, **({"cursor": cursor} if cursor else {})}
        ).json()
        ids += [item["event"]["id"] for item in page["items"]]
        sizes.append(len(page["items"]))
        cursor = page.get("nextCursor")
        if cursor is None:
            break

    assert ids == [f"e-{n:02}" for n in range(25)]
    assert sizes == [5, 5, 5, 5, 5, 0]


@pytest.mark.parametrize(
    ("conditions", "ids"),
    [
        ({"id": {"$in": ["e-03", "e-04", "none"]}}, ["e-03", "e-04"]),
        ({"id": {"$in": ["e-03", "e-04"]}, "source": {"$eq": "kgents/acme"}}, ["e-03"]),
        ({"id": {"$eq": "e-07"}}, ["e-07"]),
        ({"id": {"$like": "e-1_"}, "subject": {"$ne": "acme"}}, ["e-10", "e-12", "e-14", "e-16", "e-18"]),
        ({"id": {"$or": [{"$eq": "e-01"}, {"$gt": "e-23"}]}}, ["e-01", "e-24"]),
        ({"id": {"$and": [{"$gte": "e-05"}, {"$lt": "e-07"}]}}, ["e-05", "e-06"]),
        ({"id": {"$ilike": "E-2%"}, "type": {"$nin": ["other"]}}, [f"e-{n}" for n in range(20, 25)]),
        ({"id": {"$nlike": "e-%"}}, []),
        ({"time": {"$and": [{"$gt": at(3)}, {"$lte": at(1)}]}}, ["e-01", "e-02"]),
        ({"ingestedAt": {"$lt": "2020-01-01T00:00:00Z"}}, []),
    ],
)
def test_filters(listed: httpx.Client, conditions: dict[str, Any], ids: list[str]) -> None:
    """id, source, subject and type by text, time and ingestedAt by moment; conditions add up."""
    assert found(listed, conditions) == ids


@pytest.mark.parametrize(
    "query",
    [
        {"filter": "{"},
        {"filter": '{"name":{"$eq":"x"}}'},
        {"filter": '{"id":{"$is":"x"}}'},
        {"filter": '{"id":{"$eq":"x","$ne":"y"}}'},
        {"filter": '{"id":{"$or":[{"$and":[{"$eq":"x"}]}]}}'},
        {"filter": '{"time":{"$gt":"yesterday"}}'},
        {"limit": "0"},
        {"limit": "101"},
        {"cursor": "nonsense"},
    ],
)
def test_what_cannot_be_asked(listed: httpx.Client, query: dict[str, str]) -> None:
    """400; a filter has one operator, and combinations are one level deep."""
    assert listed.get("/api/v2/events", params=query).status_code == 400


def test_v1_lists_a_bare_array_and_matches_in_part(listed: httpx.Client) -> None:
    """id and subject in part, bounds included, the newest first, no more than asked."""
    by_id = listed.get("/api/v1/events", params={"id": "-1"}).json()
    by_subject = listed.get("/api/v1/events", params={"subject": "glob", "limit": 3}).json()
    by_time = listed.get("/api/v1/events", params={"from": at(4), "to": at(2)}).json()

    assert [item["event"]["id"] for item in by_id] == [f"e-{n}" for n in range(10, 20)]
    assert [item["event"]["id"] for item in by_subject] == ["e-00", "e-02", "e-04"]
    assert [item["event"]["id"] for item in by_time] == ["e-02", "e-03", "e-04"]
    assert set(by_id[0]) >= {"event", "ingestedAt", "storedAt"}


def test_v1_looks_back_32_days(listed: httpx.Client) -> None:
    """Older events are not seen, and asking for older ones is refused."""
    send(listed, [{"id": "old", "time": at(33 * 24 * 60)}])

    assert listed.get("/api/v1/events", params={"id": "old"}).json() == []
    assert listed.get("/api/v1/events", params={"from": at(33 * 24 * 60)}).status_code == 400
    assert found(listed, {"id": {"$eq": "old"}}) == ["old"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"duration_ms": 1}, None),
        ({"duration_ms": "1.5"}, None),
        (None, "invalid event: null and missing value property"),
        ({}, 'invalid event: missing value property: "$.duration_ms"'),
        ({"duration_ms": "NaN"}, "invalid event: value cannot be NaN"),
        ({"duration_ms": "inf"}, "invalid event: value cannot be infinity"),
        ({"duration_ms": "soon"}, "invalid event: value cannot be parsed as float64: soon"),
        ({"duration_ms": True}, "invalid event: unsupported value property type: bool"),
    ],
)
def test_an_event_that_no_meter_counts_says_why(
    openmeter: OpenMeterStandIn,
    openmeter_http: httpx.Client,
    data: dict[str, Any] | None,
    message: str | None,
) -> None:
    """It is accepted and stored all the same (TestInvalidIngest)."""
    meter = {"slug": "d", "eventType": "t", "aggregation": "SUM", "valueProperty": "$.duration_ms"}
    openmeter_http.post("/api/v1/meters", json=meter).raise_for_status()
    send(openmeter_http, [{"id": "x", "data": data}])

    (item,) = openmeter_http.get("/api/v1/events").json()

    assert item.get("validationError") == message
    assert item["event"].get("data") == data


def test_an_event_without_a_meter_says_so(openmeter: OpenMeterStandIn, openmeter_http: httpx.Client) -> None:
    """In v1 as one text, in v3 as a list with codes."""
    send(openmeter_http, [{"id": "x", "type": "unknown.kind"}])

    (v1,) = openmeter_http.get("/api/v1/events").json()
    (v3,) = openmeter_http.get("/api/v3/openmeter/events").json()["data"]

    assert v1["validationError"] == "no meter found for event type: unknown.kind"
    assert [error["message"] for error in v3["validation_errors"]] == [v1["validationError"]]


def test_v3_pages_and_filters(listed: httpx.Client) -> None:
    """`page[size]`, `page[after]` and `filter[field][operator]`; `oeq` is one of several."""
    path = "/api/v3/openmeter/events"
    some = listed.get(
        path, params={"filter[id][oeq]": "e-01,e-02,e-03", "filter[subject][eq]": "acme"}
    ).json()
    first = listed.get(path, params={"page[size]": 10}).json()
    second = listed.get(path, params={"page[size]": 10, "page[after]": first["meta"]["page"]["next"]}).json()

    assert [item["event"]["id"] for item in some["data"]] == ["e-01", "e-03"]
    assert [item["event"]["id"] for item in second["data"]] == [f"e-{n}" for n in range(10, 20)]
    assert listed.get(path, params={"page[size]": 101}).status_code == 400
