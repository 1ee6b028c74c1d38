"""A restore taken back, however far it came: the stream is as it was."""

from __future__ import annotations

from kgents_backup.model.faults import RefusedError
from kgents_backup.model.restoration import is_closed
from kgents_backup.operations.restoring import journal, keeping
from kgents_backup.operations.restoring.transaction.means import Means
from kgents_backup.sources.stream import stream_info


async def take_back(means: Means, stream: str) -> str:
    """As `Restoration.undo`, for whoever owns the server's streams already."""
    record = await journal.find(means.client, means.work, stream)
    if record is None:
        raise RefusedError(f"no restore of {stream} is under way", hint="see `kgents-backup status`")
    live = await stream_info(means.client, stream)
    if live is not None and not record.is_before_replacing and not is_closed(live.config):
        await means.let_go(record)
        raise RefusedError(
            f"{stream} is open and takes messages: there is nothing to undo",
            hint=f"the stream as it was is kept as {record.kept}" if record.kept else "see `list`",
        )
    means.alone.check()
    if not record.is_before_replacing and record.kept:
        await keeping.bring_back_kept(means.client, record, check=means.alone.check)
        done = f"{stream} is as it was: {record.messages} messages"
    elif not record.is_before_replacing:
        await means.delete(stream)
        done = f"what was restored of {stream} so far is deleted; there was no stream before"
    else:
        if live is not None and record.config is not None and is_closed(live.config):
            await keeping.open_again(means.client, record)
        done = f"{stream} is open again, as it was"
    if record.kept:
        await means.delete(record.kept)
    await journal.clear(means.work, stream)
    return done
