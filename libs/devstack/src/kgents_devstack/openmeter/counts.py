"""What the stand-in counted of its ingest, for tests and the demo; it is no part of OpenMeter's contract."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kgents_devstack.openmeter.store import EventStore, Outcome

CUT = 0


@dataclass(slots=True)
class Statistics:
    """Since the start, or since the events were deleted.

    Attributes:
        requests: Ingest requests; `reads` are all others but those of the control plane.
        accepted: Events ingested, duplicates included, whatever the answer was.
        rejected: Events of requests that were refused with 400 or 413, as far as they could be counted.
        dropped: Events answered with 204 and thrown away.
        by_status: Ingest requests by status; 0 where the connection was cut instead.
    """

    requests: int = 0
    reads: int = 0
    accepted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejected: int = 0
    dropped: int = 0
    largest_batch: int = 0
    by_status: Counter[int] = field(default_factory=Counter)

    def took(self, outcome: Outcome) -> None:
        """Count a stored batch."""
        self.accepted += outcome.stored + outcome.duplicates
        self.duplicates += outcome.duplicates
        self.conflicts += outcome.conflicts

    def document(self, store: EventStore, fired: Counter[str]) -> dict[str, object]:
        """As `GET /_control/stats` gives it."""
        by_source = store.by_source()
        return {
            "requests": self.requests,
            "reads": self.reads,
            "accepted": self.accepted,
            "stored": len(store),
            "unique": store.unique,
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
            "rejected": self.rejected,
            "dropped": self.dropped,
            "largest_batch": self.largest_batch,
            "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
            "faults_fired": dict(fired),
            "sources": len(by_source),
            "by_source": by_source,
        }
