"""Reading stored backups end to end: every digest, every count, no hole; what is good is marked so."""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog

from kgents_backup.model.catalogue import Catalogue
from kgents_backup.model.documents import DatabaseManifest
from kgents_backup.model.faults import CorruptError
from kgents_backup.model.keys import MANIFEST, VERIFIED, SegmentName, SnapshotName
from kgents_backup.model.ports import NoProgress, Progress
from kgents_backup.sinks.store import Vault

_log = structlog.get_logger()


@dataclass(slots=True)
class VerifyReport:
    """What was read.

    Attributes:
        faults: One line for each damaged file, beginning with its name.
    """

    snapshots: int = 0
    segments: int = 0
    dumps: int = 0
    messages: int = 0
    size_bytes: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing is damaged."""
        return not self.faults


async def verify(
    vault: Vault,
    stream: str,
    *,
    only: SnapshotName | None = None,
    mark: bool = True,
    progress: Progress | None = None,
) -> VerifyReport:
    """Read a stream's snapshots and segments.

    Args:
        only: This snapshot and the segments after it, instead of everything.
        mark: Mark snapshots that are good, so that retention keeps the last one.

    Raises:
        StoreError: The store does not answer; nothing is known then.
    """
    progress = progress or NoProgress()
    report = VerifyReport()
    catalogue = await vault.catalogue(stream)
    snapshots = [s for s in catalogue.snapshots if only is None or s == only]
    segments = _segments(catalogue, only)
    sizes = await vault.sizes(snapshots)
    progress.begin(
        f"verify {stream} ({vault.name})", sum(sizes.values()) + sum(s.size for s in segments), "bytes"
    )
    try:
        for snapshot in snapshots:
            try:
                await _read_snapshot(vault, snapshot, report, progress)
            except CorruptError as error:
                _damaged(report, error)
                await vault.store.delete(snapshot.verified_key)
                continue
            if mark and snapshot not in catalogue.of(snapshot.line).verified:
                await vault.store.put(snapshot.verified_key, b"")
        for segment in segments:
            try:
                header, _ = await vault.read_segment(segment)
                report.messages += header.count
            except CorruptError as error:
                _damaged(report, error)
            report.segments += 1
            report.size_bytes += segment.size
            progress.advance(segment.size)
    finally:
        progress.end()
    report.faults += _holes(catalogue, only)
    if only is None and not (report.snapshots or report.segments):
        report.faults.append(f"{vault.name}: nothing is stored of {stream}: is the store mounted?")
    return report


async def verify_databases(vault: Vault, *, progress: Progress | None = None) -> VerifyReport:
    """Read every dump of the databases; those that are good are marked so.

    Raises:
        StoreError: The store does not answer.
    """
    report = VerifyReport()
    progress = progress or NoProgress()
    entries = await vault.store.list("databases/")
    marked = {e.key for e in entries if e.key.endswith("/" + VERIFIED)}
    for entry in entries:
        if not entry.key.endswith("/" + MANIFEST):
            continue
        prefix = entry.key.removesuffix(MANIFEST)
        try:
            manifest = await vault.read_document(entry.key, DatabaseManifest)
            for table in manifest.tables:
                for part in table.parts:
                    await vault.read_part(prefix, part)
                    report.size_bytes += part.size_bytes
            if prefix + VERIFIED not in marked:
                await vault.store.put(prefix + VERIFIED, b"")
        except CorruptError as error:
            _damaged(report, error)
            await vault.store.delete(prefix + VERIFIED)
        report.dumps += 1
    return report


async def _read_snapshot(
    vault: Vault, snapshot: SnapshotName, report: VerifyReport, progress: Progress
) -> None:
    report.snapshots += 1
    manifest = await vault.manifest(snapshot)
    for part in manifest.parts:
        await vault.read_part(snapshot.prefix, part)
        report.size_bytes += part.size_bytes
        progress.advance(part.size_bytes)
    report.messages += int(manifest.state["messages"])


def _segments(catalogue: Catalogue, only: SnapshotName | None) -> list[SegmentName]:
    if only is not None:
        return [s for s in catalogue.of(only.line).segments if s.last > only.last]
    return [s for files in catalogue.lines.values() for s in files.segments]


def _holes(catalogue: Catalogue, only: SnapshotName | None) -> list[str]:
    """Where segments do not follow each other although a snapshot before the hole needs them."""
    found: list[str] = []
    for line, files in catalogue.lines.items():
        if only is not None and line != only.line:
            continue
        # From the newest snapshot that was found good; where none was, the segments stand for themselves.
        good = [s for s in files.snapshots if s in files.verified]
        bases = [only] if only is not None else good[-1:]
        start = bases[0].last + 1 if bases else min((s.first for s in files.segments), default=1)
        chain = files.covering(start)
        reached = chain[-1].last if chain else start - 1
        if files.lost_from is not None:
            found.append(
                f"segments/{catalogue.stream}/{line}/: was archived to sequence {files.promised},"
                f" and nothing from {files.lost_from} on is there"
            )
        if any(s.first > reached + 1 for s in files.segments):
            found.append(f"segments/{catalogue.stream}/{line}/: nothing accounts for sequence {reached + 1}")
    return found


def _damaged(report: VerifyReport, error: CorruptError) -> None:
    report.faults.append(str(error))
    _log.error("verify.damaged", file=error.key, reason=str(error))
