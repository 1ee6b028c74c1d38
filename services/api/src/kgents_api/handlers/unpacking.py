"""Packed bodies: gzip (RFC 1952) and zstd (RFC 8878), never unpacked beyond a limit; it reads no request."""

from __future__ import annotations

import zlib
from typing import Protocol

import zstandard

ENCODINGS = ("gzip", "zstd")

_GZIP = 31  # the largest window, and a gzip header
_MAX_WINDOW_BYTES = 8 * 1024 * 1024
# A few bytes of zstd may unpack to 128 KiB: so few at a time overshoot a limit by little.
_TURN_BYTES = 64


class PackedError(ValueError):
    """It is not what its encoding says, or not whole."""


class UnpackedTooLargeError(ValueError):
    """It would be larger than the limit."""


class _Unpacks(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def unpack(body: bytes, encoding: str, limit: int) -> bytes:
    """The body unpacked; it may be several members or frames, one after another.

    Raises:
        PackedError: It cannot be unpacked.
        UnpackedTooLargeError: It is more than `limit` bytes; no more than a little above is ever held.
    """
    unpacked = bytearray()
    unpack_one = _gzip if encoding == "gzip" else _zstd
    try:
        while body:
            one = unpack_one(body, unpacked, limit)
            if len(unpacked) > limit:
                raise UnpackedTooLargeError
            if not one.eof:
                raise PackedError("it ends too early")
            body = one.unused_data
    except (zlib.error, zstandard.ZstdError) as error:
        raise PackedError(str(error)) from None
    return bytes(unpacked)


def _gzip(body: bytes, into: bytearray, limit: int) -> _Unpacks:
    one = zlib.decompressobj(_GZIP)
    into += one.decompress(body, limit + 1 - len(into))
    return one


def _zstd(body: bytes, into: bytearray, limit: int) -> _Unpacks:
    one = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()
    view = memoryview(body)
    at = 0
    while at < len(body) and not one.eof and len(into) <= limit:
        into += one.decompress(view[at : at + _TURN_BYTES])
        at += _TURN_BYTES
    return _Whole(one.eof, bytes(one.unused_data) + body[at:] if one.eof else b"")


class _Whole:
    """Where a frame ended."""

    def __init__(self, eof: bool, unused_data: bytes) -> None:
        self.eof = eof
        self.unused_data = unused_data
