"""The plan of a restore, with every file it needs read and found good."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from kgents_backup.model.catalogue import LineFiles
from kgents_backup.model.documents import SnapshotManifest
from kgents_backup.model.faults import (
    CorruptError,
    UnrecoverableError,
)
from kgents_backup.model.keys import Line, SnapshotName
from kgents_backup.model.plan import RestorePlan, Until, choose_line, plan
from kgents_backup.model.ports import NoProgress, Progress
from kgents_backup.sinks.store import Vault

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan with what is needed to carry it out.

    Attributes:
        config: The stream's own configuration at the time.
        avoided: Damaged files that an older backup or a shorter tail stands in for.
    """

    plan: RestorePlan
    manifest: SnapshotManifest | None
    config: dict[str, Any]
    avoided: tuple[str, ...] = ()


async def prepare(
    vault: Vault,
    stream: str,
    until: Until,
    *,
    line: Line | None = None,
    fall_back: bool = False,
    check_files: bool = True,
    progress: Progress | None = None,
) -> Prepared:
    """Plan a restore and read every file it needs.

    Args:
        line: Instead of the one that was being written at the wanted time.
        fall_back: Take an older snapshot, or end the tail earlier, where a file is damaged.
        check_files: Off, only names and the manifest are read.

    Raises:
        UnrecoverableError: The stored files do not lead there.
        CorruptError: A file is damaged, and falling back was not asked for.
        StoreError: The store does not answer.
    """
    catalogue = await vault.catalogue(stream)
    if line is not None:
        files = catalogue.lines.get(line)
        if files is None:
            raise UnrecoverableError(f"{stream} has no line {line}", hint="see `list`")
    else:
        opened: dict[Line, datetime] = {}
        for known, known_files in catalogue.lines.items():
            record = await vault.line(stream, known)
            if record is not None:
                opened[known] = datetime.fromisoformat(record.opened_at)
            elif known_files.snapshots:
                opened[known] = known_files.snapshots[0].taken_at
        files = choose_line(catalogue, until, opened)
    sizes = await vault.sizes(files.snapshots)
    avoided: list[str] = []
    without: set[SnapshotName] = set()
    while True:
        found = plan(files, stream, until, snapshot_bytes=sizes, without=frozenset(without))
        if found.hole is not None and not fall_back:
            raise CorruptError(
                f"segments/{stream}/{files.line}/", f"no segment accounts for sequence {found.hole}"
            )
        try:
            manifest = await vault.manifest(found.snapshot) if found.snapshot else None
            if check_files:
                await _check(vault, found, manifest, progress or NoProgress())
        except CorruptError as error:
            if not fall_back or not _avoid(error.key, files, without):
                raise
            avoided.append(f"{error.key}: {error}")
            _log.warning("restore.falling_back", damaged=error.key)
            continue
        config = manifest.config if manifest else await _line_config(vault, stream, files.line)
        return Prepared(found, manifest, config, tuple(avoided))


async def _check(
    vault: Vault, found: RestorePlan, manifest: SnapshotManifest | None, progress: Progress
) -> None:
    progress.begin("check files", found.snapshot_bytes + found.segment_bytes, "bytes")
    try:
        if manifest is not None and found.snapshot is not None:
            for part in manifest.parts:
                await vault.read_part(found.snapshot.prefix, part)
                progress.advance(part.size_bytes)
        for name in found.segments:
            await vault.read_segment(name)
            progress.advance(name.size)
    finally:
        progress.end()


def _avoid(key: str, files: LineFiles, without: set[SnapshotName]) -> bool:
    """Leave a damaged file out; whether that changes anything."""
    snapshot = SnapshotName.parse(key)
    if snapshot is not None and snapshot[0] not in without:
        without.add(snapshot[0])
        return True
    kept = [s for s in files.segments if s.key != key]
    is_changed = len(kept) < len(files.segments)
    files.segments[:] = kept
    return is_changed


async def _line_config(vault: Vault, stream: str, line: Line) -> dict[str, Any]:
    record = await vault.line(stream, line)
    if record is None:
        raise UnrecoverableError(f"the configuration of {stream} on line {line} is not stored")
    return record.config
