"""Times as JetStream writes them (RFC 3339 with nanoseconds) and as we count them (Unix nanoseconds)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NANOSECONDS = 1_000_000_000


def to_nanoseconds(text: str) -> int:
    """Unix nanoseconds of an RFC 3339 time with any fraction; 0 for JetStream's zero time."""
    if text.startswith("0001-"):
        return 0
    body = text.removesuffix("Z")
    offset = ""
    for sign in ("+", "-"):
        head, found, tail = body[19:].partition(sign)
        if found:
            body, offset = body[:19] + head, sign + tail
    whole, _, fraction = body.partition(".")
    moment = datetime.fromisoformat(whole + (offset or "+00:00"))
    seconds = (moment - EPOCH) // timedelta(seconds=1)
    return seconds * NANOSECONDS + int(f"{fraction[:9]:0<9}")


def from_nanoseconds(value: int) -> str:
    """RFC 3339 in UTC with nine digits of fraction."""
    seconds, fraction = divmod(value, NANOSECONDS)
    return f"{EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{fraction:09}Z"


def of(moment: datetime) -> int:
    """Unix nanoseconds of an aware moment."""
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000
