"""The window a moment falls into: calendar windows in a time zone, as ClickHouse tumbles; it sums nothing.

Source: `meter_query.go` (tumbleStart, tumbleEnd) and `e2e/e2e_test.go` (TestQueryDSTTransition): windows are
not anchored at `from`, and a day ends at the next local midnight, 23 or 25 hours later when clocks change.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from kgents_devstack.openmeter.clocktext import EPOCH, whole_seconds

WINDOW_SIZES = ("MINUTE", "HOUR", "DAY", "MONTH")
MINUTE_SECONDS = 60
HOUR_SECONDS = 3600

Bounds = tuple[int, int]


def windower(size: str, zone: ZoneInfo) -> Callable[[int], Bounds]:
    """A function from Unix seconds to the start and the end (excluded) of the window around them."""
    found: dict[int, Bounds] = {}
    compute = {"MINUTE": _minute, "HOUR": _hour, "DAY": _day, "MONTH": _month}[size]

    def bounds(seconds: int) -> Bounds:
        # Zones change at whole minutes; before 1970 some did not, and are looked at second by second.
        key = seconds // MINUTE_SECONDS if seconds >= 0 else seconds
        window = found.get(key)
        if window is None:
            window = found[key] = compute(seconds, zone)
        return window

    return bounds


def _minute(seconds: int, _zone: tzinfo) -> Bounds:
    start = seconds - seconds % MINUTE_SECONDS
    return start, start + MINUTE_SECONDS


def _hour(seconds: int, zone: tzinfo) -> Bounds:
    """From the full hour on the wall: at half past in UTC where the zone is so."""
    offset = (EPOCH + timedelta(seconds=seconds)).astimezone(zone).utcoffset() or timedelta()
    shift = int(offset.total_seconds())
    start = seconds - (seconds + shift) % HOUR_SECONDS
    return start, start + HOUR_SECONDS


def _day(seconds: int, zone: tzinfo) -> Bounds:
    today = _local_date(seconds, zone)
    return _midnight(today, zone), _midnight(today + timedelta(days=1), zone)


def _month(seconds: int, zone: tzinfo) -> Bounds:
    first = _local_date(seconds, zone).replace(day=1)
    following = (first + timedelta(days=31)).replace(day=1)
    return _midnight(first, zone), _midnight(following, zone)


def _local_date(seconds: int, zone: tzinfo) -> date:
    return (EPOCH + timedelta(seconds=seconds)).astimezone(zone).date()


def _midnight(day: date, zone: tzinfo) -> int:
    """The first moment of a local day; where midnight is skipped, the moment the clock jumps."""
    return whole_seconds(datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC))
