"""What one event says of money: entries, and facts that move none; invoices and checkouts. No state at all.

Names follow what happened, so that an event that comes twice, under two ids or as two types gives one fact.
Money is never dropped for being late.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kgents_billing.model import facts as kinds
from kgents_billing.model.amounts import amount, optional_amount
from kgents_billing.model.entries import Entry, EntryKind, Mark
from kgents_billing.model.event import Json, StripeEvent, at, reference, second_of
from kgents_billing.model.facts import Fact, without_nothing
from kgents_billing.model.projection import UnreadableObjectError

INVOICE_VERBS = {
    "invoice.finalized": "finalized",
    "invoice.finalization_failed": "finalization_failed",
    "invoice.voided": "voided",
    "invoice.marked_uncollectible": "marked_uncollectible",
    "invoice.overdue": "overdue",
}
# Nothing more is asked for: what was paid by then stays.
_GIVEN_UP = {"invoice.marked_uncollectible": "uncollectible", "invoice.voided": "voided"}
_MODES = ("payment", "setup", "subscription")
_STATUSES = ("no_payment_required", "paid", "unpaid")
# Of a payment Stripe tells both, of one out of band the first, older endpoints often take the second alone.
_PAID = ("invoice.paid", "invoice.payment_succeeded")
_ACTION_REQUIRED = {
    "invoice.payment_action_required": ("pay.action", "action_required"),
    "invoice.payment_attempt_required": ("pay.attempt", "attempt_required"),
}


@dataclass(frozen=True, slots=True)
class Said:
    """What an event says of money.

    Attributes:
        facts: Those that no entry tells.
        entries: Movements, each in the state the event says.
    """

    facts: list[Fact] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)


def invoice_subscription(invoice: Json) -> str | None:
    """The subscription an invoice is for: at `parent` since 2025-03-31, at the top before."""
    return reference(at(invoice, "parent", "subscription_details", "subscription")) or reference(
        invoice.get("subscription")
    )


def invoice_said(event: StripeEvent, invoice: Json, *, tells_zero: bool = False) -> Said:
    """What an `invoice.*` event says; nothing for `invoice.upcoming`, which is about none that exists.

    Args:
        tells_zero: Also tell of payments of nothing, such as a trial's first invoice.

    Raises:
        MalformedAmountError: An amount that is told is none.
    """
    name = event.object_id
    if name is None:
        return Said()
    common = {
        "invoice": name,
        "customer": reference(invoice.get("customer")),
        "subscription": invoice_subscription(invoice),
        "billing_reason": word(invoice.get("billing_reason")),
    }
    attempts = invoice.get("attempt_count")
    attempt = attempts if isinstance(attempts, int) else 0
    if event.type in _PAID:
        return _paid(event, invoice, common, tells_zero=tells_zero)
    if event.type == "invoice.payment_failed":
        details = {
            "due": _remaining(invoice),
            "attempt_count": attempt,
            "next_payment_attempt": second_of(invoice.get("next_payment_attempt"), "next_payment_attempt"),
        }
        # Stripe counts its own attempts only: a customer who tries again by hand fails at another second.
        old = f"pay.fail:{name}:{attempt}"
        failed = fact(event, kinds.FAILED, f"{old}:{event.second}", {**common, **details}, formerly=(old,))
        return Said([failed])
    if event.type in _ACTION_REQUIRED:
        prefix, reason = _ACTION_REQUIRED[event.type]
        details = {"due": _remaining(invoice), "attempt_count": attempt, "reason": reason}
        key, old = f"{prefix}:{name}:{attempt}:{event.second}", f"pay.action:{name}:{attempt}"
        return Said([fact(event, kinds.ACTION_REQUIRED, key, {**common, **details}, formerly=(old,))])
    verb = INVOICE_VERBS.get(event.type)
    if verb is None:
        return Said()
    told = fact(event, f"invoice.{verb}", f"inv.{verb}:{name}", {**common, "due": _remaining(invoice)})
    state = _GIVEN_UP.get(event.type)
    if state is None:
        return Said([told])
    # What was paid of it until then; the rest is what the fact says is written off, or void.
    part = amount(invoice, "amount_paid").amount_minor
    if part == 0 and state == "voided":
        return Said([told])
    mark = Mark(part, event.second, data=without_nothing(common))
    return Said([told], [entry(event, EntryKind.INVOICE, name, name, invoice, state, mark)])


def invoice_payment_said(event: StripeEvent, payment: Json) -> Said:
    """One payment of an invoice was made; it is part of what the invoice says was paid.

    Raises:
        MalformedAmountError: Its amount is none.
    """
    name, invoice = event.object_id, reference(payment.get("invoice"))
    if name is None or invoice is None:
        return Said()
    paid = amount(payment, "amount_paid").amount_minor
    kind = word(at(payment, "payment", "type"))
    data = without_nothing(
        {
            "invoice": invoice,
            "invoice_payment": name,
            "payment_intent": reference(at(payment, "payment", "payment_intent")),
            "charge": reference(at(payment, "payment", "charge")),
        }
    )
    outside = paid if kind == "payment_record" else 0
    paid_at = second_of(at(payment, "status_transitions", "paid_at"), "paid_at")
    mark = Mark(paid, event.second if paid_at is None else paid_at, outside, data)
    return Said([], [entry(event, EntryKind.INVOICE_PAYMENT, name, invoice, payment, "paid", mark)])


def checkout_said(event: StripeEvent, session: Json) -> Said:
    """A one-off checkout was paid, or failed to be; where it makes an invoice, the invoice tells.

    Raises:
        MalformedAmountError: Its total is none.
    """
    name = event.object_id
    mode, status = session.get("mode"), session.get("payment_status")
    if mode not in _MODES or status not in _STATUSES:
        wrong = "payment_status" if mode in _MODES else "mode"
        raise UnreadableObjectError(f"checkout.session: its {wrong} is none that is known")
    if name is None or mode != "payment":
        return Said()
    if reference(session.get("invoice")) or at(session, "invoice_creation", "enabled") is True:
        return Said()
    is_paid = status == "paid"
    if event.type == "checkout.session.async_payment_failed":
        state = "failed"
    elif event.type == "checkout.session.async_payment_succeeded" or is_paid:
        state = "paid"
    else:
        return Said()
    total = amount(session, "amount_total").amount_minor
    data = without_nothing({"checkout_session": name, "customer": reference(session.get("customer"))})
    mark = Mark(total, event.second, data=data)
    return Said([], [entry(event, EntryKind.CHECKOUT, name, name, session, state, mark)])


def customer_deleted_said(event: StripeEvent) -> Said:
    """A customer is gone."""
    name = event.object_id
    return Said([fact(event, kinds.CUSTOMER_DELETED, f"cus.deleted:{name}", {"customer": name})])


def entry(
    event: StripeEvent, kind: EntryKind, name: str, of: str, thing: Json, state: str, mark: Mark
) -> Entry:
    """An entry in one state, in its object's currency."""
    return Entry(
        id=name,
        kind=kind,
        of=of,
        currency=str(thing["currency"]).lower(),
        seen={state: mark},
        source=event.source,
        livemode=event.livemode,
        account=event.account,
    )


def fact(event: StripeEvent, kind: str, key: str, data: Json, *, formerly: tuple[str, ...] = ()) -> Fact:
    """A fact of an event's own second."""
    return Fact(
        kind,
        key,
        event.second,
        event.source,
        without_nothing(data),
        formerly=formerly,
        formerly_is_of_its_second=bool(formerly),
    )


def word(value: object) -> str | None:
    """An enumeration's value; anything a person may have written is none."""
    if (
        isinstance(value, str)
        and 0 < len(value) <= 64
        and value.isascii()
        and value.replace("_", "").isalnum()
    ):
        return value
    return None


def _paid(event: StripeEvent, invoice: Json, common: Json, *, tells_zero: bool) -> Said:
    name = str(common["invoice"])
    paid = amount(invoice, "amount_paid").amount_minor
    if paid == 0 and not tells_zero:
        return Said()
    is_outside = invoice.get("paid_out_of_band") is True  # as versions before 2025-03-31 say it
    outside = paid if is_outside else min(paid, optional_amount(invoice, "amount_paid_off_stripe"))
    # The invoice's own moment: two events tell of one payment, each with a `created` of its own.
    paid_at = second_of(at(invoice, "status_transitions", "paid_at"), "paid_at")
    second = event.second if paid_at is None else paid_at
    mark = Mark(paid, second, outside, without_nothing({**common, "out_of_band": is_outside or None}))
    return Said([], [entry(event, EntryKind.INVOICE, name, name, invoice, "paid", mark)])


def _remaining(invoice: Json) -> object:
    """What is still to be paid: less than what was due where part of it was paid."""
    return amount(invoice, "amount_due" if invoice.get("amount_remaining") is None else "amount_remaining")
