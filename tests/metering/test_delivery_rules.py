"""Every answer of OpenMeter has exactly one meaning, and nothing is sent twice past its memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgents_metering.model.delivery import (
    LONGEST_BACKOFF,
    MAX_BATCH_BYTES,
    MAX_BATCH_EVENTS,
    Answer,
    Verdict,
    backoff,
    halves,
    is_away,
    judge,
    must_verify,
    retry_after,
    split,
)
from kgents_metering.model.wire import Owed, encode

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def owed(n: int = 1, *, data: str = "{}", first_at: datetime | None = None) -> Owed:
    return Owed(n, n.to_bytes(16, "big"), "acme", "llm.tokens", NOW, data, 0, first_at, None)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, Verdict.DELIVERED),
        (202, Verdict.DELIVERED),
        (204, Verdict.DELIVERED),
        (400, Verdict.BISECT),
        (422, Verdict.BISECT),
        (413, Verdict.HALVE),
        (401, Verdict.PAUSE),
        (403, Verdict.PAUSE),
        (404, Verdict.PAUSE),
        (408, Verdict.RETRY),
        (429, Verdict.RETRY),
        (500, Verdict.RETRY),
        (502, Verdict.RETRY),
        (503, Verdict.RETRY),
        (504, Verdict.RETRY),
        (301, Verdict.RETRY),
        (0, Verdict.RETRY),
    ],
)
def test_each_status_has_one_row(status: int, verdict: Verdict) -> None:
    """Rule: the table of the design; 204 is a success (the prior system took it for a failure)."""
    assert judge(Answer(status)) is verdict


def test_a_target_that_asks_to_slow_down_is_not_away() -> None:
    """Rule: the circuit opens for what is down, not for what is busy."""
    assert [is_away(Answer(status)) for status in (0, 503, 408, 429, 400, 204)] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


@given(st.integers(0, 100))
def test_a_wait_is_jittered_bounded_and_never_less_than_asked(attempts: int) -> None:
    """Rule: full jitter under a cap; Retry-After honoured."""
    assert timedelta() < backoff(attempts, Answer(503)) <= LONGEST_BACKOFF
    asked = timedelta(seconds=40)
    assert backoff(attempts, Answer(429, retry_after=asked)) == asked


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("7", timedelta(seconds=7)),
        ("Mon, 23 Nov 2026 12:00:30 GMT", timedelta(seconds=30)),
        ("Mon, 23 Nov 2026 11:00:00 GMT", timedelta()),
        ("999999999", timedelta(hours=1)),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str | None, wait: timedelta | None) -> None:
    """Rule: RFC 9110 section 10.2.3: seconds or a date."""
    assert retry_after(value, NOW) == wait


def test_past_the_dedupe_window_we_ask_before_we_resend() -> None:
    """Rule: verify before resend once OpenMeter may have forgotten the key."""
    window = timedelta(days=32)
    for age, expected in ((timedelta(days=30), False), (timedelta(days=31, hours=1), True)):
        assert must_verify([owed(first_at=NOW - age)], now=NOW, dedupe_window=window) is expected
    assert must_verify([owed()], now=NOW, dedupe_window=window) is False


@given(st.lists(st.integers(1, MAX_BATCH_BYTES * 2), max_size=300))
def test_batches_keep_order_and_limits(sizes: list[int]) -> None:
    """Rule: at most 100 events and 900 kB; nothing is left out, an oversize event goes alone."""
    events = [owed(n) for n in range(len(sizes))]
    batches = split(events, sizes)
    assert [event.n for batch in batches for event in batch] == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) <= MAX_BATCH_EVENTS
        assert len(batch) == 1 or sum(sizes[event.n] for event in batch) <= MAX_BATCH_BYTES


@given(st.integers(2, 100))
def test_halves_are_the_whole(count: int) -> None:
    """Rule: bisecting loses nobody."""
    events = [owed(n) for n in range(count)]
    left, right = halves(events)
    assert [*left, *right] == events
    assert left
    assert right


def test_the_wire_format_is_frozen() -> None:
    """Rule: another id or source would be billed again; what float64 cannot hold goes as a string."""
    data = '{"a":9007199254740993,"b":0.1,"c":1.00000000000000000001,"d":[{"e":9007199254740992}],"f":true}'
    event = Owed(1, bytes(range(16)), "acme", "llm.tokens", NOW, data, 0, None, None)
    assert msgspec.json.decode(encode(event)) == {
        "specversion": "1.0",
        "id": "000102030405060708090a0b0c0d0e0f",
        "source": "kgents/acme",
        "type": "llm.tokens",
        "subject": "acme",
        "time": "2026-11-23T12:00:00Z",
        "data": {
            "a": "9007199254740993",
            "b": 0.1,
            "c": "1.00000000000000000001",
            "d": [{"e": 9007199254740992}],
            "f": True,
        },
    }
