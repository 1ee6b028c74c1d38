"""Moments as OpenMeter writes and reads them: RFC 3339 text and whole Unix seconds; it tells no time."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)")


def whole_seconds(moment: datetime) -> int:
    """Unix seconds, rounded down: OpenMeter keeps no fraction of a second."""
    return (moment - EPOCH) // _SECOND


def parse(text: str) -> datetime:
    """An RFC 3339 date-time.

    Raises:
        ValueError: It is none; a time zone is required.
    """
    if not _DATE_TIME.fullmatch(text):
        raise ValueError(f"{text!r} is not an RFC 3339 date-time")
    return datetime.fromisoformat(text.upper())


def show(moment: datetime) -> str:
    """RFC 3339 in UTC, a fraction only where there is one."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def show_seconds(seconds: int) -> str:
    """Unix seconds as RFC 3339 in UTC."""
    return show(EPOCH + timedelta(seconds=seconds))
