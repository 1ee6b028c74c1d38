"""Taking a snapshot: the server's copy, cut into parts, stored as they come, published by its manifest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import structlog
from nats.aio.client import Client

from kgents_backup.model import moments
from kgents_backup.model.documents import FORMAT, PartRecord, SnapshotManifest
from kgents_backup.model.faults import RestoringError, StoreError
from kgents_backup.model.keys import SnapshotName, stamp
from kgents_backup.model.ports import NoProgress, Progress
from kgents_backup.model.restoration import is_closed
from kgents_backup.operations import clocks
from kgents_backup.operations.lines import current_line
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.snapshot import SnapshotStream, snapshot
from kgents_backup.sources.stream import durable_consumers, last_held, stream_info
from kgents_common.cancelling import cancelled
from kgents_common.clock import Clock
from kgents_common.crash import CrashPoints
from kgents_common.errors import KgentsError, PermanentError

PART_BYTES = 8 * 1024 * 1024
# Parts that wait for the store while the server goes on sending: it gives up when nothing is taken for 2 s.
WAITING_PARTS = 3
STORING = 3

_log = structlog.get_logger()


async def take_snapshot(
    client: Client,
    vault: Vault,
    stream: str,
    *,
    clock: Clock,
    check: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
    crash: CrashPoints | None = None,
) -> tuple[SnapshotName, SnapshotManifest]:
    """A full copy of a stream with its consumers.

    Args:
        check: Asked before the manifest is written; raises where the lock was lost.

    Raises:
        PermanentError: There is no such stream.
        ClockError: This machine's clock is not the server's.
        RestoringError: It is being restored.
        TransientError: The server or the store failed; nothing is published.
    """
    progress = progress or NoProgress()
    crash = crash or CrashPoints(None)
    info = await stream_info(client, stream)
    if info is None:
        raise PermanentError(f"there is no stream {stream}", hint="apply the streams, or restore it")
    if is_closed(info.config):
        raise RestoringError(f"{stream} is being restored", hint="take it when the restore is over")
    await clocks.require(client, stream, clock)
    line = await current_line(client, await vault.catalogue(stream), info)
    consumers = await durable_consumers(client, stream)
    now, begun = clock.now(), clock.monotonic()
    async with snapshot(client, stream) as source:
        last_ms = moments.to_nanoseconds(source.state["last_ts"]) // 1_000_000
        name = SnapshotName(stream, line, stamp(now), int(source.state["last_seq"]), last_ms)
        progress.begin(f"snapshot {stream}", int(source.state["bytes"]), "bytes")
        written: list[PartRecord] = []
        try:
            parts = await _store_parts(source, vault, name, progress, crash)
            written += parts
        except (KgentsError, asyncio.CancelledError):
            await _discard(vault, name)
            raise
        finally:
            progress.end()
    # Asked for after it was copied: what is deleted by now is not missed.
    held = await last_held(client, stream, name.last) if source.state["messages"] else None
    manifest = SnapshotManifest(
        format=FORMAT,
        stream=stream,
        line=str(line),
        id=name.id,
        created=info.created,
        taken_at=now.isoformat(),
        seconds=round(clock.monotonic() - begun, 3),
        server=str(client.connected_server_version),
        config=source.config,
        state=source.state,
        consumers=consumers,
        parts=written,
        last_held=held,
    )
    check()
    crash.reach("snapshot.before_manifest")
    await vault.write_document(name.manifest_key, manifest)
    crash.reach("snapshot.after_manifest")
    _log.info(
        "snapshot.completed",
        stream=stream,
        store=vault.name,
        last_sequence=name.last,
        messages=source.state["messages"],
        bytes=manifest.content_bytes,
        seconds=manifest.seconds,
    )
    return name, manifest


async def _store_parts(
    source: SnapshotStream, vault: Vault, name: SnapshotName, progress: Progress, crash: CrashPoints
) -> list[PartRecord]:
    """Receive and store at the same time, with at most a few parts in between."""
    waiting: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(WAITING_PARTS)
    records: dict[int, PartRecord] = {}

    async def store() -> None:
        while (next_part := await waiting.get()) is not None:
            number, content = next_part
            crash.reach("snapshot.before_part")
            file = name.part_key(number).removeprefix(name.prefix)
            records[number] = await vault.write_part(name.prefix, file, content)
            crash.reach("snapshot.after_part")

    async def receive() -> None:
        number = 0
        async for part in _parts(source, progress):
            await waiting.put((number, part))
            number += 1
        for _ in storing:
            await waiting.put(None)

    # Several at once: while one waits for the disk, another is hashed.
    storing = [asyncio.create_task(store()) for _ in range(STORING)]
    receiving = asyncio.create_task(receive())
    tasks = [*storing, receiving]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:  # the store's own error says more than the receiver's silence
            if task.done():
                await task
        await asyncio.gather(*tasks)
    finally:
        await cancelled(*tasks)
    return [records[number] for number in sorted(records)]


async def _parts(source: SnapshotStream, progress: Progress) -> AsyncIterator[bytes]:
    chunks: list[bytes] = []
    size = 0
    async for chunk in source.chunks():
        chunks.append(chunk)
        size += len(chunk)
        progress.advance(len(chunk))
        if size >= PART_BYTES:
            yield b"".join(chunks)
            chunks, size = [], 0
    if chunks:
        yield b"".join(chunks)


async def _discard(vault: Vault, name: SnapshotName) -> None:
    """Remove the parts of an attempt; what cannot be removed now, prune removes later."""
    try:
        for entry in await vault.store.list(name.prefix):
            await vault.store.delete(entry.key)
    except StoreError as error:
        _log.warning("snapshot.parts_left", store=vault.name, error=str(error))
