"""The JSON documents of a store, each ending in a line with its own digest; it reads and writes no file."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec

from kgents_backup.model.faults import CorruptError

FORMAT = 1


class PartRecord(msgspec.Struct, frozen=True):
    """One file of a snapshot or dump: its name, and what its stored bytes must be.

    Attributes:
        content_bytes: The bytes before sealing.
    """

    file: str
    size_bytes: int
    digest: str
    content_bytes: int


class SnapshotManifest(msgspec.Struct, frozen=True):
    """What a snapshot is: JetStream's own answer (`config` and `state`) and the files that follow it.

    Attributes:
        created: The stream's creation time, as the server gave it.
        last_held: The sequence of its last message, where what came after that was deleted; None where that
            is not known, and in one of an older release.
    """

    format: int
    stream: str
    line: str
    id: str
    created: str
    taken_at: str
    seconds: float
    server: str
    config: dict[str, Any]
    state: dict[str, Any]
    consumers: list[ConsumerRecord]
    parts: list[PartRecord]
    last_held: int | None = None

    @property
    def content_bytes(self) -> int:
        """The bytes the server sent."""
        return sum(part.content_bytes for part in self.parts)


class ConsumerRecord(msgspec.Struct, frozen=True):
    """A durable consumer: its configuration and the sequence up to which everything is acknowledged."""

    name: str
    config: dict[str, Any]
    ack_floor: int


class Ancestor(msgspec.Struct, frozen=True):
    """A line that a restored stream goes on from, or that was given up on purpose.

    Attributes:
        sequence: The line's last known one at the restore; what it holds beyond was not seen then.
        is_base: Whether the restored stream's sequences are this line's.
    """

    line: str
    sequence: int
    is_given_up: bool = False
    is_base: bool = False


class LineRecord(msgspec.Struct, frozen=True):
    """How a line began.

    Attributes:
        ancestors: Every line that was known when the stream was restored; empty for one that was not.
    """

    format: int
    stream: str
    line: str
    created: str
    opened_at: str
    first_sequence: int
    config: dict[str, Any]
    ancestors: list[Ancestor] = []


class TableRecord(msgspec.Struct, frozen=True):
    """One table of a dump: its columns in order and its rows, in parts."""

    schema: str
    table: str
    columns: list[str]
    rows: int
    parts: list[PartRecord]


class SequenceRecord(msgspec.Struct, frozen=True):
    """One Postgres sequence's last value; None where it was never used."""

    schema: str
    name: str
    last_value: int | None


class PositionRecord(msgspec.Struct, frozen=True):
    """How far a durable consumer had acknowledged a stream, and on which of its lines."""

    stream: str
    line: str
    consumer: str
    ack_floor: int


class DatabaseManifest(msgspec.Struct, frozen=True):
    """One dump: tables in an order in which rows may be put back, all of one moment.

    Attributes:
        positions: Where the consumers stood before it; empty in a dump of an older release, or where NATS
            was away.
    """

    format: int
    id: str
    taken_at: str
    server: str
    schemas: list[str]
    tables: list[TableRecord]
    sequences: list[SequenceRecord]
    positions: list[PositionRecord] = []


Document = TypeVar("Document", bound=msgspec.Struct)


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal: what parts and documents are checked by.

    Processors compute it in hardware: twice as fast as blake2b here, and the copy's speed hangs on it.
    """
    return hashlib.sha256(data).hexdigest()


def encode(document: msgspec.Struct) -> bytes:
    """One line of JSON, one line with its digest."""
    body = msgspec.json.encode(document)
    return body + b"\n" + digest(body).encode() + b"\n"


def decode(data: bytes, kind: type[Document], key: str) -> Document:
    """The document in a file.

    Raises:
        CorruptError: It is not what was written.
    """
    body, _, rest = data.partition(b"\n")
    if rest != digest(body).encode() + b"\n":
        raise CorruptError(key, "its digest does not match")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise CorruptError(key, f"cannot be read: {error}") from error
