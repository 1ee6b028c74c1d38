"""The reads speak OpenMeter's v1 API, exactly, for the caller's own tenant."""

from __future__ import annotations

import httpx
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

Pool = AsyncConnectionPool[AsyncConnection]


async def query(client: httpx.AsyncClient, parameters: str = "", slug: str = "tokens") -> httpx.Response:
    return await client.get(f"/api/v1/meters/{slug}/query?{parameters}")


async def test_windows_are_those_of_the_time_zone(client: httpx.AsyncClient) -> None:
    """Rule: calendar windows; from, to and windowSize are echoed; sparse; in order."""
    answer = (await query(client, "windowSize=DAY&windowTimeZone=Europe/Berlin")).json()
    assert answer == {
        "windowSize": "DAY",
        "data": [
            {
                "value": 1.3,
                "windowStart": "2026-11-22T23:00:00Z",
                "windowEnd": "2026-11-23T23:00:00Z",
                "subject": None,
                "groupBy": {},
            }
        ],
    }


async def test_sums_are_written_with_every_digit(client: httpx.AsyncClient) -> None:
    """Rule: 0.1 + 0.2 is 0.3."""
    answer = await query(client, "from=2026-11-23T00:00:00Z")
    assert '"value":0.3,' in answer.text


async def test_edges_within_a_minute_are_exact(client: httpx.AsyncClient) -> None:
    """Rule: from is inclusive, to is exclusive, both to the second."""
    answer = await query(client, "from=2026-11-23T00:30:31Z&to=2026-11-23T00:30:46Z")
    assert [row["value"] for row in answer.json()["data"]] == [0.2]


async def test_groups_and_filters(client: httpx.AsyncClient) -> None:
    """Rule: groupBy, filterGroupBy and the advanced filters agree; a POST asks the same."""
    grouped = (await query(client, "groupBy=model&groupBy=subject")).json()["data"]
    assert {(row["subject"], row["groupBy"]["model"], row["value"]) for row in grouped} == {
        ("acme", "m1", 1.1),
        ("acme", "m,2", 0.2),
    }
    for parameters in (
        "filterGroupBy[model]=m1",
        'advancedMeterGroupByFilters={"model":{"$ne":"m,2"}}',
        'advancedMeterGroupByFilters={"model":{"$or":[{"$like":"m1%"},{"$in":["x"]}]}}',
    ):
        assert (await query(client, parameters)).json()["data"][0]["value"] == 1.1
    posted = await client.post("/api/v1/meters/tokens/query", json={"filterGroupBy": {"model": ["m1"]}})
    assert posted.json()["data"][0]["value"] == 1.1


async def test_csv(client: httpx.AsyncClient) -> None:
    """Rule: the same rows as CSV where asked for."""
    answer = await client.get(
        "/api/v1/meters/tokens/query?groupBy=model&windowSize=HOUR", headers={"accept": "text/csv"}
    )
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.text.splitlines() == [
        "window_start,window_end,model,value",
        "2026-11-22T23:00:00Z,2026-11-23T00:00:00Z,m1,1",
        '2026-11-23T00:00:00Z,2026-11-23T01:00:00Z,"m,2",0.2',
        "2026-11-23T00:00:00Z,2026-11-23T01:00:00Z,m1,0.1",
    ]


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ("from=yesterday", 400),
        ("from=2026-11-23T01:00:00Z&to=2026-11-23T01:00:00Z", 400),
        ("windowSize=WEEK", 400),
        ("windowTimeZone=Mars/Olympus", 400),
        ("windowTimeZone=../../etc/passwd", 400),
        ("windowTimeZone=localtime", 400),
        ("windowTimeZone=posixrules", 400),
        ("windowTimeZone=right/UTC", 400),
        ("windowTimeZone=posix/Europe/Berlin", 400),
        ("windowTimeZone=europe/berlin", 400),
        ("windowTimeZone=UTC%00", 400),
        ("windowTimeZone=%ED%A0%80", 400),
        ("groupBy=color", 400),
        ("groupBy=customer_id", 400),
        ("filterGroupBy[color]=x", 400),
        ("advancedMeterGroupByFilters=[", 400),
        ('advancedMeterGroupByFilters={"model":{"$regex":"x"}}', 400),
        ("subject=globex", 403),
    ],
)
async def test_a_wrong_query_says_what_is_wrong(
    client: httpx.AsyncClient, parameters: str, status: int
) -> None:
    """Rule: problem+json; another tenant's subject is forbidden (P8)."""
    answer = await query(client, parameters)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["detail"]


async def test_another_tenant_sees_nothing_and_a_writer_may_not_read(client: httpx.AsyncClient) -> None:
    """Rule: a tenant sees only itself (P8)."""
    foreign = {"authorization": f"Bearer {client.headers['x-foreign']}"}
    writer = {"authorization": f"Bearer {client.headers['x-writer']}"}
    assert (await client.get("/api/v1/meters/tokens/query", headers=foreign)).json()["data"] == []
    assert (await client.get("/api/v1/events", headers=foreign)).json() == []
    assert (await client.get("/api/v1/meters/tokens/query", headers=writer)).status_code == 403
    assert (await client.get("/api/v1/meters", headers={"authorization": ""})).status_code == 401


async def test_meters_by_slug_and_by_ulid(client: httpx.AsyncClient) -> None:
    """Rule: a bare array ordered by slug; a path takes the slug or the ULID."""
    listed = (await client.get("/api/v1/meters")).json()
    assert [meter["slug"] for meter in listed] == ["calls", "models", "tokens"]
    by_ulid = await client.get(f"/api/v1/meters/{listed[2]['id']}")
    assert by_ulid.json()["valueProperty"] == "$.tokens"
    assert (await client.get("/api/v1/meters/none")).status_code == 404
    assert (await client.get("/api/v1/meters/tokens/subjects")).json() == ["acme"]
    values = await client.get("/api/v1/meters/tokens/group-by/model/values")
    assert values.json() == ["m,2", "m1"]


async def test_events_are_listed_with_what_is_wrong_with_them(client: httpx.AsyncClient) -> None:
    """Rule: an event without a value is accepted, and its listing says why it was not metered."""
    listed = (await client.get("/api/v1/events?limit=2")).json()
    assert [item["event"]["id"] for item in listed] == ["d", "c"]
    assert listed[0]["validationError"] == 'invalid event: missing value property: "$.tokens"'
    assert "validationError" not in listed[1]
    assert (await client.get("/api/v1/events?limit=101")).status_code == 400


async def test_a_window_asked_for_again_has_the_same_value(client: httpx.AsyncClient) -> None:
    """Rule: the bounds of a window, asked for as from and to, give its value."""
    for zone in ("America/Havana", "CET", "Australia/Lord_Howe"):
        for window in ("HOUR", "DAY", "MONTH"):
            rows = (await query(client, f"windowSize={window}&windowTimeZone={zone}")).json()["data"]
            for row in rows:
                span = f"from={row['windowStart']}&to={row['windowEnd']}"
                again = (await query(client, span)).json()["data"]
                assert [one["value"] for one in again] == [row["value"]]


async def test_counting_nothing_is_zero(client: httpx.AsyncClient) -> None:
    """Rule: COUNT of nothing in one window is one row of 0; a SUM of nothing is no row."""
    nothing = "from=2020-01-01T00:00:00Z&to=2020-01-02T00:00:00Z"
    assert [row["value"] for row in (await query(client, nothing, "calls")).json()["data"]] == [0]
    assert (await query(client, nothing)).json()["data"] == []


async def test_times_at_the_ends_of_the_calendar_are_no_fault_of_ours(client: httpx.AsyncClient) -> None:
    """Rule: what no datetime can be reached from is refused with how to narrow, never a 500."""
    for end in ("from=9999-12-31T23:59:59Z", "from=0001-01-01T00:00:01Z", "to=0001-01-01T00:00:00Z"):
        for read in ("query", "query?windowSize=DAY", "subjects", "group-by/model/values"):
            path = f"/api/v1/meters/tokens/{read}{'&' if '?' in read else '?'}{end}"
            assert (await client.get(path)).status_code in (200, 422), path
    assert (await query(client, "from=0001-01-01T00:00:00Z")).json()["data"][0]["value"] == pytest.approx(1.3)
