"""The transaction, from whichever step it was left at."""

from __future__ import annotations

import structlog

from kgents_backup.model.restoration import is_closed
from kgents_backup.operations.restoring import journal
from kgents_backup.operations.restoring.reporting import RestoreReport
from kgents_backup.operations.restoring.resuming import refuse_another, store_identity
from kgents_backup.operations.restoring.transaction.closing import begin, make_ready
from kgents_backup.operations.restoring.transaction.means import Means, Wanted
from kgents_backup.operations.restoring.transaction.replacing import finish, is_released, replace
from kgents_backup.operations.restoring.transaction.undoing import take_back
from kgents_backup.sources.stream import stream_info
from kgents_common.errors import KgentsError

_log = structlog.get_logger()


class Restoration(Means):
    """Restores streams of a live system, and takes restores back."""

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

    async def undo(self, stream: str) -> str:
        """Take a restore back; what was done, in words.

        Raises:
            RefusedError: None is under way.
            LockedError: Another run changes streams of this server.
            TransientError: Server or store failed; run it again.
        """
        async with self.alone:
            return await take_back(self, stream)

    async def _bring_back(self, wanted: Wanted) -> RestoreReport:
        begun = self.clock.monotonic()
        record = await journal.find(self.client, self.work, wanted.stream)
        if record is not None:
            live = await stream_info(self.client, record.stream)
            if live is not None and not record.is_before_replacing and is_released(live.config, record):
                return await finish(self, record)
            if live is not None and not is_closed(live.config):
                # Made, or opened again from elsewhere, and written to: it is a stream like any other.
                await self.let_go(record)
                record = None
        if record is None:
            record = await begin(self, wanted)
        else:
            identity = await store_identity(self.work.store)
            refuse_another(record, identity, str(wanted.until), str(wanted.line or ""))
            _log.warning("restore.resumed", stream=record.stream, step=record.step)
        if record.is_before_replacing:
            try:
                record, prepared = await make_ready(self, record, wanted)
            except KgentsError:
                if self.alone.is_held:  # else what another may have begun would be taken back
                    await take_back(self, record.stream)
                raise
        else:
            prepared = await self.prepare(wanted)
        self.on_plan(prepared)
        report = await replace(self, record, wanted, prepared)
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
