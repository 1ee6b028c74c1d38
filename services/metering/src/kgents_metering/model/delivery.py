"""What an answer of OpenMeter means for the batch that was sent, and how long to wait; it sends nothing.

The table is that of the design's delivery rules: every answer has exactly one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum

from kgents_common.retry import Backoff
from kgents_metering.model.wire import Owed

MAX_BATCH_EVENTS = 100
MAX_BATCH_BYTES = 900_000
LONGEST_BACKOFF = timedelta(seconds=15)
# A batch that failed so often is halved: one event of it may be all that fails.
SUSPECT_ATTEMPTS = 4
BACKOFF = Backoff(timedelta(seconds=0.5), LONGEST_BACKOFF)
PAUSE = timedelta(seconds=15)
# Past the target's deduplication window a repeated event counts twice; we stop relying on it a day early.
DEDUPE_MARGIN = timedelta(days=1)


class Verdict(StrEnum):
    """What to do with a batch after an answer."""

    DELIVERED = "delivered"
    BISECT = "bisect"  # one event of it is refused: find which
    HALVE = "halve"  # too large
    PAUSE = "pause"  # the target refuses us, not the events: an operator's to mend
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, or none (`status` 0: a timeout or a broken connection)."""

    status: int
    detail: str = ""
    retry_after: timedelta | None = None


def judge(answer: Answer) -> Verdict:
    """The row of the table."""
    if answer.status in (200, 202, 204):
        return Verdict.DELIVERED
    if answer.status in (400, 422):
        return Verdict.BISECT
    if answer.status == 413:
        return Verdict.HALVE
    if answer.status in (401, 403, 404):
        return Verdict.PAUSE
    return Verdict.RETRY


def is_away(answer: Answer) -> bool:
    """Whether the target seems to be down; one that asks us to slow down (429) is not."""
    return answer.status == 0 or answer.status >= 500 or answer.status == 408


def is_suspect(events: Sequence[Owed]) -> bool:
    """Whether these failed so often that one of them may be why.

    Then halves are tried, and what fails alone says nothing of whether the target is there.
    """
    return min(event.attempts for event in events) >= SUSPECT_ATTEMPTS


def backoff(attempts: int, answer: Answer) -> timedelta:
    """How long to leave a batch alone: full jitter under a doubling cap, never less than Retry-After."""
    wait = BACKOFF.wait(attempts + 1)
    return max(wait, answer.retry_after) if answer.retry_after is not None else wait


def retry_after(value: str | None, now: datetime) -> timedelta | None:
    """The Retry-After header (RFC 9110 section 10.2.3): seconds or a date; at most an hour is believed."""
    if not value:
        return None
    try:
        seconds = int(value) if value.isdecimal() else (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return timedelta(seconds=min(max(seconds, 0), 3600))


def must_verify(events: Sequence[Owed], *, now: datetime, dedupe_window: timedelta) -> bool:
    """Whether the target may have one of these and not know it again: then ask before sending."""
    if any(event.is_from_before for event in events):
        return True
    limit = now - (dedupe_window - min(DEDUPE_MARGIN, dedupe_window / 24))
    return any(event.first_at is not None and event.first_at <= limit for event in events)


def split(events: Sequence[Owed], sizes: Sequence[int]) -> list[list[Owed]]:
    """Batches of at most 100 events and 900 kB, in order; an event larger than that goes alone."""
    batches: list[list[Owed]] = []
    room = 0
    for event, size in zip(events, sizes, strict=True):
        if not batches or len(batches[-1]) >= MAX_BATCH_EVENTS or size + 1 > room:
            batches.append([])
            room = MAX_BATCH_BYTES
        batches[-1].append(event)
        room -= size + 1
    return batches


def halves(events: Sequence[Owed]) -> tuple[Sequence[Owed], Sequence[Owed]]:
    """The two halves of a batch of two or more."""
    middle = len(events) // 2
    return events[:middle], events[middle:]
