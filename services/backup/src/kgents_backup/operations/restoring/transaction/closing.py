"""The stream as it was, until the restored one may take its place: closed, archived to its end, kept."""

from __future__ import annotations

import secrets
from datetime import timedelta

import structlog
from msgspec.structs import replace

from kgents_backup.model.faults import RefusedError, StoreError
from kgents_backup.model.restoration import RestoreRecord, Step, is_closed, kept_name
from kgents_backup.operations.archiving import Archiver
from kgents_backup.operations.restoring import journal, keeping
from kgents_backup.operations.restoring.preparing import Prepared
from kgents_backup.operations.restoring.resuming import store_identity
from kgents_backup.operations.restoring.transaction.means import Means, Wanted
from kgents_backup.sinks.store import Lease
from kgents_backup.sources.stream import durable_consumers, stream_info
from kgents_backup.sources.verbatim import VerbatimClient

# The archiver lets go of its lock when it sees the fence, or when its lease ends.
PATIENCE = timedelta(seconds=45)

_log = structlog.get_logger()


async def begin(means: Means, wanted: Wanted) -> RestoreRecord:
    """Write down that a restore is under way; nothing is changed yet.

    Raises:
        RefusedError: There is a stream, and replacing it was not asked for, or it is a mirror.
        UnrecoverableError, CorruptError: The store does not lead there.
    """
    stream = wanted.stream
    live = await stream_info(means.client, stream)
    is_archived_later = live is not None and 0 < (wanted.until.sequence or 0) <= live.last_sequence
    if not is_archived_later:
        await means.prepare(wanted, is_first=True)  # an error here costs no downtime
    if live is not None and not wanted.replace:
        raise RefusedError(
            f"there is a stream {stream} with {live.messages} messages, up to sequence {live.last_sequence}",
            hint="--stream NAME restores another one alone; add --replace to put it in this one's place,"
            " which is archived to its end and kept under another name; or --into another name or server",
        )
    if live is not None and live.config.get("mirror"):
        raise RefusedError(f"{stream} is a mirror", hint="see `dr promote`")
    token = secrets.token_hex(4)
    record = RestoreRecord(
        stream=stream,
        token=token,
        step=Step.BEGUN,
        began_at=means.clock.now().isoformat(),
        owner=means.owner,
        until=str(wanted.until),
        store=await store_identity(means.work.store),
        line=str(wanted.line or ""),
    )
    if live is not None:
        record = replace(
            record,
            kept=kept_name(stream, token),
            config=live.config,
            consumers=await durable_consumers(means.client, stream),
        )
    await journal.write(means.work, record)
    means.crash.reach("restore.begun")
    return record


async def make_ready(means: Means, record: RestoreRecord, wanted: Wanted) -> tuple[RestoreRecord, Prepared]:
    """Fence, archive to the end, plan, keep: until here the stream as it was is only closed.

    Raises:
        KgentsError: It is to be opened again.
    """
    client, stream = means.client, record.stream
    live = await stream_info(client, stream)
    if live is None:
        return record, await means.prepare(wanted)
    if not record.kept:
        raise RefusedError(
            f"a stream {stream} was made since this restore began", hint="run it again with --replace"
        )
    was_closed = record.config is not None and is_closed(record.config)
    if not is_closed(live.config):
        means.check_both()
        await keeping.fence(client, replace(record, step=Step.FENCED))
        means.crash.reach("restore.fenced")
    live = await stream_info(client, stream) or live
    record = await journal.write(
        means.work,
        replace(
            record,
            step=Step.FENCED,
            messages=live.messages,
            first_sequence=live.first_sequence,
            last_sequence=live.last_sequence,
            consumers=await durable_consumers(client, stream),
        ),
    )
    if not was_closed:
        await _archive_to_the_end(means, record)
        means.crash.reach("restore.archived")
    prepared = await means.prepare(wanted)
    means.check_both()
    await keeping.keep(client, record)
    means.crash.reach("restore.kept")
    return await journal.write(means.work, replace(record, step=Step.KEPT)), prepared


async def _archive_to_the_end(means: Means, record: RestoreRecord) -> None:
    lease = Lease(means.work.store, f"archive-{record.stream}", owner=means.owner, clock=means.clock)
    await lease.acquire_within(PATIENCE)
    try:

        async def give() -> VerbatimClient:
            return means.client

        archiver = Archiver(
            give,
            means.work,
            record.stream,
            clock=means.clock,
            check=lease.check,
            restore=record,
            crash=means.crash,
        )
        try:
            await archiver.catch_up()
        finally:
            await archiver.close()
    finally:
        await lease.release()
    try:
        await means.upload()
    except StoreError as error:
        _log.warning("restore.not_uploaded", stream=record.stream, error=str(error))
