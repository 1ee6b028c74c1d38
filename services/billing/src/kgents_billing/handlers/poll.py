"""Stripe's list of events compared with EVENTS: what nobody delivered is appended as the door would have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec
import structlog

from kgents_billing.metrics import Metrics
from kgents_billing.model.event_map import is_known
from kgents_billing.sinks.bus import Bus
from kgents_billing.sinks.store.cursors import Cursors
from kgents_billing.sinks.stripe_api import AccountRefusedError, Page, StripeApi
from kgents_common import stripe_events
from kgents_common.clock import Clock
from kgents_common.errors import KgentsError, PermanentError
from kgents_common.stripe_events import NotStripeEventError, StripeEnvelope

# Stripe lists an event some time after its `created`; what the last look missed, this one sees.
OVERLAP = timedelta(minutes=15)

_log = structlog.get_logger()


@dataclass(slots=True)
class Looked:
    """What a look at Stripe's list of events came to.

    Attributes:
        recovered: How many were missing, and are stored now.
        reached: Up to which second there is none missing, of each account that was looked at to the end.
        failed: What did not answer, by account: our own is None. Who took its access back is not here.
    """

    recovered: int = 0
    reached: list[int] = field(default_factory=list)
    failed: dict[str | None, KgentsError] = field(default_factory=dict)


class Poll:
    """Stripe's list of events, compared with EVENTS: what no webhook brought is appended as if one had.

    Args:
        accounts: Connected accounts that are listed as well, each with a cursor of its own.
    """

    def __init__(
        self,
        stripe: StripeApi,
        bus: Bus,
        cursors: Cursors,
        *,
        first_days: int,
        metrics: Metrics,
        clock: Clock,
        accounts: tuple[str, ...] = (),
    ) -> None:
        self._accounts: tuple[str | None, ...] = (None, *accounts)
        self._stripe = stripe
        self._bus = bus
        self._cursors = cursors
        self._first = timedelta(days=first_days)
        self._metrics = metrics
        self._clock = clock

    async def run(self, since: int | None = None) -> int:
        """Look once, from the cursor (or the second `since`) less an overlap; how many events were missing.

        Raises:
            TransientError: Stripe or NATS does not answer; what was appended stays.
        """
        looked = await self.look(since)
        for error in looked.failed.values():
            raise error
        return looked.recovered

    async def look(self, since: int | None = None) -> Looked:
        """As `run`, telling what failed.

        A cursor moves only after every page was taken, and only where the look began at it: a later
        beginning would leave a hole. An account that does not answer, or may not be asked, holds up no other.
        """
        looked = Looked()
        for account in self._accounts:
            try:
                found, second = await self._look(account, since)
            except AccountRefusedError:
                continue  # its cursor stays: it is known up to there
            except KgentsError as error:
                looked.failed[account] = error
                _log.warning("poll.failed", account=account, error=str(error))
            else:
                looked.recovered += found
                looked.reached.append(second)
        if looked.recovered:
            self._metrics.recovered.inc(looked.recovered)
            hint = "is the endpoint at Stripe all right?"
            _log.warning("poll.recovered", events=looked.recovered, hint=hint)
        if since is None and not looked.failed:
            self._metrics.polled_at.set(min(looked.reached))
        return looked

    async def _look(self, account: str | None, since: int | None) -> tuple[int, int]:
        """How many events of one account were missing, and up to which second there is none."""
        recovered, reached = 0, 0
        async for page in self._pages(account, since):
            reached = reached or page.second
            for raw in page.items:
                event = _known(raw)
                recovered += event is not None and await self.offer(event, raw)
        if since is None:
            await self._cursors.advance(_cursor(account), reached)
        return recovered, reached

    async def _pages(self, account: str | None, since: int | None) -> AsyncIterator[Page]:
        start = since if since is not None else await self._start(account)
        async for page in self._stripe.of(account).pages("/v1/events", {"created": {"gte": start}}):
            yield page if account is None else Page([_of(account, raw) for raw in page.items], page.second)

    async def listed(self, since: int | None = None) -> AsyncIterator[tuple[StripeEnvelope, bytes]]:
        """The events `run` would offer, newest first. Errors as there."""
        for account in self._accounts:
            try:
                async for page in self._pages(account, since):
                    for raw in page.items:
                        event = _known(raw)
                        if event is not None:
                            yield event, raw
            except AccountRefusedError:
                continue

    async def offer(self, event: StripeEnvelope, raw: bytes) -> bool:
        """Store an event as the door would; whether it was missing.

        Raises:
            NotDurableError: It is not stored.
        """
        try:
            return await self._bus.append(event, raw, received_at=self._clock.now())
        except PermanentError as error:
            # The poll goes on: one event that no stream takes must not keep the others from coming.
            self._metrics.notes.labels("not_storable").inc()
            _log.error("poll.not_storable", event_id=event.id, type=event.type, error=str(error))
            return False

    async def _start(self, account: str | None) -> int:
        cursor = await self._cursors.get(_cursor(account))
        if cursor is None:
            return int((self._clock.now() - self._first).timestamp())
        return cursor - int(OVERLAP.total_seconds())


def _cursor(account: str | None) -> str:
    return "events" if account is None else f"events@{account}"


def _of(account: str, raw: bytes) -> bytes:
    """A connected account's event as a webhook brings it: asked for by header, it does not say whose it is.

    Of two equal keys the last counts.
    """
    return b"%s,%s}" % (raw.rstrip()[:-1], msgspec.json.encode({"account": account})[1:-1])


def _known(raw: bytes) -> StripeEnvelope | None:
    """A listed event of a type that means anything to us."""
    try:
        event = stripe_events.read(raw)
    except NotStripeEventError as error:
        _log.error("poll.unreadable", error=str(error))
        return None
    return event if is_known(event.type) else None
