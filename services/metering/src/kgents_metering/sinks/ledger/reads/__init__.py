"""Usage read back from the ledger; nothing here writes."""

from kgents_metering.sinks.ledger.reads.events import EventFilter, ListedEvent
from kgents_metering.sinks.ledger.reads.rows import NARROW, Answer, BackfillingError, ReadLimits, Row
from kgents_metering.sinks.ledger.reads.usage import UsageReads

__all__ = [
    "NARROW",
    "Answer",
    "BackfillingError",
    "EventFilter",
    "ListedEvent",
    "ReadLimits",
    "Row",
    "UsageReads",
]
