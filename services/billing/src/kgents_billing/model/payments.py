"""Facts about money, each read off one event's object: invoices, checkouts, refunds, disputes; no state at
all.

Names follow what happened, so that an event that comes twice, under two ids or as two types gives one fact.
Money facts are never dropped for being late.
"""

from __future__ import annotations

from dataclasses import replace

from kgents_billing.model import facts as kinds
from kgents_billing.model.event import Json, StripeEvent, at, reference
from kgents_billing.model.facts import Fact, without_nothing
from kgents_billing.model.money import money

_INVOICE_VERBS = {
    "invoice.finalized": "finalized",
    "invoice.finalization_failed": "finalization_failed",
    "invoice.voided": "voided",
    "invoice.marked_uncollectible": "marked_uncollectible",
    "invoice.overdue": "overdue",
}
# Of a payment Stripe tells both, of one out of band the first, older endpoints often take the second alone.
_PAID = ("invoice.paid", "invoice.payment_succeeded")
_ACTION_REQUIRED = ("invoice.payment_action_required", "invoice.payment_attempt_required")


def invoice_subscription(invoice: Json) -> str | None:
    """The subscription an invoice is for: at `parent` since 2025-03-31, at the top before."""
    return reference(at(invoice, "parent", "subscription_details", "subscription")) or reference(
        invoice.get("subscription")
    )


def invoice_facts(event: StripeEvent, invoice: Json, *, tells_zero: bool = False) -> list[Fact]:
    """Facts of an `invoice.*` event; none for `invoice.upcoming`, which is about an invoice without an id.

    Args:
        tells_zero: Also tell of payments of nothing, such as a trial's first invoice.
    """
    name = event.object_id
    if name is None:
        return []
    common = {
        "invoice": name,
        "customer": reference(invoice.get("customer")),
        "subscription": invoice_subscription(invoice),
        "billing_reason": _word(invoice.get("billing_reason")),
    }
    currency = invoice.get("currency")
    details: dict[str, object]
    attempts = invoice.get("attempt_count")
    attempt = attempts if isinstance(attempts, int) else 0
    if event.type in _PAID:
        paid = money(invoice.get("amount_paid"), currency)
        if paid is not None and paid.amount_minor == 0 and not tells_zero:
            return []
        out_of_band = invoice.get("paid_out_of_band")
        details = {"paid": paid, "out_of_band": out_of_band if out_of_band is True else None}
        told = _fact(event, kinds.PAID, f"pay.ok:{name}", {**common, **details})
        # The invoice's own moment: two events tell of one payment, each with a `created` of its own.
        paid_at = at(invoice, "status_transitions", "paid_at")
        return [replace(told, second=paid_at) if isinstance(paid_at, int) else told]
    if event.type == "invoice.payment_failed":
        details = {
            "due": money(invoice.get("amount_due"), currency),
            "attempt_count": attempt,
            "next_payment_attempt": invoice.get("next_payment_attempt"),
        }
        return [_fact(event, kinds.FAILED, f"pay.fail:{name}:{attempt}", {**common, **details})]
    if event.type in _ACTION_REQUIRED:
        details = {
            "due": money(invoice.get("amount_due"), currency),
            "attempt_count": attempt,
            "reason": "action_required",
        }
        return [_fact(event, kinds.FAILED, f"pay.action:{name}:{attempt}", {**common, **details})]
    verb = _INVOICE_VERBS.get(event.type)
    if verb is None:
        return []
    details = {"due": money(invoice.get("amount_due"), currency)}
    return [_fact(event, f"invoice.{verb}", f"inv.{verb}:{name}", {**common, **details})]


def checkout_facts(event: StripeEvent, session: Json) -> list[Fact]:
    """Facts of a one-off checkout; a subscription's payments are its invoices'."""
    name = event.object_id
    if name is None or session.get("mode") != "payment":
        return []
    is_paid = session.get("payment_status") == "paid"
    if event.type == "checkout.session.async_payment_failed":
        kind = kinds.FAILED
    elif event.type == "checkout.session.async_payment_succeeded" or is_paid:
        kind = kinds.PAID
    else:
        return []
    details = {
        "checkout_session": name,
        "customer": reference(session.get("customer")),
        "total": money(session.get("amount_total"), session.get("currency")),
    }
    return [_fact(event, kind, f"pay:{name}", details)]


def refund_facts(event: StripeEvent, refund: Json) -> list[Fact]:
    """One fact for each status a refund reaches; the money is back with `status` succeeded."""
    name, status = event.object_id, _word(refund.get("status"))
    if name is None or status is None:
        return []
    details = {
        "refund": name,
        "status": status,
        "charge": reference(refund.get("charge")),
        "payment_intent": reference(refund.get("payment_intent")),
        "refunded": money(refund.get("amount"), refund.get("currency")),
        "reason": _word(refund.get("reason")),
    }
    return [_fact(event, kinds.REFUNDED, f"refund:{name}:{status}", details)]


def charge_refund_facts(event: StripeEvent, charge: Json) -> list[Fact]:
    """A refund told by its charge, for endpoints without `refund.*`: the sum so far names it."""
    name, total = event.object_id, charge.get("amount_refunded")
    if name is None or not isinstance(total, int):
        return []
    before = at(event.previous, "amount_refunded")
    amount = total - before if isinstance(before, int) else None
    currency = charge.get("currency")
    details = {
        "charge": name,
        "customer": reference(charge.get("customer")),
        "status": "succeeded",
        "cumulative_minor": total,
        "refunded": money(amount if amount is not None else total, currency),
    }
    return [_fact(event, kinds.REFUNDED, f"chrefund:{name}:{total}", details)]


def dispute_facts(event: StripeEvent, dispute: Json) -> list[Fact]:
    """One fact for each type and status: opened, evidence due, won, lost, funds taken, funds back."""
    name, status = event.object_id, _word(dispute.get("status"))
    if name is None or status is None:
        return []
    happening = event.type.removeprefix("charge.dispute.")
    details = {
        "dispute": name,
        "happening": happening,
        "status": status,
        "charge": reference(dispute.get("charge")),
        "reason": _word(dispute.get("reason")),
        "disputed": money(dispute.get("amount"), dispute.get("currency")),
    }
    return [_fact(event, kinds.DISPUTED, f"dispute:{name}:{happening}:{status}", details)]


def customer_deleted_fact(event: StripeEvent) -> list[Fact]:
    """A customer is gone."""
    name = event.object_id
    if name is None:
        return []
    return [_fact(event, kinds.CUSTOMER_DELETED, f"cus.deleted:{name}", {"customer": name})]


def _fact(event: StripeEvent, kind: str, key: str, data: Json) -> Fact:
    return Fact(kind, key, event.second, event.source, without_nothing(data))


def _word(value: object) -> str | None:
    """An enumeration's value; anything a person may have written is none."""
    if (
        isinstance(value, str)
        and 0 < len(value) <= 64
        and value.isascii()
        and value.replace("_", "").isalnum()
    ):
        return value
    return None
