"""The timers of the running service: archives that never end, and a run a day; nothing is decided here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, time, timedelta
from typing import Any

import structlog

from kgents_backup.cancelling import cancelled
from kgents_backup.model.faults import LockedError
from kgents_backup.operations.archiving import Archiver
from kgents_backup.operations.daily import DailyRun
from kgents_backup.sinks.store import Lease
from kgents_common.clock import Clock
from kgents_common.errors import KgentsError
from kgents_common.retry import Patience

# A run that was missed (the service was down at 02:00) is made up for once the newest snapshot is this old.
OVERDUE = timedelta(hours=25)
RETRY = timedelta(minutes=10)
STANDBY_SECONDS = 10.0
FIRST_WAIT = timedelta(seconds=2)
LONGEST_WAIT = timedelta(seconds=10)

_log = structlog.get_logger()


class Loop:
    """A part that runs a coroutine from start to stop; one that ends by an error is begun again."""

    def __init__(self, name: str, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._name = name
        self._body = body
        self._patience = Patience(f"backup.{name}", first=FIRST_WAIT, longest=LONGEST_WAIT)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Cancel, and wait for the end."""
        await cancelled(self._task)

    async def _run(self) -> None:
        while True:
            try:
                await self._body()
            except KgentsError as error:
                await self._patience.wait(error)
            except Exception as error:
                _log.exception("loop.failed", loop=self._name)
                await self._patience.wait(error)
            else:
                self._patience.progressed()
                await asyncio.sleep(STANDBY_SECONDS)


async def archive(archiver: Archiver, lease: Lease) -> None:
    """Archive one stream while holding its lock.

    Raises:
        LockedError: Another process archives it: the caller stands by and tries again.
    """
    await lease.acquire()
    try:
        await archiver.run()
    finally:
        async with asyncio.timeout(10):
            await archiver.close()
        await lease.release()


async def daily(
    run: DailyRun, *, at: time | None, clock: Clock, newest: Callable[[], Awaitable[datetime | None]]
) -> None:
    """Run once a day, and at once where a run is overdue; for ever.

    Args:
        at: UTC; None where another clock runs it, and only what that one missed is made up for.
    """
    while True:
        last = await newest()
        now = clock.now()
        if last is not None and now - last < OVERDUE:
            due = next_run(now, at) if at is not None else last + OVERDUE
            await asyncio.sleep(min((due - now).total_seconds(), 3600))
            if at is None or clock.now() < due:
                continue
        try:
            outcome = await run.run()
            if not outcome.snapshots:
                await asyncio.sleep(RETRY.total_seconds())
        except LockedError as error:
            _log.info("daily.another_run", error=str(error))
            await asyncio.sleep(RETRY.total_seconds())


def next_run(now: datetime, at: time) -> datetime:
    """The next moment at this time of day (UTC), after `now`."""
    today = now.replace(hour=at.hour, minute=at.minute, second=at.second, microsecond=0)
    return today if today > now else today + timedelta(days=1)
