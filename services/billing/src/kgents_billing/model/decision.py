"""What an event leads to, given what is known: one value that is then committed as one transaction, or not.

Nothing here asks anybody. Where only Stripe can tell, the decision says so, and is made again with the
answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec

from kgents_billing.model import payments, returns
from kgents_billing.model import tenant as tenants
from kgents_billing.model.access import TERMINAL
from kgents_billing.model.entries import Entry
from kgents_billing.model.event import MalformedEventError, StripeEvent, at
from kgents_billing.model.event_map import Handling, handling
from kgents_billing.model.facts import Fact, stamped
from kgents_billing.model.known import Fetched, Known, Options
from kgents_billing.model.moved import moved_facts
from kgents_billing.model.order import Observation
from kgents_billing.model.ownership import NOW, Kind, Word, owner_at
from kgents_billing.model.payments import Said
from kgents_billing.model.projection import digest, project, project_before
from kgents_billing.model.shapes import check_shape
from kgents_billing.model.subscription import Ownership, Subscription, observe, observe_object
from kgents_billing.model.subscription_facts import trial_ending
from kgents_billing.model.tenant import Hints, Learned, hints, words

# What is about a payment and belongs to who paid it.
_OF_A_PAYMENT = frozenset(
    {
        Handling.INVOICE_PAYMENT,
        Handling.CREDIT_NOTE,
        Handling.REFUND,
        Handling.CHARGE_REFUNDED,
        Handling.DISPUTE,
    }
)
# What says which payment intents and charges paid it.
_PAYMENTS = frozenset({Handling.INVOICE, Handling.INVOICE_PAYMENT, Handling.CHECKOUT})


class Outcome(StrEnum):
    """How an event ended."""

    APPLIED = "applied"
    IGNORED = "ignored"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class Payment:
    """An invoice or a checkout, and who pays it.

    Attributes:
        is_paid: The event says that it was paid: no other event knows better whose it is.
    """

    id: str
    is_paid: bool
    customer: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to commit.

    Attributes:
        row: The subscription's new row; its `version` is the one it was made from.
        wants_subscription: Fetch this subscription and decide again; without an answer, commit as it is.
        flag_customer: Look at all subscriptions of this customer again.
        words: What the event says of who owns its object.
        entries: What moved, and so far.
        payment: The payment (an invoice or a checkout) whose payer is known by this event.
        payment_names: Payment intents and charges that made a payment.
        assigned: Whose an operator says the subscription is.
        reason: For a quarantine or a dead letter, a label.
        named: The tenant it names that nobody opened.
    """

    outcome: Outcome
    tenant: str | None = None
    row: Subscription | None = None
    facts: list[Fact] = field(default_factory=list)
    learned: Learned | None = None
    words: tuple[Word, ...] = ()
    entries: tuple[Entry, ...] = ()
    payment: Payment | None = None
    payment_names: tuple[tuple[str, str], ...] = ()
    assigned: str | None = None
    wants_subscription: str | None = None
    flag_customer: str | None = None
    wants_reconcile: bool = False
    reason: str = ""
    named: str | None = None
    notes: tuple[str, ...] = ()


def decide(
    event: StripeEvent,
    known: Known,
    options: Options,
    *,
    looked_up: str | None = None,
    is_current: bool = False,
    is_patient: bool = True,
) -> Decision:
    """What an event with an object leads to.

    Args:
        looked_up: The tenant Stripe's customer object names, where it was asked.
        is_current: The object is not as it was at the event, but as it is now (a thin event without a twin).
        is_patient: Money that goes back waits for its payment; else its customer says whose it is.

    Raises:
        PermanentError: The object cannot be read.
    """
    made = _decide(event, known, options, looked_up=looked_up, is_current=is_current, is_patient=is_patient)
    return replace(made, facts=stamped(made.facts, event.livemode, event.account))


def _decide(
    event: StripeEvent,
    known: Known,
    options: Options,
    *,
    looked_up: str | None,
    is_current: bool,
    is_patient: bool,
) -> Decision:
    if not options.takes(event.livemode, event.account):
        is_foreign = options.takes(event.livemode, None)
        return Decision(Outcome.IGNORED, notes=("foreign_account" if is_foreign else "wrong_mode",))
    kind = handling(event.type)
    if kind is Handling.IGNORED:
        return Decision(Outcome.IGNORED)
    if kind is Handling.METER_ERROR:
        return Decision(Outcome.DEAD, reason="meter_error")
    if kind is Handling.RECONCILE:
        return Decision(Outcome.APPLIED, wants_reconcile=True)
    if event.object is not None:
        check_shape(kind, event.object)
    said = hints(event)
    if event.object_id is None:
        raise MalformedEventError("not a Stripe event: `data.object.id` is no id")
    assigned = options.accounts.get(event.account or "") or known.assigned(event.second)
    if assigned is None and said.tenant in known.unknown:
        return Decision(Outcome.QUARANTINED, reason="unknown_tenant", named=said.tenant)
    if kind is Handling.CHARGE_REFUNDED and not options.refunds_from_charges:
        return Decision(Outcome.APPLIED, learned=tenants.learned(event, None))
    if kind is Handling.CUSTOMER:
        return _customer(event, known, assigned)
    if kind in _OF_A_PAYMENT:
        # Who paid, whoever the customer's things are now; unless the object itself says whose it is.
        own = options.accounts.get(event.account or "")
        tenant = own or said.tenant or known.payment_tenant or assigned or looked_up
        if tenant is None and not is_patient:
            tenant = known.owner(event.second)
    else:
        tenant = assigned or said.tenant or known.owner(event.second) or looked_up
    if tenant is None:
        return Decision(Outcome.QUARANTINED, reason="invalid_tenant" if said.invalid else "unmapped_tenant")
    decided = Decision(
        Outcome.APPLIED, tenant, learned=tenants.learned(event, tenant), words=tuple(words(event))
    )
    if kind is Handling.SUBSCRIPTION:
        return _subscription(event, known, decided, said, options, is_current=is_current)
    money = _money(event, kind, options)
    return replace(
        decided,
        facts=money.facts,
        entries=tuple(money.entries),
        payment=_payment_of(kind, said, money),
        payment_names=tuple((name, said.payment) for name in said.references)
        if said.payment is not None and kind in _PAYMENTS
        else (),
        flag_customer=event.object_id if kind is Handling.CUSTOMER_DELETED else None,
        notes=("finalization_failed",) if event.type == "invoice.finalization_failed" else (),
    )


def settle(decision: Decision, fetched: Fetched, event: StripeEvent) -> Decision:
    """The same decision once the subscription itself was seen: its state is what Stripe says."""
    assert decision.row is not None  # noqa: S101 only a decision about a subscription wants one fetched
    row = decision.row
    seen = observe_object(
        row,
        row.id,
        Ownership(row.tenant, row.tenant, assigned=decision.assigned),
        fetched.state,
        second=fetched.second,
        source=event.source,
        tells_change=False,
    )
    known = {fact.key for fact in decision.facts}
    more = [fact for fact in seen.facts if fact.key not in known]
    facts = [*decision.facts, *stamped(more, event.livemode, event.account)]
    return replace(decision, row=seen.row, facts=facts, wants_subscription=None)


def _subscription(
    event: StripeEvent, known: Known, decided: Decision, said: Hints, options: Options, *, is_current: bool
) -> Decision:
    assert event.object is not None  # noqa: S101 decided on events with an object only
    assert event.object_id is not None  # noqa: S101 likewise
    assert decided.tenant is not None  # noqa: S101 likewise
    row, after = known.subscription, project(event.object)
    sure = replace(known, subscription_words=(*known.subscription_words, *decided.words))
    assigned = options.accounts.get(event.account or "") or known.assigned(NOW)
    owned = Ownership(
        then=decided.tenant,
        now=sure.owner(NOW) or decided.tenant,
        until=None if said.tenant is None else owner_at(known.customer_words, event.second - 1),
        assigned=assigned,
    )
    decided = replace(decided, assigned=assigned)
    if is_current:
        seen = observe_object(
            row, event.object_id, owned, after, second=event.second, source=event.source, via="fetch"
        )
    else:
        observation = Observation(
            event=event.id,
            second=event.second,
            after=after,
            before=project_before(event.object, event.previous),
            is_birth=event.type == "customer.subscription.created",
        )
        seen = observe(row, event.object_id, owned, observation, source=event.source)
    is_last = digest(seen.row.state) == digest(after)
    if at(event.object, "items", "has_more") is True and is_last and after.status not in TERMINAL:
        # Stripe cuts long lists in events; what was cut, only asking tells.
        row = msgspec.structs.replace(seen.row, needs_refetch=True)
        seen = replace(seen, row=row, wants_fetch=True, notes=(*seen.notes, "partial_items"))
    return replace(
        decided,
        row=seen.row,
        facts=[fact for fact in seen.facts if fact.tenant not in known.unknown],
        wants_subscription=event.object_id if seen.wants_fetch else None,
        notes=seen.notes,
    )


def _customer(event: StripeEvent, known: Known, assigned: str | None) -> Decision:
    """Whose a customer is; where that changed, both are told."""
    assert event.object_id is not None  # noqa: S101 decided on events with an object only
    said = words(event)
    facts = [
        fact
        for word in said
        if word.is_move and assigned is None
        for fact in moved_facts(
            Kind.CUSTOMER, word.id, word.before, word.after, second=word.second, source=event.source, data={}
        )
        if fact.tenant not in known.unknown
    ]
    return Decision(Outcome.APPLIED, facts=facts, learned=tenants.learned(event, None), words=tuple(said))


def _payment_of(kind: Handling, said: Hints, money: Said) -> Payment | None:
    if said.payment is None or kind not in (Handling.INVOICE, Handling.CHECKOUT):
        return None
    return Payment(said.payment, any("paid" in one.seen for one in money.entries), said.customer)


def _money(event: StripeEvent, kind: Handling, options: Options) -> Said:
    thing = event.object
    assert thing is not None  # noqa: S101 decided on events with an object only
    if kind is Handling.TRIAL_ENDING:
        name = event.object_id or ""
        return Said([trial_ending(name, project(thing), event.second, event.source)])
    if kind is Handling.INVOICE:
        return payments.invoice_said(event, thing, tells_zero=options.tells_zero_payments)
    if kind is Handling.INVOICE_PAYMENT:
        return payments.invoice_payment_said(event, thing)
    if kind is Handling.CHECKOUT:
        return payments.checkout_said(event, thing)
    if kind is Handling.CREDIT_NOTE:
        return returns.credit_note_said(event, thing)
    if kind is Handling.REFUND:
        of_charge = event.type.startswith("charge.")
        if of_charge is not options.refunds_from_charges:
            return Said()
        return returns.refund_said(event, thing, charges_tell=of_charge)
    if kind is Handling.CHARGE_REFUNDED:
        return returns.charge_refund_said(event, thing) if options.refunds_from_charges else Said()
    if kind is Handling.DISPUTE:
        return returns.dispute_said(event, thing)
    if kind is Handling.CUSTOMER_DELETED:
        return payments.customer_deleted_said(event)
    return Said()
