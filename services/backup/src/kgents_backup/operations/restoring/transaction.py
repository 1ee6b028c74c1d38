"""A stream brought back as a transaction: whatever interrupts it, the same command goes on or takes it back.

JetStream cannot rename a stream, so it is the stream *as it was* that gets another name: it is fenced,
archived to its end, copied within the server, and only then deleted; the restored one is filled behind a
fence under the real name, read back, and opened. At no moment is the only copy gone, and until it is deleted
the stream as it was can be opened again at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog

from kgents_backup.model import configurations
from kgents_backup.model.faults import ProtocolError, RefusedError, StoreError
from kgents_backup.model.keys import Line
from kgents_backup.model.plan import Until
from kgents_backup.model.ports import NoProgress, Progress
from kgents_backup.model.restoration import (
    RestoreRecord,
    Step,
    is_closed,
    kept_name,
    mark,
    read_lineage,
    with_lineage,
)
from kgents_backup.operations.archiving import Archiver
from kgents_backup.operations.consumers import make_consumers
from kgents_backup.operations.restoring import journal, keeping
from kgents_backup.operations.restoring.beside import fill_beside
from kgents_backup.operations.restoring.carrying_out import fill, release
from kgents_backup.operations.restoring.filling import Filling
from kgents_backup.operations.restoring.keeping import with_step
from kgents_backup.operations.restoring.opening import (
    filled_of,
    refuse_another_filling,
    refuse_another_stream,
)
from kgents_backup.operations.restoring.preparing import Prepared, prepare
from kgents_backup.operations.restoring.reporting import RestoreReport
from kgents_backup.operations.restoring.resuming import refuse_another, store_identity
from kgents_backup.operations.restoring.verifying import read_back
from kgents_backup.sinks.ownership import Ownership
from kgents_backup.sinks.store import Lease, Vault
from kgents_backup.sources.stream import durable_consumers, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import Clock
from kgents_common.crash import CrashPoints
from kgents_common.errors import KgentsError
from kgents_common.streams import request

# The archiver lets go of its lock when it sees the fence, or when its lease ends.
PATIENCE = timedelta(seconds=45)

_log = structlog.get_logger()


async def _no_upload() -> None:
    return


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for.

    Attributes:
        replace: Whether a stream that is there may be replaced.
    """

    stream: str
    until: Until = field(default_factory=Until)
    line: Line | None = None
    fall_back: bool = False
    replace: bool = False
    replicas: int | None = None


@dataclass(frozen=True, slots=True)
class Restoration:
    """Everything a restore of a live system needs.

    Attributes:
        work: Where the archive's end and the record of the restore are written.
        source: Where is read from; may be several stores seen as one.
        upload: Has what `work` holds copied to the other store.
        check: Raises where the lock `run` was lost.
        beside: Where a server of our own may keep its files for a while, to bring many messages as files;
            None to store each one in the live server.
        on_plan: Told what is about to be done, before anything is deleted.
    """

    client: VerbatimClient
    work: Vault
    source: Vault
    clock: Clock
    owner: str
    upload: Callable[[], Awaitable[None]] = _no_upload
    check: Callable[[], None] = lambda: None
    beside: Path | None = None
    on_plan: Callable[[Prepared], None] = lambda _prepared: None
    progress: Progress = field(default_factory=NoProgress)
    crash: CrashPoints = field(default_factory=lambda: CrashPoints(None))
    alone: Ownership = field(init=False)

    def __post_init__(self) -> None:
        """The server's streams are changed by one run at a time: `alone`, held around each of these."""
        object.__setattr__(self, "alone", Ownership(self.client, self.owner, self.clock))

    async def bring_back(self, wanted: Wanted) -> RestoreReport:
        """Restore the stream, or go on with a restore that was interrupted.

        An error before the stream as it was is deleted opens it again.

        Raises:
            RefusedError: There is a stream, and replacing it was not asked for; or another restore of it was
                interrupted.
            LockedError: Another run changes streams of this server.
            UnrecoverableError, CorruptError: The store does not lead there; nothing is changed.
            TransientError: Server, store or lock failed; run it again.
        """
        async with self.alone:
            return await self._bring_back(wanted)

    def _check(self) -> None:
        self.check()
        self.alone.check()

    async def _bring_back(self, wanted: Wanted) -> RestoreReport:
        begun = self.clock.monotonic()
        record = await journal.find(self.client, self.work, wanted.stream)
        if record is not None:
            live = await stream_info(self.client, record.stream)
            if live is not None and not record.is_before_replacing and _is_released(live.config, record):
                return await self._finish(record)
            if live is not None and not is_closed(live.config):
                # Made, or opened again from elsewhere, and written to: it is a stream like any other.
                await self._let_go(record)
                record = None
        if record is None:
            record = await self._begin(wanted)
        else:
            identity = await store_identity(self.work.store)
            refuse_another(record, identity, str(wanted.until), str(wanted.line or ""))
            _log.warning("restore.resumed", stream=record.stream, step=record.step)
        if record.is_before_replacing:
            try:
                record, prepared = await self._make_ready(record, wanted)
            except KgentsError:
                if self.alone.is_held:  # else what another may have begun would be taken back
                    await self._undo(record.stream)
                raise
        else:
            prepared = await self._prepare(wanted)
        self.on_plan(prepared)
        report = await self._replace(record, wanted, prepared)
        report.seconds = round(self.clock.monotonic() - begun, 3)
        _log.info(
            "restore.completed",
            stream=report.into,
            last_sequence=report.last_sequence,
            physical=report.physical,
            replayed=report.replayed,
            missing=report.missing,
            seconds=report.seconds,
        )
        return report

    async def undo(self, stream: str) -> str:
        """Take a restore back; what was done, in words.

        Raises:
            RefusedError: None is under way.
            LockedError: Another run changes streams of this server.
            TransientError: Server or store failed; run it again.
        """
        async with self.alone:
            return await self._undo(stream)

    async def _undo(self, stream: str) -> str:
        record = await journal.find(self.client, self.work, stream)
        if record is None:
            raise RefusedError(f"no restore of {stream} is under way", hint="see `kgents-backup status`")
        live = await stream_info(self.client, stream)
        if live is not None and not record.is_before_replacing and not is_closed(live.config):
            await self._let_go(record)
            raise RefusedError(
                f"{stream} is open and takes messages: there is nothing to undo",
                hint=f"the stream as it was is kept as {record.kept}" if record.kept else "see `list`",
            )
        self.alone.check()
        if not record.is_before_replacing and record.kept:
            await keeping.bring_back_kept(self.client, record, check=self.alone.check)
            done = f"{stream} is as it was: {record.messages} messages"
        elif not record.is_before_replacing:
            await self._delete(stream)
            done = f"what was restored of {stream} so far is deleted; there was no stream before"
        else:
            if live is not None and record.config is not None and is_closed(live.config):
                await keeping.open_again(self.client, record)
            done = f"{stream} is open again, as it was"
        if record.kept:
            await self._delete(record.kept)
        await journal.clear(self.work, stream)
        return done

    async def _begin(self, wanted: Wanted) -> RestoreRecord:
        stream = wanted.stream
        live = await stream_info(self.client, stream)
        is_archived_later = live is not None and 0 < (wanted.until.sequence or 0) <= live.last_sequence
        if not is_archived_later:
            await self._prepare(wanted, is_first=True)  # an error here costs no downtime
        if live is not None and not wanted.replace:
            raise RefusedError(
                f"there is a stream {stream} with {live.messages} messages, up to sequence"
                f" {live.last_sequence}",
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
            began_at=self.clock.now().isoformat(),
            owner=self.owner,
            until=str(wanted.until),
            store=await store_identity(self.work.store),
            line=str(wanted.line or ""),
        )
        if live is not None:
            record = with_step(
                record,
                kept=kept_name(stream, token),
                config=live.config,
                consumers=await durable_consumers(self.client, stream),
            )
        await journal.write(self.work, record)
        self.crash.reach("restore.begun")
        return record

    async def _make_ready(self, record: RestoreRecord, wanted: Wanted) -> tuple[RestoreRecord, Prepared]:
        """Fence, archive to the end, plan, keep: until here the stream as it was is only closed."""
        client, stream = self.client, record.stream
        live = await stream_info(client, stream)
        if live is None:
            return record, await self._prepare(wanted)
        if not record.kept:
            raise RefusedError(
                f"a stream {stream} was made since this restore began", hint="run it again with --replace"
            )
        was_closed = record.config is not None and is_closed(record.config)
        if not is_closed(live.config):
            self._check()
            await keeping.fence(client, with_step(record, step=Step.FENCED))
            self.crash.reach("restore.fenced")
        live = await stream_info(client, stream) or live
        record = await journal.write(
            self.work,
            with_step(
                record,
                step=Step.FENCED,
                messages=live.messages,
                first_sequence=live.first_sequence,
                last_sequence=live.last_sequence,
                consumers=await durable_consumers(client, stream),
            ),
        )
        if not was_closed:
            await self._archive_to_the_end(record)
            self.crash.reach("restore.archived")
        prepared = await self._prepare(wanted)
        self._check()
        await keeping.keep(client, record)
        self.crash.reach("restore.kept")
        return await journal.write(self.work, with_step(record, step=Step.KEPT)), prepared

    async def _archive_to_the_end(self, record: RestoreRecord) -> None:
        lease = Lease(self.work.store, f"archive-{record.stream}", owner=self.owner, clock=self.clock)
        await lease.acquire_within(PATIENCE)
        try:

            async def give() -> VerbatimClient:
                return self.client

            archiver = Archiver(
                give,
                self.work,
                record.stream,
                clock=self.clock,
                check=lease.check,
                restore=record,
                crash=self.crash,
            )
            try:
                await archiver.catch_up()
            finally:
                await archiver.close()
        finally:
            await lease.release()
        try:
            await self.upload()
        except StoreError as error:
            _log.warning("restore.not_uploaded", stream=record.stream, error=str(error))

    async def _prepare(self, wanted: Wanted, *, is_first: bool = False) -> Prepared:
        return await prepare(
            self.source,
            wanted.stream,
            wanted.until,
            line=wanted.line,
            fall_back=wanted.fall_back,
            check_files=not is_first,
            progress=self.progress,
        )

    async def _replace(self, record: RestoreRecord, wanted: Wanted, prepared: Prepared) -> RestoreReport:
        client, name = self.client, record.stream
        self._check()
        record = await journal.write(self.work, with_step(record, step=Step.REPLACING))
        self.crash.reach("restore.replacing")
        await self._delete(name)
        self.crash.reach("restore.deleted")
        report = RestoreReport(name, name)
        if record.kept:
            report.live_before, report.live_last = record.messages, record.last_sequence
        report.kept = record.kept
        # Of this run alone: one that is late and does not know it reaches nothing.
        prefix = configurations.fence_prefix(name, secrets.token_hex(4))
        fenced = mark(configurations.fenced(prepared.config, name, prefix, replicas=1), record)
        filling = Filling(self.source, prepared, fenced, prefix, report, self.progress)
        base_end = await self._fill(filling)
        self.crash.reach("restore.filled")
        found = await read_back(
            client,
            self.source,
            prepared,
            name,
            base_end=base_end,
            own_end=report.own_end,
            kept=record.kept,
            progress=self.progress,
        )
        report.missing, report.first_missing, report.digest = (
            found.missing,
            found.first_missing,
            found.digest,
        )
        self.crash.reach("restore.verified")
        _refuse_loss(record, wanted, report)
        self._check()
        filled = filled_of(
            await refuse_another_filling(
                client, fenced, messages=report.messages, last_sequence=report.last_sequence
            )
        )
        record = await journal.write(self.work, with_step(record, step=Step.FILLED, filled=filled))
        if prepared.manifest is None:
            stood = await self._stood(record, prepared)
            await make_consumers(client, name, stood, last=report.own_end)
        final = configurations.final(prepared.config, name, replicas=wanted.replicas)
        opened = with_lineage(final, record.token, prepared.ancestors)
        try:
            await release(client, filling, opened, check=self._check)
        except ProtocolError:
            live = await stream_info(client, name)
            if live is not None and not is_closed(live.config):
                await self._let_go(record)  # another's, or emptied: the next run begins anew
            raise
        self.crash.reach("restore.released")
        await self._let_go(record)
        report.notes += prepared.notes
        return report

    async def _fill(self, filling: Filling) -> int:
        if self.beside is not None:
            base_end = await fill_beside(self.client, filling, self.beside)
            if base_end is not None:
                return base_end
        return await fill(self.client, filling)

    async def _finish(self, record: RestoreRecord) -> RestoreReport:
        """A restore that was interrupted after the stream was opened.

        Raises:
            ProtocolError: Another stream is open instead; the next run begins anew.
        """
        if record.filled is not None:
            try:
                await refuse_another_stream(
                    self.client, record.stream, record.filled, token=record.token, is_fresh=False
                )
            except ProtocolError:
                await self._let_go(record)
                raise
        info = await stream_info(self.client, record.stream)
        report = RestoreReport(record.stream, record.stream, kept=record.kept)
        if info is not None:
            report.messages, report.last_sequence = info.messages, info.last_sequence
        report.notes.append("it was complete, and open, when it was interrupted")
        await self._let_go(record)
        return report

    async def _let_go(self, record: RestoreRecord) -> None:
        if record.kept:
            await journal.unmark_kept(self.client, record.kept)
        await journal.clear(self.work, record.stream)

    async def _stood(self, record: RestoreRecord, prepared: Prepared) -> list[Any]:
        """Where consumers stood, as the stream as it was or the last segment of the plan tells."""
        if not prepared.plan.segments:
            return []
        header, _ = await self.source.read_segment(prepared.plan.segments[-1])
        return header.consumers or record.consumers

    async def _delete(self, name: str) -> None:
        if await stream_info(self.client, name) is not None:
            await request(self.client, f"STREAM.DELETE.{name}", timeout_seconds=60)


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


def _is_released(config: dict[str, Any], record: RestoreRecord) -> bool:
    lineage = read_lineage(config)
    return lineage is not None and lineage.token == record.token and not is_closed(config)
