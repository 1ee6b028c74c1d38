"""The way in from EVENTS: many events at once, each acknowledged after what it led to is committed."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from nats.aio.msg import Msg
from opentelemetry.trace import SpanKind, Tracer

from kgents_billing.handlers.defects import DEFECT, code_of, detail_of
from kgents_billing.metrics import Metrics
from kgents_billing.model.decision import Outcome
from kgents_billing.sinks.store import Committed, Origin, origin_of
from kgents_common import delivery
from kgents_common.clock import Clock
from kgents_common.crash import CrashPoints
from kgents_common.errors import PermanentError, TransientError
from kgents_common.hands import Hands
from kgents_common.idempotency import Busy, Held, Leases
from kgents_common.pull import Delivered, delivered, stored
from kgents_common.stored_message import StoredMessage
from kgents_common.telemetry import context_from_headers, exemplar, inject_headers

WORKERS = 16
# By how often a message was delivered; the last one stays.
BACKOFF = tuple(timedelta(seconds=s) for s in (0.5, 1, 2, 5, 10, 30))
# A defect of ours, met this often, is an operator's: the event is set aside, whole.
MAX_CRASHES = 12
# Work that took so long may be another's by now.
LONG = timedelta(seconds=10)

_log = structlog.get_logger()


class FencedError(TransientError):
    """The lease ran out and another worker has it."""


class Processes(Protocol):
    """The processor, as this handler needs it."""

    async def process(self, origin: Origin, *, before_commit: Callable[[], Awaitable[None]]) -> Committed:
        """Bring one event to its end."""


class Buries(Protocol):
    """Where a message goes that can never be handled."""

    async def bury(
        self, event_id: str | None, event_type: str, origin: Origin, code: str, detail: str
    ) -> None:
        """Set it aside."""


class Worker:
    """Takes events from the broker and processes them, several at a time, in no particular order.

    Args:
        epoch_of: When the stream was created that these deliveries are of.
        on_committed: Called after each commit that told something.
    """

    def __init__(
        self,
        processor: Processes,
        store: Buries,
        leases: Leases,
        *,
        epoch_of: Callable[[Sequence[Delivered]], Awaitable[datetime]],
        ack_wait: timedelta,
        metrics: Metrics,
        tracer: Tracer,
        clock: Clock,
        crash_points: CrashPoints,
        on_committed: Callable[[], None] = lambda: None,
    ) -> None:
        self._processor = processor
        self._store = store
        self._leases = leases
        self._epoch_of = epoch_of
        self._ack_wait = ack_wait
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._crash_points = crash_points
        self._on_committed = on_committed
        self._hands: Hands[Msg] = Hands(
            "billing",
            count=WORKERS,
            waiting=WORKERS * 2,
            work=self._one,
            messages=lambda message: [message],
            after_failure=BACKOFF[-1],
        )

    async def start(self) -> None:
        """Begin to process what is handed in."""
        await self._hands.start()

    async def stop(self) -> None:
        """Take no more, bring what was taken to its end."""
        await self._hands.stop()

    async def handle(self, messages: list[Msg]) -> None:
        """The broker's door: hand messages in; waits while all hands are full."""
        for message in messages:
            await self._hands.put(message)

    async def _one(self, message: Msg) -> None:
        metadata = message.metadata
        traced: dict[str, str] = {}
        with self._tracer.start_as_current_span(
            "billing process", kind=SpanKind.CONSUMER, context=context_from_headers(message.headers)
        ):
            inject_headers(traced)
            place = delivered(message)
            assert place is not None  # noqa: S101 JetStream delivered it
            whole = stored(message, place, await self._epoch_of([place]), StoredMessage)
            origin = origin_of(whole, traceparent=traced.get("traceparent"))
            claim = await self._leases.claim(message.subject.rpartition(".")[2])
            if isinstance(claim, Busy):
                self._metrics.retries.labels("busy").inc()
                await delivery.nak([message], delay=min(claim.left, BACKOFF[2]))
                return
            held = claim if isinstance(claim, Held) else None
            self._crash_points.reach("apply.after_claim")
            try:
                async with delivery.in_progress([message], ack_wait=self._ack_wait):
                    is_done = await self._settle(message, origin, held)
                if is_done:
                    self._crash_points.reach("apply.after_commit")
            finally:
                if held is not None:
                    await self._leases.release(held)
            if is_done:
                self._crash_points.reach("apply.before_ack")
                await delivery.ack([message])
                self._crash_points.reach("apply.after_ack")
                age = (self._clock.now() - metadata.timestamp).total_seconds()
                self._metrics.accept_to_applied.observe(max(0.0, age), exemplar())

    async def _settle(self, message: Msg, origin: Origin, held: Held | None) -> bool:
        """Whether the message is at its end; else it comes again."""
        started = time.monotonic()

        async def before_commit() -> None:
            is_long = time.monotonic() - started > LONG.total_seconds()
            if held is not None and is_long and not await self._leases.renew(held):
                raise FencedError("billing: the lease is another's")

        tries = message.metadata.num_delivered
        try:
            committed = await self._processor.process(origin, before_commit=before_commit)
        except TransientError as error:
            self._metrics.retries.labels("transient").inc()
            _log.warning("billing.postponed", seq=origin.seq, tries=tries, error=str(error))
            return await self._again(message, tries)
        except PermanentError as error:
            return await self._set_aside(message, origin, code_of(error), str(error), tries)
        except Exception as error:
            _log.exception("billing.failed", seq=origin.seq, tries=tries)
            self._metrics.retries.labels("defect").inc()
            if tries < MAX_CRASHES:
                return await self._again(message, tries)
            return await self._set_aside(message, origin, DEFECT, detail_of(error), tries)
        if committed.facts:
            self._on_committed()
        if committed.outcome is Outcome.QUARANTINED:
            _log.warning("billing.quarantined", seq=origin.seq)
        return True

    async def _set_aside(self, message: Msg, origin: Origin, code: str, detail: str, tries: int) -> bool:
        tokens = origin.subject.split(".")
        try:
            await self._store.bury(tokens[-1], tokens[-2] if len(tokens) > 2 else "", origin, code, detail)
        except TransientError:
            return await self._again(message, tries)
        self._metrics.processed.labels(Outcome.DEAD.value).inc()
        _log.warning("billing.set_aside", seq=origin.seq, code=code)
        return True

    async def _again(self, message: Msg, tries: int) -> bool:
        await delivery.nak([message], delay=BACKOFF[min(tries, len(BACKOFF)) - 1])
        return False
