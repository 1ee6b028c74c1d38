"""The way in from AGENTESE: batches are classified, applied in one transaction, and acknowledged after it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

import psycopg
import structlog
from nats.aio.msg import Msg
from opentelemetry.trace import Link, SpanKind, Tracer, use_span

from kgents_common import delivery
from kgents_common.clock import Clock
from kgents_common.crash import CrashPoints
from kgents_common.errors import TransientError
from kgents_common.hands import Hands
from kgents_common.pull import Delivered, delivered, stored
from kgents_common.retry import Patience
from kgents_common.telemetry import context_from_headers, exemplar, link_from_headers
from kgents_common.telemetry.traces import MAX_LINKS
from kgents_metering.metrics import Metrics
from kgents_metering.model.event import Dead, Event, Message, classify
from kgents_metering.sinks.ledger.apply import Outcome

# Batches under way at once: while Postgres works on one, the other is classified or acknowledged. They may
# commit in either order, as those of two processes do; keys decide what counts.
WORKERS = 2
WAITING_BATCHES = 1
AFTER_FAILURE = timedelta(seconds=5)

_log = structlog.get_logger()


class AppliesBatches(Protocol):
    """The ledger, as this handler needs it."""

    async def apply(self, events: Sequence[Event], dead: Sequence[Dead]) -> Outcome:
        """Apply a batch in one transaction."""


class Applier:
    """Takes batches from the broker and applies them, two at a time.

    Args:
        epoch_of: When the stream was created that these deliveries are of.
        ack_wait: The consumer's; unacknowledged batches are reported in progress before it runs out.
        classify: What a message is; agents' events by default.
        on_applied: Called after each commit that accepted something.
    """

    def __init__(
        self,
        ledger: AppliesBatches,
        *,
        epoch_of: Callable[[Sequence[Delivered]], Awaitable[datetime]],
        ack_wait: timedelta,
        metrics: Metrics,
        tracer: Tracer,
        clock: Clock,
        crash_points: CrashPoints,
        classify: Callable[[Message], Event | Dead] = classify,
        on_applied: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._epoch_of = epoch_of
        self._ack_wait = ack_wait
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._crash_points = crash_points
        self._classify = classify
        self._on_applied = on_applied
        self._patience = Patience("metering.apply", on=TransientError)
        self._hands: Hands[list[Msg]] = Hands(
            "apply",
            count=WORKERS,
            waiting=WAITING_BATCHES,
            work=self._apply,
            messages=lambda batch: batch,
            after_failure=AFTER_FAILURE,
        )

    async def start(self) -> None:
        """Begin to apply what is handed in."""
        await self._hands.start()

    async def stop(self) -> None:
        """Take no more, apply and acknowledge what was taken."""
        await self._hands.stop()

    async def handle(self, messages: list[Msg]) -> None:
        """The broker's door: hand a batch in; waits while one is waiting already."""
        await self._hands.put(messages)

    async def _apply(self, messages: list[Msg]) -> None:
        events: list[Event] = []
        dead: list[Dead] = []
        for message in await self._as_values(messages):
            found = self._classify(message)
            (events if isinstance(found, Event) else dead).append(found)  # type: ignore[arg-type]
        started = time.perf_counter()
        with self._tracer.start_as_current_span("metering apply", **_origin(messages)) as span:  # type: ignore[arg-type]
            span.set_attribute("messaging.batch.message_count", len(messages))
            async with delivery.in_progress(messages, ack_wait=self._ack_wait):
                outcome = await self._persist(events, dead)
        self._crash_points.reach("apply.after_commit")
        await delivery.ack(messages)
        self._crash_points.reach("apply.after_ack")
        with use_span(span):  # what is said of the batch carries its trace, though its work is done
            self._note(outcome, messages, time.perf_counter() - started, exemplar(span))

    async def _as_values(self, messages: Sequence[Msg]) -> list[Message]:
        """As the model takes them.

        Raises:
            KgentsError: JetStream does not say which stream of this name they are of.
        """
        places = [place for place in map(delivered, messages) if place is not None]
        epoch = await self._epoch_of(places)
        return [
            stored(message, place, epoch, Message) for message, place in zip(messages, places, strict=True)
        ]

    async def _persist(self, events: Sequence[Event], dead: Sequence[Dead]) -> Outcome:
        """Until it is committed: Postgres being away is waited out, one bad event is found and set aside."""
        try:
            return await self._patience.until_done(
                partial(self._ledger.apply, events, dead), before_wait=self._metrics.apply_retries.inc
            )
        except psycopg.Error as error:
            return await self._narrow(events, dead, error)

    async def _narrow(self, events: Sequence[Event], dead: Sequence[Dead], error: psycopg.Error) -> Outcome:
        """Apply the halves of a batch that cannot be stored whole; the one to blame becomes a dead letter."""
        if len(events) + len(dead) <= 1:
            if dead:
                raise error  # a dead letter that cannot be stored is a defect of ours: keep it in the stream
            blamed = Dead(events[0].message, "apply_failed", f"postgres: {type(error).__name__}")
            _log.error("apply.event_set_aside", error=type(error).__name__, seq=events[0].message.seq)
            return await self._persist((), (blamed,))
        middle = len(events) // 2
        parts = ((events[:middle], ()), (events[middle:], ())) if events else ()
        outcomes = [await self._persist(part, none) for part, none in parts if part]
        outcomes += [await self._persist((), (letter,)) for letter in dead]
        whole = outcomes[0]
        for outcome in outcomes[1:]:
            whole.counts.update(outcome.counts)
            whole.invalid.update(outcome.invalid)
        return whole

    def _note(
        self, outcome: Outcome, messages: Sequence[Msg], seconds: float, traced: dict[str, str] | None
    ) -> None:
        for name, count in outcome.counts.items():
            if count:
                self._metrics.events.labels(name).inc(count)
        for code, count in outcome.invalid.items():
            self._metrics.invalid.labels(code).inc(count)
        self._metrics.apply_seconds.observe(seconds, traced)
        oldest = min(message.metadata.timestamp for message in messages)
        age = max(0.0, (self._clock.now() - oldest).total_seconds())
        self._metrics.accept_to_applied.observe(age, traced)
        for name in ("conflict", "dead"):
            if outcome.counts[name]:
                _log.warning("apply.not_counted", outcome=name, messages=outcome.counts[name])
        if outcome.counts["accepted"]:
            self._on_applied()


def _origin(messages: Sequence[Msg]) -> dict[str, object]:
    """One message goes on in its own trace; a batch starts one and links to the others'."""
    if len(messages) == 1:
        return {"kind": SpanKind.CONSUMER, "context": context_from_headers(messages[0].headers)}
    links: list[Link] = []
    for message in messages:
        link = link_from_headers(message.headers)
        if link is not None and link.context.trace_flags.sampled:
            links.append(link)
            if len(links) == MAX_LINKS:
                break
    return {"kind": SpanKind.CONSUMER, "links": links}
