"""One Stripe event, from its stored message to the commit; by whichever way it came in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import structlog

from kgents_billing.handlers.payers import Payers
from kgents_billing.metrics import Metrics
from kgents_billing.model import event as events
from kgents_billing.model.decision import Decision, Outcome, decide, settle
from kgents_billing.model.entries import Entry, is_one_off
from kgents_billing.model.event import StripeEvent, reference
from kgents_billing.model.event_map import Handling, handling, is_known
from kgents_billing.model.known import Fetched, Known, Options
from kgents_billing.model.projection import State
from kgents_billing.model.tenant import Hints, hints
from kgents_billing.sinks.store import Committed, Origin, OvertakenError
from kgents_billing.sinks.stripe_api import Answer, MissingObjectError
from kgents_common.errors import KgentsError, PermanentError, TransientError

# A subscription written this often while one event is decided has a busier life than any real one.
MAX_OVERTAKEN = 20
_WITHOUT_OBJECT = (Handling.IGNORED, Handling.METER_ERROR, Handling.RECONCILE)
_PATHS = {
    "subscription": "/v1/subscriptions/",
    "invoice": "/v1/invoices/",
    "customer": "/v1/customers/",
    "charge": "/v1/charges/",
    "refund": "/v1/refunds/",
    "dispute": "/v1/disputes/",
    "checkout.session": "/v1/checkout/sessions/",
}

_log = structlog.get_logger()


class NeedsKeyError(PermanentError):
    """Only Stripe can tell what this thin event is about, and no key is configured."""


class UnknownObjectError(PermanentError):
    """A thin event about an object that nobody here knows how to ask for."""


class CommitsDecisions(Protocol):
    """The store, as this handler needs it."""

    async def known(self, event_ids: list[str], said: Hints) -> Known:
        """What is known about an event's surroundings."""

    async def checkouts_of_before(self, paid: Entry, tenant: str) -> list[str]:
        """Checkouts that the first version told, and that may be this invoice."""

    async def only_open(self, state: State) -> State:
        """The state, naming no tenant that nobody opened."""

    async def commit(
        self, event: StripeEvent, decision: Decision, origin: Origin, *, detail: str = "", again: bool = False
    ) -> Committed:
        """Commit a decision."""


class AsksStripe(Protocol):
    """Stripe's API, as this handler needs it."""

    def of(self, account: str | None) -> AsksStripe:
        """The same for a connected account."""

    async def subscription(self, subscription_id: str) -> Fetched:
        """A subscription's state now."""

    async def customer_metadata(self, customer_id: str) -> Mapping[str, Any]:
        """What the account's owner noted on a customer."""

    async def event(self, event_id: str) -> bytes:
        """A snapshot event."""

    async def get(self, path: str, params: Mapping[str, Any] | None = None) -> Answer:
        """One GET."""


async def _anybody() -> None:
    """Without a lease there is nothing to lose."""


class Processor:
    """Decides and commits, asking Stripe only where the events do not tell.

    Args:
        stripe: None where no key is configured: what only Stripe can tell is marked for later.
    """

    def __init__(
        self, store: CommitsDecisions, stripe: AsksStripe | None, *, options: Options, metrics: Metrics
    ) -> None:
        self._store = store
        self._stripe = stripe
        self._options = options
        self._metrics = metrics

    async def process(
        self,
        origin: Origin,
        *,
        before_commit: Callable[[], Awaitable[None]] = _anybody,
        again: bool = False,
        is_patient: bool = True,
    ) -> Committed:
        """Bring one event to its end; when it returns, that is durable.

        Args:
            before_commit: Raises where the work is another's by now.
            again: An operator replays it: decide even if it was applied before. Facts are told once all the
                same.
            is_patient: Money that goes back waits for its payment to be known.

        Raises:
            TransientError: Nothing is committed; the same message may succeed later.
            PermanentError: It can never be handled as it is.
        """
        event = events.read(origin.body)
        for _ in range(MAX_OVERTAKEN):
            known = await self._known(event, surroundings_only=again)
            if known.is_applied:
                return self._note(event, Committed(Outcome.DUPLICATE))
            whole, is_current = await self._whole(event)
            if whole is not event:
                known = await self._known(whole, surroundings_only=True)
            decision = await self._decide(whole, known, is_current=is_current, is_patient=is_patient)
            await before_commit()
            try:
                committed = await self._store.commit(
                    whole, decision, origin, detail=_detail(decision), again=again
                )
            except OvertakenError:
                continue
            for note in decision.notes:
                self._metrics.notes.labels(note).inc()
            return self._note(event, committed)
        raise TransientError("billing: overtaken again and again")

    async def _known(self, event: StripeEvent, *, surroundings_only: bool = False) -> Known:
        ids = [event.id] if event.twin is None else [event.id, event.twin]
        return await self._store.known([] if surroundings_only else ids, hints(event))

    async def _whole(self, event: StripeEvent) -> tuple[StripeEvent, bool]:
        """The event with its object, and whether that is the object as it is now."""
        kind = handling(event.type)
        is_left = not self._options.takes(event.livemode, event.account)
        if not event.is_thin or kind in _WITHOUT_OBJECT or is_left:
            return event, False
        if self._stripe is None:
            raise NeedsKeyError(
                "a thin event says only what to ask for", hint="set STRIPE_API_KEY, replay it"
            )
        if event.twin is not None:
            try:
                twin = events.read(await self._stripe.of(event.account).event(event.twin))
            except MissingObjectError:
                _log.info("process.twin_is_gone", event_id=event.id)
            else:
                # A twin read with the account's own header does not say the account.
                return replace(twin, twin=event.id, account=event.account), False
        path = _PATHS.get((event.related_type or "").removeprefix("billing."))
        if path is None or event.related_id is None:
            raise UnknownObjectError("a thin event about nothing we know how to ask for")
        answer = await self._stripe.of(event.account).get(path + event.related_id)
        return replace(event, object=answer.data, second=max(event.second, answer.second)), True

    async def _decide(
        self, event: StripeEvent, known: Known, *, is_current: bool, is_patient: bool
    ) -> Decision:
        def decided(looked_up: str | None = None) -> Decision:
            return decide(
                event,
                known,
                self._options,
                looked_up=looked_up,
                is_current=is_current,
                is_patient=is_patient,
            )

        decision = decided()
        if decision.outcome is Outcome.QUARANTINED and decision.named is None and self._stripe is not None:
            looked_up = await Payers(self._store, self._stripe.of(event.account)).tenant(hints(event), event)
            if looked_up is not None:
                decision = decided(looked_up)
        if decision.wants_subscription is not None and self._stripe is not None:
            try:
                asked = self._stripe.of(event.account)
                fetched = await asked.subscription(decision.wants_subscription)
            except KgentsError as error:
                # The row says that it needs a look; that is done once Stripe answers.
                _log.info("process.not_fetched", event_id=event.id, error=str(error))
            else:
                state = await self._store.only_open(fetched.state)
                decision = settle(decision, replace(fetched, state=state), event)
        return await self._without_told(decision, event)

    async def _without_told(self, decision: Decision, event: StripeEvent) -> Decision:
        """The decision, or, of an invoice whose checkout the first version told as the payment, its names."""
        for paid in decision.entries:
            if not is_one_off(paid):
                continue
            for session in await self._store.checkouts_of_before(paid, decision.tenant or ""):
                if self._stripe is None:
                    raise NeedsKeyError(
                        "the first version told a checkout that may be this invoice: only Stripe can tell",
                        hint="set STRIPE_API_KEY, replay it",
                    )
                try:
                    asked = self._stripe.of(event.account)
                    made = (await asked.get(_PATHS["checkout.session"] + session)).data
                except MissingObjectError:
                    continue
                if reference(made.get("invoice")) == paid.id:
                    names = dict(decision.payment_names) | {paid.id: paid.id}
                    return replace(
                        decision,
                        facts=[],
                        entries=(),
                        payment_names=tuple((name, session) for name in names),
                        notes=(*decision.notes, "told_as_checkout"),
                    )
        return decision

    def _note(self, event: StripeEvent, committed: Committed) -> Committed:
        self._metrics.processed.labels(committed.outcome.value).inc()
        self._metrics.types.labels(event.type if is_known(event.type) else "other").inc()
        if committed.facts:
            self._metrics.facts.inc(committed.facts)
        return committed


def _detail(decision: Decision) -> str:
    if decision.reason == "meter_error":
        return "Stripe did not take usage that was sent to it: compare the meters"
    return ""
