"""A dead letter as values: before it is buried, and as the table has it; nothing is stored here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from kgents_common.stored_message import StoredMessage

LONGEST_DETAIL = 1000


@dataclass(frozen=True, slots=True)
class Burial:
    """A message to be set aside, and why.

    Attributes:
        code: The reason, one token, e.g. `invalid_event`.
        detail: For an operator; nothing of the body.
        beside: The values of the columns that only this schema has.
    """

    message: StoredMessage
    code: str
    detail: str
    beside: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def storable_detail(self) -> str:
        """The detail as Postgres takes it."""
        return self.detail.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()[:LONGEST_DETAIL]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row.

    Attributes:
        stored_at: With `stream` and `seq`, the message's identity; a letter of a version that did not keep it
            has its epoch there.
        raw_subject: As it was published; None where not kept.
        headers: A JSON object, names to values, as text.
        raw_headers: The header block as it was published; None for none, or where not kept.
        replay_seq: Under which sequence its replay was stored, where it was published again.
    """

    id: int
    stream: str
    epoch: datetime
    seq: int
    stored_at: datetime
    subject: str
    raw_subject: bytes | None
    headers: str
    raw_headers: bytes | None
    body: bytes
    code: str
    detail: str
    at: datetime
    state: str
    settled_at: datetime | None
    reason: str | None
    replay_seq: int | None

    def header_map(self) -> dict[str, str]:
        """Its original headers."""
        found: dict[str, str] = msgspec.json.decode(self.headers, type=dict[str, str])
        return found

    def message(self, body: bytes | None = None) -> StoredMessage:
        """The message it was made of, or with another body."""
        return StoredMessage(
            subject=self.subject,
            headers=self.header_map(),
            body=bytes(self.body) if body is None else body,
            epoch=self.epoch,
            seq=self.seq,
            stored_at=self.stored_at,
            stream=self.stream,
            raw_subject=bytes(self.raw_subject or b""),
            raw_headers=bytes(self.raw_headers or b""),
        )
