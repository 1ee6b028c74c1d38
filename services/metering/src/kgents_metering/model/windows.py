"""The windows of a query: calendar hours, days and months of a zone, cut from whole UTC minutes.

They follow one another without gap or overlap. A day or month begins at the first moment whose local time has
reached its midnight: at the first of two where midnight comes twice, after the gap where it does not come. An
hour begins where local time reaches a full hour, and where clocks change: an hour that comes twice is two
windows, and a change by half an hour makes a window of half an hour. A minute belongs to the window that its
first moment lies in (only offsets of before 1972 have seconds).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache

from kgents_metering.model import zones

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)


class Window(StrEnum):
    """The size of a window."""

    MINUTE = "MINUTE"
    HOUR = "HOUR"
    DAY = "DAY"
    MONTH = "MONTH"


@dataclass(frozen=True, slots=True)
class Windows:
    """All windows that touch a span.

    Attributes:
        starts: Where a run of windows begins, ascending; a run ends where the next begins, the last at `end`.
        step: How far the windows of a run are apart; None where each run is one window.
        origins: For each run, a moment on its grid: with a step, a run's first window may be a part of one.
    """

    starts: tuple[datetime, ...]
    origins: tuple[datetime, ...]
    end: datetime
    step: timedelta | None

    def around(self, moment: datetime) -> tuple[datetime, datetime]:
        """Start and end of the window that a moment of the span lies in."""
        if self.step == MINUTE:  # the commonest by far in a large answer; every minute is on the grid
            start = moment.replace(second=0, microsecond=0)
            return start, start + MINUTE
        run = bisect_right(self.starts, moment) - 1
        start = self.starts[run]
        end = self.starts[run + 1] if run + 1 < len(self.starts) else self.end
        if self.step is None:
            return start, end
        grid = self.origins[run] + (moment - self.origins[run]) // self.step * self.step
        return max(start, grid), min(end, grid + self.step)


# Where there is nothing that a window could hold.
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOTHING = Windows((_EPOCH,), (_EPOCH,), _EPOCH, MINUTE)


def windows(size: Window, zone: str, first: datetime, last: datetime) -> Windows:
    """The windows from the one that `first` lies in to the one that `last` lies in.

    Args:
        zone: A name that `zones` knows.
        first, last: Aware, UTC, whole minutes; `first` is not after `last`.
    """
    if size is Window.MINUTE:
        return Windows((first,), (first,), last + MINUTE, MINUTE)
    if size is Window.HOUR:
        return _hours(zone, first, last)
    starts: list[datetime] = []
    end = last
    for day in _dates(size, zone, first, last):
        start = day_start(zone, day)
        if start > last:
            end = start
            break
        if starts and (start == starts[-1] or start <= first):
            starts.pop()  # a date that is no day there, or is over before the span begins
        starts.append(start)
    return Windows(tuple(starts), tuple(starts), end, None)


@lru_cache(maxsize=65_536)
def day_start(zone: str, day: date) -> datetime:
    """The first whole minute, in UTC, whose local time has reached this date's midnight."""
    here = zones.zone(zone)
    early = datetime(day.year, day.month, day.day, tzinfo=here).astimezone(UTC)
    late = datetime(day.year, day.month, day.day, tzinfo=here, fold=1).astimezone(UTC)
    if late >= early:  # once, or twice: the first
        return _ceiling(early)
    # Midnight lies in a gap (PEP 495: the two are then the wrong way round), and the clock changes between.
    midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 local time, as clocks on walls show it
    low, high = late - _SECOND, early
    while high - low > _SECOND:
        middle = low + timedelta(seconds=(high - low) // (2 * _SECOND))
        if middle.astimezone(here).replace(tzinfo=None) >= midnight:
            high = middle
        else:
            low = middle
    return _ceiling(high)


def _dates(size: Window, zone: str, first: datetime, last: datetime) -> list[date]:
    """The first days of all windows that may touch the span, and one more on either side."""
    here = zones.zone(zone)
    begin, end = first.astimezone(here).date() - 2 * _DAY, last.astimezone(here).date() + 3 * _DAY
    if size is Window.DAY:
        return [begin + number * _DAY for number in range((end - begin).days + 1)]
    found = []
    month = begin.replace(day=1)
    while True:
        found.append(month)
        if month > end:
            return found
        month = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)


def _hours(zone: str, first: datetime, last: datetime) -> Windows:
    here = zones.zone(zone)
    begin, end = _floor_hour(first) - HOUR, _floor_hour(last) + 2 * HOUR
    starts, origins = [], []
    changes = [
        change
        for year in range(begin.year, end.year + 1)
        for change in zones.changes(zone, year)
        if begin < change < end
    ]
    for start in (begin, *changes):
        # On the grid of full local hours: the hour's start, with the offset that holds from here on.
        ahead = zones.offset(start, here)
        local = start + ahead
        grid = local.replace(minute=0, second=0, microsecond=0) - ahead
        starts.append(_ceiling(start))
        origins.append(_ceiling(grid))
    begin = max(start for start in starts if start <= first)
    kept = starts.index(begin)
    made = Windows(tuple(starts[kept:]), tuple(origins[kept:]), end, HOUR)
    # The ends of the span are windows' ends, too.
    head, tail = made.around(first)[0], made.around(last)[1]
    runs = [(max(head, s), o) for s, o in zip(made.starts, made.origins, strict=True) if s < tail]
    return Windows(tuple(s for s, _ in runs), tuple(o for _, o in runs), tail, HOUR)


def _floor_hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _ceiling(moment: datetime) -> datetime:
    floor = moment.replace(second=0, microsecond=0)
    return floor if floor == moment else floor + MINUTE
