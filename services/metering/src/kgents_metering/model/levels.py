"""Which days, hours and minutes of UTC a question reads: the fewest that its windows' boundaries allow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kgents_metering.model.windows import HOUR, Windows

DAY = timedelta(days=1)

Range = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Levels:
    """Ranges of each level, ascending and apart; together they are the span, each minute once."""

    days: list[Range] = field(default_factory=list)
    hours: list[Range] = field(default_factory=list)
    minutes: list[Range] = field(default_factory=list)


def levels(start: datetime, end: datetime, windows: Windows | None) -> Levels:
    """The levels for a span of whole minutes, so that no day or hour read lies in two windows.

    Args:
        start, end: Whole minutes, UTC; nothing is read where `start` is not before `end`.
        windows: The windows that touch the span; None where it is one.
    """
    found = Levels()
    for a, b in _pieces(start, end, windows):
        if windows is not None and windows.step is not None:
            _add_grid(found, a, b, windows)
        else:
            _add_whole(found, a, b)
    return found


def _pieces(start: datetime, end: datetime, windows: Windows | None) -> Iterator[Range]:
    """The span cut where windows begin (or runs of them, where they have a step)."""
    cuts: Iterable[datetime] = () if windows is None else windows.starts
    at = start
    for cut in cuts:
        if at < cut < end:
            yield at, cut
            at = cut
    if at < end:
        yield at, end


def _add_grid(found: Levels, a: datetime, b: datetime, windows: Windows) -> None:
    """Windows of hours or minutes: full hours of UTC where they are the windows' hours, else minutes."""
    origin = windows.origins[bisect_right(windows.starts, a) - 1]
    if windows.step == HOUR and origin == _floor(origin, HOUR):
        _add_hours(found, a, b)
    else:
        _append(found.minutes, a, b)


def _add_whole(found: Levels, a: datetime, b: datetime) -> None:
    """One window, or one piece of one."""
    first, last = _ceiling(a, DAY), _floor(b, DAY)
    if first < last:
        _add_hours(found, a, first)
        _append(found.days, first, last)
        _add_hours(found, last, b)
    else:
        _add_hours(found, a, b)


def _add_hours(found: Levels, a: datetime, b: datetime) -> None:
    first, last = _ceiling(a, HOUR), _floor(b, HOUR)
    if first < last:
        _append(found.minutes, a, first)
        _append(found.hours, first, last)
        _append(found.minutes, last, b)
    else:
        _append(found.minutes, a, b)


def _append(ranges: list[Range], a: datetime, b: datetime) -> None:
    """Add a range; one that goes on where the last ends is one with it."""
    if a >= b:
        return
    if ranges and ranges[-1][1] == a:
        ranges[-1] = (ranges[-1][0], b)
    else:
        ranges.append((a, b))


def _floor(moment: datetime, unit: timedelta) -> datetime:
    hour = 0 if unit == DAY else moment.hour
    return moment.replace(hour=hour, minute=0, second=0, microsecond=0)


def _ceiling(moment: datetime, unit: timedelta) -> datetime:
    floor = _floor(moment, unit)
    return floor if floor == moment else floor + unit
