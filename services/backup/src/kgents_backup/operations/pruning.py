"""Deleting what retention lets go, and merging small segments; both leave a usable store at every moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from kgents_backup.model import moments, retention, segment
from kgents_backup.model.catalogue import LineFiles
from kgents_backup.model.keys import (
    MANIFEST,
    VERIFIED,
    Line,
    SegmentName,
    database_prefix,
    heads_prefix,
    line_key,
)
from kgents_backup.model.segment import Message
from kgents_backup.operations.superseding import superseded
from kgents_backup.sinks.store import DirectoryStore, Vault
from kgents_common.crash import CrashPoints

# Segments of a few seconds are many; merged, a day is a handful.
MERGED_BYTES = 32 * 1024 * 1024
MERGE_AFTER = timedelta(minutes=10)

_log = structlog.get_logger()


@dataclass(slots=True)
class PruneReport:
    """What was deleted and merged."""

    snapshots: int = 0
    segments: int = 0
    dumps: int = 0
    unfinished: int = 0
    merged: int = 0


async def prune(
    vault: Vault,
    stream: str,
    *,
    now: datetime,
    keep: timedelta,
    dry_run: bool = False,
    check: Callable[[], None] = lambda: None,
    crash: CrashPoints | None = None,
) -> PruneReport:
    """Delete what `retention.prune` lets go. Only while holding the lock `run`: unfinished is then garbage.

    A snapshot loses its manifest first: what is half deleted is not a snapshot.

    Raises:
        StoreError: The store failed; the next run goes on.
    """
    crash = crash or CrashPoints(None)
    report = PruneReport()
    catalogue = await vault.catalogue(stream)
    found = retention.prune(catalogue, now=now, keep=keep)
    useless = {s for files in catalogue.lines.values() for s in superseded(files)} | set(found.segments)
    report.snapshots, report.segments = len(found.snapshots), len(useless)
    report.unfinished = len(found.unfinished)
    if dry_run:
        return report
    for snapshot in found.snapshots:
        check()
        await vault.store.delete(snapshot.manifest_key)
        crash.reach("prune.after_manifest")
        for entry in await vault.store.list(snapshot.prefix):
            await vault.store.delete(entry.key)
    for name in sorted(useless):
        check()
        await vault.store.delete(name.key)
        crash.reach("prune.after_segment")
    for key in found.unfinished:
        check()
        await vault.store.delete(key)
    for line in found.lines:
        for head in await vault.store.list(heads_prefix(stream, line)):
            await vault.store.delete(head.key)
        await vault.store.delete(line_key(stream, line))
    if isinstance(vault.store, DirectoryStore):
        report.unfinished += await asyncio.to_thread(
            vault.store.discard_unfinished, older_than=now - MERGE_AFTER
        )
    _log.info(
        "prune.completed",
        stream=stream,
        store=vault.name,
        snapshots=report.snapshots,
        segments=report.segments,
    )
    return report


async def prune_databases(
    vault: Vault, *, now: datetime, keep: timedelta, dry_run: bool = False
) -> PruneReport:
    """Delete dumps older than `keep`, but never the last one nor the last good one, and unfinished ones.

    Raises:
        StoreError: The store failed.
    """
    report = PruneReport()
    folders: dict[str, list[str]] = {}
    for entry in await vault.store.list("databases/"):
        folders.setdefault(entry.key.rpartition("/")[0] + "/", []).append(entry.key)
    finished = sorted(f for f, keys in folders.items() if f + MANIFEST in keys)
    edge = database_prefix((now - keep).strftime("%Y%m%dT%H%M%SZ"))
    good = [f for f in finished if f + VERIFIED in folders[f]]
    drop = [f for f in finished[:-1] if f < edge and f not in good[-1:]]
    for folder, keys in folders.items():
        if folder in drop:
            report.dumps += 1
        elif folder not in finished:
            report.unfinished += len(keys)
        else:
            continue
        if not dry_run:
            for key in sorted(keys, key=lambda k: not k.endswith(MANIFEST)):
                await vault.store.delete(key)
    return report


async def merge(
    vault: Vault,
    stream: str,
    *,
    now: datetime,
    written_at: str,
    check: Callable[[], None] = lambda: None,
    crash: CrashPoints | None = None,
    target_bytes: int = MERGED_BYTES,
) -> int:
    """Merge runs of adjacent small segments; how many disappeared.

    The merged one is stored before the others are deleted, and a plan prefers the longest: whatever happens
    in between, every sequence is accounted for.

    Raises:
        CorruptError: A segment is damaged; it and its neighbours stay as they are.
        StoreError: The store failed.
    """
    crash = crash or CrashPoints(None)
    gone = 0
    catalogue = await vault.catalogue(stream)
    edge = moments.of(now - MERGE_AFTER) // 1_000_000
    for line, files in catalogue.lines.items():
        for run in runs_to_merge(files, edge_ms=edge, target_bytes=target_bytes):
            check()
            merged = await _merge(vault, line, run, written_at)
            crash.reach("merge.after_merged")
            for name in run:
                if name != merged:
                    check()
                    await vault.store.delete(name.key)
                    crash.reach("merge.after_delete")
                    gone += 1
    return gone


def runs_to_merge(files: LineFiles, *, edge_ms: int, target_bytes: int) -> list[list[SegmentName]]:
    """Adjacent segments, each smaller than half the target, that together stay within it."""
    runs: list[list[SegmentName]] = []
    current: list[SegmentName] = []
    size = 0
    for name in files.covering(min((s.first for s in files.segments), default=1)):
        is_small = name.size < target_bytes // 2 and name.last_ms < edge_ms
        if current and (
            not is_small or size + name.size > target_bytes or name.first != current[-1].last + 1
        ):
            runs.append(current)
            current, size = [], 0
        if is_small:
            current.append(name)
            size += name.size
    runs.append(current)
    return [run for run in runs if len(run) > 1]


async def _merge(vault: Vault, line: Line, run: list[SegmentName], written_at: str) -> SegmentName:
    messages: list[Message] = []
    for name in run:
        header, found = await vault.read_segment(name)
        messages += found
    merged, data = await asyncio.to_thread(
        segment.encode,
        run[0].stream,
        line,
        run[0].first,
        messages,
        stream_first=header.stream_first,
        written_at=written_at,
        consumers=header.consumers,
    )
    await vault.write_segment(merged, data)
    return merged
