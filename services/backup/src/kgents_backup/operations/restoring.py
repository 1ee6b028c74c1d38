"""Restoring a stream: a plan, every file of it checked, the snapshot, its tail, the numbers compared.

Nothing is destroyed before every file the restore needs was read and found good.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import structlog

from kgents_backup.cancelling import cancelled
from kgents_backup.model import configurations
from kgents_backup.model.catalogue import LineFiles
from kgents_backup.model.documents import PartRecord, SnapshotManifest
from kgents_backup.model.faults import (
    CorruptError,
    ProtocolError,
    RefusedError,
    UnrecoverableError,
)
from kgents_backup.model.keys import Line, SegmentName, SnapshotName
from kgents_backup.model.plan import RestorePlan, Until, choose_line, plan
from kgents_backup.model.ports import NoProgress, Progress
from kgents_backup.model.segment import Message
from kgents_backup.sinks.replay import Replay
from kgents_backup.sinks.restore import restore_snapshot
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.stream import StreamInfo, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import Clock
from kgents_common.errors import TransientError
from kgents_common.streams import JetStreamApiError, request

# A large stream is copied to each replica.
WIDEN_SECONDS = 900.0

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


@dataclass(slots=True)
class RestoreReport:
    """What a restore did.

    Attributes:
        physical: Messages that came back with the server's own times.
        replayed: Messages whose original time is in the header `Kgents-Original-Time`.
        fillers: Sequences published and purged, because the stream did not hold them.
        stripped: Replayed messages that lost headers to the server which it now refused.
        consumers: Durable consumers, with the sequence up to which they are done.
    """

    stream: str
    into: str
    last_sequence: int = 0
    messages: int = 0
    physical: int = 0
    replayed: int = 0
    fillers: int = 0
    stripped: int = 0
    seconds: float = 0.0
    consumers: list[tuple[str, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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


async def restore(
    client: VerbatimClient,
    vault: Vault,
    prepared: Prepared,
    *,
    clock: Clock,
    into: str | None = None,
    replace: bool = False,
    replicas: int | None = None,
    subjects: list[str] | None = None,
    progress: Progress | None = None,
) -> RestoreReport:
    """Carry a plan out.

    Args:
        into: Another stream name; its messages keep their subjects.
        replace: Delete a stream of that name first.
        replicas: Instead of the backed up stream's.
        subjects: What the stream listens to afterwards, instead of what it did.

    Raises:
        RefusedError: There is such a stream, and replacing it was not asked for.
        ProtocolError: The server did not take it.
    """
    progress = progress or NoProgress()
    begun = clock.monotonic()
    name = into or prepared.plan.stream
    report = RestoreReport(prepared.plan.stream, name)
    await _make_room(client, name, replace=replace)
    prefix = configurations.fence_prefix(name, secrets.token_hex(4))
    fenced = configurations.fenced(prepared.config, name, prefix, replicas=1)
    position = await _restore_base(client, vault, prepared, fenced, report, progress)
    await _replay_tail(client, vault, prepared.plan, name, prefix, position, report, progress)
    final = configurations.final(prepared.config, name, replicas=replicas, subjects=subjects)
    info = await _settled(client, name)
    _compare(info, report)
    await refuse_fenced_subjects(client, name, prefix)
    await widen(client, fenced, final["num_replicas"])
    await request(client, f"STREAM.UPDATE.{name}", final, timeout_seconds=60)
    report.last_sequence, report.messages = info.last_sequence, info.messages
    report.consumers = await _consumers(client, name, prepared, report)
    report.seconds = round(clock.monotonic() - begun, 3)
    _log.info(
        "restore.completed",
        stream=name,
        last_sequence=report.last_sequence,
        physical=report.physical,
        replayed=report.replayed,
        seconds=report.seconds,
    )
    return report


async def tail(
    vault: Vault, plan: RestorePlan, after: int
) -> AsyncIterator[tuple[SegmentName, list[Message]]]:
    """The wanted messages of a plan's segments after a sequence, segment by segment.

    Raises:
        CorruptError: A segment is damaged.
    """
    position = after
    for name in plan.segments:
        _, messages = await vault.read_segment(name)
        wanted = [m for m in messages if m.sequence > position and plan.until.includes(m.sequence, m.time)]
        is_end = bool(messages) and not plan.until.includes(messages[-1].sequence, messages[-1].time)
        position = max(position, name.last)
        yield name, wanted
        if is_end:
            return


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


async def _make_room(client: VerbatimClient, name: str, *, replace: bool) -> None:
    existing = await stream_info(client, name)
    if existing is None:
        return
    if not replace:
        raise RefusedError(
            f"there is a stream {name} with {existing.messages} messages",
            hint="add --replace to delete it first, or --into another name or server",
        )
    _log.warning("restore.stream_deleted", stream=name, messages=existing.messages)
    await request(client, f"STREAM.DELETE.{name}", timeout_seconds=60)


async def _restore_base(
    client: VerbatimClient,
    vault: Vault,
    prepared: Prepared,
    fenced: dict[str, Any],
    report: RestoreReport,
    progress: Progress,
) -> int:
    """Bring the snapshot back, or an empty stream that begins where the segments do; the last sequence."""
    found, manifest = prepared.plan, prepared.manifest
    if manifest is None or found.snapshot is None:
        first = found.segments[0].first
        await request(client, f"STREAM.CREATE.{fenced['name']}", fenced | {"first_seq": first})
        return first - 1
    prefix = found.snapshot.prefix

    progress.begin("restore snapshot", manifest.content_bytes, "bytes")
    try:
        await restore_snapshot(
            client,
            config=fenced,
            state=manifest.state,
            content=_parts(vault, prefix, manifest.parts),
            progress=progress,
        )
    except ProtocolError as error:
        if "names do not match" in str(error):
            raise RefusedError(
                f"this server does not restore {found.stream} under another name",
                hint="restore into another server: --into nats://…",
            ) from error
        raise
    finally:
        progress.end()
    info = await _settled(client, fenced["name"])
    wanted = {k: manifest.state[k] for k in ("messages", "first_seq", "last_seq")}
    got = {k: info.state[k] for k in wanted}
    if got != wanted:
        raise ProtocolError(f"the snapshot came back as {got}, not as {wanted}")
    report.physical = info.messages
    return info.last_sequence


async def widen(client: VerbatimClient, fenced: dict[str, Any], replicas: int) -> None:
    """Give a stream that was restored on one server its replicas, and wait until each holds everything.

    Why it is restored on one: in a 2.10 cluster each replica applies the subject transform for itself, and
    after a restore or an update some do not, so that replicas which all call themselves current hold
    different subjects (measured: two of three). Replicas made afterwards are copies of the one.

    Raises:
        ProtocolError: They are not complete in time; the stream stays closed to publishers.
    """
    if replicas == 1:
        return
    name = fenced["name"]
    await request(client, f"STREAM.UPDATE.{name}", fenced | {"num_replicas": replicas}, timeout_seconds=60)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WIDEN_SECONDS
    while loop.time() < deadline:
        with contextlib.suppress(TransientError, JetStreamApiError):  # its leader may be moving
            cluster = (await request(client, f"STREAM.INFO.{name}")).get("cluster") or {}
            others = cluster.get("replicas") or []
            if cluster.get("leader") and len(others) == replicas - 1 and all(map(_is_complete, others)):
                return
        await asyncio.sleep(0.2)
    raise ProtocolError(
        f"the replicas of {name} were not complete in {WIDEN_SECONDS:.0f} s",
        hint="look into the cluster, then run the restore again with --replace",
    )


def _is_complete(replica: dict[str, Any]) -> bool:
    return bool(replica.get("current")) and not replica.get("offline") and not replica.get("lag")


async def refuse_fenced_subjects(client: VerbatimClient, name: str, prefix: str) -> None:
    """Make sure that no message is stored under the subject it was sent to instead of its own.

    Raises:
        ProtocolError: There is one; the stream must not be opened.
    """
    answer = await request(
        client, f"STREAM.INFO.{name}", {"subjects_filter": f"{prefix}.>"}, timeout_seconds=60
    )
    wrong = answer["state"].get("subjects") or {}
    if wrong:
        raise ProtocolError(
            f"the server stored {sum(wrong.values())} messages of {name} under the restore's own subjects",
            hint="the stream stays closed to publishers: run the restore again with --replace",
        )


async def _parts(vault: Vault, prefix: str, parts: Sequence[PartRecord]) -> AsyncIterator[bytes]:
    """A snapshot's parts in order; the next is read and checked while one is sent."""
    ahead: asyncio.Task[bytes] | None = None
    try:
        for number in range(len(parts)):
            reading = ahead or asyncio.create_task(vault.read_part(prefix, parts[number]))
            content = await reading
            ahead = None
            if number + 1 < len(parts):
                ahead = asyncio.create_task(vault.read_part(prefix, parts[number + 1]))
            yield content
    finally:
        await cancelled(ahead)


async def _settled(client: VerbatimClient, name: str) -> StreamInfo:
    info = await stream_info(client, name)
    if info is None:
        raise ProtocolError(f"the stream {name} is not there after its restore")
    return info


async def _replay_tail(
    client: VerbatimClient,
    vault: Vault,
    found: RestorePlan,
    name: str,
    prefix: str,
    position: int,
    report: RestoreReport,
    progress: Progress,
) -> None:
    replay = Replay(client, name, prefix, last_sequence=position)
    progress.begin("replay segments", found.segment_bytes, "bytes")
    try:
        async for segment_name, messages in tail(vault, found, position):
            for message in messages:
                await replay.publish(message)
            progress.advance(segment_name.size)
        await replay.finish()
    finally:
        progress.end()
    report.replayed, report.fillers, report.stripped = replay.messages, replay.fillers, replay.stripped
    if replay.messages:
        report.notes.append(
            f"{replay.messages} messages after sequence {position} carry their original time in the header "
            "Kgents-Original-Time; the server's own time is that of the restore"
        )


def _compare(info: StreamInfo, report: RestoreReport) -> None:
    expected = report.physical + report.replayed
    if info.messages != expected:
        raise ProtocolError(f"the stream holds {info.messages} messages, not {expected}")


async def _consumers(
    client: VerbatimClient, name: str, prepared: Prepared, report: RestoreReport
) -> list[tuple[str, int]]:
    answer = await request(client, f"CONSUMER.LIST.{name}", {"offset": 0})
    if report.replayed:
        report.notes.append(
            "consumers stand where they stood at the snapshot: what they handled after it comes to them"
            " again, and their keys make that harmless"
        )
    if prepared.manifest is None:
        report.notes.append(
            "no snapshot was used: apply the streams' consumers again, they start from the first"
        )
    return [(c["name"], int(c["ack_floor"]["stream_seq"])) for c in answer.get("consumers") or []]
