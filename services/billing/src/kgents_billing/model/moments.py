"""Moments as operators write them; no clock is asked."""

from __future__ import annotations

from datetime import datetime


def parse_moment(text: str) -> datetime:
    """An RFC 3339 time with its offset.

    Raises:
        ValueError: It is none.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no offset: write 2026-01-31T12:00:00Z")
    return moment
