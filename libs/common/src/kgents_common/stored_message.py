"""A message as a stream holds it, as a value, and what makes it that very message; no client, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message of a stream.

    Its identity is `stream`, `seq` and `stored_at`: a stream that is made anew counts from 1 again, but what
    it then holds was stored later. All three are of the message's own delivery.

    Attributes:
        subject: As text that may be stored anywhere (see `connection.wire.readable`).
        headers: The same; the last of several of one name.
        epoch: When the stream was created, as far as known; for whoever reads a list of sequences.
        stored_at: When JetStream stored it, to the microsecond.
        raw_subject: As it was published; empty where not known.
        raw_headers: The header block as it was published; empty for none, or where not known.
    """

    subject: str
    headers: dict[str, str]
    body: bytes
    epoch: datetime
    seq: int
    stored_at: datetime
    stream: str
    raw_subject: bytes = b""
    raw_headers: bytes = b""
