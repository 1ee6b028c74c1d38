"""A stream filled in a server of our own, which syncs nothing, and brought to the live one as files.

A live server that syncs each message, as one replica must, stores a snapshot from 2.15 on, and every tail,
message by message: a thousand a second, hours for a gibibyte of small ones. It puts files in their place as
fast as they come. The files' form belongs to the server's version, so both must be of the same; otherwise,
or where anything of this fails, the stream is filled message by message.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from pathlib import Path

import structlog
from nats.errors import Error as NatsError

from kgents_backup.model.faults import ProtocolError
from kgents_backup.model.plan import FEWEST_BY_FILES
from kgents_backup.operations.restoring.carrying_out import fill
from kgents_backup.operations.restoring.filling import Filling, settled
from kgents_backup.sinks.file_archive import file_archive
from kgents_backup.sinks.restore import restore_snapshot
from kgents_backup.sinks.scratch import own_server, program_version
from kgents_backup.sources.stream import stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.errors import KgentsError
from kgents_common.streams import request

_log = structlog.get_logger()


async def is_possible(client: VerbatimClient) -> bool:
    """Whether a server of the live one's version can be started here."""
    try:
        return await program_version() == client.version
    except OSError:
        return False


async def fill_beside(client: VerbatimClient, filling: Filling, directory: Path) -> int | None:
    """As `fill`, where that is worth it and possible; None where it was not, and nothing is left of it.

    Args:
        directory: Where the other server keeps its files meanwhile; they take as much as the stream does.

    Raises:
        JetStreamApiError, TransientError: The live server failed, and keeps what is left of an attempt.
    """
    plan, manifest = filling.prepared.plan, filling.prepared.manifest
    held = int(manifest.state["messages"]) if manifest else 0
    if held + plan.tail_messages < FEWEST_BY_FILES or not await is_possible(client):
        return None
    # Segments are compressed, files are not.
    size = (int(manifest.state["bytes"]) if manifest else 0) + 8 * plan.segment_bytes
    free = (await asyncio.to_thread(shutil.disk_usage, directory)).free
    if free < 2 * size:
        _log.warning("restore.no_room_beside", wanted_bytes=2 * size, free_bytes=free)
        return None
    report = filling.report
    attempt = dataclasses.replace(report, notes=list(report.notes))
    try:
        base_end = await _fill(client, dataclasses.replace(filling, report=attempt), directory)
    except (KgentsError, NatsError, OSError) as error:
        _log.warning("restore.message_by_message", error=f"{type(error).__name__}: {error}")
        if await stream_info(client, filling.name) is not None:
            await request(client, f"STREAM.DELETE.{filling.name}", timeout_seconds=60)
        return None
    for name in (f.name for f in dataclasses.fields(report)):
        setattr(report, name, getattr(attempt, name))
    return base_end


async def _fill(client: VerbatimClient, filling: Filling, directory: Path) -> int:
    name, progress = filling.name, filling.progress
    async with own_server(directory) as own:
        base_end = await fill(own.client, filling)
        filled = await settled(own.client, name)
        await own.stop()
        files = own.files_of(name)
        size = sum(p.stat().st_size for p in await asyncio.to_thread(lambda: list(files.rglob("*"))))
        progress.begin("bring files", size, "bytes")
        try:
            await restore_snapshot(
                client,
                config=filling.fenced,
                state=filled.state,
                content=file_archive(files),
                progress=progress,
            )
        finally:
            progress.end()
    info = await settled(client, name)
    compared = ("messages", "bytes", "first_seq", "last_seq")
    if [info.state[k] for k in compared] != [filled.state[k] for k in compared]:
        raise ProtocolError(f"the files came out as {info.state}, not as {filled.state}")
    _log.info("restore.brought_as_files", stream=name, messages=info.messages, bytes=size)
    return base_end
