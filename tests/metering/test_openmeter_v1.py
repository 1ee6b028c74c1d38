"""OpenMeter's v1 reads as its own tests and clients take them; deviations: docs/compatibility.md."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import openmeter
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_metering.handlers.reads.accept import wants_csv
from kgents_metering.model.measure import as_text, compile_meter
from kgents_metering.model.meters import parse
from kgents_metering.sinks.ledger.apply import Ledger
from kgents_metering.sinks.ledger.meter_changes import sync
from kgents_metering.sinks.ledger.meters import backfill

from .conftest import METERS
from .messages import event

TOKENS = "/api/v1/meters/tokens/query"


UNKNOWN = (
    (f"{TOKENS}?windowsize=DAY", "windowSize"),
    (f"{TOKENS}?filterGroupby[model]=m1", "filterGroupBy[model]"),
    (f"{TOKENS}?filter_group_by=x", "filterGroupBy"),
    (f"{TOKENS}?fom=2026-01-01T00:00:00Z", "from"),
    (f"{TOKENS}?groupby=model", "groupBy"),
    (f"{TOKENS}?subjects=acme", "subject"),
    (f"{TOKENS}?wholly%00other=1", "there are"),
    (f"{TOKENS}?from=2026-11-22T00:00:00Z&from=2026-11-23T00:00:00Z", "2 times"),
    ("/api/v1/meters/tokens/subjects?From=2026-01-01T00:00:00Z", "from"),
    ("/api/v1/meters/tokens/group-by/model/values?until=x", "unknown parameter"),
    ("/api/v1/meters/tokens?windowSize=DAY", "there are subject"),
    ("/api/v1/meters?pagesize=1", "pageSize"),
    ("/api/v1/events?Subject=acme", "subject"),
    ("/api/v1/events?limits=5", "limit"),
    ("/api/v1/events?limit=%C2%B2", "limit: must be 1 to 100"),
)


async def test_a_parameter_nobody_knows_is_refused_with_the_nearest(client: httpx.AsyncClient) -> None:
    """Rule: an answer to another question than was asked is worse than none."""
    for path, told in UNKNOWN:
        answer = await client.get(path)
        assert _problem(answer) == 400, path
        assert told in answer.json()["detail"]
    field, value = "windowsize", "DAY"
    posted = await client.post(TOKENS, json={field: value})
    assert (posted.status_code, "windowSize" in posted.json()["detail"]) == (400, True)


BAD_TEXTS = ("%00", "a%00b", "%ED%A0%80", "%FF", "%C3")


BAD_PLACES = (
    TOKENS + "?filterGroupBy[model]={}",
    TOKENS + "?filterGroupBy[{}]=m1",
    TOKENS + "?groupBy={}",
    TOKENS + "?subject={}",
    TOKENS + "?windowTimeZone={}",
    TOKENS + "?windowSize={}",
    TOKENS + "?from={}",
    TOKENS + "?clientId={}",
    TOKENS + '?filterGroupBy=%7B"model":"{}"%7D',
    TOKENS + '?advancedMeterGroupByFilters=%7B"model":%7B"$eq":"{}"%7D%7D',
    "/api/v1/events?id={}",
    "/api/v1/events?subject={}",
    "/api/v1/events?from={}",
    "/v1/conflicts?source={}",
    "/api/v1/meters/tokens/subjects?from={}",
    "/api/v1/meters?order={}",
)


async def test_what_no_text_can_be_is_refused(client: httpx.AsyncClient) -> None:
    """Rule: NUL, half a surrogate pair and what is not UTF-8 are 400, wherever they are written."""
    for path in BAD_PLACES:
        for text in BAD_TEXTS:
            assert _problem(await client.get(path.replace("{}", text))) == 400, (path, text)


async def test_filters_have_texts_that_can_be(client: httpx.AsyncClient) -> None:
    """Rule: the same in JSON, in a parameter and in a body."""
    for text in (r"\u0000", r"\ud800", r"a\udfff"):
        for operator in ("$eq", "$in", "$like", "$contains", "$gt"):
            value = f'["{text}"]' if operator == "$in" else f'"{text}"'
            filters = f'{{"model":{{"{operator}":{value}}}}}'
            got = await client.get(f"{TOKENS}?advancedMeterGroupByFilters={quote(filters)}")
            posted = await client.post(TOKENS, content=f'{{"advancedMeterGroupByFilters":{filters}}}')
            assert (_problem(got), _problem(posted)) == (400, 400), filters


async def test_paths_have_texts_that_can_be(client: httpx.AsyncClient) -> None:
    """Rule: what names nothing is 404."""
    for name in (*BAD_TEXTS, "x" * 300):
        for path in (f"/api/v1/meters/{name}", f"/api/v1/meters/tokens/group-by/{name}/values"):
            assert _problem(await client.get(path)) == 404


FILTERS: tuple[tuple[dict[str, Any], float | None], ...] = (
    ({"model": {"$eq": "m1", "$ne": None}}, 1.1),
    ({"model": {"$eq": None}}, 1.3),
    ({"model": {}}, 1.3),
    ({}, 1.3),
    ({"model": {"$in": []}}, None),
    ({"model": {"$nin": []}}, 1.3),
    ({"model": {"$eq": "m1", "$like": "m%"}}, 1.1),
    ({"model": {"$like": "m\\"}}, None),
    ({"model": {"$like": "m\\,2"}}, 0.2),
    ({"model": {"$contains": "M,"}}, 0.2),
    ({"model": {"$contains": "%"}}, None),
    ({"model": {"$ncontains": ","}}, 1.1),
    ({"model": {"$gt": "m,2"}}, 1.1),
    ({"model": {"$lt": "m1"}}, 0.2),
    ({"model": {"$or": [{"$eq": "m1"}, {"$ilike": "M,_"}]}}, 1.3),
    ({"model": {"$and": [{"$gte": "m"}, {"$nilike": "%1"}]}}, 0.2),
)


async def test_advanced_filters(client: httpx.AsyncClient) -> None:
    """Rule: an operator that is null is not set; text is compared by code points."""
    for filters, value in FILTERS:
        expected = [] if value is None else [value]
        got = await client.get(f"{TOKENS}?advancedMeterGroupByFilters={quote(json.dumps(filters))}")
        posted = await client.post(TOKENS, json={"advancedMeterGroupByFilters": filters})
        for answer in (got, posted):
            assert [row["value"] for row in answer.json()["data"]] == expected, filters


ACCEPTS = (
    ("text/csv", True),
    ("TEXT/CSV", True),
    ("text/*", True),
    ("text/csv; charset=utf-8", True),
    ("application/json, text/csv;q=0.5", False),
    ("application/json;q=0.5, text/csv", True),
    ("text/csv;q=0, application/json", False),
    ("text/csv;q=0", False),
    ("text/csv;q=0, */*", False),
    ("application/json;q=0, */*;q=0.1", True),
    ("*/*", False),
    ("text/html", False),
    ("", False),
    ("text/csv;q=nonsense", False),
    ("text/csv2", False),
    ("text/csv;q=0.000", False),
)


async def test_accept_is_read_as_rfc_9110_says(client: httpx.AsyncClient) -> None:
    """Rule: weights, case and ranges; JSON where nothing else is preferred."""
    for accept, is_csv in ACCEPTS:
        assert wants_csv(accept) is is_csv, accept
        answer = await client.get(TOKENS, headers={"accept": accept})
        kind = "text/csv; charset=utf-8" if is_csv else "application/json"
        assert answer.headers["content-type"] == kind


async def test_csv_as_openmeter_gives_it(client: httpx.AsyncClient, ledger: Ledger) -> None:
    """Rule: named after the meter; the subject where it is grouped by; numbers without zeros; no formulas."""
    bad = {"tokens": "1e-7", "model": "=1+1"}
    zeros = {"tokens": "2.500", "model": "z"}
    made = [
        event(9, "f", time="2026-11-23T02:00:00Z", data=bad),
        event(10, "g", time="2026-11-23T03:00:00Z", data=zeros),
    ]
    await ledger.apply(made, [])
    answer = await client.get(f"{TOKENS}?groupBy=model&subject=acme", headers={"accept": "text/csv"})
    assert answer.headers["content-disposition"] == 'attachment; filename="tokens.csv"'
    assert answer.text.splitlines()[0] == "window_start,window_end,subject,model,value"
    assert [line.split(",", 2)[2] for line in answer.text.splitlines()[1:]] == [
        "acme,m1,1.1",
        'acme,"m,2",0.2',
        "acme,'=1+1,0.0000001",
        "acme,z,2.5",
    ]


async def test_meters_are_listed_in_pages_and_orders(client: httpx.AsyncClient) -> None:
    """Rule: page, pageSize, order, orderBy; a bare array."""

    async def listed(parameters: str) -> list[str]:
        return [meter["slug"] for meter in (await client.get(f"/api/v1/meters?{parameters}")).json()]

    assert await listed("pageSize=2") == ["calls", "models"]
    assert await listed("page=2&pageSize=2") == ["tokens"]
    assert await listed("order=DESC") == ["tokens", "models", "calls"]
    assert await listed("orderBy=aggregation&includeDeleted=false") == ["calls", "tokens", "models"]
    for wrong in ("page=0", "pageSize=1001", "order=asc", "orderBy=size", "includeDeleted=true"):
        assert (await client.get(f"/api/v1/meters?{wrong}")).status_code == 400


async def test_the_events_listing_is_filtered(client: httpx.AsyncClient) -> None:
    """Rule: id and subject match in part, both bounds are part of it, to the second."""

    async def ids(parameters: str) -> list[str]:
        answer = await client.get(f"/api/v1/events?{parameters}")
        assert answer.status_code == 200, answer.text
        return [item["event"]["id"] for item in answer.json()]

    assert await ids("from=2026-11-23T00:30:45Z&to=2026-11-23T01:00:00Z") == ["d", "c"]
    assert await ids("to=2026-11-22T23:30:00Z") == ["a"]
    assert await ids("id=b&clientId=x") == ["b"]
    assert await ids("subject=cm&limit=1") == ["d"]
    assert await ids("subject=globex") == []
    assert await ids("ingestedAtFrom=2026-11-24T00:00:00Z") == []
    assert len(await ids("ingestedAtTo=2026-11-23T12:00:00Z")) == 4
    for wrong in ("from=2026-W48-1T00:00:00Z", "to=yesterday", "customerId=c", "limit=0"):
        assert (await client.get(f"/api/v1/events?{wrong}")).status_code == 400


async def test_the_second_listing_has_pages_and_filters(
    client: httpx.AsyncClient, ledger: Ledger, recorded: tuple[openmeter.Client, list[str]]
) -> None:
    """Rule: OpenMeter's v2, as its SDK asks: newest first, each event once over all pages, whole seconds."""
    same = [event(10 + n, f"same-{n}", time="2026-11-23T02:00:00.5Z", type="other") for n in range(5)]
    await ledger.apply(same, [])
    sdk, seen = recorded

    async def page(cursor: str | None = None, **arguments: Any) -> tuple[list[str], str | None]:
        with contextlib.suppress(Exception):  # the recorder answers nothing that the SDK could read
            next(sdk.events_v2.list(**arguments).by_page(cursor))
        answer = await client.get(seen[-1])
        assert answer.status_code == 200, answer.text
        return [item["event"]["id"] for item in answer.json()["items"]], answer.json().get("nextCursor")

    async def ids(**filters: Any) -> list[str]:
        return (await page(filter=filters, limit=100))[0]

    found, cursor = await page(limit=2)
    while cursor is not None:
        more, cursor = await page(cursor, limit=2)
        found += more
    assert (sorted(found[:5]), found[5:]) == ([f"same-{n}" for n in range(5)], ["d", "c", "b", "a"])
    assert await ids(id={"$in": ["a", "same-1", "none"]}) == ["same-1", "a"]
    assert await ids(type={"$ne": "llm.tokens"}, id={"$like": "%-3"}) == ["same-3"]
    in_part = (await client.get("/api/v1/events?id=ame-1")).json()  # the first listing's
    assert [item["event"]["id"] for item in in_part] == ["same-1"]
    assert await ids(subject={"$eq": "globex"}) == await ids(source={"$in": []}) == []
    assert await ids(time={"$gte": "2026-11-23T00:30:30Z", "$lt": "2026-11-23T01:00:00Z"}) == ["c", "b"]
    assert len(await ids(time={"$lte": "2026-11-23T02:00:00Z"})) == 9
    assert await ids(time={"$gt": "2026-11-23T02:00:00Z"}) == []
    either = {
        "$or": [
            {"$lt": "2026-11-23T00:00:00Z"},
            {"$gt": "2026-11-23T00:59:59Z", "$lte": "2026-11-23T01:00:00Z"},
        ]
    }
    assert await ids(time=either, ingestedAt={"$gte": None}) == ["d", "a"]
    wrong = [
        {"filter": text} for text in ("{", "[]", '{"customerId":{}}', '{"size":{}}', '{"id":{"$has":"a"}}')
    ]
    wrong += [
        {"filter": f'{{"time":{{{text}}}}}'}
        for text in ('"$eq":"2026-11-23T00:00:00Z"', '"$gt":"now"', '"$or":[]')
    ]
    wrong += [{"cursor": text} for text in ("x", "MjAyNi0xMS0yM1QwMjowMDowMFo=", "é")] + [
        {"limit": "0"},
        {"from": "x"},
    ]
    for parameters in wrong:
        assert (await client.get("/api/v2/events", params=parameters)).status_code == 400, parameters


async def test_event_from_and_cut_minutes_hold_on_every_path(
    client: httpx.AsyncClient, pool: AsyncConnectionPool[AsyncConnection], ledger: Ledger
) -> None:
    """Rule: query, subjects and group values count the same events, wherever a span begins or ends."""
    await sync(
        pool,
        parse(
            {
                "meters": [
                    *(meter.definition() for meter in METERS),
                    {
                        "slug": "late",
                        "eventType": "late.tokens",
                        "aggregation": "COUNT",
                        "groupBy": {"model": "$.model"},
                        "eventFrom": "2026-11-23T10:00:30Z",
                    },
                ]
            }
        ),
    )
    while await backfill(pool):
        pass
    at = "2026-11-23T10:00:"
    made = [
        event(20, "early", type="late.tokens", time=f"{at}29Z", data={"model": "e"}),
        event(21, "first", type="late.tokens", time=f"{at}30Z", data={"model": "f"}),
        event(22, "last", type="late.tokens", time=f"{at}59.9999999Z", data={"model": "l"}),
    ]
    await ledger.apply(made, [])

    async def seen(span: str) -> tuple[float, list[str], list[str]]:
        base = "/api/v1/meters/late"
        total = (await client.get(f"{base}/query?{span}")).json()["data"][0]["value"]
        subjects = (await client.get(f"{base}/subjects?{span}")).json()
        return total, subjects, (await client.get(f"{base}/group-by/model/values?{span}")).json()

    assert await seen(f"from={at}00Z&to=2026-11-23T10:01:00Z") == (2, ["acme"], ["f", "l"])
    assert await seen(f"from={at}10Z&to={at}40Z") == (1, ["acme"], ["f"])
    assert await seen(f"from={at}10Z&to={at}30Z") == (0, [], [])
    assert await seen(f"from={at}31Z&to=2026-11-23T10:01:30Z") == (1, ["acme"], ["l"])
    assert await seen(f"from=2026-11-23T09:59:59Z&to={at}30Z") == (0, [], [])


def test_values_and_groups_as_texts() -> None:
    """Rule: a number is one value however it is written."""
    read = compile_meter(METERS[2])  # models: UNIQUE_COUNT of $.model

    def distinct(text: str) -> Any:
        sample = read(_decoded(f'{{"model": {text}}}'))
        return getattr(sample, "distinct", sample)

    assert distinct("1.5") == distinct('"1.5"') == distinct("1.50")
    assert distinct("1e32") == distinct(str(10**32)) == distinct(f'"{10**32}"')
    assert distinct("null").message == "invalid event: value cannot be null"
    assert read(None).message == "invalid event: null and missing value property"  # type: ignore[union-attr]
    assert as_text(10**32) == str(10**32)


def _problem(answer: httpx.Response) -> int:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code


def _decoded(text: str) -> object:
    return msgspec.json.Decoder(float_hook=Decimal).decode(text)


class _Recorder(BaseHTTPRequestHandler):
    seen: list[str]

    def do_GET(self) -> None:
        type(self).seen.append(self.path)
        body = b'{"data":[]}' if self.path.startswith(TOKENS) else b"[]"
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def recorded() -> Iterator[tuple[openmeter.Client, list[str]]]:
    """The official SDK, and the paths it asks for."""
    seen: list[str] = []
    server = HTTPServer(("127.0.0.1", 0), type("Recorder", (_Recorder,), {"seen": seen}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield openmeter.Client(endpoint=f"http://127.0.0.1:{server.server_port}", token="x"), seen
    server.shutdown()
    thread.join()
    server.server_close()


async def test_what_the_official_sdk_really_sends_is_understood(
    client: httpx.AsyncClient, recorded: tuple[openmeter.Client, list[str]]
) -> None:
    """Rule: it writes filter_group_by as Python's repr of a dictionary, quotes of both kinds."""
    sdk, seen = recorded
    asked: list[tuple[dict[str, Any], list[float]]] = [
        ({"filter_group_by": {"model": "m1"}}, [1.1]),
        ({"filter_group_by": {"model": "m,2"}}, [0.2]),
        ({"filter_group_by": {"model": "it's"}}, []),
        ({"filter_group_by": {}}, [1.3]),
        ({"advanced_meter_group_by_filters": {"model": {"$in": ["m1"]}}}, [1.1]),
        ({"subject": ["acme"], "group_by": ["model"], "client_id": "c"}, [1.1, 0.2]),
        ({"from_parameter": datetime(2026, 11, 23, tzinfo=UTC), "window_size": "DAY"}, [0.3]),
        ({"window_time_zone": "Europe/Berlin", "window_size": "MONTH"}, [1.3]),
    ]
    for arguments, values in asked:
        sdk.meters.query_json("tokens", **arguments)
        answer = await client.get(seen[-1])
        assert answer.status_code == 200, answer.text
        assert [row["value"] for row in answer.json()["data"]] == values, seen[-1]
    sdk.events.list(limit=3, id="b", from_parameter=datetime(2026, 11, 1, tzinfo=UTC))
    assert [item["event"]["id"] for item in (await client.get(seen[-1])).json()] == ["b"]
    for text in ("{'model': __import__('os')}", "{'model': 1}", "['model']", "{" * 5000):
        answer = await client.get(f"{TOKENS}?filterGroupBy={quote(text)}")
        assert answer.status_code == 400
