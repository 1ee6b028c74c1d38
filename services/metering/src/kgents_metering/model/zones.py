"""The one time-zone database: the pinned `tzdata` distribution, whatever the machine or Postgres has.

Source of the rules: IANA's time zone database; RFC 9636 for what a file of it says.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

_DATA = "tzdata"
# A zone of the database that means "nobody has set one".
_NOT_A_PLACE = frozenset({"Factory"})
# No zone has changed twice within it.
_STEP = timedelta(hours=12)
_SECOND = timedelta(seconds=1)


class UnknownZoneError(ValueError):
    """There is no such zone in the database."""


@lru_cache(maxsize=1)
def names() -> frozenset[str]:
    """Every zone and link of the database, by its exact name: no `localtime`, no `posix/…`, no `right/…`."""
    listed = resources.files(_DATA).joinpath("zones").read_text().split()
    return frozenset(listed) - _NOT_A_PLACE


@cache
def zone(name: str) -> ZoneInfo:
    """A zone of the database.

    Raises:
        UnknownZoneError: It has none of this name.
    """
    if name not in names():
        raise UnknownZoneError(name)
    with resources.files(_DATA).joinpath("zoneinfo", *name.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=name)


@lru_cache(maxsize=4096)
def changes(name: str, year: int) -> tuple[datetime, ...]:
    """The moments of a UTC year at which the zone's offset becomes another, each to the second."""
    found: list[datetime] = []
    here = zone(name)
    # From the last second of the year before: many a change is at the first moment of a year.
    at, end = (datetime(y, 1, 1, tzinfo=UTC) - _SECOND for y in (year, year + 1))
    while at < end:
        following = min(at + _STEP, end)
        if offset(at, here) != offset(following, here):
            following = _first_after(at, following, here)  # another may lie behind it
            found.append(following)
        at = following
    return tuple(found)


def offset(moment: datetime, here: ZoneInfo) -> timedelta:
    """What local time is ahead of UTC at a moment."""
    return moment.astimezone(here).utcoffset() or timedelta()


def _first_after(low: datetime, high: datetime, here: ZoneInfo) -> datetime:
    """The first second in (low, high] with another offset than `low`."""
    before = offset(low, here)
    while high - low > _SECOND:
        middle = low + timedelta(seconds=(high - low) // (2 * _SECOND))
        if offset(middle, here) == before:
            low = middle
        else:
            high = middle
    return high
