"""A stream's files, as a stopped server left them, in the form that a restore of files takes.

Servers before 2.15 gave snapshots as a tar of a stream's files, S2-compressed, and every version restores
such a one by putting the files in their place. The frames here are plain (Snappy framing format, 4.3).
"""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from kgents_backup.sinks.frames import plain

_BEGINNING = b"\xff\x06\x00\x00sNaPpY"
_FRAME_BYTES = 64 * 1024  # the most that a frame may hold
_READ_BYTES = 16 * _FRAME_BYTES


async def file_archive(folder: Path) -> AsyncIterator[bytes]:
    """The archive, about a MiB at a time.

    Raises:
        OSError: A file cannot be read.
    """
    pieces = _framed(folder)
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece


def _framed(folder: Path) -> Iterator[bytes]:
    yield _BEGINNING
    held = b""
    for data in _tar(folder):
        held += data
        if len(held) >= _READ_BYTES:
            whole = len(held) - len(held) % _FRAME_BYTES
            yield _frames(held[:whole])
            held = held[whole:]
    if held:
        yield _frames(held)


def _frames(data: bytes) -> bytes:
    return b"".join(plain(data[at : at + _FRAME_BYTES]) for at in range(0, len(data), _FRAME_BYTES))


def _tar(folder: Path) -> Iterator[bytes]:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        entry = tarfile.TarInfo(str(path.relative_to(folder)))
        entry.size, entry.mode = path.stat().st_size, 0o600
        yield entry.tobuf(tarfile.GNU_FORMAT)
        left = entry.size
        with path.open("rb") as file:
            while left:
                data = file.read(min(_READ_BYTES, left))
                if not data:
                    raise OSError(f"{path} became shorter")
                left -= len(data)
                yield data
        yield bytes(-entry.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
