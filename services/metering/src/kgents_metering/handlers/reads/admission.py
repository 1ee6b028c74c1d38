"""Who reads now and who waits: so many reads of a tenant at once, and none for a caller who has gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive


class BusyError(Exception):
    """The tenant has as many reads under way and waiting as it may."""


class GoneError(Exception):
    """The caller went before it had its answer."""


@dataclass(slots=True)
class _Line:
    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Admission:
    """Places for reads.

    Args:
        running_per_tenant: Reads of one tenant at once; fewer than there are connections.
        waiting_per_tenant: Of those that find no place, how many wait.
        seconds: How long a read may take from its place to its last byte.
        wait_seconds: How long a read may wait for its place.
    """

    def __init__(
        self,
        *,
        running_per_tenant: int = 2,
        waiting_per_tenant: int = 32,
        seconds: float = 60,
        wait_seconds: float = 15,
    ) -> None:
        self.seconds = seconds
        self._wait_seconds = wait_seconds
        self._running_per_tenant = running_per_tenant
        self._waiting_per_tenant = waiting_per_tenant
        self._lines: dict[str, _Line] = {}

    @property
    def running(self) -> int:
        """Reads under way."""
        return sum(line.running for line in self._lines.values())

    @property
    def waiting(self) -> int:
        """Reads that wait for a place."""
        return sum(len(line.waiting) for line in self._lines.values())

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """A place, in the order of asking.

        Raises:
            BusyError: Too many wait already, or it waited too long.
        """
        line = self._lines.setdefault(tenant, _Line())
        if line.running >= self._running_per_tenant:
            await self._wait(line)  # the place is handed over: `running` counts it already
        else:
            line.running += 1
        try:
            yield
        finally:
            self._leave(tenant, line)

    async def _wait(self, line: _Line) -> None:
        if len(line.waiting) >= self._waiting_per_tenant:
            raise BusyError
        place = asyncio.get_running_loop().create_future()
        line.waiting.append(place)
        try:
            await asyncio.wait_for(asyncio.shield(place), self._wait_seconds)
        except BaseException as error:
            if place.done():
                self._hand_on(line)
            else:
                line.waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise BusyError from None
            raise

    def _leave(self, tenant: str, line: _Line) -> None:
        self._hand_on(line)
        if not line.running and not line.waiting:
            self._lines.pop(tenant, None)

    def _hand_on(self, line: _Line) -> None:
        if line.waiting:
            line.waiting.popleft().set_result(None)
        else:
            line.running -= 1


async def while_caller_waits(receive: Receive, work: Callable[[], Awaitable[Any]]) -> Any:
    """What `work` gives; it is cancelled where the caller goes meanwhile. The request's body must be read.

    Raises:
        GoneError: The caller went.
    """
    gone = asyncio.create_task(_disconnected(receive))
    working = asyncio.ensure_future(work())
    try:
        await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise GoneError
    finally:
        gone.cancel()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await working


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
