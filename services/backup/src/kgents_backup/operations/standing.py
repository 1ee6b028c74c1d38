"""Would a restore work now? What is stored, verified, drilled and under way; it changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import msgspec

from kgents_backup.model.faults import CorruptError, StoreError
from kgents_backup.model.keys import MANIFEST, VERIFIED
from kgents_backup.operations import clocks
from kgents_backup.operations.restoring import journal
from kgents_backup.sinks.store import Vault, locks
from kgents_backup.sources.stream import stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import Clock
from kgents_common.errors import KgentsError

# The daily run is made up for after 25 hours; one that failed leaves a day more.
VERIFIED_WITHIN = timedelta(hours=50)
DRILLED_WITHIN = timedelta(hours=50)
LOCAL = "local"
NOT_ENCRYPTED = "NOT encrypted: set KGENTS_BACKUP_KEY_FILE (see `kgents-backup key`)"


class DrillRecord(msgspec.Struct, frozen=True):
    """How the last drill of a stream ended; `reason` is empty where it passed."""

    stream: str
    at: datetime
    reason: str = ""


def drill_key(stream: str, store: str) -> str:
    """Where it is stored: always in the local store, whichever was drilled."""
    return f"drills/{stream}.json" if store == LOCAL else f"drills/{stream}-{store}.json"


@dataclass(slots=True)
class Standing:
    """What was found.

    Attributes:
        faults: Why a restore would not work, or not be trusted; empty where it would.
        notes: What an operator should know beside that.
        verified: Store and stream to the moment of the newest snapshot that was read back and found good.
        clock_ahead: How far this machine's clock is ahead of the server's; None where that is not known.
    """

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verified: dict[tuple[str, str], datetime] = field(default_factory=dict)
    clock_ahead: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is looked at.

    Attributes:
        has_database: Whether dumps are to be expected.
    """

    client: Callable[[], Awaitable[VerbatimClient]]
    vaults: Sequence[Vault]
    streams: tuple[str, ...]
    clock: Clock
    has_database: bool

    async def look(self) -> Standing:
        """Look at stores and streams; what does not answer is a fault and no error."""
        found = Standing()
        for vault in self.vaults:
            try:
                await self._store(vault, found)
            except StoreError as error:
                found.faults.append(f"{vault.name} does not answer: {error}")
        try:
            await self._streams(await self.client(), found)
        except KgentsError as error:
            found.notes.append(f"nats: {error}")
        return found

    async def _store(self, vault: Vault, found: Standing) -> None:
        now = self.clock.now()
        if not vault.sealer.is_sealing:
            found.notes.append(f"{vault.name}: {NOT_ENCRYPTED}")
        for stream in self.streams:
            catalogue = await vault.catalogue(stream)
            where = f"{vault.name} {stream}"
            if not any(f.head for f in catalogue.lines.values()):
                found.faults.append(f"{where}: nothing is stored; is the store mounted?")
                continue
            for line, files in catalogue.lines.items():
                if files.lost_from is not None:
                    found.faults.append(
                        f"{where}: line {line} was archived to {files.promised}, and nothing from"
                        f" {files.lost_from} on is there"
                    )
            good = [s.taken_at for f in catalogue.lines.values() for s in f.verified]
            if not good:
                found.faults.append(f"{where}: no snapshot was found good yet")
                continue
            found.verified[vault.name, stream] = max(good)
            if now - max(good) > VERIFIED_WITHIN:
                found.faults.append(f"{where}: the newest snapshot found good is of {max(good).isoformat()}")
        if self.has_database:
            keys = {e.key for e in await vault.store.list("databases/")}
            dumps = sorted(k.removesuffix(MANIFEST) for k in keys if k.endswith("/" + MANIFEST))
            if not dumps:
                found.faults.append(f"{vault.name}: there is no dump of the databases")
            elif dumps[-1] + VERIFIED not in keys:
                found.faults.append(f"{vault.name}: the newest dump was not found good: {dumps[-1]}")

    async def _streams(self, client: VerbatimClient, found: Standing) -> None:
        local = self.vaults[0]
        for stream in self.streams:
            record = await journal.find(client, local, stream)
            if record is not None:
                found.faults.append(
                    f"{stream}: a restore is under way since {record.began_at}, step {record.step}:"
                    " run it again, or `restore --undo`"
                )
            for vault in self.vaults:
                await self._drilled(local, stream, vault.name, found)
            info = await stream_info(client, stream)
            if info is None:
                found.faults.append(
                    f"{stream}: there is no such stream; `kgents-backup restore` brings it back"
                )
                continue
            found.clock_ahead = found.clock_ahead or await clocks.ahead(client, stream, self.clock)
            reached = max((f.archived_to for f in (await local.catalogue(stream)).lines.values()), default=0)
            found.notes.append(
                f"{stream}: {info.messages} messages up to sequence {info.last_sequence};"
                f" archived to {reached}"
            )
        if found.clock_ahead is not None and abs(found.clock_ahead) > clocks.TOLERANCE:
            found.faults.append(f"this machine's clock is {found.clock_ahead} ahead of the server's")
        for name, config in await journal.kept_streams(client):
            found.notes.append(f"{name}: {config.get('description')}; `kgents-backup discard` deletes it")
        for lock in await locks(local.store):
            state = "its process is gone" if lock.is_dead else f"until {lock.until:%F %T}"
            found.notes.append(f"lock {lock.name}: held by {lock.owner}, {state}")

    async def _drilled(self, local: Vault, stream: str, store: str, found: Standing) -> None:
        with contextlib.suppress(CorruptError):
            drill = await local.read_document(drill_key(stream, store), DrillRecord)
            where = stream if store == LOCAL else f"{store} {stream}"
            if drill.reason:
                found.faults.append(f"{where}: the last drill failed at {drill.at:%F %T}: {drill.reason}")
            elif self.clock.now() - drill.at > DRILLED_WITHIN:
                found.faults.append(f"{where}: the last drill was at {drill.at:%F %T}")
