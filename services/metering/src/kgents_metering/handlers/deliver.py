"""The timer that pays the outbox: what is due goes to OpenMeter in batches, a few at once, by one process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

import structlog
from opentelemetry.trace import SpanKind, Tracer
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.cancelling import cancelled
from kgents_common.clock import Clock
from kgents_common.crash import CrashPoints
from kgents_common.errors import TransientError
from kgents_common.resilience import CircuitBreaker, CircuitOpenError, CircuitState
from kgents_common.retry import Patience
from kgents_common.telemetry import context_from_headers, exemplar, inject_headers, link_from_headers
from kgents_common.telemetry.traces import MAX_LINKS
from kgents_metering.metrics import Metrics
from kgents_metering.model.delivery import (
    LONGEST_BACKOFF,
    MAX_BATCH_EVENTS,
    PAUSE,
    Answer,
    Verdict,
    backoff,
    halves,
    is_away,
    is_suspect,
    judge,
    must_verify,
    split,
)
from kgents_metering.model.wire import Owed
from kgents_metering.sinks.ledger.outbox import LostLeadershipError, Outbox

IDLE_SECONDS = 0.25
LEAD_SECONDS = 1.0
DEPTH_SECONDS = 2.0
# What an event adds to a batch beyond its data: attributes, identity, punctuation.
ENVELOPE_BYTES = 400

_log = structlog.get_logger()


class Target(Protocol):
    """OpenMeter, as this loop needs it."""

    async def send(self, events: Sequence[Owed], traceparent: str | None = None) -> Answer:
        """Ingest a batch."""

    async def stored(self, events: Sequence[Owed]) -> set[int]:
        """Which of these it has already."""


class Deliverer:
    """Pays one target's outbox while this process leads.

    Args:
        in_flight: Batches under way at once.
        dedupe_window: How long the target remembers what it took.
    """

    def __init__(
        self,
        outbox: Outbox,
        target: Target,
        *,
        pool: AsyncConnectionPool[AsyncConnection],
        in_flight: int,
        dedupe_window: timedelta,
        holder: str,
        metrics: Metrics,
        tracer: Tracer,
        clock: Clock,
        crash_points: CrashPoints,
    ) -> None:
        self._outbox = outbox
        self._target = target
        self._pool = pool
        self._in_flight = in_flight
        self._dedupe_window = dedupe_window
        self._holder = holder
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._crash_points = crash_points
        self._wake = asyncio.Event()
        self._busy: set[int] = set()
        self._paused_until = 0.0
        self._patience = Patience("metering.deliver")
        self._loop: asyncio.Task[None] | None = None
        self.breaker = CircuitBreaker(
            "openmeter",
            # A target that fails half of its calls still takes the other half; one in ten is down.
            threshold=18,
            window=20,
            rest=timedelta(seconds=0.5),
            longest_rest=timedelta(seconds=5),
            on_change=self._circuit_changed,
            clock=clock,
        )

    async def start(self) -> None:
        """Begin; leads as soon as no other process does."""
        self._loop = asyncio.create_task(self._run(), name="deliver")

    async def stop(self) -> None:
        """End; what is under way and unmarked is sent again by the next leader, which OpenMeter ignores."""
        await cancelled(self._loop)

    def wake(self) -> None:
        """Something new is owed: do not wait for the timer."""
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                async with self._pool.connection() as connection:
                    await connection.set_autocommit(True)
                    try:
                        if await self._outbox.lead(connection, self._holder):
                            self._metrics.leading.set(1)
                            _log.info("deliver.leading")
                            await self._lead(connection)
                    finally:
                        self._metrics.leading.set(0)
                        # The lock is the session's: closed, it is free for the next.
                        await connection.close()
            except TransientError as error:
                await self._patience.wait(error)
                continue
            except Exception as error:  # nothing may end this loop: what is owed stays owed
                _log.exception("deliver.failed")
                await self._patience.wait(error)
                continue
            self._patience.progressed()
            await asyncio.sleep(LEAD_SECONDS)

    async def _lead(self, connection: AsyncConnection) -> None:
        running: set[asyncio.Task[None]] = set()
        looked_at = 0.0
        try:
            while True:
                if time.monotonic() - looked_at > DEPTH_SECONDS:
                    looked_at = time.monotonic()
                    await connection.execute("select 1")  # the lock lives as long as this session does
                    await self._look_at_depth()
                started = await self._begin(running)
                if running and (len(running) >= self._in_flight or not started):
                    done, running = await asyncio.wait(
                        running, timeout=IDLE_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in done:
                        task.result()
                elif not started:
                    await self._idle()
        finally:
            await cancelled(*running)
            self._busy.clear()

    async def _begin(self, running: set[asyncio.Task[None]]) -> int:
        """Start as many batches as fit; how many were started."""
        room = self._in_flight - len(running)
        if room <= 0 or self._is_resting():
            return 0
        if self.breaker.state is not CircuitState.CLOSED or self._paused_until > 0:
            if running:
                return 0  # one batch finds out whether the target is back
            room = 1
        events = await self._outbox.due(room * MAX_BATCH_EVENTS, list(self._busy))
        batches = split(events, [len(event.data) + ENVELOPE_BYTES for event in events])[:room]
        for batch in batches:
            self._busy.update(event.n for event in batch)
            running.add(asyncio.create_task(self._deliver_whole(batch), name="deliver.batch"))
        return len(batches)

    def _is_resting(self) -> bool:
        return self.breaker.state is CircuitState.OPEN or self._clock.monotonic() < self._paused_until

    async def _idle(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), IDLE_SECONDS)
        self._wake.clear()

    async def _deliver_whole(self, batch: list[Owed]) -> None:
        try:
            await self._deliver(batch)
        finally:
            self._busy.difference_update(event.n for event in batch)

    async def _deliver(self, batch: Sequence[Owed]) -> None:
        """One batch to its end: delivered, put off, split, or set aside."""
        if must_verify(batch, now=self._clock.now(), dedupe_window=self._dedupe_window):
            try:
                batch = await self._without_stored(batch)
            except LostLeadershipError:
                raise
            except TransientError as error:  # not knowing, we neither send nor give up
                _log.warning("deliver.cannot_verify", error=str(error), events=len(batch))
                await self._outbox.put_off(batch, LONGEST_BACKOFF, 0, str(error))
                return
            if not batch:
                return
        await self._outbox.note_attempt(batch)
        self._crash_points.reach("deliver.before_send")
        try:
            is_probe = self.breaker.admit()
        except CircuitOpenError:
            return  # it opened while this batch was being prepared; what is owed stays due
        try:
            answer = await self._send(batch)
        except BaseException:
            self.breaker.release(is_probe)
            raise
        self._crash_points.reach("deliver.after_send")
        if is_away(answer) and is_suspect(batch) and len(batch) == 1:
            self.breaker.release(is_probe)
        elif is_away(answer):
            self.breaker.failed(is_probe)
        else:
            self.breaker.succeeded(is_probe)
        await self._settle(batch, answer, judge(answer))

    async def _settle(self, batch: Sequence[Owed], answer: Answer, verdict: Verdict) -> None:
        if verdict is Verdict.DELIVERED:
            await self._outbox.mark(batch)
            self._crash_points.reach("deliver.after_mark")
            self._metrics.sent.inc(len(batch))
            self._unpause()
            return
        self._metrics.flush_errors.labels(verdict).inc()
        if verdict in (Verdict.BISECT, Verdict.HALVE):
            self._unpause()
            if len(batch) == 1:
                await self._outbox.poison(batch, answer.status, answer.detail)
                _log.error("deliver.event_refused", status=answer.status, n=batch[0].n)
                return
            for half in halves(batch):
                await self._deliver(half)
        elif verdict is Verdict.PAUSE:
            self._paused_until = self._clock.monotonic() + PAUSE.total_seconds()
            self._metrics.paused.set(1)
            _log.error(
                "deliver.paused",
                status=answer.status,
                hint="check OPENMETER_BASE_URL and OPENMETER_API_KEY; nothing is lost, it is tried again",
            )
            await self._outbox.put_off(batch, PAUSE, answer.status, answer.detail)
        elif len(batch) > 1 and is_suspect(batch) and is_away(answer):
            for half in halves(batch):
                await self._deliver(half)
        else:
            wait = backoff(max(event.attempts for event in batch), answer)
            _log.warning(
                "deliver.put_off",
                status=answer.status,
                detail=answer.detail,
                events=len(batch),
                wait_seconds=round(wait.total_seconds(), 2),
            )
            await self._outbox.put_off(batch, wait, answer.status, answer.detail)

    def _unpause(self) -> None:
        if self._paused_until:
            self._paused_until = 0.0
            self._metrics.paused.set(0)
            _log.info("deliver.resumed")

    async def _without_stored(self, batch: Sequence[Owed]) -> list[Owed]:
        """Mark what the target has already; what is left. It may forget keys, never events."""
        stored = await self._target.stored(batch)
        there = [event for event in batch if event.n in stored]
        if there:
            await self._outbox.mark(there)
            self._metrics.verified.inc(len(there))
        return [event for event in batch if event.n not in stored]

    async def _send(self, batch: Sequence[Owed]) -> Answer:
        parents = [{"traceparent": event.traceparent} for event in batch if event.traceparent]
        links = [link for link in map(link_from_headers, parents[:MAX_LINKS]) if link is not None]
        context = context_from_headers(parents[0]) if len(batch) == 1 and parents else None
        with self._tracer.start_as_current_span(
            "metering deliver",
            kind=SpanKind.CLIENT,
            context=context,
            links=None if context is not None else links,
        ) as span:
            span.set_attribute("messaging.batch.message_count", len(batch))
            headers: dict[str, str] = {}
            inject_headers(headers)
            started = time.perf_counter()
            answer = await self._target.send(batch, headers.get("traceparent"))
            self._metrics.flush_latency.observe(time.perf_counter() - started, exemplar(span))
            span.set_attribute("http.response.status_code", answer.status)
        return answer

    async def _look_at_depth(self) -> None:
        depth = await self._outbox.depth()
        self._metrics.buffered.set(depth.waiting)
        self._metrics.poison.set(depth.poison)
        self._metrics.oldest_age.set(depth.oldest_age_seconds)

    def _circuit_changed(self, state: CircuitState) -> None:
        self._metrics.circuit.set(state)
        _log.warning("openmeter.circuit", state=state.name.lower())
