"""A span of time cut into whole minutes and the parts of minutes at its ends."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kgents_metering.model.windows import MINUTE


@dataclass(frozen=True, slots=True)
class Span:
    """From `start` (inclusive) to `end` (exclusive), whole seconds, UTC; None for open."""

    start: datetime | None = None
    end: datetime | None = None

    def whole_minutes(self) -> Span:
        """The part that whole minutes answer; where there is none, its start is not before its end."""
        start, end = self.start, self.end
        if start is not None and start != _floor(start):
            start = _floor(start) + MINUTE
        return Span(start, _floor(end) if end is not None else None)

    def edges(self) -> list[tuple[datetime, datetime]]:
        """The parts of minutes at both ends, which only the events themselves answer."""
        whole = self.whole_minutes()
        found: list[tuple[datetime, datetime]] = []
        if self.start is not None and whole.start is not None and self.start < whole.start:
            found.append((self.start, min(whole.start, self.end) if self.end else whole.start))
        if self.end is not None and whole.end is not None and whole.end < self.end:
            start = max(whole.end, self.start) if self.start else whole.end
            if not any(s <= start < e for s, e in found):
                found.append((start, self.end))
        return found


def _floor(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)
