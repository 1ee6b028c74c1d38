"""Whether a file is what was written, told from its own bytes and its manifest; nothing is repaired here."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from kgents_backup.model import documents, segment
from kgents_backup.model.documents import DatabaseManifest, LineRecord, PartRecord, SnapshotManifest
from kgents_backup.model.faults import CorruptError
from kgents_backup.model.keys import MANIFEST, SegmentName
from kgents_backup.sinks.store import Vault


class Soundness:
    """Checks the files of one vault, reading each manifest once."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._parts: dict[str, Mapping[str, PartRecord]] = {}

    async def fault(self, key: str, data: bytes) -> str:
        """What is wrong with the file's bytes; empty for nothing.

        Raises:
            StoreError: The store does not give the manifest.
            ConfigurationError: It is sealed with a key we do not have.
        """
        try:
            await self._check(key, data)
        except CorruptError as error:
            return str(error)
        return ""

    async def _check(self, key: str, data: bytes) -> None:
        folder, _, file = key.rpartition("/")
        name = SegmentName.parse(key)
        opened = await asyncio.to_thread(self._vault.sealer.open, key, data) if data else b""
        if name is not None:
            await asyncio.to_thread(segment.decode, name, opened)
        elif key.startswith("lines/"):
            documents.decode(opened, LineRecord, key)
        elif file == MANIFEST:
            kind = DatabaseManifest if key.startswith("databases/") else SnapshotManifest
            documents.decode(opened, kind, key)
        elif file.endswith(".part"):
            record = (await self._manifest(folder + "/")).get(file)
            if record is None:
                raise CorruptError(key, "is in no manifest")
            if len(data) != record.size_bytes or documents.digest(data) != record.digest:
                raise CorruptError(key, "its digest does not match")

    async def _manifest(self, folder: str) -> Mapping[str, PartRecord]:
        if folder not in self._parts:
            key = folder + MANIFEST
            if folder.startswith("databases/"):
                dump = await self._vault.read_document(key, DatabaseManifest)
                parts = [p for table in dump.tables for p in table.parts]
            else:
                parts = (await self._vault.read_document(key, SnapshotManifest)).parts
            self._parts[folder] = {p.file: p for p in parts}
        return self._parts[folder]
