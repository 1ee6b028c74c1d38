"""Queries against values added up by hand: aggregations, windows, days of 23 and 25 hours, groups."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kgents_devstack.openmeter.process import OpenMeterStandIn

pytest_plugins = ["kgents_devstack.openmeter.fixtures"]

# time, subject, data: three days around the night when Berlin's clocks go forward (2026-03-29, 01:00 UTC).
EVENTS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("2026-03-28T22:59:59.999Z", "acme", {"tokens": 1, "model": "a"}),
    ("2026-03-28T23:00:00Z", "acme", {"tokens": 2, "model": "a"}),
    ("2026-03-29T00:30:10Z", "acme", {"tokens": "4", "model": "b"}),
    ("2026-03-29T01:30:20Z", "globex", {"tokens": 8.5, "model": "a"}),
    ("2026-03-29T21:59:59Z", "globex", {"tokens": 16, "model": None}),
    ("2026-03-29T22:00:00Z", "globex", {"tokens": 32}),
    ("2026-03-29T22:00:30Z", "globex", {"tokens": True, "model": "a"}),
    ("2026-03-29T22:00:40Z", "globex", {"tokens": "NaN", "model": "a"}),
    ("2026-03-29T22:00:50Z", "globex", None),
]
VALUED = {"eventType": "llm.tokens", "valueProperty": "$.tokens", "groupBy": {"model": "$.model"}}


@pytest.fixture
def asked(openmeter: OpenMeterStandIn, openmeter_http: httpx.Client) -> httpx.Client:
    """A client of a stand-in that holds EVENTS and a meter of each aggregation, named after it."""
    for aggregation in ("SUM", "AVG", "MIN", "MAX", "LATEST"):
        declare(openmeter_http, slug=aggregation.lower(), aggregation=aggregation, **VALUED)
    declare(
        openmeter_http,
        slug="count",
        aggregation="COUNT",
        eventType="llm.tokens",
        groupBy={"model": "$.model"},
    )
    declare(
        openmeter_http,
        slug="unique_count",
        aggregation="UNIQUE_COUNT",
        eventType="llm.tokens",
        valueProperty="$.model",
    )
    ingest(openmeter_http, EVENTS)
    return openmeter_http


def declare(client: httpx.Client, **meter: Any) -> None:
    """Create a meter."""
    answer = client.post("/api/v1/meters", json=meter)
    assert answer.status_code == 201, answer.text


def ingest(
    client: httpx.Client, events: list[tuple[str, str, dict[str, Any] | None]], kind: str = "llm.tokens"
) -> None:
    """Send events of a type, numbered."""
    batch = [
        {
            "specversion": "1.0",
            "id": f"{n}",
            "source": "s",
            "type": kind,
            "subject": subject,
            "time": at,
            "data": data,
        }
        for n, (at, subject, data) in enumerate(events)
    ]
    headers = {"content-type": "application/cloudevents-batch+json"}
    assert client.post("/api/v1/events", content=json.dumps(batch), headers=headers).status_code == 204


def rows(client: httpx.Client, slug: str, **query: Any) -> list[dict[str, Any]]:
    """The rows of a query by GET; `start` stands for `from`."""
    if "start" in query:
        query["from"] = query.pop("start")
    answer = client.get(f"/api/v1/meters/{slug}/query", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def short(found: list[dict[str, Any]]) -> list[tuple[str, str, float]]:
    """Start, end and value of rows."""
    return [(row["windowStart"], row["windowEnd"], row["value"]) for row in found]


@pytest.mark.parametrize(
    ("slug", "value"),
    [
        ("sum", 63.5),  # 1 + 2 + 4 + 8.5 + 16 + 32; true, NaN and no data at all add nothing
        ("count", 9),
        ("unique_count", 2),  # a and b; null and missing are no values
        ("avg", 63.5 / 6),
        ("min", 1),
        ("max", 32),
        ("latest", 32),
    ],
)
def test_each_aggregation_over_everything(asked: httpx.Client, slug: str, value: float) -> None:
    """Without a window: one row, from the minute of the first event to the end of the minute of the last."""
    (row,) = rows(asked, slug)

    assert row == {
        "value": pytest.approx(value, abs=0),
        "windowStart": "2026-03-28T22:59:00Z",
        "windowEnd": "2026-03-29T22:01:00Z",
        "subject": None,
        "groupBy": {},
    }


def test_from_is_included_and_to_is_not(asked: httpx.Client) -> None:
    """`from <= time < to`, and the row shows what was asked, whatever the events are."""
    found = rows(asked, "sum", start="2026-03-28T23:00:00Z", to="2026-03-29T22:00:00Z")

    assert short(found) == [("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", 30.5)]


def test_days_in_utc(asked: httpx.Client) -> None:
    """Windows are the calendar's and sparse; partial ones show their full bounds."""
    found = rows(asked, "sum", windowSize="DAY", start="2026-03-28T22:59:59Z")

    assert short(found) == [
        ("2026-03-28T00:00:00Z", "2026-03-29T00:00:00Z", 3),
        ("2026-03-29T00:00:00Z", "2026-03-30T00:00:00Z", 60.5),
    ]


def test_a_day_has_23_hours_when_clocks_go_forward(asked: httpx.Client) -> None:
    """A day ends at the next local midnight (TestQueryDSTTransition)."""
    found = rows(asked, "sum", windowSize="DAY", windowTimeZone="Europe/Berlin")

    assert short(found) == [
        ("2026-03-27T23:00:00Z", "2026-03-28T23:00:00Z", 1),
        ("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z", 30.5),
        ("2026-03-29T22:00:00Z", "2026-03-30T22:00:00Z", 32),
    ]


def test_a_day_has_25_hours_when_clocks_go_back(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """The hour that comes twice is two windows of an hour and one day."""
    declare(openmeter_http, slug="n", eventType="t", aggregation="COUNT")
    times = ["2026-10-24T22:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T22:59:59Z"]
    ingest(openmeter_http, [(at, "acme", None) for at in times], "t")

    days = rows(openmeter_http, "n", windowSize="DAY", windowTimeZone="Europe/Berlin")
    hours = rows(openmeter_http, "n", windowSize="HOUR", windowTimeZone="Europe/Berlin")

    assert short(days) == [("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", 4)]
    assert [row["windowStart"] for row in hours] == [
        "2026-10-24T22:00:00Z",
        "2026-10-25T00:00:00Z",
        "2026-10-25T01:00:00Z",
        "2026-10-25T22:00:00Z",
    ]


def test_hours_begin_at_half_past_where_the_zone_is_so(asked: httpx.Client) -> None:
    """Kolkata is five and a half hours ahead."""
    found = rows(asked, "sum", windowSize="HOUR", windowTimeZone="Asia/Kolkata", to="2026-03-29T01:00:00Z")

    assert short(found) == [
        ("2026-03-28T22:30:00Z", "2026-03-28T23:30:00Z", 3),
        ("2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z", 4),
    ]


def test_minutes_and_months(asked: httpx.Client) -> None:
    """A month in a time zone begins at its first local midnight."""
    minutes = rows(asked, "count", windowSize="MINUTE", start="2026-03-29T21:59:00Z")
    months = rows(asked, "count", windowSize="MONTH", windowTimeZone="America/New_York")

    assert short(minutes) == [
        ("2026-03-29T21:59:00Z", "2026-03-29T22:00:00Z", 1),
        ("2026-03-29T22:00:00Z", "2026-03-29T22:01:00Z", 4),
    ]
    assert short(months) == [("2026-03-01T05:00:00Z", "2026-04-01T04:00:00Z", 9)]


def test_months_are_as_long_as_they_are(openmeter: OpenMeterStandIn, openmeter_http: httpx.Client) -> None:
    """A short month and the turn of the year, in the month in which New York's clocks go forward too."""
    declare(openmeter_http, slug="n", eventType="t", aggregation="COUNT")
    times = ["2025-12-31T23:59:59Z", "2026-02-28T23:00:00Z", "2026-03-01T04:59:59Z", "2026-03-31T23:00:00Z"]
    ingest(openmeter_http, [(at, "acme", None) for at in times], "t")

    found = rows(openmeter_http, "n", windowSize="MONTH", windowTimeZone="America/New_York")

    assert short(found) == [
        ("2025-12-01T05:00:00Z", "2026-01-01T05:00:00Z", 1),
        ("2026-02-01T05:00:00Z", "2026-03-01T05:00:00Z", 2),
        ("2026-03-01T05:00:00Z", "2026-04-01T04:00:00Z", 1),
    ]


def test_windows_without_a_value_are_left_out(asked: httpx.Client) -> None:
    """COUNT has a row where SUM has none: the events there have no number."""
    window = {"windowSize": "MINUTE", "start": "2026-03-29T22:00:30Z", "to": "2026-03-29T22:01:00Z"}

    assert short(rows(asked, "sum", **window)) == []
    assert [row["value"] for row in rows(asked, "count", **window)] == [3]
    assert rows(asked, "unique_count", start="2026-03-29T22:00:00Z", to="2026-03-29T22:00:30Z") == []


def test_subject_filters_and_groups(asked: httpx.Client) -> None:
    """A subject asked for is a group of its own."""
    one = rows(asked, "sum", subject="acme")
    both = rows(asked, "sum", subject=["globex", "acme", "nobody"])

    assert [(row["subject"], row["value"]) for row in one] == [("acme", 7)]
    assert [(row["subject"], row["value"]) for row in both] == [("acme", 7), ("globex", 56.5)]


def test_groups_where_null_is_a_word_and_missing_is_empty(asked: httpx.Client) -> None:
    """JSON null is `null`, a missing path is the empty text (JSON_VALUE)."""
    found = rows(asked, "count", groupBy=["model", "subject"])

    assert [(row["subject"], row["groupBy"], row["value"]) for row in found] == [
        ("acme", {"model": "a"}, 2),
        ("acme", {"model": "b"}, 1),
        ("globex", {"model": ""}, 2),
        ("globex", {"model": "a"}, 3),
        ("globex", {"model": "null"}, 1),
    ]


def test_group_filters_by_get_and_by_post(asked: httpx.Client) -> None:
    """`filterGroupBy[k]=v` is one value, POST takes several, advanced filters take operators."""
    by_get = rows(asked, "sum", **{"filterGroupBy[model]": "a"})
    advanced = rows(asked, "sum", advancedMeterGroupByFilters='{"model":{"$in":["a","b"]}}')
    body = {"filterGroupBy": {"model": ["b", "null"]}, "subject": ["acme", "globex"], "windowSize": "DAY"}
    by_post = asked.post("/api/v1/meters/sum/query", json=body).json()

    assert [row["value"] for row in by_get] == [11.5]
    assert [row["value"] for row in advanced] == [15.5]
    assert [(row["subject"], row["value"]) for row in by_post["data"]] == [("acme", 4), ("globex", 16)]
    assert by_post["windowSize"] == "DAY"


def test_a_query_repeats_what_was_asked_and_leaves_out_what_was_not(asked: httpx.Client) -> None:
    """from, to and windowSize are absent unless given; subject is there and null."""
    bare = asked.get("/api/v1/meters/sum/query").json()
    full = asked.get(
        "/api/v1/meters/sum/query", params={"from": "2026-03-28T00:00:00+01:00", "windowSize": "DAY"}
    ).json()

    assert set(bare) == {"data"}
    assert (full["from"], full["windowSize"]) == ("2026-03-27T23:00:00Z", "DAY")


def test_an_empty_meter_counts_zero_from_1970(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """COUNT and UNIQUE_COUNT over nothing are 0; a sum over nothing is nothing."""
    declare(openmeter_http, slug="n", eventType="t", aggregation="COUNT")
    declare(openmeter_http, slug="total", eventType="t", aggregation="SUM", valueProperty="$.v")

    assert short(rows(openmeter_http, "n")) == [("1970-01-01T00:00:00Z", "1970-01-01T00:01:00Z", 0)]
    assert rows(openmeter_http, "n", subject="acme") == []
    assert rows(openmeter_http, "total") == []


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ({"windowSize": "WEEK"}, 400, "windowSize"),
        ({"windowTimeZone": "Mars/Olympus"}, 400, "invalid time zone"),
        ({"groupBy": "colour"}, 400, "invalid group by: colour"),
        ({"groupBy": "customer_id"}, 400, "customer filter is required"),
        ({"filterGroupBy[colour]": "red"}, 400, "invalid group by filter: colour"),
        ({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}, 400, "from must be before to"),
        (
            {"from": "2026-01-01T00:00:00Z", "to": "2026-01-01T01:00:00+01:00"},
            400,
            "from and to cannot be equal",
        ),
        ({"from": "2026-01-01"}, 400, "invalid param format from"),
        ({"advancedMeterGroupByFilters": '{"model":{"$regex":"a"}}'}, 400, "unknown operator"),
    ],
)
def test_what_cannot_be_asked(asked: httpx.Client, query: dict[str, str], status: int, words: str) -> None:
    """400 with the reason."""
    answer = asked.get("/api/v1/meters/sum/query", params=query)

    assert answer.status_code == status
    assert words in answer.json()["detail"]


def test_a_meter_that_is_not_there(asked: httpx.Client) -> None:
    """404, by slug and by id, to a query too."""
    statuses = [
        asked.get(f"/api/v1/meters/{name}{rest}").status_code
        for name in ("nothing", "01K" + "0" * 23)
        for rest in ("", "/query")
    ]

    assert statuses == [404] * 4


def test_numbers_went_through_float64(openmeter: OpenMeterStandIn, openmeter_http: httpx.Client) -> None:
    """An integer past 2^53 is not what was sent; as text it is (the reason our wire sends it so)."""
    declare(
        openmeter_http,
        slug="values",
        eventType="t",
        aggregation="UNIQUE_COUNT",
        valueProperty="$.v",
        groupBy={"g": "$.g"},
    )
    numbers = [2**53 + 1, str(2**53 + 1), 1.0, 1, "1", 0.0000001]
    ingest(openmeter_http, [("2026-01-01T00:00:00Z", "acme", {"v": n, "g": n}) for n in numbers], "t")

    groups = [row["groupBy"]["g"] for row in rows(openmeter_http, "values", groupBy="g")]
    listed = openmeter_http.get("/api/v2/events", params={"filter": '{"id":{"$eq":"0"}}'}).json()["items"]

    assert groups == ["1", "1e-7", "9007199254740992", "9007199254740993"]
    assert [row["value"] for row in rows(openmeter_http, "values")] == [4]
    assert listed[0]["event"]["data"]["v"] == 2**53


def test_sums_are_exact(openmeter: OpenMeterStandIn, openmeter_http: httpx.Client) -> None:
    """Ten times 0.1 is 1, which float64 alone does not say."""
    declare(openmeter_http, slug="total", eventType="t", aggregation="SUM", valueProperty="$.v")
    ingest(openmeter_http, [("2026-01-01T00:00:00Z", "acme", {"v": 0.1})] * 10, "t")

    assert [row["value"] for row in rows(openmeter_http, "total")] == [1]


@pytest.fixture
def imprecise(tmp_path: Path) -> Iterator[httpx.Client]:
    """A stand-in that adds as OpenMeter does unless told otherwise."""
    with (
        OpenMeterStandIn(tmp_path, token=None, arithmetic="float64") as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
    ):
        yield client


def test_sums_can_be_those_of_float64(imprecise: httpx.Client) -> None:
    """`aggregation.enableDecimalPrecision` is off by default; a reconciliation must bear it."""
    declare(imprecise, slug="total", eventType="t", aggregation="SUM", valueProperty="$.v")
    ingest(imprecise, [("2026-01-01T00:00:00Z", "acme", {"v": 0.1})] * 10, "t")

    assert [row["value"] for row in rows(imprecise, "total")] == [0.9999999999999999]


def test_events_before_event_from_do_not_count(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """Effective from is the later of `from` and `eventFrom`; but for that a new meter counts all history."""
    ingest(openmeter_http, EVENTS)
    declare(openmeter_http, slug="late", aggregation="SUM", eventFrom="2026-03-29T21:59:59Z", **VALUED)

    assert [row["value"] for row in rows(openmeter_http, "late", start="2026-01-01T00:00:00Z")] == [48]


def test_csv(asked: httpx.Client) -> None:
    """`Accept: text/csv` gives windows, groups and the value with six digits."""
    answer = asked.get(
        "/api/v1/meters/sum/query",
        params={"windowSize": "DAY", "subject": "acme", "groupBy": "model"},
        headers={"accept": "text/csv"},
    )

    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.text.splitlines() == [
        "window_start,window_end,subject,model,value",
        "2026-03-28T00:00:00Z,2026-03-29T00:00:00Z,acme,a,3.000000",
        "2026-03-29T00:00:00Z,2026-03-30T00:00:00Z,acme,b,4.000000",
    ]


@pytest.mark.parametrize(
    "meter",
    [
        {"slug": "Upper", "eventType": "t", "aggregation": "COUNT"},
        {"slug": "a__b", "eventType": "t", "aggregation": "COUNT"},
        {"slug": "a", "aggregation": "COUNT"},
        {"slug": "a", "eventType": "t", "aggregation": "MEDIAN"},
        {"slug": "a", "eventType": "t", "aggregation": "SUM"},
        {"slug": "a", "eventType": "t", "aggregation": "COUNT", "valueProperty": "$.v"},
        {"slug": "a", "eventType": "t", "aggregation": "SUM", "valueProperty": "v"},
        {"slug": "a", "eventType": "t", "aggregation": "SUM", "valueProperty": "$.v[*]"},
        {"slug": "a", "eventType": "t", "aggregation": "COUNT", "groupBy": {"1st": "$.v"}},
        {
            "slug": "a",
            "eventType": "t",
            "aggregation": "SUM",
            "valueProperty": "$.v",
            "groupBy": {"v": "$.v"},
        },
        {"slug": "a", "eventType": "t", "aggregation": "COUNT", "windowSize": "MINUTE"},
    ],
)
def test_a_meter_that_breaks_a_rule_is_refused(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client, meter: dict[str, Any]
) -> None:
    """The rules of `MeterCreate`."""
    assert openmeter_http.post("/api/v1/meters", json=meter).status_code == 400
    assert openmeter_http.get("/api/v1/meters").json() == []


def test_the_life_of_a_meter(openmeter: OpenMeterStandIn, openmeter_http: httpx.Client) -> None:
    """Created, found by slug and id, changed in what may change, deleted; its slug is free again."""
    made = openmeter_http.post(
        "/api/v1/meters", json={"slug": "n", "eventType": "t", "aggregation": "COUNT"}
    ).json()
    again = openmeter_http.post(
        "/api/v1/meters", json={"slug": "n", "eventType": "t", "aggregation": "COUNT"}
    )
    by_id = openmeter_http.get(f"/api/v1/meters/{made['id']}").json()
    changed = openmeter_http.put("/api/v1/meters/n", json={"name": "Calls", "groupBy": {"m": "$.m"}}).json()
    fixed = openmeter_http.put("/api/v1/meters/n", json={"aggregation": "SUM"})
    gone = openmeter_http.delete("/api/v1/meters/n")

    assert again.status_code == 409
    assert by_id == made
    assert (changed["name"], changed["groupBy"], changed["aggregation"]) == ("Calls", {"m": "$.m"}, "COUNT")
    assert fixed.status_code == 400
    assert gone.status_code == 204
    assert openmeter_http.get("/api/v1/meters/n").status_code == 404
    assert openmeter_http.get("/api/v1/meters", params={"includeDeleted": "true"}).json()[-1]["deletedAt"]


def test_subjects_and_group_values(asked: httpx.Client) -> None:
    """What a meter has seen, sorted; group values of the last day unless told otherwise."""
    since = {"from": "2026-01-01T00:00:00Z"}

    assert asked.get("/api/v1/meters/count/subjects").json() == ["acme", "globex"]
    assert asked.get("/api/v1/meters/count/group-by/model/values", params=since).json() == [
        "",
        "a",
        "b",
        "null",
    ]
    assert asked.get("/api/v1/meters/count/group-by/colour/values").status_code == 404
