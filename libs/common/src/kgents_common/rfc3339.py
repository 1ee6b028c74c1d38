"""RFC 3339 dates and times, read in one way wherever the system reads one; nothing is written here.

Digits beyond microseconds are cut off, never rounded: an event at 23:59:59.9999999 is on the day it says.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

RULE = "an RFC 3339 date and time with a zone"

_GRAMMAR = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)
# What nearly every time is: read by the standard library, which is much faster.
_COMMON = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-5][0-9](?:\.(?:[0-9]{3}|[0-9]{6}))?"
    r"(?:Z|[+-][0-2][0-9]:[0-5][0-9])"
)
# A shorter text has no digits beyond microseconds; one that is no longer has none beyond nanoseconds.
_BEYOND_MICROSECONDS = len("2026-01-01T00:00:00.0000001Z")
_WITHIN_NANOSECONDS = len("2026-01-01T00:00:00.000000001Z")
_FRACTION = re.compile(r"\.([0-9]+)")
_MICROSECOND = timedelta(microseconds=1)
LEAP_SECOND = 60
NANOSECOND_DIGITS = 9
_UP = frozenset("56789")


def moment(text: str) -> datetime:
    """The date and time as an aware datetime in UTC.

    A leap second (RFC 3339 section 5.7: 23:59:60 in UTC, on the last day of a month) has no place of its own
    in a datetime: it is read as the last microsecond before midnight, so it counts on the day it is part of.

    Raises:
        ValueError: It is none, or is outside of the years 1 to 9999.
    """
    if _COMMON.fullmatch(text):
        try:
            return datetime.fromisoformat(text).astimezone(UTC)
        except OverflowError:
            raise ValueError("must be within the years 1 to 9999") from None
    found = _GRAMMAR.fullmatch(text)
    if found is None:
        raise ValueError(f"must be {RULE}")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    is_leap = second == LEAP_SECOND
    microsecond = 999_999 if is_leap else int((found[7] or "0")[:6].ljust(6, "0"))
    read = datetime(
        year, month, day, hour, minute, 59 if is_leap else second, microsecond, tzinfo=_zone(found)
    )
    try:
        in_utc = read.astimezone(UTC)
        if is_leap and (in_utc + _MICROSECOND) != _next_month(in_utc):
            raise ValueError("a leap second is 23:59:60 in UTC on the last day of a month")
    except OverflowError:
        raise ValueError("must be within the years 1 to 9999") from None
    return in_utc


def is_common(text: str) -> bool:
    """Whether every release of ours reads this time: no leap second, at most nine digits of a fraction."""
    if text.startswith("60", 17):
        return False
    return len(text) <= _WITHIN_NANOSECONDS or len(_fraction(text)) <= NANOSECOND_DIGITS


def rounded(text: str, cut: datetime) -> datetime:
    """The same moment rounded to the nearest microsecond (halves up), as payload digests have had it always.

    It is for digests alone: they are frozen, and what was accepted once must be recognised for ever. Times
    that no release read when they were frozen are cut here too.

    Args:
        text: What `moment` read.
        cut: What it gave.
    """
    if len(text) < _BEYOND_MICROSECONDS:
        return cut
    is_up = _fraction(text)[6:7] in _UP and is_common(text)
    try:
        return cut + _MICROSECOND if is_up else cut
    except OverflowError:
        return cut


def _fraction(text: str) -> str:
    """The digits of a second's fraction, of a text that `moment` reads."""
    found = _FRACTION.match(text, 19)
    return found[1] if found else ""


def _zone(found: re.Match[str]) -> timezone:
    if found[8] is None:
        return UTC
    hours, minutes = int(found[9]), int(found[10])
    if hours > 23 or minutes > 59:
        raise ValueError(f"must be {RULE}")
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if found[8] == "-" else offset)


def _next_month(day: datetime) -> datetime:
    first = day.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first + timedelta(days=32)).replace(day=1)
