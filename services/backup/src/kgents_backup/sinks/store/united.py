"""Several stores read as one: what one lacks or holds damaged comes from another; it writes to none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
import structlog

from kgents_backup.model import catalogue
from kgents_backup.model.catalogue import Catalogue
from kgents_backup.model.documents import LineRecord, PartRecord
from kgents_backup.model.faults import CorruptError
from kgents_backup.model.keys import Line, SegmentName, SnapshotName
from kgents_backup.model.ports import Entry
from kgents_backup.model.segment import Message, SegmentHeader
from kgents_backup.sinks.store.vault import Vault

Document = TypeVar("Document", bound=msgspec.Struct)
Result = TypeVar("Result")

_log = structlog.get_logger()


class UnitedVault(Vault):
    """Vaults in the order in which they are asked, usually the nearest first.

    A store that does not answer is an error: what only it holds would be taken for lost.
    """

    def __init__(self, *vaults: Vault) -> None:
        super().__init__(vaults[0].store, vaults[0].sealer)
        self.vaults = vaults

    @property
    def name(self) -> str:
        """Every store's name."""
        return " and ".join(vault.name for vault in self.vaults)

    async def catalogue(self, stream: str) -> Catalogue:
        """See `Vault.catalogue`."""
        found: dict[str, Entry] = {}
        for vault in self.vaults:
            for entry in await vault.entries(stream):
                found.setdefault(entry.key, entry)
        return catalogue.build(stream, found.values())

    async def read_document(self, key: str, kind: type[Document]) -> Document:
        """See `Vault.read_document`."""
        return await self._first(lambda vault: vault.read_document(key, kind))

    async def line(self, stream: str, line: Line) -> LineRecord | None:
        """See `Vault.line`."""
        fault: CorruptError | None = None
        for vault in self.vaults:
            try:
                found = await vault.line(stream, line)
            except CorruptError as error:
                fault = error
                continue
            if found is not None:
                return found
        if fault is not None:
            raise fault
        return None

    async def read_part(self, prefix: str, part: PartRecord) -> bytes:
        """See `Vault.read_part`."""
        return await self._first(lambda vault: vault.read_part(prefix, part))

    async def read_segment(self, name: SegmentName) -> tuple[SegmentHeader, list[Message]]:
        """See `Vault.read_segment`."""
        return await self._first(lambda vault: vault.read_segment(name))

    async def sizes(self, names: Sequence[SnapshotName]) -> dict[SnapshotName, int]:
        """See `Vault.sizes`."""
        each = [await vault.sizes(names) for vault in self.vaults]
        return {name: max(sizes[name] for sizes in each) for name in names}

    async def dumps(self) -> list[str]:
        """See `Vault.dumps`."""
        return sorted({name for vault in self.vaults for name in await vault.dumps()})

    async def _first(self, read: Callable[[Vault], Awaitable[Result]]) -> Result:
        fault: CorruptError | None = None
        for vault in self.vaults:
            try:
                return await read(vault)
            except CorruptError as error:
                if fault is None or "is missing" in str(fault):
                    fault = error
                if vault is not self.vaults[-1]:
                    _log.info("store.asks_the_other", store=vault.name, file=error.key, reason=str(error))
        assert fault is not None  # noqa: S101 there is a vault
        raise fault
