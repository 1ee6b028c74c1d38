"""The spool as a service uses it: never blocks the event loop, and syncs once for many messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from kgents_common.errors import NotDurableError, TransientError
from kgents_common.publisher.spool_file import Kept, SpoolFile, Waiting

T = TypeVar("T")


class SpoolFullError(NotDurableError):
    """The spool holds as much as it may."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """The spool's word that a message is on this disk and will be published.

    Attributes:
        duplicate: The spool already held this identity.
    """

    duplicate: bool


class Spool:
    """Messages on this disk that the stream does not hold yet, or is not known to hold.

    Args:
        directory: Its own; made where it is not there.
        max_bytes: More than this is refused.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._file: SpoolFile | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._queue: list[tuple[list[Kept], asyncio.Future[list[bool]]]] = []
        self._writer: asyncio.Task[None] | None = None
        self.depth = 0
        self.bytes = 0
        self.refused = 0
        # Whether it had no room for something, and nothing has left it since.
        self.is_full = False

    async def start(self) -> None:
        """Open it.

        Raises:
            ConfigurationError: It cannot be used, or is another process's.
        """
        self._file = await self._run(lambda: SpoolFile(self._directory))
        totals = await self._run(self._opened.totals)
        self.depth, self.bytes, self.refused = totals.waiting, totals.bytes, totals.refused

    async def stop(self) -> None:
        """Finish what is being written, and close it."""
        if self._writer is not None:
            await asyncio.wait({self._writer})
        if self._file is not None:
            await self._run(self._file.close)
        self._thread.shutdown(wait=False)

    async def append(self, messages: Sequence[Kept]) -> list[Spooled]:
        """Keep all of the messages, or none.

        Raises:
            SpoolFullError: There is no room.
            NotDurableError: The disk does not take them.
        """
        size = sum(kept.bytes for kept in messages)
        if self.bytes + size > self._max_bytes:
            self.is_full = True
            raise SpoolFullError("the spool is full")
        # Counted before it is written: whoever looks at the depth must know of what is on its way.
        self.depth += len(messages)
        self.bytes += size
        written: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        self._queue.append((list(messages), written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="spool.write")
        # Whoever waits may go away; the messages are kept all the same.
        return [Spooled(duplicate=not is_new) for is_new in await asyncio.shield(written)]

    async def first(self, limit: int, max_bytes: int) -> list[Waiting]:
        """The oldest messages: at most so many, and no more once they are so large.

        Raises:
            TransientError: The disk does not give them.
        """
        return await self._run(lambda: self._opened.first(limit, max_bytes))

    async def note_sent(self, messages: Sequence[Waiting], at: datetime) -> None:
        """Remember, before they are sent, that the stream may hold these from now on."""
        numbers = [message.n for message in messages if message.sent_at is None]
        if numbers:
            await self._run(lambda: self._opened.note_sent(numbers, at))

    async def remove(self, messages: Sequence[Waiting]) -> None:
        """Forget messages that the stream holds."""
        if messages:
            await self._run(lambda: self._opened.remove([message.n for message in messages]))
            self.depth -= len(messages)
            self.bytes -= sum(message.bytes for message in messages)
            self.is_full = False

    async def refuse(self, message: Waiting, reason: str) -> None:
        """Set aside, and keep, a message that the stream can never take."""
        await self._run(lambda: self._opened.refuse(message.n, reason))
        self.depth -= 1
        self.refused += 1

    async def shrink(self) -> None:
        """Give the disk back what is not needed any more."""
        await self._run(self._opened.shrink)

    @property
    def _opened(self) -> SpoolFile:
        if self._file is None:
            raise TransientError("the spool is not open")
        return self._file

    async def _write(self) -> None:
        while self._queue:
            taken, self._queue = self._queue, []
            groups = [group for group, _ in taken]
            try:
                answers = await self._run(lambda groups=groups: self._opened.append(groups))  # type: ignore[misc]
            except Exception as error:  # every caller hears of it
                for group, written in taken:
                    self._uncount(group)
                    written.set_exception(error)
                continue
            for (group, written), are_new in zip(taken, answers, strict=True):
                self._uncount([kept for kept, is_new in zip(group, are_new, strict=True) if not is_new])
                written.set_result(are_new)

    def _uncount(self, messages: Sequence[Kept]) -> None:
        self.depth -= len(messages)
        self.bytes -= sum(kept.bytes for kept in messages)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
