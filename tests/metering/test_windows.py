"""Windows follow one another without gap or overlap, and begin where clocks on walls say, in every zone."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from kgents_metering.model import zones
from kgents_metering.model.windows import Window, windows

MINUTE = timedelta(minutes=1)
CALENDAR = (Window.HOUR, Window.DAY, Window.MONTH)
# Midnight comes twice, never, or a minute late; a date is no day; half an hour, two hours, seconds.
STRANGE = (
    "America/Havana",
    "America/Asuncion",
    "America/St_Johns",
    "Pacific/Apia",
    "Pacific/Kwajalein",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "Africa/Monrovia",
    "Asia/Kathmandu",
    "Africa/Casablanca",
    "CET",
    "UTC",
)
SAMPLED = 12
CHANGES = 20
SEED = int(os.environ.get("KGENTS_TEST_SEED", "0")) or random.randrange(1, 10**6)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


@pytest.mark.parametrize(
    ("size", "zone", "moment", "start", "end"),
    [
        # 00:00 came twice in Havana on 1 November 2020: day and month begin at the first.
        ("DAY", "America/Havana", "2020-11-01T12:00Z", "2020-11-01T04:00Z", "2020-11-02T05:00Z"),
        ("MONTH", "America/Havana", "2020-11-09T12:00Z", "2020-11-01T04:00Z", "2020-12-01T05:00Z"),
        # Since 2026 Cuba keeps its summer time, as the pinned release knows and many a machine does not.
        ("MONTH", "America/Havana", "2026-11-09T12:00Z", "2026-11-01T04:00Z", "2026-12-01T04:00Z"),
        # CET is a zone with summer time, not a fixed offset.
        ("DAY", "CET", "2026-07-10T12:00Z", "2026-07-09T22:00Z", "2026-07-10T22:00Z"),
        # Lord Howe goes back from 02:00 to 01:30: no two hours share a minute.
        ("HOUR", "Australia/Lord_Howe", "2026-04-04T14:59Z", "2026-04-04T14:00Z", "2026-04-04T15:00Z"),
        ("HOUR", "Australia/Lord_Howe", "2026-04-04T15:00Z", "2026-04-04T15:00Z", "2026-04-04T15:30Z"),
        ("HOUR", "Australia/Lord_Howe", "2026-04-04T15:30Z", "2026-04-04T15:30Z", "2026-04-04T16:30Z"),
        # … and forward from 02:00 to 02:30.
        ("HOUR", "Australia/Lord_Howe", "2026-10-03T15:40Z", "2026-10-03T15:30Z", "2026-10-03T16:00Z"),
        # The hour from two to three comes twice in Berlin.
        ("HOUR", "Europe/Berlin", "2026-10-25T00:30Z", "2026-10-25T00:00Z", "2026-10-25T01:00Z"),
        ("HOUR", "Europe/Berlin", "2026-10-25T01:30Z", "2026-10-25T01:00Z", "2026-10-25T02:00Z"),
        ("DAY", "Europe/Berlin", "2026-10-25T12:00Z", "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
        # Asunción had no midnight on 6 October 2024.
        ("DAY", "America/Asuncion", "2024-10-06T12:00Z", "2024-10-06T04:00Z", "2024-10-07T03:00Z"),
        # Samoa had no 30 December 2011: the 29th ends where the 31st begins.
        ("DAY", "Pacific/Apia", "2011-12-29T12:00Z", "2011-12-29T10:00Z", "2011-12-30T10:00Z"),
        ("DAY", "Pacific/Apia", "2011-12-30T12:00Z", "2011-12-30T10:00Z", "2011-12-31T10:00Z"),
        ("HOUR", "Asia/Kolkata", "2026-05-05T10:00Z", "2026-05-05T09:30Z", "2026-05-05T10:30Z"),
        # Liberia was 44 minutes and 30 seconds behind until 1972.
        ("HOUR", "Africa/Monrovia", "1971-05-05T10:00Z", "1971-05-05T09:45Z", "1971-05-05T10:45Z"),
    ],
)
def test_known_windows(size: str, zone: str, moment: str, start: str, end: str) -> None:
    """Rule: first occurrence, real ends, no overlap."""
    made = windows(Window(size), zone, at(moment), at(moment))
    assert made.around(at(moment)) == (at(start), at(end))


def test_there_is_one_database_of_zones() -> None:
    """Rule: names are those of the pinned release; what a machine has beside it is nobody's business."""
    for name in (
        "localtime",
        "posixrules",
        "right/UTC",
        "posix/Europe/Berlin",
        "Factory",
        "europe/berlin",
        "",
    ):
        assert name not in zones.names()
        with pytest.raises(zones.UnknownZoneError):
            zones.zone(name)
    assert {"CET", "UTC", "GMT+0", "America/Argentina/Buenos_Aires"} <= zones.names()


def test_windows_around_clock_changes_of_some_zones() -> None:
    """Rule: whatever zone and change is taken, walking minute by minute finds the same windows."""
    roll = random.Random(SEED)
    for name in (*STRANGE, *roll.sample(sorted(zones.names()), SAMPLED)):
        changes = list(_last_changes(name))
        for change in roll.sample(changes, min(2, len(changes))):
            _check(name, change)


@pytest.mark.long
def test_windows_around_the_last_twenty_changes_of_every_zone() -> None:
    """Rule: the same of every zone and window."""
    for name in sorted(zones.names()):
        for change in _last_changes(name):
            _check(name, change)


def _last_changes(name: str) -> Iterator[datetime]:
    """Found by looking every second hour, as `zones.changes` does not."""
    here, step, seen = zones.zone(name), timedelta(hours=2), 0
    moment = datetime(2029, 1, 1, tzinfo=UTC)
    while moment.year >= 1970 and seen < CHANGES:
        before = moment - timedelta(days=20)
        if _offset(before, here) != _offset(moment, here):
            while _offset(moment - step, here) == _offset(moment, here):
                moment -= step
            seen += 1
            yield moment
            moment -= step
        else:
            moment = before


def _check(name: str, change: datetime) -> None:
    here = zones.zone(name)
    first = change.replace(second=0, microsecond=0) - timedelta(hours=26)
    last = first + timedelta(hours=54)
    for size in CALENDAR:
        expected = _walk(size, here, first, last)
        made = windows(size, name, first, last)
        found = []
        moment = first
        while moment <= last:
            start, end = made.around(moment)
            assert start <= moment < end, (SEED, name, size, moment)
            found.append(start)
            moment = end
        assert found[1:] == expected, (SEED, name, size, change)
        assert made.starts[0] == found[0]
        assert made.end == moment, (SEED, name, size, change)
        # Any moment gives the window that those around it give, and asking with its bounds gives it again.
        for number in (0, len(found) // 2, len(found) - 1):
            start, end = made.around(found[number])
            for inside in (start, end - MINUTE):
                again = windows(size, name, inside, inside)
                assert again.around(inside) == (start, end), (SEED, name, size, inside)


def _walk(size: Window, here: ZoneInfo, first: datetime, last: datetime) -> list[datetime]:
    """The minutes at which a window begins, each found by what clocks on walls showed up to then."""
    found = []
    ahead = _offset(first, here)
    shown = _shown(first, ahead, size)
    reached = shown
    moment = first + MINUTE
    while moment <= last:
        now_ahead = _offset(moment, here)
        now = _shown(moment, now_ahead, size)
        is_other = now != shown or now_ahead != ahead
        if is_other if size is Window.HOUR else now > reached:
            found.append(moment)
        ahead, shown, reached = now_ahead, now, max(reached, now)
        moment += MINUTE
    return found


def _shown(moment: datetime, ahead: timedelta, size: Window) -> tuple[int, ...]:
    local = moment + ahead
    whole = (local.year, local.month, local.day, local.hour)
    return whole[: {Window.HOUR: 4, Window.DAY: 3, Window.MONTH: 2}[size]]


def _offset(moment: datetime, here: ZoneInfo) -> timedelta:
    return moment.astimezone(here).utcoffset() or timedelta()
