"""Frames of an S2 stream taken apart, opened and made smaller, for a server that must not get too much.

A snapshot is an S2 stream of blocks of up to 1 MiB. From 2.15 on the server restores it message by message,
and gives a restore up when no chunk came through for five seconds: one block of small messages, each synced
to disk, takes longer. The framing is Snappy's (framing_format.txt, sections 3 and 4); S2's blocks differ in
that a copy with offset 0 repeats the last one (klauspost/compress, s2/decode_other.go).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c

from kgents_backup.model.faults import ProtocolError

COMPRESSED, PLAIN = 0x00, 0x01
_HEADER_BYTES = 4
_CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as it stands in the stream."""

    kind: int
    data: bytes

    @property
    def content_bytes(self) -> int:
        """How many bytes it holds when opened; 0 for one that holds none."""
        if self.kind == PLAIN:
            return len(self.data) - _HEADER_BYTES - _CRC_BYTES
        if self.kind == COMPRESSED:
            return _uvarint(self.data, _HEADER_BYTES + _CRC_BYTES)[0]
        return 0

    def open(self) -> bytes:
        """The content.

        Raises:
            ProtocolError: It is not what its checksum says.
        """
        body = self.data[_HEADER_BYTES + _CRC_BYTES :]
        content = body if self.kind == PLAIN else decode_block(body)
        wanted = int.from_bytes(self.data[_HEADER_BYTES : _HEADER_BYTES + _CRC_BYTES], "little")
        if _masked(content) != wanted:
            raise ProtocolError("a block of the snapshot does not open")
        return content


class FrameReader:
    """Cuts a stream into frames as its bytes come."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole now."""
        held = self._held + data
        position = 0
        while position + _HEADER_BYTES <= len(held):
            end = position + _HEADER_BYTES + int.from_bytes(held[position + 1 : position + 4], "little")
            if end > len(held):
                break
            yield Frame(held[position], held[position:end])
            position = end
        self._held = held[position:]

    @property
    def rest(self) -> bytes:
        """What is not a whole frame yet."""
        return self._held


def plain(content: bytes) -> bytes:
    """A frame that holds `content` as it is; every reader of Snappy or S2 takes it."""
    length = len(content) + _CRC_BYTES
    return bytes((PLAIN,)) + length.to_bytes(3, "little") + _masked(content).to_bytes(4, "little") + content


def decode_block(block: bytes) -> bytes:
    """The content of an S2 block.

    Raises:
        ProtocolError: It is no such block.
    """
    size, position = _uvarint(block, 0)
    out = bytearray()
    offset = 0
    try:
        while position < len(block):
            tag = block[position]
            kind = tag & 3
            if kind == 0:
                length = tag >> 2
                position += 1
                if length >= 60:
                    more = length - 59
                    length = int.from_bytes(block[position : position + more], "little")
                    position += more
                length += 1
                out += block[position : position + length]
                position += length
                continue
            if kind == 1:
                length = tag >> 2 & 7
                given = (tag & 0xE0) << 3 | block[position + 1]
                position += 2
                if given:
                    offset = given
                elif length >= 5:  # a repeat with a longer length
                    more = length - 4
                    length = int.from_bytes(block[position : position + more], "little")
                    length += (4, 1 << 8, 1 << 16)[more - 1]
                    position += more
                length += 4
            else:
                length = 1 + (tag >> 2)
                more = 2 if kind == 2 else 4
                offset = int.from_bytes(block[position + 1 : position + 1 + more], "little")
                position += 1 + more
            start = len(out) - offset
            if offset == 0 or start < 0:
                raise ProtocolError("a block of the snapshot does not open")
            if offset >= length:
                out += out[start : start + length]
            else:  # it repeats itself
                pattern = out[start:]
                out += (pattern * (length // offset + 1))[:length]
    except IndexError:
        raise ProtocolError("a block of the snapshot does not open") from None
    if len(out) != size:
        raise ProtocolError("a block of the snapshot does not open")
    return bytes(out)


def _uvarint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ProtocolError("a block of the snapshot does not open")


def _masked(content: bytes) -> int:
    crc = int(google_crc32c.value(content))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
