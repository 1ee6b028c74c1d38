"""A store with its sealing: documents, parts and segments go in and come out checked; it decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from kgents_backup.model import catalogue, documents, segment
from kgents_backup.model.catalogue import Catalogue
from kgents_backup.model.documents import LineRecord, PartRecord, SnapshotManifest
from kgents_backup.model.faults import CorruptError
from kgents_backup.model.keys import (
    MANIFEST,
    Line,
    SegmentName,
    SnapshotName,
    head_key,
    heads_prefix,
    line_key,
)
from kgents_backup.model.ports import Entry, Store
from kgents_backup.model.segment import Message, SegmentHeader
from kgents_backup.sinks.store.sealing import Sealer

Document = TypeVar("Document", bound=msgspec.Struct)


class Vault:
    """One store, read and written through one sealer."""

    def __init__(self, store: Store, sealer: Sealer) -> None:
        self.store = store
        self.sealer = sealer

    @property
    def name(self) -> str:
        """The store's name: `local` or `offsite`."""
        return self.store.name

    async def catalogue(self, stream: str) -> Catalogue:
        """What is stored of a stream.

        Raises:
            StoreError: The store does not answer.
        """
        return catalogue.build(stream, await self.entries(stream))

    async def entries(self, stream: str) -> list[Entry]:
        """Every file of a stream; errors as `catalogue`."""
        found: list[Entry] = []
        for prefix in ("lines", "snapshots", "segments", "heads"):
            found += await self.store.list(f"{prefix}/{stream}/")
        return found

    async def dumps(self) -> list[str]:
        """The finished dumps' names, oldest first; errors as `catalogue`."""
        suffix = "/" + MANIFEST
        keys = [e.key for e in await self.store.list("databases/") if e.key.endswith(suffix)]
        return sorted(key.removesuffix(suffix).rpartition("/")[2] for key in keys)

    async def write_document(self, key: str, document: msgspec.Struct) -> None:
        """Store a document, replacing it.

        Raises:
            StoreError: It is not stored.
        """
        await self.store.put(key, self.sealer.seal(key, documents.encode(document)))

    async def read_document(self, key: str, kind: type[Document]) -> Document:
        """A stored document.

        Raises:
            CorruptError: It is damaged or missing.
            StoreError: The store does not give it.
        """
        return documents.decode(self.sealer.open(key, await self._get(key)), kind, key)

    async def manifest(self, name: SnapshotName) -> SnapshotManifest:
        """A snapshot's manifest; errors as `read_document`."""
        found = await self.read_document(name.manifest_key, SnapshotManifest)
        if (found.stream, found.line, found.id) != (name.stream, str(name.line), name.id):
            raise CorruptError(name.manifest_key, "is another snapshot's manifest")
        return found

    async def line(self, stream: str, line: Line) -> LineRecord | None:
        """How a line began; None where that is not stored."""
        key = line_key(stream, line)
        try:
            return await self.read_document(key, LineRecord)
        except CorruptError:
            if not any(e.key == key for e in await self.store.list(f"lines/{stream}/")):
                return None
            raise

    async def write_part(self, prefix: str, file: str, content: bytes) -> PartRecord:
        """Store one part of a snapshot or dump; what its manifest says of it.

        Raises:
            StoreError: It is not stored.
        """
        key = prefix + file
        sealed, mark = await asyncio.to_thread(self._seal, key, content)
        await self.store.put(key, sealed)
        return PartRecord(file, len(sealed), mark, len(content))

    async def read_part(self, prefix: str, part: PartRecord) -> bytes:
        """A part's content.

        Raises:
            CorruptError: It is damaged or missing.
            StoreError: The store does not give it.
        """
        key = prefix + part.file
        return await asyncio.to_thread(self._open_part, key, part, await self._get(key))

    async def write_segment(self, name: SegmentName, data: bytes) -> None:
        """Store a segment.

        Raises:
            StoreError: It is not stored.
        """
        await self.store.put(name.key, await asyncio.to_thread(self.sealer.seal, name.key, data))

    async def write_head(self, name: SegmentName) -> None:
        """Note that the line is archived to this segment's end, for whoever finds the segment missing.

        Raises:
            StoreError: It is not stored.
        """
        key = head_key(name)
        await self.store.put(key, b"")
        for entry in await self.store.list(heads_prefix(name.stream, name.line)):
            if entry.key < key:
                await self.store.delete(entry.key)

    async def read_segment(self, name: SegmentName) -> tuple[SegmentHeader, list[Message]]:
        """A segment's header and messages.

        Raises:
            CorruptError: It is damaged or missing.
            StoreError: The store does not give it.
        """
        data = await self._get(name.key)

        def decode() -> tuple[SegmentHeader, list[Message]]:
            return segment.decode(name, self.sealer.open(name.key, data))

        return await asyncio.to_thread(decode)

    async def sizes(self, names: Sequence[SnapshotName]) -> dict[SnapshotName, int]:
        """The stored bytes of each snapshot.

        Raises:
            StoreError: The store does not answer.
        """
        return {name: sum(e.size for e in await self.store.list(name.prefix)) for name in names}

    async def _get(self, key: str) -> bytes:
        try:
            return await self.store.get(key)
        except FileNotFoundError:
            raise CorruptError(key, "is missing") from None

    def _seal(self, key: str, content: bytes) -> tuple[bytes, str]:
        sealed = self.sealer.seal(key, content)
        return sealed, documents.digest(sealed)

    def _open_part(self, key: str, part: PartRecord, data: bytes) -> bytes:
        if len(data) != part.size_bytes:
            raise CorruptError(key, f"has {len(data)} bytes, not {part.size_bytes}")
        if documents.digest(data) != part.digest:
            raise CorruptError(key, "its digest does not match")
        content = self.sealer.open(key, data)
        if len(content) != part.content_bytes:
            raise CorruptError(key, "holds another number of bytes than the manifest says")
        return content
