"""Whether a durable consumer is there, makes progress, and is pulled from; it handles no message.

Ready means that it moves whenever something waits. A consumer that was deleted is put back where it stood; a
worker that pulls nothing although something waits is stalled: that is said within ten seconds, and its
pulling is begun anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from kgents_common import streams
from kgents_common.cancelling import cancelled
from kgents_common.clock import Clock, SystemClock
from kgents_common.connection import Connection
from kgents_common.errors import KgentsError
from kgents_common.health import Check, Status
from kgents_common.pull import Delivered
from kgents_common.rfc3339 import moment
from kgents_common.streams import ConsumerSpec, JetStreamApiError

WATCH_SECONDS = 1.0
# With a look every second, this is said before ten seconds have passed.
STALLED = timedelta(seconds=8)
# How often a stalled worker is begun anew.
RESTART_SECONDS = 15.0
LOOK_TIMEOUT_SECONDS = 5.0

_log = structlog.get_logger()


class Pulls(Protocol):
    """The worker that pulls from the consumer."""

    @property
    def quiet_seconds(self) -> float:
        """How long its loop has not turned, while it had nothing in hand; 0 while it has."""

    async def restart(self) -> None:
        """Begin pulling anew."""


class StallMetrics:
    """What alerts look at; one per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.stalled = Gauge(
            "kgents_consumer_stalled_seconds",
            "How long a consumer that something waits for has made no progress; 0 while it does",
            ["consumer"],
            registry=registry,
        )
        self.restarts = Counter(
            "kgents_consumer_restarts_total",
            "How often a stalled worker was begun anew",
            ["consumer"],
            registry=registry,
        )


class Watchdog:
    """Looks at one consumer every second.

    Acknowledgements above the floor are not in the floor: after a consumer was put back such messages come
    again, and keys make that harmless.

    Args:
        stalled_after: How long something may wait and nothing move; an idle worker's loop turns every two
            seconds.
    """

    def __init__(
        self,
        connection: Connection,
        consumer: ConsumerSpec,
        clock: Clock | None = None,
        *,
        metrics: StallMetrics | None = None,
        stalled_after: timedelta = STALLED,
    ) -> None:
        self._connection = connection
        self._consumer = consumer
        self._clock = clock or SystemClock()
        self._metrics = metrics
        self._stalled_after = stalled_after.total_seconds()
        self._worker: Pulls | None = None
        self._seen_at: float | None = None
        self._first_seen = asyncio.Event()
        self._floor = 0
        self._epoch = ""
        self._created = ""
        self._pending = 0
        self._place: tuple[int, int] | None = None
        self._moved_at = 0.0
        self._restarted_at = float("-inf")
        self._newest: Delivered | None = None
        self._task: asyncio.Task[None] | None = None
        if metrics is not None:
            metrics.stalled.labels(consumer.name)
            metrics.restarts.labels(consumer.name)

    @property
    def pending(self) -> int:
        """Messages not yet delivered or not yet acknowledged, as last seen."""
        return self._pending

    @property
    def floor(self) -> int:
        """Up to which sequence of the stream everything was acknowledged, as last seen."""
        return self._floor

    @property
    def epoch(self) -> str:
        """When the stream was created, as the server says it (RFC 3339); empty before the first look.

        Sequences start again when a stream is made anew: they mean something only within an epoch.
        """
        return self._epoch

    @property
    def is_alive(self) -> bool:
        """Whether the consumer was seen in the last ten seconds."""
        return self._seen_at is not None and self._clock.monotonic() - self._seen_at < 10 * WATCH_SECONDS

    @property
    def stalled_seconds(self) -> float:
        """How long something waits that is not taken, by anybody or by this process; 0 while it goes on."""
        waiting = self._clock.monotonic() - self._moved_at if self._place is not None else 0.0
        quiet = self._worker.quiet_seconds if self._worker is not None else 0.0
        stalled = max(waiting, quiet)
        return stalled if stalled >= self._stalled_after else 0.0

    def watch(self, worker: Pulls) -> None:
        """Have this worker begun anew where it stalls."""
        self._worker = worker

    def check(self) -> Check:
        """For readiness: the consumer is there and goes on."""
        if not self.is_alive:
            return Check(Status.DOWN, "not seen")
        stalled = self.stalled_seconds
        if stalled:
            return Check(Status.DOWN, f"stalled for {stalled:.0f} s, {self.pending} pending")
        return Check(Status.OK, f"{self.pending} pending")

    async def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.create_task(self._watch(), name=f"watchdog.{self._consumer.name}")

    async def stop(self) -> None:
        """Stop watching."""
        await cancelled(self._task)

    async def wait(self, timeout: timedelta | None = None) -> None:
        """Until the consumer was seen for the first time.

        Raises:
            TimeoutError: Not within `timeout`.
        """
        async with asyncio.timeout(timeout.total_seconds() if timeout else None):
            await self._first_seen.wait()

    async def epoch_of(self, places: Sequence[Delivered]) -> datetime:
        """When the stream was created that these deliveries are of.

        A sequence that falls while time goes on is of a stream that was made anew: it is looked at first.

        Raises:
            KgentsError: JetStream does not answer.
        """
        newest = max(places, key=lambda place: place.time)
        last = self._newest
        if last is not None and newest.time > last.time:
            if newest.sequence <= last.sequence:
                self._created = ""
                await self.look()
            self._newest = newest
        elif last is None:
            self._newest = newest
        return moment(self._epoch)

    async def look(self) -> None:
        """One look; restores the consumer where its stream is there and it is not.

        Raises:
            KgentsError: JetStream does not answer, or the stream is missing.
        """
        spec = self._consumer
        try:
            info = await self._ask(f"CONSUMER.INFO.{spec.stream}.{spec.name}")
        except JetStreamApiError as error:
            if error.code != 404:
                raise
            stream = await self._ask(f"STREAM.INFO.{spec.stream}")
            if streams.RESTORE_MARK in (stream["config"].get("metadata") or {}):
                return  # its restore makes the consumers
            # A stream that was made anew counts from 1 again: an old floor would skip its first messages.
            is_same = stream["created"] == self._epoch
            start = self._floor + 1 if is_same else 1
            await streams.recreate_consumer(self._connection.client, spec, start_sequence=start)
            _log.warning("watchdog.consumer_recreated", consumer=spec.name, start_sequence=start)
            return
        if info["created"] != self._created or not self._epoch:
            self._epoch = (await self._ask(f"STREAM.INFO.{spec.stream}"))["created"]
            self._created = info["created"]
        self._floor = info["ack_floor"]["stream_seq"]
        self._pending = info["num_pending"] + info["num_ack_pending"]
        self._note_place(info)
        self._seen_at = self._clock.monotonic()
        self._first_seen.set()

    def _note_place(self, info: dict[str, Any]) -> None:
        """Progress is a delivery or an acknowledgement; what waits for its time to be tried again does not
        count as waiting."""
        place = (int(info["delivered"]["consumer_seq"]), int(info["ack_floor"]["consumer_seq"]))
        if place != self._place or not info["num_pending"]:
            self._moved_at = self._clock.monotonic()
        self._place = place

    async def _ask(self, subject: str) -> dict[str, Any]:
        return await streams.request(self._connection.client, subject, timeout_seconds=LOOK_TIMEOUT_SECONDS)

    async def _watch(self) -> None:
        while True:
            try:
                await self.look()
            except KgentsError as error:
                _log.warning("watchdog.cannot_look", consumer=self._consumer.name, error=str(error))
            except Exception:  # whatever it was, somebody has to look again
                _log.exception("watchdog.failed", consumer=self._consumer.name)
            try:
                await self._tend()
            except Exception:
                _log.exception("watchdog.restart_failed", consumer=self._consumer.name)
            await asyncio.sleep(WATCH_SECONDS)

    async def _tend(self) -> None:
        stalled = self.stalled_seconds
        if self._metrics is not None:
            self._metrics.stalled.labels(self._consumer.name).set(stalled)
        now = self._clock.monotonic()
        if not stalled or self._worker is None or now - self._restarted_at < RESTART_SECONDS:
            return
        self._restarted_at = now
        _log.error(
            "watchdog.stalled",
            consumer=self._consumer.name,
            seconds=round(stalled, 1),
            pending=self._pending,
            hint="its pulling is begun anew",
        )
        if self._metrics is not None:
            self._metrics.restarts.labels(self._consumer.name).inc()
        await self._worker.restart()


class Ready:
    """Waits, as a part, until NATS is there and the consumers are seen: nothing can be consumed before."""

    def __init__(self, connection: Connection, *watchdogs: Watchdog) -> None:
        self._connection = connection
        self._watchdogs = watchdogs

    async def start(self) -> None:
        """Wait."""
        await self._connection.wait()
        for watchdog in self._watchdogs:
            await watchdog.wait()

    async def stop(self) -> None:
        """Nothing to end."""
