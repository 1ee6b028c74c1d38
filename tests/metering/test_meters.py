"""Meters are declared in OpenMeter's terms, and a wrong one stops the start with its place and rule."""

from __future__ import annotations

from decimal import Decimal

import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.errors import ConfigurationError
from kgents_metering.model.measure import Invalid, Sample, compile_meter
from kgents_metering.model.meters import Meter, parse
from kgents_metering.sinks.ledger.meter_changes import sync
from kgents_metering.sinks.ledger.reads import UsageReads

GOOD = {"slug": "tokens", "eventType": "llm.tokens", "aggregation": "SUM", "valueProperty": "$.tokens"}


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"slug": "Tokens"}, "slug"),
        ({"slug": "a__b"}, "slug"),
        ({"slug": "x" * 65}, "slug"),
        ({"aggregation": "MEDIAN"}, "aggregation"),
        ({"valueProperty": None}, "valueProperty"),
        ({"valueProperty": "tokens"}, "valueProperty"),
        ({"valueProperty": "$..tokens"}, "valueProperty"),
        ({"aggregation": "COUNT"}, "valueProperty"),
        ({"eventType": "llm tokens"}, "eventType"),
        ({"groupBy": {"1a": "$.a"}}, "groupBy"),
        ({"groupBy": {"a": "a"}}, "groupBy.a"),
        ({"groupBy": {"a": "$.tokens"}}, "groupBy.a"),
        ({"groupBy": {"subject": "$.a"}}, "groupBy.subject"),
        ({"windowSize": "HOUR"}, "windowSize"),
        ({"eventFrom": "soon"}, "eventFrom"),
    ],
)
def test_a_wrong_meter_is_named(change: dict[str, object], place: str) -> None:
    """Rule: refuse to start, naming the meter, the field and the rule."""
    with pytest.raises(ConfigurationError, match=r"meters\[0\]") as error:
        parse({"meters": [{**GOOD, **change}]})
    assert place in str(error.value)


def test_a_slug_declared_twice_is_refused() -> None:
    """Rule: a slug is one meter."""
    with pytest.raises(ConfigurationError, match="twice"):
        parse({"meters": [GOOD, GOOD]})


def meter(**changes: object) -> Meter:
    return parse({"meters": [{**GOOD, **changes}]})[0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, Decimal(5)),
        (-1, Decimal(-1)),
        (Decimal("0.1"), Decimal("0.1")),
        ("12.50", Decimal("12.50")),
        ("+.5", Decimal("0.5")),
        (" 7 ", "invalid event: value cannot be parsed as float64:  7 "),
        ("3\u00a0", "invalid event: value cannot be parsed as float64: 3\u00a0"),
        ("\u0661", "invalid event: value cannot be parsed as float64: \u0661"),
        ("1.7976931348623158e308", Decimal("1.7976931348623158e308")),
        ("1e3", Decimal(1000)),
        (10**25, Decimal(10**25)),
        ("1e-400", Decimal(0)),
        (None, "invalid event: value cannot be null"),
        (True, "invalid event: unsupported value property type: bool"),
        ("NaN", "invalid event: value cannot be NaN"),
        ("-Inf", "invalid event: value cannot be infinity"),
        ("1e400", "invalid event: value cannot be infinity"),
        (10**400, "invalid event: value cannot be infinity"),
        ("1e99999999", "invalid event: value cannot be parsed as float64: 1e99999999"),
        ("seven", "invalid event: value cannot be parsed as float64: seven"),
        ([], "invalid event: unsupported value property type: []interface {}"),
    ],
)
def test_a_value_is_a_number_or_says_why_not(value: object, expected: object) -> None:
    """Rule: numbers and numeric strings count; the rest is flagged in OpenMeter's words."""
    found = compile_meter(meter())({"tokens": value})
    assert (found.value if isinstance(found, Sample) else found.message) == expected


def test_a_missing_value_names_its_path() -> None:
    """Rule: OpenMeter's words for a missing value property."""
    found = compile_meter(meter())({})
    assert isinstance(found, Invalid)
    assert found.message == 'invalid event: missing value property: "$.tokens"'


def test_groups_of_missing_and_null_differ() -> None:
    """Rule: a missing path is the empty string, a JSON null is `null`."""
    measure = compile_meter(meter(groupBy={"a": "$.a", "b": "$.deep['b c'][1]"}))
    assert isinstance(found := measure({"tokens": 1, "a": None, "deep": {"b c": [0, "x"]}}), Sample)
    assert found.group == (("a", "null"), ("b", "x"))
    assert isinstance(found := measure({"tokens": 1}), Sample)
    assert found.group == (("a", ""), ("b", ""))


async def test_what_a_slug_measures_cannot_change(pool: AsyncConnectionPool[AsyncConnection]) -> None:
    """Rule: slugs are immutable; a changed groupBy is measured anew, an absent meter ends."""
    with pytest.raises(ConfigurationError, match="cannot change"):
        await sync(pool, [meter(valueProperty="$.other")])
    await sync(pool, [meter(groupBy={"direction": "$.direction"})])
    (only,) = await UsageReads(pool).meters()
    assert (only.meter.slug, dict(only.meter.group_by)) == ("tokens", {"direction": "$.direction"})
