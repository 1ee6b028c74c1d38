"""The timers of the running service: archives that never end, and a run a day; nothing is decided here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, time, timedelta
from typing import Any

import structlog

from kgents_backup.model.faults import LockedError
from kgents_backup.operations.archiving import Archiver
from kgents_backup.operations.daily import DailyRun
from kgents_backup.sinks.store import Lease
from kgents_common.cancelling import cancelled
from kgents_common.clock import Clock
from kgents_common.errors import KgentsError
from kgents_common.health import Check, Status
from kgents_common.retry import Patience
from kgents_common.watchdog import StallMetrics

# A run that was missed (the service was down at 02:00) is made up for once the newest snapshot is this old.
OVERDUE = timedelta(hours=25)
RETRY = timedelta(minutes=10)
STANDBY_SECONDS = 10.0
# How much longer than a segment's time an archive may store nothing: with segments of five seconds, ten.
SILENCE_SECONDS = 5.0
RESTART_SECONDS = 15.0
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

    async def restart(self) -> None:
        """Stop, and begin again."""
        await self.stop()
        await self.start()

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


class ArchiveWatch:
    """Begins an archive anew that has the lock and does not move on, and says so.

    Args:
        every: How often a segment is written.
    """

    def __init__(
        self,
        archiver: Archiver,
        loop: Loop,
        name: str,
        *,
        every: timedelta,
        clock: Clock,
        metrics: StallMetrics,
    ) -> None:
        self._state = archiver.state
        self._loop = loop
        self._name = name
        self._limit = every.total_seconds() + SILENCE_SECONDS
        self._clock = clock
        self._metrics = metrics
        metrics.stalled.labels(name)
        metrics.restarts.labels(name)

    @property
    def stalled_seconds(self) -> float:
        """How long nothing was stored though this process archives; 0 where something was lately."""
        if not self._state.held_at or self._state.is_restoring:
            return 0.0
        silent = self._clock.now().timestamp() - max(self._state.held_at, self._state.stored_at)
        return silent if silent > self._limit else 0.0

    def check(self) -> Check:
        """For readiness: it archives and moves on, or stands by."""
        if self._state.is_restoring:
            return Check(Status.DEGRADED, "the stream is being restored")
        if not self._state.held_at:
            return Check(Status.DEGRADED, "stands by: another instance has the lock, or it is not to be had")
        stalled = self.stalled_seconds
        if stalled:
            return Check(Status.DOWN, f"has stored nothing for {stalled:.0f} s")
        return Check(Status.OK, f"{self._state.pending} messages behind")

    async def run(self) -> None:
        """Look every second; for ever."""
        while True:
            stalled = self.stalled_seconds
            self._metrics.stalled.labels(self._name).set(stalled)
            if stalled:
                _log.error("archive.stalled", archive=self._name, seconds=round(stalled, 1))
                self._metrics.restarts.labels(self._name).inc()
                await self._loop.restart()
                await asyncio.sleep(RESTART_SECONDS)
            await asyncio.sleep(1)


async def archive(archiver: Archiver, lease: Lease, clock: Clock) -> None:
    """Archive one stream while holding its lock.

    Raises:
        LockedError: Another process archives it: the caller stands by and tries again.
    """
    await lease.acquire()
    archiver.state.held_at = clock.now().timestamp()
    try:
        await archiver.run()
    finally:
        archiver.state.held_at = 0.0
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
