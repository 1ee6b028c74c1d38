"""One open live stream: what is written to one client, and when it ends; who may open one is not its matter.

A client has no buffer: it has a place in its tenant's tail. One that falls out of the tail, or begins before
it, reads for itself, no faster than it takes what it is given, until the tail covers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge
from starlette.types import Receive, Send

from kgents_api.model import live
from kgents_api.model.live import EventLog, Frame, Place, PositionLostError, Tail, TypeFilter
from kgents_common.errors import TransientError

RETRY_SECONDS = 3.0
CHUNK_BYTES = 64 * 1024
ASK_AGAIN_SECONDS = 1.0


class LiveMetrics:
    """The live streams' metrics; every label has few values."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.clients = Gauge("kgents_api_live_clients", "Open live streams", registry=registry)
        self.catching_up = Gauge(
            "kgents_api_live_clients_catching_up",
            "Live streams with a reader of their own",
            registry=registry,
        )
        self.sent = Counter(
            "kgents_api_live_events_sent_total", "Events written to clients", registry=registry
        )
        self.ended = Counter(
            "kgents_api_live_streams_ended_total", "Live streams ended, by why", ["reason"], registry=registry
        )
        for reason in ("left", "stalled", "revoked", "drained", "position_lost", "failed"):
            self.ended.labels(reason)


class Client:
    """A client from its first byte to its last.

    Args:
        turns: The lines to stand in before reading for itself.
        may_stay: Whether its credentials are still good; asked with every heartbeat.
    """

    def __init__(
        self,
        send: Send,
        *,
        tenant: str,
        wanted: TypeFilter,
        log: EventLog,
        turns: Sequence[asyncio.Semaphore],
        may_stay: Callable[[], Awaitable[bool]],
        metrics: LiveMetrics,
        heartbeat_seconds: float,
    ) -> None:
        self.finished = asyncio.Event()
        self._send_message = send
        self._tenant = tenant
        self._wanted = wanted
        self._log = log
        self._turns = turns
        self._may_stay = may_stay
        self._metrics = metrics
        self._every = heartbeat_seconds
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._due = loop.time() + heartbeat_seconds
        self._ending: asyncio.Future[str] = loop.create_future()
        self._position = 0
        self._time = 0
        self._announced = 0
        self._is_sending = False

    def end(self, reason: str) -> None:
        """Ask the stream to end after what is being sent."""
        if not self._ending.done():
            self._ending.set_result(reason)

    async def serve(self, tail: Tail, place: Place, gap: bytes, receive: Receive) -> str:
        """Send what comes after `place` until one side ends it; why it ended.

        Args:
            gap: What to say first about what cannot be had.
        """
        writing = asyncio.create_task(self._write(tail, place, gap), name="live.write")
        leaving = asyncio.create_task(self._until_gone(receive), name="live.leave")
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                return writing.result()
            return leaving.result()
        finally:
            self.finished.set()
            await _cancelled(writing)
            await _cancelled(leaving)

    async def _until_gone(self, receive: Receive) -> str:
        while (await receive())["type"] != "http.disconnect":
            pass
        # uvicorn wakes this before the send that waited for the client.
        return "stalled" if self._is_sending else "left"

    async def _write(self, tail: Tail, place: Place, gap: bytes) -> str:
        self._position = self._announced = place.sequence
        self._time = place.time
        retry_seconds = RETRY_SECONDS * random.uniform(0.5, 1.5)
        await self._send(live.opening(place, retry_seconds) + gap)
        while not self._ending.done() and tail.ended is None:
            if not tail.covers(self._position):
                await self._catch_up(tail)
            elif frames := tail.since(self._position):
                await self._send_frames(frames)
                await self._beat_if_due()
            else:
                await self._until(tail.changed)
        await self._send(b"", is_last=True)
        return self._ending.result() if self._ending.done() else str(tail.ended)

    async def _catch_up(self, tail: Tail) -> None:
        """Read for itself until the tail covers its position, or nothing more is stored."""
        async with contextlib.AsyncExitStack() as standing:
            for turn in self._turns:
                if not await standing.enter_async_context(self._turn(turn)):
                    return
            try:
                bounds = await self._log.bounds(self._tenant)
            except TransientError:
                await self._until(None, seconds=ASK_AGAIN_SECONDS)
                return
            if bounds.stream != tail.stream:
                self.end("position_lost")
                return
            self._metrics.catching_up.inc()
            standing.callback(self._metrics.catching_up.dec)
            reader = self._log.reader(self._tenant, self._position, tail.stream)
            standing.push_async_callback(reader.close)
            while self._position < bounds.newest and not tail.covers(self._position):
                reading = asyncio.create_task(reader.next(), name="live.catch_up")
                try:
                    if not await self._until(reading):
                        return
                    await self._send_frames(reading.result())
                except PositionLostError:
                    self.end("position_lost")
                    return
                finally:
                    await _cancelled(reading)
            # Beyond its newest event the tenant has nothing up to the stream's end as it was then.
            if not tail.covers(self._position) and bounds.last > self._position:
                self._position, self._time = bounds.last, bounds.last_time

    @asynccontextmanager
    async def _turn(self, line: asyncio.Semaphore) -> AsyncIterator[bool]:
        """A place in the line; False where the stream is to end before it has one."""
        waiting = asyncio.create_task(line.acquire(), name="live.turn")
        try:
            yield await self._until(waiting)
        finally:
            await _cancelled(waiting)
            if not waiting.cancelled():
                line.release()

    async def _until(self, change: asyncio.Future[Any] | None, *, seconds: float = float("inf")) -> bool:
        """Until the change or for so long, with heartbeats; False where the stream is to end."""
        deadline = self._now() + seconds
        waited: set[asyncio.Future[Any]] = {self._ending} if change is None else {self._ending, change}
        while not self._ending.done():
            timeout = max(0.0, min(self._due, deadline) - self._now())
            done, _ = await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if change in done or self._now() >= deadline:
                break
            await self._beat_if_due()
        return not self._ending.done()

    async def _beat_if_due(self) -> None:
        if self._now() < self._due:
            return
        self._due = self._now() + self._every
        if not await self._may_stay():
            self.end("revoked")
            return
        moved = Place(self._position, self._time) if self._position > self._announced else None
        self._announced = self._position
        await self._send(live.heartbeat(moved))

    async def _send_frames(self, frames: Sequence[Frame]) -> None:
        texts: list[bytes] = []
        size = 0
        for item in frames:
            if self._wanted.wants(item.type):
                texts.append(item.text)
                size += len(item.text)
                self._announced = item.sequence
            if size >= CHUNK_BYTES:
                await self._send_texts(texts)
                texts, size = [], 0
        if texts:
            await self._send_texts(texts)
        self._position, self._time = frames[-1].sequence, frames[-1].time

    async def _send_texts(self, texts: list[bytes]) -> None:
        await self._send(b"".join(texts))
        self._metrics.sent.inc(len(texts))

    async def _send(self, text: bytes, *, is_last: bool = False) -> None:
        self._is_sending = True
        await self._send_message({"type": "http.response.body", "body": text, "more_body": not is_last})
        self._is_sending = False


async def _cancelled(running: asyncio.Task[Any]) -> None:
    """End a task of ours and wait for its end; what it raised was asked for before, or nobody needs it."""
    running.cancel()
    await asyncio.wait({running})
    if not running.cancelled():
        running.exception()
