"""Stripe's objects, each whole in the shape of the current API version; how they change is in `life`.

Every field that Stripe's OpenAPI requires is here, and of the others those that billing reads; what people
write and links are left out. `tests/billing/shapes.py` holds them against the types of Stripe's own library.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

API_VERSION = "2026-10-28.endive"
START = 1_790_000_000
MONTH = 2_678_400

Object = dict[str, Any]
_ids = itertools.count(1)


def new_id(prefix: str) -> str:
    """An id nobody else in this process has."""
    return f"{prefix}_{next(_ids):06d}"


def owned_by(tenant: str | None) -> dict[str, str]:
    """The metadata by which billing knows whose an object is."""
    return {"tenant_id": tenant} if tenant else {}


def listed(url: str, *data: Object) -> Object:
    """A list inside an object."""
    return {"object": "list", "data": list(data), "has_more": False, "url": url}


def customer(name: str, *, tenant: str | None = "acme", at: int = START) -> Object:
    """Who pays."""
    return {
        "id": name,
        "object": "customer",
        "created": at,
        "livemode": False,
        "currency": "usd",
        "metadata": owned_by(tenant),
    }


def price(
    name: str = "price_a", *, product: str = "prod_a", amount: int = 1999, currency: str = "usd"
) -> Object:
    """What one of an item costs a month."""
    return {
        "id": name,
        "object": "price",
        "active": True,
        "billing_scheme": "per_unit",
        "created": START,
        "currency": currency,
        "livemode": False,
        "metadata": {},
        "product": product,
        "recurring": {"interval": "month", "interval_count": 1, "usage_type": "licensed"},
        "type": "recurring",
        "unit_amount": amount,
    }


def plan(of: Mapping[str, Any]) -> Object:
    """What Stripe still says beside a price, in the words from before there were prices."""
    shared = {
        name: of[name] for name in ("id", "active", "billing_scheme", "created", "currency", "livemode")
    }
    return {
        **shared,
        "object": "plan",
        "amount": of["unit_amount"],
        "product": of["product"],
        "metadata": {},
        **of["recurring"],
    }


def item(subscription: str, priced: Mapping[str, Any], *, quantity: int = 1, at: int = START) -> Object:
    """One thing subscribed to."""
    return {
        "id": f"si_{subscription}",
        "object": "subscription_item",
        "created": at,
        "discounts": [],
        "metadata": {},
        "plan": plan(priced),
        "price": dict(priced),
        "quantity": quantity,
        "subscription": subscription,
    }


def subscription(
    name: str,
    *,
    tenant: str | None = "acme",
    payer: str | None = None,
    priced: Mapping[str, Any] | None = None,
    quantity: int = 1,
    at: int = START,
    basil: bool = True,
) -> Object:
    """A subscription that is not paid yet.

    Args:
        basil: Each item has its period, as since 2025-03-31; else the subscription has one.
    """
    of = dict(priced or price())
    one = item(name, of, quantity=quantity, at=at)
    made: Object = {
        "id": name,
        "object": "subscription",
        "status": "incomplete",
        "customer": payer or f"cus_{name}",
        "currency": of["currency"],
        "created": at,
        "start_date": at,
        "automatic_tax": {"enabled": False},
        "billing_cycle_anchor": at,
        "billing_mode": {"type": "flexible"},
        "billing_schedules": [],
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": "charge_automatically",
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"issuer": {"type": "self"}},
        "latest_invoice": None,
        "livemode": False,
        "metadata": owned_by(tenant),
        "pause_collection": None,
        "trial_end": None,
        "trial_start": None,
        "items": listed(f"/v1/subscription_items?subscription={name}", one),
    }
    (one if basil else made).update({"current_period_start": at, "current_period_end": at + MONTH})
    return made


def invoice(
    name: str,
    *,
    subscription: str,
    payer: str,
    tenant: str | None = "acme",
    amount: int = 1999,
    currency: str = "usd",
    at: int = START,
    reason: str = "subscription_create",
) -> Object:
    """An open invoice over one month of a subscription. Which payments paid it, events do not carry."""
    line: Object = {
        "id": f"il_{name}",
        "object": "line_item",
        "amount": amount,
        "currency": currency,
        "discountable": True,
        "discounts": [],
        "livemode": False,
        "metadata": owned_by(tenant),
        "period": {"start": at, "end": at + MONTH},
        "subtotal": amount,
    }
    return {
        "id": name,
        "object": "invoice",
        "customer": payer,
        "currency": currency,
        "status": "open",
        "created": at,
        "billing_reason": reason,
        "amount_due": amount,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_remaining": amount,
        "amount_shipping": 0,
        "attempt_count": 0,
        "attempted": False,
        "automatic_tax": {"enabled": False},
        "collection_method": "charge_automatically",
        "default_tax_rates": [],
        "discounts": [],
        "issuer": {"type": "self"},
        "lines": listed(f"/v1/invoices/{name}/lines", line),
        "livemode": False,
        "metadata": {},
        "next_payment_attempt": None,
        "parent": {
            "type": "subscription_details",
            "quote_details": None,
            "subscription_details": {"subscription": subscription, "metadata": owned_by(tenant)},
        },
        "payment_settings": {"default_mandate": None},
        "period_start": at,
        "period_end": at,
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "starting_balance": 0,
        "status_transitions": {
            "finalized_at": at,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": amount,
        "total": amount,
    }


def charge(name: str, *, payer: str, amount: int = 1999, currency: str = "usd", at: int = START) -> Object:
    """Money that was taken."""
    return {
        "id": name,
        "object": "charge",
        "amount": amount,
        "amount_captured": amount,
        "amount_refunded": 0,
        "billing_details": {"address": None, "email": None, "name": None, "phone": None, "tax_id": None},
        "captured": True,
        "created": at,
        "currency": currency,
        "customer": payer,
        "disputed": False,
        "livemode": False,
        "metadata": {},
        "paid": True,
        "payment_intent": f"pi_{name}",
        "refunded": False,
        "status": "succeeded",
    }


def invoice_payment(
    name: str, *, invoice: str, amount: int, charge: Mapping[str, Any] | None, currency: str = "usd",
    at: int = START,
) -> Object:  # fmt: skip
    """A payment of an invoice, by a charge, or past Stripe where there is none."""
    payment: Object = {"type": "payment_record", "payment_record": f"prec_{name}"}
    if charge is not None:
        payment = {"type": "payment_intent", "payment_intent": charge["payment_intent"]}
    return {
        "id": name,
        "object": "invoice_payment",
        "amount_paid": amount,
        "amount_requested": amount,
        "created": at,
        "currency": currency,
        "invoice": invoice,
        "is_default": True,
        "livemode": False,
        "payment": payment,
        "status": "paid",
        "status_transitions": {"canceled_at": None, "paid_at": at},
    }


def credit_note(
    name: str, *, invoice: str, payer: str, amount: int, currency: str = "usd", at: int = START
) -> Object:
    """A credit note over part of a paid invoice."""
    return {
        "id": name,
        "object": "credit_note",
        "amount": amount,
        "amount_shipping": 0,
        "created": at,
        "currency": currency,
        "customer": payer,
        "customer_balance_transaction": None,
        "discount_amount": 0,
        "discount_amounts": [],
        "invoice": invoice,
        "lines": listed(f"/v1/credit_notes/{name}/lines"),
        "livemode": False,
        "metadata": {},
        "number": f"{name}-01",
        "out_of_band_amount": None,
        "pdf": "",
        "post_payment_amount": amount,
        "pre_payment_amount": 0,
        "pretax_credit_amounts": [],
        "reason": None,
        "refunds": [],
        "status": "issued",
        "subtotal": amount,
        "total": amount,
        "total_excluding_tax": amount,
        "total_taxes": [],
        "type": "post_payment",
        "voided_at": None,
    }


def balance_transaction(
    name: str, source: str, kind: str, amount: int, *, currency: str = "usd", at: int = START
) -> Object:
    """Money that Stripe's balance gained, or lost."""
    return {
        "id": name,
        "object": "balance_transaction",
        "amount": amount,
        "available_on": at,
        "balance_type": "payments",
        "created": at,
        "currency": currency,
        "description": None,
        "exchange_rate": None,
        "fee": 0,
        "fee_details": [],
        "net": amount,
        "reporting_category": kind,
        "source": source,
        "status": "available",
        "type": kind,
    }


def refund(
    name: str, of: Mapping[str, Any], amount: int, *, status: str = "succeeded", at: int = START
) -> Object:
    """Money of a charge that went back."""
    return {
        "id": name,
        "object": "refund",
        "amount": amount,
        "charge": of["id"],
        "created": at,
        "currency": of["currency"],
        "customer": of["customer"],
        "metadata": {},
        "payment_intent": of["payment_intent"],
        "reason": "requested_by_customer",
        "status": status,
    }


def dispute(name: str, of: Mapping[str, Any], *, at: int = START) -> Object:
    """A charge that the bank took back; it names no customer."""
    return {
        "id": name,
        "object": "dispute",
        "amount": of["amount"],
        "balance_transactions": [],
        "charge": of["id"],
        "created": at,
        "currency": of["currency"],
        "enhanced_eligibility_types": [],
        "evidence": {"enhanced_evidence": {}},
        "evidence_details": {
            "due_by": at + MONTH,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
            "submission_method": "not_submitted",
        },
        "is_charge_refundable": False,
        "livemode": False,
        "metadata": {},
        "payment_intent": of["payment_intent"],
        "reason": "fraudulent",
        "status": "needs_response",
    }


def checkout_session(name: str, *, payer: str, reference: str | None = None, at: int = START) -> Object:
    """A finished checkout of one thing."""
    return {
        "id": name,
        "object": "checkout.session",
        "amount_total": 500,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "client_reference_id": reference,
        "created": at,
        "currency": "eur",
        "custom_fields": [],
        "custom_text": {"after_submit": None, "shipping_address": None, "submit": None},
        "customer": payer,
        "expires_at": at + 86_400,
        "livemode": False,
        "metadata": {},
        "mode": "payment",
        "payment_method_types": ["card"],
        "payment_status": "paid",
        "shipping_options": [],
        "status": "complete",
        "subscription": None,
    }
