"""Types of what is read of Stripe's objects: what is of another is refused by its name, not read as absent.

What may be missing or null in some version is so here; amounts have a stricter rule of their own
(`amounts`). Whether these are Stripe's types, `tests/billing/stripe_fields.json` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from kgents_billing.model.event_map import Handling
from kgents_billing.model.projection import UnreadableObjectError

Id = Annotated[str, msgspec.Meta(min_length=1)]
Second = int | None
Hash = dict[str, Any] | None


class _Expanded(msgspec.Struct, frozen=True):
    """An object in place of its id."""

    id: Id


Reference = Id | _Expanded | None


class _Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What every object has."""

    id: Id
    metadata: Hash = None
    customer: Reference = None


class _PaymentOf(msgspec.Struct, frozen=True):
    type: str | None = None
    charge: Reference = None
    payment_intent: Reference = None


class _Transitions(msgspec.Struct, frozen=True):
    paid_at: Second = None


class _Details(msgspec.Struct, frozen=True):
    subscription: Reference = None
    metadata: Hash = None


class _Parent(msgspec.Struct, frozen=True):
    subscription_details: _Details | None = None


class _Paying(msgspec.Struct, frozen=True):
    payment: _PaymentOf | None = None


class _Payings(msgspec.Struct, frozen=True):
    data: list[_Paying] | None = None


class _Invoice(_Shape, frozen=True, kw_only=True):
    billing_reason: str | None = None
    attempt_count: int | None = None
    next_payment_attempt: Second = None
    parent: _Parent | None = None
    subscription: Reference = None
    subscription_details: _Details | None = None
    status_transitions: _Transitions | None = None
    paid_out_of_band: bool | None = None
    payments: _Payings | None = None
    charge: Reference = None
    payment_intent: Reference = None


class _InvoicePayment(_Shape, frozen=True, kw_only=True):
    invoice: Id | _Expanded
    payment: _PaymentOf | None = None
    status_transitions: _Transitions | None = None


class _Creation(msgspec.Struct, frozen=True):
    enabled: bool


class _Checkout(_Shape, frozen=True, kw_only=True):
    mode: str
    payment_status: str
    client_reference_id: str | None = None
    invoice: Reference = None
    invoice_creation: _Creation | None = None
    payment_intent: Reference = None
    subscription: Reference = None


class _CreditNote(_Shape, frozen=True, kw_only=True):
    invoice: Reference = None
    reason: str | None = None


class _Refund(_Shape, frozen=True, kw_only=True):
    status: str
    charge: Reference = None
    payment_intent: Reference = None
    reason: str | None = None


class _Charge(_Shape, frozen=True, kw_only=True):
    payment_intent: Reference = None


class _Moved(msgspec.Struct, frozen=True):
    created: Second = None


class _Dispute(_Shape, frozen=True, kw_only=True):
    status: str
    charge: Reference = None
    payment_intent: Reference = None
    reason: str | None = None
    balance_transactions: list[_Moved] | None = None


class _Priced(msgspec.Struct, frozen=True):
    id: Id
    product: Reference = None


class _Item(msgspec.Struct, frozen=True):
    price: Id | _Priced | None = None
    plan: Id | _Priced | None = None
    quantity: int | None = None
    current_period_start: Second = None
    current_period_end: Second = None


class _Items(msgspec.Struct, frozen=True):
    data: list[_Item] | None = None
    has_more: bool | None = None


class _Reason(msgspec.Struct, frozen=True):
    reason: str | None = None


class _PauseType(msgspec.Struct, frozen=True):
    type: str | None = None


class _StatusDetails(msgspec.Struct, frozen=True):
    paused: _PauseType | None = None


class _PauseCollection(msgspec.Struct, frozen=True):
    behavior: str | None = None
    resumes_at: Second = None


class _Subscription(_Shape, frozen=True, kw_only=True):
    status: str
    currency: str | None = None
    items: _Items | None = None
    current_period_start: Second = None
    current_period_end: Second = None
    trial_end: Second = None
    cancel_at: Second = None
    cancel_at_period_end: bool | None = None
    cancellation_details: _Reason | None = None
    pause_collection: _PauseCollection | None = None
    status_details: _StatusDetails | None = None
    latest_invoice: Reference = None
    start_date: Second = None
    created: Second = None
    ended_at: Second = None


_SHAPES: Mapping[Handling, type[_Shape]] = {
    Handling.SUBSCRIPTION: _Subscription,
    Handling.TRIAL_ENDING: _Subscription,
    Handling.INVOICE: _Invoice,
    Handling.INVOICE_PAYMENT: _InvoicePayment,
    Handling.CREDIT_NOTE: _CreditNote,
    Handling.CHECKOUT: _Checkout,
    Handling.REFUND: _Refund,
    Handling.CHARGE_REFUNDED: _Charge,
    Handling.DISPUTE: _Dispute,
    Handling.CUSTOMER: _Shape,
    Handling.CUSTOMER_DELETED: _Shape,
}


def check_shape(kind: Handling, thing: Mapping[str, Any]) -> None:
    """Refuse an object of which something that is read has another type.

    Raises:
        UnreadableObjectError: It names the field and the types, not the value.
    """
    shape = _SHAPES.get(kind)
    if shape is None:
        return
    try:
        msgspec.convert(thing, shape)
    except msgspec.ValidationError as error:
        raise UnreadableObjectError(f"{thing.get('object') or kind.value}: {error}"[:200]) from None
