"""An event that was checked: what is published of it and what it is known by; it checks nothing."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import msgspec

from kgents_common import subjects
from kgents_common.envelope.identity import digest, identity

_EXACT = msgspec.json.Decoder(float_hook=Decimal)
_CANONICAL = msgspec.json.Encoder(order="sorted", decimal_format="number")


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """One event, checked and complete.

    Attributes:
        body: The structured JSON CloudEvent as it is published, subject and time set.
        data: The JSON text of `data`, an object; `{}` where the producer sent none.
        time: When it happened, aware, in UTC, cut to microseconds.
        digest_time: The same as the payload's digest has it: see `rfc3339.rounded`.
        time_is_received: The time is the door's, not the producer's.
    """

    id: str
    source: str
    type: str
    tenant: str
    time: datetime
    time_is_received: bool
    data: bytes
    body: bytes
    digest_time: datetime

    @property
    def subject(self) -> str:
        """The NATS subject it is published under."""
        return subjects.agentese(self.tenant, self.type)

    @property
    def key(self) -> bytes:
        """The 16-byte identity: see `identity`."""
        return identity(self.tenant, self.source, self.id)

    def payload_hash(self) -> bytes:
        """16 bytes over the canonical type, time, subject and data.

        Two events with one key and one hash are the same event sent twice; with two hashes they contradict
        each other. Object members are compared without their order, numbers as they are written. It is
        frozen, as the identity is: another digest of what was accepted once would make it a conflict.
        """
        time = b"" if self.time_is_received else self.digest_time.isoformat().encode()
        data = _CANONICAL.encode(_EXACT.decode(self.data))
        return digest(self.type.encode(), time, self.tenant.encode(), data)
