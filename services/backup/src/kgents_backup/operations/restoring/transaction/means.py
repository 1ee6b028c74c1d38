"""What a restore is asked for, and what it works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from kgents_backup.model.keys import Line
from kgents_backup.model.plan import Until
from kgents_backup.model.ports import NoProgress, Progress
from kgents_backup.model.restoration import RestoreRecord
from kgents_backup.operations.restoring import journal
from kgents_backup.operations.restoring.preparing import Prepared, prepare
from kgents_backup.sinks.ownership import Ownership
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.stream import stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import Clock
from kgents_common.crash import CrashPoints
from kgents_common.streams import request


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
class Means:
    """Everything a restore of a live system needs.

    Attributes:
        work: Where the archive's end and the record of the restore are written.
        source: Where is read from; may be several stores seen as one.
        upload: Has what `work` holds copied to the other store.
        check: Raises where the lock `run` was lost.
        beside: Where a server of our own may keep its files for a while, to bring many messages as files;
            None to store each one in the live server.
        on_plan: Told what is about to be done, before anything is deleted.
        alone: The server's streams are changed by one run at a time: held around all that changes them.
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
        """Make what is held around each change; it is not held yet."""
        object.__setattr__(self, "alone", Ownership(self.client, self.owner, self.clock))

    def check_both(self) -> None:
        """Raise where another may be at work.

        Raises:
            LockedError: The store's lock or the server's lease was lost.
        """
        self.check()
        self.alone.check()

    async def prepare(self, wanted: Wanted, *, is_first: bool = False) -> Prepared:
        """Plan, with every file of the plan read and found good.

        Args:
            is_first: Only look whether the store leads there: files are checked later, once nothing comes
                any more.

        Raises:
            UnrecoverableError, CorruptError, StoreError: The store does not lead there.
        """
        return await prepare(
            self.source,
            wanted.stream,
            wanted.until,
            line=wanted.line,
            fall_back=wanted.fall_back,
            check_files=not is_first,
            progress=self.progress,
        )

    async def delete(self, name: str) -> None:
        """Delete a stream, where it is there.

        Raises:
            LockedError: The lease was lost: it may be another's by now.
        """
        if await stream_info(self.client, name) is not None:
            self.alone.check()
            await request(self.client, f"STREAM.DELETE.{name}", timeout_seconds=60)

    async def let_go(self, record: RestoreRecord) -> None:
        """The restore is over; the copy of the stream as it was stays."""
        if record.kept:
            await journal.unmark_kept(self.client, record.kept)
        await journal.clear(self.work, record.stream)
