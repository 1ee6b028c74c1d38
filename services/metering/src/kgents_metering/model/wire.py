"""A ledger event as OpenMeter gets it. The format is frozen: another id or source would be billed again.

Rules of OpenMeter's v1 ingest that shape it: extension attributes are dropped (v1) or refused (v3), time has
whole seconds, numbers are float64 (so what float64 cannot hold goes as a string, which meters parse), and
deduplication is by source and id, without the subject.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import msgspec

LARGEST_EXACT_INTEGER = 2**53

_DATA = msgspec.json.Decoder(float_hook=Decimal)
_ENCODER = msgspec.json.Encoder(decimal_format="number")


@dataclass(frozen=True, slots=True)
class Owed:
    """An event that is owed to a target.

    Attributes:
        key: The 16-byte identity.
        first_at: When it was first sent, if it was.
        is_from_before: It happened or was stored before the ledger came back from a dump, and may have been
            delivered since that dump.
    """

    n: int
    key: bytes
    tenant: str
    type: str
    time: datetime
    data: str
    attempts: int
    first_at: datetime | None
    traceparent: str | None
    is_from_before: bool = False

    @property
    def wire_id(self) -> str:
        """The id OpenMeter deduplicates by: the identity in hexadecimal, of fixed length, without dashes."""
        return self.key.hex()

    @property
    def wire_source(self) -> str:
        """The source OpenMeter deduplicates by."""
        return f"kgents/{self.tenant}"


def encode(event: Owed) -> bytes:
    """The CloudEvent, structured JSON."""
    return _ENCODER.encode(
        {
            "specversion": "1.0",
            "id": event.wire_id,
            "source": event.wire_source,
            "type": event.type,
            "subject": event.tenant,
            "time": event.time,
            "data": _exact(_DATA.decode(event.data)),
        }
    )


def _exact(value: object) -> object:
    """The same value with every number that float64 would change as a string."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -LARGEST_EXACT_INTEGER <= value <= LARGEST_EXACT_INTEGER else str(value)
    if isinstance(value, Decimal):
        return value if Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_exact(item) for item in value]
    return value
