"""Stripe's own lists compared with what is here: events nobody delivered, states no event ever told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
import structlog

from kgents_billing.metrics import Metrics
from kgents_billing.model.event import at
from kgents_billing.model.event_map import is_known
from kgents_billing.model.facts import stamped
from kgents_billing.model.projection import UnreadableObjectError, digest, is_same, project
from kgents_billing.model.subscription import observe_object
from kgents_billing.model.tenant import KEY
from kgents_billing.sinks.bus import Bus
from kgents_billing.sinks.store import Store, Subscriptions
from kgents_billing.sinks.store.cursors import Cursors
from kgents_billing.sinks.store.tenants import Tenants
from kgents_billing.sinks.stripe_api import AccountRefusedError, Page, StripeApi
from kgents_common import stripe_events, subjects
from kgents_common.clock import Clock
from kgents_common.errors import KgentsError, PermanentError, TransientError
from kgents_common.stripe_events import NotStripeEventError, StripeEnvelope

# Stripe lists an event some time after its `created`; what the last look missed, this one sees.
OVERLAP = timedelta(minutes=15)
SOURCE = "/stripe/self"

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


@dataclass(slots=True)
class Surveyed:
    """What a survey came to.

    Attributes:
        healed: Rows that were otherwise, or missing, and are as Stripe says now.
        unmapped: Subscriptions nobody knows the tenant of, and why.
        unreadable: Subscriptions that could not be looked at, and why.
    """

    healed: int = 0
    unmapped: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


class Survey:
    """Every subscription at Stripe, compared with its row: heals what no event ever told.

    A difference is believed only where the object stood still, another look at the events found none, and
    every stored event is handled: else the event that tells it is on its way, and would tell it again.
    """

    def __init__(
        self,
        stripe: StripeApi,
        store: Store,
        subscriptions: Subscriptions,
        poll: Poll,
        metrics: Metrics,
        tenants: Tenants,
        *,
        is_caught_up: Callable[[], Awaitable[bool]],
        accounts: tuple[str, ...] = (),
    ) -> None:
        self._accounts = accounts
        self._stripe = stripe
        self._store = store
        self._subscriptions = subscriptions
        self._poll = poll
        self._metrics = metrics
        self._tenants = tenants
        self._is_caught_up = is_caught_up

    async def run(self) -> Surveyed:
        """Look once; what was healed, and what belongs to nobody.

        An account that does not answer, or may not be asked, holds up no other.

        Raises:
            TransientError: Stripe or Postgres does not answer; what was healed stays.
        """
        suspects: dict[str, tuple[str, str | None]] = {}
        failed: dict[str | None, KgentsError] = {}
        for account in (None, *self._accounts):
            try:
                suspects |= await self._suspects(account)
            except AccountRefusedError:
                continue
            except KgentsError as error:
                failed[account] = error
                _log.warning("survey.failed", account=account, error=str(error))
        found = Surveyed()
        if suspects:
            looked = await self._poll.look()
            failed |= looked.failed
            if looked.recovered or not await self._is_caught_up():
                raise TransientError("survey: events wait; look again once they are handled")
            for name, (first_look, account) in suspects.items():
                # Where the events are not known up to now, one of them may tell it yet.
                if account not in failed:
                    await self._healed(name, first_look, account, found)
        for failure in failed.values():
            raise failure
        return found

    async def _suspects(self, account: str | None) -> dict[str, tuple[str, str | None]]:
        """By id, the subscriptions of an account that differ: what they are at this look, and whose."""
        found: dict[str, tuple[str, str | None]] = {}
        async for page in self._stripe.of(account).pages("/v1/subscriptions", {"status": "all"}):
            for raw in page.items:
                thing = msgspec.json.decode(raw)
                if await self._differs(thing):
                    found[thing["id"]] = (_cut_digest(thing), account)
        return found

    async def _healed(self, name: str, first_look: str, account: str | None, found: Surveyed) -> None:
        try:
            found.healed += await self._heal(name, first_look, account, found)
        except PermanentError as error:  # gone since, or unreadable: the others all the same
            found.unreadable[name] = str(error)
            _log.error("survey.not_healed", subscription=name, error=str(error))

    async def _differs(self, thing: Mapping[str, Any]) -> bool:
        try:
            state = project(thing)
        except UnreadableObjectError as error:
            _log.error("survey.unreadable", error=str(error))
            return False
        stored = await self._subscriptions.get(str(thing.get("id")))
        if at(thing, "items", "has_more") is True:
            return True  # cut: only the whole object can be compared
        return stored is None or not is_same(stored.row.state, state, tenant=stored.row.tenant)

    async def _heal(self, name: str, first_look: str, account: str | None, found: Surveyed) -> bool:
        stripe = self._stripe.of(account)
        answer = await stripe.whole_subscription(name)
        if first_look not in (_cut_digest(answer.data), "") or not await self._differs(answer.data):
            return False  # it changes right now: its events tell, or the next survey does
        stored = await self._subscriptions.get(name)
        row = stored.row if stored else None
        seen = project(answer.data)
        state = await self._store.only_open(seen)
        owned = await self._store.ownership(name, row, state)
        if owned is None and seen.tenant is None and seen.customer is not None:
            owned = await self._store.ownership(
                name, row, state, await self._customers(stripe, seen.customer)
            )
        if owned is None:
            found.unmapped[name] = f"unknown_tenant {seen.tenant}" if seen.tenant else "unmapped_tenant"
            _log.warning("survey.unmapped", subscription=name, named=seen.tenant)
            return False
        if row is not None and is_same(row.state, state, tenant=row.tenant) and owned.of(state) == row.tenant:
            return False
        made = observe_object(
            row,
            name,
            owned,
            state,
            second=answer.second,
            source=SOURCE,
            via="reconcile",
        )
        self._metrics.drift.inc()
        _log.warning("survey.healed", subscription=name)
        livemode = answer.data.get("livemode") is True
        await self._store.observe(
            made.row, stamped(made.facts, livemode, account), livemode=livemode, account=account
        )
        return True

    async def _customers(self, stripe: StripeApi, customer: str) -> str | None:
        """Whose Stripe's customer object says its customer is, where that is an open tenant."""
        try:
            named = (await stripe.customer_metadata(customer)).get(KEY)
        except PermanentError:
            return None
        is_open = isinstance(named, str) and subjects.is_tenant(named) and await self._tenants.is_open(named)
        return named if is_open else None


def _cut_digest(thing: Mapping[str, Any]) -> str:
    """The state's name; empty for an object whose items were cut, which has none."""
    return "" if at(thing, "items", "has_more") is True else digest(project(thing))
