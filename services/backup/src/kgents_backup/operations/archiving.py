"""Archiving a stream continuously: segments of a few seconds or MiB, tiled without hole or repeat.

Where to go on is derived from the stored segments alone: what was read and not stored is read again after a
restart, what was stored is not. Nothing is acknowledged to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from kgents_backup.model import moments, segment
from kgents_backup.model.documents import FORMAT, LineRecord
from kgents_backup.model.faults import RestoringError
from kgents_backup.model.keys import Line, SegmentName, line_key
from kgents_backup.model.restoration import RestoreRecord, is_closed, read_lineage
from kgents_backup.model.segment import Message
from kgents_backup.operations.lines import current_line
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.messages import MessageReader
from kgents_backup.sources.stream import StreamInfo, durable_consumers, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import Clock
from kgents_common.crash import CrashPoints
from kgents_common.errors import KgentsError, PermanentError
from kgents_common.retry import Patience

# The archive's lag is what a disaster costs: it waits no longer than a segment does.
LONGEST_WAIT = timedelta(seconds=5)

LOOK_SECONDS = 1.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ArchivePolicy:
    """When a segment is closed: after so long, or so many bytes of messages."""

    every: timedelta = timedelta(seconds=5)
    segment_bytes: int = 4 * 1024 * 1024
    retry: timedelta = timedelta(seconds=0.5)


@dataclass(slots=True)
class ArchiveState:
    """What an archiver last knew.

    Attributes:
        position: The last sequence that is stored.
        pending: Messages of the stream that are not.
        lag_seconds: How old the oldest message of the last segment was when it was stored: the RPO.
        stored_at: Unix seconds of the last time it was known to be caught up or moved on; 0 for never.
        held_at: Unix seconds since when this process has the stream's lock; 0 while it has not.
    """

    line: Line | None = None
    position: int = 0
    pending: int = 0
    lag_seconds: float = 0.0
    stored_at: float = 0.0
    held_at: float = 0.0
    segments: int = 0
    messages: int = 0
    is_restoring: bool = False


class Archiver:
    """Archives one stream into one vault.

    Args:
        client: Gives the connected client, or raises TransientError while there is none.
        check: Asked before each segment is written; raises where the lock was lost.
        on_segment: Told of each stored segment, e.g. to upload it.
        restore: The restore on whose behalf the closed stream is archived; without it such a stream is
            left alone.
    """

    def __init__(
        self,
        client: Callable[[], Awaitable[VerbatimClient]],
        vault: Vault,
        stream: str,
        *,
        clock: Clock,
        policy: ArchivePolicy | None = None,
        check: Callable[[], None] = lambda: None,
        on_segment: Callable[[SegmentName, float], None] = lambda _name, _lag: None,
        restore: RestoreRecord | None = None,
        crash: CrashPoints | None = None,
    ) -> None:
        self._restore = restore
        self._client = client
        self._vault = vault
        self._stream = stream
        self._clock = clock
        self._policy = policy or ArchivePolicy()
        self._check = check
        self._on_segment = on_segment
        self._crash = crash or CrashPoints(None)
        self._waiting = Patience("backup.archiver", first=self._policy.retry, longest=LONGEST_WAIT)
        self._reader: MessageReader | None = None
        self._held: list[Message] = []
        self._held_bytes = 0
        self._held_since = 0.0
        self._next = 1
        self._looked_at = float("-inf")
        self.state = ArchiveState()

    async def run(self) -> None:
        """Archive for ever; every error but a lost lock is logged and tried again.

        Raises:
            LockedError: The lock was lost.
            RestoringError: The stream is being restored; what was read is stored.
        """
        while True:
            try:
                await self.step()
            except RestoringError:
                self.state.is_restoring = True
                raise
            except KgentsError as error:
                self._check()
                self._forget()
                await self._waiting.wait(error)
            else:
                self._waiting.progressed()

    async def step(self, *, is_waiting: bool = True) -> None:
        """Read what there is, for at most a second, and store a segment where one is due.

        Args:
            is_waiting: Off, what is not there now is not waited for.

        Raises:
            KgentsError: The stream, the server or the store failed; `run` begins anew at what is stored.
        """
        client = await self._client()
        await self._look(client)
        if self._reader is None or not self._reader.is_open:
            await self.flush()
            await self._begin(client)
        assert self._reader is not None  # noqa: S101 `_begin` made it
        # Never less than two of the largest messages: a smaller batch could give none at all.
        room = max(2 * client.max_payload, self._policy.segment_bytes - self._held_bytes)
        messages = await self._reader.batch(
            limit_bytes=room, wait_seconds=self._patience() if is_waiting else None
        )
        if messages and not self._held:
            self._held_since = self._clock.monotonic()
        self._held += messages
        self._held_bytes += sum(m.size for m in messages)
        self.state.pending = (self._reader.pending or 0) + len(self._held)
        if self._is_due():
            await self.flush()
        elif not self._held and self._reader.is_open:
            self.state.stored_at = self._clock.now().timestamp()
            self.state.lag_seconds = 0.0

    async def catch_up(self) -> int:
        """Archive everything the stream holds now, then return; the last sequence stored.

        Raises:
            KgentsError: As `step`.
        """
        info = await stream_info(await self._client(), self._stream)
        is_waiting, reached = False, 0
        while info is not None:
            await self.step(is_waiting=is_waiting)
            before, reached = reached, self._reader.next_sequence if self._reader else 0
            is_waiting = reached == before  # only a server that is slow is worth waiting for
            if self._next > info.last_sequence:
                break
            if self._reader is not None and self._reader.pending == 0:
                if await self._reader.is_only_gaps(info.last_sequence):
                    break
                await self._reader.close()  # it stands on a follower that lacks what is to come
        await self.flush()
        return self.state.position

    async def flush(self) -> None:
        """Store what was read, if anything.

        Raises:
            StoreError: It is not stored; it stays held.
            LockedError: The lock was lost.
        """
        if not self._held or self.state.line is None:
            return
        client = await self._client()
        info = await stream_info(client, self._stream)
        is_same = info is not None and Line.of(info.created).created == self.state.line.created
        name, data = await asyncio.to_thread(
            segment.encode,
            self._stream,
            self.state.line,
            self._next,
            self._held,
            stream_first=info.first_sequence if info and is_same else 0,
            written_at=self._clock.now().isoformat(),
            consumers=await durable_consumers(client, self._stream) if is_same else (),
        )
        self._check()
        self._crash.reach("archive.before_segment")
        await self._vault.write_segment(name, data)
        await self._vault.write_head(name)
        self._crash.reach("archive.after_segment")
        now = self._clock.now()
        self.state.lag_seconds = max(0.0, (moments.of(now) - self._held[0].time) / moments.NANOSECONDS)
        self.state.stored_at = now.timestamp()
        self.state.position = name.last
        self.state.segments += 1
        self.state.messages += len(self._held)
        self.state.pending = (self._reader.pending or 0) if self._reader else 0
        self._next = name.last + 1
        self._held, self._held_bytes = [], 0
        self._on_segment(name, self.state.lag_seconds)

    async def close(self) -> None:
        """Store what is held and let go of the consumer, as far as possible."""
        with contextlib.suppress(KgentsError):
            await self.flush()
        if self._reader is not None:
            await self._reader.close()
        self._forget()

    async def _begin(self, client: VerbatimClient) -> None:
        info = await stream_info(client, self._stream)
        if info is None:
            raise PermanentError(
                f"there is no stream {self._stream}", hint="apply the streams, or restore it"
            )
        self._refuse_closed(info)
        catalogue = await self._vault.catalogue(self._stream)
        line = await current_line(client, catalogue, info)
        files = catalogue.of(line)
        if not files.segments:
            await self._open_line(line, info)
        self._next = files.archived_to + 1 if files.segments else info.first_sequence
        self.state.line = line
        self.state.position = self._next - 1
        self._reader = MessageReader(client, self._stream, start=self._next)
        await self._reader.open()
        _log.info("archive.begun", stream=self._stream, line=str(line), next_sequence=self._next)

    async def _look(self, client: VerbatimClient) -> None:
        """Once a second: a stream that is being restored is left alone, after what was read is stored."""
        now = self._clock.monotonic()
        if self._restore is not None or now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        info = await stream_info(client, self._stream)
        if info is not None and is_closed(info.config):
            await self.flush()
            self._refuse_closed(info)
        self.state.is_restoring = False

    def _refuse_closed(self, info: StreamInfo) -> None:
        if self._restore is None and is_closed(info.config):
            self._forget()
            raise RestoringError(
                f"{self._stream} is being restored", hint="`kgents-backup status` shows how far it is"
            )

    async def _open_line(self, line: Line, info: StreamInfo) -> None:
        lineage = read_lineage(info.config)
        record = LineRecord(
            format=FORMAT,
            stream=self._stream,
            line=str(line),
            created=info.created,
            opened_at=self._clock.now().isoformat(),
            first_sequence=info.first_sequence,
            # What holds behind a fence is not the stream's own.
            config=(self._restore.config if self._restore else None) or info.config,
            ancestors=lineage.ancestors if lineage else [],
        )
        if await self._vault.line(self._stream, line) is None:
            self._check()
            await self._vault.write_document(line_key(self._stream, line), record)

    def _is_due(self) -> bool:
        if not self._held:
            return False
        age = self._clock.monotonic() - self._held_since
        return self._held_bytes >= self._policy.segment_bytes or age >= self._policy.every.total_seconds()

    def _patience(self) -> float:
        if not self._held:
            return min(1.0, self._policy.every.total_seconds())
        left = self._policy.every.total_seconds() - (self._clock.monotonic() - self._held_since)
        return min(1.0, max(0.05, left))

    def _forget(self) -> None:
        self._reader = None
        self._held, self._held_bytes = [], 0
