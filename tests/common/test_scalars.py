"""One definition of a number, of a text and of a time, for everybody who reads one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgents_common import rfc3339, scalars


@pytest.mark.parametrize(
    "text",
    [
        b"1e400",
        b"-1e309",
        b"9" * 309,
        b'{"a":[' + b"9" * 400 + b"]}",
        b"1e-9999999999999999999",
        b"0e9999999999999999999",
        b"1e-1000000",
        b"1.797693134862315808e308",  # rounds to infinity; one digit less does not
        rb'"\u0000"',
        rb'{"\u0000":1}',
        rb'"a\\\u0000"',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        rb'"\ud800"',
        rb'"\udc00"',
        b"[" * 33 + b"]" * 33,
        b"[" * 90_000 + b"]" * 90_000,
        b"NaN",
        b"",
    ],
)
def test_what_some_reader_could_not_hold_is_no_value(text: bytes) -> None:
    """Rule: a number is finite as a float64 and exact as a Decimal; a text is storable UTF-8."""
    with pytest.raises(ValueError, match=r"^must "):
        scalars.check_json(text)


@pytest.mark.parametrize(
    "text",
    [
        b"1e-999999",
        b"1.7976931348623158e308",
        b"9" * 308,
        b'"' + b"9" * 400 + b'"',
        rb'"\\u0000"',
        rb'"\\\\u0000"',
        rb'"\ud83d\ude00"',
        b"[" * 32 + b"]" * 32,
        b'{"a":1.50,"b":null,"c":[true,-0.0]}',
    ],
)
def test_what_every_reader_holds_is_a_value(text: bytes) -> None:
    """Rule: the edge of each rule is inside."""
    scalars.check_json(text)


@pytest.mark.parametrize("text", ["١", "3\u00a0", " 3", "3 ", "1_000", "0x10", "", ".", "1e1000000", "٣.5"])
def test_a_text_that_openmeters_parser_refuses_is_no_number(text: str) -> None:
    """Rule: ASCII digits alone, as Go's ParseFloat has it (its hexadecimal and underscores left out)."""
    with pytest.raises(ValueError, match="must be a number"):
        scalars.decimal(text)


@pytest.mark.parametrize(("text", "value"), [("+1.5", "1.5"), (".5", "0.5"), ("5.", "5"), ("1e3", "1000")])
def test_a_text_in_decimal_notation_is_that_number(text: str, value: str) -> None:
    assert scalars.decimal(text) == Decimal(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_is_a_number_in_both_notations(value: float) -> None:
    """Rule: what a client's JSON writer made of a float64 is never refused."""
    scalars.check_json(repr(value).encode())
    assert float(scalars.decimal(repr(value))) == value


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2026-11-23T10:59:59.9999996Z", "2026-11-23T10:59:59.999999+00:00"),
        ("2026-11-23T23:59:59.9999999Z", "2026-11-23T23:59:59.999999+00:00"),
        ("2026-11-23T23:59:59." + "9" * 40 + "Z", "2026-11-23T23:59:59.999999+00:00"),
        ("2026-11-23T10:59:59.1234567Z", "2026-11-23T10:59:59.123456+00:00"),
        ("2026-11-23T10:59:59.12+01:00", "2026-11-23T09:59:59.120000+00:00"),
        ("2026-11-23t10:59:59z", "2026-11-23T10:59:59+00:00"),
        ("2026-12-31T23:59:60Z", "2026-12-31T23:59:59.999999+00:00"),
        ("2026-12-31T15:59:60.7-08:00", "2026-12-31T23:59:59.999999+00:00"),
        ("2027-01-01T00:59:60+01:00", "2026-12-31T23:59:59.999999+00:00"),
    ],
)
def test_a_time_is_cut_and_a_leap_second_stays_on_its_day(text: str, read: str) -> None:
    """Rule: no time moves to a later window than the one it names."""
    assert rfc3339.moment(text) == datetime.fromisoformat(read)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23T10:59:59",
        "2026-11-23 10:59:59Z",
        "2026-W48-1T10:00:00Z",
        "20261123T105959Z",
        "2026-11-23T24:00:00Z",
        "2026-11-23T10:59:60Z",
        "2026-12-30T23:59:60Z",
        "2026-12-31T23:59:61Z",
        "2026-11-23T10:59:59+24:00",
        "2026-11-23T10:59:59+10:60",
        "2026-11-23T10:59:59,5Z",
        "2026-11-23T10:59:59.Z",
        "２026-11-23T10:59:59Z",
        "2026-02-30T10:59:59Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-12:00",
        "9999-12-31T23:59:60Z",
        "",
    ],
)
def test_what_is_no_such_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        rfc3339.moment(text)


_DECODER = msgspec.json.Decoder(datetime)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1))  # noqa: DTZ001 a zone is written behind them


@given(moments, st.text("0123456789", max_size=9), st.sampled_from(["Z", "+05:30", "-11:00"]))
def test_digests_have_times_as_they_had_them_when_they_were_frozen(
    moment: datetime, fraction: str, zone: str
) -> None:
    """Rule: msgspec's rounding of up to nine digits, for ever (P2); the time itself is never later."""
    text = f"{moment:%Y-%m-%dT%H:%M:%S}{'.' if fraction else ''}{fraction}{zone}"
    cut = rfc3339.moment(text)
    assert rfc3339.rounded(text, cut) == _DECODER.decode(f'"{text}"'.encode())
    assert timedelta(0) <= rfc3339.rounded(text, cut) - cut <= timedelta(microseconds=1)
    assert cut.tzinfo is UTC
