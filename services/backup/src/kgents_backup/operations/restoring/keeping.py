"""The stream as it was before a restore: fenced, kept under another name, and brought back if need be."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import structlog

from kgents_backup.model import configurations
from kgents_backup.model.faults import ProtocolError
from kgents_backup.model.restoration import RestoreRecord, fenced_live, kept_config, mark
from kgents_backup.operations.consumers import make_consumers
from kgents_backup.sinks.replay import Replay
from kgents_backup.sources.messages import MessageReader
from kgents_backup.sources.stream import stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.streams import request, server_version

# A mirror becomes a stream by an update from this version on (measured: not on 2.10).
MIRRORS_BECOME_STREAMS = (2, 12)
SILENCE_SECONDS = 60.0

_log = structlog.get_logger()


async def fence(client: VerbatimClient, record: RestoreRecord) -> None:
    """Close the live stream to publishers; they get no answer, so that nothing is acknowledged any more."""
    assert record.config is not None  # noqa: S101 the caller saw the stream
    await request(
        client, f"STREAM.UPDATE.{record.stream}", fenced_live(record.config, record), timeout_seconds=60
    )
    _log.warning("restore.fenced", stream=record.stream)


async def open_again(client: VerbatimClient, record: RestoreRecord) -> None:
    """Give a fenced stream its own configuration back."""
    assert record.config is not None  # noqa: S101 the caller saw the stream
    await request(client, f"STREAM.UPDATE.{record.stream}", record.config, timeout_seconds=60)
    _log.warning("restore.opened_again", stream=record.stream)


async def keep(client: VerbatimClient, record: RestoreRecord) -> None:
    """Copy the fenced stream under another name, in the server, with its sequences and times.

    Raises:
        ProtocolError: The copy does not get on; the stream is as it was.
        JetStreamApiError: The server refuses, e.g. for want of storage.
    """
    live = await stream_info(client, record.stream)
    if live is None:
        raise ProtocolError(f"the stream {record.stream} is gone", hint="run the restore again")
    config = kept_config(live.config, record)
    if await stream_info(client, record.kept) is None:
        await request(client, f"STREAM.CREATE.{record.kept}", config, timeout_seconds=60)
    await _same(client, record.stream, record.kept)
    if server_version(client) >= MIRRORS_BECOME_STREAMS:
        detached = {k: v for k, v in config.items() if k != "mirror"}
        detached["subjects"] = [f"kgents.kept.{record.kept}"]
        await request(client, f"STREAM.UPDATE.{record.kept}", detached, timeout_seconds=60)
    _log.info("restore.kept", stream=record.stream, kept=record.kept)


async def bring_back_kept(
    client: VerbatimClient, record: RestoreRecord, *, check: Callable[[], None] = lambda: None
) -> None:
    """Make the copy the stream again, with its own configuration and consumers.

    Before 2.12 a mirror cannot become a stream: messages are published back at their own sequences, and
    their times are in the header `Kgents-Original-Time`.

    Args:
        check: Raises where another may be at work; asked right before it is opened.

    Raises:
        ProtocolError, JetStreamApiError: The server did not take it; the copy is still there.
    """
    assert record.config is not None  # noqa: S101 there was a stream
    stream = record.stream
    if await stream_info(client, stream) is not None:
        await request(client, f"STREAM.DELETE.{stream}", timeout_seconds=60)
    prefix = configurations.fence_prefix(stream, secrets.token_hex(4))
    fenced = configurations.fenced(record.config, stream, prefix)
    if server_version(client) >= MIRRORS_BECOME_STREAMS:
        mirror: dict[str, Any] = {
            k: record.config[k] for k in ("storage", "num_replicas", "allow_msg_ttl") if k in record.config
        }
        mirror |= {"name": stream, "mirror": {"name": record.kept}, "allow_direct": True}
        # Marked: what holds of a mirror for a moment is no configuration to archive the stream under.
        await request(client, f"STREAM.CREATE.{stream}", mark(mirror, record), timeout_seconds=60)
        await _same(client, record.kept, stream)
        await request(client, f"STREAM.UPDATE.{stream}", fenced, timeout_seconds=60)
    else:
        kept = await stream_info(client, record.kept)
        first = kept.first_sequence if kept and kept.messages else record.last_sequence + 1
        await request(client, f"STREAM.CREATE.{stream}", {**fenced, "first_seq": first}, timeout_seconds=60)
        replay = Replay(client, stream, prefix, last_sequence=first - 1)
        reader = MessageReader(client, record.kept)
        if kept is not None and kept.messages:
            async for message in reader.read(kept.last_sequence):
                await replay.publish(message)
        await reader.close()
        await replay.finish()
    await _reach(client, stream, prefix, record.last_sequence)
    # Before it is open: once it is, an attempt that was interrupted is over, and nobody would make them.
    await make_consumers(client, stream, record.consumers)
    check()
    await request(client, f"STREAM.UPDATE.{stream}", record.config, timeout_seconds=60)


async def _reach(client: VerbatimClient, stream: str, prefix: str, sequence: int) -> None:
    """Let no sequence be given twice: what was deleted at the end is not in a copy."""
    info = await stream_info(client, stream)
    if info is None or info.last_sequence >= sequence:
        return
    replay = Replay(client, stream, prefix, last_sequence=info.last_sequence)
    await replay.skip_to(sequence)
    await replay.finish()


async def _same(client: VerbatimClient, origin: str, mirror: str) -> None:
    """Wait until the mirror holds what the origin holds: as many messages and bytes, from the same first."""
    loop = asyncio.get_running_loop()
    seen, seen_at = -1, loop.time()
    while True:
        ours, theirs = await stream_info(client, origin), await stream_info(client, mirror)
        if ours is None or theirs is None:
            raise ProtocolError(f"{origin} or {mirror} is gone", hint="run the restore again")
        same = ("messages", "bytes") if not ours.messages else ("messages", "bytes", "first_seq")
        if all(ours.state[k] == theirs.state[k] for k in same):
            return
        if theirs.last_sequence != seen:
            seen, seen_at = theirs.last_sequence, loop.time()
        elif loop.time() - seen_at > SILENCE_SECONDS:
            raise ProtocolError(
                f"the copy {mirror} stands at {seen} since {SILENCE_SECONDS:.0f} s: {theirs.messages} of"
                f" {ours.messages} messages",
                hint="the server may lack storage for it; `restore --undo` opens the stream as it was",
            )
        await asyncio.sleep(0.1)
