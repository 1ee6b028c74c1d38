"""The segment format: a run of a stream's messages, whole and in order, as bytes; it does no I/O.

    magic "KGSEG1\\n\\0" | header length (u32) | header (JSON) | zstd( records ) | blake2b-256 of all before

A record is sequence (u64), time in Unix nanoseconds (i64), the lengths of subject, headers and body (u32
each), then these. Headers are the bytes of NATS's own header block, so that nothing is lost in parsing.
All integers are big endian.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import zstandard

from kgents_backup.model.documents import ConsumerRecord
from kgents_backup.model.faults import CorruptError
from kgents_backup.model.keys import Line, SegmentName

MAGIC = b"KGSEG1\n\0"
DIGEST_BYTES = 32
_RECORD = struct.Struct(">QqIII")
_LENGTH = struct.Struct(">I")


_NO_WILDCARD = {"*": "%2A", ">": "%3E"}


@dataclass(frozen=True, slots=True)
class Message:
    """One stored message.

    Attributes:
        subject: As it was published; bytes that are not UTF-8 stand as lone surrogates (PEP 383), so that
            `subject_bytes` gives them back. It may not be printed or stored as text.
        time: When the server stored it, Unix nanoseconds.
        headers: The NATS header block as on the wire, from `NATS/1.0` to the empty line; empty for none.
    """

    sequence: int
    time: int
    subject: str
    headers: bytes
    body: bytes

    @property
    def size(self) -> int:
        """Its bytes in a segment, before compression."""
        return _RECORD.size + len(self.subject) + len(self.headers) + len(self.body)

    @property
    def subject_bytes(self) -> bytes:
        """The subject as it was on the wire."""
        return subject_bytes(self.subject)

    @property
    def restored_subject(self) -> str:
        """The subject under which a restore can put it back.

        A server stores a message that was published to a literal wildcard (`agentese.acme.*`), but maps no
        such subject: its wildcard tokens come back as `%2A` and `%3E`. No reader takes either for an event.
        """
        if "*" not in self.subject and ">" not in self.subject:
            return self.subject
        return ".".join(_NO_WILDCARD.get(token, token) for token in self.subject.split("."))


def subject_bytes(subject: str) -> bytes:
    """A `Message`'s subject as it is on the wire."""
    return subject.encode("utf-8", "surrogateescape")


def subject_of(raw: bytes) -> str:
    """A subject on the wire as a `Message` has it."""
    return raw.decode("utf-8", "surrogateescape")


class SegmentHeader(msgspec.Struct, frozen=True):
    """What a segment says of itself.

    Attributes:
        first: The first sequence it accounts for; the previous segment ends right before it.
        last: The last one: its last message.
        gaps: Ranges (first, last) in between that the stream does not hold: deleted, purged or expired.
        stream_first: The stream's first sequence when it was written; below it nothing was live any more.
        consumers: Where the durable consumers stood.
    """

    stream: str
    line: str
    first: int
    last: int
    count: int
    content_bytes: int
    gaps: list[tuple[int, int]]
    stream_first: int
    written_at: str
    consumers: list[ConsumerRecord]


def gaps_between(first: int, sequences: Sequence[int]) -> list[tuple[int, int]]:
    """The ranges from `first` to the last of the ascending `sequences` that are not among them."""
    found: list[tuple[int, int]] = []
    expected = first
    for sequence in sequences:
        if sequence > expected:
            found.append((expected, sequence - 1))
        expected = sequence + 1
    return found


def encode(
    stream: str,
    line: Line,
    first: int,
    messages: Sequence[Message],
    *,
    stream_first: int,
    written_at: str,
    consumers: Sequence[ConsumerRecord] = (),
) -> tuple[SegmentName, bytes]:
    """A segment that accounts for `first` to the last of `messages` (at least one)."""
    records = bytearray()
    for m in messages:
        subject = m.subject_bytes
        records += _RECORD.pack(m.sequence, m.time, len(subject), len(m.headers), len(m.body))
        records += subject
        records += m.headers
        records += m.body
    header = msgspec.json.encode(
        SegmentHeader(
            stream=stream,
            line=str(line),
            first=first,
            last=messages[-1].sequence,
            count=len(messages),
            content_bytes=len(records),
            gaps=gaps_between(first, [m.sequence for m in messages]),
            stream_first=stream_first,
            written_at=written_at,
            consumers=list(consumers),
        )
    )
    packed = zstandard.ZstdCompressor(level=3).compress(bytes(records))
    whole = MAGIC + _LENGTH.pack(len(header)) + header + packed
    data = whole + hashlib.blake2b(whole, digest_size=DIGEST_BYTES).digest()
    name = SegmentName(
        stream,
        line,
        first,
        messages[-1].sequence,
        messages[0].time // 1_000_000,
        messages[-1].time // 1_000_000,
        size=len(data),
    )
    return name, data


def decode(name: SegmentName, data: bytes) -> tuple[SegmentHeader, list[Message]]:
    """What a segment holds.

    Raises:
        CorruptError: It is not what was written, or not the segment its name says.
    """
    whole, mark = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if not whole.startswith(MAGIC):
        raise CorruptError(name.key, "is not a segment")
    if hashlib.blake2b(whole, digest_size=DIGEST_BYTES).digest() != mark:
        raise CorruptError(name.key, "its digest does not match")
    start = len(MAGIC) + _LENGTH.size
    (length,) = _LENGTH.unpack_from(whole, len(MAGIC))
    header = msgspec.json.decode(whole[start : start + length], type=SegmentHeader)
    if (header.stream, header.line, header.first, header.last) != (
        name.stream,
        str(name.line),
        name.first,
        name.last,
    ):
        raise CorruptError(name.key, "holds another segment than its name says")
    records = zstandard.ZstdDecompressor().decompress(
        whole[start + length :], max_output_size=max(1, header.content_bytes)
    )
    messages = list(_records(records))
    if len(messages) != header.count:
        raise CorruptError(name.key, f"holds {len(messages)} messages, not {header.count}")
    return header, messages


def _records(data: bytes) -> Iterator[Message]:
    position = 0
    while position < len(data):
        sequence, time, subject, headers, body = _RECORD.unpack_from(data, position)
        position += _RECORD.size
        ends = position + subject, position + subject + headers, position + subject + headers + body
        yield Message(
            sequence,
            time,
            subject_of(data[position : ends[0]]),
            data[ends[0] : ends[1]],
            data[ends[1] : ends[2]],
        )
        position = ends[2]
