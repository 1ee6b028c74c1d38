"""The stream behind its fence is filled: the snapshot, then the tail at its own sequences."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kgents_backup.model.documents import PartRecord
from kgents_backup.model.faults import (
    ProtocolError,
    RefusedError,
)
from kgents_backup.model.keys import SegmentName
from kgents_backup.model.plan import RestorePlan, Until
from kgents_backup.model.ports import Progress
from kgents_backup.model.segment import Message
from kgents_backup.operations.restoring.preparing import Prepared
from kgents_backup.operations.restoring.reporting import RestoreReport
from kgents_backup.sinks.replay import Replay
from kgents_backup.sinks.restore import restore_snapshot
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.stream import StreamInfo, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.cancelling import cancelled
from kgents_common.streams import request


@dataclass(frozen=True, slots=True)
class Filling:
    """One stream to be filled, in whichever server.

    Attributes:
        fenced: Its configuration until it is whole.
        prefix: Of the subjects that it listens to meanwhile.
        report: Told what came into it.
    """

    vault: Vault
    prepared: Prepared
    fenced: dict[str, Any]
    prefix: str
    report: RestoreReport
    progress: Progress

    @property
    def name(self) -> str:
        """The stream's name."""
        return str(self.fenced["name"])


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


async def restore_base(client: VerbatimClient, filling: Filling) -> int:
    """Bring the snapshot back, or an empty stream that begins where the segments do; the last sequence."""
    found, manifest = filling.prepared.plan, filling.prepared.manifest
    if manifest is None or found.snapshot is None:
        first = found.segments[0].first
        await request(client, f"STREAM.CREATE.{filling.name}", filling.fenced | {"first_seq": first})
        return first - 1
    progress = filling.progress
    progress.begin("restore snapshot", manifest.content_bytes, "bytes")
    try:
        await restore_snapshot(
            client,
            config=filling.fenced,
            state=manifest.state,
            content=_parts(filling.vault, found.snapshot.prefix, manifest.parts),
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
    info = await settled(client, filling.name)
    # A stream that holds nothing begins at 0 for one version of the server and at 1 for another.
    compared = (
        ("messages", "first_seq", "last_seq") if manifest.state["messages"] else ("messages", "last_seq")
    )
    wanted = {k: manifest.state[k] for k in compared}
    got = {k: info.state[k] for k in wanted}
    # A server of 2.10 that is written to copies what it stores after it has said its state: a few more at the
    # end, which are wanted where everything is. What follows them is read from the segments as always.
    more = max(0, got["last_seq"] - wanted["last_seq"]) if found.until == Until() else 0
    if got != wanted | {k: wanted[k] + more for k in ("messages", "last_seq")}:
        raise ProtocolError(f"the snapshot came back as {got}, not as {wanted}")
    filling.report.physical = info.messages
    return info.last_sequence


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


async def settled(client: VerbatimClient, name: str) -> StreamInfo:
    info = await stream_info(client, name)
    if info is None:
        raise ProtocolError(f"the stream {name} is not there after its restore")
    return info


async def replay_tail(client: VerbatimClient, filling: Filling, position: int) -> None:
    """Publish what comes after a sequence: the plan's own segments, then what only other lines hold."""
    found, report, progress = filling.prepared.plan, filling.report, filling.progress
    replay = Replay(client, filling.name, filling.prefix, last_sequence=position)
    progress.begin("replay segments", found.segment_bytes, "bytes")
    try:
        async for segment_name, messages in tail(filling.vault, found, position):
            for message in messages:
                await replay.publish(message)
            progress.advance(segment_name.size)
        before, report.own_end = replay.messages, replay.last_sequence
        for other in filling.prepared.appended:
            async for message in other.messages(filling.vault):
                await replay.publish(replace(message, sequence=replay.last_sequence + 1))
        report.appended = replay.messages - before
        await replay.finish()
    finally:
        progress.end()
    report.replayed, report.fillers, report.stripped = replay.messages, replay.fillers, replay.stripped
    if replay.messages:
        report.notes.append(
            f"{replay.messages} messages after sequence {position} carry their original time in the header "
            "Kgents-Original-Time; the server's own time is that of the restore"
        )
