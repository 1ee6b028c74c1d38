"""From an event's type to what billing does with it; every type that is not here is stored, counted and left.

Source of the table: section 8 of the notes this was built from, repeated for operators in the README.
"""

from __future__ import annotations

from enum import StrEnum


class Handling(StrEnum):
    """What billing does with an event."""

    SUBSCRIPTION = "subscription"  # state, and facts of its change
    TRIAL_ENDING = "trial_ending"  # a fact, no state
    INVOICE = "invoice"
    INVOICE_PAYMENT = "invoice_payment"
    CREDIT_NOTE = "credit_note"
    CHECKOUT = "checkout"
    REFUND = "refund"
    CHARGE_REFUNDED = "charge_refunded"
    DISPUTE = "dispute"
    CUSTOMER = "customer"  # teaches whose a customer is
    CUSTOMER_DELETED = "customer_deleted"
    METER_ERROR = "meter_error"  # usage Stripe did not take: an operator's
    RECONCILE = "reconcile"  # Stripe failed to make events: look at every object
    IGNORED = "ignored"


# Only these carry a subscription as it was: state, and a change.
_SUBSCRIPTION = {
    "created",
    "updated",
    "deleted",
    "paused",
    "resumed",
    "pending_update_applied",
    "pending_update_expired",
}
# Types that only thin events have: each says that the object is worth a look.
_SUBSCRIPTION_THIN = {
    "active",
    "past_due",
    "trialing",
    "unpaid",
    "incomplete",
    "incomplete_expired",
    "item_quantity_changed",
}
_INVOICE = {
    "paid",
    "payment_failed",
    "payment_action_required",
    "payment_attempt_required",
    "finalized",
    "finalization_failed",
    "voided",
    "marked_uncollectible",
    "overdue",
}
# Told by another type that the endpoint should send: the same fact, for endpoints that are set up otherwise.
_TOLD_OTHERWISE = ("charge.refunded", "charge.refund.updated", "invoice.payment_succeeded")
_TABLE: dict[str, Handling] = {
    **{f"customer.subscription.{verb}": Handling.SUBSCRIPTION for verb in _SUBSCRIPTION | _SUBSCRIPTION_THIN},
    "customer.subscription.trial_will_end": Handling.TRIAL_ENDING,
    **{f"invoice.{verb}": Handling.INVOICE for verb in _INVOICE},
    "invoice.payment_succeeded": Handling.INVOICE,
    "invoice_payment.paid": Handling.INVOICE_PAYMENT,
    "credit_note.created": Handling.CREDIT_NOTE,
    "credit_note.voided": Handling.CREDIT_NOTE,
    "checkout.session.completed": Handling.CHECKOUT,
    "checkout.session.async_payment_succeeded": Handling.CHECKOUT,
    "checkout.session.async_payment_failed": Handling.CHECKOUT,
    "refund.created": Handling.REFUND,
    "refund.updated": Handling.REFUND,
    "refund.failed": Handling.REFUND,
    "charge.refunded": Handling.CHARGE_REFUNDED,
    "charge.refund.updated": Handling.REFUND,
    **{
        f"charge.dispute.{verb}": Handling.DISPUTE
        for verb in ("created", "updated", "closed", "funds_withdrawn", "funds_reinstated")
    },
    "customer.created": Handling.CUSTOMER,
    "customer.updated": Handling.CUSTOMER,
    "customer.deleted": Handling.CUSTOMER_DELETED,
    "billing.meter.error_report_triggered": Handling.METER_ERROR,
    "billing.meter.no_meter_found": Handling.METER_ERROR,
    "v2.core.health.event_generation_failure.resolved": Handling.RECONCILE,
}
# What the endpoint should send; thin destinations take the same with `v1.` before them.
ENDPOINT_TYPES = tuple(
    sorted(
        name
        for name in _TABLE
        if name not in _TOLD_OTHERWISE
        and not name.startswith(("v2.", "billing."))
        and name.rpartition(".")[2] not in _SUBSCRIPTION_THIN
    )
)


def handling(event_type: str) -> Handling:
    """What to do with an event of this type."""
    return _TABLE.get(event_type, Handling.IGNORED)


def is_known(event_type: str) -> bool:
    """Whether the type (a thin one's `v1.` taken off) means anything to us."""
    return event_type in _TABLE
