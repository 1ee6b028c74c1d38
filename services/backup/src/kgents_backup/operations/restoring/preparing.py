"""The plan of a restore, with every file it needs read and found good."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from kgents_backup.model.catalogue import Catalogue, LineFiles
from kgents_backup.model.documents import Ancestor, LineRecord, SnapshotManifest
from kgents_backup.model.faults import (
    CorruptError,
    UnrecoverableError,
)
from kgents_backup.model.keys import Line, SnapshotName
from kgents_backup.model.plan import RestorePlan, Until, choose_line, plan
from kgents_backup.model.ports import NoProgress, Progress
from kgents_backup.model.restoration import is_of_a_fence
from kgents_backup.operations.restoring.histories import (
    Appended,
    ancestors_of,
    first_missing,
    held_to,
    holds_end_of,
    in_order,
    maximal_lines,
    records_of,
)
from kgents_backup.sinks.store import Vault
from kgents_common import streams

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan with what is needed to carry it out.

    Attributes:
        config: The stream's own configuration at the time.
        avoided: Damaged files that an older backup or a shorter tail stands in for.
        appended: Messages of other lines, put after the plan's end.
        ancestors: Every known line, for the restored stream's lineage.
        notes: What else the store holds that is not restored.
    """

    plan: RestorePlan
    manifest: SnapshotManifest | None
    config: dict[str, Any]
    avoided: tuple[str, ...] = ()
    appended: tuple[Appended, ...] = ()
    ancestors: tuple[Ancestor, ...] = ()
    notes: tuple[str, ...] = ()


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
        line: Instead of the one that was being written at the wanted time; nothing of others is added.
        fall_back: Take an older snapshot, or end the tail earlier, where a file is damaged.
        check_files: Off, only names and what tells the lines apart are read.

    Raises:
        UnrecoverableError: The stored files do not lead there.
        CorruptError: A file is damaged, and falling back was not asked for.
        StoreError: The store does not answer.
    """
    catalogue = await vault.catalogue(stream)
    records = await records_of(vault, catalogue)
    files, others = await _choose(vault, catalogue, until, line, records)
    sizes = await vault.sizes(files.snapshots)
    avoided: list[str] = []
    without: set[SnapshotName] = set()
    while True:
        found = plan(files, stream, until, snapshot_bytes=sizes, without=frozenset(without))
        if found.hole is not None and not fall_back:
            raise CorruptError(
                f"segments/{stream}/{files.line}/", f"no segment accounts for sequence {found.hole}"
            )
        if files.lost_from is not None and until == Until() and not fall_back:
            raise CorruptError(
                f"segments/{stream}/{files.line}/",
                f"was archived to sequence {files.promised}, and nothing from {files.lost_from} on is there",
            )
        try:
            missing = await first_missing(vault, found.segments) if found.snapshot is None else None
            if missing is not None and not fall_back:
                raise CorruptError(
                    f"segments/{stream}/{files.line}/",
                    f"nothing that holds sequences {missing} to {found.segments[0].first - 1} is there",
                )
            appended, notes = await _appended(
                vault, files, others, is_wanted=line is None and until == Until(), fall_back=fall_back
            )
            manifest = await vault.manifest(found.snapshot) if found.snapshot else None
            if check_files:
                await _check(vault, found, manifest, appended, progress or NoProgress())
        except CorruptError as error:
            if not fall_back or not _avoid(error.key, [files, *others], without):
                raise
            avoided.append(f"{error.key}: {error}")
            _log.warning("restore.falling_back", damaged=error.key)
            continue
        break
    if missing is not None:
        avoided.append(f"sequences {missing} to {found.segments[0].first - 1} are nowhere")
    taken = [files.line, *(a.line for a in appended)]
    return Prepared(
        found,
        manifest,
        await _open_config(vault, catalogue, files, manifest, records),
        tuple(avoided),
        appended,
        tuple(ancestors_of(catalogue, taken)),
        notes,
    )


async def _choose(
    vault: Vault, catalogue: Catalogue, until: Until, line: Line | None, records: dict[Line, LineRecord]
) -> tuple[LineFiles, list[LineFiles]]:
    """The line to start from, and the others that hold something it lacks."""
    stream = catalogue.stream
    maximal = await maximal_lines(vault, catalogue, records)
    if line is not None:
        files = catalogue.lines.get(line)
        if files is None:
            raise UnrecoverableError(f"{stream} has no line {line}", hint="see `list`")
    elif until.time is None:
        files = maximal[0]
    else:
        opened: dict[Line, datetime] = {}
        for known, known_files in catalogue.lines.items():
            if known in records:
                opened[known] = datetime.fromisoformat(records[known].opened_at)
            elif known_files.snapshots:
                opened[known] = known_files.snapshots[0].taken_at
        files = choose_line(catalogue, until, opened)
    others: list[LineFiles] = []
    for other in maximal:
        if other.line == files.line or await holds_end_of(vault, files, other, records.get(files.line)):
            continue
        # Where it goes on from the wanted one, what it holds besides is later than what is wanted.
        if until == Until() or not await holds_end_of(vault, other, files, records.get(other.line)):
            others.append(other)
    return files, others


async def _appended(
    vault: Vault, files: LineFiles, others: Sequence[LineFiles], *, is_wanted: bool, fall_back: bool
) -> tuple[tuple[Appended, ...], tuple[str, ...]]:
    found: list[Appended] = []
    notes: list[str] = []
    for other in others:
        reach = await held_to(vault, other)
        if not is_wanted:
            notes.append(f"line {other.line} may hold other messages, up to sequence {reach}: not restored")
            continue
        chain = in_order(other)
        lacking = await first_missing(vault, chain) if chain else 1
        if lacking is None:
            ends = [s.last for s in other.covering(chain[0].first)]
            lacking = ends[-1] + 1 if ends[-1] < reach else None
        if lacking is not None and not fall_back:
            raise UnrecoverableError(
                f"line {other.line} holds messages up to sequence {reach} that line {files.line} lacks, and"
                f" its segments do not account for sequence {lacking}",
                hint=f"choose one: --line {files.line} or --line {other.line}; or --fall-back for what"
                " segments hold; see `list`",
            )
        if lacking is not None:
            notes.append(f"line {other.line} is not whole: its segments lack sequence {lacking}")
        found.append(Appended(other.line, chain, in_order(files)))
    return tuple(found), tuple(notes)


async def _check(
    vault: Vault,
    found: RestorePlan,
    manifest: SnapshotManifest | None,
    appended: Sequence[Appended],
    progress: Progress,
) -> None:
    more = sum(a.segment_bytes for a in appended)
    progress.begin("check files", found.snapshot_bytes + found.segment_bytes + more, "bytes")
    try:
        if manifest is not None and found.snapshot is not None:
            for part in manifest.parts:
                await vault.read_part(found.snapshot.prefix, part)
                progress.advance(part.size_bytes)
        for name in [*found.segments, *(s for a in appended for s in a.segments)]:
            await vault.read_segment(name)
            progress.advance(name.size)
    finally:
        progress.end()


def _avoid(key: str, lines: Sequence[LineFiles], without: set[SnapshotName]) -> bool:
    """Leave a damaged file out; whether that changes anything."""
    snapshot = SnapshotName.parse(key)
    if snapshot is not None and snapshot[0] not in without:
        without.add(snapshot[0])
        return True
    is_changed = False
    for files in lines:
        kept = [s for s in files.segments if s.key != key]
        is_changed = is_changed or len(kept) < len(files.segments)
        files.segments[:] = kept
    return is_changed


async def _open_config(
    vault: Vault,
    catalogue: Catalogue,
    files: LineFiles,
    manifest: SnapshotManifest | None,
    records: dict[Line, LineRecord],
) -> dict[str, Any]:
    """The stream's own configuration: of its snapshot or line, unless that was written behind a fence."""
    candidates: list[dict[str, Any]] = [manifest.config] if manifest else []
    if files.line in records:
        candidates.append(records[files.line].config)
    for config in candidates:
        if not is_of_a_fence(config):
            return config
    if not candidates:
        raise UnrecoverableError(
            f"the configuration of {catalogue.stream} on line {files.line} is not stored",
            hint="look into the other store: --store offsite",
        )
    # A release before this one recorded what held while a restore kept the publishers out.
    for name in reversed(catalogue.snapshots):
        with contextlib.suppress(CorruptError):
            config = (await vault.manifest(name)).config
            if not is_of_a_fence(config):
                return config
    for line in sorted(records, reverse=True):
        if not is_of_a_fence(records[line].config):
            return records[line].config
    own = next((s for s in streams.STREAMS if s.name == catalogue.stream), None)
    if own is None:
        raise UnrecoverableError(f"every stored configuration of {catalogue.stream} is one of a fence")
    return streams.stream_config(own, replicas=int(candidates[0].get("num_replicas", 1)))
