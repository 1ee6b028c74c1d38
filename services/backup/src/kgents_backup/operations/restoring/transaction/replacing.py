"""The restored stream in the place of the one as it was: filled behind a fence, read back, opened."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace as changed

from kgents_backup.model import configurations
from kgents_backup.model.documents import ConsumerRecord
from kgents_backup.model.faults import ProtocolError
from kgents_backup.model.plan import Until
from kgents_backup.model.restoration import RestoreRecord, Step, is_closed, mark, read_lineage, with_lineage
from kgents_backup.operations.consumers import make_consumers
from kgents_backup.operations.restoring import journal
from kgents_backup.operations.restoring.beside import fill_beside
from kgents_backup.operations.restoring.carrying_out import fill, release
from kgents_backup.operations.restoring.filling import Filling
from kgents_backup.operations.restoring.opening import (
    filled_of,
    refuse_another_filling,
    refuse_another_stream,
)
from kgents_backup.operations.restoring.preparing import Prepared
from kgents_backup.operations.restoring.reporting import RestoreReport
from kgents_backup.operations.restoring.transaction.means import Means, Wanted
from kgents_backup.operations.restoring.verifying import read_back
from kgents_backup.sources.stream import stream_info


async def replace(means: Means, record: RestoreRecord, wanted: Wanted, prepared: Prepared) -> RestoreReport:
    """Delete the stream as it was, whose copy is kept, and open the restored one under its name.

    Raises:
        ProtocolError: The server did not take it, or what was read back is not all of it; it stays closed.
        TransientError: Server, store or lock failed; the same command goes on.
    """
    client, name = means.client, record.stream
    means.check_both()
    record = await journal.write(means.work, changed(record, step=Step.REPLACING))
    means.crash.reach("restore.replacing")
    await means.delete(name)
    means.crash.reach("restore.deleted")
    report = RestoreReport(name, name)
    if record.kept:
        report.live_before, report.live_last = record.messages, record.last_sequence
    report.kept = record.kept
    # Of this run alone: one that is late and does not know it reaches nothing.
    prefix = configurations.fence_prefix(name, secrets.token_hex(4))
    fenced = mark(configurations.fenced(prepared.config, name, prefix, replicas=1), record)
    filling = Filling(means.source, prepared, fenced, prefix, report, means.progress)
    base_end = await _fill(means, filling)
    means.crash.reach("restore.filled")
    found = await read_back(
        client,
        means.source,
        prepared,
        name,
        base_end=base_end,
        own_end=report.own_end,
        kept=record.kept,
        progress=means.progress,
    )
    report.missing, report.first_missing, report.digest = found.missing, found.first_missing, found.digest
    means.crash.reach("restore.verified")
    _refuse_loss(record, wanted, report)
    means.check_both()
    filled = filled_of(
        await refuse_another_filling(
            client, fenced, messages=report.messages, last_sequence=report.last_sequence
        )
    )
    record = await journal.write(means.work, changed(record, step=Step.FILLED, filled=filled))
    if prepared.manifest is None:
        stood = await _stood(means, record, prepared)
        await make_consumers(client, name, stood, last=report.own_end)
    final = configurations.final(prepared.config, name, replicas=wanted.replicas)
    opened = with_lineage(final, record.token, prepared.ancestors)
    try:
        await release(client, filling, opened, check=means.check_both)
    except ProtocolError:
        live = await stream_info(client, name)
        if live is not None and not is_closed(live.config):
            await means.let_go(record)  # another's, or emptied: the next run begins anew
        raise
    means.crash.reach("restore.released")
    await means.let_go(record)
    report.notes += prepared.notes
    return report


async def finish(means: Means, record: RestoreRecord) -> RestoreReport:
    """A restore that was interrupted after the stream was opened.

    Raises:
        ProtocolError: Another stream is open instead; the next run begins anew.
    """
    if record.filled is not None:
        try:
            await refuse_another_stream(
                means.client, record.stream, record.filled, token=record.token, is_fresh=False
            )
        except ProtocolError:
            await means.let_go(record)
            raise
    info = await stream_info(means.client, record.stream)
    report = RestoreReport(record.stream, record.stream, kept=record.kept)
    if info is not None:
        report.messages, report.last_sequence = info.messages, info.last_sequence
    report.notes.append("it was complete, and open, when it was interrupted")
    await means.let_go(record)
    return report


def is_released(config: dict[str, Any], record: RestoreRecord) -> bool:
    """Whether a stream of this configuration is the one that the restore opened."""
    lineage = read_lineage(config)
    return lineage is not None and lineage.token == record.token and not is_closed(config)


async def _fill(means: Means, filling: Filling) -> int:
    if means.beside is not None:
        base_end = await fill_beside(means.client, filling, means.beside)
        if base_end is not None:
            return base_end
    return await fill(means.client, filling)


async def _stood(means: Means, record: RestoreRecord, prepared: Prepared) -> Sequence[ConsumerRecord]:
    """Where consumers stood, as the stream as it was or the last segment of the plan tells."""
    if not prepared.plan.segments:
        return []
    header, _ = await means.source.read_segment(prepared.plan.segments[-1])
    return header.consumers or record.consumers


def _refuse_loss(record: RestoreRecord, wanted: Wanted, report: RestoreReport) -> None:
    """Open no stream that lacks what it had, unless that was asked for."""
    is_asked_for = wanted.until != Until() or wanted.line is not None or wanted.fall_back
    # What an older release left half restored holds fillers, too.
    was_half_restored = record.config is not None and is_closed(record.config)
    if report.missing and not is_asked_for and not was_half_restored:
        raise ProtocolError(
            f"{report.missing} messages that the stream held are in no backup, the first at"
            f" {report.first_missing}: the restored one stays closed",
            hint=f"`restore --undo` opens it as it was; `restore --replace --fall-back` does without them"
            f" (they stay in {record.kept})",
        )
